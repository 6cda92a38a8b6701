//! The inspector process as in `bulkhead-inspector`, in a library with the way in for what a captured one tries: see the
//! crate `hostile`. For tests only.

use policies::lockdown;
use wire::Channel;

fn main() {
    lockdown::begin_process();
    lockdown::exit_now(i32::from(!forensics::process::run(&Channel::from_stdin())));
}
