//! Any requests to a disk of any mode, against a plain model in memory; and the end of the process at any call that it
//! makes on its file.
//!
//! Every answer is the model's. What was flushed is durable; what was completed is in the file when the process is gone; a
//! request that was under way may have been done in part. The image of an ephemeral or read-only disk is only read.

use crate::disk::{Image, LazyKernel};
use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use device_procs::block::{Disk, Memory, Progress, QUEUE_SIZE, Ring, Store};
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use wire::message::DiskMode;
use wire::{DiskId, SectorCount};

/// Not a multiple of the clusters of an ephemeral disk.
const SECTORS: u64 = 43;
const SECTOR: usize = 512;
const MEMORY_END: usize = 0x1_8000;
const SEAM: u64 = 0x1_0000;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLE: u64 = 0x3000;
/// What the device reads: across the seam of two regions.
const READABLE: u64 = SEAM - 0x6000;
/// What the device writes.
const WRITABLE: u64 = 0x5000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A request, as the driver means it.
#[derive(Debug, Clone, Copy)]
struct Request {
    kind: u32,
    sector: u64,
    sectors: u64,
    fill: u8,
    unmap: bool,
}

impl Request {
    /// From six bytes; some reach beyond the disk.
    fn read(input: &mut Unstructured<'_>) -> Result<Self> {
        let kinds = [IN, IN, OUT, OUT, OUT, FLUSH, DISCARD, WRITE_ZEROES, GET_ID];
        let kind = kinds[usize::from(input.int_in_range(0..=8_u8)?)];
        let sector = match input.arbitrary::<u8>()? {
            // Far beyond, where sums overflow.
            255 => u64::MAX - 7,
            254 => u64::MAX / 512,
            near => u64::from(near) % (SECTORS + 2),
        };
        let sectors = u64::from(input.int_in_range(0..=24_u8)?);
        Ok(Self { kind, sector, sectors, fill: input.arbitrary()?, unmap: input.arbitrary::<u8>()? & 1 != 0 })
    }

    /// The bytes of the disk that it is about; none when they are not all on it.
    fn span(&self) -> Option<Range<usize>> {
        let end = self.sector.checked_add(self.sectors).filter(|end| *end <= SECTORS)?;
        Some(self.sector as usize * SECTOR..end as usize * SECTOR)
    }

    fn writes(&self) -> bool {
        matches!(self.kind, OUT | DISCARD | WRITE_ZEROES)
    }
}

/// The disk as it should be.
struct Model {
    mode: DiskMode,
    no_allocate: bool,
    content: Vec<u8>,
    /// What was there at the last flush, and everything that was written since: one of them is durable.
    versions: Vec<Vec<u8>>,
}

impl Model {
    /// The status, and what a read gives; the content changes with it.
    fn answer(&mut self, request: &Request) -> (u8, Vec<u8>) {
        let Some(span) = request.span().filter(|_span| !(request.writes() && self.mode == DiskMode::ReadOnly)) else {
            return match request.kind {
                FLUSH => (0, Vec::new()),
                GET_ID => (0, id()),
                _ => (1, Vec::new()),
            };
        };
        match request.kind {
            IN => return (0, self.content[span].to_vec()),
            GET_ID => return (0, id()),
            OUT => self.content[span].copy_from_slice(&data(request)),
            // Nothing is to be had back from a host that cannot discard, and the range stays as it is.
            DISCARD if self.no_allocate && self.mode == DiskMode::ReadWrite => {}
            DISCARD | WRITE_ZEROES => self.content[span].fill(0),
            _ => {}
        }
        self.versions.push(self.content.clone());
        (0, Vec::new())
    }

    fn flush(&mut self) {
        self.versions = vec![self.content.clone()];
    }
}

/// What a write writes: different in each byte of its first sectors.
fn data(request: &Request) -> Vec<u8> {
    (0..request.sectors as usize * SECTOR).map(|n| request.fill.wrapping_add((n / 7) as u8)).collect()
}

fn id() -> Vec<u8> {
    let mut id = b"disk0".to_vec();
    id.resize(20, 0);
    id
}

struct Bench {
    memory: Arc<Memory>,
    ring: Ring,
    disk: Disk,
    image: Image,
    index: u16,
}

/// A disk, requests, and perhaps an end.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let mode = [DiskMode::ReadWrite, DiskMode::Ephemeral, DiskMode::ReadOnly][input.choose_index(3)?];
    let flags = input.arbitrary::<u8>()?;
    let dies_at = input.arbitrary::<u8>()?;
    let (no_allocate, short, write_through) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    let original: Vec<u8> = (0..SECTORS as usize * SECTOR).map(|n| (n / 3) as u8 | 1).collect();
    let image = Image::new(&original);
    image.state().no_allocate = no_allocate;
    image.state().short = short;
    // Half of the runs have no end before their last request.
    image.state().left = (dies_at >= 128).then(|| usize::from(dies_at - 127));
    let mut bench = Bench::new(mode, &image, write_through);
    if flags & 8 != 0 {
        bench.ring.set_kernel(Box::new(LazyKernel::new(&image)));
    }
    let mut model = Model { mode, no_allocate, content: original.clone(), versions: vec![original.clone()] };
    while !input.is_empty() {
        let request = Request::read(input)?;
        let got = bench.submit(&request, input.arbitrary()?);
        let before = model.content.clone();
        let expected = model.answer(&request);
        if image.is_dead() {
            bench.assert_nothing_is_lost(&request, &before, &model);
            break;
        }
        assert_eq!(got.0, expected.0, "the status of {request:?} on a disk that is {mode:?}");
        assert!(got.1 == expected.1, "{request:?} reads something else than was written");
        if request.kind == FLUSH || (write_through && request.writes() && got.0 == 0) {
            model.flush();
        }
        bench.assert_file(&model, &original);
    }
    Ok(())
}

impl Bench {
    fn new(mode: DiskMode, image: &Image, write_through: bool) -> Self {
        let seam = SEAM as usize;
        let memory = Memory::from_ranges(&[(GuestAddress(0), seam), (GuestAddress(SEAM), MEMORY_END - seam)]);
        let top = Image::new(&vec![0xAA; SECTORS as usize * SECTOR]);
        let overlay = (mode == DiskMode::Ephemeral).then(|| Box::new(top) as Box<dyn Store>);
        let id = DiskId::try_from("disk0".to_owned()).expect("an id");
        let capacity = SectorCount::try_from(SECTORS).expect("a size");
        let mut disk = Disk::new(mode, capacity, id, Box::new(image.clone()), overlay).expect("a disk");
        disk.set_write_through(write_through);
        let memory = Arc::new(memory.expect("guest memory"));
        let mut ring = Ring::new().expect("a ring");
        ring.set_size(QUEUE_SIZE.into()).expect("a size");
        let addresses = [DESCRIPTORS, AVAILABLE, USED].map(GuestAddress);
        ring.set_addresses(addresses[0], addresses[1], addresses[2]).expect("addresses");
        let kick = std::fs::File::from(crate::packets::memory_file(0));
        ring.start(kick, &memory, false, true).expect("a start").expect("a ring in memory");
        Self { memory, ring, disk, image: image.clone(), index: 0 }
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("guest memory");
    }

    /// Does a request, its buffers cut into pieces of about `piece` * 8 bytes; gives the status and what was read.
    fn submit(&mut self, request: &Request, piece: u8) -> (u8, Vec<u8>) {
        let mut out = [&request.kind.to_le_bytes()[..], &[0; 4], &request.sector.to_le_bytes()].concat();
        let mut into = 0;
        match request.kind {
            IN => into = request.sectors as usize * SECTOR,
            GET_ID => into = 20,
            OUT => out.extend(data(request)),
            DISCARD | WRITE_ZEROES => {
                let unmap = u32::from(request.kind == WRITE_ZEROES && request.unmap);
                out.extend(request.sector.to_le_bytes());
                out.extend((request.sectors as u32).to_le_bytes());
                out.extend(unmap.to_le_bytes());
            }
            _ => {}
        }
        self.put(READABLE, &out);
        self.put(WRITABLE, &vec![0xEE; into + 1]);
        let piece = usize::from(piece) * 8 + 200;
        let mut chain = Vec::new();
        for (start, bytes, flags) in [(READABLE, out.len(), 0), (WRITABLE, into + 1, WRITE)] {
            for at in (0..bytes).step_by(piece) {
                chain.push((start + at as u64, piece.min(bytes - at) as u32, flags));
            }
        }
        self.link(&chain, piece & 8 != 0);
        let progress = self.ring.process(&self.memory, &mut self.disk).expect("a chain that is right");
        assert_eq!(progress, Progress::Idle);
        self.ring.drain(&mut self.disk).expect("a kernel that goes on");
        let used: u16 = self.memory.read_obj(GuestAddress(USED + 2)).expect("guest memory");
        assert_eq!(used, self.index, "the request was not completed");
        let mut answer = vec![0; into + 1];
        self.memory.read_slice(&mut answer, GuestAddress(WRITABLE)).expect("guest memory");
        let status = answer.pop().unwrap_or(0xEE);
        (status, if status == 0 { answer } else { Vec::new() })
    }

    /// Makes a chain available, from an indirect table or not.
    fn link(&mut self, chain: &[(u64, u32, u16)], indirect: bool) {
        let table = if indirect { TABLE } else { DESCRIPTORS };
        for (n, (address, bytes, flags)) in (0_u16..).zip(chain) {
            let next = if usize::from(n) + 1 < chain.len() { NEXT } else { 0 };
            self.put(table + 16 * u64::from(n), &descriptor(*address, *bytes, flags | next, n + 1));
        }
        if indirect {
            self.put(DESCRIPTORS, &descriptor(TABLE, chain.len() as u32 * 16, INDIRECT, 0));
        }
        self.put(AVAILABLE + 4 + 2 * u64::from(self.index % QUEUE_SIZE), &[0, 0]);
        self.index = self.index.wrapping_add(1);
        self.put(AVAILABLE + 2, &self.index.to_le_bytes());
    }

    /// Between two requests, the file is as the model; or was never written to.
    fn assert_file(&self, model: &Model, original: &[u8]) {
        let state = self.image.state();
        if model.mode == DiskMode::ReadWrite {
            assert!(state.content == model.content, "the image differs from the model");
            assert_durable(&state.durable, model, &model.content, None);
        } else {
            assert!(state.content == original && state.changes == 0, "the image was written to");
        }
    }

    /// After the process has died within `request`.
    fn assert_nothing_is_lost(&self, request: &Request, before: &[u8], model: &Model) {
        let state = self.image.state();
        if model.mode != DiskMode::ReadWrite {
            assert_eq!(state.changes, 0, "the image was written to");
            return;
        }
        let under_way = request.span().filter(|_span| request.writes());
        for (at, byte) in state.content.iter().enumerate() {
            let in_part = under_way.as_ref().is_some_and(|span| span.contains(&at));
            // A range that is discarded or zeroed is zero or not yet.
            let right = *byte == before[at] || in_part && (*byte == model.content[at] || *byte == 0);
            assert!(right, "byte {at} was lost with the process in {request:?}");
        }
        assert_durable(&state.durable, model, &model.content, under_way);
    }
}

/// Every byte on the medium is that of the last flush, or was written after it.
fn assert_durable(durable: &[u8], model: &Model, last: &[u8], under_way: Option<Range<usize>>) {
    for (at, byte) in durable.iter().enumerate() {
        let in_part = under_way.as_ref().is_some_and(|span| span.contains(&at)) && *byte == 0;
        let right = *byte == last[at] || in_part || model.versions.iter().any(|version| version[at] == *byte);
        assert!(right, "byte {at} was flushed, and is lost");
    }
}

fn descriptor(address: u64, bytes: u32, flags: u16, next: u16) -> Vec<u8> {
    [&address.to_le_bytes()[..], &bytes.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
}

/// Each kind of request in each mode, and a death.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let request = |seed: Seed, kind: u8, sector: u8, sectors: u8| {
        seed.u8(kind).u8(sector).u8(sectors).u8(sector ^ 0x55).u8(1).u8(64)
    };
    let all = |seed| {
        let seed = request(request(request(seed, 2, 3, 9), 0, 0, 24), 6, 4, 3);
        request(request(request(request(seed, 7, 5, 8), 5, 0, 0), 8, 0, 0), 0, 2, 12)
    };
    let disk = |mode, flags, dies_at| Seed::new().u8(mode).u8(flags).u8(dies_at);
    vec![
        ("read_write", all(disk(0, 0, 0)).done()),
        ("read_write_short_without_fallocate", all(disk(0, 3, 0)).done()),
        ("write_through", all(disk(0, 4, 0)).done()),
        ("in_flight", all(disk(0, 8, 0)).done()),
        ("in_flight_short_write_through", all(disk(0, 14, 0)).done()),
        ("in_flight_read_only", all(disk(2, 8, 0)).done()),
        ("in_flight_dies", all(disk(0, 10, 131)).done()),
        ("ephemeral", all(disk(1, 0, 0)).done()),
        ("read_only", all(disk(2, 0, 0)).done()),
        ("beyond_the_disk", request(request(disk(0, 0, 0), 2, 40, 20), 2, 255, 8).done()),
        ("dies", all(disk(0, 2, 131)).done()),
    ]
}
