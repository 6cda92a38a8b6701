//! From a descriptor chain to a request that cannot be invalid.
//!
//! Distrusts the driver in everything: the chain's shape, addresses, lengths and directions, the header and its sector.
//! The header is copied once and the copy is checked. Promises that the buffers of a [`Request`] are inside guest memory
//! and its [`Extent`]s inside the disk, and that a refusal comes with the place of the status byte where there is one.

use super::buffers::Buffers;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};
use wire::SectorCount;

/// The driver's memory.
pub type Memory = GuestMemoryMmap<()>;

/// The most data segments of a request, as offered by `seg_max` (virtio 1.2 §5.2.4): with header and status, a table of
/// 128 descriptors.
pub(super) const SEG_MAX: u32 = 126;
/// The most descriptors of a chain. More than `SEG_MAX` and 2, because a driver may split header and data as it likes.
const MAX_DESCRIPTORS: usize = 256;
/// The most data bytes of a request; bounds the time that one takes.
pub(super) const MAX_DATA_BYTES: usize = 32 << 20;
/// The most ranges of a discard request.
pub(super) const MAX_DISCARD_RANGES: u32 = 16;
/// The most sectors of one discarded range: 1 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// The most ranges of a write-zeroes request.
pub(super) const MAX_ZERO_RANGES: u32 = 2;
/// The most sectors of one zeroed range: 16 MiB, because the host may have to write them. With both ranges that is no more
/// than [`MAX_DATA_BYTES`].
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 15;

/// `struct virtio_blk_req` without data and status (virtio 1.2 §5.2.6).
const HEADER_BYTES: usize = 16;
/// `struct virtio_blk_discard_write_zeroes` (virtio 1.2 §5.2.6).
const RANGE_BYTES: usize = 16;

/// A status of virtio 1.2 §5.2.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Done.
    Ok,
    /// Failed, or refused.
    IoError,
    /// Not something that this device does.
    Unsupported,
}

impl Status {
    /// The byte for the driver.
    pub(super) fn byte(self) -> u8 {
        let status = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        u8::try_from(status).unwrap_or(u8::MAX)
    }
}

/// Why a request is refused; the device goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("a chain has more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    #[error("a request has more than {MAX_DATA_BYTES} bytes")]
    TooLong,
    #[error("a descriptor is outside guest memory")]
    OutsideMemory,
    #[error("a readable descriptor follows a writable one")]
    Order,
    #[error("the header is shorter than {HEADER_BYTES} bytes")]
    ShortHeader,
    #[error("the data is in descriptors of the wrong direction")]
    Direction,
    #[error("the data is not a multiple of 512 bytes")]
    OddLength,
    #[error("the request reaches beyond the disk")]
    BeyondDisk,
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("the request type is unknown")]
    UnknownType,
    #[error("a list of ranges is empty, too long or cut off")]
    Ranges,
    #[error("a range has unknown flags")]
    RangeFlags,
    #[error("a range is longer than allowed")]
    LongRange,
}

impl Refusal {
    /// What the driver sees.
    pub(super) fn status(self) -> Status {
        match self {
            Self::UnknownType | Self::RangeFlags => Status::Unsupported,
            _ => Status::IoError,
        }
    }
}

/// Why a chain breaks the device: there is nowhere to put a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    /// It loops, leaves its table, or its table cannot be read.
    #[error("a descriptor chain is looped or leaves its table")]
    Walk,
    /// Its last descriptor is not writable, or empty.
    #[error("a descriptor chain does not end with a status byte")]
    NoStatus,
    /// Its status byte is outside guest memory.
    #[error("the status byte of a descriptor chain is outside guest memory")]
    StatusOutsideMemory,
}

/// A range of bytes inside the disk, in whole sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    start: u64,
    end: u64,
}

impl Extent {
    /// `len` bytes from `sector` on.
    pub(super) fn new(sector: u64, len: u64, capacity: SectorCount) -> Result<Self, Refusal> {
        if !len.is_multiple_of(SectorCount::SECTOR_BYTES) {
            return Err(Refusal::OddLength);
        }
        let start = sector.checked_mul(SectorCount::SECTOR_BYTES).ok_or(Refusal::BeyondDisk)?;
        let end = start.checked_add(len).filter(|end| *end <= capacity.bytes()).ok_or(Refusal::BeyondDisk)?;
        Ok(Self { start, end })
    }

    /// The first byte.
    pub(super) fn start(self) -> u64 {
        self.start
    }

    /// The byte after the last.
    pub(super) fn end(self) -> u64 {
        self.end
    }

    /// The number of bytes.
    pub(super) fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there are no bytes.
    pub(super) fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// With `next`, which begins where this one ends.
    pub(super) fn joined(self, next: Self) -> Self {
        Self { start: self.start, end: next.end }
    }

    /// Cuts off the first `bytes` bytes; nothing happens when there are fewer.
    pub(super) fn split_front(&mut self, bytes: u64) -> Option<Self> {
        let middle = self.start.checked_add(bytes).filter(|middle| *middle <= self.end)?;
        let front = Self { start: self.start, end: middle };
        self.start = middle;
        Some(front)
    }
}

/// A request that can be carried out.
#[derive(Debug)]
pub(super) enum Request<'m> {
    Read {
        extent: Extent,
        into: Buffers<'m>,
    },
    Write {
        extent: Extent,
        from: Buffers<'m>,
    },
    Flush,
    GetId {
        into: Buffers<'m>,
    },
    Discard(Vec<Extent>),
    /// Each with whether it may be given back to the host.
    WriteZeroes(Vec<(Extent, bool)>),
}

/// A chain that has a place for its status.
#[derive(Debug)]
pub(super) struct Parsed<'m> {
    /// What to do, or why not.
    pub(super) request: Result<Request<'m>, Refusal>,
    /// One byte.
    pub(super) status: VolatileSlice<'m>,
    /// The writable bytes before the status.
    pub(super) writable_bytes: u32,
}

/// What requests are checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) capacity: SectorCount,
    pub(super) read_only: bool,
}

/// Parses a chain.
pub(super) fn parse<'m>(
    memory: &'m Memory,
    chain: DescriptorChain<&'m Memory>,
    limits: Limits,
) -> Result<Parsed<'m>, BrokenChain> {
    let mut walk = Walk::default();
    for descriptor in chain {
        walk.step(memory, descriptor);
    }
    // The iterator stops without a word at whatever is wrong: the last descriptor then still says that one follows.
    let last = walk.last.filter(|last| !last.has_next()).ok_or(BrokenChain::Walk)?;
    if !last.is_write_only() || last.len() == 0 {
        return Err(BrokenChain::NoStatus);
    }
    if let Some(refusal) = walk.refusal {
        let status = status_of(memory, last).ok_or(BrokenChain::StatusOutsideMemory)?;
        return Ok(Parsed { request: Err(refusal), status, writable_bytes: 0 });
    }
    let status = walk.writable.split_last_byte().ok_or(BrokenChain::NoStatus)?;
    let writable_bytes = u32::try_from(walk.writable.len()).unwrap_or(u32::MAX);
    Ok(Parsed { request: request(walk.readable, walk.writable, limits), status, writable_bytes })
}

/// The last byte of a descriptor.
fn status_of(memory: &Memory, last: Descriptor) -> Option<VolatileSlice<'_>> {
    let offset = u64::from(last.len()).checked_sub(1)?;
    let address = last.addr().0.checked_add(offset)?;
    memory.get_slice(vm_memory::GuestAddress(address), 1).ok()
}

/// What was found in a chain so far.
#[derive(Default)]
struct Walk<'m> {
    readable: Buffers<'m>,
    writable: Buffers<'m>,
    count: usize,
    last: Option<Descriptor>,
    refusal: Option<Refusal>,
}

impl<'m> Walk<'m> {
    fn step(&mut self, memory: &'m Memory, descriptor: Descriptor) {
        self.last = Some(descriptor);
        self.count = self.count.saturating_add(1);
        if self.refusal.is_none() {
            self.refusal = self.collect(memory, descriptor).err();
        }
    }

    fn collect(&mut self, memory: &'m Memory, descriptor: Descriptor) -> Result<(), Refusal> {
        if self.count > MAX_DESCRIPTORS {
            return Err(Refusal::TooManyDescriptors);
        }
        let len = usize::try_from(descriptor.len()).map_err(|_too_large| Refusal::TooLong)?;
        let total = self.readable.len().saturating_add(self.writable.len()).saturating_add(len);
        if total > MAX_DATA_BYTES.saturating_add(HEADER_BYTES).saturating_add(1) {
            return Err(Refusal::TooLong);
        }
        if !descriptor.is_write_only() && !self.writable.is_empty() {
            return Err(Refusal::Order);
        }
        let into = if descriptor.is_write_only() { &mut self.writable } else { &mut self.readable };
        for slice in memory.get_slices(descriptor.addr(), len) {
            into.push(slice.map_err(|_outside| Refusal::OutsideMemory)?);
        }
        Ok(())
    }
}

/// Parses what a chain holds, without the status byte.
fn request<'m>(mut readable: Buffers<'m>, writable: Buffers<'m>, limits: Limits) -> Result<Request<'m>, Refusal> {
    let mut header = [0; HEADER_BYTES];
    readable.copy_to(&mut header);
    readable.drop_front(HEADER_BYTES).ok_or(Refusal::ShortHeader)?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let needs_write = matches!(kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES);
    if needs_write && limits.read_only {
        return Err(Refusal::ReadOnly);
    }
    if needs_write && !writable.is_empty() || kind == VIRTIO_BLK_T_IN && !readable.is_empty() {
        return Err(Refusal::Direction);
    }
    match kind {
        VIRTIO_BLK_T_IN => {
            Ok(Request::Read { extent: Extent::new(sector, writable.len() as u64, limits.capacity)?, into: writable })
        }
        VIRTIO_BLK_T_OUT => {
            Ok(Request::Write { extent: Extent::new(sector, readable.len() as u64, limits.capacity)?, from: readable })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID if writable.is_empty() => Err(Refusal::Direction),
        VIRTIO_BLK_T_GET_ID => Ok(Request::GetId { into: writable }),
        VIRTIO_BLK_T_DISCARD => {
            // A discard has no flags that could be set (virtio 1.2 §5.2.6.2).
            let allowed = Allowed { ranges: MAX_DISCARD_RANGES, sectors: MAX_DISCARD_SECTORS, flags: 0 };
            let ranges = ranges(&readable, limits, allowed)?;
            Ok(Request::Discard(ranges.into_iter().map(|(extent, _unmap)| extent).collect()))
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            let flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            let allowed = Allowed { ranges: MAX_ZERO_RANGES, sectors: MAX_ZERO_SECTORS, flags };
            Ok(Request::WriteZeroes(ranges(&readable, limits, allowed)?))
        }
        _ => Err(Refusal::UnknownType),
    }
}

/// The most that a request with ranges may ask for.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    ranges: u32,
    /// Of each range.
    sectors: u32,
    flags: u32,
}

/// Parses the ranges of a discard or write-zeroes request; all of them are right, or none is used.
fn ranges(data: &Buffers<'_>, limits: Limits, allowed: Allowed) -> Result<Vec<(Extent, bool)>, Refusal> {
    let count = data.len() / RANGE_BYTES;
    if count == 0 || !data.len().is_multiple_of(RANGE_BYTES) || count > usize::try_from(allowed.ranges).unwrap_or(0) {
        return Err(Refusal::Ranges);
    }
    let mut bytes = vec![0; data.len()];
    data.copy_to(&mut bytes);
    let (chunks, _rest) = bytes.as_chunks::<RANGE_BYTES>();
    chunks
        .iter()
        .map(|&[s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..]| {
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes(flags);
            if flags & !allowed.flags != 0 {
                return Err(Refusal::RangeFlags);
            }
            if sectors > allowed.sectors {
                return Err(Refusal::LongRange);
            }
            let len = u64::from(sectors).saturating_mul(SectorCount::SECTOR_BYTES);
            let extent = Extent::new(sector, len, limits.capacity)?;
            Ok((extent, flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0))
        })
        .collect()
}
