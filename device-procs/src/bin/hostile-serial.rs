//! The serial process as in `bulkhead-serial`, in a library with the way in for what a captured one tries: see the crate
//! `hostile`. For tests only.

use policies::lockdown;

fn main() {
    lockdown::begin_process();
    lockdown::exit_now(device_procs::serial::run(wire::Channel::from_stdin()));
}
