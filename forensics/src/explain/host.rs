//! What the host saw of a run, as names for the conditions of the knowledge.

use super::names::Names;
use crate::inspect::Architecture;

/// Exits with which a guest has not come far: less than any kernel needs for its first line.
const FEW_EXITS: u64 = 64;

/// What the host saw of a run, which no guest can forge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostEvidence {
    /// The reason with which the run ended, by its name in reports (`guest-panic`, `triple-fault`, …); none for a log alone.
    pub reason: Option<String>,
    /// The architecture of the guest, where it is known.
    pub architecture: Option<Architecture>,
    /// How many bytes the guest wrote to its console.
    pub console_bytes: Option<u64>,
    /// For each disk, whether a driver set it up (virtio DRIVER_OK).
    pub disks_ready: Vec<bool>,
    /// How often the guest left to the vmm.
    pub exits: Option<u64>,
    /// Instruction pointers of the virtual CPUs that were started, of each one or two in the order of time.
    pub program_counters: Vec<u64>,
}

impl HostEvidence {
    /// Binds `architecture` where the host knows it, `host-reason`, `host-output`, `host-disks`, `host-exits`, `host-counter` and `host-counters`.
    pub(crate) fn bind(&self, names: &mut Names) {
        // A log that does not say so is read as the host knows it.
        names.bind_some(
            "architecture",
            self.architecture.map(|architecture| match architecture {
                Architecture::X86_64 => "x86_64",
                Architecture::Aarch64 => "arm64",
            }),
        );
        names.bind_some("host-reason", self.reason.as_deref());
        names.bind_some("host-output", self.console_bytes.map(|bytes| if bytes == 0 { "none" } else { "some" }));
        if !self.disks_ready.is_empty() {
            let ready = self.disks_ready.iter().filter(|ready| **ready).count();
            let class = match ready {
                0 => "untouched",
                _ if ready == self.disks_ready.len() => "ready",
                _ => "some",
            };
            names.bind("host-disks", class);
        }
        if let Some(exits) = self.exits {
            let class = match exits {
                0 => "none",
                1..=FEW_EXITS => "few",
                _ => "many",
            };
            names.bind("host-exits", class);
            names.bind("host-exit-count", exits.to_string());
        }
        if let Some(first) = self.program_counters.first() {
            let one = self.program_counters.len() > 1 && self.program_counters.iter().all(|counter| counter == first);
            names.bind("host-counters", if one { "same" } else { "different" });
            names.bind("host-counter", format!("{first:#x}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_put_into_classes() {
        let evidence = HostEvidence {
            reason: Some("triple-fault".to_owned()),
            architecture: Some(Architecture::Aarch64),
            console_bytes: Some(0),
            disks_ready: vec![false, false],
            exits: Some(3),
            program_counters: vec![16, 16],
        };
        let mut names = Names::default();
        evidence.bind(&mut names);
        for (name, value) in [
            ("architecture", "arm64"),
            ("host-reason", "triple-fault"),
            ("host-output", "none"),
            ("host-disks", "untouched"),
            ("host-exits", "few"),
            ("host-counters", "same"),
            ("host-counter", "0x10"),
        ] {
            assert_eq!(names.get(name), Some(value), "{name}");
        }
        let mut none = Names::default();
        HostEvidence::default().bind(&mut none);
        assert_eq!(none, Names::default());
    }
}
