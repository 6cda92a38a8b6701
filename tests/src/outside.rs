//! A running machine's processes as the rest of the system sees them, in /proc.

use nix::unistd::Pid;
use policies::Process;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its id in the test's pid namespace.
    pub pid: Pid,
    /// The file name of its program.
    pub program: String,
}

impl Seen {
    fn path(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(name)
    }

    /// Asserts what the kernel must say of each of its threads: filtered, and without any privilege.
    pub fn assert_unprivileged(&self) {
        let threads = self.thread_status();
        assert!(!threads.is_empty(), "no thread of {self:?}");
        for status in threads {
            for (key, wanted) in [
                ("Seccomp", "2"),
                ("NoNewPrivs", "1"),
                ("CapEff", "0000000000000000"),
                ("CapPrm", "0000000000000000"),
                ("CapBnd", "0000000000000000"),
                ("CapInh", "0000000000000000"),
                ("CapAmb", "0000000000000000"),
            ] {
                assert_eq!(status.get(key).map(String::as_str), Some(wanted), "{key} of {self:?}");
            }
        }
    }

    /// The `status` files of all its threads.
    #[must_use]
    pub fn thread_status(&self) -> Vec<BTreeMap<String, String>> {
        let tasks = fs::read_dir(self.path("task")).expect("the process is gone");
        let read = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
        let parse = |text: String| {
            let pair = |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
            text.lines().filter_map(pair).collect()
        };
        tasks.flatten().filter_map(read).map(parse).collect()
    }

    /// Asserts that no memory of it can end in a core dump, be merged with that of others, or wait for a speculation that the
    /// kernel could have shut.
    pub fn assert_keeps_its_memory(&self) {
        let limits = self.file("limits");
        let core: Vec<_> = limits.lines().filter_map(|line| line.strip_prefix("Max core file size")).collect();
        assert_eq!(core.len(), 1, "{limits}");
        assert_eq!(core[0].split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"], "{self:?}");
        assert_eq!(self.file("coredump_filter").trim(), "00000000", "{self:?}");
        // Kernels without KSM have no such file, older ones not these lines.
        let ksm = fs::read_to_string(self.path("ksm_stat")).unwrap_or_default();
        for line in ksm.lines().filter(|line| line.starts_with("ksm_merge")) {
            assert!(line.ends_with(": no"), "{line} of {self:?}");
        }
        for status in self.thread_status() {
            let line = |key| status.get(key).map_or("", String::as_str);
            let (bypass, branches) = (line("Speculation_Store_Bypass"), line("SpeculationIndirectBranch"));
            let could = bypass.starts_with("thread ") || branches.starts_with("conditional ");
            assert!(!could || bypass.contains(" force ") || branches.contains(" force "), "{bypass}, {branches}");
        }
    }

    /// The flags (proc_pid_smaps(5), VmFlags) of each of its mappings of the file `name`.
    #[must_use]
    pub fn mapping_flags(&self, name: &str) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        let mut wanted = false;
        for line in self.file("smaps").lines() {
            match line.strip_prefix("VmFlags:") {
                Some(flags) if wanted => found.push(flags.split_whitespace().map(str::to_owned).collect()),
                Some(_) => {}
                // A mapping begins with its addresses.
                None if line.split(' ').next().is_some_and(|word| word.contains('-')) => wanted = line.contains(name),
                None => {}
            }
        }
        found
    }

    /// The soft limit in a line of its `limits`.
    #[must_use]
    pub fn limit(&self, name: &str) -> Option<String> {
        let limits = self.file("limits");
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next().map(str::to_owned)
    }

    /// The folder of its cgroup of version 2, as far as /sys/fs/cgroup shows it.
    #[must_use]
    pub fn cgroup(&self) -> Option<PathBuf> {
        let cgroups = self.file("cgroup");
        let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let mount = mounts.into_iter().find(|mount| mount.join("cgroup.controllers").exists())?;
        Some(mount.join(path))
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name} of {self:?}: {error}"))
    }

    /// One of its namespaces.
    #[must_use]
    pub fn namespace(&self, name: &str) -> PathBuf {
        fs::read_link(self.path("ns").join(name)).expect("the namespace cannot be read")
    }

    /// The network addresses that can be reached in its network namespace, as the kernel's routes show them: none at all, not
    /// even that of a loopback interface, where nobody has set any up.
    #[must_use]
    pub fn addresses(&self) -> String {
        ["net/fib_trie", "net/if_inet6"].map(|name| fs::read_to_string(self.path(name)).unwrap_or_default()).concat()
    }

    /// What is in its root folder.
    #[must_use]
    pub fn root(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("root")).expect("the root cannot be read");
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// Its mounts.
    #[must_use]
    pub fn mounts(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("mountinfo")).expect("the mounts cannot be read");
        text.lines().map(str::to_owned).collect()
    }

    /// What its descriptors lead to, each once for every descriptor.
    #[must_use]
    pub fn descriptors(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("fd")).expect("the descriptors cannot be read");
        let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.map(|target| target.display().to_string()).collect()
    }

    /// How many things of each kind it can reach by a descriptor: files and memory by name without folders. A socket or a
    /// pipe with several descriptors counts once; eventfds cannot be told apart and count each.
    #[must_use]
    pub fn holds(&self) -> BTreeMap<String, usize> {
        let (numbered, others): (Vec<_>, Vec<_>) = self
            .descriptors()
            .into_iter()
            .partition(|target| target.starts_with("socket:") || target.starts_with("pipe:"));
        let numbered: BTreeSet<_> = numbered.into_iter().collect();
        let mut kinds = BTreeMap::new();
        for target in others.iter().chain(&numbered) {
            let name = match target.split_once(":[") {
                Some((kind @ ("socket" | "pipe"), _)) => kind,
                _ if target.starts_with("/dev/") => target,
                _ => target.rsplit('/').next().unwrap_or_default().trim_end_matches(" (deleted)"),
            };
            // A file without a name is shown by its inode.
            let name = if name.starts_with('#') { "unnamed file" } else { name };
            *kinds.entry(name.to_owned()).or_default() += 1;
        }
        kinds
    }
}

/// All processes, with their parents.
fn processes() -> Vec<(Seen, Pid)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("there is no /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name stands in brackets and may hold anything: state and parent come after the last one.
        let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse().ok()));
        let (Some(parent), false) = (parent, state == Some("Z")) else { continue };
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let program = exe.file_name().map(|name| name.to_string_lossy().trim_end_matches(" (deleted)").to_owned());
        found.push((Seen { pid: Pid::from_raw(pid), program: program.unwrap_or_default() }, Pid::from_raw(parent)));
    }
    found
}

/// The jailed processes of the machine below `broker`, by program and id: without inspectors, which come and go and are no part
/// of it.
#[must_use]
pub fn jailed(broker: Pid) -> Vec<Seen> {
    below(broker).into_iter().filter(|seen| seen.program != Process::Inspector.binary()).collect()
}

/// The inspectors below `broker`.
#[must_use]
pub fn inspectors(broker: Pid) -> Vec<Seen> {
    below(broker).into_iter().filter(|seen| seen.program == Process::Inspector.binary()).collect()
}

/// The only inspector below `broker` once the boot files were looked at: the one that waits to explain a bad end.
#[must_use]
pub fn explainer(broker: Pid) -> Seen {
    let end = Instant::now() + crate::machine::LIMIT;
    loop {
        let mut found = inspectors(broker);
        if let (1, Some(one)) = (found.len(), found.pop()) {
            return one;
        }
        assert!(Instant::now() < end, "there is not one inspector");
        std::thread::yield_now();
    }
}

/// All jailed processes below `broker`, by program and id.
fn below(broker: Pid) -> Vec<Seen> {
    let all = processes();
    let mut parents = vec![broker];
    let mut found = Vec::new();
    while let Some(parent) = parents.pop() {
        for (seen, _) in all.iter().filter(|(_, of)| *of == parent) {
            parents.push(seen.pid);
            if seen.program.starts_with("bulkhead-") {
                found.push(seen.clone());
            }
        }
    }
    found.sort_by(|a, b| (&a.program, a.pid).cmp(&(&b.program, b.pid)));
    found
}

/// Waits until none of `seen` is there any more.
pub fn await_gone(seen: &[Seen]) {
    let end = Instant::now() + crate::machine::LIMIT;
    loop {
        let left: Vec<_> = processes().into_iter().filter(|(one, _)| seen.contains(one)).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left behind: {left:?}");
        std::thread::yield_now();
    }
}
