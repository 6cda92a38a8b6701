//! One inspector, from its start to its reaping: what it may say when, and how long.

use super::{CPU_SECONDS, Inspection, InspectorError};
use crate::ends::Exit;
use crate::messages::{self, Event};
use crate::process::{Ended, Role, Spawner, Supervised};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use policies::audit::Listener;
use policies::inspect::JailViolation;
use policies::spawn::Limits;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use wire::ChannelError;
use wire::message::{HostSeen, InspectorTask, Lockdown, StartInspector, ToInspector};
use wire::report::{MAX_FACTS, MAX_FINDINGS};

/// Messages that are taken in a turn.
const TURN: usize = 64;
/// How long an inspector may take to end after it said that it is done, or closed its channel.
const GRACE: Duration = Duration::from_secs(1);
/// Missed syscalls that are told with `--audit`.
const MISSED: u32 = 1000;

/// How far an inspector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It builds its jail.
    Entering,
    /// It says that it has; the jail that was looked at is tight.
    Jailed,
    /// It was told to begin.
    Working,
    /// It said that it is done.
    Done,
    /// It is reaped.
    Over,
}

/// An inspector.
#[derive(Debug)]
pub(crate) struct Session {
    process: Supervised,
    stage: Stage,
    /// What it is to be told once its jail was looked at; none until it may begin.
    begin: Option<HostSeen>,
    deadline: Option<(Instant, Duration)>,
    /// The end of a wait for its end alone.
    grace: Option<Instant>,
    inspection: Inspection,
    /// Whether its missed syscalls are asked for.
    audit: bool,
    missed: u32,
}

impl Session {
    /// Starts an inspector with the descriptors of its task. It reads nothing before [`Session::begin`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        spawner: &mut Spawner,
        audit: bool,
        task: InspectorTask,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Self, InspectorError> {
        let limits = Limits::for_inspector(CPU_SECONDS);
        let process = spawner.start(Role::Inspector, limits, &StartInspector { audit, task }, fds)?;
        let inspection = Inspection::default();
        Ok(Self {
            process,
            stage: Stage::Entering,
            begin: None,
            deadline: None,
            grace: None,
            inspection,
            audit,
            missed: 0,
        })
    }

    /// Lets it read what it was given, as soon as its jail was looked at.
    pub(crate) fn begin(&mut self, seen: HostSeen) {
        self.begin = Some(seen);
        self.let_begin();
    }

    /// Kills it if it takes longer than `limit` from now on.
    pub(crate) fn must_end_within(&mut self, limit: Duration) {
        self.deadline = Instant::now().checked_add(limit).map(|end| (end, limit));
    }

    /// Gives it the lowest priority there is (setpriority(2)).
    pub(crate) fn step_back(&self) {
        const LOWEST: i32 = 19;
        let pid = rustix::process::Pid::from_raw(self.process.child.pid.as_raw());
        if let Some(Err(error)) = pid.map(|pid| rustix::process::setpriority_process(Some(pid), LOWEST)) {
            // It is gone already, or nothing can be done about it.
            tracing::debug!(process = self.process.name, "keeps its priority: {error}");
        }
    }

    /// Whether it is reaped.
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether it is not in its jail yet.
    pub(crate) fn is_entering(&self) -> bool {
        self.stage == Stage::Entering
    }

    /// It has kept others waiting for its jail too long.
    pub(crate) fn is_late(&mut self) {
        self.give_up("the inspector was not in its jail when the machine was ready, and was killed".to_owned());
    }

    /// What to wait for.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        if self.is_over() {
            return Vec::new();
        }
        let mut fds = vec![self.process.child.pidfd.as_fd()];
        fds.extend(self.process.control.as_ref().map(|control| control.as_fd()));
        fds.extend(self.process.log.poll_fd());
        fds.extend(self.process.listeners.iter().map(AsFd::as_fd));
        fds
    }

    /// When to look again at the latest.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let deadline = self.deadline.map(|(end, _)| end);
        let times = [deadline, self.grace, self.process.log.resume_at()];
        times.into_iter().flatten().filter(|_| !self.is_over()).min()
    }

    /// Takes everything that has happened.
    pub(crate) fn turn(&mut self, now: Instant) {
        if self.is_over() {
            return;
        }
        self.answer_listeners();
        let (name, pid) = (self.process.name.clone(), self.process.child.pid.as_raw());
        self.process.log.read(now, |line| tracing::warn!(process = name, pid, "{line}"));
        self.listen(now, TURN);
        if let Some(ended) = self.process.reap(false) {
            // Its last words: all that it may say, and one that it may not.
            self.listen(now, MAX_FACTS.saturating_add(MAX_FINDINGS).saturating_add(TURN));
            self.process.log.finish(now, |line| tracing::warn!(process = name, pid, "{line}"));
            self.end(ended);
        } else if let Some((_, limit)) = self.deadline.filter(|(end, _)| *end <= now) {
            self.inspection.out_of_time = true;
            self.give_up(format!("the inspector was not done within {} seconds, and was killed", limit.as_secs()));
        } else if self.grace.is_some_and(|end| end <= now) {
            self.give_up("the inspector did not end as it seemed to, and was killed".to_owned());
        }
    }

    /// Waits until it is over, or `interrupt` is readable, for which it is killed.
    pub(crate) fn run(mut self, interrupt: Option<BorrowedFd<'_>>) -> Inspection {
        while !self.is_over() {
            self.wait(interrupt);
        }
        self.into_inspection()
    }

    /// Waits until its jail was looked at, or it is over.
    pub(crate) fn enter(&mut self) {
        while self.is_entering() {
            self.wait(None);
        }
    }

    /// Waits for something to happen, and takes it.
    fn wait(&mut self, interrupt: Option<BorrowedFd<'_>>) {
        let mut polled: Vec<_> = self.fds().into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        polled.extend(interrupt.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let timeout = self.wake_at().map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
        });
        let waited = poll(&mut polled, timeout);
        let is_interrupted = interrupt.is_some() && polled.last().is_some_and(|fd| fd.any().unwrap_or(false));
        drop(polled);
        match waited {
            Err(errno) if errno != Errno::EINTR => {
                self.give_up(format!("the broker cannot wait for the inspector: {}", errno.desc()));
            }
            _ if is_interrupted => self.give_up("the inspector was interrupted".to_owned()),
            _ => self.turn(Instant::now()),
        }
    }

    /// What it said of a thing that changes from now on.
    pub(crate) fn give_up_late(mut self) -> Inspection {
        self.inspection.out_of_time = true;
        self.give_up("the guest, which may write to it, was started before it was done".to_owned());
        std::mem::take(&mut self.inspection)
    }

    /// What it said; of one that is not over, that it could not tell.
    pub(crate) fn into_inspection(mut self) -> Inspection {
        if !self.is_over() {
            self.give_up("the inspector was not done when the run was over".to_owned());
        }
        std::mem::take(&mut self.inspection)
    }

    fn listen(&mut self, now: Instant, limit: usize) {
        for _ in 0..limit {
            let Some(control) = &self.process.control else { return };
            match messages::next(Role::Inspector, control) {
                Ok(event) => self.hear(event),
                Err(ChannelError::WouldBlock) => return,
                Err(ChannelError::Closed) => {
                    self.process.control = None;
                    self.grace = now.checked_add(GRACE);
                }
                Err(error) => self.break_off(&format!("{:#}", anyhow::Error::from(error))),
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match (self.stage, event) {
            (Stage::Entering, Event::Ready(lockdown, listeners)) => self.check(lockdown, listeners),
            (Stage::Working, Event::Fact(fact)) if self.inspection.facts.len() < MAX_FACTS => {
                self.inspection.facts.push(fact);
            }
            (Stage::Working, Event::Finding(finding)) if self.inspection.findings.len() < MAX_FINDINGS => {
                self.inspection.findings.push(finding);
            }
            (Stage::Working, Event::Inspected) => self.stage = Stage::Done,
            (Stage::Entering | Stage::Working, Event::Failed(why)) => {
                self.process.said_why = true;
                self.give_up(format!("the inspector failed: {why}"));
            }
            _ => self.break_off("a message came at the wrong time, or was one too many"),
        }
    }

    /// It says that it is in its jail: look from outside.
    fn check(&mut self, lockdown: Lockdown, listeners: Vec<OwnedFd>) {
        if !self.audit && !listeners.is_empty() {
            return self.give_up("it wants to be audited, which nobody asked for".to_owned());
        }
        self.process.listeners = listeners.into_iter().map(Listener::new).collect();
        let pid = self.process.child.pid;
        match self.process.verify(lockdown) {
            Ok(()) => {
                self.process.checked = true;
                self.stage = Stage::Jailed;
                tracing::info!(process = self.process.name, pid = pid.as_raw(), "jail built and checked");
                self.let_begin();
            }
            // It is ending; why, is known in a moment.
            Err(violation @ (JailViolation::Unreadable { .. } | JailViolation::Dying { .. })) => {
                tracing::debug!("{violation}");
                self.grace = Instant::now().checked_add(GRACE);
            }
            Err(violation) => self.give_up(format!("{:#}", anyhow::Error::from(violation))),
        }
    }

    fn let_begin(&mut self) {
        if self.stage != Stage::Jailed {
            return;
        }
        let Some(seen) = self.begin.take() else { return };
        self.stage = Stage::Working;
        let told = self.process.control.as_ref().map(|control| control.try_send(&ToInspector::Begin(seen), &[]));
        if let Some(Err(error)) = told {
            // It is dying; its end is about to be seen.
            tracing::debug!("the inspector could not be told to begin: {error}");
        }
    }

    fn break_off(&mut self, why: &str) {
        self.give_up(format!("the inspector broke the protocol, and was killed: {why}"));
    }

    /// Kills it; `why` is all that it comes to.
    fn give_up(&mut self, why: String) {
        self.process.kill();
        self.process.reap(true);
        self.process.control = None;
        self.stage = Stage::Over;
        self.inspection.cannot_tell.get_or_insert(why);
    }

    fn end(&mut self, ended: Ended) {
        // What was wrong with its last words is the reason then.
        if self.is_over() {
            return;
        }
        self.process.control = None;
        let cpu_ms = ended.user_ms.saturating_add(ended.system_ms);
        let why = match (self.stage, ended.exit, self.process.child.setup_error()) {
            (_, _, Some(error)) => {
                Some(format!("the jail of the inspector could not be built: {:#}", anyhow::Error::from(error)))
            }
            (Stage::Done, Exit::Code(0), None) => None,
            (_, Exit::Signal(libc::SIGSYS), None) => Some(
                "the inspector was killed by SIGSYS, for a system call that its policy does not allow: what it looked at \
                 has captured it, or needs more memory than it has; with --audit it says which call it was"
                    .to_owned(),
            ),
            (_, Exit::Signal(libc::SIGKILL), None) if cpu_ms >= CPU_SECONDS.saturating_mul(1000) => {
                Some(format!("the inspector used all of its {CPU_SECONDS} seconds of processor time, and was killed"))
            }
            (_, exit, None) => Some(format!("the inspector {exit}")),
        };
        self.stage = Stage::Over;
        self.inspection.cannot_tell = why;
    }

    /// With `--audit`: lets every call pass that its filter lacks, and tells which it was.
    fn answer_listeners(&mut self) {
        for listener in std::mem::take(&mut self.process.listeners) {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let found = poll(&mut fds, PollTimeout::ZERO).ok().and_then(|_| fds.first().and_then(PollFd::revents));
            let found = found.unwrap_or(PollFlags::empty());
            if found.contains(PollFlags::POLLIN) {
                match listener.next() {
                    Ok(Some(missed)) if self.missed < MISSED => {
                        self.missed = self.missed.saturating_add(1);
                        tracing::warn!(process = self.process.name, "audit: its policy lacks {missed}");
                    }
                    Ok(_) => {}
                    Err(errno) => tracing::debug!("a seccomp listener failed: {errno}"),
                }
            } else if !found.is_empty() {
                // Its thread is gone.
                continue;
            }
            self.process.listeners.push(listener);
        }
    }
}
