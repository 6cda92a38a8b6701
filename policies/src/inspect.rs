//! The broker's look at a finished jail from outside, in /proc: what a child says of itself counts for nothing.

mod folder;

use crate::Process;
use crate::spawn::Ids;
use folder::Folder;
use nix::fcntl::readlink;
use nix::sys::stat::{FileStat, SFlag, fstat};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

/// What is wrong with a jail.
#[derive(Debug, thiserror::Error)]
pub enum JailViolation {
    /// A file in /proc cannot be read.
    #[error("the jail of {process} cannot be checked: {path}")]
    Unreadable {
        /// The process.
        process: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The process is dying: its filter has killed it, or it has exited.
    #[error("the jail of {process} cannot be checked: {path} says that it is dying")]
    Dying {
        /// The process.
        process: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A line of `status` is not as it must be.
    #[error("the jail of {process} is not tight: {path} says {key}: {found}, must be {expected}")]
    Status {
        /// The process.
        process: &'static str,
        /// The file.
        path: PathBuf,
        /// The line.
        key: &'static str,
        /// What it says.
        found: String,
        /// What it must say.
        expected: String,
    },
    /// The process is in another network namespace than the processes of its machine share.
    #[error("the jail of {process} is not tight: its network namespace is {found}, must be {expected}")]
    Net {
        /// The process.
        process: &'static str,
        /// Where it is.
        found: String,
        /// Where it must be.
        expected: String,
    },
    /// The process shares a namespace with the broker.
    #[error("the jail of {process} is not tight: it shares the broker's {namespace} namespace")]
    Namespace {
        /// The process.
        process: &'static str,
        /// The namespace.
        namespace: &'static str,
    },
    /// The root has entries, or is not the only mount, or can be written.
    #[error("the jail of {process} is not tight: its root {what}")]
    Root {
        /// The process.
        process: &'static str,
        /// What it is.
        what: String,
    },
    /// The process holds a descriptor that it was not given.
    #[error("the jail of {process} is not tight: it holds descriptor {fd}, {target}, which it was not given")]
    Descriptor {
        /// The process.
        process: &'static str,
        /// The number.
        fd: String,
        /// What it is.
        target: String,
    },
}

/// The namespaces in which a process must be without the broker; but for "net", which the processes of a machine may share,
/// it is alone in each.
pub const NAMESPACES: [&str; 7] = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"];

/// The lines of /proc/PID/task/TID/status that every thread must show.
pub const STATUS: [(&str, &str); 7] = [
    ("Seccomp", "2"),
    ("NoNewPrivs", "1"),
    ("CapInh", "0000000000000000"),
    ("CapPrm", "0000000000000000"),
    ("CapEff", "0000000000000000"),
    ("CapBnd", "0000000000000000"),
    ("CapAmb", "0000000000000000"),
];

/// The lines of /proc/PID/task/TID/status about speculation, and what a thread must not show there: that speculation could
/// have been shut for it for good and was not (fs/proc/array.c). A line or a word that is not known says nothing, as when
/// the processor is not affected, or the kernel has decided for all.
const SPECULATION: [(&str, &[&str]); 2] = [
    ("Speculation_Store_Bypass", &["thread vulnerable", "thread mitigated"]),
    ("SpeculationIndirectBranch", &["conditional enabled", "conditional disabled"]),
];

/// The lines of other files in /proc/PID that a process must show, where the kernel has the file and the line at all: no
/// core dump, with nothing in it, and no merging of its memory (KSM).
const FILES: [(&str, &[(&str, &str)]); 3] = [
    ("limits", &[("Max core file size", "0                    0                    bytes")]),
    ("coredump_filter", &[("", "00000000")]),
    ("ksm_stat", &[("ksm_merge_any:", "no"), ("ksm_mergeable:", "no")]),
];

/// The seccomp mode of a thread that its filter kills, until it is gone (kernel/seccomp.c, since Linux 5.17).
const SECCOMP_MODE_DEAD: &str = "3";

/// What identifies an open file from outside: the device and the inode; and of a file without a type, as eventfds and what
/// KVM makes are, which all have the same inode, what /proc shows as its target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    target: Option<OsString>,
}

impl Identity {
    fn of(stat: &FileStat, target: impl FnOnce() -> io::Result<OsString>) -> io::Result<Self> {
        let has_type = SFlag::from_bits_truncate(stat.st_mode).intersects(SFlag::S_IFMT);
        let target = if has_type { None } else { Some(target()?) };
        Ok(Self { device: stat.st_dev, inode: stat.st_ino, target })
    }
}

/// The open files that a process was given.
#[derive(Debug, Clone, Default)]
pub struct Given {
    files: HashSet<Identity>,
    /// Whether it was told to make an io_uring.
    uring: bool,
}

impl Given {
    /// Lets the process have made an io_uring, as it was told to.
    pub fn allow_uring(&mut self) {
        self.uring = true;
    }

    /// Adds a descriptor of the broker that was, or is about to be, passed on.
    ///
    /// # Errors
    /// When it is not open.
    pub fn add(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let target = || Ok(readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str())?);
        self.files.insert(Identity::of(&fstat(fd)?, target)?);
        Ok(())
    }

    /// All of `fds`.
    ///
    /// # Errors
    /// When one is not open.
    pub fn of<F: AsFd>(fds: &[F]) -> io::Result<Self> {
        let mut given = Self::default();
        for fd in fds {
            given.add(fd.as_fd())?;
        }
        Ok(given)
    }
}

/// Whether a process may have made this descriptor itself, as /proc shows it.
fn may_make(process: Process, uring: bool, target: &str) -> bool {
    match target {
        "anon_inode:[io_uring]" => uring,
        // `--audit`: its own filter's listener, until it is sent off.
        "anon_inode:seccomp notify" => true,
        "anon_inode:[eventpoll]" => process != Process::Loader,
        // By which vCPU threads wake the control thread.
        "anon_inode:[eventfd]" => process == Process::Vmm,
        _ => process == Process::Vmm && (target == "anon_inode:kvm-vm" || target.starts_with("anon_inode:kvm-vcpu:")),
    }
}

/// Looks at every thread, namespace, mount and descriptor of the process `pid`, which said that it is ready. It may hold
/// fewer descriptors than `given` (some are closed once mapped) and duplicates of them, never others. `net` is the number
/// of the network namespace that it shares with others; none if it has one to itself.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn verify(
    pid: nix::unistd::Pid,
    process: Process,
    ids: Ids,
    net: Option<u64>,
    given: &Given,
) -> Result<(), JailViolation> {
    let name = process.name();
    let folder = Folder::open(PathBuf::from(format!("/proc/{pid}"))).map_err(unreadable(name))?;
    let look = Look { process, name, ids, net, folder };
    look.threads()?;
    look.files()?;
    look.namespaces()?;
    look.root()?;
    look.descriptors(given)
}

struct Look {
    process: Process,
    ids: Ids,
    net: Option<u64>,
    name: &'static str,
    folder: Folder,
}

fn unreadable(process: &'static str) -> impl Fn((PathBuf, io::Error)) -> JailViolation {
    move |(path, source)| JailViolation::Unreadable { process, path, source }
}

impl Look {
    fn threads(&self) -> Result<(), JailViolation> {
        let status = self.folder.text("status").map_err(unreadable(self.name))?;
        if line(&status, "Threads").is_some_and(|count| count.trim() == "1") {
            return self.thread(&status, || self.folder.path("status"));
        }
        let tasks = self.folder.folder("task").map_err(unreadable(self.name))?;
        for thread in self.folder.folder("task").and_then(Folder::names).map_err(unreadable(self.name))? {
            let name = format!("{thread}/status");
            let status = tasks.text(&name).map_err(unreadable(self.name))?;
            self.thread(&status, || tasks.path(&name))?;
        }
        Ok(())
    }

    /// Looks at the `status` of a thread.
    fn thread(&self, status: &str, path: impl Fn() -> PathBuf) -> Result<(), JailViolation> {
        let value = |key| line(status, key);
        let is_dead = value("State").is_some_and(|state| state.trim_start().starts_with(['Z', 'X']));
        if is_dead || value("Seccomp").is_some_and(|mode| mode.trim() == SECCOMP_MODE_DEAD) {
            return Err(JailViolation::Dying { process: self.name, path: path() });
        }
        let four = |id| format!("{id}\t{id}\t{id}\t{id}");
        let mut expected: Vec<_> = STATUS.iter().map(|&(key, value)| (key, value.to_owned())).collect();
        expected.extend([("Uid", four(self.ids.uid())), ("Gid", four(self.ids.gid()))]);
        if self.ids.privileged() {
            expected.push(("Groups", String::new()));
        }
        for (key, expected) in expected {
            let found = value(key).map_or("nothing", str::trim);
            if found != expected {
                let found = found.to_owned();
                return Err(JailViolation::Status { process: self.name, path: path(), key, found, expected });
            }
        }
        if let Some((key, found)) = open_speculation(value) {
            let expected = "shut for good".to_owned();
            return Err(JailViolation::Status { process: self.name, path: path(), key, found, expected });
        }
        Ok(())
    }

    fn files(&self) -> Result<(), JailViolation> {
        for (file, lines) in FILES {
            let text = match self.folder.text(file) {
                // A kernel without KSM, or before Linux 6.1; one that dumps nothing at all.
                Err((_, error)) if file != "limits" && error.kind() == io::ErrorKind::NotFound => continue,
                text => text.map_err(unreadable(self.name))?,
            };
            for &(key, expected) in lines {
                let found = text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
                if let Some(found) = found.filter(|found| *found != expected) {
                    let (path, found, expected) = (self.folder.path(file), found.to_owned(), expected.to_owned());
                    return Err(JailViolation::Status { process: self.name, path, key, found, expected });
                }
            }
        }
        Ok(())
    }

    fn namespaces(&self) -> Result<(), JailViolation> {
        let theirs = self.folder.folder("ns").map_err(unreadable(self.name))?;
        let ours = Folder::open(PathBuf::from("/proc/thread-self/ns")).map_err(unreadable(self.name))?;
        for namespace in NAMESPACES {
            let theirs = theirs.link(namespace).map_err(unreadable(self.name))?;
            if theirs == ours.link(namespace).map_err(unreadable(self.name))? {
                return Err(JailViolation::Namespace { process: self.name, namespace });
            }
            let shared = self.net.filter(|_| namespace == "net").map(|number| format!("net:[{number}]"));
            if let Some(expected) = shared.filter(|shared| theirs != shared.as_str()) {
                return Err(JailViolation::Net { process: self.name, found: theirs.display().to_string(), expected });
            }
        }
        Ok(())
    }

    fn root(&self) -> Result<(), JailViolation> {
        let mounts = self.folder.text("mountinfo").map_err(unreadable(self.name))?;
        let wrong = |what| JailViolation::Root { process: self.name, what };
        // proc(5): mount id, parent id, device, root, mount point, options, …
        let [mount] = mounts.lines().collect::<Vec<_>>()[..] else {
            return Err(wrong(format!("has {} mounts, must have 1", mounts.lines().count())));
        };
        let options = mount.split(' ').nth(5).unwrap_or("");
        if !options.split(',').any(|option| option == "ro") {
            return Err(wrong(format!("is mounted with {options}, must be read-only")));
        }
        match self.folder.folder("root").and_then(Folder::names).map_err(unreadable(self.name))?.len() {
            0 => Ok(()),
            count => Err(wrong(format!("has {count} entries, must be empty"))),
        }
    }

    fn descriptors(&self, given: &Given) -> Result<(), JailViolation> {
        let folder = self.folder.folder("fd").map_err(unreadable(self.name))?;
        let link = |fd: &str| folder.link(fd).map_err(unreadable(self.name));
        for fd in self.folder.folder("fd").and_then(Folder::names).map_err(unreadable(self.name))? {
            let stat = match folder.stat(&fd) {
                // It was closed since it was listed, as those that come with `Ready` are once they are sent off.
                Err((_, error)) if error.kind() == io::ErrorKind::NotFound => continue,
                stat => stat.map_err(unreadable(self.name))?,
            };
            let target = || folder.link(&fd).map_err(|(_, error)| error);
            let failed = |source| JailViolation::Unreadable { process: self.name, path: folder.path(&fd), source };
            let identity = Identity::of(&stat, target).map_err(failed)?;
            if given.files.contains(&identity) {
                continue;
            }
            let target = link(&fd)?.to_string_lossy().into_owned();
            if identity.target.is_none() || !may_make(self.process, given.uring, &target) {
                return Err(JailViolation::Descriptor { process: self.name, fd, target });
            }
        }
        Ok(())
    }
}

/// What stands behind `key` and a colon in the lines of `text`.
fn line<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
}

/// The line about speculation that could be shut and is not, out of those that `value` finds.
fn open_speculation<'s>(value: impl Fn(&'static str) -> Option<&'s str>) -> Option<(&'static str, String)> {
    SPECULATION.into_iter().find_map(|(key, refused)| {
        let found = value(key)?.trim();
        refused.contains(&found).then(|| (key, found.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speculation_that_could_be_shut_is_found() {
        for (key, found) in [
            ("Speculation_Store_Bypass", "thread vulnerable"),
            ("Speculation_Store_Bypass", "thread mitigated"),
            ("SpeculationIndirectBranch", "conditional enabled"),
        ] {
            let open = open_speculation(|wanted| (wanted == key).then_some(found));
            assert_eq!(open, Some((key, found.to_owned())));
        }
    }

    #[test]
    fn speculation_that_is_shut_or_cannot_be_is_let_pass() {
        for found in ["thread force mitigated", "not vulnerable", "vulnerable", "globally mitigated", "unknown"] {
            assert_eq!(open_speculation(|_| Some(found)), None, "{found}");
        }
        for found in ["conditional force disabled", "always disabled", "always enabled", "not affected", "unsupported"]
        {
            assert_eq!(open_speculation(|_| Some(found)), None, "{found}");
        }
        assert_eq!(open_speculation(|_| None), None);
    }

    #[test]
    fn files_of_a_process_that_could_dump_or_be_merged_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max core file size        0                    0                    bytes     \n";
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let look = || {
            let (process, ids) = (Process::Serial, Ids::of_broker());
            let folder = Folder::open(folder.path().to_owned()).unwrap();
            Look { process, ids, net: None, name: process.name(), folder }.files()
        };
        assert!(matches!(look(), Err(JailViolation::Unreadable { .. })));
        write("limits", limits);
        write("coredump_filter", "00000000\n");
        look().unwrap();
        write("ksm_stat", "ksm_rmap_items 0\nksm_merge_any: no\nksm_mergeable: no\n");
        look().unwrap();
        for (name, good, bad) in [
            ("limits", limits, &limits.replacen("0 ", "unlimited ", 1)),
            ("coredump_filter", "00000000\n", &"00000033\n".to_owned()),
            ("ksm_stat", "", &"ksm_merge_any: yes\n".to_owned()),
        ] {
            write(name, bad);
            assert!(matches!(look(), Err(JailViolation::Status { .. })), "{name}");
            write(name, good);
        }
    }
}
