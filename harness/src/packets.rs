//! Packets of a captured peer: bytes, and descriptors that it may have opened.

use arbitrary::{Result, Unstructured};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A file in memory of this size.
///
/// # Panics
/// When the host has no descriptor left.
#[must_use]
pub fn memory_file(bytes: u64) -> OwnedFd {
    let file = memfd_create(c"harness", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    nix::unistd::ftruncate(&file, bytes.try_into().expect("a size")).expect("a size");
    file
}

/// Sends what a peer of ours could: any bytes, in one packet, with any descriptors. What does not fit is lost.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).unwrap_or(0);
}

/// A string of up to 255 bytes: its length, then its bytes.
///
/// # Errors
/// When there are not as many bytes.
pub fn short<'a>(input: &mut Unstructured<'a>) -> Result<&'a [u8]> {
    let length = input.arbitrary::<u8>()?;
    input.bytes(usize::from(length).min(input.len()))
}
