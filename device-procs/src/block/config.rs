//! What the device offers: feature bits and configuration space.

use super::request::{MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_ZERO_RANGES, MAX_ZERO_SECTORS, SEG_MAX};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use wire::SectorCount;

/// vhost-user's own feature bit ("vhost-user protocol", `VHOST_USER_F_PROTOCOL_FEATURES`).
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VIRTIO_F_EVENT_IDX` as a mask.
pub(super) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// `VIRTIO_BLK_F_FLUSH` as a mask.
pub(super) const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// The longest configuration space that a front end may ask for ("vhost-user protocol", `VHOST_USER_CONFIG_SIZE`); what
/// is beyond ours reads as zeros.
const MAX_CONFIG_BYTES: usize = 4096;

/// The feature bits offered (virtio 1.2 §5.2.3 and §6).
pub(super) fn features(read_only: bool, queues: u16) -> u64 {
    let mut bits = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
    ];
    if read_only {
        bits.push(VIRTIO_BLK_F_RO);
    } else {
        bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
    }
    if queues > 1 {
        bits.push(VIRTIO_BLK_F_MQ);
    }
    bits.into_iter().fold(PROTOCOL_FEATURES, |mask, bit| mask | 1 << bit)
}

/// A part of the configuration space; `None` when it is outside.
pub(super) fn read(capacity: SectorCount, read_only: bool, queues: u16, offset: u32, len: u32) -> Option<Vec<u8>> {
    let mut space = space(capacity, read_only, queues);
    space.resize(MAX_CONFIG_BYTES, 0);
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    space.get(start..end).map(<[u8]>::to_vec)
}

/// `struct virtio_blk_config` (virtio 1.2 §5.2.4), up to `write_zeroes_may_unmap` and its padding.
fn space(capacity: SectorCount, read_only: bool, queues: u16) -> Vec<u8> {
    // 4 KiB, the block size of most file systems and the unit of an ephemeral disk.
    const DISCARD_ALIGNMENT_SECTORS: u32 = 8;
    let if_writable = |value: u32| if read_only { 0 } else { value };
    let mut space = Vec::with_capacity(60);
    space.extend(capacity.get().to_le_bytes());
    space.extend(0u32.to_le_bytes()); // size_max, not offered
    space.extend(SEG_MAX.to_le_bytes());
    space.extend([0; 4]); // geometry, not offered
    space.extend(512u32.to_le_bytes()); // blk_size
    space.extend([0; 8]); // topology, not offered
    space.extend([0; 2]); // writeback, not offered, and padding
    space.extend(queues.to_le_bytes());
    space.extend(if_writable(MAX_DISCARD_SECTORS).to_le_bytes());
    space.extend(if_writable(MAX_DISCARD_RANGES).to_le_bytes());
    space.extend(if_writable(DISCARD_ALIGNMENT_SECTORS).to_le_bytes());
    space.extend(if_writable(MAX_ZERO_SECTORS).to_le_bytes());
    space.extend(if_writable(MAX_ZERO_RANGES).to_le_bytes());
    space.extend([u8::from(!read_only), 0, 0, 0]); // write_zeroes_may_unmap
    space
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;
    use virtio_bindings::virtio_blk::virtio_blk_config;

    fn field(offset: usize) -> u32 {
        let offset = u32::try_from(offset).unwrap();
        let bytes = read(SectorCount::try_from(7).unwrap(), false, 1, offset, 4).unwrap();
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    #[test]
    fn fields_are_where_the_specification_says() {
        assert_eq!(space(SectorCount::try_from(7).unwrap(), false, 1).len(), 60);
        assert_eq!(field(offset_of!(virtio_blk_config, capacity)), 7);
        assert_eq!(field(offset_of!(virtio_blk_config, seg_max)), 126);
        assert_eq!(field(offset_of!(virtio_blk_config, blk_size)), 512);
        assert_eq!(field(offset_of!(virtio_blk_config, num_queues)) & 0xffff, 1);
        assert_eq!(field(offset_of!(virtio_blk_config, max_discard_sectors)), MAX_DISCARD_SECTORS);
        assert_eq!(field(offset_of!(virtio_blk_config, max_write_zeroes_seg)), MAX_ZERO_RANGES);
        assert_eq!(field(offset_of!(virtio_blk_config, write_zeroes_may_unmap)), 1);
    }

    #[test]
    fn config_beyond_the_end_is_zero_and_far_beyond_refused() {
        let capacity = SectorCount::try_from(7).unwrap();
        assert_eq!(read(capacity, false, 1, 60, 4), Some(vec![0; 4]));
        assert_eq!(read(capacity, false, 1, 4090, 8), None);
        assert_eq!(read(capacity, false, 1, u32::MAX, u32::MAX), None);
    }

    #[test]
    fn read_only_disk_offers_no_way_to_write() {
        let writable = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        assert_eq!(features(true, 1) & (writable | 1 << VIRTIO_BLK_F_RO), 1 << VIRTIO_BLK_F_RO);
        assert_eq!(features(false, 1) & (writable | 1 << VIRTIO_BLK_F_RO), writable);
        assert_eq!(features(false, 2) & !features(false, 1), 1 << VIRTIO_BLK_F_MQ);
    }
}
