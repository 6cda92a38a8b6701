//! One run of a VMM: from its start to the end of all of its processes, by the monotonic clock.
//!
//! This process adopts what a VMM leaves behind, so that "gone" is when no process of it is left, whoever its parent was.
//! Nothing else may be started meanwhile.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
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
    log: PathBuf,
}

impl Vm {
    /// Starts it, with a console that is read by [`Vm::await_byte`] and what follows it. `log` is where its errors go.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let errors = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let console = child.stdout.take().context("no pipe for the console")?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("no process id")?);
        Ok(Self { pid, started, console, log: log.to_owned() })
    }

    /// Waits for the guest's next byte; the time since the start.
    ///
    /// # Errors
    /// When none comes.
    pub(crate) fn await_byte(&mut self) -> Result<Duration> {
        let mut byte = [0];
        let read = self.console.read_exact(&mut byte);
        let time = self.started.elapsed();
        read.with_context(|| format!("the guest printed nothing: {}", self.said()))?;
        Ok(time)
    }

    /// Waits until no process is left; the time since the start.
    ///
    /// # Errors
    /// When it did not end with `code`.
    pub(crate) fn await_gone(self, code: i32) -> Result<Duration> {
        let mut ended = None;
        loop {
            match waitpid(None, None) {
                Ok(status) if status.pid() == Some(self.pid) => ended = Some(status),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => break,
                Err(errno) => bail!("cannot wait for {}: {errno}", self.pid),
            }
        }
        let time = self.started.elapsed();
        match ended {
            Some(WaitStatus::Exited(_, found)) if found == code => Ok(time),
            other => bail!("the run ended with {other:?} instead of exit code {code}: {}", self.said()),
        }
    }

    /// What it wrote to standard error.
    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default().trim_end().to_owned()
    }
}

/// Adopts what the processes that are started from now on leave behind.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot become a subreaper")
}
