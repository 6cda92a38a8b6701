//! The virtio-blk process: see [`device_procs::block`].

use policies::lockdown;

fn main() {
    lockdown::begin_process();
    lockdown::exit_now(device_procs::block::run(wire::Channel::from_stdin()));
}
