//! `--audit`: the broker's end of a filter that asks instead of killing (seccomp_unotify(2)).
#![allow(unsafe_code, reason = "the ioctls of a seccomp listener have no safe wrapper")]

use nix::errno::Errno;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A listener of one filter. Readable when a syscall waits that the policy lacks.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// A syscall that a policy lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// Its name, or its number where the name is not known.
    pub syscall: String,
    /// Its arguments.
    pub args: [u64; 6],
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.syscall)?;
        for (index, argument) in self.args.iter().enumerate() {
            write!(f, "{}{argument:#x}", if index == 0 { "" } else { ", " })?;
        }
        write!(f, ")")
    }
}

impl Listener {
    /// Wraps a listener that came from a child.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Takes one waiting syscall and lets it pass; none if the caller is gone meanwhile. Waits if none is there.
    ///
    /// # Errors
    /// When the descriptor is no listener, or all processes with its filter are gone.
    pub fn next(&self) -> Result<Option<Missed>, Errno> {
        // SAFETY: seccomp_notif is a struct of integers, for all of which 0 is valid; the kernel demands zeroes.
        let mut request: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: `request` is valid for writes and has the layout of the kernel that libc describes; newer kernels do
        // not write beyond what an older one knew of, as the size is part of the ioctl's number.
        let received =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut request) };
        match Errno::result(received) {
            Ok(_) => {}
            Err(Errno::EINTR | Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        // SECCOMP_USER_NOTIF_FLAG_CONTINUE of linux/seccomp.h: run the syscall as if the filter had allowed it.
        let response = libc::seccomp_notif_resp { id: request.id, val: 0, error: 0, flags: 1 };
        // SAFETY: `response` is valid for reads and has the layout that the ioctl's number names.
        let sent = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw const response) };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ENOENT | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let syscall = crate::rules::syscall_name(request.data.nr.into());
        Ok(Some(Missed { syscall, args: request.data.args }))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
