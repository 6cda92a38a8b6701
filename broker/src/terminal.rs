//! The user's terminal: raw while the guest runs, and restored however the run ends.
//!
//! A guard process (this program again, as `broker restore-terminal`) holds the terminal and one end of a socket; when
//! the broker is gone without a word, even by SIGKILL, the guard restores what it found at its start.

use nix::errno::Errno;
use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// Why the terminal could not be made raw.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminalError {
    /// Its settings could not be read or changed.
    #[error("the terminal's settings cannot be changed")]
    Settings(#[source] Errno),
    /// The guard could not be started.
    #[error("the guard that restores the terminal could not be started")]
    Guard(#[source] std::io::Error),
}

/// A terminal in raw mode. Dropping it restores the terminal.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    terminal: OwnedFd,
    saved: Termios,
    guard: Child,
    to_guard: UnixStream,
}

impl RawTerminal {
    /// Makes `terminal` raw, with a guard that restores it if this process cannot.
    ///
    /// # Errors
    /// When it is no terminal, or no guard can be started.
    pub(crate) fn enter(terminal: OwnedFd) -> Result<Self, TerminalError> {
        let saved = tcgetattr(&terminal).map_err(TerminalError::Settings)?;
        let (to_guard, guards) = UnixStream::pair().map_err(TerminalError::Guard)?;
        let own = std::env::current_exe().map_err(TerminalError::Guard)?;
        let guard = Command::new(own)
            .arg("restore-terminal")
            .stdin(Stdio::from(terminal.try_clone().map_err(TerminalError::Guard)?))
            .stdout(Stdio::from(OwnedFd::from(guards)))
            .stderr(Stdio::null())
            .spawn()
            .map_err(TerminalError::Guard)?;
        let mut raw = Self { terminal, saved, guard, to_guard };
        // It has read the settings once it says a byte.
        raw.to_guard.set_read_timeout(Some(Duration::from_secs(10))).map_err(TerminalError::Guard)?;
        raw.to_guard.read_exact(&mut [0u8]).map_err(TerminalError::Guard)?;
        let mut settings = raw.saved.clone();
        cfmakeraw(&mut settings);
        // Kept, so that our own lines do not run down the screen like stairs.
        settings.output_flags.insert(OutputFlags::OPOST | OutputFlags::ONLCR);
        settings.local_flags.remove(LocalFlags::ECHONL);
        tcsetattr(&raw.terminal, SetArg::TCSANOW, &settings).map_err(TerminalError::Settings)?;
        Ok(raw)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // What is queued may be the terminal's answers to questions of the guest, which no shell should read as commands.
        if let Err(errno) = tcsetattr(&self.terminal, SetArg::TCSAFLUSH, &self.saved) {
            tracing::debug!("the terminal could not be restored: {errno}");
        }
        // The guard must not act later than this, when the shell has settings of its own.
        if self.to_guard.write_all(b"d").is_err() {
            tracing::debug!("the terminal's guard is gone already");
        }
        if let Err(error) = self.guard.wait() {
            tracing::debug!("the terminal's guard could not be reaped: {error}");
        }
    }
}

/// `broker restore-terminal`: standard input is the terminal, standard output the socket to the broker.
pub(crate) fn guard_main() -> ExitCode {
    // Out of the terminal's session, so that neither its signals nor job control reach this process.
    if nix::unistd::setsid().is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(saved) = tcgetattr(std::io::stdin()) else { return ExitCode::FAILURE };
    let socket = std::io::stdout();
    if nix::unistd::write(socket.as_fd(), b"r").is_err() {
        return ExitCode::FAILURE;
    }
    let mut byte = [0u8];
    loop {
        match nix::unistd::read(socket.as_fd(), &mut byte) {
            Ok(0) => break,
            Ok(_) => return ExitCode::SUCCESS,
            Err(Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    if tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &saved).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
