//! Requests that follow each other on the disk and have one direction: done by one call, answered each by itself.
//!
//! Promises that a run that fails is done once more request by request, so that each gets the status that it would have had
//! alone; to do one twice does no harm, as nobody was told of the first time.

use super::disk::Disk;
use super::iovec::MAX_IOVECS;
use super::request::{Extent, Parsed, Request, Status};
use vm_memory::{Bytes, VolatileSlice};

/// The most bytes of a run of several requests: what is short enough to gain by it.
const MAX_BYTES: u64 = 1 << 20;
/// The most requests of a run.
const MAX_PARTS: usize = 64;

/// Where the answer to a request goes.
#[derive(Debug)]
struct Part<'m> {
    head: u16,
    status: VolatileSlice<'m>,
    writable_bytes: u32,
    /// On the disk.
    bytes: u64,
}

/// A request that was answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    /// The head of its chain.
    pub(super) head: u16,
    /// The bytes written to the driver's buffers; none when they are outside of guest memory.
    pub(super) written: Option<u32>,
}

impl Answered {
    /// Writes the status to its buffer, if it has one; `writable_bytes` are those before it.
    pub(super) fn write(head: u16, buffer: Option<&VolatileSlice<'_>>, status: Status, writable_bytes: u32) -> Self {
        let data = if status == Status::Ok { writable_bytes } else { 0 };
        let written = buffer.and_then(|buffer| buffer.write_obj(status.byte(), 0).ok());
        Self { head, written: written.map(|()| data.saturating_add(1)) }
    }
}

/// A request, or several that are done as one.
#[derive(Debug)]
pub(super) struct Run<'m> {
    request: Result<Request<'m>, Status>,
    first: Part<'m>,
    /// Mostly none.
    more: Vec<Part<'m>>,
}

impl<'m> Run<'m> {
    /// One request, which is paid for, or is refused with the status.
    pub(super) fn new(head: u16, parsed: Parsed<'m>, disk: &mut Disk) -> Self {
        let Parsed { request, status, writable_bytes } = parsed;
        let request = disk.admit(request);
        let bytes = request.as_ref().map_or(0, |request| request.extent().map_or(0, Extent::len));
        Self { request, first: Part { head, status, writable_bytes, bytes }, more: Vec::new() }
    }

    /// Whether the chain with this head is in it.
    pub(super) fn has(&self, head: u16) -> bool {
        self.first.head == head || self.more.iter().any(|part| part.head == head)
    }

    /// Whether something could still join it.
    pub(super) fn is_open(&self) -> bool {
        self.request.as_ref().is_ok_and(|request| request.extent().is_some_and(|extent| extent.len() < MAX_BYTES))
    }

    /// Takes `next` into this run, or gives it back.
    pub(super) fn join(&mut self, next: Self) -> Option<Self> {
        if !self.fits(&next) {
            return Some(next);
        }
        let (Ok(mine), Ok(theirs)) = (&mut self.request, next.request) else { return None };
        mine.append(theirs);
        self.more.push(next.first);
        self.more.extend(next.more);
        None
    }

    fn fits(&self, next: &Self) -> bool {
        let (Ok(mine), Ok(theirs)) = (&self.request, &next.request) else { return false };
        let pieces = mine.pieces().saturating_add(theirs.pieces());
        self.more.len() < MAX_PARTS && pieces <= MAX_IOVECS && mine.is_followed_by(theirs, MAX_BYTES)
    }

    /// Does it, writes each status, and gives each answer to `take`.
    pub(super) fn execute<E>(self, disk: &mut Disk, mut take: impl FnMut(Answered) -> Result<(), E>) -> Result<(), E> {
        let Self { request, first, more } = self;
        let request = match request {
            Ok(request) => request,
            Err(status) => return take(first.answer(status)),
        };
        let mut again = if more.is_empty() { None } else { request.duplicate() };
        let done = disk.execute(request);
        for part in std::iter::once(first).chain(more) {
            let status = match (&mut again, done) {
                (Some(rest), Status::IoError | Status::Unsupported) => {
                    rest.split_front(part.bytes).map_or(done, |alone| disk.execute(alone))
                }
                _ => done,
            };
            take(part.answer(status))?;
        }
        Ok(())
    }
}

impl Part<'_> {
    /// Writes the status.
    fn answer(self, status: Status) -> Answered {
        Answered::write(self.head, Some(&self.status), status, self.writable_bytes)
    }
}

impl<'m> Request<'m> {
    /// Where on the disk it reads or writes, for those that move data.
    fn extent(&self) -> Option<Extent> {
        match self {
            Self::Read { extent, .. } | Self::Write { extent, .. } => Some(*extent),
            _ => None,
        }
    }

    fn pieces(&self) -> usize {
        match self {
            Self::Read { into: buffers, .. } | Self::Write { from: buffers, .. } => buffers.slices().len(),
            _ => 0,
        }
    }

    /// Whether `next` goes on where this one ends, in the same direction, with at most `most` bytes in all.
    fn is_followed_by(&self, next: &Self, most: u64) -> bool {
        let (Some(mine), Some(theirs)) = (self.extent(), next.extent()) else { return false };
        let same = matches!(self, Self::Read { .. }) == matches!(next, Self::Read { .. });
        same && mine.end() == theirs.start() && mine.len().saturating_add(theirs.len()) <= most
    }

    /// Adds what follows.
    fn append(&mut self, next: Self) {
        match (self, next) {
            (Self::Read { extent, into: mine }, Self::Read { extent: more, into: theirs })
            | (Self::Write { extent, from: mine }, Self::Write { extent: more, from: theirs }) => {
                *extent = extent.joined(more);
                theirs.slices().for_each(|slice| mine.push(*slice));
            }
            _ => {}
        }
    }

    /// The same request once more, for those that move data.
    fn duplicate(&self) -> Option<Self> {
        match self {
            Self::Read { extent, into } => Some(Self::Read { extent: *extent, into: into.clone() }),
            Self::Write { extent, from } => Some(Self::Write { extent: *extent, from: from.clone() }),
            _ => None,
        }
    }

    /// Cuts off the first `bytes` bytes.
    fn split_front(&mut self, bytes: u64) -> Option<Self> {
        let count = usize::try_from(bytes).ok()?;
        match self {
            Self::Read { extent, into } => {
                Some(Self::Read { extent: extent.split_front(bytes)?, into: into.split_front(count)? })
            }
            Self::Write { extent, from } => {
                Some(Self::Write { extent: extent.split_front(bytes)?, from: from.split_front(count)? })
            }
            _ => None,
        }
    }
}
