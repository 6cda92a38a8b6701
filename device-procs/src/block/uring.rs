//! An io_uring for one image, that can do nothing but read, write and flush it.
//!
//! It is made before the jail is shut: disabled at first, then restricted (`IORING_REGISTER_RESTRICTIONS`) to three
//! operations on registered files, of which the image is the only one, then enabled. The kernel refuses anything else for as
//! long as the ring lives, and any change to the ring itself. Distrusts nobody; promises that memory which the kernel works on
//! stays mapped until it says that it is done.
#![allow(unsafe_code, reason = "the kernel takes addresses by the ring, which no type can follow")]

use super::flight::{Action, Completion, Kernel, Operation};
use super::iovec::MAX_IOVECS;
use super::queue::QUEUE_SIZE;
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use wire::message::URING_WORKERS;

/// The place of the image among the registered files.
const IMAGE: types::Fixed = types::Fixed(0);

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// The host has none, or does not give it.
    #[error(
        "the host gives no io_uring, which disk.engine = \"io-uring\" needs: set engine = \"sync\", or allow it (sysctl kernel.io_uring_disabled=0, Linux 5.18 or newer)"
    )]
    Setup(#[source] io::Error),
    /// It cannot be restricted.
    #[error("the io_uring could not be restricted to one disk: set disk.engine = \"sync\"")]
    Restrict(#[source] io::Error),
}

/// The ring.
pub struct Uring {
    ring: IoUring,
    /// By their tags.
    pending: Vec<Option<Pending>>,
    count: usize,
}

/// What the kernel has, or is about to get.
struct Pending {
    operation: Operation,
    /// Pointed to by the ring, and pointing into `operation.held`.
    iovecs: Vec<libc::iovec>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for `image`, enabled and restricted.
    ///
    /// # Errors
    /// When the host has no io_uring, forbids it, or cannot restrict it.
    pub fn new(image: BorrowedFd<'_>) -> Result<Self, UringError> {
        let entries = u32::from(QUEUE_SIZE);
        let mut builder = IoUring::builder();
        builder.setup_r_disabled().setup_submit_all().setup_cqsize(entries.saturating_mul(2));
        // From Linux 6.0 on: one thread uses it, and need not be interrupted for a completion.
        let one_thread = builder.clone().setup_single_issuer().setup_coop_taskrun().build(entries);
        let ring = one_thread.or_else(|_older| builder.build(entries)).map_err(UringError::Setup)?;
        let submitter = ring.submitter();
        submitter.register_files(&[image.as_raw_fd()]).map_err(UringError::Restrict)?;
        submitter.register_iowq_max_workers(&mut URING_WORKERS.clone()).map_err(UringError::Restrict)?;
        let mut restrictions = [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
        ];
        submitter.register_restrictions(&mut restrictions).map_err(UringError::Restrict)?;
        submitter.register_enable_rings().map_err(UringError::Restrict)?;
        Ok(Self { ring, pending: (0..QUEUE_SIZE).map(|_tag| None).collect(), count: 0 })
    }

    /// The ring, to wait for what is done.
    pub(super) fn fd(&self) -> impl AsFd + use<'_> {
        // SAFETY: the descriptor is open as long as the ring, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Kernel for Uring {
    fn push(&mut self, tag: u16, operation: Operation) {
        let slices = operation.held.buffers().slices().take(MAX_IOVECS);
        let iovecs: Vec<_> = slices
            .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
            .collect();
        let (at, count) = (iovecs.as_ptr(), u32::try_from(iovecs.len()).unwrap_or(0));
        let entry = match operation.action {
            Action::Read => opcode::Readv::new(IMAGE, at, count).offset(operation.offset).build(),
            Action::Write => opcode::Writev::new(IMAGE, at, count).offset(operation.offset).build(),
            Action::Sync => opcode::Fsync::new(IMAGE).flags(types::FsyncFlags::DATASYNC).build(),
        };
        let Some(place) = self.pending.get_mut(usize::from(tag)).filter(|place| place.is_none()) else { return };
        *place = Some(Pending { operation, iovecs });
        // SAFETY: `entry` points to the iovecs, and they to memory that `operation.held` keeps mapped. Both are in `pending`
        // now, and leave it only when the completion with their tag is taken; `drop` waits for all of them.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(tag.into())) };
        match pushed {
            Ok(()) => self.count = self.count.saturating_add(1),
            // Never: there are as many entries as tags.
            Err(_full) => *place = None,
        }
    }

    fn enter(&mut self, wait: bool) -> Result<(), Errno> {
        let want = usize::from(wait && self.count > 0);
        match self.ring.submitter().submit_and_wait(want) {
            Ok(_) => Ok(()),
            Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }

    fn pop(&mut self) -> Option<Completion> {
        loop {
            let entry = self.ring.completion().next()?;
            let tag = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
            let pending = self.pending.get_mut(usize::from(tag)).and_then(Option::take);
            // Every entry has a tag that was pushed.
            let Some(Pending { operation, iovecs }) = pending else { continue };
            drop(iovecs);
            self.count = self.count.saturating_sub(1);
            let result = usize::try_from(entry.result());
            let result = result.map_err(|_negative| Errno::from_raw(entry.result().saturating_neg()));
            return Some(Completion { tag, result, operation });
        }
    }

    fn is_behind(&self) -> bool {
        // SAFETY: nothing else looks at the submission queue meanwhile, as `self` is not `Sync`.
        !unsafe { self.ring.submission_shared() }.is_empty()
    }
}

impl Drop for Uring {
    /// Waits for what is in flight, whose memory would be let go.
    fn drop(&mut self) {
        while self.count > 0 {
            while self.pop().is_some() {}
            match self.enter(true) {
                Ok(()) | Err(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => {}
                // Nobody tells what the kernel still does: its memory stays mapped for ever.
                Err(_broken) => return self.pending.drain(..).flatten().for_each(std::mem::forget),
            }
        }
    }
}

#[cfg(test)]
impl Uring {
    /// Hands over an entry that nothing here would make, and gives its result.
    pub(super) fn hand_over(&mut self, entry: &squeue::Entry) -> i32 {
        // SAFETY: the test keeps what the entry points to until this returns, with the result.
        unsafe { self.ring.submission().push(entry) }.unwrap();
        self.ring.submit_and_wait(1).unwrap();
        self.ring.completion().next().unwrap().result()
    }

    /// Everything that could make more of the ring.
    pub(super) fn try_to_change(&self, file: BorrowedFd<'_>) -> [io::Result<()>; 5] {
        let submitter = self.ring.submitter();
        [
            submitter.register_files_update(0, &[file.as_raw_fd()]).map(drop),
            submitter.unregister_files(),
            submitter.register_eventfd(file.as_raw_fd()),
            submitter.register_personality().map(drop),
            submitter.register_iowq_max_workers(&mut [64, 64]),
        ]
    }
}
