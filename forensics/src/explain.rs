//! What a console log means.

use crate::Report;
use crate::inspect::Architecture;
use wire::message::MachineSeen;

/// What the host saw of a run, which no guest can forge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostEvidence {
    /// The reason with which the run ended, by its name in reports (`guest-panic`, `triple-fault`, …); none for a log alone.
    pub reason: Option<String>,
    /// The architecture of the guest, where it is known.
    pub architecture: Option<Architecture>,
    /// The bytes that the guest printed in all, of which the log may have fewer; none for a log alone.
    pub console_bytes: Option<u64>,
    /// What the vmm saw: for each vCPU its exits by kind and its program counter, for each disk how far a driver came; none
    /// for a log alone, and where the vmm was not there to tell.
    pub machine: Option<MachineSeen>,
}

/// Explains a console log.
#[must_use]
pub fn console(_log: &[u8], _host: &HostEvidence) -> Report {
    Report::default()
}
