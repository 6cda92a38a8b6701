//! What a hostile driver puts into a ring.

use super::*;
use crate::block::request::BrokenChain;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT};

const HEADER: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x100;
const UNTOUCHED: u8 = 0xee;

fn bench(kind: u32, sector: u64) -> Bench {
    let bench = Bench::new(DiskMode::ReadWrite, &Spy::new(&[7; 100 * 512]));
    bench.driver.put(HEADER, &header(kind, sector));
    bench.driver.put(STATUS, &[UNTOUCHED; 16]);
    bench
}

/// The chain is answered with an I/O error, and the device goes on.
fn assert_refused(kind: u32, sector: u64, chain: &[(u64, u32, u16)]) {
    let mut bench = bench(kind, sector);
    assert_eq!(bench.submit(chain).unwrap(), Progress::Idle, "{chain:x?}");
    assert_eq!(bench.driver.used_index(), 1);
    assert_eq!(bench.driver.last_used(), (0, 1));
    assert_eq!(bench.driver.get(STATUS, 1), [1], "{chain:x?}");
    assert_eq!(bench.request(IN, 0, &[], 512), (0, vec![7; 512]));
}

/// The device breaks, says so once, and works again after a reset.
fn assert_broken(bench: &mut Bench, broken: Result<Progress, RingError>) -> RingError {
    let error = broken.unwrap_err();
    assert_eq!(signals(&bench.error), 1);
    assert!(!bench.ring.is_pending());
    assert!(!bench.ring.is_active());
    let used = bench.driver.used_index();
    assert_eq!(bench.process().unwrap(), Progress::Idle);
    assert_eq!(bench.driver.used_index(), used);
    bench.ring.stop();
    bench.start(false);
    assert_eq!(bench.request(IN, 0, &[], 512), (0, vec![7; 512]));
    error
}

fn assert_chain_breaks(chain: &[(u64, u32, u16)], expected: BrokenChain) {
    let mut bench = bench(IN, 0);
    let result = bench.submit(chain);
    let error = assert_broken(&mut bench, result);
    assert!(matches!(error, RingError::Chain(chain) if chain == expected), "{chain:x?}: {error:?}");
}

#[test]
fn chain_without_a_status_breaks_the_device() {
    assert_chain_breaks(&[(HEADER, 16, 0)], BrokenChain::NoStatus);
    assert_chain_breaks(&[(HEADER, 16, 0), (DATA, 512, 0)], BrokenChain::NoStatus);
    assert_chain_breaks(&[(HEADER, 16, 0), (STATUS, 0, WRITE)], BrokenChain::NoStatus);
    assert_chain_breaks(&[(HEADER, 16, 0), (STATUS, 1, WRITE), (DATA, 512, 0)], BrokenChain::NoStatus);
    assert_chain_breaks(&[(HEADER, 0, 0)], BrokenChain::NoStatus);
}

#[test]
fn status_outside_memory_breaks_the_device() {
    let outside = BrokenChain::StatusOutsideMemory;
    assert_chain_breaks(&[(HEADER, 16, 0), (MEMORY_END, 1, WRITE)], outside);
    assert_chain_breaks(&[(HEADER, 16, 0), (MEMORY_END - 1, 2, WRITE)], outside);
    assert_chain_breaks(&[(HEADER, 16, 0), (u64::MAX, 1, WRITE)], outside);
    assert_chain_breaks(&[(HEADER, 16, 0), (u64::MAX, 2, WRITE)], outside);
}

#[test]
fn short_or_missing_header_is_refused() {
    assert_refused(IN, 0, &[(HEADER, 15, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    assert_refused(IN, 0, &[(STATUS, 1, WRITE)]);
}

#[test]
fn descriptor_of_the_wrong_direction_is_refused() {
    assert_refused(IN, 0, &[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
    assert_refused(OUT, 0, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    assert_refused(IN, 0, &[(HEADER, 16, WRITE), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
}

#[test]
fn readable_descriptor_after_a_writable_one_is_refused() {
    assert_refused(IN, 0, &[(HEADER, 16, 0), (DATA, 512, WRITE), (DATA, 512, 0), (STATUS, 1, WRITE)]);
}

#[test]
fn request_beyond_the_disk_is_refused() {
    for sector in [100, 99, 101, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55, (1 << 55) - 1] {
        assert_refused(IN, sector, &[(HEADER, 16, 0), (DATA, 1024, WRITE), (STATUS, 1, WRITE)]);
        assert_refused(OUT, sector, &[(HEADER, 16, 0), (DATA, 1024, 0), (STATUS, 1, WRITE)]);
    }
}

#[test]
fn odd_length_is_refused() {
    for len in [1, 511, 513, 1023] {
        assert_refused(IN, 0, &[(HEADER, 16, 0), (DATA, len, WRITE), (STATUS, 1, WRITE)]);
        assert_refused(OUT, 0, &[(HEADER, 16, 0), (DATA, len, 0), (STATUS, 1, WRITE)]);
    }
}

#[test]
fn address_outside_memory_is_refused() {
    for address in [MEMORY_END, MEMORY_END - 256, u64::MAX - 100, u64::MAX, 1 << 63] {
        assert_refused(IN, 0, &[(HEADER, 16, 0), (address, 512, WRITE), (STATUS, 1, WRITE)]);
        assert_refused(OUT, 0, &[(HEADER, 16, 0), (address, 512, 0), (STATUS, 1, WRITE)]);
        assert_refused(IN, 0, &[(address, 512, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    }
}

#[test]
fn request_of_too_many_bytes_is_refused() {
    assert_refused(IN, 0, &[(HEADER, 16, 0), (DATA, 0xffff_fe00 - 32, WRITE), (STATUS, 1, WRITE)]);
}

#[test]
fn chain_of_too_many_bytes_for_the_protocol_breaks_the_device() {
    let chain = [(HEADER, 16, 0), (DATA, u32::MAX, WRITE), (STATUS, 1, WRITE)];
    assert_chain_breaks(&chain, BrokenChain::Walk);
}

#[test]
fn loop_of_descriptors_breaks_the_device() {
    let mut bench = bench(IN, 0);
    Desc(HEADER, 16, NEXT, 1).store(&bench.driver.memory, DESCRIPTORS, 0);
    Desc(DATA, 512, WRITE | NEXT, 1).store(&bench.driver.memory, DESCRIPTORS, 1);
    bench.driver.publish(0);
    let result = bench.process();
    let error = assert_broken(&mut bench, result);
    assert!(matches!(error, RingError::Chain(BrokenChain::Walk)));
}

#[test]
fn next_outside_the_table_breaks_the_device() {
    for next in [QUEUE_SIZE, u16::MAX] {
        let mut bench = bench(IN, 0);
        Desc(HEADER, 16, NEXT, next).store(&bench.driver.memory, DESCRIPTORS, 0);
        bench.driver.publish(0);
        let result = bench.process();
        let error = assert_broken(&mut bench, result);
        assert!(matches!(error, RingError::Chain(BrokenChain::Walk)));
    }
}

#[test]
fn head_outside_the_table_breaks_the_device() {
    for head in [QUEUE_SIZE, u16::MAX] {
        let mut bench = bench(IN, 0);
        bench.driver.publish(head);
        let result = bench.process();
        assert_broken(&mut bench, result);
    }
}

#[test]
fn jump_of_the_available_index_breaks_the_device() {
    for jump in [QUEUE_SIZE + 1, u16::MAX] {
        let mut bench = bench(IN, 0);
        bench.driver.set_index(jump);
        let result = bench.process();
        let error = assert_broken(&mut bench, result);
        assert!(matches!(error, RingError::Queue(virtio_queue::Error::InvalidAvailRingIndex)));
    }
}

#[test]
fn requests_before_a_broken_chain_are_told_to_the_driver() {
    let mut bench = bench(IN, 0);
    bench.driver.link(DESCRIPTORS, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    bench.driver.publish(0);
    bench.driver.publish(QUEUE_SIZE);
    bench.process().unwrap_err();
    assert_eq!((bench.driver.used_index(), signals(&bench.call), signals(&bench.error)), (1, 1, 1));
}

/// Puts `table` into an indirect table and submits it.
fn submit_indirect(bench: &mut Bench, table: &[Desc], len: u32, flags: u16) -> Result<Progress, RingError> {
    for (index, descriptor) in table.iter().enumerate() {
        descriptor.store(&bench.driver.memory, TABLE, index);
    }
    Desc(TABLE, len, INDIRECT | flags, 0).store(&bench.driver.memory, DESCRIPTORS, 0);
    bench.driver.publish(0);
    bench.process()
}

#[test]
fn indirect_table_of_128_is_done() {
    let mut bench = bench(IN, 0);
    let mut table = vec![Desc(HEADER, 16, NEXT, 1)];
    table.extend((1..127u16).map(|index| Desc(DATA + u64::from(index - 1) * 256, 256, WRITE | NEXT, index + 1)));
    table.push(Desc(STATUS, 1, WRITE, 0));
    submit_indirect(&mut bench, &table, 128 * 16, 0).unwrap();
    assert_eq!(bench.driver.get(STATUS, 1), [0]);
    assert_eq!(bench.driver.get(DATA, 126 * 256), [7; 126 * 256]);
}

#[test]
fn indirect_table_in_an_indirect_table_breaks_the_device() {
    for table in [
        vec![Desc(TABLE, 32, INDIRECT, 0)],
        vec![Desc(HEADER, 16, NEXT, 1), Desc(TABLE, 32, INDIRECT, 0)],
        vec![Desc(HEADER, 16, NEXT, 1), Desc(TABLE, 32, INDIRECT | NEXT, 0)],
    ] {
        let mut bench = bench(IN, 0);
        let result = submit_indirect(&mut bench, &table, 32, 0);
        let error = assert_broken(&mut bench, result);
        assert!(matches!(error, RingError::Chain(BrokenChain::Walk)));
    }
}

#[test]
fn indirect_table_of_a_wrong_size_breaks_the_device() {
    for len in [0, 8, 17, u32::MAX, 0x10_0000] {
        let mut bench = bench(IN, 0);
        let table = [Desc(HEADER, 16, NEXT, 1), Desc(STATUS, 1, WRITE, 0)];
        let result = submit_indirect(&mut bench, &table, len, 0);
        assert_broken(&mut bench, result);
    }
}

#[test]
fn indirect_table_outside_memory_breaks_the_device() {
    let mut bench = bench(IN, 0);
    Desc(MEMORY_END, 32, INDIRECT, 0).store(&bench.driver.memory, DESCRIPTORS, 0);
    bench.driver.publish(0);
    let result = bench.process();
    assert_broken(&mut bench, result);
}

#[test]
fn loop_in_an_indirect_table_breaks_the_device() {
    let mut bench = bench(IN, 0);
    let result = submit_indirect(&mut bench, &[Desc(HEADER, 16, NEXT, 0)], 0xffff * 16, 0);
    let error = assert_broken(&mut bench, result);
    assert!(matches!(error, RingError::Chain(BrokenChain::Walk)));
}

#[test]
fn indirect_table_of_too_many_descriptors_is_refused() {
    let mut bench = bench(IN, 0);
    let mut table = vec![Desc(HEADER, 16, NEXT, 1)];
    table.extend((1..300u16).map(|index| Desc(DATA, 512, WRITE | NEXT, index + 1)));
    table.push(Desc(STATUS, 1, WRITE, 0));
    submit_indirect(&mut bench, &table, 301 * 16, 0).unwrap();
    assert_eq!(bench.driver.get(STATUS, 1), [1]);
}

#[test]
fn rings_outside_memory_break_the_device() {
    let (good, end) = (GuestAddress(0x2000), GuestAddress(MEMORY_END - 16));
    for [descriptors, available, used] in [[end, good, good], [good, end, good], [good, good, end]] {
        let mut ring = Ring::new().unwrap();
        ring.set_addresses(descriptors, available, used).unwrap();
        let started = ring.start(eventfd().0, &guest_memory(), false, true).unwrap();
        assert!(matches!(started, Err(RingError::OutsideMemory)));
        assert!(!ring.is_pending());
    }
}

#[test]
fn memory_that_is_taken_away_breaks_the_device() {
    let mut bench = bench(IN, 0);
    let smaller = Memory::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
    assert!(matches!(bench.ring.remapped(&smaller), Err(RingError::OutsideMemory)));
    assert!(!bench.ring.is_pending());
    assert_eq!(signals(&bench.error), 1);
}
