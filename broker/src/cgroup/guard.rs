//! The guard of a machine's cgroup (a fork of the broker, made before it has read anything but the config): removes the cgroup
//! once the broker is done with it, or gone without a word, even by SIGKILL.
//!
//! The broker itself could not: to remove a folder from the root of the hierarchy takes a capability, and it has given up
//! all. The guard keeps what the broker began with; it reads one byte, of the broker, and nothing else. It is a fork, not
//! a program of its own, because it does nothing for which it would need one, and to start one takes longer than to fork.
#![allow(unsafe_code, reason = "fork and close_range have no safe wrapper")]

use super::{place, remove};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl::set_name;
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, dup2_stdin, fork, pipe2, read, write};
use policies::lockdown::exit_now;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A guard that runs.
#[derive(Debug)]
pub(super) struct Guard {
    process: Pid,
    to_guard: OwnedFd,
}

impl Guard {
    /// Starts a guard of the cgroup `folder`, and of the one that the broker has gone into, if any.
    ///
    /// # Errors
    /// When there is no process or descriptor to be had.
    pub(super) fn start(folder: &Path, leaf: Option<&Path>) -> Result<Self, Errno> {
        let (from_broker, to_guard) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the broker has one thread, so that no lock is held by another one; the child calls what any program may.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { process: child, to_guard }),
            ForkResult::Child => {
                drop(to_guard);
                exit_now(i32::from(!watch(&from_broker, folder, leaf)))
            }
        }
    }

    /// Has the cgroup removed, and waits for that.
    ///
    /// # Errors
    /// When the guard is gone.
    pub(super) fn finish(self) -> Result<(), Errno> {
        write(&self.to_guard, b"x")?;
        drop(self.to_guard);
        waitpid(self.process, None).map(drop)
    }
}

/// The guard's life; whether everything was removed.
fn watch(from_broker: &OwnedFd, folder: &Path, leaf: Option<&Path>) -> bool {
    // What is meant for the broker, such as Ctrl-C, is not for this process. Nothing of this can fail but for want of
    // memory, and the guard does its work without it.
    SigSet::all().thread_block().unwrap_or(());
    set_name(c"broker-guard").unwrap_or(());
    if dup2_stdin(from_broker).is_err() || close_all_but_stdin().is_err() {
        return false;
    }
    policies::code::give_back();
    let finished = read(std::io::stdin(), &mut [0]) == Ok(1);
    let removed = remove(folder).is_ok();
    // A broker that lives goes back by itself.
    let left = finished || leaf.is_none_or(|leaf| place::Leaf::of(leaf).is_some_and(|leaf| leaf.leave().is_ok()));
    removed && left
}

/// Closes every descriptor above 0: the broker's files and the lock of the cgroup are none of the guard's, and neither are
/// its outputs, whose readers wait for their end.
fn close_all_but_stdin() -> Result<(), Errno> {
    // SAFETY: integers only; nothing in this process uses a descriptor above 0 from here on.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 1, libc::c_int::MAX, 0) }).map(drop)
}
