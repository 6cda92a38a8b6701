//! What a captured process tries: the attempts, and how one of them is run inside a real binary of Bulkhead.
//!
//! A test build of the loader, the vmm, serial, virtio-blk and the inspector (feature `hostile` of their crates) enters one attempt after
//! its jail is complete, by the same launch path as ever. Which one, the jail leaves no argument, environment or file to
//! tell: the words stand in the binary itself, where `tests::captured` changes them in a copy.

pub mod arch;
pub mod attempt;
pub mod calls;
pub mod disk;
pub mod held;
pub mod kvm;
pub mod memory;
pub mod messages;
#[cfg(feature = "payload")]
mod payload;
pub mod raw;
pub mod task;

#[cfg(feature = "payload")]
pub use payload::{enter, look};

/// A thread of a process that an attacker may have captured; each has a filter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// The loader.
    Loader,
    /// The vmm's control thread.
    VmmControl,
    /// A vCPU thread of the vmm.
    VmmVcpu,
    /// Serial.
    Serial,
    /// A virtio-blk process.
    VirtioBlk,
    /// An inspector.
    Inspector,
}

impl Seat {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Loader, Self::VmmControl, Self::VmmVcpu, Self::Serial, Self::VirtioBlk, Self::Inspector];

    /// Its name in the matrix and in a task.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loader => "loader",
            Self::VmmControl => "vmm-control",
            Self::VmmVcpu => "vmm-vcpu",
            Self::Serial => "serial",
            Self::VirtioBlk => "virtio-blk",
            Self::Inspector => "inspector",
        }
    }
}

/// All attempts, in the order of the matrix.
#[must_use]
pub fn attempts() -> Vec<attempt::Attempt> {
    let mut all = calls::attempts();
    all.extend(memory::attempts());
    all.extend(kvm::attempts());
    all.extend(disk::attempts());
    all.extend(messages::attempts());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_attempt_has_a_name_of_its_own_that_fits_a_task() {
        let mut names = BTreeSet::new();
        for attempt in attempts() {
            for seat in attempt.seats {
                let words = task::words(*seat, &attempt.name);
                assert!(task::MARK.len() + words.len() < task::TASK_BYTES, "{words}");
            }
            assert!(names.insert(attempt.name.clone()), "{} twice", attempt.name);
        }
    }
}
