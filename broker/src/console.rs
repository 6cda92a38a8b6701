//! The descriptors of the guest's console: standard input and output, files, or nothing.
//!
//! Serial wants them non-blocking, but flags belong to the open file description, which we share with the user's shell:
//! so terminals and pipes are opened once more, and only what cannot be (sockets) is shared and put back at the end.

use crate::config::Console;
use crate::files::{self, FileError, file_type, reopen};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use wire::message::ConsoleOutput;

/// Why the console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    /// Standard input or output cannot be used.
    #[error("standard input or output cannot be used for the console")]
    Stdio(#[source] Errno),
    /// A file cannot be written.
    #[error("the console file {}", .0.display())]
    File(PathBuf, #[source] FileError),
}

/// The console's descriptors.
#[derive(Debug)]
pub(crate) struct ConsoleFds {
    /// Input, if there is any.
    pub(crate) input: Option<OwnedFd>,
    /// Outputs.
    pub(crate) outputs: Vec<(ConsoleOutput, OwnedFd)>,
    /// The terminal that has to be raw while the guest runs.
    pub(crate) terminal: Option<OwnedFd>,
    /// Flags to be put back.
    pub(crate) borrowed: Vec<BorrowedFlags>,
}

/// The most bytes that serial may put into a file; none where standard output is a file, at whose end or place it writes.
pub(crate) fn file_size_bytes(console: &Console) -> Option<u64> {
    let is_redirected = || fstat(std::io::stdout()).is_ok_and(|stat| file_type(&stat) == SFlag::S_IFREG);
    (!(console.stdio && is_redirected())).then_some(console.limit_bytes)
}

impl ConsoleFds {
    /// Opens what `console` names. `inputs` are files that it must not be.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn open(console: &Console, inputs: &[(u64, u64)]) -> Result<Self, ConsoleError> {
        let mut fds = Self { input: None, outputs: Vec::new(), terminal: None, borrowed: Vec::new() };
        if console.stdio {
            fds.stdio(console.limit_bytes).map_err(ConsoleError::Stdio)?;
        }
        for path in &console.files {
            let file = files::create_console(path, inputs).map_err(|error| ConsoleError::File(path.clone(), error))?;
            fds.outputs.push((ConsoleOutput::File { limit_bytes: console.limit_bytes }, file.into()));
        }
        Ok(fds)
    }

    fn stdio(&mut self, limit_bytes: u64) -> Result<(), Errno> {
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        // A job in the background would be stopped by the terminal when it reads or changes settings.
        let in_background = stdin.is_terminal()
            && nix::unistd::tcgetpgrp(&stdin).is_ok_and(|foreground| foreground != nix::unistd::getpgrp());
        if in_background {
            tracing::warn!("running in the background, so the console has no input");
        } else if fstat(&stdin).is_ok() {
            if stdin.is_terminal() {
                self.terminal = Some(stdin.as_fd().try_clone_to_owned().map_err(|_no_fd| Errno::last())?);
            }
            self.input = Some(self.own(stdin.as_fd(), OFlag::O_RDONLY)?);
        }
        if let Ok(stat) = fstat(&stdout) {
            if file_type(&stat) == SFlag::S_IFREG {
                // Redirected by the user: at the user's place in it, and with the limit of any other file.
                let fd = stdout.as_fd().try_clone_to_owned().map_err(|_no_fd| Errno::last())?;
                self.outputs.push((ConsoleOutput::File { limit_bytes }, fd));
            } else {
                let fd = self.own(stdout.as_fd(), OFlag::O_WRONLY)?;
                self.outputs.push((ConsoleOutput::Stream, fd));
            }
        }
        Ok(())
    }

    /// A non-blocking descriptor of what `fd` refers to.
    fn own(&mut self, fd: BorrowedFd<'_>, access: OFlag) -> Result<OwnedFd, Errno> {
        let kind = file_type(&fstat(fd)?);
        if (kind == SFlag::S_IFCHR || kind == SFlag::S_IFIFO)
            && let Ok(own) = reopen(&fd.as_raw_fd(), access | OFlag::O_NONBLOCK)
        {
            return Ok(own);
        }
        let shared = fd.try_clone_to_owned().map_err(|_no_fd| Errno::last())?;
        if kind != SFlag::S_IFREG {
            self.borrowed.push(BorrowedFlags::set_nonblocking(fd)?);
        }
        Ok(shared)
    }
}

/// A descriptor that we share with others and whose flags are put back when this is dropped.
#[derive(Debug)]
pub(crate) struct BorrowedFlags {
    fd: OwnedFd,
    flags: OFlag,
}

impl BorrowedFlags {
    fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let fd = fd.try_clone_to_owned().map_err(|_no_fd| Errno::last())?;
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { fd, flags })
    }
}

impl Drop for BorrowedFlags {
    fn drop(&mut self) {
        if let Err(errno) = fcntl(&self.fd, FcntlArg::F_SETFL(self.flags)) {
            tracing::debug!("the flags of a shared descriptor could not be put back: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn flags(fd: &impl AsFd) -> OFlag {
        OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap())
    }

    fn nothing() -> ConsoleFds {
        ConsoleFds::open(&Console { stdio: false, files: Vec::new(), limit_bytes: 1 }, &[]).unwrap()
    }

    #[test]
    fn pipe_of_the_user_keeps_its_flags() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let own = nothing().own(read.as_fd(), OFlag::O_RDONLY).unwrap();
        assert!(flags(&own).contains(OFlag::O_NONBLOCK));
        assert!(!flags(&read).contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn socket_of_the_user_gets_its_flags_back() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut fds = nothing();
        fds.own(ours.as_fd(), OFlag::O_RDONLY).unwrap();
        assert!(flags(&ours).contains(OFlag::O_NONBLOCK));
        drop(fds);
        assert!(!flags(&ours).contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn console_without_outputs_has_no_descriptors() {
        let fds = nothing();
        assert!(fds.input.is_none() && fds.outputs.is_empty() && fds.terminal.is_none());
    }
}
