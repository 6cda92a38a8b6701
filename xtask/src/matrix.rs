//! The tests with Linux guests in one lab after another: which kernel in which, and the table of what came of it.

use crate::architecture::{Architecture, Gic};
use crate::emulator::Emulator;
use crate::lab::HOST_SUITE;
use crate::testing;
use crate::totals::Totals;
use crate::traced;
use anyhow::Result;
use std::fmt;

/// Those of the tests with Linux guests that depend on the kernel or the interrupt controller: parts of their names.
const KERNEL_TESTS: &str = "kernel_ six_vcpus processes_ reboot two_disks undefined_instruction ephemeral_ read_write_";
/// Those that a kernel needs to pass once: user space with 1 and 6 vCPUs, disks, a panic.
const ONCE_TESTS: &str = "initramfs_ six_vcpus two_disks undefined_instruction";

/// A lab, by what its guests see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// x86_64.
    X86_64,
    /// aarch64 with an interrupt controller.
    Aarch64(Gic),
}

impl Machine {
    /// What emulates it.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) fn emulator(self) -> Result<Emulator> {
        match self {
            Self::X86_64 => Emulator::x86_64(),
            Self::Aarch64(gic) => Emulator::aarch64(gic),
        }
    }

    fn architecture(self) -> Architecture {
        match self {
            Self::X86_64 => Architecture::X86_64,
            Self::Aarch64(_) => Architecture::Aarch64,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::X86_64 => f.write_str("x86_64"),
            Self::Aarch64(gic) => write!(f, "aarch64, GIC{}", if *gic == Gic::V2 { "v2" } else { "v3" }),
        }
    }
}

/// The tests that a guest's kernel is to pass in a lab.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    /// The lab.
    pub(crate) machine: Machine,
    /// The Debian release whose kernel is the guest.
    pub(crate) suite: String,
    /// Parts of the tests' names, or other arguments of libtest; nothing means all tests.
    pub(crate) filter: String,
    /// Whether the hostile suite runs as well. It needs no kernel of a guest, so once for an architecture is enough.
    pub(crate) hostile: bool,
    /// Whether the processes are traced as well, in all tests but the slowest, and the policies held against their calls;
    /// `filter` names those that run without. Once for an architecture is enough, too.
    pub(crate) traced: bool,
}

impl Trial {
    /// A trial of the kernel of a Debian release.
    pub(crate) fn new(machine: Machine, suite: &str, filter: &str) -> Self {
        Self { machine, suite: suite.to_owned(), filter: filter.to_owned(), hostile: false, traced: false }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Debian {} in the lab ({})", self.suite, self.machine)
    }
}

/// What is tried besides the kernel of the lab's host in the lab for x86_64; `all` for every kernel in every lab.
pub(crate) fn trials(all: bool) -> Vec<Trial> {
    let arm = |gic, suite, filter| Trial::new(Machine::Aarch64(gic), suite, filter);
    let first = Trial { hostile: true, traced: true, ..arm(Gic::V3, HOST_SUITE, traced::SLOW_TESTS) };
    let mut trials = vec![first, arm(Gic::V2, HOST_SUITE, KERNEL_TESTS)];
    if !all {
        trials.push(arm(Gic::V2, "bullseye", ONCE_TESTS));
        return trials;
    }
    trials.push(arm(Gic::V3, HOST_SUITE, "many_vcpus"));
    for suite in ["bullseye", "trixie", "sid"] {
        trials.extend([Gic::V3, Gic::V2].map(|gic| arm(gic, suite, KERNEL_TESTS)));
        trials.push(Trial::new(Machine::X86_64, suite, KERNEL_TESTS));
    }
    trials
}

/// The summary: a line for each kernel in each lab.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<String>);

impl Table {
    /// Carries a trial out and adds its line. What cannot be had and a lab that fails are counted as failures, as a test that fails is.
    pub(crate) fn attempt(&mut self, trial: &Trial, totals: &mut Totals) {
        let name = format!("test-{}-{}", trial.machine, trial.suite).replace([' ', ','], "");
        let mut own = Totals::default();
        let mut release = "not booted".to_owned();
        let result = testing::linux_in_lab(&mut own, &name, trial, &mut release);
        if let Err(error) = result {
            eprintln!("xtask: {trial}: {error:#}");
            own.failure(format!("the lab with guests of {trial}"));
        }
        if own.passed == 0 && own.failed == 0 {
            own.failure(format!("no test was run, {:?} names none", trial.filter));
        }
        for failure in &mut own.failures {
            *failure = format!("{failure} ({trial})");
        }
        self.line(trial, &release, &own);
        totals.add(own);
    }

    /// Adds the line of a trial that was carried out elsewhere.
    pub(crate) fn line(&mut self, trial: &Trial, release: &str, totals: &Totals) {
        let Trial { machine, suite, .. } = trial;
        self.0.push(format!("| {} | {machine} | {release} ({suite}) | {totals} |", machine.architecture().debian()));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("| Debian | lab | kernel of the guest | tests |\n|---|---|---|---|")?;
        self.0.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::trials;
    use crate::architecture::Architecture;

    #[test]
    fn hostile_suite_and_the_tracing_run_once_on_the_other_architecture() {
        for all in [false, true] {
            let hostile: Vec<_> = trials(all).into_iter().filter(|trial| trial.hostile || trial.traced).collect();
            assert_eq!(hostile.len(), 1, "{hostile:?}");
            assert!(hostile.iter().all(|trial| trial.hostile && trial.traced));
            assert!(hostile.iter().all(|trial| trial.machine.architecture() == Architecture::Aarch64));
        }
    }
}
