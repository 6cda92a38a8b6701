//! The loader process: see `vmm_core::loader`.

use policies::lockdown;
use wire::Channel;

fn main() {
    lockdown::begin_process();
    lockdown::exit_now(i32::from(!vmm_core::loader::process::run(&Channel::from_stdin())));
}
