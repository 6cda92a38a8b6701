//! The stack of a child that has not been executed yet: it runs in the broker's memory, so that nothing has to be copied
//! for it.
#![allow(unsafe_code, reason = "a stack is mapped and unmapped by its address")]

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// Many times what a child uses, in bytes.
const STACK_BYTES: usize = 128 << 10;
/// What below it is mapped for nobody, so that a stack that is too small ends the child and touches nothing: as much as the
/// largest page.
const GUARD_BYTES: usize = 64 << 10;

/// A stack.
#[derive(Debug)]
pub(super) struct Stack(NonNull<c_void>);

impl Stack {
    /// A new one.
    pub(super) fn new() -> Result<Self, Errno> {
        let length = NonZeroUsize::MIN.saturating_add(GUARD_BYTES + STACK_BYTES - 1);
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_STACK | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        let stack = Self(start);
        // SAFETY: the lower end of the mapping that was just made, which nobody uses yet.
        unsafe { mprotect(start, GUARD_BYTES, ProtFlags::PROT_NONE) }?;
        Ok(stack)
    }

    /// The address of its lowest byte.
    pub(super) fn lowest(&self) -> usize {
        self.0.addr().get().saturating_add(GUARD_BYTES)
    }

    /// Its length in bytes.
    pub(super) fn bytes(&self) -> usize {
        STACK_BYTES
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and who ran on it is executed or has ended (see `Birth`).
        unsafe { munmap(self.0, GUARD_BYTES + STACK_BYTES) }.unwrap_or(());
    }
}
