//! What a child gives up or asks for beyond its jail, before it is executed: speculation that a neighbour could steer, and
//! the merging of its memory with that of others.
//!
//! Only async-signal-safe calls. What a kernel or a processor does not have is no error here: [`crate::inspect`] looks
//! at what came of it.
#![allow(unsafe_code, reason = "these prctl options have no safe wrapper")]

use nix::errno::Errno;
use nix::libc;
use std::ffi::{c_int, c_ulong};

// linux/prctl.h
const PR_SET_SPECULATION_CTRL: c_int = 53;
const PR_SPEC_STORE_BYPASS: c_ulong = 0;
const PR_SPEC_INDIRECT_BRANCH: c_ulong = 1;
const PR_SPEC_FORCE_DISABLE: c_ulong = 1 << 3;
const PR_SET_MEMORY_MERGE: c_int = 67;

/// Shuts store bypass and indirect branch speculation for good; the kernel keeps both shut over execve ("Speculation
/// Control" of the kernel's user space API guide).
pub(super) fn shut_speculation() -> Result<(), Errno> {
    for what in [PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH] {
        match prctl(PR_SET_SPECULATION_CTRL, what, PR_SPEC_FORCE_DISABLE) {
            Ok(()) => {}
            // Not of this architecture or kernel; not affected, or decided for all; indirect branches left open for all.
            Err(Errno::ENODEV | Errno::EINVAL | Errno::ENXIO | Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Keeps KSM away from the process's own memory, whatever the broker was started with. Guest memory is shared memory, of
/// which KSM takes none (mm/ksm.c, `vma_ksm_compatible`).
pub(super) fn refuse_merging() -> Result<(), Errno> {
    match prctl(PR_SET_MEMORY_MERGE, 0, 0) {
        // Before Linux 6.4, or without KSM: only what asks for it by madvise is merged, which nothing here does.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn prctl(option: c_int, first: c_ulong, second: c_ulong) -> Result<(), Errno> {
    let none: c_ulong = 0;
    // SAFETY: the options used here take integers only.
    Errno::result(unsafe { libc::prctl(option, first, second, none, none) }).map(drop)
}
