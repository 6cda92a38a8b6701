//! Requests in flight: handed to the kernel many at a time, answered in whatever order they are done.
//!
//! Distrusts the driver, which may offer a chain again that has not come back, and the kernel's promptness: what is done in
//! part, or interrupted, is handed over again. A flush is handed over after the writes that it covers were answered.

use super::buffers::Buffers;
use super::disk::{Disk, Plan};
use super::held::Held;
use super::queue::QUEUE_SIZE;
use super::request::{Memory, Parsed, Status};
use super::run::Answered;
use super::store::StoreError;
use nix::errno::Errno;
use std::sync::Arc;

/// No request is begun while this many bytes are in flight, so that waiting for all of them has an end. One that is begun
/// before may exceed it, by the most that a request has ([`MAX_DATA_BYTES`](super::request::MAX_DATA_BYTES)).
pub(super) const MAX_BYTES: usize = 32 << 20;

/// What the kernel is to do with the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `preadv`.
    Read,
    /// `pwritev`.
    Write,
    /// `fdatasync`.
    Sync,
}

/// One thing for the kernel to do.
#[derive(Debug)]
pub struct Operation {
    /// What.
    pub action: Action,
    /// Where, in bytes from the image's start.
    pub offset: u64,
    /// With which memory; none for [`Action::Sync`].
    pub held: Held,
}

/// Something that the kernel did.
#[derive(Debug)]
pub struct Completion {
    /// Of which request.
    pub tag: u16,
    /// How many bytes.
    pub result: Result<usize, Errno>,
    /// What was handed over.
    pub operation: Operation,
}

/// Who does what is handed over: an io_uring, or a test's stand-in.
pub trait Kernel: std::fmt::Debug {
    /// Queues an operation. There is at most one for each tag, and every tag is below [`QUEUE_SIZE`].
    fn push(&mut self, tag: u16, operation: Operation);
    /// Hands over everything that is queued; with `wait`, until something is done.
    ///
    /// # Errors
    /// When not everything could be handed over: it stays queued.
    fn enter(&mut self, wait: bool) -> Result<(), Errno>;
    /// Gives one thing that is done.
    fn pop(&mut self) -> Option<Completion>;
    /// Whether something is queued that was not handed over.
    fn is_behind(&self) -> bool;
}

#[derive(Debug)]
struct Slot {
    status: Held,
    writable_bytes: u32,
    /// Moved between guest and image.
    bytes: usize,
}

/// The requests in flight, by the heads of their chains.
#[derive(Debug)]
pub(super) struct Flight {
    kernel: Box<dyn Kernel>,
    slots: Vec<Option<Slot>>,
    count: usize,
    /// Those of all slots.
    bytes: usize,
}

impl Flight {
    /// No requests.
    pub(super) fn new(kernel: Box<dyn Kernel>) -> Self {
        Self { kernel, slots: (0..QUEUE_SIZE).map(|_head| None).collect(), count: 0, bytes: 0 }
    }

    /// Whether the chain with this head is in flight.
    pub(super) fn has(&self, head: u16) -> bool {
        self.slots.get(usize::from(head)).is_some_and(Option::is_some)
    }

    /// Whether nothing is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether no request may be begun before another is done.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= MAX_BYTES
    }

    /// Whether something waits to be handed over.
    pub(super) fn is_behind(&self) -> bool {
        self.kernel.is_behind()
    }

    /// The memory that the requests in flight are in.
    pub(super) fn memory(&self) -> Option<Arc<Memory>> {
        self.slots.iter().flatten().next().map(|slot| Arc::clone(slot.status.memory()))
    }

    /// Begins a request that is not in flight; gives the answer of one that is done already.
    pub(super) fn start(
        &mut self,
        head: u16,
        memory: &Arc<Memory>,
        parsed: Parsed<'_>,
        disk: &mut Disk,
    ) -> Option<Answered> {
        let Parsed { request, status, writable_bytes } = parsed;
        let mut status_buffer = Buffers::default();
        status_buffer.push(status);
        let answer = |status: Status| {
            let answer = Slot { status: Held::new(memory, &status_buffer)?, writable_bytes, bytes: 0 };
            Some(answer.answer(head, status))
        };
        // What is outside of memory has no status either.
        let lost = Answered { head, written: None };
        let plan = disk.admit(request).map_or_else(Plan::Done, |request| disk.plan(request));
        let operation = match plan {
            Plan::Done(status) => return Some(answer(status).unwrap_or(lost)),
            Plan::Sync => Operation { action: Action::Sync, offset: 0, held: Held::nothing(memory) },
            Plan::Transfer { action, offset, buffers } => match Held::new(memory, &buffers) {
                Some(held) => Operation { action, offset, held },
                None => return Some(lost),
            },
        };
        let (Some(status), Some(slot)) = (Held::new(memory, &status_buffer), self.slots.get_mut(usize::from(head)))
        else {
            return Some(lost);
        };
        let bytes = operation.held.buffers().len();
        *slot = Some(Slot { status, writable_bytes, bytes });
        self.count = self.count.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        self.kernel.push(head, operation);
        None
    }

    /// Hands over what was begun, or leaves it for later when the kernel takes no more now.
    ///
    /// # Errors
    /// When the kernel takes no more at all.
    pub(super) fn submit(&mut self) -> Result<(), Errno> {
        if self.kernel.is_behind() { enter(&mut *self.kernel, false) } else { Ok(()) }
    }

    /// Waits until something more is done; when the kernel has no room for what is done, it is to be taken first.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub(super) fn wait(&mut self) -> Result<(), Errno> {
        enter(&mut *self.kernel, true)
    }

    /// Gives the answer of one request that is done. What was done in part waits to be handed over again.
    pub(super) fn next(&mut self, disk: &mut Disk) -> Option<Answered> {
        while let Some(completion) = self.kernel.pop() {
            let tag = completion.tag;
            match judge(completion, disk) {
                Verdict::GoOn(operation) => self.kernel.push(tag, operation),
                Verdict::Done(status) => {
                    let slot = self.slots.get_mut(usize::from(tag)).and_then(Option::take);
                    let Some(slot) = slot else { continue };
                    self.count = self.count.saturating_sub(1);
                    self.bytes = self.bytes.saturating_sub(slot.bytes);
                    return Some(slot.answer(tag, status));
                }
            }
        }
        None
    }
}

impl Slot {
    /// Writes the status.
    fn answer(self, head: u16, status: Status) -> Answered {
        Answered::write(head, self.status.buffers().slices().next(), status, self.writable_bytes)
    }
}

enum Verdict {
    GoOn(Operation),
    Done(Status),
}

/// Whether an operation is done, and how it ended.
fn judge(completion: Completion, disk: &mut Disk) -> Verdict {
    let Completion { result, mut operation, .. } = completion;
    let offset = operation.offset;
    let error = match (operation.action, result) {
        (_, Err(Errno::EINTR | Errno::EAGAIN)) => return Verdict::GoOn(operation),
        (Action::Sync, Ok(_)) => return Verdict::Done(Status::Ok),
        (Action::Sync, Err(errno)) => StoreError::Flush(errno),
        (Action::Read, Ok(0)) => StoreError::EndOfFile { offset },
        (Action::Write, Ok(0)) => StoreError::Write { offset, errno: Errno::ENOSPC },
        (_, Ok(done)) => {
            operation.held.advance(done);
            operation.offset = offset.saturating_add(done as u64);
            if operation.held.buffers().is_empty() {
                if operation.action == Action::Read || !disk.is_write_through() {
                    return Verdict::Done(Status::Ok);
                }
                operation.action = Action::Sync;
            }
            return Verdict::GoOn(operation);
        }
        (Action::Read, Err(errno)) => StoreError::Read { offset, errno },
        (Action::Write, Err(errno)) => StoreError::Write { offset, errno },
    };
    disk.log(&error);
    Verdict::Done(Status::IoError)
}

fn enter(kernel: &mut dyn Kernel, wait: bool) -> Result<(), Errno> {
    loop {
        match kernel.enter(wait) {
            Err(Errno::EINTR) => {}
            // The kernel is short of memory, or of room for what is done: what is not handed over stays queued.
            Err(Errno::EAGAIN | Errno::EBUSY) => return Ok(()),
            other => return other,
        }
    }
}
