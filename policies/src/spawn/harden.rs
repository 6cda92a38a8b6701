//! What a child gives up or asks for beyond its jail, before it is executed: speculation that a neighbour could steer, and
//! the merging of its memory with that of others.
//!
//! System calls alone, as all that a child does before it is executed (see [`super::child`]). What a kernel or a processor does not have is no error here: [`crate::inspect`] looks
//! at what came of it.

use super::child::call;
use nix::errno::Errno;
use syscalls::Sysno;

// linux/prctl.h
const PR_SET_SPECULATION_CTRL: usize = 53;
const PR_SPEC_STORE_BYPASS: usize = 0;
const PR_SPEC_INDIRECT_BRANCH: usize = 1;
const PR_SPEC_FORCE_DISABLE: usize = 1 << 3;
const PR_SET_MEMORY_MERGE: usize = 67;

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

fn prctl(option: usize, first: usize, second: usize) -> Result<(), Errno> {
    call(Sysno::prctl, [option, first, second, 0, 0, 0]).map(drop)
}
