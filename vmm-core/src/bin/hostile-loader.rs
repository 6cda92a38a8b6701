//! The loader process as in `bulkhead-loader`, in a library with the way in for what a captured one tries: see the crate
//! `hostile`. For tests only.

use policies::lockdown;
use wire::Channel;

fn main() {
    lockdown::begin_process();
    lockdown::exit_now(i32::from(!vmm_core::loader::process::run(&Channel::from_stdin())));
}
