//! The first half of a jail, built by the broker: namespaces, ids, an empty root, no capabilities, resource limits, then
//! execveat of a static binary with three descriptors.
//!
//! The parent's side is here; what the child does between clone3 and execveat is in [`child`].

mod child;
mod harden;
mod ids;
mod net;
mod refusal;
mod stack;

pub use ids::Ids;
pub use net::EmptyNet;

use crate::Process;
use crate::lockdown::INSPECTOR_HEAP_BYTES;
use child::{Birth, Plan};
use ids::Source;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use nix::unistd::Pid;
use refusal::Switches;
use std::ffi::CString;
use std::io::Write as _;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use wire::MemoryBytes;

/// A step of building a jail, for the error that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Waiting for the ids.
    Ids = 1,
    /// Dying with the broker.
    ParentDeath,
    /// Leaving the broker's session.
    Session,
    /// Making the mounts private.
    PrivateMounts,
    /// Mounting the empty root.
    EmptyRoot,
    /// Moving into the empty root.
    PivotRoot,
    /// Making the root read-only.
    ReadOnlyRoot,
    /// Locking the securebits.
    Securebits,
    /// Emptying the bounding set.
    BoundingSet,
    /// Taking on the unprivileged id.
    SetIds,
    /// Giving up all capabilities.
    Capabilities,
    /// Setting the resource limits.
    Rlimits,
    /// Shutting speculation.
    Speculation,
    /// Refusing to have its memory merged.
    Merging,
    /// Setting `no_new_privs`.
    NoNewPrivs,
    /// Arranging the descriptors.
    Descriptors,
    /// Executing the binary.
    Exec,
}

impl Step {
    const ALL: [Self; 17] = [
        Self::Ids,
        Self::ParentDeath,
        Self::Session,
        Self::PrivateMounts,
        Self::EmptyRoot,
        Self::PivotRoot,
        Self::ReadOnlyRoot,
        Self::Securebits,
        Self::BoundingSet,
        Self::SetIds,
        Self::Capabilities,
        Self::Rlimits,
        Self::Speculation,
        Self::Merging,
        Self::NoNewPrivs,
        Self::Descriptors,
        Self::Exec,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&step| step as u8 == byte)
    }

    fn words(self) -> &'static str {
        match self {
            Self::Ids => "wait for its ids",
            Self::ParentDeath => "ask to die with the broker",
            Self::Session => "leave the broker's session",
            Self::PrivateMounts => "make its mounts private",
            Self::EmptyRoot => "mount an empty root",
            Self::PivotRoot => "move into the empty root",
            Self::ReadOnlyRoot => "make its root read-only",
            Self::Securebits => "lock its securebits",
            Self::BoundingSet => "empty its capability bounding set",
            Self::SetIds => "take on its unprivileged id",
            Self::Capabilities => "give up its capabilities",
            Self::Rlimits => "set its resource limits",
            Self::Speculation => "shut speculation",
            Self::Merging => "keep its memory from being merged",
            Self::NoNewPrivs => "set no_new_privs",
            Self::Descriptors => "arrange its descriptors",
            Self::Exec => "execute its binary",
        }
    }
}

/// Why a process could not be started in a jail.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The kernel refused the namespaces.
    #[error("the kernel refuses new namespaces for {process}{hint}")]
    Clone {
        /// The process that was to be started.
        process: &'static str,
        /// Why, and what to do, as far as that can be seen.
        hint: String,
        /// The error of clone3(2).
        source: Errno,
    },
    /// The kernel refused the id mapping, or what else the broker sets for the process.
    #[error("the ids of {process} cannot be mapped ({file})")]
    IdMap {
        /// The process.
        process: &'static str,
        /// The file in /proc that was written.
        file: &'static str,
        /// The error.
        source: std::io::Error,
    },
    /// The process failed between clone3 and execveat.
    #[error("{process} could not {}{hint}", .step.words())]
    Child {
        /// The process.
        process: &'static str,
        /// Why, and what to do, as far as that can be seen.
        hint: String,
        /// The step at which it failed.
        step: Step,
        /// The error.
        source: Errno,
    },
    /// Something of the broker's own.
    #[error("the broker cannot prepare the start of {process}")]
    Host {
        /// The process.
        process: &'static str,
        /// The error.
        source: Errno,
    },
    /// The broker's own ids could not be read.
    #[error("/proc/self/uid_map cannot be read")]
    OwnIds(#[source] std::io::Error),
    /// The broker's own network namespace could not be looked at.
    #[error("/proc/thread-self/ns/net cannot be opened")]
    OwnNet(#[source] Errno),
}

/// The resource limits of a process (setrlimit(2)); those not named here are 0.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `RLIMIT_AS` in bytes.
    pub address_space_bytes: u64,
    /// `RLIMIT_FSIZE` in bytes, none for no limit.
    pub file_size_bytes: Option<u64>,
    /// `RLIMIT_NOFILE`.
    pub open_files: u64,
    /// `RLIMIT_DATA` in bytes, none for no limit.
    pub data_bytes: Option<u64>,
    /// `RLIMIT_CPU` in seconds, none for no limit.
    pub cpu_seconds: Option<u64>,
    /// `RLIMIT_MEMLOCK` in bytes: an io_uring's own memory counts, together with that of all others of the same user.
    pub locked_bytes: u64,
}

impl Limits {
    /// What `process` needs in a machine with `memory`; it may grow files to `file_size_bytes` (none: no limit).
    #[must_use]
    pub fn for_process(process: Process, memory: MemoryBytes, file_size_bytes: Option<u64>) -> Self {
        const MIB: u64 = 1 << 20;
        let (address_space_bytes, file_size_bytes, open_files) = match process {
            Process::Loader => (memory.get().saturating_add(64 * MIB), Some(0), 16),
            // Each of up to 32 vCPU threads has a stack of 2 MiB.
            Process::Vmm => (memory.get().saturating_add(256 * MIB), Some(0), 256),
            Process::Serial => (64 * MIB, file_size_bytes, 32),
            // The bitmap of an overlay; and vhost-user maps the new memory table before it drops the old one.
            Process::VirtioBlk => (memory.get().saturating_mul(2).saturating_add(256 * MIB), file_size_bytes, 64),
            Process::Inspector => (INSPECTOR_SPACE_BYTES, Some(0), 16),
        };
        Self { address_space_bytes, file_size_bytes, open_files, data_bytes: None, cpu_seconds: None, locked_bytes: 0 }
    }
}

/// What an inspector has of address space: its heap, which is all that it gets of memory, and its program.
const INSPECTOR_SPACE_BYTES: u64 = INSPECTOR_HEAP_BYTES as u64 + (64 << 20);

impl Limits {
    /// What an inspector needs, which has nothing of a guest; it may use so much processor time.
    #[must_use]
    pub fn for_inspector(cpu_seconds: u64) -> Self {
        Self {
            address_space_bytes: INSPECTOR_SPACE_BYTES,
            file_size_bytes: Some(0),
            open_files: 16,
            data_bytes: None,
            cpu_seconds: Some(cpu_seconds),
            locked_bytes: 0,
        }
    }
}

/// What to start.
#[derive(Debug)]
pub struct SpawnRequest<'a> {
    /// Which process.
    pub process: Process,
    /// Its static binary.
    pub binary: BorrowedFd<'a>,
    /// The child's end of the control channel: its descriptor 0.
    pub control: BorrowedFd<'a>,
    /// The write end of the log pipe: its descriptors 1 and 2.
    pub log: BorrowedFd<'a>,
    /// Its resource limits.
    pub limits: Limits,
    /// The folder of the cgroup (version 2) that it begins in; none for the broker's own.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The network namespace that the calling thread is in, for the process to stay there; none for one of its own.
    pub net: Option<&'a EmptyNet>,
}

/// A started process. Dropping it neither kills nor reaps: the supervisor does both.
#[derive(Debug)]
pub struct Child {
    process: Process,
    /// Its process id, in the broker's pid namespace.
    pub pid: Pid,
    /// Becomes readable when it ends.
    pub pidfd: OwnedFd,
    /// The ids that it has on the host.
    pub ids: Ids,
    /// The number of the empty network namespace that it shares with the other processes of its machine; none if it is
    /// alone in one.
    pub net: Option<u64>,
    setup: OwnedFd,
    /// What it uses of this process's memory, until it is executed.
    birth: Option<Birth>,
}

impl Child {
    /// A process that nobody started, for what is tried without processes.
    #[doc(hidden)]
    #[must_use]
    pub fn rehearsed(process: Process, pidfd: OwnedFd, ids: Ids, setup: OwnedFd) -> Self {
        Self { process, pid: Pid::from_raw(0), pidfd, ids, net: None, setup, birth: None }
    }
}

/// The namespaces that every process gets anew, beside the one of the network.
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Starts a process in the first half of its jail. It goes on by itself: several can be started side by side.
///
/// To be called from a thread that lives as long as the broker (the process dies with the thread that started it) and
/// while no other thread of the broker runs.
///
/// # Errors
/// When the kernel refuses the namespaces or the ids; nothing is left then. What fails later, up to execveat, ends the
/// process, and [`Child::setup_error`] tells.
pub fn spawn(request: &SpawnRequest<'_>) -> Result<Child, SpawnError> {
    let process = request.process.name();
    let host = |source| SpawnError::Host { process, source };
    let (setup, childs_setup) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(host)?;
    let source = Source::own()?;
    let name = CString::new(request.process.binary()).map_err(|_error| host(Errno::EINVAL))?;
    let plan = Plan {
        setup: childs_setup.as_raw_fd(),
        parents_setup: setup.as_raw_fd(),
        binary: request.binary.as_raw_fd(),
        control: request.control.as_raw_fd(),
        log: request.log.as_raw_fd(),
        name,
        limits: request.limits,
        drop_groups: source.privileged(),
    };
    let net = request.net.map(EmptyNet::number);
    let namespaces = NAMESPACES | if net.is_some() { 0 } else { libc::CLONE_NEWNET };
    let (pid, pidfd, birth) = child::clone_into(namespaces, request.cgroup, plan).map_err(|source| {
        let hint = Switches::of_host().refuse_clone(source);
        SpawnError::Clone { process, hint, source }
    })?;
    drop(childs_setup);
    let mut child =
        Child { process: request.process, pid, pidfd, ids: Ids::of_broker(), net, setup, birth: Some(birth) };
    let released = map_ids(&mut child, source).and_then(|()| {
        nix::unistd::write(&child.setup, b"g").map_err(|source| SpawnError::Host { process, source }).map(drop)
    });
    if let Err(error) = released {
        // It waits for its ids; killing and reaping it leaves nothing behind.
        child.kill().map_err(host)?;
        let reaped =
            std::iter::repeat_with(|| nix::sys::wait::waitpid(pid, None)).find(|reaped| *reaped != Err(Errno::EINTR));
        reaped.unwrap_or(Err(Errno::ECHILD)).map_err(host)?;
        child.birth = None;
        return Err(error);
    }
    Ok(child)
}

/// The user namespace of a child that is not executed yet.
///
/// To look at it takes no privilege where this process may be dumped, whose memory the child runs in. It may not once another
/// such child has taken on its ids (`commit_creds` in the kernel's kernel/cred.c), which each does three times at most.
fn user_namespace(pid: Pid) -> std::io::Result<std::fs::Metadata> {
    const TRIES: u32 = 100;
    let mut tries = 0u32;
    loop {
        match std::fs::metadata(format!("/proc/{pid}/ns/user")) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && tries < TRIES => {
                nix::sys::prctl::set_dumpable(true)?;
                tries = tries.saturating_add(1);
            }
            other => return other,
        }
    }
}

fn map_ids(child: &mut Child, source: &Source) -> Result<(), SpawnError> {
    let process = child.process.name();
    let namespace =
        user_namespace(child.pid).map_err(|source| SpawnError::IdMap { process, file: "ns/user", source })?;
    child.ids = source.ids(namespace.ino());
    let ids = child.ids;
    let write = |file: &'static str, text: String| {
        std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{}/{file}", child.pid))
            .and_then(|mut map| map.write_all(text.as_bytes()))
            .map_err(|source| SpawnError::IdMap { process, file, source })
    };
    if !ids.privileged() {
        write("setgroups", "deny".to_owned())?;
    }
    // Id 0 of the new namespace carries no capability here (they are all given up, and no exec can bring them back);
    // mapping it is what lets an unprivileged broker look into the /proc folder of its undumpable child.
    write("uid_map", format!("0 {} 1\n", ids.uid()))?;
    write("gid_map", format!("0 {} 1\n", ids.gid()))?;
    // Nothing of it goes into a core dump, not even of one that a handler takes, which RLIMIT_CORE does not stop (core(5)).
    match write("coredump_filter", "0".to_owned()) {
        // A kernel that dumps nothing at all (without CONFIG_ELF_CORE).
        Err(SpawnError::IdMap { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

impl Child {
    /// Which process it is.
    #[must_use]
    pub fn process(&self) -> Process {
        self.process
    }

    /// Why it failed before execveat; none when it did not, or has not yet.
    #[must_use]
    pub fn setup_error(&self) -> Option<SpawnError> {
        let mut report = [0u8; 5];
        let length = recv(self.setup.as_raw_fd(), &mut report, MsgFlags::MSG_DONTWAIT).ok()?;
        let [step, errno @ ..] = report;
        let step = Step::from_byte(step).filter(|_| length == report.len())?;
        let source = Errno::from_raw(i32::from_le_bytes(errno));
        let hint = Switches::of_host().refuse_step(step, source);
        Some(SpawnError::Child { process: self.process.name(), hint, step, source })
    }

    /// To be called now and then once it can be expected to be executed: gives back what it used of this process's memory.
    pub fn settle(&mut self) {
        let mut byte = [0u8];
        // Its end of the connection is closed by execveat, or when it has ended: both come after its memory is given up. A
        // report of its failure comes before.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        if recv(self.setup.as_raw_fd(), &mut byte, flags) == Ok(0) {
            self.birth = None;
        }
    }

    /// Kills it. It has no chance to object, and all that it might have started ends with it.
    ///
    /// # Errors
    /// When it was reaped already.
    pub fn kill(&self) -> Result<(), Errno> {
        child::pidfd_kill(&self.pidfd)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.settle();
        // It may be on its way still: then its memory stays.
        std::mem::forget(self.birth.take());
    }
}
