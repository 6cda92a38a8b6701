//! Descriptors that came from the broker, as the types of the rust-vmm crates, which know only raw numbers.
//!
//! The broker is trusted for what a descriptor is; a wrong one makes the first call on it fail.

#![allow(unsafe_code, reason = "the rust-vmm types take descriptors only as integers")]

use kvm_ioctls::Kvm;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use vmm_sys_util::eventfd::EventFd;

/// An eventfd.
#[must_use]
pub fn event(fd: OwnedFd) -> EventFd {
    // SAFETY: `into_raw_fd` gives up the only ownership of an open descriptor, and `EventFd` takes it over.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// An open `/dev/kvm`.
#[must_use]
pub fn kvm(fd: OwnedFd) -> Kvm {
    // SAFETY: `into_raw_fd` gives up the only ownership of an open descriptor, and `Kvm` takes it over.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// An eventfd to wait for.
#[must_use]
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event` lives, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
