//! The virtio-blk process as in `bulkhead-virtio-blk`, in a library with the way in for what a captured one tries: see the crate
//! `hostile`. For tests only.

use policies::lockdown;

fn main() {
    lockdown::begin_process();
    lockdown::exit_now(device_procs::block::run(wire::Channel::from_stdin()));
}
