//! What a console log means.

use crate::Report;
use crate::inspect::Architecture;

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
    /// Instruction pointers of the virtual CPUs that were started.
    pub program_counters: Vec<u64>,
}

/// Explains a console log.
#[must_use]
pub fn console(_log: &[u8], _host: &HostEvidence) -> Report {
    Report::default()
}
