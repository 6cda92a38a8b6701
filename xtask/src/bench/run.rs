//! One run of a VMM: from its start to the end of all of its processes, by the monotonic clock.
//!
//! This process adopts what a VMM leaves behind, so that "gone" is when no process of it is left, whoever its parent was.
//! Nothing else may be started meanwhile.

use super::subject::Subject;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A VMM that runs.
#[derive(Debug)]
pub(crate) struct Vm {
    pid: Pid,
    started: Instant,
    console: ChildStdout,
    /// What the guest has printed and nobody has awaited yet.
    unread: Vec<u8>,
    log: PathBuf,
    /// Whether its end has not been waited for.
    runs: bool,
}

impl Vm {
    /// Starts it; its console is read as it is awaited. `log` is where its errors go.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let errors = File::options().create(true).append(true).open(log);
        let errors = errors.with_context(|| format!("cannot write to {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let console = child.stdout.take().context("no pipe for the console")?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("no process id")?);
        Ok(Self { pid, started, console, unread: Vec::new(), log: log.to_owned(), runs: true })
    }

    /// Waits for the guest's next byte; the time since the start.
    ///
    /// # Errors
    /// When none comes.
    pub(crate) fn await_byte(&mut self) -> Result<Duration> {
        self.await_bytes(1)
    }

    /// Waits for that many bytes; the time since the start.
    ///
    /// # Errors
    /// When they do not come.
    pub(crate) fn await_bytes(&mut self, bytes: usize) -> Result<Duration> {
        self.read_until(|unread| (unread.len() >= bytes).then_some(bytes), || format!("{bytes} bytes"))
    }

    /// Waits until the guest has printed `marker`; the time since the start.
    ///
    /// # Errors
    /// When it does not come, or the guest says that it failed.
    pub(crate) fn await_text(&mut self, marker: &str) -> Result<Duration> {
        let end = |unread: &[u8]| {
            let at = unread.windows(marker.len()).position(|window| window == marker.as_bytes())?;
            Some(at + marker.len())
        };
        self.read_until(end, || format!("{marker:?}"))
    }

    /// Reads the console to its end.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn drain(&mut self) -> Result<()> {
        self.console.read_to_end(&mut self.unread).context("the console cannot be read").map(drop)
    }

    /// Reads the console until `end` finds one in what was printed, and takes what is before it.
    fn read_until(&mut self, end: impl Fn(&[u8]) -> Option<usize>, what: impl Fn() -> String) -> Result<Duration> {
        let mut time = self.started.elapsed();
        loop {
            if let Some(length) = end(&self.unread) {
                self.unread.drain(..length);
                return Ok(time);
            }
            let mut buffer = [0; 65536];
            let length = self.console.read(&mut buffer).context("the console cannot be read")?;
            time = self.started.elapsed();
            self.unread.extend_from_slice(buffer.get(..length).unwrap_or_default());
            if length == 0 || self.unread.starts_with(b"FAIL") {
                let printed = String::from_utf8_lossy(&self.unread);
                bail!("the guest did not print {}: {} {}", what(), printed.trim_end(), self.said());
            }
        }
    }

    /// Waits until no process is left; the time since the start.
    ///
    /// # Errors
    /// When it did not end with `code`.
    pub(crate) fn await_gone(mut self, code: i32) -> Result<Duration> {
        let ended = reap()?;
        let time = self.started.elapsed();
        self.runs = false;
        self.expect(&ended, code)?;
        Ok(time)
    }

    fn expect(&self, ended: &HashMap<Pid, WaitStatus>, code: i32) -> Result<()> {
        match ended.get(&self.pid) {
            Some(WaitStatus::Exited(_, found)) if *found == code => Ok(()),
            Some(WaitStatus::Signaled(_, Signal::SIGTERM, _)) if code == TERMINATED => Ok(()),
            other => bail!("a run ended with {other:?} instead of exit code {code}: {}", self.said()),
        }
    }

    /// What was written to standard error last.
    fn said(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(SAID)).map(|line| format!("\n  {line}")).collect()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Only an error comes here with one that runs; nobody would end it later.
        if self.runs && kill(self.pid, Signal::SIGKILL).is_ok() {
            waitpid(self.pid, None).map(drop).unwrap_or(());
        }
    }
}

/// Waits until this process has no child left; how they ended.
fn reap() -> Result<HashMap<Pid, WaitStatus>> {
    let mut ended = HashMap::new();
    loop {
        match waitpid(None, None) {
            Ok(status) => ended.extend(status.pid().map(|pid| (pid, status))),
            Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(ended),
            Err(errno) => bail!("cannot wait for a child: {errno}"),
        }
    }
}

/// Ends all VMs that run, and waits until no process is left.
///
/// # Errors
/// When one of them ends otherwise than a program does that is told to.
pub(crate) fn stop(mut vms: Vec<Vm>, subject: Subject) -> Result<()> {
    for vm in &vms {
        kill(vm.pid, Signal::SIGTERM).with_context(|| format!("a run has ended before: {}", vm.said()))?;
    }
    let ended = reap()?;
    vms.iter_mut().for_each(|vm| vm.runs = false);
    let code = if subject == Subject::Qemu { 0 } else { TERMINATED };
    vms.iter().try_for_each(|vm| vm.expect(&ended, code))
}

/// Runs a VMM `times` times, `at_once` of them at any time, each to its own end; how long all of that takes.
///
/// # Errors
/// When one cannot be started, or does not end with `code`.
pub(crate) fn side_by_side(make: impl Fn() -> Command, at_once: usize, times: usize, code: i32) -> Result<Duration> {
    let started = Instant::now();
    let mut running = HashSet::new();
    let mut left = times;
    loop {
        while running.len() < at_once && left > 0 {
            let mut command = make();
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let child = command.spawn().context("a VMM does not start")?;
            running.insert(Pid::from_raw(i32::try_from(child.id()).context("no process id")?));
            left -= 1;
        }
        match waitpid(None, None) {
            // What was adopted may end as it likes.
            Ok(status) if status.pid().is_some_and(|pid| running.remove(&pid)) => match status {
                WaitStatus::Exited(_, found) if found == code => {}
                other => bail!("a run ended with {other:?} instead of exit code {code}"),
            },
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(started.elapsed()),
            Err(errno) => bail!("cannot wait for a child: {errno}"),
        }
    }
}

/// Lines of a log that an error shows.
const SAID: usize = 5;

/// The exit code of a program that was told to end, as shells and the broker have it.
const TERMINATED: i32 = 143;

/// Adopts what the processes that are started from now on leave behind.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot become a subreaper")
}
