//! Shared memory: memfds that are sized once and sealed, or a file alone in a file system of its size. The broker never maps
//! them.

use crate::config::HugePages;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, openat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, ftruncate, unlinkat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use tracing::debug;
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
    let Some(page) = huge else {
        return alone_in_tmpfs(size.get()).or_else(|errno| {
            debug!("guest memory is in small pages, as it has no file system of its own: {errno}");
            sealed(c"guest-memory", size.get(), MFdFlags::empty())
        });
    };
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

/// A file that takes transparent huge pages where its mappings ask for them (`huge=advise`, tmpfs(5)), which a memfd does
/// only where the administrator lets all of them. It is alone in a file system that has no place in any tree, no room
/// beyond its size, and nothing that can be executed; that stands in for seals, which only memfds have. What it lacks is
/// the one against shrinking: no process that gets it may call ftruncate.
fn alone_in_tmpfs(bytes: u64) -> Result<OwnedFd, Errno> {
    let error = |error: rustix::io::Errno| Errno::from_raw(error.raw_os_error());
    let made = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(error)?;
    for (key, value) in [("size", bytes.to_string().as_str()), ("huge", "advise"), ("mode", "0700")] {
        fsconfig_set_string(&made, key, value).map_err(error)?;
    }
    fsconfig_create(&made).map_err(error)?;
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&made, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(error)?;
    let access = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(&root, c"guest-memory", access, Mode::S_IRUSR | Mode::S_IWUSR)?;
    unlinkat(&root, c"guest-memory", UnlinkatFlags::NoRemoveDir)?;
    ftruncate(&file, i64::try_from(bytes).map_err(|_too_large| Errno::EFBIG)?)?;
    Ok(file)
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
    fn memory_in_a_file_system_of_its_own_has_no_room_beyond_its_size() {
        let fd = match alone_in_tmpfs(4 << 20) {
            Err(Errno::EPERM) => return eprintln!("skipped: only root can mount"),
            made => made.unwrap(),
        };
        assert_eq!(nix::sys::stat::fstat(&fd).unwrap().st_size, 4 << 20);
        let write = |at| nix::sys::uio::pwrite(&fd, &[1], at);
        assert_eq!([0, 1 << 20, (4 << 20) - 1].map(write), [Ok(1); 3]);
        fallocate(&fd, FallocateFlags::empty(), 0, 4 << 20).unwrap();
        assert_eq!(write(4 << 20), Err(Errno::ENOSPC));
        // Nobody maps it as code.
        let size = std::num::NonZeroUsize::new(4096).unwrap();
        let code = nix::sys::mman::ProtFlags::PROT_EXEC;
        #[allow(unsafe_code, reason = "a mapping of the test's own")]
        // SAFETY: a new mapping, which is refused, at an address that the kernel chooses.
        let mapped = unsafe { nix::sys::mman::mmap(None, size, code, nix::sys::mman::MapFlags::MAP_SHARED, &fd, 0) };
        assert_eq!(mapped, Err(Errno::EPERM));
    }

    #[test]
    fn sealed_memory_has_its_size_for_good() {
        let fd = sealed(c"guest-memory", 4 << 20, MFdFlags::empty()).unwrap();
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
