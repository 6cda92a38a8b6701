//! Memory: what a VM costs besides the guest's own, while the guest is halted, and what it does then.

use super::Setup;
use super::figure::{Better, Figures};
use super::processes::{self, Activity};
use super::run::{self, Vm};
use super::subject::Subject;
use crate::command::progress;
use anyhow::Result;
use std::thread::sleep;
use std::time::{Duration, Instant};

const GROUP: &str = "memory";
/// Runs of each subject unless told otherwise.
const RUNS: usize = 7;
/// How many VMs stand side by side for the kernel's share.
const MANY: u32 = 20;
/// How long an idle guest is looked at, and how long it has been idle before: Bulkhead looks three times, up to eight seconds
/// after a vCPU was last seen to leave the guest, whether it has halted for good.
const IDLE: Duration = Duration::from_secs(2);
const IDLE_BEFORE: Duration = Duration::from_secs(9);
/// How long processes must have done nothing to have settled, and how long that is waited for.
const QUIET: Duration = Duration::from_millis(100);
const SETTLE: Duration = Duration::from_secs(5);
/// How much the kernel's memory changes while nothing happens.
const STEADY_KIB: u64 = 128;
/// What the kernel holds for its users and cannot take back, by /proc/meminfo.
const KERNEL: [&str; 5] = ["SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu"];

const SUBJECTS: [Subject; 3] = [Subject::Bulkhead, Subject::Qemu, Subject::Floor];

/// Measures.
///
/// # Errors
/// When a run fails, or a process cannot be looked at.
pub(crate) fn measure(setup: &Setup, figures: &mut Figures) -> Result<()> {
    let runs = setup.runs.unwrap_or(RUNS);
    progress(format_args!("memory: {runs} halted guests of each, and {runs} times {MANY} at once"));
    for _ in 0..runs {
        for subject in SUBJECTS {
            one(setup, subject, figures)?;
        }
        for subject in SUBJECTS {
            many(setup, subject, figures)?;
        }
    }
    Ok(())
}

/// Starts a guest that halts, and waits until it has printed its byte.
pub(crate) fn start(setup: &Setup, subject: Subject) -> Result<Vm> {
    let mut vm = Vm::start(subject.command(setup, &setup.guests.quick(), "end=sleep"), &setup.log())?;
    vm.await_byte()?;
    Ok(vm)
}

/// Waits until the processes have done nothing for a while, or would not stop.
pub(crate) fn settle() -> Result<Vec<u32>> {
    let end = Instant::now() + SETTLE;
    let mut before = (Vec::new(), Activity::default());
    loop {
        let pids = processes::descendants()?;
        // One of them may end between the two looks, and then they have not settled.
        let now = processes::activity(&pids).unwrap_or_default();
        if (&pids, now) == (&before.0, before.1) || Instant::now() > end {
            return Ok(pids);
        }
        before = (pids, now);
        sleep(QUIET);
    }
}

/// The memory of one VM, and what it does while its guest is idle.
fn one(setup: &Setup, subject: Subject, figures: &mut Figures) -> Result<()> {
    let vm = start(setup, subject)?;
    let begun = Instant::now();
    let pids = settle()?;
    let memory = processes::memory(&pids, subject.guest_memory())?;
    sleep(IDLE_BEFORE.saturating_sub(begun.elapsed()));
    let before = processes::activity(&pids)?;
    sleep(IDLE);
    let idle = processes::activity(&pids)? - before;
    run::stop(vec![vm], subject)?;
    let mut add = |name, unit, value| figures.add(GROUP, (name, unit, Better::Lower), subject.name(), value);
    add("private", "MiB", mib(memory.private));
    add("private and written to", "MiB", mib(memory.written));
    add("proportional", "MiB", mib(memory.proportional));
    add("processes", "number", count(pids.len()));
    add("wake-ups of an idle guest", "1/s", float(idle.switches) / IDLE.as_secs_f64());
    add("processor time of an idle guest", "µs/s", float(idle.run_ns) / 1e3 / IDLE.as_secs_f64());
    Ok(())
}

/// What the kernel has less with many VMs, for each of them.
fn many(setup: &Setup, subject: Subject, figures: &mut Figures) -> Result<()> {
    let look = || anyhow::Ok((steady()?, processes::meminfo(&["MemAvailable"])?));
    let (kernel, available) = look()?;
    let vms = (0..MANY).map(|_| start(setup, subject)).collect::<Result<Vec<_>>>()?;
    settle()?;
    let (kernel_with, available_with) = look()?;
    run::stop(vms, subject)?;
    // Others use and free memory meanwhile: a difference may be negative.
    let each = |more: u64, less: u64| (mib(more) - mib(less)) / f64::from(MANY);
    let mut add = |name, value| figures.add(GROUP, (name, "MiB", Better::Lower), subject.name(), value);
    add("kernel memory, each of 20", each(kernel_with, kernel));
    add("all memory, each of 20", each(available, available_with));
    Ok(())
}

/// The kernel's memory once it stays: what has ended is freed when nobody can look at it any more.
fn steady() -> Result<u64> {
    let end = Instant::now() + SETTLE;
    let mut before = processes::meminfo(&KERNEL)?;
    loop {
        sleep(QUIET * 2);
        let now = processes::meminfo(&KERNEL)?;
        if now.abs_diff(before) < STEADY_KIB || Instant::now() > end {
            return Ok(now);
        }
        before = now;
    }
}

fn mib(kib: u64) -> f64 {
    float(kib) / 1024.0
}

/// A number that is small enough to be told exactly.
pub(crate) fn float(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}

/// As [`float`], of a length.
pub(crate) fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}
