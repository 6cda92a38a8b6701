//! Tests of the whole device: a mock driver that builds real rings in real guest memory.

mod in_flight;
#[allow(clippy::duplicate_mod, reason = "the same cases hold for both engines, see in_flight.rs")]
mod malformed;
#[allow(clippy::duplicate_mod, reason = "the same cases hold for both engines, see in_flight.rs")]
mod requests;
mod runs;
mod server;
mod start;
mod uring;

use super::disk::Disk;
use super::flight::{Action, Completion, Kernel, Operation};
use super::queue::{Progress, QUEUE_SIZE, Ring, RingError};
use super::request::Memory;
use super::store::Store;
use super::store::tests::Spy;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use wire::message::DiskMode;
use wire::{DiskId, SectorCount};

/// Descriptor flags (virtio 1.2 §2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
/// Indirect tables.
const TABLE: u64 = 0x6000;
/// Buffers.
const BUFFERS: u64 = 0x1_0000;
/// Two regions meet here.
const SEAM: u64 = 0x8_0000;
const MEMORY_END: u64 = 0x10_0000;

fn guest_memory() -> Arc<Memory> {
    let memory = Memory::from_ranges(&[
        (GuestAddress(0), usize::try_from(SEAM).unwrap()),
        (GuestAddress(SEAM), usize::try_from(MEMORY_END - SEAM).unwrap()),
    ]);
    Arc::new(memory.unwrap())
}

fn eventfd() -> (File, File) {
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
    let file = File::from(OwnedFd::from(event));
    (file.try_clone().unwrap(), file)
}

fn signals(mut event: &File) -> u64 {
    let mut counter = [0; 8];
    event.read(&mut counter).map_or(0, |_bytes| u64::from_ne_bytes(counter))
}

/// A descriptor.
#[derive(Debug, Clone, Copy)]
struct Desc(u64, u32, u16, u16);

impl Desc {
    fn store(self, memory: &Memory, table: u64, index: usize) {
        let address = table + 16 * u64::try_from(index).unwrap();
        let Self(addr, len, flags, next) = self;
        memory.write_obj(addr, GuestAddress(address)).unwrap();
        memory.write_obj(len, GuestAddress(address + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(address + 12)).unwrap();
        memory.write_obj(next, GuestAddress(address + 14)).unwrap();
    }
}

/// The driver's side of a ring.
struct Driver {
    memory: Arc<Memory>,
    index: u16,
}

impl Driver {
    /// Links descriptors that follow each other into a chain.
    fn link(&self, table: u64, descriptors: &[(u64, u32, u16)]) {
        for (index, &(addr, len, flags)) in descriptors.iter().enumerate() {
            let next = if index + 1 < descriptors.len() { NEXT } else { 0 };
            Desc(addr, len, flags | next, u16::try_from(index + 1).unwrap()).store(&self.memory, table, index);
        }
    }

    /// Makes a chain available.
    fn publish(&mut self, head: u16) {
        let slot = AVAILABLE + 4 + 2 * u64::from(self.index % QUEUE_SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_index(self.index.wrapping_add(1));
    }

    fn set_index(&mut self, index: u16) {
        self.index = index;
        self.memory.write_obj(index, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    fn used_index(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Head and length of the last used entry.
    fn last_used(&self) -> (u32, u32) {
        let slot = USED + 4 + 8 * u64::from(self.used_index().wrapping_sub(1) % QUEUE_SIZE);
        (self.memory.read_obj(GuestAddress(slot)).unwrap(), self.memory.read_obj(GuestAddress(slot + 4)).unwrap())
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// The bytes of a request of which two may be in flight.
const LARGE: u32 = 24 << 20;

/// Makes reads of [`LARGE`] bytes available, all to the same memory.
fn publish_large(driver: &mut Driver, count: u16) {
    const PIECE: u32 = 256 << 10;
    driver.put(BUFFERS, &header(virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN, 0));
    let mut chain = vec![(SEAM, PIECE, WRITE); usize::try_from(LARGE / PIECE).unwrap()];
    chain.insert(0, (BUFFERS, 16, 0));
    chain.push((BUFFERS + 16, 1, WRITE));
    driver.link(TABLE, &chain);
    for head in 0..count {
        let len = u32::try_from(16 * chain.len()).unwrap();
        Desc(TABLE, len, INDIRECT, 0).store(&driver.memory, DESCRIPTORS, head.into());
        driver.publish(head);
    }
}

/// A device and its driver, without sockets between them.
type Bench = BenchOf<false>;

/// A kernel that takes its time: it does nothing until things are handed over, then the last one first, and is interrupted
/// before every third.
#[derive(Debug)]
struct Lazy {
    store: Spy,
    queued: Vec<(u16, Operation)>,
    done: Vec<Completion>,
    count: usize,
}

impl Kernel for Lazy {
    fn push(&mut self, tag: u16, operation: Operation) {
        self.queued.push((tag, operation));
    }

    fn enter(&mut self, _wait: bool) -> Result<(), Errno> {
        while let Some((tag, operation)) = self.queued.pop() {
            self.count += 1;
            let buffers = operation.held.buffers();
            let result = match operation.action {
                _ if self.count.is_multiple_of(3) => Err(Errno::EINTR),
                Action::Read => self.store.read_at(buffers, operation.offset),
                Action::Write => self.store.write_at(buffers, operation.offset),
                Action::Sync => self.store.sync_data().map(|()| 0),
            };
            self.done.push(Completion { tag, result, operation });
        }
        Ok(())
    }

    fn pop(&mut self) -> Option<Completion> {
        self.done.pop()
    }

    fn is_behind(&self) -> bool {
        !self.queued.is_empty()
    }
}

/// As [`Bench`]; with many requests in flight, or one.
struct BenchOf<const IN_FLIGHT: bool> {
    driver: Driver,
    ring: Ring,
    disk: Disk,
    call: File,
    error: File,
}

impl<const IN_FLIGHT: bool> BenchOf<IN_FLIGHT> {
    fn new(mode: DiskMode, image: &Spy) -> Self {
        let overlay = (mode == DiskMode::Ephemeral).then(|| Box::new(Spy::new(&[])) as Box<dyn Store>);
        let capacity = SectorCount::from_bytes(image.content().len() as u64).unwrap();
        let id = DiskId::try_from("disk0".to_owned()).unwrap();
        let disk = Disk::new(mode, capacity, id, Box::new(image.clone()), overlay).unwrap();
        let memory = guest_memory();
        let mut bench = Self {
            driver: Driver { memory, index: 0 },
            ring: Ring::new().unwrap(),
            disk,
            call: eventfd().0,
            error: eventfd().0,
        };
        if IN_FLIGHT {
            let lazy = Lazy { store: image.clone(), queued: Vec::new(), done: Vec::new(), count: 0 };
            bench.ring.set_kernel(Box::new(lazy));
        }
        bench.start(false);
        bench
    }

    /// As after a reset of the device: empty rings.
    fn start(&mut self, event_idx: bool) {
        let (call, call_there) = eventfd();
        let (error, error_there) = eventfd();
        (self.call, self.error) = (call, error);
        self.driver.put(AVAILABLE, &[0; 0x1000]);
        self.driver.put(USED, &[0; 0x1000]);
        self.driver.index = 0;
        self.ring.set_size(QUEUE_SIZE.into()).unwrap();
        self.ring.set_addresses(GuestAddress(DESCRIPTORS), GuestAddress(AVAILABLE), GuestAddress(USED)).unwrap();
        self.ring.set_base(0).unwrap();
        self.ring.set_call(Some(call_there));
        self.ring.set_error(Some(error_there));
        self.ring.start(eventfd().0, &self.driver.memory, event_idx, true).unwrap().unwrap();
    }

    fn process(&mut self) -> Result<Progress, RingError> {
        loop {
            let progress = self.ring.process(&self.driver.memory, &mut self.disk)?;
            if progress == Progress::More || !self.ring.is_pending() {
                return Ok(progress);
            }
        }
    }

    /// Submits one chain of descriptors that follow each other.
    fn submit(&mut self, descriptors: &[(u64, u32, u16)]) -> Result<Progress, RingError> {
        self.driver.link(DESCRIPTORS, descriptors);
        self.driver.publish(0);
        self.process()
    }

    /// A well-formed request; gives the status and what was read.
    fn request(&mut self, kind: u32, sector: u64, out: &[u8], in_bytes: u32) -> (u8, Vec<u8>) {
        const HEADER: u64 = BUFFERS;
        const OUT: u64 = BUFFERS + 0x1000;
        const IN: u64 = SEAM - 0x1000;
        const STATUS: u64 = BUFFERS + 0x100;
        self.driver.put(HEADER, &header(kind, sector));
        self.driver.put(OUT, out);
        self.driver.put(STATUS, &[0xee]);
        let mut chain = vec![(HEADER, 16, 0)];
        if !out.is_empty() {
            chain.push((OUT, u32::try_from(out.len()).unwrap(), 0));
        }
        if in_bytes > 0 {
            chain.push((IN, in_bytes, WRITE));
        }
        chain.push((STATUS, 1, WRITE));
        let used = self.driver.used_index();
        assert_eq!(self.submit(&chain).unwrap(), Progress::Idle);
        assert_eq!(self.driver.used_index(), used.wrapping_add(1));
        assert_eq!(self.driver.last_used().0, 0);
        (self.driver.get(STATUS, 1)[0], self.driver.get(IN, usize::try_from(in_bytes).unwrap()))
    }
}
