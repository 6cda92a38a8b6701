//! The supervisor: one loop over everything that can happen, from the first `Ready` to the last reaped process.
//!
//! It believes no child. What they say is checked against what they may say now; what they do not say in time ends the
//! run; how they ended is asked of the kernel. What ends a run is collected as evidence and judged when all is over.

mod clock;
mod dump;
mod ending;
mod events;
mod inspectors;
pub(crate) mod rehearsal;
mod steps;

use crate::cgroup::{Cgroup, Confinement};
use crate::config::RunLimits;
use crate::cores::Cookie;
use crate::ends::{Cause, End, Evidence, Exit};
use crate::inspector::Inspection;
use crate::launch::Launched;
use crate::messages;
use crate::oom::OomWatch;
use crate::privileges;
use crate::process::{Role, Supervised};
use crate::terminal::RawTerminal;
use crate::timings::Timings;
pub(crate) use inspectors::Looked;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use wire::message::Entry;
use wire::{ChannelError, Text};

/// How long all children may take to enter their jails.
const JAIL_LIMIT: Duration = Duration::from_secs(30);
/// How long a process may take to end after it closed its channel, or to be found dead after another one said so.
const GRACE: Duration = Duration::from_secs(1);
/// Causes that are kept; what comes later is a consequence.
const CAUSES: usize = 64;
/// Messages and missed syscalls that are taken from one child in a turn.
const TURN: usize = 64;

/// What a run left behind, for the report.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How it ended.
    pub(crate) end: End,
    /// The processes, all reaped.
    pub(crate) processes: Vec<Supervised>,
    /// What is known of the console.
    pub(crate) console: ConsoleFacts,
    /// With `--audit`: how often which process missed which syscall.
    pub(crate) missed: BTreeMap<(String, String), u64>,
    /// With `--debug`: the registers of each vCPU at the end, in lines.
    pub(crate) registers: BTreeMap<u8, Vec<Text>>,
    /// What limited the processes.
    pub(crate) confinement: serde_json::Value,
    /// What was found in the boot files.
    pub(crate) preflight: Vec<Looked>,
    /// What the console means, where the run ended badly.
    pub(crate) explanation: Option<Inspection>,
}

/// What is known of the console.
#[derive(Debug, Default)]
pub(crate) struct ConsoleFacts {
    /// When the first byte came, on the monotonic clock in nanoseconds.
    pub(crate) first_byte_ns: Option<u64>,
    /// Bytes from the guest.
    pub(crate) received_bytes: u64,
    /// Whether serial lived to say how many they were.
    pub(crate) is_counted: bool,
    /// Bytes lost at each output.
    pub(crate) dropped_bytes: Vec<u64>,
    /// What each output is called.
    pub(crate) names: Vec<String>,
}

/// Where the run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The children enter their jails.
    Starting,
    /// All are in their jails, the loader loads.
    Loading,
    /// The vmm was told to run, or a device serves.
    Running,
    /// Everything is being ended.
    Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Token {
    Signal,
    Control(usize),
    Listener(usize, usize),
    Log(usize),
    Exited(usize),
    Inspectors,
}

/// The supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    processes: Vec<Supervised>,
    signals: SignalFd,
    phase: Phase,
    evidence: Evidence,
    /// Something that looks like a consequence of what we have yet to hear of; a cause by itself when that does not come.
    suspicion: Option<(Cause, Instant)>,
    deadline: Option<(Instant, String)>,
    entry: Option<Entry>,
    stopped: bool,
    audit: bool,
    halt_asked: Option<Instant>,
    /// Words for a halted system that came too soon after another.
    hurried: u32,
    /// Whether the vmm said that the guest runs.
    said_running: bool,
    dumps: dump::Dumps,
    ending: ending::Ending,
    console: ConsoleFacts,
    missed: BTreeMap<(String, String), u64>,
    boot_files: (String, String),
    terminal: Option<OwnedFd>,
    raw: Option<RawTerminal>,
    _borrowed: Vec<crate::console::BorrowedFlags>,
    oom: OomWatch,
    limits: RunLimits,
    clock: clock::Clock,
    confinement: Confinement,
    cookie: Option<Cookie>,
    inspectors: inspectors::Inspectors,
    timings: Timings,
    /// Whether the loader was told to load by a broker that has its privileges still.
    deaf_to_loader: bool,
    /// When the loader, or then the vmm, was told to begin.
    told_ns: u64,
    /// When the vmm said that the guest has ended; 0 if it did not.
    stopped_ns: u64,
}

/// Turns the signals that end a run into events. To be called before anything else is started.
///
/// # Errors
/// When the kernel has no descriptor left.
pub(crate) fn catch_signals() -> Result<SignalFd, Errno> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

impl Supervisor {
    /// Takes over what was launched by a broker that began at `started`.
    pub(crate) fn new(
        launched: Launched,
        signals: SignalFd,
        oom: OomWatch,
        started: Instant,
        timings: Timings,
    ) -> Self {
        let devices = launched.processes.iter().filter(|process| process.role.is_device());
        let device_names = devices.map(|process| process.name.clone()).collect();
        Self {
            processes: launched.processes,
            signals,
            phase: Phase::Starting,
            evidence: Evidence { device_names, ..Evidence::default() },
            suspicion: None,
            deadline: None,
            entry: None,
            stopped: false,
            audit: launched.audit,
            halt_asked: None,
            hurried: 0,
            said_running: false,
            dumps: dump::Dumps::of(launched.dumps),
            ending: ending::Ending::default(),
            console: ConsoleFacts { names: launched.console_names, ..ConsoleFacts::default() },
            missed: BTreeMap::new(),
            boot_files: launched.boot_files,
            terminal: launched.terminal,
            raw: None,
            _borrowed: launched.borrowed,
            oom,
            clock: clock::Clock::new(&launched.limits, started, launched.confinement.has("memory")),
            limits: launched.limits,
            confinement: launched.confinement,
            cookie: launched.cookie,
            inspectors: inspectors::Inspectors::of(launched.inspectors),
            timings,
            deaf_to_loader: false,
            told_ns: 0,
            stopped_ns: 0,
        }
    }

    /// Supervises until all processes are reaped.
    pub(crate) fn run(mut self) -> Outcome {
        self.set_deadline(JAIL_LIMIT, "it did not say that it is in its jail");
        // While the processes build their jails, the broker has nothing better to do.
        if let Err(errno) = privileges::empty_bounding_set() {
            self.cause(Cause::Host(format!("the broker could not give up its privileges: {}", errno.desc())));
        }
        while self.processes.iter().any(|process| process.ended.is_none()) {
            let tokens = match self.wait() {
                Ok(tokens) => tokens,
                Err(errno) => {
                    self.cause(Cause::Host(format!("the broker cannot wait for its processes: {}", errno.desc())));
                    break;
                }
            };
            let now = Instant::now();
            for token in tokens {
                self.handle(token, now);
                // A step that can be taken does not wait for what else has happened.
                self.advance(now);
            }
            self.look_at_the_clock(now);
            self.advance(now);
        }
        for process in &mut self.processes {
            process.kill();
            process.reap(true);
        }
        // The terminal first, so that the report is written as the user is used to.
        self.raw = None;
        let cgroup = self.confinement.cgroup();
        self.evidence.oom = self.oom.fired() || cgroup.is_some_and(Cgroup::had_oom_kill);
        self.evidence.memory_limit = self.limits.memory_bytes.filter(|_| cgroup.is_some_and(Cgroup::ran_out_of_memory));
        let end = self.evidence.judge();
        let (preflight, explanation) = self.end_inspectors(end.reason);
        if self.stopped_ns > 0 {
            self.timings.own("end all processes", self.stopped_ns);
        }
        Outcome {
            end,
            preflight,
            explanation,
            processes: self.processes,
            console: self.console,
            missed: self.missed,
            registers: self.dumps.into_registers(),
            confinement: self.confinement.json(self.cookie.is_some()),
        }
    }

    fn cause(&mut self, cause: Cause) {
        // A process that says it over and over must not fill our memory; each dies once.
        if self.evidence.causes.len() < CAUSES || matches!(cause, Cause::Died { .. }) {
            tracing::debug!(?cause, "the run ends");
            self.evidence.causes.push(cause);
        }
    }

    /// What a process did wrong; before its jail was checked, that is a jail that could not be built.
    fn fault(&self, index: usize, why: String) -> Option<Cause> {
        let process = self.processes.get(index)?;
        let name = process.name.clone();
        Some(if process.checked { Cause::Failed { name, why } } else { Cause::Jail { name, why } })
    }

    fn suspect(&mut self, cause: Cause, now: Instant) {
        if self.suspicion.is_none() && self.phase != Phase::Ending {
            self.suspicion = Some((cause, now.checked_add(GRACE).unwrap_or(now)));
        }
    }

    fn set_deadline(&mut self, limit: Duration, what: &str) {
        let end = Instant::now().checked_add(limit);
        self.deadline = end.map(|end| (end, format!("{what} within {} seconds", limit.as_secs())));
    }

    /// Waits for something to happen; what did is in the order in which it is to be handled.
    fn wait(&self) -> Result<Vec<Token>, Errno> {
        let mut watched: Vec<(Token, BorrowedFd<'_>)> = vec![(Token::Signal, self.signals.as_fd())];
        for (index, process) in self.processes.iter().enumerate() {
            if process.ended.is_some() || !self.is_heard(process) {
                continue;
            }
            watched.push((Token::Exited(index), process.child.pidfd.as_fd()));
            watched.extend(process.control.as_ref().map(|control| (Token::Control(index), control.as_fd())));
            watched.extend(process.log.poll_fd().map(|log| (Token::Log(index), log)));
            let listeners = process.listeners.iter().enumerate();
            watched.extend(listeners.map(|(number, listener)| (Token::Listener(index, number), listener.as_fd())));
        }
        watched.extend(self.inspectors.fds().map(|fd| (Token::Inspectors, fd)));
        let mut fds: Vec<_> = watched.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let happened = fds.iter().zip(&watched).filter(|(fd, _)| fd.any().unwrap_or(false));
        let mut tokens: Vec<Token> = happened.map(|(_, (token, _))| *token).collect();
        tokens.sort_unstable();
        tokens.dedup();
        Ok(tokens)
    }

    fn timeout(&self) -> PollTimeout {
        let deadline = self.deadline.as_ref().map(|(end, _)| *end);
        let suspicion = self.suspicion.as_ref().map(|(_, end)| *end);
        let heard = self.processes.iter().filter(|process| self.is_heard(process));
        let logs = heard.filter_map(|process| process.log.resume_at());
        let next = (deadline.into_iter().chain(suspicion))
            .chain(self.ending.deadlines())
            .chain(self.dumps.until())
            .chain(self.clock.deadlines().filter(|_| self.phase != Phase::Ending))
            .chain(logs)
            .chain(self.inspectors.deadlines())
            .min();
        next.map_or(PollTimeout::NONE, |next| {
            let left = next.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
        })
    }

    fn handle(&mut self, token: Token, now: Instant) {
        let index = match token {
            Token::Control(index) | Token::Listener(index, _) | Token::Log(index) | Token::Exited(index) => Some(index),
            Token::Signal | Token::Inspectors => None,
        };
        // Since all of this was found to have happened, the loader may have been told to load.
        if index.and_then(|index| self.processes.get(index)).is_some_and(|process| !self.is_heard(process)) {
            return;
        }
        match token {
            Token::Signal => self.on_signal(),
            Token::Control(index) => self.on_control(index, now, TURN),
            Token::Listener(index, number) => self.on_listener(index, number),
            Token::Log(index) => self.on_log(index, now),
            Token::Exited(index) => self.on_exit(index, now),
            Token::Inspectors => self.inspectors.turn(now),
        }
    }

    fn on_signal(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            let Ok(signal) = Signal::try_from(number) else { continue };
            if self.phase == Phase::Ending {
                tracing::warn!("{signal} once more: all processes are killed");
                self.processes.iter_mut().for_each(Supervised::kill);
            }
            self.cause(Cause::Signal(signal));
        }
    }

    fn on_log(&mut self, index: usize, now: Instant) {
        if let Some(Supervised { log, name, child, .. }) = self.processes.get_mut(index) {
            let pid = child.pid.as_raw();
            log.read(now, |line| tracing::warn!(process = name.as_str(), pid, "{line}"));
        }
    }

    fn on_control(&mut self, index: usize, now: Instant, limit: usize) {
        for _ in 0..limit {
            let Some(process) = self.processes.get(index) else { return };
            let Some(control) = &process.control else { return };
            match messages::next(process.role, control) {
                Ok(event) => self.on_event(index, event, now),
                Err(ChannelError::WouldBlock) => return,
                Err(error) => {
                    if let Some(process) = self.processes.get_mut(index) {
                        process.control = None;
                    }
                    if matches!(error, ChannelError::Closed) {
                        if let Some(cause) = self.fault(index, "it closed its control channel".to_owned()) {
                            self.suspect(cause, now);
                        }
                    } else {
                        // Whoever talks nonsense is not listened to any more, and how it ends tells nothing new.
                        self.processes.get_mut(index).into_iter().for_each(Supervised::kill);
                        let why = format!("it broke the protocol: {:#}", anyhow::Error::from(error));
                        self.fault(index, why).into_iter().for_each(|cause| self.cause(cause));
                    }
                    return;
                }
            }
        }
    }

    fn on_exit(&mut self, index: usize, now: Instant) {
        // Its last words first.
        self.on_control(index, now, 16 * TURN);
        let phase = self.phase;
        let Some(process) = self.processes.get_mut(index) else { return };
        if process.ended.is_some() {
            return;
        }
        let Some(ended) = process.reap(false) else { return };
        let (name, pid) = (process.name.clone(), process.child.pid.as_raw());
        process.log.finish(now, |line| tracing::warn!(process = name.as_str(), pid, "{line}"));
        process.control = None;
        process.listeners.clear();
        tracing::debug!(process = name, pid, exit = ?ended.exit, "ended");
        let setup_error = process.child.setup_error();
        // That it is gone is clear now; how it went is judged below.
        let suspected = matches!(
            &self.suspicion,
            Some((Cause::Failed { name: suspect, .. } | Cause::Jail { name: suspect, .. }, _)) if *suspect == name
        );
        let expected = match (process.role, ended.exit) {
            (_, Exit::Signal(libc::SIGSYS)) => false,
            _ if process.killed => true,
            (Role::Loader, Exit::Code(0)) => self.entry.is_some(),
            (Role::Vmm, Exit::Code(0)) => self.stopped,
            (_, Exit::Code(0)) => process.finished || phase == Phase::Ending,
            (_, Exit::Code(_)) => process.said_why,
            (_, Exit::Signal(_)) => false,
        };
        if suspected {
            self.suspicion = None;
        }
        if let Some(error) = setup_error {
            self.cause(Cause::Jail { name, why: format!("{:#}", anyhow::Error::from(error)) });
        } else if !expected {
            let jailed = self.processes.get(index).is_some_and(|process| process.checked);
            self.cause(match ended.exit {
                Exit::Code(_) if !jailed => Cause::Jail { name, why: format!("it {}", ended.exit) },
                exit => Cause::Died { name, exit },
            });
        }
    }

    fn look_at_the_clock(&mut self, now: Instant) {
        if self.suspicion.as_ref().is_some_and(|(_, end)| *end <= now)
            && let Some((cause, _)) = self.suspicion.take()
        {
            self.cause(cause);
        }
        if self.deadline.as_ref().is_some_and(|(end, _)| *end <= now)
            && let Some((_, what)) = self.deadline.take()
        {
            let late = self.processes.iter().position(|process| process.ended.is_none() && !process.checked);
            let cause = late.and_then(|index| self.fault(index, what.clone()));
            let cause = cause.unwrap_or_else(|| Cause::Failed { name: self.expected_next(), why: what });
            self.cause(cause);
        }
        if self.inspectors.deadlines().any(|at| at <= now) {
            self.inspectors.turn(now);
        }
        let used = || clock::cpu_time(&self.processes, self.confinement.cgroup());
        let is_full = || self.confinement.cgroup().is_some_and(Cgroup::has_used_its_memory_up);
        if self.phase != Phase::Ending
            && let Some(limit) = self.clock.look(now, used, is_full)
        {
            self.cause(Cause::Limit(limit));
        }
        for index in 0..self.processes.len() {
            if self.processes.get(index).and_then(|process| process.log.resume_at()).is_some_and(|at| at <= now) {
                self.handle(Token::Log(index), now);
            }
        }
    }

    fn expected_next(&self) -> String {
        if self.phase == Phase::Loading { Role::Loader.name() } else { Role::Vmm.name() }
    }

    fn find(&mut self, role: Role) -> Option<&mut Supervised> {
        self.processes.iter_mut().find(|process| process.role == role)
    }
}
