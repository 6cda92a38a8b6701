//! What the processes of a run use: memory without the guest's, context switches and processor time, out of /proc.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::ops::{Add, Sub};

/// The memory of processes in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Memory {
    /// Pages that no other process has.
    pub(crate) private: u64,
    /// Each page divided by the number of processes that have it.
    pub(crate) proportional: u64,
}

impl Add for Memory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { private: self.private + other.private, proportional: self.proportional + other.proportional }
    }
}

/// What threads have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Activity {
    /// How often they left a processor, by will or not.
    pub(crate) switches: u64,
    /// How long they were on one, in nanoseconds.
    pub(crate) run_ns: u64,
}

impl Add for Activity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { switches: self.switches + other.switches, run_ns: self.run_ns + other.run_ns }
    }
}

impl Sub for Activity {
    type Output = Self;

    /// What was done since `earlier`; threads that have ended take theirs with them.
    fn sub(self, earlier: Self) -> Self {
        Self {
            switches: self.switches.saturating_sub(earlier.switches),
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
        }
    }
}

/// All processes that descend from this one, by id.
///
/// # Errors
/// When /proc cannot be listed.
pub(crate) fn descendants() -> Result<Vec<u32>> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may have ended since.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        parents.extend(parent(&stat).map(|parent| (pid, parent)));
    }
    let this = std::process::id();
    let descends = |pid: u32| {
        let mut above = std::iter::successors(parents.get(&pid).copied(), |pid| parents.get(pid).copied());
        above.any(|pid| pid == this)
    };
    let mut all: Vec<_> = parents.keys().copied().filter(|&pid| descends(pid)).collect();
    all.sort_unstable();
    Ok(all)
}

/// The parent in a /proc/PID/stat; the name before it may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The memory of processes, without what is mapped under `guest_memory`.
///
/// # Errors
/// When a process may not be looked at.
pub(crate) fn memory(pids: &[u32], guest_memory: &str) -> Result<Memory> {
    pids.iter().try_fold(Memory::default(), |sum, pid| {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path} (be root)"))?;
        Ok(sum + without(&text, guest_memory))
    })
}

/// The sums of a /proc/PID/smaps without the mappings of names that begin with `left_out`.
fn without(smaps: &str, left_out: &str) -> Memory {
    let mut sum = Memory::default();
    let mut counts = true;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let Some(key) = first.strip_suffix(':') else {
            // addresses, permissions, offset, device, inode, name
            counts = !words.nth(4).unwrap_or_default().starts_with(left_out);
            continue;
        };
        let kib = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match key {
            _ if !counts => {}
            "Pss" => sum.proportional += kib,
            _ if key.starts_with("Private_") => sum.private += kib,
            _ => {}
        }
    }
    sum
}

/// What all threads of processes have done.
///
/// # Errors
/// When a process has no threads to look at: it has ended.
pub(crate) fn activity(pids: &[u32]) -> Result<Activity> {
    let mut sum = Activity::default();
    for pid in pids {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} has ended"))?;
        for thread in threads.flatten() {
            let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            sum = sum + of_thread(&read("status"), &read("schedstat"));
        }
    }
    Ok(sum)
}

fn of_thread(status: &str, schedstat: &str) -> Activity {
    let switches =
        status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:")?.1.trim().parse::<u64>().ok());
    let run_ns = schedstat.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
    Activity { switches: switches.sum(), run_ns }
}

/// Some of the host's counters of memory together, in KiB, as /proc/meminfo names them.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn meminfo(names: &[&str]) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    Ok(counters(&text, names))
}

fn counters(meminfo: &str, names: &[&str]) -> u64 {
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        names.contains(&name).then(|| value.split_whitespace().next()?.parse::<u64>().ok())?
    };
    meminfo.lines().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_stands_behind_a_name_that_holds_anything() {
        assert_eq!(parent("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent(""), None);
    }

    #[test]
    fn memory_of_the_guest_is_left_out() {
        let smaps = "7f00-7f10 rw-s 00000000 00:01 5 /memfd:guest-memory (deleted)\nPss: 100 kB\nPrivate_Dirty: 100 kB\n\
                     7f20-7f30 rw-p 00000000 00:00 0 [heap]\nPss:  9 kB\nPss_Dirty: 9 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 8 kB\n\
                     7f40-7f50 rw-p 00000000 00:00 0\nPss: 2 kB\nVmFlags: rd wr\n";
        assert_eq!(without(smaps, "/memfd:guest-memory"), Memory { private: 9, proportional: 11 });
    }

    #[test]
    fn switches_by_will_and_by_force_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4\n";
        assert_eq!(of_thread(status, "1000 2 3"), Activity { switches: 7, run_ns: 1000 });
    }

    #[test]
    fn counters_are_added_up_by_their_names() {
        let text = "MemTotal: 100 kB\nSlab: 7 kB\nPercpu: 3 kB\nSlabs: 50 kB\n";
        assert_eq!(counters(text, &["Slab", "Percpu"]), 10);
    }

    #[test]
    fn child_of_this_process_is_a_descendant_with_memory() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pids = descendants().unwrap();
        assert!(pids.contains(&child.id()) && !pids.contains(&std::process::id()));
        assert!(memory(&[child.id()], "/memfd:guest-memory").unwrap().proportional > 0);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
