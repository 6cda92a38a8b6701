//! What the vmm tells of its guest at the end: what it saw and, with `--debug`, the registers of the vCPUs, kept for the report.
//!
//! The vmm tells it by itself before it stops. A guest that hangs is ended by the user or by a limit; then the vmm is asked,
//! if anybody wants to know, and gets a moment to answer before it is killed.

use super::Supervisor;
use super::inspectors::ended_badly;
use crate::process::Role;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wire::Text;
use wire::message::ToVmm;

/// How long a vmm may take to tell the registers: twice what its threads may take to meet, and some.
const DUMP_LIMIT: Duration = Duration::from_secs(2);

/// The registers of the vCPUs.
#[derive(Debug, Default)]
pub(super) struct Dumps {
    /// The number of vCPUs, if their registers are wanted.
    wanted: Option<u8>,
    until: Option<Instant>,
    answered: bool,
    registers: BTreeMap<u8, Vec<Text>>,
}

impl Dumps {
    /// Of so many vCPUs, or not wanted.
    pub(super) fn of(wanted: Option<u8>) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Keeps what was said of a vCPU. False if that was not asked for, or there is no such vCPU.
    pub(super) fn keep(&mut self, vcpu: u8, lines: Vec<Text>) -> bool {
        let is_one = self.wanted.is_some_and(|vcpus| vcpu < vcpus);
        if is_one {
            self.registers.insert(vcpu, lines);
        }
        is_one
    }

    /// When there is an answer to wait for, until when.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The vmm has told all that there is to tell.
    pub(super) fn answered(&mut self) {
        self.answered = true;
    }

    /// Whether the wait is over: the answer is there, or there is no more time.
    pub(super) fn over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| self.answered || until <= now)
    }

    /// Ends the wait.
    pub(super) fn stop_waiting(&mut self) {
        self.until = None;
    }

    /// What was said, by vCPU.
    pub(super) fn into_registers(self) -> BTreeMap<u8, Vec<Text>> {
        self.registers
    }
}

impl Supervisor {
    /// Asks the vmm what there is to tell of its guest, if that is wanted and it can be asked.
    pub(super) fn ask_for_dumps(&mut self, now: Instant) -> bool {
        let to_explain = self.inspectors.can_explain() && ended_badly(self.evidence.judge().reason);
        if self.dumps.wanted.is_none() && !to_explain {
            return false;
        }
        let vmm = self.find(Role::Vmm).filter(|vmm| vmm.ended.is_none());
        let asked =
            vmm.and_then(|vmm| vmm.control.as_ref()).is_some_and(|control| control.try_send(&ToVmm::Dump, &[]).is_ok());
        if asked {
            self.dumps.until = now.checked_add(DUMP_LIMIT);
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_that_nobody_asked_for_are_refused() {
        assert!(!Dumps::of(None).keep(0, Vec::new()));
        let mut dumps = Dumps::of(Some(2));
        assert!(!dumps.keep(2, Vec::new()));
        assert!(dumps.keep(1, vec![Text::truncated("pc")]));
        assert_eq!(dumps.into_registers().into_keys().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn wait_is_over_with_the_answer_or_with_the_time() {
        let now = Instant::now();
        let mut dumps = Dumps { until: now.checked_add(DUMP_LIMIT), ..Dumps::of(Some(1)) };
        assert!(!dumps.over(now));
        assert!(dumps.over(now + DUMP_LIMIT));
        dumps.keep(0, Vec::new());
        assert!(!dumps.over(now));
        dumps.answered();
        assert!(dumps.over(now));
        dumps.stop_waiting();
        assert!(!dumps.over(now));
    }
}
