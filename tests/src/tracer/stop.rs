//! The ptrace(2) calls that nix does not wrap: what a system call stop is about, and a stop that lasts.
#![allow(unsafe_code, reason = "a union of the kernel's, and a request that has no safe wrapper")]

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;

/// What a thread is stopped at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stop {
    /// It is about to make a system call.
    Entry {
        /// Its number.
        number: u64,
        /// Its arguments.
        args: [u64; 6],
    },
    /// It has made a system call, which was not an error if this holds.
    Exit(bool),
    /// Something else.
    Other,
}

/// What a thread in a system call stop is stopped at (`PTRACE_GET_SYSCALL_INFO`, Linux 5.3).
pub(super) fn stop(pid: Pid) -> Result<Stop, Errno> {
    let info = ptrace::syscall_info(pid)?;
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: the kernel says that it has filled this member.
            let entry = unsafe { info.u.entry };
            Ok(Stop::Entry { number: entry.nr, args: entry.args })
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: the kernel says that it has filled this member.
            let exit = unsafe { info.u.exit };
            Ok(Stop::Exit(exit.is_error == 0))
        }
        _ => Ok(Stop::Other),
    }
}

/// Leaves a thread stopped as its stop signal demands, until it is continued from elsewhere (`PTRACE_LISTEN`).
pub(super) fn listen(pid: Pid) -> Result<(), Errno> {
    let none: libc::c_ulong = 0;
    // SAFETY: this request takes no pointer and changes nothing of this process.
    let result = unsafe { libc::ptrace(libc::PTRACE_LISTEN, pid.as_raw(), none, none) };
    Errno::result(result).map(drop)
}

/// Lets any process trace this one, where the kernel asks (Yama); elsewhere, nothing.
pub(super) fn allow_any_tracer() {
    // SAFETY: this prctl takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
}

/// Forks; true in the child.
///
/// # Safety
/// The process has one thread.
pub(super) unsafe fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: the caller guarantees that there is no other thread, so that the child may go on as it likes.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(None),
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child)),
    }
}
