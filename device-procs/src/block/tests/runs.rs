//! Requests that are adjacent on the disk are done as one, and answered as if each had been alone.

use super::*;
use nix::errno::Errno;
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT};

const STATUS: u64 = BUFFERS + 0x800;
const DATA: u64 = BUFFERS + 0x1000;

/// Makes one-sector requests available, each with its kind and sector, without processing them.
fn publish(bench: &mut Bench, requests: &[(u32, u64)]) {
    for (n, &(kind, sector)) in (0..).zip(requests) {
        let header_at = BUFFERS + 16 * n;
        bench.driver.put(header_at, &header(kind, sector));
        bench.driver.put(STATUS + n, &[0xee]);
        let flags = if kind == IN { WRITE } else { 0 };
        let first = u16::try_from(3 * n).unwrap();
        for (index, (address, len, flags, next)) in (0..).zip([
            (header_at, 16, NEXT, first + 1),
            (DATA + 512 * n, 512, flags | NEXT, first + 2),
            (STATUS + n, 1, WRITE, 0),
        ]) {
            Desc(address, len, flags, next).store(&bench.driver.memory, DESCRIPTORS, usize::from(first) + index);
        }
        bench.driver.publish(first);
    }
}

fn statuses(bench: &Bench, count: usize) -> Vec<u8> {
    bench.driver.get(STATUS, count)
}

fn image() -> Spy {
    Spy::new(&(0..64u8).flat_map(|sector| [sector; 512]).collect::<Vec<_>>())
}

#[test]
fn adjacent_writes_are_one_call_and_each_is_answered() {
    let image = image();
    let mut bench = Bench::new(DiskMode::ReadWrite, &image);
    (0..4).for_each(|n| bench.driver.put(DATA + 512 * n, &[0x80 + u8::try_from(n).unwrap(); 512]));
    publish(&mut bench, &[(OUT, 3), (OUT, 4), (OUT, 5), (OUT, 9)]);
    assert_eq!(bench.process().unwrap(), Progress::Idle);
    assert_eq!((bench.driver.used_index(), statuses(&bench, 4)), (4, vec![0; 4]));
    assert_eq!(image.0.writes.load(Ordering::Relaxed), 2);
    let content = image.content();
    for (sector, byte) in [(2, 2), (3, 0x80), (4, 0x81), (5, 0x82), (6, 6), (9, 0x83)] {
        assert_eq!(content[512 * sector..512 * (sector + 1)], [byte; 512], "sector {sector}");
    }
    assert_eq!(signals(&bench.call), 1, "one interrupt for all");
}

#[test]
fn reads_between_writes_see_those_before_them() {
    let mut bench = Bench::new(DiskMode::Ephemeral, &image());
    bench.driver.put(DATA, &[0x80; 512]);
    bench.driver.put(DATA + 3 * 512, &[0x81; 512]);
    publish(&mut bench, &[(OUT, 3), (IN, 3), (IN, 4), (OUT, 4), (IN, 4)]);
    bench.process().unwrap();
    assert_eq!(statuses(&bench, 5), [0; 5]);
    let sector = |n: u64| bench.driver.get(DATA + 512 * n, 512);
    assert_eq!((sector(1), sector(2), sector(4)), (vec![0x80; 512], vec![4; 512], vec![0x81; 512]));
}

#[test]
fn run_that_fails_is_answered_request_by_request() {
    let image = image();
    let mut bench = Bench::new(DiskMode::ReadOnly, &image);
    // The host's file has lost its end.
    image.0.file.set_len(5 * 512).unwrap();
    publish(&mut bench, &[(IN, 3), (IN, 4), (IN, 5), (IN, 6)]);
    bench.process().unwrap();
    assert_eq!(statuses(&bench, 4), [0, 0, 1, 1]);
    assert_eq!(bench.driver.get(DATA, 1024), [[3; 512], [4; 512]].concat());
    image.fail(Errno::EIO);
    publish(&mut bench, &[(IN, 0), (IN, 1)]);
    bench.process().unwrap();
    assert_eq!((statuses(&bench, 2), bench.driver.used_index()), (vec![1; 2], 6));
}

#[test]
fn refused_request_stands_between_adjacent_ones() {
    let mut bench = Bench::new(DiskMode::ReadOnly, &image());
    publish(&mut bench, &[(IN, 3), (OUT, 4), (IN, 4), (99, 5), (IN, 64), (IN, 63)]);
    bench.process().unwrap();
    assert_eq!(statuses(&bench, 6), [0, 1, 0, 2, 1, 0]);
}

#[test]
fn head_that_is_in_flight_already_breaks_the_ring() {
    let mut bench = Bench::new(DiskMode::ReadOnly, &image());
    publish(&mut bench, &[(IN, 3), (IN, 4)]);
    bench.driver.publish(3);
    assert!(matches!(bench.process(), Err(RingError::InFlight(3))));
    assert_eq!((bench.driver.used_index(), signals(&bench.call)), (2, 1), "what was done is told");
    assert_eq!(signals(&bench.error), 1);
}
