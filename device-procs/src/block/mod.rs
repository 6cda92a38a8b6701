//! virtio-blk: one disk, served to a virtual machine monitor by vhost-user.
//!
//! Distrusts the guest (virtqueues), and the front end, which a guest may have captured. Holds guest memory, one socket,
//! kick and call eventfds and one disk; promises that whoever controls the guest reaches nothing else through it.

mod backend;
mod budget;
mod buffers;
mod config;
mod disk;
mod flight;
mod held;
mod iovec;
mod overlay;
mod queue;
mod request;
mod run;
mod server;
mod store;
#[cfg(test)]
mod tests;
mod uring;
mod waits;

pub use buffers::Buffers;
pub use disk::{Disk, DiskError};
pub use flight::{Action, Completion, Kernel, Operation};
pub use held::Held;
pub use queue::{Progress, QUEUE_SIZE, Ring, RingError, SetupError};
pub use request::{BrokenChain, Memory};
pub use server::{End, ServeError};
pub use store::{Store, StoreError};
pub use uring::{Uring, UringError};

use backend::Backend;
use budget::{Budget, BudgetError};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Whence, ftruncate, lseek};
use policies::lockdown::{self, LockdownError};
use policies::seccomp::Filter;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use waits::Waits;
use wire::message::{DiskEngine, DiskMode, FromBlock, StartBlock};
use wire::{Channel, ChannelError, Received, SectorCount, Text};

/// The queues of a disk. One thread serves them all, so that more would bring nothing; and an io_uring is for one.
const QUEUES: u16 = 1;

/// Why the process could not do its work.
#[derive(Debug, thiserror::Error)]
enum BlockError {
    #[error("the control channel failed")]
    Control(#[from] ChannelError),
    #[error("the image could not be prepared")]
    Image(#[source] Errno),
    #[error("the image has {got} bytes instead of {expected}")]
    Size { got: u64, expected: u64 },
    #[error("the image is open for {got}, but the disk is {mode:?}")]
    Access { got: &'static str, mode: DiskMode },
    #[error("an ephemeral disk has no io_uring: its writes go to an overlay, request by request")]
    EphemeralUring,
    #[error(transparent)]
    Uring(#[from] UringError),
    #[error("the overlay file could not be sized")]
    OverlaySize(#[source] Errno),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error(transparent)]
    Lockdown(#[from] LockdownError),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// The process, from its first message to its last; returns its exit status.
#[must_use]
pub fn run(channel: Channel) -> i32 {
    // Where the broker cannot be told, there is nobody to tell.
    match start(&channel) {
        Ok(End::BrokerGone) | Err(BlockError::Control(ChannelError::Closed)) => 0,
        Ok(End::Disconnected | End::Shutdown) => {
            channel.send(&FromBlock::Finished, &[]).unwrap_or(());
            0
        }
        Err(error) => {
            channel.send(&FromBlock::Failed(Text::truncated(chain_of(&error))), &[]).unwrap_or(());
            1
        }
    }
}

fn start(channel: &Channel) -> Result<End, BlockError> {
    let (start, socket, disk, uring) = prepare(channel.recv()?)?;
    let filter = if uring.is_some() { Filter::VirtioBlkUring } else { Filter::VirtioBlk };
    let backend = backend(disk, uring)?;
    #[cfg(feature = "hostile")]
    hostile::look();
    let jailed = lockdown::enter(filter, start.audit)?;
    channel.send(&FromBlock::Ready(jailed.report), &jailed.fds())?;
    drop(jailed);
    #[cfg(feature = "hostile")]
    hostile::enter(hostile::Seat::VirtioBlk);
    Ok(server::serve(channel, socket, backend)?)
}

/// What is needed to serve, made before the jail is shut.
fn backend(disk: Disk, uring: Option<Uring>) -> Result<Backend, ServeError> {
    let waits = Waits::new().map_err(ServeError::Waits)?;
    if let Some(uring) = &uring {
        waits.add(waits::Source::Done, uring.fd()).map_err(ServeError::Waits)?;
    }
    let mut backend = Backend::new(disk, QUEUES, waits).map_err(ServeError::Queues)?;
    if let Some(uring) = uring {
        backend.set_kernel(Box::new(uring));
    }
    Ok(backend)
}

/// Serves `disk` to a vhost-user front end, until that or the broker at the other end of `channel` ends it.
///
/// # Errors
/// When one of them breaks its protocol, or the host fails.
pub fn serve(channel: &Channel, front_end: UnixStream, disk: Disk) -> Result<End, ServeError> {
    server::serve(channel, front_end, backend(disk, None)?)
}

/// Takes over what the broker sent: everything that needs more rights than the work itself.
fn prepare(received: Received<StartBlock>) -> Result<(StartBlock, UnixStream, Disk, Option<Uring>), BlockError> {
    let Received { message: start, fds } = received;
    let (has_overlay, is_limited) = (start.mode == DiskMode::Ephemeral, start.write_limit_bytes.is_some());
    let has_uring = start.engine == DiskEngine::IoUring;
    let more = [has_overlay, is_limited, has_uring].into_iter().filter(|has| *has).count();
    let (got, expected) = (fds.len(), more.saturating_add(2));
    let wrong = || ChannelError::Fds { got, expected };
    if got != expected {
        return Err(wrong().into());
    }
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(wrong);
    let (socket, image) = (next()?, next()?);
    let overlay = has_overlay.then(&mut next).transpose()?;
    let counter = is_limited.then(&mut next).transpose()?;
    let again = has_uring.then(&mut next).transpose()?;
    check_image(&image, start.mode, start.capacity)?;
    if let Some(overlay) = &overlay {
        let size = i64::try_from(start.capacity.bytes()).map_err(|_too_large| DiskError::TooLarge)?;
        ftruncate(overlay, size).map_err(BlockError::OverlaySize)?;
    }
    let uring = match again {
        None => None,
        Some(_) if start.mode == DiskMode::Ephemeral => return Err(BlockError::EphemeralUring),
        Some(again) => {
            check_image(&again, start.mode, start.capacity)?;
            Some(Uring::new(again.as_fd())?)
        }
    };
    let store = |fd: OwnedFd| Box::new(File::from(fd)) as Box<dyn Store>;
    let disk = Disk::new(start.mode, start.capacity, start.id.clone(), store(image), overlay.map(store))?;
    let limit = counter.zip(start.write_limit_bytes);
    let budget = limit.map(|(counter, bytes)| Budget::map(counter, bytes)).transpose()?;
    Ok((start, UnixStream::from(socket), disk.with_budget(budget), uring))
}

/// Checks that the image is as large as announced, and not more open than the mode needs.
fn check_image(image: &OwnedFd, mode: DiskMode, capacity: SectorCount) -> Result<(), BlockError> {
    let flags = OFlag::from_bits_truncate(fcntl(image.as_fd(), FcntlArg::F_GETFL).map_err(BlockError::Image)?);
    let got = match flags & OFlag::O_ACCMODE {
        OFlag::O_RDONLY => "reading",
        OFlag::O_WRONLY => "writing",
        _ => "reading and writing",
    };
    let expected = if mode == DiskMode::ReadWrite { "reading and writing" } else { "reading" };
    if got != expected {
        return Err(BlockError::Access { got, mode });
    }
    // Works for block devices too, whose size fstat does not tell. Nothing reads at the file offset.
    let end = lseek(image, 0, Whence::SeekEnd).map_err(BlockError::Image)?;
    let (got, expected) = (u64::try_from(end).unwrap_or(0), capacity.bytes());
    if got != expected {
        return Err(BlockError::Size { got, expected });
    }
    Ok(())
}

/// An error and its causes in one line.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
