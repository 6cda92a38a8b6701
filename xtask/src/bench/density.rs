//! Density: how many halted VMs the machine holds in 2 GiB of memory, and how many it can launch in a second.

use super::Setup;
use super::figure::{Better, Figures};
use super::memory::{count, settle, start};
use super::processes::meminfo;
use super::run;
use super::subject::Subject;
use crate::command::progress;
use anyhow::{Result, bail};

const GROUP: &str = "density";
/// Runs of each subject unless told otherwise.
const RUNS: usize = 3;
/// How much memory the VMs may take.
const BUDGET_KIB: u64 = 2 << 20;
/// What else must be free, so that the machine itself is not in want.
const SPARE_KIB: u64 = 1 << 20;
/// The most VMs that are started.
const MOST: usize = 1000;
/// Launches for the rate, and how many of them at a time.
const LAUNCHES: usize = 80;
const AT_ONCE: usize = 8;

/// Measures.
///
/// # Errors
/// When a run fails, or the machine has too little memory.
pub(crate) fn measure(setup: &Setup, figures: &mut Figures) -> Result<()> {
    let runs = setup.runs.unwrap_or(RUNS);
    progress(format_args!("density: {runs} runs of each, with up to {MOST} VMs"));
    for _ in 0..runs {
        for subject in [Subject::Bulkhead, Subject::Qemu] {
            let fit = fit(setup, subject)?;
            figures.add(GROUP, ("halted VMs in 2 GiB", "number", Better::Higher), subject.name(), count(fit));
            let make = || subject.command(setup, &setup.guests.quick(), subject.end());
            let time = run::side_by_side(make, AT_ONCE, LAUNCHES, subject.end_code())?;
            let rate = count(LAUNCHES) / time.as_secs_f64();
            figures.add(GROUP, ("launches, 8 at a time", "1/s", Better::Higher), subject.name(), rate);
        }
    }
    Ok(())
}

/// Starts VMs until the memory that is available has fallen by the budget; how many fit.
fn fit(setup: &Setup, subject: Subject) -> Result<usize> {
    let available = || meminfo(&["MemAvailable"]);
    settle()?;
    let before = available()?;
    if before < BUDGET_KIB + SPARE_KIB {
        bail!("3 GiB of memory must be available to see how many VMs fit into 2 GiB");
    }
    let mut vms = Vec::new();
    let result = loop {
        match start(setup, subject) {
            Ok(vm) => vms.push(vm),
            Err(error) => break Err(error),
        }
        let full = || anyhow::Ok(before.saturating_sub(available()?) >= BUDGET_KIB);
        // What a launch takes for a moment is given back.
        if vms.len() >= MOST || full()? && settle().and_then(|_| full())? {
            break Ok(vms.len());
        }
    };
    run::stop(vms, subject)?;
    result
}
