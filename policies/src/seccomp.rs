//! The seccomp filters, compiled at build time from `policies/seccomp/<architecture>/<process>.toml`.
#![allow(unsafe_code, reason = "neither std nor nix wraps seccomp(2)")]

use crate::code;
use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A compiled filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The loader's only thread.
    Loader,
    /// The vmm's control thread.
    VmmControl,
    /// A vCPU thread of the vmm.
    VmmVcpu,
    /// Serial's only thread.
    Serial,
    /// The only thread of a virtio-blk process that makes a system call for each request.
    VirtioBlk,
    /// The only thread of a virtio-blk process that has an io_uring.
    VirtioBlkUring,
    /// The only thread of an inspector.
    Inspector,
}

/// Why a filter could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("the seccomp filter could not be installed")]
pub struct SeccompError(#[source] pub Errno);

/// One instruction of classic BPF: `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// `struct sock_fprog` of linux/filter.h.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

include!(concat!(env!("OUT_DIR"), "/filters.rs"));

impl Filter {
    fn instructions(self, audit: bool) -> &'static [Instruction] {
        match (self, audit) {
            (Self::Loader, false) => LOADER_MAIN_KILL,
            (Self::Loader, true) => LOADER_MAIN_AUDIT,
            (Self::VmmControl, false) => VMM_CONTROL_KILL,
            (Self::VmmControl, true) => VMM_CONTROL_AUDIT,
            (Self::VmmVcpu, false) => VMM_VCPU_KILL,
            (Self::VmmVcpu, true) => VMM_VCPU_AUDIT,
            (Self::Serial, false) => SERIAL_MAIN_KILL,
            (Self::Serial, true) => SERIAL_MAIN_AUDIT,
            (Self::VirtioBlk, false) => VIRTIO_BLK_MAIN_KILL,
            (Self::VirtioBlk, true) => VIRTIO_BLK_MAIN_AUDIT,
            (Self::VirtioBlkUring, false) => VIRTIO_BLK_URING_URING_KILL,
            (Self::VirtioBlkUring, true) => VIRTIO_BLK_URING_URING_AUDIT,
            (Self::Inspector, false) => INSPECTOR_MAIN_KILL,
            (Self::Inspector, true) => INSPECTOR_MAIN_AUDIT,
        }
    }
}

/// Installs `filter` on the calling thread, for good. A syscall that it lacks kills the whole process; with `audit`, it
/// waits instead until the reader of the returned listener lets it pass (seccomp_unotify(2)).
///
/// # Errors
/// When the kernel refuses the filter: it has no seccomp, or `no_new_privs` is not set.
pub fn install(filter: Filter, audit: bool) -> Result<Option<OwnedFd>, SeccompError> {
    // No filter allows it later.
    code::give_back();
    let instructions = filter.instructions(audit);
    let length = u16::try_from(instructions.len()).map_err(|_error| SeccompError(Errno::E2BIG))?;
    let program = Program { length, instructions: instructions.as_ptr() };
    let flags = if audit { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    // SAFETY: `program` has the layout of struct sock_fprog and points to `length` instructions that live forever; the
    // kernel copies them and checks them before use.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let listener = Errno::result(result).map_err(SeccompError)?;
    if !audit {
        return Ok(None);
    }
    let raw = RawFd::try_from(listener).map_err(|_error| SeccompError(Errno::EBADF))?;
    // SAFETY: with NEW_LISTENER, the call returns a descriptor that it has just made for this process.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(raw) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILL_PROCESS: u32 = 0x8000_0000;
    const USER_NOTIF: u32 = 0x7fc0_0000;
    const ALLOW: u32 = 0x7fff_0000;
    const RET_K: u16 = 0x06;

    const ALL: [Filter; 7] = [
        Filter::Loader,
        Filter::VmmControl,
        Filter::VmmVcpu,
        Filter::Serial,
        Filter::VirtioBlk,
        Filter::VirtioBlkUring,
        Filter::Inspector,
    ];

    fn actions(filter: Filter, audit: bool) -> Vec<u32> {
        let mut actions: Vec<_> = filter.instructions(audit).iter().filter(|i| i.code == RET_K).map(|i| i.k).collect();
        actions.sort_unstable();
        actions.dedup();
        actions
    }

    #[test]
    fn filter_knows_no_action_but_allow_and_kill() {
        for filter in ALL {
            assert_eq!(actions(filter, false), [ALLOW, KILL_PROCESS], "{filter:?}");
        }
    }

    #[test]
    fn audit_filter_asks_instead_but_still_kills_a_foreign_architecture() {
        for filter in ALL {
            assert_eq!(actions(filter, true), [USER_NOTIF, ALLOW, KILL_PROCESS], "{filter:?}");
        }
    }
}
