//! Guest memory: the sealed memfd, mapped at the guest-physical addresses of the machine.
//!
//! The broker made the file and is trusted for its size and seals; the size is checked all the same, because an access
//! beyond the end of the file would be a SIGBUS. What is in it belongs to the guest: copy once, then check the copy.

use crate::arch::layout::{SMALL_PAGES_BYTES, ram_regions};
use nix::errno::Errno;
use nix::libc::{MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE};
use nix::sys::stat::fstat;
use policies::guest_memory::keep_private;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionCollectionError, GuestRegionMmap};
use wire::MemoryBytes;

/// A stretch of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRegion {
    /// The guest-physical address.
    pub guest_address: u64,
    /// The offset in the guest memory file.
    pub file_offset: u64,
    /// The size in bytes.
    pub bytes: u64,
}

impl RamRegion {
    /// The guest-physical address after the last byte.
    #[must_use]
    pub fn guest_end(self) -> u64 {
        self.guest_address.saturating_add(self.bytes)
    }
}

/// Why guest memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file's size could not be asked for.
    #[error("the size of the guest memory file is not known")]
    Size(#[source] Errno),
    /// The file has another size than the guest memory.
    #[error("the guest memory file has {got} bytes instead of {expected}")]
    WrongSize {
        /// The size of the file in bytes.
        got: i64,
        /// The size of guest memory in bytes.
        expected: u64,
    },
    /// The host's address space cannot hold the memory.
    #[error("guest memory does not fit the host's address space")]
    AddressSpace,
    /// The mapping failed.
    #[error("guest memory could not be mapped")]
    Map(#[source] MmapRegionError),
    /// The kernel did not take the advice to keep it out of dumps.
    #[error("guest memory could not be kept out of core dumps")]
    Advise(#[source] Errno),
    /// The regions do not make a guest memory.
    #[error("the regions of guest memory do not fit together")]
    Regions(#[source] GuestRegionCollectionError),
}

/// Maps the guest memory file, shared, readable and writable, and kept out of dumps and children.
///
/// # Errors
/// When the file has not the size of the memory, or the mapping fails.
pub fn map(file: OwnedFd, memory: MemoryBytes) -> Result<GuestMemoryMmap, MemoryError> {
    let size = fstat(file.as_fd()).map_err(MemoryError::Size)?.st_size;
    if u64::try_from(size) != Ok(memory.get()) {
        return Err(MemoryError::WrongSize { got: size, expected: memory.get() });
    }
    let file = Arc::new(File::from(file));
    let mut regions = Vec::new();
    let mut small_bytes = SMALL_PAGES_BYTES;
    for region in ram_regions(memory) {
        let bytes = usize::try_from(region.bytes).map_err(|_too_large| MemoryError::AddressSpace)?;
        let mapping = MmapRegionBuilder::new(bytes)
            .with_mmap_prot(PROT_READ | PROT_WRITE)
            .with_mmap_flags(MAP_SHARED | MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), region.file_offset))
            .build()
            .map_err(MemoryError::Map)?;
        keep_private(mapping.as_ptr(), mapping.size(), small_bytes).map_err(MemoryError::Advise)?;
        small_bytes = 0;
        let region = GuestRegionMmap::new(mapping, GuestAddress(region.guest_address));
        regions.push(region.ok_or(MemoryError::AddressSpace)?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Regions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vm_memory::Bytes;

    fn memfd(bytes: i64) -> OwnedFd {
        let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, bytes).unwrap();
        fd
    }

    #[test]
    fn file_of_another_size_is_refused() {
        let memory = MemoryBytes::try_from(4 << 20).unwrap();
        let refused = map(memfd(2 << 20), memory);
        assert!(matches!(refused, Err(MemoryError::WrongSize { got: 0x20_0000, expected: 0x40_0000 })));
    }

    #[test]
    fn memory_above_the_hole_is_the_rest_of_the_file() {
        let fd = memfd(4 << 30);
        let copy = fd.try_clone().unwrap();
        let memory = map(fd, MemoryBytes::try_from(4 << 30).unwrap()).unwrap();
        memory.write_obj(0x1122_3344_u32, GuestAddress(4 << 30)).unwrap();
        let mut bytes = [0; 4];
        nix::sys::uio::pread(&copy, &mut bytes, 3 << 30).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x1122_3344);
        assert!(memory.write_obj(0_u32, GuestAddress(0xC000_0000)).is_err(), "the hole holds no RAM");
        assert!(memory.write_obj(0_u32, GuestAddress(5 << 30)).is_err(), "memory ends");
    }
}
