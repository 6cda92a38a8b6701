//! Virtio devices as the guest sees them. The devices themselves are processes of their own, reached by vhost-user.
//!
//! [`device`] is the part that any transport needs, [`mmio`] the virtio-mmio registers on top of it, [`view`] the memory in
//! which the guest reads them, [`vhost`] the control thread's conversation with the back ends and [`request`] how a vCPU
//! thread asks for it.

pub mod device;
pub mod mmio;
pub mod request;
pub mod vhost;
pub mod view;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use wire::message::StopReason;

/// The queues of a block device: one, because a disk has one kick and one call eventfd.
pub const QUEUES: usize = 1;
/// The largest queue that a driver may configure, in descriptors.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// The device ID of a block device (virtio 1.2 §5.2.1).
pub const DEVICE_ID_BLOCK: u32 = 2;
/// Bytes in the configuration space of a block device, `struct virtio_blk_config` up to `write_zeroes_may_unmap` and
/// its padding (virtio 1.2 §5.2.4).
pub const BLOCK_CONFIG_BYTES: u32 = 60;

/// The features of virtio 1.2 §5.2.3 and §6 that this transport and a back end may offer together: SIZE_MAX, SEG_MAX,
/// GEOMETRY, RO, BLK_SIZE, FLUSH, TOPOLOGY, DISCARD, WRITE_ZEROES, INDIRECT_DESC, EVENT_IDX and VERSION_1.
///
/// Deliberately absent: CONFIG_WCE (the configuration space is read-only) and MQ (there is one queue).
pub const FEATURES: u64 = (1 << 1)
    | (1 << 2)
    | (1 << 4)
    | (1 << 5)
    | (1 << 6)
    | (1 << 9)
    | (1 << 10)
    | (1 << 13)
    | (1 << 14)
    | (1 << 28)
    | (1 << 29)
    | VERSION_1;
/// VIRTIO_F_VERSION_1 (virtio 1.2 §6).
pub const VERSION_1: u64 = 1 << 32;

/// Where the driver put a split virtqueue (virtio 1.2 §2.7), checked against guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// The number of descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

/// What is wrong with a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Not a power of two from 1 to [`QUEUE_SIZE_MAX`].
    #[error("its size is no power of two up to 256")]
    Size,
    /// A part is not aligned.
    #[error("its {0} is not aligned")]
    Alignment(&'static str),
    /// A part is not wholly in one piece of guest memory.
    #[error("its {0} is not in guest memory")]
    Memory(&'static str),
}

impl Queue {
    /// Checks size, alignment and place of each part (virtio 1.2 §2.7).
    ///
    /// # Errors
    /// When one of them is wrong.
    pub fn check(&self, memory: &GuestMemoryMmap) -> Result<(), QueueError> {
        if !self.size.is_power_of_two() || self.size > QUEUE_SIZE_MAX {
            return Err(QueueError::Size);
        }
        let size = usize::from(self.size);
        let parts = [
            ("descriptor table", self.descriptors, 16, size.saturating_mul(16)),
            ("available ring", self.avail, 2, size.saturating_mul(2).saturating_add(6)),
            ("used ring", self.used, 4, size.saturating_mul(8).saturating_add(6)),
        ];
        for (name, address, alignment, bytes) in parts {
            let address = GuestAddress(address);
            if !address.raw_value().is_multiple_of(alignment) {
                return Err(QueueError::Alignment(name));
            }
            if address.raw_value().checked_add(bytes as u64).is_none() || !memory.check_range(address, bytes) {
                return Err(QueueError::Memory(name));
            }
        }
        Ok(())
    }
}

/// What a device process offers; asked once, before the guest runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The features that the driver may choose from; includes VERSION_1.
    pub features: u64,
    /// The configuration space.
    pub config: Vec<u8>,
}

/// The device behind a transport. Its failures end the run.
pub trait Backend: Send {
    /// Starts the queues with the features that the driver chose.
    ///
    /// # Errors
    /// When the device process fails.
    fn activate(&mut self, features: u64, queues: &[Queue]) -> Result<(), StopReason>;

    /// Stops the queues; afterwards the device process does not touch guest memory for them.
    ///
    /// # Errors
    /// When the device process fails.
    fn reset(&mut self) -> Result<(), StopReason>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(0x10_0000), 0x1000)]).unwrap()
    }

    const GOOD: Queue = Queue { size: 16, descriptors: 0x1000, avail: 0x2000, used: 0x3000 };

    #[test]
    fn queue_in_memory_is_accepted() {
        assert_eq!(GOOD.check(&memory()), Ok(()));
        let at_the_end = Queue { used: 0x10000 - 6 - 16 * 8 - 2, ..GOOD };
        assert_eq!(at_the_end.check(&memory()), Ok(()));
    }

    #[test]
    fn queue_of_a_wrong_size_is_refused() {
        for size in [0, 3, 512, 0xffff] {
            assert_eq!(Queue { size, ..GOOD }.check(&memory()), Err(QueueError::Size));
        }
    }

    #[test]
    fn unaligned_queue_is_refused() {
        let refused = [
            (Queue { descriptors: 0x1008, ..GOOD }, "descriptor table"),
            (Queue { avail: 0x2001, ..GOOD }, "available ring"),
            (Queue { used: 0x3002, ..GOOD }, "used ring"),
        ];
        for (queue, part) in refused {
            assert_eq!(queue.check(&memory()), Err(QueueError::Alignment(part)));
        }
    }

    #[test]
    fn queue_outside_of_memory_is_refused() {
        let refused = [
            (Queue { descriptors: 0xFF10, ..GOOD }, "descriptor table"),
            (Queue { avail: 0x10_1000, ..GOOD }, "available ring"),
            (Queue { used: u64::MAX - 3, ..GOOD }, "used ring"),
        ];
        for (queue, part) in refused {
            assert_eq!(queue.check(&memory()), Err(QueueError::Memory(part)));
        }
    }
}
