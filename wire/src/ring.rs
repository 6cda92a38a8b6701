//! The posted-write ring: register writes from the vmm (producer) to serial (consumer) through shared memory.
//!
//! Neither side trusts the other. Each keeps its own index in private memory and only publishes it; what it reads of the
//! other's index is checked against what is possible, and slots are read once. A full ring drops the write and counts
//! it, as a UART does that is overrun; the producer shows the guest a busy transmitter long before.
//!
//! Layout, all little endian, at these byte offsets: 0 producer index, 64 consumer index, 128 consumer asleep (0 or 1),
//! 192 line status that the consumer publishes, 4096 slots of two bytes (register offset, value).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// The size in bytes of the memfd that holds a ring.
pub const RING_BYTES: usize = 4096 + 2 * SLOTS as usize;
/// The number of slots, a power of two.
pub const SLOTS: u32 = 8192;

const PRODUCED: usize = 0;
const CONSUMED: usize = 64;
const ASLEEP: usize = 128;
const LINE_STATUS: usize = 192;
const DATA: usize = 4096;

/// Why a ring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The descriptor cannot be mapped.
    #[error("the posted-write ring cannot be mapped")]
    Map(#[source] vm_memory::mmap::MmapRegionError),
    /// The mapping is smaller than a ring.
    #[error("the posted-write ring is too small")]
    Size(#[source] vm_memory::VolatileMemoryError),
    /// The other side published an index that cannot be.
    #[error("the other side of the posted-write ring claims {0} waiting writes of at most 8192")]
    Index(u32),
}

/// One register write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostedWrite {
    /// The register's offset, 0 to 7.
    pub offset: u8,
    /// The value.
    pub value: u8,
}

#[derive(Debug)]
struct Shared(MmapRegion);

impl Shared {
    fn map(memfd: OwnedFd) -> Result<Self, RingError> {
        MmapRegion::from_file(FileOffset::new(File::from(memfd), 0), RING_BYTES).map(Self).map_err(RingError::Map)
    }

    fn slice(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }

    // The offsets are constants inside the mapping, so these accesses cannot fail.
    fn load(&self, at: usize) -> u32 {
        self.slice().load(at, Ordering::Acquire).unwrap_or(0)
    }

    fn store(&self, at: usize, value: u32) {
        self.slice().store(value, at, Ordering::Release).unwrap_or(());
    }
}

/// The vmm's side.
#[derive(Debug)]
pub struct Producer {
    shared: Shared,
    produced: u32,
    dropped: u64,
}

/// What became of a posted write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// The consumer is awake and will see it.
    Quiet,
    /// The consumer sleeps: ring the doorbell.
    RingDoorbell,
    /// The ring is full: the write is lost.
    Dropped,
}

impl Producer {
    /// Maps the ring in `memfd`.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn map(memfd: OwnedFd) -> Result<Self, RingError> {
        Shared::map(memfd).map(|shared| Self { shared, produced: 0, dropped: 0 })
    }

    /// How many more writes fit.
    ///
    /// # Errors
    /// When the consumer published an impossible index.
    pub fn space(&self) -> Result<u32, RingError> {
        let waiting = self.produced.wrapping_sub(self.shared.load(CONSUMED));
        SLOTS.checked_sub(waiting).ok_or(RingError::Index(waiting))
    }

    /// Posts a write.
    ///
    /// # Errors
    /// When the consumer published an impossible index.
    pub fn post(&mut self, write: PostedWrite) -> Result<Posted, RingError> {
        if self.space()? == 0 {
            self.dropped = self.dropped.saturating_add(1);
            return Ok(Posted::Dropped);
        }
        let slot = DATA.saturating_add(2 * (self.produced % SLOTS) as usize);
        let word = u16::from_le_bytes([write.offset, write.value]);
        self.shared.slice().store(word, slot, Ordering::Relaxed).unwrap_or(());
        self.produced = self.produced.wrapping_add(1);
        self.shared.store(PRODUCED, self.produced);
        // Pairs with the fence in `Consumer::sleep`: either the consumer sees this write, or it is seen asleep here.
        fence(Ordering::SeqCst);
        if self.shared.load(ASLEEP) == 0 { Ok(Posted::Quiet) } else { Ok(Posted::RingDoorbell) }
    }

    /// The line status register as the consumer last published it.
    #[must_use]
    pub fn line_status(&self) -> u8 {
        self.shared.load(LINE_STATUS).to_le_bytes()[0]
    }

    /// Writes that were lost because the ring was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// Serial's side.
#[derive(Debug)]
pub struct Consumer {
    shared: Shared,
    consumed: u32,
}

impl Consumer {
    /// Maps the ring in `memfd`.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn map(memfd: OwnedFd) -> Result<Self, RingError> {
        Shared::map(memfd).map(|shared| Self { shared, consumed: 0 })
    }

    /// Takes the next write, if there is one. Free its slot with [`Consumer::release`] once some are taken.
    ///
    /// # Errors
    /// When the producer published an impossible index.
    pub fn take(&mut self) -> Result<Option<PostedWrite>, RingError> {
        let waiting = self.shared.load(PRODUCED).wrapping_sub(self.consumed);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > SLOTS {
            return Err(RingError::Index(waiting));
        }
        let slot = DATA.saturating_add(2 * (self.consumed % SLOTS) as usize);
        let word: u16 = self.shared.slice().load(slot, Ordering::Relaxed).map_err(RingError::Size)?;
        self.consumed = self.consumed.wrapping_add(1);
        let [offset, value] = word.to_le_bytes();
        Ok(Some(PostedWrite { offset: offset & 7, value }))
    }

    /// Gives the slots of all taken writes back to the producer.
    pub fn release(&self) {
        self.shared.store(CONSUMED, self.consumed);
    }

    /// Publishes the line status register.
    pub fn publish_line_status(&self, value: u8) {
        self.shared.store(LINE_STATUS, u32::from(value));
    }

    /// Announces that the consumer will wait for the doorbell; false when a write came in meanwhile and it must not.
    #[must_use]
    pub fn sleep(&self) -> bool {
        self.shared.store(ASLEEP, 1);
        fence(Ordering::SeqCst);
        if self.shared.load(PRODUCED) == self.consumed {
            return true;
        }
        self.wake();
        false
    }

    /// Announces that the consumer looks at the ring again.
    pub fn wake(&self) {
        self.shared.store(ASLEEP, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn ring() -> (Producer, Consumer, Shared) {
        let memfd = memfd_create(c"ring", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memfd, RING_BYTES as i64).unwrap();
        let consumer = Consumer::map(memfd.try_clone().unwrap()).unwrap();
        let raw = Shared::map(memfd.try_clone().unwrap()).unwrap();
        (Producer::map(memfd).unwrap(), consumer, raw)
    }

    #[test]
    fn writes_arrive_in_order_across_the_wrap() {
        let (mut producer, mut consumer, _) = ring();
        for round in 0..3 * SLOTS {
            let write = PostedWrite { offset: (round % 8) as u8, value: (round % 251) as u8 };
            assert_eq!(producer.post(write).unwrap(), Posted::Quiet);
            assert_eq!(consumer.take().unwrap(), Some(write));
            consumer.release();
        }
        assert_eq!(consumer.take().unwrap(), None);
    }

    #[test]
    fn full_ring_drops_and_counts() {
        let (mut producer, mut consumer, _) = ring();
        let write = PostedWrite { offset: 0, value: b'x' };
        for _ in 0..SLOTS {
            assert_eq!(producer.post(write).unwrap(), Posted::Quiet);
        }
        assert_eq!(producer.post(write).unwrap(), Posted::Dropped);
        assert_eq!(producer.dropped(), 1);
        consumer.take().unwrap();
        consumer.release();
        assert_eq!(producer.space().unwrap(), 1);
    }

    #[test]
    fn sleeping_consumer_is_rung_and_never_sleeps_over_a_write() {
        let (mut producer, consumer, _) = ring();
        assert!(consumer.sleep());
        let write = PostedWrite { offset: 0, value: 1 };
        assert_eq!(producer.post(write).unwrap(), Posted::RingDoorbell);
        assert!(!consumer.sleep());
        assert_eq!(producer.post(write).unwrap(), Posted::Quiet);
    }

    #[test]
    fn impossible_index_of_the_producer_is_an_error() {
        let (_producer, mut consumer, raw) = ring();
        raw.store(PRODUCED, SLOTS + 1);
        assert!(matches!(consumer.take(), Err(RingError::Index(8193))));
    }

    #[test]
    fn impossible_index_of_the_consumer_is_an_error() {
        let (mut producer, _consumer, raw) = ring();
        raw.store(CONSUMED, 5);
        assert!(producer.post(PostedWrite { offset: 0, value: 0 }).is_err());
    }
}
