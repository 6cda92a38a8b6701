//! Any descriptor chain, any ring, in any memory, to the block device with its real code.
//!
//! Nothing changes but the bytes of writable descriptors that can be reached from the head, the used ring, and the disk
//! if it is writable. Chains that overwrite their own descriptors are done too; there only memory safety is watched.

use crate::disk::{Image, LazyKernel};
use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use device_procs::block::{Disk, Memory, Ring, Store};
use std::collections::BTreeSet;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use wire::message::DiskMode;
use wire::{DiskId, SectorCount};

const SECTORS: u64 = 11;
const MEMORY_END: u64 = 0x6000;
const SEAM: u64 = 0x4000;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// Where a chain's header, tables and buffers mostly are.
const REST: u64 = 0x1000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Memory, and heads one after the other.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let mode = [DiskMode::ReadWrite, DiskMode::Ephemeral, DiskMode::ReadOnly][input.choose_index(3)?];
    let size = 1_u16 << input.int_in_range(0..=5_u8)?;
    let flags = input.arbitrary::<u8>()?;
    let event_idx = flags & 1 != 0;
    let content: Vec<u8> = (0..SECTORS * 512).map(|n| (n / 5) as u8).collect();
    let image = Image::new(&content);
    let overlay = Image::new(&content);
    let overlay = (mode == DiskMode::Ephemeral).then(|| Box::new(overlay) as Box<dyn Store>);
    let id = DiskId::try_from("fuzz".to_owned()).expect("an id");
    let capacity = SectorCount::try_from(SECTORS).expect("a size");
    let mut disk = Disk::new(mode, capacity, id, Box::new(image.clone()), overlay).expect("a disk");
    let memory =
        Memory::from_ranges(&[(GuestAddress(0), SEAM as usize), (GuestAddress(SEAM), (MEMORY_END - SEAM) as usize)]);
    let memory = Arc::new(memory.expect("guest memory"));
    let kernel = || (flags & 2 != 0).then(|| LazyKernel::new(&image));
    let mut ring = start(&memory, &mut disk, size, event_idx, kernel());
    let mut available = 0_u16;
    while !input.is_empty() {
        match input.int_in_range(0..=3_u8)? {
            0 => {
                let index = u64::from(input.arbitrary::<u8>()? % 64);
                let address = near(input)?;
                let (bytes, flags, next) =
                    (input.arbitrary::<u16>()?, input.arbitrary::<u8>()?, input.arbitrary::<u8>()?);
                // Half of the lengths are those of sectors and of tables.
                let bytes = if flags & 0x80 == 0 { u32::from(bytes & 0x3f) * 16 } else { u32::from(bytes) };
                let table = if flags & 0x40 == 0 { DESCRIPTORS } else { REST };
                let fields = [&address.to_le_bytes()[..], &bytes.to_le_bytes(), &[flags & 7, 0, next, 0]].concat();
                put(&memory, table + 16 * index, &fields);
            }
            1 => {
                let address = near(input)?;
                let bytes = crate::packets::short(input)?;
                put(&memory, address, bytes);
            }
            2 => {
                let (kind, sector) = (input.arbitrary::<u8>()?, input.arbitrary::<u8>()?);
                let address = near(input)?;
                let header =
                    [&u32::from(kind % 16).to_le_bytes()[..], &[0; 4], &u64::from(sector).to_le_bytes()].concat();
                put(&memory, address, &header);
            }
            _ => {
                let (head, jump) = (input.arbitrary::<u8>()?, input.arbitrary::<u8>()?);
                // A ring that is broken is started anew, as a driver resets it.
                if !ring.is_active() {
                    ring.stop();
                    put(&memory, AVAILABLE, &[0; 4]);
                    put(&memory, USED, &[0; 4]);
                    ring.drain(&mut disk).expect("a kernel that goes on");
                    ring = start(&memory, &mut disk, size, event_idx, kernel());
                    available = 0;
                }
                put(&memory, AVAILABLE + 4 + 2 * u64::from(available % size), &[head % 64, 0]);
                available = available.wrapping_add(if jump == 0xff { 999 } else { 1 });
                put(&memory, AVAILABLE + 2, &available.to_le_bytes());
                submit(&mut ring, &mut disk, &memory, size, head % 64);
            }
        }
    }
    let state = image.state();
    assert_eq!(state.content.len(), content.len(), "the disk has another size");
    assert!(mode == DiskMode::ReadWrite || state.changes == 0, "the image was written to");
    Ok(())
}

/// A ring that has nothing to do yet.
fn start(memory: &Arc<Memory>, disk: &mut Disk, size: u16, event_idx: bool, kernel: Option<LazyKernel>) -> Ring {
    let mut ring = Ring::new().expect("a ring");
    if let Some(kernel) = kernel {
        ring.set_kernel(Box::new(kernel));
    }
    ring.set_size(size.into()).expect("a size");
    let addresses = [DESCRIPTORS, AVAILABLE, USED].map(GuestAddress);
    ring.set_addresses(addresses[0], addresses[1], addresses[2]).expect("addresses");
    let kick = std::fs::File::from(crate::packets::memory_file(0));
    // What the ring holds already may break it from the start.
    drop(ring.start(kick, memory, event_idx, true).expect("a start"));
    drop(ring.process(memory, disk));
    ring
}

/// An address in memory mostly.
fn near(input: &mut Unstructured<'_>) -> Result<u64> {
    let short = input.arbitrary::<u16>()?;
    Ok(match short {
        0xffff => input.arbitrary()?,
        0xfffe => MEMORY_END - 1,
        short => u64::from(short) % (MEMORY_END + 64),
    })
}

fn put(memory: &Memory, address: u64, bytes: &[u8]) {
    // What is outside of memory is not there.
    memory.write(bytes, GuestAddress(address)).unwrap_or(0);
}

fn snapshot(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY_END as usize];
    memory.read_slice(&mut bytes, GuestAddress(0)).expect("guest memory");
    bytes
}

fn submit(ring: &mut Ring, disk: &mut Disk, memory: &Arc<Memory>, size: u16, head: u8) {
    let before = snapshot(memory);
    let reach = Reach::from(&before, size, head.into());
    let pending = ring.is_pending();
    drop(ring.process(memory, disk));
    ring.drain(disk).expect("a kernel that goes on");
    let after = snapshot(memory);
    // A second chain, which was left behind by an earlier batch, is not in the reach of this head.
    if reach.overlaps || pending {
        return;
    }
    let used = USED..USED + 6 + 8 * u64::from(size);
    for (at, (old, new)) in (0_u64..).zip(before.iter().zip(&after)) {
        let mine = used.contains(&at) || reach.writable.contains(&at);
        assert!(old == new || mine, "byte {at:#x} changed, which no writable descriptor covers");
    }
    assert!(memory.check_range(GuestAddress(0), SEAM as usize));
}

/// What a chain may write, by a walk of our own.
#[derive(Debug, Default)]
struct Reach {
    writable: BTreeSet<u64>,
    /// It may write over descriptors or the available ring, so that what it reaches changes meanwhile.
    overlaps: bool,
}

impl Reach {
    fn from(memory: &[u8], size: u16, head: u16) -> Self {
        let mut reach = Self::default();
        let mut tables = vec![(DESCRIPTORS, u64::from(size))];
        let mut inputs = Vec::with_capacity(2);
        inputs.push(AVAILABLE..AVAILABLE + 6 + 2 * u64::from(size));
        let mut seen = BTreeSet::new();
        let mut from = vec![(DESCRIPTORS, u64::from(size), head)];
        while let Some((table, count, index)) = from.pop() {
            let at = table.saturating_add(16 * u64::from(index)) as usize;
            let Some(raw) = memory.get(at..at.saturating_add(16)) else { continue };
            if u64::from(index) >= count || !seen.insert((table, index)) {
                continue;
            }
            let address = u64::from_le_bytes(raw[..8].try_into().expect("eight bytes"));
            let bytes = u32::from_le_bytes(raw[8..12].try_into().expect("four bytes"));
            let flags = u16::from_le_bytes([raw[12], raw[13]]);
            let next = u16::from_le_bytes([raw[14], raw[15]]);
            if flags & INDIRECT != 0 {
                tables.push((address, u64::from(bytes / 16)));
                from.push((address, u64::from(bytes / 16), 0));
            } else if flags & WRITE != 0 {
                let end = address.saturating_add(bytes.into()).min(MEMORY_END);
                reach.writable.extend(address.min(end)..end);
            }
            if flags & NEXT != 0 {
                from.push((table, count, next));
            }
        }
        inputs.extend(tables.iter().map(|(start, count)| *start..start.saturating_add(16 * count)));
        reach.overlaps = inputs.iter().any(|input| reach.writable.range(input.clone()).next().is_some());
        reach
    }
}

/// Chains that are right, indirect, and looped.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let disk = |mode| Seed::new().u8(mode).u8(4).u8(0);
    let in_flight = |mode| Seed::new().u8(mode).u8(4).u8(2);
    let desc = |seed: Seed, index: u8, address: u16, bytes: u16, flags: u8, next: u8| {
        seed.u8(0).u8(index).u16(address).u16(bytes).u8(flags).u8(next)
    };
    let header = |seed: Seed, kind: u8, sector: u8| seed.u8(2).u8(kind).u8(sector).u16(0x2000);
    let chain = |seed: Seed, table: u8, data: u8| {
        let seed = desc(seed, 0, 0x2000, 1, table | 1, 1);
        let seed = desc(seed, 1, 0x3f00, 32, table | data | 1, 2);
        desc(seed, 2, 0x2100, 1, table | 2 | 0x80, 0)
    };
    let go = |seed: Seed| seed.u8(3).u8(0).u8(0).done();
    vec![
        ("read", go(chain(header(disk(0), 0, 1), 0, 2))),
        ("write", go(chain(header(disk(0), 1, 2), 0, 0))),
        ("write_ephemeral", go(chain(header(disk(1), 1, 2), 0, 0))),
        ("write_read_only", go(chain(header(disk(2), 1, 2), 0, 0))),
        ("read_in_flight", go(chain(header(in_flight(0), 0, 1), 0, 2))),
        ("write_in_flight", go(chain(header(in_flight(0), 1, 2), 0, 0))),
        ("indirect", go(desc(chain(header(disk(0), 0, 1), 0x40, 2), 0, 0x1000, 3, 4, 0))),
        ("loop", go(desc(chain(header(disk(0), 0, 1), 0, 2), 1, 0x3f00, 32, 3, 1))),
        ("jump", chain(header(disk(0), 0, 1), 0, 2).u8(3).u8(0).u8(0xff).u8(3).u8(0).u8(0).done()),
    ]
}
