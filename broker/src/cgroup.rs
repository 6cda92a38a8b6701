//! The cgroup (version 2) of one machine: a child of the broker's own cgroup, so that no limit on the broker is evaded.
//!
//! All processes are cloned right into it. A guard removes it at the end, however that comes. Should the guard be killed as
//! well, the next broker does: the folder is locked for as long as the broker lives.

mod guard;
mod place;

use crate::config::RunLimits;
use guard::Guard;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use place::{Leaf, Place};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How the names of all such cgroups begin.
const PREFIX: &str = "bulkhead-";
/// Threads beyond those that a machine needs.
const SPARE_TASKS: u64 = 8;
/// `cpu.max`, the period in microseconds.
const CPU_PERIOD_US: u32 = 100_000;
/// How long the kernel may take to forget the last process that was in it.
const EMPTY_LIMIT: Duration = Duration::from_secs(2);

/// Why a machine has no cgroup, or not all of one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// There is no cgroup of version 2.
    #[error("no cgroup2 file system is mounted here")]
    NotMounted,
    /// A file or folder cannot be used.
    #[error("{}", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// The broker's cgroup cannot have children that are limited.
    #[error("{} is of the type {found:?}", .folder.display())]
    Type {
        /// The folder.
        folder: PathBuf,
        /// Its type.
        found: String,
    },
    /// The guard cannot be started.
    #[error("the guard that removes the cgroup cannot be started")]
    Guard(#[source] Errno),
    /// Others are in the broker's cgroup.
    #[error("other processes are in the broker's cgroup, {}", .0.display())]
    Shared(PathBuf),
    /// The kernel, or whoever delegated the cgroup, does not give a controller.
    #[error("{} has no {controller} controller", .folder.display())]
    NoController {
        /// The broker's cgroup.
        folder: PathBuf,
        /// The controller.
        controller: &'static str,
    },
}

/// A machine's cgroup. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: PathBuf,
    lock: File,
    controllers: Vec<&'static str>,
    /// Why it has not all controllers, for each that it should have.
    missing: Vec<CgroupError>,
    /// `memory.max`, once all processes run programs of their own.
    memory_max: Option<String>,
    guard: Option<Guard>,
    /// Where the broker had to go, to make room for its children; left after the folder is gone.
    leaf: Option<Leaf>,
}

/// Where the machine's processes are limited.
#[derive(Debug)]
pub(crate) enum Confinement {
    /// In a cgroup, as far as that has controllers.
    Cgroup(Cgroup),
    /// By resource limits of each process only.
    Rlimits(CgroupError),
}

/// The folder of the broker's own cgroup of version 2; none where no such hierarchy is mounted, or it cannot be seen.
pub(crate) fn own_folder() -> Option<PathBuf> {
    Place::own().ok().map(|place| place.folder().to_owned())
}

impl Confinement {
    /// Makes a cgroup for `tasks` threads, or says why there is none. `guest_bytes` is what it counts of the guest's memory.
    pub(crate) fn new(limits: &RunLimits, guest_bytes: u64, tasks: u64) -> Self {
        match Cgroup::new(limits, guest_bytes, tasks) {
            Ok(cgroup) => Self::Cgroup(cgroup),
            Err(error) => Self::Rlimits(error),
        }
    }

    /// The cgroup.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        match self {
            Self::Cgroup(cgroup) => Some(cgroup),
            Self::Rlimits(_) => None,
        }
    }

    /// The cgroup's folder.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.cgroup().map(|cgroup| cgroup.folder.as_path())
    }

    /// The controllers that limit it.
    pub(crate) fn controllers(&self) -> &[&'static str] {
        self.cgroup().map_or(&[], |cgroup| &cgroup.controllers)
    }

    /// Whether `controller` limits it.
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers().contains(&controller)
    }

    /// What limits the processes, for the report and the log.
    pub(crate) fn json(&self, core_scheduling: bool) -> serde_json::Value {
        serde_json::json!({
            "by": if self.cgroup().is_some() { "cgroup" } else { "rlimits" },
            "cgroup": self.folder().map(|folder| folder.display().to_string()),
            "controllers": self.controllers(),
            "why_not_more": self.why_not(),
            "core_scheduling": core_scheduling,
        })
    }

    /// Logs what limits the processes.
    pub(crate) fn log(&self, core_scheduling: bool) {
        let (controllers, why) = (self.controllers().join(","), self.why_not().unwrap_or_default());
        match self.folder() {
            Some(folder) => {
                let cgroup = folder.display();
                tracing::info!(%cgroup, controllers, why, core_scheduling, "the processes are limited by a cgroup");
            }
            None => {
                tracing::info!(why, core_scheduling, "the processes are limited by resource limits, not by a cgroup")
            }
        }
    }

    /// Why there is no cgroup, or why it lacks a controller.
    pub(crate) fn why_not(&self) -> Option<String> {
        let errors = match self {
            Self::Cgroup(cgroup) => cgroup.missing.iter().collect(),
            Self::Rlimits(error) => vec![error],
        };
        let text = |error: &CgroupError| match error {
            CgroupError::File(_, source) => format!("{error}: {source}"),
            other => other.to_string(),
        };
        let all: Vec<_> = errors.into_iter().map(text).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

impl Cgroup {
    fn new(limits: &RunLimits, guest_bytes: u64, tasks: u64) -> Result<Self, CgroupError> {
        let place = Place::own()?;
        remove_left_behind(place.folder());
        let (folder, lock) = make(place.folder())?;
        let mut cgroup = Self {
            folder,
            lock,
            controllers: Vec::new(),
            missing: Vec::new(),
            memory_max: None,
            guard: None,
            leaf: None,
        };
        let found = fs::read_to_string(cgroup.path("cgroup.type")).unwrap_or_default().trim().to_owned();
        if found != "domain" {
            return Err(CgroupError::Type { folder: place.folder().to_owned(), found });
        }
        let mut settings = vec![("pids", "pids.max", tasks.saturating_add(SPARE_TASKS).to_string())];
        if let Some(bytes) = limits.memory_bytes {
            settings.push(("memory", "memory.swap.max", "0".to_owned()));
            settings.push(("memory", "memory.max", guest_bytes.saturating_add(bytes).to_string()));
        }
        if let Some(percent) = limits.cpu_percent {
            let quota_us = u64::from(percent).saturating_mul(u64::from(CPU_PERIOD_US / 100));
            settings.push(("cpu", "cpu.max", format!("{quota_us} {CPU_PERIOD_US}")));
        }
        for (controller, file, value) in settings {
            let done = place.enable(controller, &mut cgroup.leaf).and_then(|()| cgroup.set(file, &value));
            match done {
                Ok(()) if cgroup.controllers.contains(&controller) => {}
                Ok(()) => cgroup.controllers.push(controller),
                Err(error) => {
                    cgroup.controllers.retain(|&other| other != controller);
                    let text = error.to_string();
                    if !cgroup.missing.iter().any(|known| known.to_string() == text) {
                        cgroup.missing.push(error);
                    }
                }
            }
        }
        if cgroup.controllers.contains(&"memory") {
            let max = limits.memory_bytes.map(|bytes| guest_bytes.saturating_add(bytes).to_string());
            cgroup.set("memory.max", "max")?;
            cgroup.memory_max = max;
        }
        let guard = Guard::start(&cgroup.folder, cgroup.leaf.as_ref().map(Leaf::folder));
        cgroup.guard = Some(guard.map_err(CgroupError::Guard)?);
        Ok(cgroup)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    fn set(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        match fs::write(self.path(file), value) {
            // A kernel without swap has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && file == "memory.swap.max" => Ok(()),
            written => written.map_err(|error| CgroupError::File(self.path(file), error)),
        }
    }

    /// Limits the memory from now on. Not before all processes are executed: until then they run in the broker's memory, and
    /// the kernel, which kills all that share the memory of one that uses too much, would kill the broker with them.
    ///
    /// # Errors
    /// When the kernel takes the limit no more.
    pub(crate) fn limit_memory(&self) -> Result<(), CgroupError> {
        self.memory_max.as_ref().map_or(Ok(()), |max| self.set("memory.max", max))
    }

    /// The folder, for clone3.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Whether the process `pid` is in it.
    pub(crate) fn holds(&self, pid: nix::unistd::Pid) -> bool {
        let all = fs::read_to_string(self.path("cgroup.procs")).unwrap_or_default();
        all.lines().any(|line| line == pid.to_string())
    }

    /// The CPU time of all processes that were ever in it.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let text = fs::read_to_string(self.path("cpu.stat")).ok()?;
        number(&text, "usage_usec").map(Duration::from_micros)
    }

    /// Whether so much of its memory is used that the processes go on only by reading their own code again and again: the
    /// kernel does that for minutes before it kills, as each page of code that it takes from them seems to be a success.
    pub(crate) fn has_used_its_memory_up(&self) -> bool {
        let read = |file| fs::read_to_string(self.path(file)).unwrap_or_default();
        let (stat, max) = (read("memory.stat"), read("memory.max"));
        max.trim().parse().is_ok_and(|max| is_used_up(&stat, max))
    }

    /// Whether its own memory limit made the kernel kill, not a shortage of the host.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let text = fs::read_to_string(self.path("memory.events")).unwrap_or_default();
        number(&text, "oom").is_some_and(|times| times > 0)
    }

    /// Whether the kernel killed for want of memory, for whatever reason.
    pub(crate) fn had_oom_kill(&self) -> bool {
        let text = fs::read_to_string(self.path("memory.events")).unwrap_or_default();
        number(&text, "oom_kill").is_some_and(|times| times > 0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let guarded = self.guard.take().map_or(Ok(()), Guard::finish);
        if let Err(error) = guarded {
            tracing::debug!("the guard of the cgroup failed: {error}");
        }
        if self.folder.exists()
            && let Err(error) = remove(&self.folder)
        {
            tracing::warn!("the cgroup {} could not be removed: {error}", self.folder.display());
        }
        self.leaf = None;
    }
}

/// Removes a cgroup, once the kernel has forgotten the last process that was in it; kills what is in it.
fn remove(folder: &Path) -> io::Result<()> {
    let busy = match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => File::open(folder.join("cgroup.events"))?,
        done => return done,
    };
    // Linux 5.14; before, the processes die with the broker all the same.
    if let Err(error) = fs::write(folder.join("cgroup.kill"), "1") {
        tracing::debug!("the processes in the cgroup are not killed: {error}");
    }
    // A change wakes (Control Group v2, "[Un]populated Notification"); what was read before it counts.
    let end = Instant::now().checked_add(EMPTY_LIMIT).unwrap_or_else(Instant::now);
    let mut text = String::new();
    loop {
        text.clear();
        (&busy).rewind()?;
        (&busy).read_to_string(&mut text)?;
        let left = end.saturating_duration_since(Instant::now());
        if !text.contains("populated 1") || left.is_zero() {
            return fs::remove_dir(folder);
        }
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(busy.as_fd(), PollFlags::POLLPRI)], timeout)?;
    }
}

/// By a `memory.stat` and a limit: what cannot be taken from processes without swap.
fn is_used_up(stat: &str, max_bytes: u64) -> bool {
    /// What the code needs that all processes run.
    const CODE_BYTES: u64 = 2 << 20;
    let kept = ["anon", "shmem", "kernel"].into_iter().filter_map(|key| number(stat, key));
    kept.fold(CODE_BYTES, u64::saturating_add) > max_bytes
}

/// The number behind `key` in lines of key and number.
fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Makes and locks a new folder in `parent`.
fn make(parent: &Path) -> Result<(PathBuf, File), CgroupError> {
    let mut tries = 0u32;
    loop {
        tries = tries.saturating_add(1);
        let folder = parent.join(format!("{PREFIX}{}-{tries}", std::process::id()));
        let failed = |error| CgroupError::File(folder.clone(), error);
        match fs::create_dir(&folder) {
            Ok(()) => {}
            // Of a broker in another pid namespace.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < 1000 => continue,
            Err(error) => return Err(failed(error)),
        }
        let opened = File::open(&folder).and_then(|lock| lock.try_lock().map_err(io::Error::from).map(|()| lock));
        // Another broker may have taken it for one that was left behind, before it was locked.
        if let Ok(lock) = opened {
            if same(&lock, &folder) {
                return Ok((folder, lock));
            }
        } else if tries > 1000 {
            return Err(failed(io::ErrorKind::ResourceBusy.into()));
        }
    }
}

/// Whether the folder that is open is still the one with this name.
fn same(open: &File, folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let (open, named) = (open.metadata(), fs::metadata(folder));
    open.is_ok_and(|open| named.is_ok_and(|named| (open.dev(), open.ino()) == (named.dev(), named.ino())))
}

/// Removes the cgroups of brokers that were killed: those that nobody locks. One with a process in it stays, by the
/// kernel's rules.
fn remove_left_behind(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for folder in entries.filter(|entry| is_ours(&entry.file_name().to_string_lossy())) {
        let folder = folder.path();
        let free = File::open(&folder).ok().filter(|lock| lock.try_lock().is_ok());
        if free.is_some() && fs::remove_dir(&folder).is_ok() {
            tracing::info!("removed the cgroup {}, which a killed broker had left", folder.display());
        }
    }
}

/// Whether a broker gives a cgroup such a name: its process id, and a number or `broker`.
fn is_ours(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(pid, kind)| is_number(pid) && (is_number(kind) || kind == "broker"))
}

#[cfg(test)]
mod tests;
