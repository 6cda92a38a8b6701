//! What the broker sends, taken over and refused.

use super::super::disk::Disk;
use super::super::overlay::MAX_IMAGE_BYTES;
use super::super::store::Store;
use super::super::store::tests::Spy;
use super::super::{BlockError, DiskError, prepare};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use wire::message::{DiskEngine, DiskMode, StartBlock};
use wire::{Channel, ChannelError, DiskId, SectorCount};

/// An image of 8 sectors, open for reading and writing, and for reading.
struct Image {
    _folder: tempfile::TempDir,
    writable: OwnedFd,
    readable: OwnedFd,
}

fn image() -> Image {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    File::create(&path).unwrap().set_len(8 * 512).unwrap();
    let open = |flags| open(&path, flags | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    Image { writable: open(OFlag::O_RDWR), readable: open(OFlag::O_RDONLY), _folder: folder }
}

/// Sends a start message with a socket and `fds`, and takes it over.
fn start(mode: DiskMode, sectors: u64, fds: &[BorrowedFd<'_>]) -> Result<(), BlockError> {
    start_with(mode, sectors, None, fds)
}

/// As [`start`], of 8 sectors.
fn start_limited(mode: DiskMode, limit: Option<u64>, fds: &[BorrowedFd<'_>]) -> Result<(), BlockError> {
    start_with(mode, 8, limit, fds)
}

fn start_with(
    mode: DiskMode,
    sectors: u64,
    write_limit_bytes: Option<u64>,
    fds: &[BorrowedFd<'_>],
) -> Result<(), BlockError> {
    start_by(DiskEngine::Sync, mode, sectors, write_limit_bytes, fds)
}

fn start_by(
    engine: DiskEngine,
    mode: DiskMode,
    sectors: u64,
    write_limit_bytes: Option<u64>,
    fds: &[BorrowedFd<'_>],
) -> Result<(), BlockError> {
    let (broker, child) = Channel::pair().unwrap();
    let (_front_end, socket) = UnixStream::pair().unwrap();
    let capacity = SectorCount::try_from(sectors).unwrap();
    let id = DiskId::try_from(String::new()).unwrap();
    let message = StartBlock { audit: false, mode, engine, capacity, id, write_limit_bytes };
    let fds: Vec<_> = std::iter::once(socket.as_fd()).chain(fds.iter().copied()).collect();
    broker.send(&message, &fds).unwrap();
    prepare(child.recv().unwrap()).map(drop)
}

#[test]
fn image_is_taken_over_in_each_mode() {
    let (image, overlay) = (image(), tempfile::tempfile().unwrap());
    start(DiskMode::ReadOnly, 8, &[image.readable.as_fd()]).unwrap();
    start(DiskMode::ReadWrite, 8, &[image.writable.as_fd()]).unwrap();
    start(DiskMode::Ephemeral, 8, &[image.readable.as_fd(), overlay.as_fd()]).unwrap();
    assert_eq!(overlay.metadata().unwrap().len(), 8 * 512);
}

#[test]
fn ring_comes_with_its_engine_and_a_descriptor_of_its_own() {
    let (image, overlay) = (image(), tempfile::tempfile().unwrap());
    let start = |mode, fds: &[BorrowedFd<'_>]| start_by(DiskEngine::IoUring, mode, 8, None, fds);
    start(DiskMode::ReadOnly, &[image.readable.as_fd(), image.readable.as_fd()]).unwrap();
    start(DiskMode::ReadWrite, &[image.writable.as_fd(), image.writable.as_fd()]).unwrap();
    let missing = start(DiskMode::ReadOnly, &[image.readable.as_fd()]);
    assert!(matches!(missing, Err(BlockError::Control(ChannelError::Fds { got: 2, expected: 3 }))));
    let open = start(DiskMode::ReadOnly, &[image.readable.as_fd(), image.writable.as_fd()]);
    assert!(matches!(open, Err(BlockError::Access { .. })), "more than the mode needs");
    let ephemeral = start(DiskMode::Ephemeral, &[image.readable.as_fd(), overlay.as_fd(), image.readable.as_fd()]);
    assert!(matches!(ephemeral, Err(BlockError::EphemeralUring)));
}

#[test]
fn wrong_number_of_descriptors_is_refused() {
    let image = image();
    let fd = image.readable.as_fd();
    for (mode, fds) in [
        (DiskMode::ReadOnly, vec![]),
        (DiskMode::ReadOnly, vec![fd, fd]),
        (DiskMode::ReadWrite, vec![fd, fd]),
        (DiskMode::Ephemeral, vec![fd]),
        (DiskMode::Ephemeral, vec![fd, fd, fd]),
    ] {
        let refused = start(mode, 8, &fds);
        assert!(matches!(refused, Err(BlockError::Control(ChannelError::Fds { .. }))), "{mode:?}");
    }
}

#[test]
fn counter_of_writes_comes_with_a_limit_and_not_without() {
    use super::super::budget::{BudgetError, tests::counter};
    let (image, counter) = (image(), counter());
    start_limited(DiskMode::ReadWrite, Some(1), &[image.writable.as_fd(), counter.as_fd()]).unwrap();
    let none = start_limited(DiskMode::ReadWrite, Some(1), &[image.writable.as_fd()]);
    assert!(matches!(none, Err(BlockError::Control(ChannelError::Fds { got: 2, expected: 3 }))));
    let stray = start_limited(DiskMode::ReadWrite, None, &[image.writable.as_fd(), counter.as_fd()]);
    assert!(matches!(stray, Err(BlockError::Control(ChannelError::Fds { got: 3, expected: 2 }))));
    let wrong = tempfile::tempfile().unwrap();
    let wrong = start_limited(DiskMode::ReadWrite, Some(1), &[image.writable.as_fd(), wrong.as_fd()]);
    assert!(matches!(wrong, Err(BlockError::Budget(BudgetError::WrongSize(0)))));
}

#[test]
fn image_of_another_size_is_refused() {
    let image = image();
    for sectors in [7, 9] {
        let refused = start(DiskMode::ReadOnly, sectors, &[image.readable.as_fd()]);
        assert!(matches!(refused, Err(BlockError::Size { got: 4096, .. })));
    }
}

#[test]
fn image_open_for_more_or_less_than_its_mode_is_refused() {
    let (image, overlay) = (image(), tempfile::tempfile().unwrap());
    for (mode, fds) in [
        (DiskMode::ReadOnly, vec![image.writable.as_fd()]),
        (DiskMode::ReadWrite, vec![image.readable.as_fd()]),
        (DiskMode::Ephemeral, vec![image.writable.as_fd(), overlay.as_fd()]),
    ] {
        assert!(matches!(start(mode, 8, &fds), Err(BlockError::Access { .. })), "{mode:?}");
    }
}

#[test]
fn overlay_that_cannot_be_sized_is_refused() {
    let image = image();
    let refused = start(DiskMode::Ephemeral, 8, &[image.readable.as_fd(), image.readable.as_fd()]);
    assert!(matches!(refused, Err(BlockError::OverlaySize(_))));
}

#[test]
fn disk_without_the_storage_of_its_mode_is_refused() {
    let store = || Box::new(Spy::new(&[])) as Box<dyn Store>;
    let disk = |mode, bytes, overlay| {
        let capacity = SectorCount::from_bytes(bytes).unwrap();
        Disk::new(mode, capacity, DiskId::try_from(String::new()).unwrap(), store(), overlay).map(drop)
    };
    let too_large = disk(DiskMode::Ephemeral, MAX_IMAGE_BYTES + 512, Some(store()));
    assert!(matches!(too_large, Err(DiskError::TooLarge)));
    assert!(matches!(disk(DiskMode::Ephemeral, 512, None), Err(DiskError::NoOverlay)));
    assert!(matches!(disk(DiskMode::ReadOnly, 512, Some(store())), Err(DiskError::StrayOverlay)));
    assert!(matches!(disk(DiskMode::ReadWrite, 512, Some(store())), Err(DiskError::StrayOverlay)));
}
