//! What the guest may write to all its disks together: one counter in memory that the processes of the disks share.
//!
//! Distrusts the guest, which would write without end, and the other processes: one that a guest has captured can make
//! the count anything, which costs the guest its writes or lifts the limit, and nothing else.

use super::request::Extent;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use wire::message::WRITE_COUNTER_BYTES;

/// The unit that is counted: that of an ephemeral disk's copies, and of most file systems.
const BLOCK_BYTES: u64 = 4096;
/// What a discarded range costs at most: the blocks at its ends, which an ephemeral disk has to write.
const DISCARD_BYTES: u64 = 2 * BLOCK_BYTES;

/// Why the counter cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum BudgetError {
    /// Its size is not known.
    #[error("the size of the counter of disk writes is not known")]
    Size(#[source] nix::errno::Errno),
    /// It is too small.
    #[error("the counter of disk writes has {0} bytes instead of {WRITE_COUNTER_BYTES}")]
    WrongSize(i64),
    /// It cannot be mapped.
    #[error("the counter of disk writes cannot be mapped")]
    Map(#[source] MmapRegionError),
}

/// A share in the counter.
#[derive(Debug)]
pub(super) struct Budget {
    counter: MmapRegion,
    limit_bytes: u64,
}

impl Budget {
    /// Maps the counter, of which `limit_bytes` may be spent.
    pub(super) fn map(fd: OwnedFd, limit_bytes: u64) -> Result<Self, BudgetError> {
        let size = nix::sys::stat::fstat(&fd).map_err(BudgetError::Size)?.st_size;
        if usize::try_from(size) != Ok(WRITE_COUNTER_BYTES) {
            return Err(BudgetError::WrongSize(size));
        }
        let file = FileOffset::new(File::from(fd), 0);
        let counter = MmapRegion::from_file(file, WRITE_COUNTER_BYTES).map_err(BudgetError::Map)?;
        Ok(Self { counter, limit_bytes })
    }

    /// Spends `bytes`, or nothing if that is more than is left.
    pub(super) fn spend(&self, bytes: u64) -> bool {
        // The region holds the counter, by its size; where it did not, nothing could be spent.
        let Ok(spent) = self.counter.get_atomic_ref::<AtomicU64>(0) else { return false };
        let take = |spent: u64| spent.checked_add(bytes).filter(|&sum| sum <= self.limit_bytes);
        spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// What a write to `extent` costs: the whole blocks that it touches.
pub(super) fn cost_of_write(extent: &Extent) -> u64 {
    let start = extent.start().saturating_sub(extent.start() % BLOCK_BYTES);
    if extent.is_empty() { 0 } else { extent.end().next_multiple_of(BLOCK_BYTES).saturating_sub(start) }
}

/// What discarding `extent` costs.
pub(super) fn cost_of_discard(extent: &Extent) -> u64 {
    cost_of_write(extent).min(DISCARD_BYTES)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use wire::SectorCount;

    pub(in super::super) fn counter() -> OwnedFd {
        let fd = memfd_create(c"counter", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, WRITE_COUNTER_BYTES.try_into().unwrap()).unwrap();
        fd
    }

    #[test]
    fn two_disks_spend_from_one_budget_and_no_byte_more() {
        let fd = counter();
        let first = Budget::map(fd.try_clone().unwrap(), 10_000).unwrap();
        let second = Budget::map(fd, 10_000).unwrap();
        assert!(first.spend(4096) && second.spend(4096));
        assert!(!first.spend(4096) && !second.spend(1809));
        assert!(second.spend(1808) && first.spend(0));
        assert!(!first.spend(1));
        assert!(!first.spend(u64::MAX));
    }

    #[test]
    fn counter_of_another_size_is_refused() {
        let fd = memfd_create(c"counter", MFdFlags::MFD_CLOEXEC).unwrap();
        assert!(matches!(Budget::map(fd, 1), Err(BudgetError::WrongSize(0))));
    }

    #[test]
    fn whole_blocks_are_counted() {
        let extent =
            |sector, sectors: u64| Extent::new(sector, sectors * 512, SectorCount::try_from(1 << 20).unwrap()).unwrap();
        assert_eq!(cost_of_write(&extent(0, 0)), 0);
        assert_eq!(cost_of_write(&extent(3, 1)), 4096);
        assert_eq!(cost_of_write(&extent(7, 2)), 8192);
        assert_eq!(cost_of_write(&extent(8, 8)), 4096);
        assert_eq!(cost_of_discard(&extent(8, 8)), 4096);
        assert_eq!(cost_of_discard(&extent(1, 4000)), 8192);
    }
}
