//! Each kind of request, done and refused, and the notifications.

use super::*;
use nix::errno::Errno;
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_GET_ID as GET_ID, VIRTIO_BLK_T_IN as IN,
    VIRTIO_BLK_T_OUT as OUT, VIRTIO_BLK_T_WRITE_ZEROES as ZEROES,
};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// 100 sectors, each filled with its number.
fn image() -> Spy {
    let content: Vec<u8> = (0..100u8).flat_map(|sector| [sector; 512]).collect();
    Spy::new(&content)
}

#[test]
fn read_fills_the_buffer_across_memory_regions() {
    for mode in [DiskMode::ReadOnly, DiskMode::Ephemeral, DiskMode::ReadWrite] {
        let mut bench = Bench::new(mode, &image());
        let (status, data) = bench.request(IN, 7, &[], 0x2000);
        assert_eq!((status, bench.driver.last_used().1), (OK, 0x2001));
        assert_eq!(data, (7..23u8).flat_map(|sector| [sector; 512]).collect::<Vec<_>>());
    }
}

#[test]
fn write_reaches_the_image_of_a_read_write_disk() {
    let image = image();
    let mut bench = Bench::new(DiskMode::ReadWrite, &image);
    assert_eq!(bench.request(OUT, 99, &[0xaa; 512], 0).0, OK);
    assert_eq!(bench.driver.last_used().1, 1);
    assert_eq!(image.content()[99 * 512..], [0xaa; 512]);
    assert_eq!(image.content()[98 * 512..99 * 512], [98; 512]);
}

#[test]
fn write_to_an_ephemeral_disk_is_read_back_and_leaves_the_image_alone() {
    let image = image();
    let before = image.content();
    let mut bench = Bench::new(DiskMode::Ephemeral, &image);
    assert_eq!(bench.request(OUT, 5, &[0xaa; 1024], 0).0, OK);
    assert_eq!(bench.request(DISCARD, 0, &range(0, 3, 0), 0).0, OK);
    assert_eq!(bench.request(FLUSH, 0, &[], 0).0, OK);
    let (_status, data) = bench.request(IN, 2, &[], 6 * 512);
    let expected: Vec<u8> = [0, 3, 4, 0xaa, 0xaa, 7].into_iter().flat_map(|byte| [byte; 512]).collect();
    assert_eq!(data, expected);
    assert_eq!(image.content(), before);
    assert_eq!((image.0.writes.load(Ordering::Relaxed), image.0.syncs.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn write_to_a_read_only_disk_is_refused() {
    let image = image();
    let mut bench = Bench::new(DiskMode::ReadOnly, &image);
    assert_eq!(bench.request(OUT, 5, &[0xaa; 512], 0).0, IOERR);
    assert_eq!(bench.request(DISCARD, 0, &range(0, 3, 0), 0).0, IOERR);
    assert_eq!(bench.request(ZEROES, 0, &range(0, 3, 0), 0).0, IOERR);
    assert_eq!(image.0.writes.load(Ordering::Relaxed), 0);
    assert_eq!(image.0.allocations.load(Ordering::Relaxed), 0);
}

#[test]
fn flush_reaches_fdatasync() {
    let image = image();
    let mut bench = Bench::new(DiskMode::ReadWrite, &image);
    bench.request(OUT, 0, &[1; 512], 0);
    assert_eq!(image.0.syncs.load(Ordering::Relaxed), 0);
    assert_eq!(bench.request(FLUSH, 0, &[], 0).0, OK);
    assert_eq!(image.0.syncs.load(Ordering::Relaxed), 1);
}

#[test]
fn write_is_durable_at_once_for_a_driver_without_flush() {
    let image = image();
    let mut bench = Bench::new(DiskMode::ReadWrite, &image);
    bench.disk.set_write_through(true);
    bench.request(OUT, 0, &[1; 512], 0);
    assert_eq!(image.0.syncs.load(Ordering::Relaxed), 1);
}

#[test]
fn host_failure_is_an_io_error_and_the_device_goes_on() {
    let image = image();
    let mut bench = Bench::new(DiskMode::ReadWrite, &image);
    image.fail(Errno::EIO);
    assert_eq!(bench.request(IN, 0, &[], 512).0, IOERR);
    assert_eq!(bench.driver.last_used().1, 1);
    assert_eq!(bench.request(OUT, 0, &[1; 512], 0).0, IOERR);
    assert_eq!(bench.request(FLUSH, 0, &[], 0).0, IOERR);
    assert_eq!(bench.request(DISCARD, 0, &range(0, 3, 0), 0).0, IOERR);
    *image.0.failure.lock().unwrap() = None;
    assert_eq!(bench.request(IN, 3, &[], 512), (OK, vec![3; 512]));
}

#[test]
fn image_that_became_shorter_is_an_io_error() {
    let image = image();
    let mut bench = Bench::new(DiskMode::ReadOnly, &image);
    image.0.file.set_len(700).unwrap();
    assert_eq!(bench.request(IN, 0, &[], 512).0, OK);
    assert_eq!(bench.request(IN, 1, &[], 512).0, IOERR);
}

#[test]
fn id_is_padded_with_zeros() {
    let mut bench = Bench::new(DiskMode::ReadOnly, &image());
    let (status, id) = bench.request(GET_ID, 0, &[], 20);
    assert_eq!((status, &id[..]), (OK, &b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]));
}

#[test]
fn id_without_a_buffer_is_refused() {
    let mut bench = Bench::new(DiskMode::ReadOnly, &image());
    assert_eq!(bench.request(GET_ID, 0, &[], 0).0, IOERR);
}

#[test]
fn unknown_type_is_unsupported() {
    let mut bench = Bench::new(DiskMode::ReadWrite, &image());
    for kind in [2, 3, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(bench.request(kind, 0, &[], 512).0, UNSUPP, "type {kind}");
    }
}

#[test]
fn zeroed_and_discarded_ranges_read_as_zeros() {
    for mode in [DiskMode::Ephemeral, DiskMode::ReadWrite] {
        for no_allocate in [false, true] {
            let image = image();
            image.0.no_allocate.store(no_allocate, Ordering::Relaxed);
            let mut bench = Bench::new(mode, &image);
            let ranges = [range(1, 2, 0), range(10, 20, 1)].concat();
            assert_eq!(bench.request(ZEROES, 0, &ranges, 0).0, OK);
            let (_status, data) = bench.request(IN, 0, &[], 31 * 512);
            let zeroed = |sector: usize| (1..3).contains(&sector) || (10..30).contains(&sector);
            for (sector, bytes) in data.chunks(512).enumerate() {
                let expected = if zeroed(sector) { 0 } else { u8::try_from(sector).unwrap() };
                assert_eq!(bytes, [expected; 512], "{mode:?} sector {sector}");
            }
            assert_eq!(bench.request(DISCARD, 0, &range(40, 8, 0), 0).0, OK);
            let expected = if no_allocate && mode == DiskMode::ReadWrite { 40 } else { 0 };
            assert_eq!(bench.request(IN, 40, &[], 512).1, [expected; 512], "{mode:?}");
        }
    }
}

#[test]
fn zeroed_range_that_keeps_its_space_is_written() {
    let image = image();
    let mut bench = Bench::new(DiskMode::ReadWrite, &image);
    assert_eq!(bench.request(ZEROES, 0, &range(1, 2, 0), 0).0, OK);
    assert_eq!(image.0.allocations.load(Ordering::Relaxed), 0);
    assert!(image.0.writes.load(Ordering::Relaxed) > 0);
}

#[test]
fn host_that_cannot_discard_is_asked_once() {
    let image = image();
    image.0.no_allocate.store(true, Ordering::Relaxed);
    let mut bench = Bench::new(DiskMode::ReadWrite, &image);
    for _ in 0..3 {
        assert_eq!(bench.request(DISCARD, 0, &range(0, 3, 0), 0).0, OK);
    }
    assert_eq!(image.0.allocations.load(Ordering::Relaxed), 1);
}

#[test]
fn wrong_ranges_are_refused_and_none_is_used() {
    let image = image();
    let mut bench = Bench::new(DiskMode::ReadWrite, &image);
    let good = range(0, 1, 0);
    let cases = [
        (ZEROES, vec![], IOERR),
        (ZEROES, good[..15].to_vec(), IOERR),
        (ZEROES, [&good[..], &good[..8]].concat(), IOERR),
        (ZEROES, good.repeat(3), IOERR),
        (DISCARD, good.repeat(17), IOERR),
        (ZEROES, [good.clone(), range(100, 1, 0)].concat(), IOERR),
        (ZEROES, [good.clone(), range(u64::MAX, 1, 0)].concat(), IOERR),
        (ZEROES, [good.clone(), range(0, u32::MAX, 0)].concat(), IOERR),
        (ZEROES, [good.clone(), range(0, 1, 2)].concat(), UNSUPP),
        (DISCARD, [good.clone(), range(0, 1, 1)].concat(), UNSUPP),
        (DISCARD, [good.clone(), range(99, 2, 0)].concat(), IOERR),
    ];
    for (kind, ranges, status) in cases {
        assert_eq!(bench.request(kind, 0, &ranges, 0).0, status, "type {kind}, {ranges:?}");
    }
    assert_eq!(bench.request(IN, 0, &[], 512), (OK, vec![0; 512]));
    assert_eq!(image.0.allocations.load(Ordering::Relaxed), 0);
    assert_eq!(image.0.writes.load(Ordering::Relaxed), 0);
}

/// Makes flushes available, each with a head of its own.
fn publish_flushes(bench: &mut Bench, count: u16) {
    bench.driver.put(BUFFERS, &header(FLUSH, 0));
    bench.driver.link(TABLE, &[(BUFFERS, 16, 0), (BUFFERS + 0x100, 1, WRITE)]);
    for head in 0..count {
        Desc(TABLE, 32, INDIRECT, 0).store(&bench.driver.memory, DESCRIPTORS, head.into());
        bench.driver.publish(head);
    }
}

#[test]
fn every_available_request_is_done_with_one_interrupt() {
    let mut bench = Bench::new(DiskMode::ReadOnly, &image());
    publish_flushes(&mut bench, 5);
    assert_eq!(bench.process().unwrap(), Progress::Idle);
    assert_eq!((bench.driver.used_index(), signals(&bench.call)), (5, 1));
    assert_eq!(bench.process().unwrap(), Progress::Idle);
    assert_eq!(signals(&bench.call), 0);
}

#[test]
fn full_ring_is_a_batch_after_which_the_sockets_have_their_turn() {
    let mut bench = Bench::new(DiskMode::ReadOnly, &image());
    publish_flushes(&mut bench, QUEUE_SIZE);
    assert_eq!(bench.process().unwrap(), Progress::More);
    assert!(bench.ring.is_pending());
    assert_eq!(bench.driver.used_index(), QUEUE_SIZE);
    assert_eq!(bench.process().unwrap(), Progress::Idle);
    assert!(!bench.ring.is_pending());
}

#[test]
fn much_data_ends_a_batch_early() {
    // Zeros that the host cannot allocate are written: 16 MiB by one request.
    let mut bench = Bench::new(DiskMode::ReadWrite, &{
        let image = Spy::new(&[]);
        image.0.file.set_len(16 << 20).unwrap();
        image.0.no_allocate.store(true, Ordering::SeqCst);
        image
    });
    bench.driver.put(BUFFERS, &header(ZEROES, 0));
    bench.driver.put(BUFFERS + 0x1000, &range(0, 1 << 15, 0));
    bench.driver.link(DESCRIPTORS, &[(BUFFERS, 16, 0), (BUFFERS + 0x1000, 16, 0), (BUFFERS + 0x100, 1, WRITE)]);
    bench.driver.publish(0);
    bench.driver.publish(0);
    assert_eq!(bench.process().unwrap(), Progress::More);
    assert_eq!((bench.driver.used_index(), signals(&bench.call)), (1, 1));
    assert!(bench.ring.is_pending());
    assert_eq!(bench.process().unwrap(), Progress::More);
    assert_eq!(bench.process().unwrap(), Progress::Idle);
    assert_eq!(bench.driver.used_index(), 2);
}

#[test]
fn driver_that_wants_no_interrupt_gets_none() {
    let mut bench = Bench::new(DiskMode::ReadOnly, &image());
    bench.driver.put(AVAILABLE, &1u16.to_le_bytes());
    bench.request(FLUSH, 0, &[], 0);
    assert_eq!(signals(&bench.call), 0);
    bench.driver.put(AVAILABLE, &0u16.to_le_bytes());
    bench.request(FLUSH, 0, &[], 0);
    assert_eq!(signals(&bench.call), 1);
}

#[test]
fn event_index_decides_about_interrupt_and_kick() {
    let mut bench = Bench::new(DiskMode::ReadOnly, &image());
    bench.ring.stop();
    bench.start(true);
    let used_event = AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE);
    let avail_event = USED + 4 + 8 * u64::from(QUEUE_SIZE);
    bench.driver.put(used_event, &1u16.to_le_bytes());
    bench.request(FLUSH, 0, &[], 0);
    assert_eq!(signals(&bench.call), 0, "used entry 0 is not waited for");
    bench.request(FLUSH, 0, &[], 0);
    assert_eq!(signals(&bench.call), 1, "used entry 1 is");
    assert_eq!(bench.driver.get(avail_event, 2), 2u16.to_le_bytes());
}

#[test]
fn stopped_ring_continues_where_it_was() {
    let mut bench = Bench::new(DiskMode::ReadOnly, &image());
    bench.request(FLUSH, 0, &[], 0);
    bench.request(FLUSH, 0, &[], 0);
    let base = bench.ring.stop();
    assert_eq!(base, 2);
    assert!(bench.ring.kick().is_none());
    bench.driver.publish(0);
    assert_eq!(bench.process().unwrap(), Progress::Idle);
    assert_eq!(bench.driver.used_index(), 2, "a stopped ring is not touched");
    let memory = &bench.driver.memory;
    bench.ring.set_addresses(GuestAddress(DESCRIPTORS), GuestAddress(AVAILABLE), GuestAddress(USED)).unwrap();
    bench.ring.set_base(base.into()).unwrap();
    bench.ring.start(eventfd().0, memory, false, true).unwrap().unwrap();
    assert_eq!(bench.process().unwrap(), Progress::Idle);
    assert_eq!(bench.driver.used_index(), 3);
}

#[test]
fn running_ring_cannot_be_set_up_anew() {
    use crate::block::queue::SetupError;
    let mut bench = Bench::new(DiskMode::ReadOnly, &image());
    assert_eq!(bench.ring.set_size(16), Err(SetupError::Running));
    assert_eq!(bench.ring.set_base(0), Err(SetupError::Running));
    let address = GuestAddress(0x2000);
    assert_eq!(bench.ring.set_addresses(address, address, address), Err(SetupError::Running));
}

#[test]
fn wrong_setup_is_refused() {
    use crate::block::queue::SetupError;
    let mut ring = Ring::new().unwrap();
    for size in [0, 3, 512, 65_537] {
        assert_eq!(ring.set_size(size), Err(SetupError::Size), "{size}");
    }
    assert_eq!(ring.set_base(65_536), Err(SetupError::Base));
    let (good, odd) = (GuestAddress(0x1000), GuestAddress(0x1001));
    assert_eq!(ring.set_addresses(odd, good, good), Err(SetupError::Alignment));
    assert_eq!(ring.set_addresses(good, odd, good), Err(SetupError::Alignment));
    assert_eq!(ring.set_addresses(good, good, odd), Err(SetupError::Alignment));
    let started = ring.start(eventfd().0, &guest_memory(), false, true);
    assert!(matches!(started, Err(SetupError::NoAddresses)));
}

/// A disk whose guest may write `limit` bytes.
fn limited(mode: DiskMode, limit: u64) -> (Bench, Spy) {
    let image = Spy::new(&[1; 64 * 512]);
    let bench = Bench::new(mode, &image);
    let budget = crate::block::budget::Budget::map(crate::block::budget::tests::counter(), limit).unwrap();
    (Bench { disk: bench.disk.with_budget(Some(budget)), ..bench }, image)
}

#[test]
fn write_beyond_the_budget_fails_and_changes_nothing() {
    for mode in [DiskMode::ReadWrite, DiskMode::Ephemeral] {
        let (mut bench, _image) = limited(mode, 8192);
        assert_eq!(bench.request(OUT, 0, &[2; 4096], 0).0, OK);
        assert!(!bench.disk.take_over_budget());
        // Two blocks are touched, and one is left.
        assert_eq!(bench.request(OUT, 15, &[2; 1024], 0).0, IOERR);
        assert!(bench.disk.take_over_budget() && !bench.disk.take_over_budget());
        assert_eq!(bench.request(ZEROES, 0, &[range(8, 8, 0), range(16, 1, 0)].concat(), 0).0, IOERR);
        assert_eq!(bench.request(IN, 8, &[], 4096), (OK, vec![1; 4096]));
        assert_eq!(bench.request(ZEROES, 0, &range(8, 8, 0), 0).0, OK);
        assert_eq!(bench.request(OUT, 0, &[3; 512], 0).0, IOERR);
        assert_eq!((bench.request(FLUSH, 0, &[], 0).0, bench.request(IN, 0, &[], 512)), (OK, (OK, vec![2; 512])));
    }
}

#[test]
fn discards_cannot_write_without_end() {
    let (mut bench, _image) = limited(DiskMode::Ephemeral, 3 * 8192);
    // Each brings the rest of two clusters over.
    for _ in 0..3 {
        assert_eq!(bench.request(DISCARD, 0, &range(1, 40, 0), 0).0, OK);
    }
    assert_eq!(bench.request(DISCARD, 0, &range(1, 40, 0), 0).0, IOERR);
    assert!(bench.disk.take_over_budget());
}
