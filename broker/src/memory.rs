//! Shared memory: memfds that are sized once and sealed. The broker never maps them.

use crate::config::HugePages;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use wire::MemoryBytes;

/// Why memory could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// The kernel refused.
    #[error("{0} bytes of shared memory could not be had")]
    Memfd(u64, #[source] Errno),
    /// The kernel has no huge pages of that size.
    #[error("this kernel or processor has no huge pages of {0} MiB; leave machine.huge_pages out")]
    NoHugePages(u64),
    /// Too few huge pages are free.
    #[error(
        "{needed} huge pages of {page_mib} MiB are needed and {free} are free; as root, reserve them with \
         `echo {needed} > {setting}`, or leave machine.huge_pages out"
    )]
    TooFewHugePages {
        /// Pages needed.
        needed: u64,
        /// The size of one.
        page_mib: u64,
        /// Pages free.
        free: u64,
        /// Where the kernel is told.
        setting: String,
    },
}

/// Guest memory.
///
/// # Errors
/// When the kernel has not that much of it, in particular in huge pages.
pub(crate) fn guest_memory(size: MemoryBytes, huge: Option<HugePages>) -> Result<OwnedFd, MemoryError> {
    let Some(page) = huge else { return sealed(c"guest-memory", size.get(), MFdFlags::empty()) };
    let page_mib = page.bytes() >> 20;
    let flags = MFdFlags::MFD_HUGETLB
        | match page {
            HugePages::TwoMiB => MFdFlags::MFD_HUGE_2MB,
            HugePages::OneGiB => MFdFlags::MFD_HUGE_1GB,
        };
    let folder = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page.bytes() >> 10);
    let shortage = || MemoryError::TooFewHugePages {
        needed: size.get() / page.bytes(),
        page_mib,
        free: read_number(&format!("{folder}/free_hugepages")),
        setting: format!("{folder}/nr_hugepages"),
    };
    sealed(c"guest-memory", size.get(), flags).map_err(|error| match error {
        MemoryError::Memfd(_, Errno::ENOSPC | Errno::ENOMEM) => shortage(),
        MemoryError::Memfd(_, Errno::ENOENT | Errno::ENODEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            MemoryError::NoHugePages(page_mib)
        }
        other => other,
    })
}

/// The ring between vmm and serial.
///
/// # Errors
/// When the kernel has no memory or descriptor left.
pub(crate) fn posted_write_ring() -> Result<OwnedFd, MemoryError> {
    sealed(c"posted-writes", wire::ring::RING_BYTES as u64, MFdFlags::empty())
}

/// The counter of what a guest writes to its disks.
///
/// # Errors
/// As [`posted_write_ring`].
pub(crate) fn write_counter() -> Result<OwnedFd, MemoryError> {
    sealed(c"disk-writes", wire::message::WRITE_COUNTER_BYTES as u64, MFdFlags::empty())
}

/// The memory in which serial records the console.
///
/// # Errors
/// As [`posted_write_ring`].
pub(crate) fn recording() -> Result<OwnedFd, MemoryError> {
    sealed(c"recording", wire::recording::RECORDING_BYTES as u64, MFdFlags::empty())
}

/// Memory for a log, empty and open until [`seal`].
///
/// # Errors
/// As [`posted_write_ring`].
pub(crate) fn log() -> Result<OwnedFd, MemoryError> {
    create(c"log", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).map_err(|errno| MemoryError::Memfd(0, errno))
}

/// Lets nobody change a log any more.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
pub(crate) fn seal(log: &impl AsFd) -> Result<(), MemoryError> {
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(log, FcntlArg::F_ADD_SEALS(seals)).map(drop).map_err(|errno| MemoryError::Memfd(0, errno))
}

fn sealed(name: &CStr, bytes: u64, flags: MFdFlags) -> Result<OwnedFd, MemoryError> {
    let error = |errno| MemoryError::Memfd(bytes, errno);
    let fd = create(name, flags | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).map_err(error)?;
    let length = i64::try_from(bytes).map_err(|_too_large| error(Errno::EFBIG))?;
    ftruncate(&fd, length).map_err(error)?;
    if flags.contains(MFdFlags::MFD_HUGETLB) {
        // Taken now: a huge page that is missing later would be a SIGBUS.
        fallocate(&fd, FallocateFlags::empty(), 0, length).map_err(error)?;
    }
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(error)?;
    Ok(fd)
}

/// Not executable and sealed to stay so, where the kernel can (Linux 6.3, `MFD_NOEXEC_SEAL`).
fn create(name: &CStr, flags: MFdFlags) -> Result<OwnedFd, Errno> {
    match memfd_create(name, flags | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL)) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        other => other,
    }
}

fn read_number(path: &str) -> u64 {
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_has_its_size_for_good() {
        let fd = guest_memory(MemoryBytes::try_from(4 << 20).unwrap(), None).unwrap();
        assert_eq!(nix::sys::stat::fstat(&fd).unwrap().st_size, 4 << 20);
        assert_eq!(ftruncate(&fd, 8 << 20), Err(Errno::EPERM));
        assert_eq!(ftruncate(&fd, 0), Err(Errno::EPERM));
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).unwrap();
        assert!(SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SEAL));
    }

    #[test]
    fn huge_pages_that_are_not_there_are_an_error_that_says_how_to_get_them() {
        let size = MemoryBytes::try_from(MemoryBytes::MAX).unwrap();
        let error = guest_memory(size, Some(HugePages::TwoMiB)).unwrap_err().to_string();
        assert!(error.contains("leave machine.huge_pages out"), "{error}");
    }
}
