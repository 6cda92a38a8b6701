//! Console: how fast a guest prints, and what each byte costs the host.

use super::Setup;
use super::counts::Counter;
use super::figure::{Better, Figures};
use super::run::Vm;
use super::subject::Subject;
use crate::command::progress;
use anyhow::Result;
use std::process::Command;

const GROUP: &str = "console";
/// Runs of each subject unless told otherwise.
const RUNS: usize = 9;
/// How much is printed.
const KIB: u32 = 16;
const BYTES: u32 = KIB * 1024;

/// How a driver prints: a name, and the bytes for each look at the line status.
const DRIVERS: [(&str, u32); 2] = [("polled", 1), ("in bursts of 16", 16)];

/// Measures.
///
/// # Errors
/// When a run fails.
pub(crate) fn measure(setup: &Setup, figures: &mut Figures) -> Result<()> {
    let runs = setup.runs.unwrap_or(RUNS);
    progress(format_args!("console: {runs} runs of each"));
    let counter = Counter::new();
    for run in 0..runs {
        for (name, burst) in DRIVERS {
            for subject in [Subject::Bulkhead, Subject::Qemu] {
                let rate = rate(setup, subject, burst)?;
                figures.add(GROUP, (name, "KB/s", Better::Higher), subject.name(), rate / 1e3);
                // These do not vary by more than what chance lets a process wait for another one.
                if run % 3 == 0 {
                    cost(setup, &counter, subject, (name, burst), figures)?;
                }
            }
        }
    }
    Ok(())
}

fn command(setup: &Setup, subject: Subject, burst: u32, kib: u32) -> Command {
    let words = format!("test=flood flood_kib={kib} flood_burst={burst} {}", subject.end());
    subject.command(setup, &setup.guests.scenarios(), &words)
}

/// Bytes a second, from the first to the last.
fn rate(setup: &Setup, subject: Subject, burst: u32) -> Result<f64> {
    let mut vm = Vm::start(command(setup, subject, burst, KIB), &setup.log())?;
    let from = vm.await_byte()?;
    let to = vm.await_text("PASS flood")?;
    vm.await_gone(subject.end_code())?;
    Ok(f64::from(BYTES) / (to - from).as_secs_f64())
}

/// System calls and exits for each byte: what a run that prints has more than one that prints next to nothing.
fn cost(setup: &Setup, counter: &Counter, subject: Subject, driver: (&str, u32), figures: &mut Figures) -> Result<()> {
    let (name, burst) = driver;
    let count = |kib| counter.count(setup, &command(setup, subject, burst, kib), subject.end_code());
    if let (Some(with), Some(without)) = (count(KIB)?, count(0)?) {
        let more = with - without;
        let mut add = |what: &str, value: f64| {
            figures.add(
                GROUP,
                (&format!("{what}, {name}"), "1/byte", Better::Lower),
                subject.name(),
                value / f64::from(BYTES),
            );
        };
        add("host system calls", more.syscalls);
        add("exits to a process", more.exits);
    }
    Ok(())
}
