//! The limits that the supervisor looks after: the time of the run, the CPU time of its processes, and the memory of their
//! cgroup. All are deadlines of its one wait.
//!
//! CPU time cannot go faster than all CPUs together, so that it is looked at when it could be used up at the earliest.

use crate::cgroup::Cgroup;
use crate::config::RunLimits;
use crate::ends::Limit;
use crate::process::Supervised;
use nix::unistd::{SysconfVar, sysconf};
use std::time::{Duration, Instant};

/// The least time between two looks at the CPU time: the kernel's own unit in /proc/PID/stat.
const LEAST_WAIT: Duration = Duration::from_millis(10);

/// The time between two looks at the memory.
const MEMORY_WAIT: Duration = Duration::from_millis(500);

/// The limits.
#[derive(Debug)]
pub(super) struct Clock {
    wall: Option<(Instant, Duration)>,
    cpu: Option<CpuClock>,
    memory: Option<(Instant, u64)>,
}

#[derive(Debug)]
struct CpuClock {
    limit: Duration,
    next: Instant,
    cpus: u32,
}

impl Clock {
    /// Of a run that began at `started`; its memory is looked at if `has_memory`.
    pub(super) fn new(limits: &RunLimits, started: Instant, has_memory: bool) -> Self {
        let wall = limits.wall_time.and_then(|time| Some((started.checked_add(time)?, time)));
        let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().and_then(|cpus| u32::try_from(cpus).ok());
        let cpus = cpus.unwrap_or(1).max(1);
        let memory = limits.memory_bytes.filter(|_| has_memory).map(|bytes| (Instant::now(), bytes));
        Self { wall, cpu: limits.cpu_time.map(|limit| CpuClock { limit, next: Instant::now(), cpus }), memory }
    }

    /// When to look next.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let times = self.wall.iter().map(|(end, _)| *end).chain(self.cpu.iter().map(|cpu| cpu.next));
        times.chain(self.memory.iter().map(|(next, _)| *next))
    }

    /// The limit that is reached; `used` gives the CPU time, `is_full` whether the memory is used up.
    pub(super) fn look(
        &mut self,
        now: Instant,
        used: impl Fn() -> Duration,
        is_full: impl Fn() -> bool,
    ) -> Option<Limit> {
        if let Some((_, time)) = self.wall.filter(|(end, _)| *end <= now) {
            return Some(Limit::WallTime(time));
        }
        if let Some((next, bytes)) = self.memory.as_mut().filter(|(next, _)| *next <= now) {
            *next = now.checked_add(MEMORY_WAIT).unwrap_or(now);
            if is_full() {
                return Some(Limit::Memory(*bytes));
            }
        }
        let cpu = self.cpu.as_mut().filter(|cpu| cpu.next <= now)?;
        let left = cpu.limit.saturating_sub(used());
        let wait = left.checked_div(cpu.cpus).unwrap_or(left).max(LEAST_WAIT);
        cpu.next = now.checked_add(wait).unwrap_or(now);
        left.is_zero().then_some(Limit::CpuTime(cpu.limit))
    }
}

/// The CPU time of all processes so far: by their cgroup, or else the sum of what the kernel says of each.
pub(super) fn cpu_time(processes: &[Supervised], cgroup: Option<&Cgroup>) -> Duration {
    cgroup.and_then(Cgroup::cpu_time).unwrap_or_else(|| {
        let times = processes.iter().map(|process| match process.ended {
            Some(ended) => Duration::from_millis(ended.user_ms.saturating_add(ended.system_ms)),
            None => of_process(process.child.pid.as_raw()).unwrap_or_default(),
        });
        times.fold(Duration::ZERO, Duration::saturating_add)
    })
}

/// proc_pid_stat(5), fields 14 and 15.
fn of_process(pid: i32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = parse_ticks(&stat)?;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok())?;
    Some(Duration::from_millis(ticks.saturating_mul(1000).checked_div(per_second)?))
}

fn parse_ticks(stat: &str) -> Option<u64> {
    // The name in brackets may hold anything; the third field comes after the last bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user.saturating_add(system))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never() -> bool {
        false
    }

    #[test]
    fn memory_is_looked_at_twice_a_second_where_there_is_a_cgroup_for_it() {
        let limits = RunLimits { memory_bytes: Some(5), ..RunLimits::default() };
        assert_eq!(Clock::new(&limits, Instant::now(), false).deadlines().min(), None);
        let mut clock = Clock::new(&limits, Instant::now(), true);
        let start = Instant::now();
        assert_eq!(clock.look(start, || Duration::ZERO, never), None);
        assert_eq!(clock.deadlines().min(), Some(start + MEMORY_WAIT));
        assert_eq!(clock.look(start, || Duration::ZERO, || panic!("looked too early")), None);
        assert_eq!(clock.look(start + MEMORY_WAIT, || Duration::ZERO, || true), Some(Limit::Memory(5)));
    }

    #[test]
    fn cpu_time_is_looked_at_when_it_could_be_used_up() {
        let start = Instant::now();
        let mut clock = Clock {
            wall: None,
            cpu: Some(CpuClock { limit: Duration::from_secs(8), next: start, cpus: 4 }),
            memory: None,
        };
        assert_eq!(clock.look(start, || Duration::ZERO, never), None);
        assert_eq!(clock.deadlines().min(), Some(start + Duration::from_secs(2)));
        let later = start + Duration::from_secs(1);
        assert_eq!(clock.look(later, || panic!("looked too early"), never), None);
        let later = start + Duration::from_secs(2);
        assert_eq!(clock.look(later, || Duration::from_secs(7), never), None);
        assert_eq!(clock.deadlines().min(), Some(later + Duration::from_millis(250)));
        let later = later + Duration::from_secs(9);
        assert_eq!(clock.look(later, || Duration::from_secs(8), never), Some(Limit::CpuTime(Duration::from_secs(8))));
    }

    #[test]
    fn wall_time_counts_from_the_start() {
        let start = Instant::now();
        let time = Duration::from_secs(3);
        let limits = RunLimits { wall_time: Some(time), ..RunLimits::default() };
        let mut clock = Clock::new(&limits, start, true);
        assert_eq!(clock.deadlines().min(), Some(start + time));
        assert_eq!(clock.look(start + Duration::from_secs(2), || Duration::MAX, never), None);
        assert_eq!(clock.look(start + time, || Duration::ZERO, never), Some(Limit::WallTime(time)));
        assert_eq!(Clock::new(&RunLimits::default(), start, true).deadlines().min(), None);
    }

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 5 6 7";
        assert_eq!(parse_ticks(stat), Some(42));
        assert_eq!(parse_ticks("7 (a"), None);
        assert!(of_process(i32::try_from(std::process::id()).unwrap()).is_some());
    }
}
