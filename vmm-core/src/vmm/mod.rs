//! The vmm process: KVM, the vCPUs, and the virtio transport.
//!
//! It holds the KVM descriptor, guest memory and one socket to each device process, and no file of the host. The guest
//! is distrusted, and so are the device processes and the loader's entry state; the broker is trusted until the process
//! is locked down, and for its two messages afterwards.

pub mod control;
pub mod crew;
pub mod devices;
pub mod ending;
pub mod exit;
pub mod fds;
pub mod kick;
pub mod log;
pub mod machine;
pub mod serial;
pub mod start;
pub mod sync;
pub mod trace;
pub mod virtio;

use control::ControlError;
use policies::lockdown::exit_now;
use std::error::Error;
use wire::message::FromVmm;
use wire::{Channel, Text};

/// The process, from its first instruction of ours to its end.
pub fn main() -> ! {
    let channel = Channel::from_stdin();
    match start::prepare(&channel).and_then(|prepared| prepared.lock_down(&channel)) {
        // The control thread's state is alive when the process ends: the kernel closes and unmaps it all at once.
        Ok(mut control) => end(&channel, control.run(&channel)),
        Err(error) => end(&channel, Err(error)),
    }
}

fn end(channel: &Channel, result: Result<(), ControlError>) -> ! {
    let Err(error) = result else { exit_now(0) };
    let why = Text::truncated(chain(&error));
    let message = match error {
        ControlError::Start(error) if error.is_about_the_machine() => FromVmm::NotBuilt(why),
        _ => FromVmm::Failed(why),
    };
    // The broker may be gone, which is then the reason of the failure.
    channel.send(&message, &[]).unwrap_or(());
    exit_now(1)
}

/// An error and its causes in one sentence.
pub fn chain(error: &dyn Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        sentence = format!("{sentence}: {error}");
        cause = error.source();
    }
    sentence
}
