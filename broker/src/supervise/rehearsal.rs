//! The supervisor over children that are no processes: only their channels are real. For fuzzers, which say what a
//! captured child could say.

use super::{Phase, Supervisor, TURN};
use crate::cgroup::{CgroupError, Confinement};
use crate::config::RunLimits;
use crate::ends::Exit;
use crate::launch::Launched;
use crate::logs::LogPipe;
use crate::oom::OomWatch;
use crate::process::{Ended, Role, Supervised};
use crate::timings::Timings;
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use policies::inspect::Given;
use policies::spawn::{self, Ids};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use wire::Channel;
use wire::message::{Lockdown, Times};

/// A child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child {
    /// The loader.
    Loader,
    /// The vmm.
    Vmm,
    /// The console.
    Serial,
    /// The only disk.
    Block,
}

impl Child {
    /// All of them, in the order of the channels.
    pub const ALL: [Self; 4] = [Self::Loader, Self::Vmm, Self::Serial, Self::Block];

    fn role(self) -> Role {
        match self {
            Self::Loader => Role::Loader,
            Self::Vmm => Role::Vmm,
            Self::Serial => Role::Serial,
            Self::Block => Role::Block(0),
        }
    }
}

/// What the broker would say at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The sentence.
    pub message: String,
    /// The exit code.
    pub code: u8,
    /// The dumps of vCPUs, in lines.
    pub registers: BTreeMap<u8, Vec<String>>,
    /// The causes that were collected.
    pub causes: usize,
}

/// A run in which all jails were checked and the boot files are being loaded.
#[derive(Debug)]
pub struct Rehearsal {
    supervisor: Supervisor,
    now: Instant,
}

impl Rehearsal {
    /// The broker's side and the children's ends of the channels, in the order of [`Child::ALL`].
    ///
    /// # Errors
    /// When the host has no descriptors left.
    pub fn new() -> io::Result<(Self, Vec<Channel>)> {
        let (mut processes, mut channels) = (Vec::new(), Vec::new());
        for child in Child::ALL {
            let (ours, theirs) = Channel::pair().map_err(io::Error::other)?;
            processes.push(supervised(child.role(), ours)?);
            channels.push(theirs);
        }
        let limits = RunLimits { wall_time: Some(Duration::from_secs(60)), ..RunLimits::default() };
        let launched = Launched {
            audit: false,
            processes,
            terminal: None,
            borrowed: Vec::new(),
            boot_files: ("vmlinuz".to_owned(), "initrd.img".to_owned()),
            dumps: Some(2),
            console_names: vec!["stdio".to_owned()],
            limits,
            confinement: Confinement::Rlimits(CgroupError::NotMounted),
            cookie: None,
            inspectors: Default::default(),
        };
        let signals = SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let now = Instant::now();
        let mut supervisor = Supervisor::new(launched, signals, OomWatch::start(), now, Timings::default());
        supervisor.phase = Phase::Loading;
        Ok((Self { supervisor, now }, channels))
    }

    /// Takes what the child at `index` has said, and what follows from it.
    pub fn hear(&mut self, index: usize) {
        self.supervisor.on_control(index, self.now, TURN);
        self.supervisor.advance(self.now);
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.checked_add(time).unwrap_or(self.now);
        self.supervisor.look_at_the_clock(self.now);
        self.supervisor.advance(self.now);
    }

    /// Whether the child's channel is still listened to.
    #[must_use]
    pub fn listens_to(&self, index: usize) -> bool {
        self.supervisor.processes.get(index).is_some_and(|process| process.control.is_some())
    }

    /// Ends the run and judges it.
    #[must_use]
    pub fn judge(self) -> Told {
        let end = self.supervisor.evidence.judge();
        let lines = |lines: Vec<wire::Text>| lines.iter().map(ToString::to_string).collect();
        let registers = self.supervisor.dumps.into_registers();
        Told {
            message: end.message,
            code: end.reason.code(),
            registers: registers.into_iter().map(|(vcpu, text)| (vcpu, lines(text))).collect(),
            causes: self.supervisor.evidence.causes.len(),
        }
    }
}

/// A child that has ended and is reaped, but for its last words: nothing is ever sent a signal or waited for.
fn supervised(role: Role, control: Channel) -> io::Result<Supervised> {
    let (log, other) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let pidfd: OwnedFd = other.try_clone()?;
    let lockdown = Lockdown { landlock_abi: 0, mdwe: true, listeners: 0, times: Times::default() };
    Ok(Supervised {
        role,
        name: role.name(),
        child: spawn::Child::rehearsed(role.process(), pidfd, Ids::of_broker(), other),
        control: Some(control),
        log: LogPipe::new(log),
        listeners: Vec::new(),
        given: Given::default(),
        lockdown: Some(lockdown),
        checked: true,
        said_why: false,
        finished: false,
        killed: false,
        warnings: 0,
        ended: Some(Ended { exit: Exit::Code(0), peak_rss_kib: 0, user_ms: 0, system_ms: 0 }),
        cloned_ns: 0,
        timings: Timings::default(),
    })
}
