//! The serial process, one 16550A and the console: see `device_procs::serial`.

use policies::lockdown;

fn main() {
    lockdown::begin_process();
    lockdown::exit_now(device_procs::serial::run(wire::Channel::from_stdin()));
}
