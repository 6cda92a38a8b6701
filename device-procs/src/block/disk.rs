//! One disk in one of its three modes, behind checked requests.
//!
//! Distrusts nothing but the host's files: every [`Extent`] is inside the disk by construction.

use super::budget::{Budget, cost_of_discard, cost_of_write};
use super::buffers::Buffers;
use super::flight::Action;
use super::overlay::{MAX_IMAGE_BYTES, Overlay};
use super::request::{Extent, Refusal, Request, Status};
use super::store::{Store, StoreError, allocate, read_exact, write_exact, write_zeros};
use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use wire::message::DiskMode;
use wire::{DiskId, SectorCount};

/// How many failures of the host are written to the log; the guest can cause them at will.
const MAX_LOGGED: u8 = 16;

/// A range that is given back takes the time of writing this part of it.
const PUNCH_SHARE: u64 = 256;

/// Why a disk could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The map of an ephemeral disk would be too large.
    #[error("an ephemeral disk can have at most {} TiB", MAX_IMAGE_BYTES >> 40)]
    TooLarge,
    /// An ephemeral disk has nowhere to write to.
    #[error("an ephemeral disk came without its overlay file")]
    NoOverlay,
    /// Another disk has no use for an overlay.
    #[error("an overlay file came with a disk that is not ephemeral")]
    StrayOverlay,
}

/// What is to be done for a request when several are in flight.
#[derive(Debug)]
pub(super) enum Plan<'m> {
    /// Nothing more.
    Done(Status),
    /// Moving bytes from or to the image.
    Transfer {
        /// Reading or writing.
        action: Action,
        /// Where.
        offset: u64,
        /// All of them.
        buffers: Buffers<'m>,
    },
    /// Making what was written before durable.
    Sync,
}

/// An image that is written to in place.
#[derive(Debug)]
struct Direct {
    image: Box<dyn Store>,
    can_punch: bool,
}

#[derive(Debug)]
enum Storage {
    ReadOnly(Box<dyn Store>),
    Ephemeral(Box<Overlay>),
    ReadWrite(Direct),
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    storage: Storage,
    capacity: SectorCount,
    id: DiskId,
    write_through: bool,
    logged: u8,
    /// Bytes moved since they were last asked for.
    work_bytes: u64,
    budget: Option<Budget>,
    /// Whether a request failed for want of budget since that was last asked for.
    over_budget: bool,
}

impl Disk {
    /// A disk of `capacity` sectors in `image`; `overlay` is there exactly when `mode` is ephemeral.
    ///
    /// # Errors
    /// When it is not, or the disk is too large to be ephemeral.
    pub fn new(
        mode: DiskMode,
        capacity: SectorCount,
        id: DiskId,
        image: Box<dyn Store>,
        overlay: Option<Box<dyn Store>>,
    ) -> Result<Self, DiskError> {
        let storage = match (mode, overlay) {
            (DiskMode::ReadOnly, None) => Storage::ReadOnly(image),
            (DiskMode::ReadWrite, None) => Storage::ReadWrite(Direct { image, can_punch: true }),
            (DiskMode::Ephemeral, Some(top)) => {
                Storage::Ephemeral(Box::new(Overlay::new(image, top, capacity.bytes()).ok_or(DiskError::TooLarge)?))
            }
            (DiskMode::Ephemeral, None) => return Err(DiskError::NoOverlay),
            (DiskMode::ReadOnly | DiskMode::ReadWrite, Some(_)) => return Err(DiskError::StrayOverlay),
        };
        Ok(Self {
            storage,
            capacity,
            id,
            write_through: false,
            logged: 0,
            work_bytes: 0,
            budget: None,
            over_budget: false,
        })
    }

    /// Has everything that is written to it paid for.
    pub(super) fn with_budget(self, budget: Option<Budget>) -> Self {
        Self { budget, ..self }
    }

    /// Whether a request failed since the last call because the guest has written as much as it may.
    pub(super) fn take_over_budget(&mut self) -> bool {
        std::mem::take(&mut self.over_budget)
    }

    /// Lets a request be done that was not refused and that the budget allows for, which is paid for then; else gives its
    /// status. To be asked once, before it is done.
    pub(super) fn admit<'m>(&mut self, request: Result<Request<'m>, Refusal>) -> Result<Request<'m>, Status> {
        match request {
            Ok(request) if self.pay(&request) => Ok(request),
            Ok(_) => Err(Status::IoError),
            Err(refusal) => Err(refusal.status()),
        }
    }

    /// Whether the budget allows for a request.
    fn pay(&mut self, request: &Request<'_>) -> bool {
        let Some(budget) = &self.budget else { return true };
        let bytes = match request {
            Request::Write { extent, .. } => cost_of_write(extent),
            Request::Discard(extents) => extents.iter().map(cost_of_discard).fold(0, u64::saturating_add),
            Request::WriteZeroes(extents) => {
                extents.iter().map(|(extent, _)| cost_of_write(extent)).fold(0, u64::saturating_add)
            }
            Request::Read { .. } | Request::Flush | Request::GetId { .. } => return true,
        };
        let paid = budget.spend(bytes);
        self.over_budget |= !paid;
        paid
    }

    /// The size.
    pub(super) fn capacity(&self) -> SectorCount {
        self.capacity
    }

    /// Whether the guest cannot write.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.storage, Storage::ReadOnly(_))
    }

    /// Makes every write reach the medium before it completes: for a driver that does not know FLUSH, and so infers that
    /// there is no volatile cache (virtio 1.2 §5.2.6.1).
    pub fn set_write_through(&mut self, write_through: bool) {
        self.write_through = write_through;
    }

    /// How many bytes were moved since the last call, roughly: a measure of the time that it took.
    pub(super) fn take_work_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.work_bytes)
    }

    fn count_work(&mut self, bytes: u64) {
        self.work_bytes = self.work_bytes.saturating_add(bytes);
    }

    /// Does what was asked for, and paid.
    pub(super) fn execute(&mut self, request: Request<'_>) -> Status {
        let done = match request {
            Request::Read { extent, into } => self.read(extent, into),
            Request::Write { extent, from } => self.write(extent, from),
            Request::Flush => self.flush(),
            Request::GetId { into } => {
                let mut id = [0; DiskId::MAX_BYTES];
                id.iter_mut().zip(self.id.as_str().bytes()).for_each(|(to, byte)| *to = byte);
                into.copy_from(&id);
                Ok(())
            }
            Request::Discard(extents) => extents.into_iter().try_for_each(|extent| self.discard(extent)),
            Request::WriteZeroes(extents) => {
                extents.into_iter().try_for_each(|(extent, unmap)| self.write_zeroes(extent, unmap))
            }
        };
        match done {
            Ok(()) => Status::Ok,
            Err(error) => {
                self.log(&error);
                Status::IoError
            }
        }
    }

    /// What is to be done for a request that is paid for: what moves no bytes between guest and image is done here, and the
    /// rest is the kernel's.
    pub(super) fn plan<'m>(&mut self, request: Request<'m>) -> Plan<'m> {
        let (is_image, is_writable) =
            (!matches!(self.storage, Storage::Ephemeral(_)), matches!(self.storage, Storage::ReadWrite(_)));
        let (action, extent, buffers) = match request {
            Request::Read { extent, into } if is_image && !extent.is_empty() => (Action::Read, extent, into),
            Request::Write { extent, from } if is_writable && !extent.is_empty() => (Action::Write, extent, from),
            Request::Flush if is_writable => return Plan::Sync,
            other => {
                let is_change = matches!(other, Request::Write { .. } | Request::Discard(_) | Request::WriteZeroes(_))
                    && is_writable;
                // The flush that belongs to a change is the kernel's too, even where the change is of no bytes.
                let write_through = std::mem::take(&mut self.write_through);
                let status = self.execute(other);
                self.write_through = write_through;
                let is_unflushed = write_through && is_change && status == Status::Ok;
                return if is_unflushed { Plan::Sync } else { Plan::Done(status) };
            }
        };
        self.count_work(extent.len());
        Plan::Transfer { action, offset: extent.start(), buffers }
    }

    /// Whether every write is made durable before it completes.
    pub(super) fn is_write_through(&self) -> bool {
        self.write_through
    }

    /// Says what the host failed at, up to a number of times.
    pub(super) fn log(&mut self, error: &StoreError) {
        if self.logged < MAX_LOGGED {
            self.logged = self.logged.saturating_add(1);
            policies::lockdown::say(format_args!("{}", super::chain_of(error)));
        }
    }

    fn read(&mut self, extent: Extent, into: Buffers<'_>) -> Result<(), StoreError> {
        self.count_work(extent.len());
        match &self.storage {
            Storage::ReadOnly(image) => read_exact(&**image, into, extent.start()),
            Storage::ReadWrite(direct) => read_exact(&*direct.image, into, extent.start()),
            Storage::Ephemeral(overlay) => overlay.read(extent, into),
        }
    }

    fn write(&mut self, extent: Extent, from: Buffers<'_>) -> Result<(), StoreError> {
        self.count_work(extent.len());
        match &mut self.storage {
            Storage::ReadOnly(_) => return Err(read_only(extent)),
            Storage::ReadWrite(direct) => write_exact(&*direct.image, from, extent.start())?,
            Storage::Ephemeral(overlay) => overlay.write(extent, from)?,
        }
        self.write_through()
    }

    /// A discarded range may read as anything; here it reads as zeros where the host can discard, else as before.
    fn discard(&mut self, extent: Extent) -> Result<(), StoreError> {
        self.count_work(extent.len() / PUNCH_SHARE);
        match &mut self.storage {
            Storage::ReadOnly(_) => return Err(read_only(extent)),
            Storage::ReadWrite(direct) => {
                direct.punch(extent)?;
            }
            Storage::Ephemeral(overlay) => overlay.zero(extent)?,
        }
        self.write_through()
    }

    fn write_zeroes(&mut self, extent: Extent, unmap: bool) -> Result<(), StoreError> {
        self.count_work(extent.len() / PUNCH_SHARE);
        match &mut self.storage {
            Storage::ReadOnly(_) => return Err(read_only(extent)),
            Storage::ReadWrite(direct) => {
                // Without `unmap`, the range must keep its space. FALLOC_FL_ZERO_RANGE would do it at once, but it also takes
                // space beyond the end of the file, which no limit holds: a captured process could fill the host's disk.
                let done = unmap && direct.punch(extent)?;
                if !done {
                    self.work_bytes = self.work_bytes.saturating_add(extent.len());
                    write_zeros(&*direct.image, extent.start(), extent.len())?;
                }
            }
            Storage::Ephemeral(overlay) => overlay.zero(extent)?,
        }
        self.write_through()
    }

    fn write_through(&self) -> Result<(), StoreError> {
        if self.write_through { self.flush() } else { Ok(()) }
    }

    /// Makes everything written before durable. An ephemeral disk has nothing to keep.
    fn flush(&self) -> Result<(), StoreError> {
        let Storage::ReadWrite(direct) = &self.storage else { return Ok(()) };
        loop {
            match direct.image.sync_data() {
                Err(Errno::EINTR) => {}
                other => return other.map_err(StoreError::Flush),
            }
        }
    }
}

/// The request parser refuses writes to a read-only disk; this is the second line.
fn read_only(extent: Extent) -> StoreError {
    StoreError::Write { offset: extent.start(), errno: Errno::EROFS }
}

impl Direct {
    /// Gives the range back to the host; `false` when it cannot.
    fn punch(&mut self, extent: Extent) -> Result<bool, StoreError> {
        if !self.can_punch || extent.is_empty() {
            return Ok(self.can_punch);
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match allocate(&*self.image, flags, extent.start(), extent.len()) {
            Ok(()) => Ok(true),
            // "man 2 fallocate": the file system or the kernel knows the flag not at all.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => {
                self.can_punch = false;
                Ok(false)
            }
            // A block device takes whole blocks of its own size only.
            Err(Errno::EINVAL) => Ok(false),
            Err(errno) => Err(StoreError::Zero { offset: extent.start(), errno }),
        }
    }
}
