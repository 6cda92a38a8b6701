//! A child of the broker, from its start to its reaping.

use crate::cgroup::Confinement;
use crate::config::RunLimits;
use crate::ends::Exit;
use crate::logs::LogPipe;
use crate::timings::Timings;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use policies::Process;
use policies::audit::Listener;
use policies::inspect::{self, Given, JailViolation};
use policies::spawn::{Child, EmptyNet, Limits, SpawnError, SpawnRequest, spawn};
use serde::Serialize;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use wire::clock::now_ns;
use wire::message::Lockdown;
use wire::{Channel, ChannelError};

/// What a child is in this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Prepares guest memory.
    Loader,
    /// Runs the vCPUs.
    Vmm,
    /// The console.
    Serial,
    /// The disk of this number.
    Block(u8),
    /// Looks at an image, a kernel or a log; no part of the machine.
    Inspector,
}

impl Role {
    /// Its jail.
    pub(crate) fn process(self) -> Process {
        match self {
            Self::Loader => Process::Loader,
            Self::Vmm => Process::Vmm,
            Self::Serial => Process::Serial,
            Self::Block(_) => Process::VirtioBlk,
            Self::Inspector => Process::Inspector,
        }
    }

    /// Its name in logs and reports.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Block(number) => format!("{}-{number}", Process::VirtioBlk.name()),
            other => other.process().name().to_owned(),
        }
    }

    /// Whether it is told to finish once the vmm is gone.
    pub(crate) fn is_device(self) -> bool {
        matches!(self, Self::Serial | Self::Block(_))
    }
}

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Its binary is not there.
    #[error("{} is not there; build it with `cargo build`, or say where it is with --bin-dir", .0.display())]
    Binary(PathBuf, #[source] std::io::Error),
    /// Its channels could not be made.
    #[error("the channels of a process could not be made")]
    Pipe(#[source] Errno),
    /// Its control channel could not be made or written to.
    #[error("a process could not be told to start")]
    Channel(#[from] ChannelError),
    /// What it was given could not be noted.
    #[error("a descriptor could not be looked at")]
    Given(#[source] std::io::Error),
    /// Its jail could not be built.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

/// How a child ended, and what it used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// How.
    pub(crate) exit: Exit,
    /// Its peak resident memory in KiB.
    pub(crate) peak_rss_kib: u64,
    /// Its user time in milliseconds.
    pub(crate) user_ms: u64,
    /// Its system time in milliseconds.
    pub(crate) system_ms: u64,
}

/// A child.
#[derive(Debug)]
pub(crate) struct Supervised {
    /// What it is.
    pub(crate) role: Role,
    /// Its name.
    pub(crate) name: String,
    /// Its process.
    pub(crate) child: Child,
    /// The control channel, until it closes.
    pub(crate) control: Option<Channel>,
    /// Its log.
    pub(crate) log: LogPipe,
    /// With `--audit`, its filters.
    pub(crate) listeners: Vec<Listener>,
    /// The descriptors that it was given.
    pub(crate) given: Given,
    /// Its jail, once it says that it is in it.
    pub(crate) lockdown: Option<Lockdown>,
    /// Whether its jail was looked at and is tight.
    pub(crate) checked: bool,
    /// Whether it said why it failed, or that it is done.
    pub(crate) said_why: bool,
    /// Whether it said that it is done.
    pub(crate) finished: bool,
    /// Whether we killed it.
    pub(crate) killed: bool,
    /// Sent warnings, of which only the first few are shown.
    pub(crate) warnings: u32,
    /// How it ended, once it is reaped.
    pub(crate) ended: Option<Ended>,
    /// When the broker began to start it, by [`now_ns`].
    pub(crate) cloned_ns: u64,
    /// Where its steps are noted.
    pub(crate) timings: Timings,
}

impl Supervised {
    /// Sends it its first message, with its descriptors.
    ///
    /// # Errors
    /// When a descriptor cannot be looked at, or the message cannot be sent.
    pub(crate) fn tell(&mut self, start: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), StartError> {
        for fd in fds {
            self.given.add(*fd).map_err(StartError::Given)?;
        }
        match self.control.as_ref().map_or(Ok(()), |control| control.send(start, fds)) {
            // A child that is gone already has its reason to tell; the supervisor hears it.
            Ok(()) | Err(ChannelError::Closed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// It says that it is in its jail, and the broker looks at that from outside.
    ///
    /// # Errors
    /// When something is not as it must be.
    pub(crate) fn verify(&mut self, lockdown: Lockdown) -> Result<(), JailViolation> {
        self.timings.jailed(&self.name, self.cloned_ns, lockdown.times);
        self.lockdown = Some(lockdown);
        self.child.settle();
        let from = now_ns();
        let verified =
            inspect::verify(self.child.pid, self.role.process(), self.child.ids, self.child.net, &self.given);
        self.timings.until_now(&self.name, "broker looks at its jail", from);
        verified
    }

    /// Kills it, if it lives.
    pub(crate) fn kill(&mut self) {
        if self.ended.is_none() && !self.killed {
            self.killed = true;
            if let Err(errno) = self.child.kill() {
                tracing::debug!(process = self.name, "could not be killed: {errno}");
            }
        }
    }

    /// Reaps it if it has ended; waits for that if `wait`.
    pub(crate) fn reap(&mut self, wait: bool) -> Option<Ended> {
        if self.ended.is_none() {
            self.ended = reap::reap(self.child.pid, wait);
            if self.ended.is_some() {
                self.timings.until_now(&self.name, "gone", now_ns());
            }
        }
        self.ended
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
            self.reap(true);
        }
    }
}

/// Starts children.
#[derive(Debug)]
pub(crate) struct Spawner {
    bin_dir: PathBuf,
    cgroup: Option<OwnedFd>,
    cpu_seconds: Option<u64>,
    net: Option<Rc<EmptyNet>>,
    started: bool,
    timings: Timings,
}

impl Spawner {
    /// Starts the binaries in `bin_dir`, or else those beside the broker or in `../libexec/bulkhead`.
    pub(crate) fn new(bin_dir: Option<&Path>, timings: Timings) -> Self {
        let bin_dir = bin_dir.map_or_else(default_bin_dir, Path::to_owned);
        Self { bin_dir, cgroup: None, cpu_seconds: None, net: None, started: false, timings }
    }

    /// One that starts what is no part of the machine: outside of its cgroup, and with limits of its own.
    pub(crate) fn outside(&self) -> Self {
        Self {
            bin_dir: self.bin_dir.clone(),
            cgroup: None,
            cpu_seconds: None,
            net: self.net.clone(),
            started: self.started,
            timings: self.timings.clone(),
        }
    }

    /// Starts those that follow in a cgroup, and has the kernel end each that uses more CPU time than all of them may.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(crate) fn confine(&mut self, confinement: &Confinement, limits: &RunLimits) -> std::io::Result<()> {
        /// The broker, which measures all of them together, is to be first.
        const GRACE_SECONDS: u64 = 5;
        self.cgroup = confinement.cgroup().map(|cgroup| cgroup.fd().try_clone_to_owned()).transpose()?;
        self.cpu_seconds = limits.cpu_time.map(|time| time.as_secs().saturating_add(GRACE_SECONDS));
        Ok(())
    }

    /// Starts those that follow in one empty network namespace, where the broker may make it, until this and all of
    /// [`Spawner::outside`] are dropped.
    ///
    /// # Errors
    /// When the broker's own cannot be seen.
    pub(crate) fn share_empty_net(&mut self) -> Result<(), SpawnError> {
        let from = now_ns();
        self.net = EmptyNet::enter()?.map(Rc::new);
        self.timings.own("network namespace", from);
        Ok(())
    }

    /// Where steps are noted.
    pub(crate) fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Starts `role` in its jail and sends it `start` with `fds`.
    ///
    /// # Errors
    /// When its binary is missing, or the first half of its jail cannot be built.
    pub(crate) fn start(
        &mut self,
        role: Role,
        limits: Limits,
        start: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Supervised, StartError> {
        let mut supervised = self.begin(role, limits)?;
        supervised.tell(start, fds)?;
        Ok(supervised)
    }

    /// Starts `role` in its jail; it waits for [`Supervised::tell`].
    ///
    /// # Errors
    /// When its binary is missing, or the first half of its jail cannot be built.
    pub(crate) fn begin(&mut self, role: Role, limits: Limits) -> Result<Supervised, StartError> {
        let cloned_ns = now_ns();
        let process = role.process();
        let path = self.bin_dir.join(process.binary());
        let binary = File::open(&path).map_err(|error| StartError::Binary(path, error))?;
        let (ours, theirs) = Channel::pair()?;
        let (log, their_log) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(StartError::Pipe)?;
        let given = Given::of(&[theirs.as_fd(), their_log.as_fd()]).map_err(StartError::Given)?;
        let child = spawn(&SpawnRequest {
            process,
            binary: binary.as_fd(),
            control: theirs.as_fd(),
            log: their_log.as_fd(),
            limits: Limits { cpu_seconds: limits.cpu_seconds.or(self.cpu_seconds), ..limits },
            cgroup: self.cgroup.as_ref().map(AsFd::as_fd),
            net: self.net.as_deref(),
        })?;
        if !std::mem::replace(&mut self.started, true) && !child.ids.privileged() && nix::unistd::geteuid().is_root() {
            let ids = child.ids;
            tracing::warn!(
                "this root has no user ids to spare (a container?): all processes run with its own id {ids}"
            );
        }
        let supervised = Supervised {
            role,
            name: role.name(),
            child,
            control: Some(ours),
            log: LogPipe::new(log),
            listeners: Vec::new(),
            given,
            lockdown: None,
            checked: false,
            said_why: false,
            finished: false,
            killed: false,
            warnings: 0,
            ended: None,
            cloned_ns,
            timings: self.timings.clone(),
        };
        self.timings.until_now(&supervised.name, "broker starts it", cloned_ns);
        Ok(supervised)
    }
}

/// Beside the broker, or `../libexec/bulkhead` from there.
fn default_bin_dir() -> PathBuf {
    let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)).unwrap_or_default();
    if own.join(Process::Vmm.binary()).exists() {
        return own;
    }
    let installed = own.join("../libexec/bulkhead");
    if installed.join(Process::Vmm.binary()).exists() { installed } else { own }
}

/// wait4(2), which tells what a child has used.
mod reap {
    #![allow(unsafe_code, reason = "wait4 has no safe wrapper")]

    use super::{Ended, Exit};
    use nix::unistd::Pid;

    /// Reaps the child `pid` if it has ended; waits for that if `wait`.
    pub(super) fn reap(pid: Pid, wait: bool) -> Option<Ended> {
        let mut status: libc::c_int = 0;
        // SAFETY: rusage is a struct of integers, for all of which 0 is valid.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        let flags = libc::__WALL | if wait { 0 } else { libc::WNOHANG };
        loop {
            // SAFETY: `status` and `usage` are valid for writes of their types.
            let reaped = unsafe { libc::wait4(pid.as_raw(), &raw mut status, flags, &raw mut usage) };
            if reaped == pid.as_raw() {
                break;
            }
            if reaped == 0 || nix::errno::Errno::last() != nix::errno::Errno::EINTR {
                return None;
            }
        }
        let exit = if libc::WIFSIGNALED(status) {
            Exit::Signal(libc::WTERMSIG(status))
        } else {
            Exit::Code(libc::WEXITSTATUS(status))
        };
        let ms = |time: libc::timeval| {
            let (seconds, micros) = (time.tv_sec.unsigned_abs(), time.tv_usec.unsigned_abs());
            seconds.saturating_mul(1000).saturating_add(micros / 1000)
        };
        Some(Ended {
            exit,
            peak_rss_kib: usage.ru_maxrss.unsigned_abs(),
            user_ms: ms(usage.ru_utime),
            system_ms: ms(usage.ru_stime),
        })
    }
}
