//! The real io_uring: the whole server over it, and what its restrictions refuse.

use super::server::{Machine, regions};
use super::*;
use crate::block::Uring;
use io_uring::{opcode, squeue, types};
use nix::errno::Errno;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use vhost::VhostBackend;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT,
    VIRTIO_BLK_T_WRITE_ZEROES as ZEROES,
};
use wire::message::DiskEngine;

fn machine(mode: DiskMode, image: &Spy) -> Machine {
    let mut machine = Machine::with_engine(mode, image, DiskEngine::IoUring);
    machine.activate();
    machine
}

#[test]
fn every_request_goes_through_the_ring_but_discard_and_zeroes() {
    let image = Spy::new(&[7; 64 * 512]);
    let mut machine = machine(DiskMode::ReadWrite, &image);
    assert_eq!(machine.request(IN, 0, &[], 1024), (0, vec![7; 1024]));
    assert_eq!(machine.request(OUT, 1, &[9; 1024], 0).0, 0);
    assert_eq!(machine.request(FLUSH, 0, &[], 0).0, 0);
    assert_eq!(image.content()[512..1536], [9; 1024]);
    assert_eq!((image.0.writes.load(Ordering::Relaxed), image.0.syncs.load(Ordering::Relaxed)), (0, 0));
    assert_eq!(machine.request(IN, 63, &[], 1024).0, 1, "beyond the disk");
    assert_eq!(machine.request(DISCARD, 0, &range(8, 8, 0), 0).0, 0);
    assert_eq!(machine.request(ZEROES, 0, &range(2, 1, 0), 0).0, 0);
    assert_eq!(machine.request(IN, 2, &[], 512), (0, vec![0; 512]));
    assert!(image.0.writes.load(Ordering::Relaxed) > 0);
    machine.join().unwrap();
}

#[test]
fn ring_is_stopped_and_memory_is_mapped_anew() {
    let mut machine = machine(DiskMode::ReadWrite, &Spy::new(&[7; 64 * 512]));
    assert_eq!(machine.request(OUT, 0, &[9; 512], 0).0, 0);
    let table = regions(&machine.driver.memory);
    machine.front_end.set_mem_table(&table).unwrap();
    assert_eq!(machine.request(IN, 0, &[], 512), (0, vec![9; 512]));
    assert_eq!(machine.front_end.get_vring_base(0).unwrap(), 2);
    machine.driver.put(AVAILABLE, &[0; 0x1000]);
    machine.driver.put(USED, &[0; 0x1000]);
    machine.driver.index = 0;
    machine.start();
    assert_eq!(machine.request(IN, 1, &[], 512), (0, vec![7; 512]));
}

#[test]
fn file_that_lost_its_end_is_an_error_of_the_request() {
    let image = Spy::new(&[7; 64 * 512]);
    let mut machine = machine(DiskMode::ReadOnly, &image);
    image.0.file.set_len(512).unwrap();
    assert_eq!(machine.request(IN, 0, &[], 1024).0, 1);
    assert_eq!(machine.request(IN, 0, &[], 512), (0, vec![7; 512]));
}

#[test]
fn requests_that_had_to_wait_are_done_without_another_kick() {
    let image = Spy::new(&[]);
    image.0.file.set_len(LARGE.into()).unwrap();
    let mut machine = machine(DiskMode::ReadOnly, &image);
    // used_event: interrupt for the last one.
    machine.driver.put(AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE), &7u16.to_le_bytes());
    publish_large(&mut machine.driver, 8);
    machine.kick_and_wait();
    assert_eq!(machine.driver.used_index(), 8);
    machine.join().unwrap();
}

/// Hands one entry over to a ring for a file of 512 bytes, and gives its result.
fn hand_over(entry: &squeue::Entry) -> i32 {
    let image = Spy::new(&[7; 512]);
    Uring::new(image.0.file.as_fd()).unwrap().hand_over(entry)
}

#[test]
fn ring_does_nothing_but_three_operations_on_its_one_file() {
    let refused = -(Errno::EACCES as i32);
    let (other, mut byte) = (tempfile::tempfile().unwrap(), [0u8; 1]);
    let image = types::Fixed(0);
    let raw = types::Fd(std::os::fd::AsRawFd::as_raw_fd(&other));
    let iovec = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    assert_eq!(hand_over(&opcode::Fsync::new(image).build()), 0);
    assert_eq!(hand_over(&opcode::Readv::new(image, &raw const iovec, 1).build()), 1);
    assert_eq!(byte, [7]);
    for entry in [
        opcode::Nop::new().build(),
        opcode::Fsync::new(raw).build(),
        opcode::Readv::new(raw, &raw const iovec, 1).build(),
        opcode::Read::new(image, (&raw mut byte).cast(), 1).build(),
        opcode::Fallocate::new(image, 1).build(),
        opcode::Ftruncate::new(image, 0).build(),
        opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        opcode::Close::new(types::Fd(0)).build(),
    ] {
        assert_eq!(hand_over(&entry), refused, "{entry:?}");
    }
    let beyond = hand_over(&opcode::Fsync::new(types::Fixed(1)).build());
    assert_eq!(beyond, -(Errno::EBADF as i32), "there is one file");
}

#[test]
fn ring_cannot_be_changed_any_more() {
    let image = Spy::new(&[7; 512]);
    let uring = Uring::new(image.0.file.as_fd()).unwrap();
    for changed in uring.try_to_change(image.0.file.as_fd()) {
        assert_eq!(changed.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
