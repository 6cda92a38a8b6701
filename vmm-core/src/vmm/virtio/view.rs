//! The registers of all disks as memory that the guest reads without leaving (KVM API KVM_MEM_READONLY).
//!
//! The guest is distrusted: it cannot change a byte of this memory, its writes leave it as they do without. The vmm writes
//! what [`super::mmio`] would answer, and never reads it back. It is not part of guest memory, so that no queue can lie in
//! it and no device process has it.

use crate::arch::cache;
use crate::arch::layout::VIRTIO_WINDOW_BYTES;
use nix::errno::Errno;
use nix::unistd::{SysconfVar, sysconf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use wire::DiskCount;

/// Why there is no such memory.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The size of a page is not known.
    #[error("the host does not tell the size of its pages")]
    PageSize(#[source] Option<Errno>),
    /// The mapping failed.
    #[error("memory for the registers of the disks could not be mapped")]
    Map(#[source] MmapRegionError),
}

/// The registers of all disks, from the first window on, up to the end of a page.
#[derive(Debug, Clone)]
pub struct Views(Arc<MmapRegion>);

impl Views {
    /// Memory for the windows of `disks`, which reads all ones until it is written; `None` without disks.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn map(disks: DiskCount) -> Result<Option<Self>, ViewError> {
        let page = sysconf(SysconfVar::PAGE_SIZE).map_err(|errno| ViewError::PageSize(Some(errno)))?;
        let page = page.and_then(|bytes| usize::try_from(bytes).ok()).ok_or(ViewError::PageSize(None))?;
        // KVM takes whole pages of the host, which may be larger than a window.
        let bytes = window_start(disks.get()).next_multiple_of(page);
        if bytes == 0 {
            return Ok(None);
        }
        let memory = MmapRegion::new(bytes).map_err(ViewError::Map)?;
        // KVM writes it back when the guest first reads it. The mapping has this size.
        memory.as_volatile_slice().write_slice(&vec![0xff; bytes], 0).unwrap_or(());
        Ok(Some(Self(Arc::new(memory))))
    }

    /// The mapping.
    #[must_use]
    pub fn memory(&self) -> &MmapRegion {
        &self.0
    }

    /// The registers of disk `n`.
    #[must_use]
    pub fn of(&self, n: u8) -> View {
        View { views: self.clone(), start: window_start(n) }
    }
}

fn window_start(n: u8) -> usize {
    // A window is 4 KiB.
    usize::from(n).saturating_mul(usize::try_from(VIRTIO_WINDOW_BYTES).unwrap_or(usize::MAX))
}

/// The registers of one disk.
#[derive(Debug)]
pub struct View {
    views: Views,
    start: usize,
}

impl View {
    /// Has the guest read `word` at `offset`, a multiple of 4, of the window.
    pub fn show(&self, offset: u64, word: u32) {
        let memory = &self.views.0;
        let at = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(self.start);
        // Windows have their registers well before their end.
        if memory.as_volatile_slice().store(word.to_le(), at, Ordering::Release).is_ok() {
            cache::write_back(memory.as_ptr().addr().saturating_add(at));
        }
    }

    /// What the guest reads.
    #[cfg(test)]
    pub(super) fn shown(&self, offset: u64) -> Option<u32> {
        let at = usize::try_from(offset).ok()?.checked_add(self.start)?;
        self.views.0.as_volatile_slice().load::<u32>(at, Ordering::Acquire).ok().map(u32::from_le)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views(disks: u8) -> Views {
        Views::map(DiskCount::try_from(disks).unwrap()).unwrap().unwrap()
    }

    #[test]
    fn memory_is_whole_pages_of_ones() {
        let views = views(3);
        assert!(views.memory().size() >= 3 * 0x1000 && views.memory().size().is_multiple_of(0x1000));
        let whole = views.of(0);
        assert!((0..views.memory().size() as u64).step_by(4).all(|offset| whole.shown(offset) == Some(u32::MAX)));
    }

    #[test]
    fn word_is_shown_in_its_window_alone() {
        let views = views(2);
        views.of(1).show(0x70, 0x1122_3344);
        assert_eq!(views.of(1).shown(0x70), Some(0x1122_3344));
        assert_eq!((views.of(0).shown(0x70), views.of(0).shown(0x1070)), (Some(u32::MAX), Some(0x1122_3344)));
    }

    #[test]
    fn word_beyond_the_end_is_shown_nowhere() {
        let view = views(1).of(0);
        for offset in [view.views.memory().size() as u64, u64::MAX - 3, u64::MAX] {
            view.show(offset, 0);
        }
        assert!((0..view.views.memory().size() as u64).step_by(4).all(|offset| view.shown(offset) == Some(u32::MAX)));
    }

    #[test]
    fn machine_without_disks_has_none() {
        assert!(Views::map(DiskCount::try_from(0).unwrap()).unwrap().is_none());
    }
}
