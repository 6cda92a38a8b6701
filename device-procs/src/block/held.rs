//! Buffers in guest memory that outlive the look at their chain: the kernel works on them while this process does not.
//!
//! Promises that they stay mapped as long as the value lives, whatever the front end does to the memory table meanwhile: it
//! holds the mapping itself. What is not inside that mapping is never held.
#![allow(unsafe_code, reason = "a slice of guest memory has the lifetime of a borrow, and not that of its mapping")]

use super::buffers::Buffers;
use super::request::Memory;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, VolatileSlice};

/// Buffers, and the mapping that they are in.
#[derive(Debug)]
pub struct Held {
    /// Valid as long as `mapping` lives.
    buffers: Buffers<'static>,
    mapping: Arc<Memory>,
}

impl Held {
    /// Holds `buffers`; none when a byte of them is outside of `memory`.
    #[must_use]
    pub fn new(memory: &Arc<Memory>, buffers: &Buffers<'_>) -> Option<Self> {
        let mut held = Buffers::default();
        for slice in buffers.slices() {
            let start = slice.ptr_guard_mut().as_ptr();
            let (at, len) = (start as usize, slice.len());
            let is_inside = memory.iter().any(|region| {
                // The region's first byte on the host.
                let base = region.get_host_address(MemoryRegionAddress(0)).map_or(0, |base| base as usize);
                let end = at.checked_sub(base).and_then(|offset| offset.checked_add(len));
                base != 0 && end.is_some_and(|end| end as u64 <= region.len())
            });
            if !is_inside {
                return None;
            }
            // SAFETY: the `len` bytes from `start` on are inside a mapping that `memory` owns, as was just checked, and
            // `mapping` below keeps for as long as the slice can be had of this value. It is guest memory, which everybody
            // accesses by volatile means only.
            held.push(unsafe { VolatileSlice::new(start, len) });
        }
        Some(Self { buffers: held, mapping: Arc::clone(memory) })
    }

    /// No buffers.
    #[must_use]
    pub fn nothing(memory: &Arc<Memory>) -> Self {
        Self { buffers: Buffers::default(), mapping: Arc::clone(memory) }
    }

    /// The buffers.
    #[must_use]
    pub fn buffers(&self) -> &Buffers<'_> {
        &self.buffers
    }

    /// Drops the first `count` bytes, or everything.
    pub(super) fn advance(&mut self, count: usize) {
        if self.buffers.drop_front(count).is_none() {
            self.buffers = Buffers::default();
        }
    }

    /// The mapping that they are in.
    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.mapping
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn buffers_stay_mapped_after_everybody_else_has_let_go() {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
        memory.write_slice(b"abcdef", GuestAddress(8)).unwrap();
        let mut buffers = Buffers::default();
        buffers.push(memory.get_slice(GuestAddress(8), 6).unwrap());
        let mut held = Held::new(&memory, &buffers).unwrap();
        drop(memory);
        held.advance(2);
        let mut bytes = [0; 4];
        assert_eq!((held.buffers().copy_to(&mut bytes), &bytes), (4, b"cdef"));
    }

    #[test]
    fn buffers_of_another_memory_are_refused() {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
        assert!(Held::new(&memory, &Buffers::from(&mut [0; 8][..])).is_none());
    }
}
