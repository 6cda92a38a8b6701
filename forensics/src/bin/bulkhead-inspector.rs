//! The inspector process: see `forensics::process`.

use policies::lockdown;
use wire::Channel;

fn main() {
    lockdown::begin_process();
    lockdown::exit_now(i32::from(!forensics::process::run(&Channel::from_stdin())));
}
