//! System calls and exits of all processes of a run, counted by the host's kernel (perf and its tracepoints).

use super::Setup;
use super::run::Vm;
use crate::command::{find_program, progress};
use anyhow::{Context, Result};
use std::ops::{Add, Sub};
use std::path::PathBuf;
use std::process::Command;

/// What a run had of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Counts {
    /// System calls of all processes.
    pub(crate) syscalls: f64,
    /// Times that a guest was left for a process.
    pub(crate) exits: f64,
    /// Accesses of a guest to ports and registers, those included that the kernel answers by itself.
    pub(crate) accesses: f64,
}

const EVENTS: [&str; 4] = ["raw_syscalls:sys_enter", "kvm:kvm_userspace_exit", "kvm:kvm_pio", "kvm:kvm_mmio"];

impl Sub for Counts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            syscalls: self.syscalls - other.syscalls,
            exits: self.exits - other.exits,
            accesses: self.accesses - other.accesses,
        }
    }
}

/// Counts by perf, where it works.
#[derive(Debug)]
pub(crate) struct Counter(Option<PathBuf>);

impl Counter {
    /// Tries it, and says when it does not work.
    pub(crate) fn new() -> Self {
        let perf = find_program("perf").filter(|perf| {
            let tried = Command::new(perf).args(["stat", "-e", &EVENTS.join(","), "true"]).output();
            tried.is_ok_and(|output| output.status.success())
        });
        if perf.is_none() {
            progress(
                "system calls and exits are not counted: `perf stat` (package linux-perf) does not work here as this user",
            );
        }
        Self(perf)
    }

    /// What a run has until it ends with `code`; nothing where nothing can be counted.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) fn count(&self, setup: &Setup, command: &Command, code: i32) -> Result<Option<Counts>> {
        let Some(perf) = &self.0 else { return Ok(None) };
        let file = setup.file("counts");
        let mut counted = Command::new(perf);
        counted.args(["stat", "-x", ",", "-e", &EVENTS.join(","), "-o"]).arg(&file).arg("--");
        counted.arg(command.get_program()).args(command.get_args());
        let mut vm = Vm::start(counted, &setup.log())?;
        vm.drain()?;
        vm.await_gone(code)?;
        let text = std::fs::read_to_string(&file).context("perf wrote no counts")?;
        parse(&text).context("perf did not count everything").map(Some)
    }
}

/// Reads what `perf stat -x ,` writes: value, unit, event and more on a line.
fn parse(text: &str) -> Option<Counts> {
    let value = |event: &str| {
        let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let line = lines.find(|fields| fields.get(2) == Some(&event))?;
        line.first()?.parse::<f64>().ok()
    };
    let [syscalls, exits, pio, mmio] = EVENTS.map(value);
    Some(Counts { syscalls: syscalls?, exits: exits?, accesses: pio?.add(mmio?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_by_their_names() {
        let text = "# started on some day\n\n136666,,raw_syscalls:sys_enter,1,100.00,,\n10,,kvm:kvm_userspace_exit,1,100.00,,\n\
                    3,,kvm:kvm_pio,1,100.00,,\n4,,kvm:kvm_mmio,1,100.00,,\n";
        assert_eq!(parse(text), Some(Counts { syscalls: 136_666.0, exits: 10.0, accesses: 7.0 }));
    }

    #[test]
    fn what_was_not_counted_is_none() {
        assert_eq!(parse("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n"), None);
    }
}
