//! One end of a `SOCK_SEQPACKET` socket pair that carries typed messages and file descriptors.
//!
//! The other end is distrusted: a datagram that is too long, cut off, not exactly one message of the expected type, or
//! that brings more descriptors than the receiver allows is an error, and its descriptors are closed.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg,
    socketpair,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The longest encoded message in bytes.
pub const MAX_MESSAGE_BYTES: usize = 8192;
/// The most file descriptors that one message can carry.
pub const MAX_FDS: usize = 64;
/// The most file descriptors that the kernel passes in one datagram (linux/net/scm.h). There is room for all of them, as
/// those of a list that is cut off would stay open.
const SCM_MAX_FD: usize = 253;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_MESSAGE_BYTES>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX_MESSAGE_BYTES>();

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other end is closed.
    #[error("the other end closed the channel")]
    Closed,
    /// Nothing arrived, or nothing could be sent, in time.
    #[error("no message within {0:?}")]
    Deadline(Duration),
    /// Nothing is there now (only from [`Channel::try_recv`]).
    #[error("no message is waiting")]
    WouldBlock,
    /// A datagram was longer than a message may be, or brought more descriptors than fit.
    #[error("a message was cut off")]
    Truncated,
    /// A datagram was no message of the expected type.
    #[error("a message could not be decoded")]
    Decode(#[source] bincode::error::DecodeError),
    /// A datagram held more than its message.
    #[error("a message of {consumed} bytes came with {leftover} more")]
    Leftover {
        /// The bytes of the message.
        consumed: usize,
        /// The bytes after it.
        leftover: usize,
    },
    /// A message brought another number of descriptors than it should.
    #[error("a message came with {got} descriptors instead of {expected}")]
    Fds {
        /// How many came.
        got: usize,
        /// How many are right.
        expected: usize,
    },
    /// Descriptors came with a message to an end that takes none; the kernel has closed them.
    #[error("a message brought descriptors, which nobody may send here")]
    Descriptors,
    /// A message could not be encoded within the limit.
    #[error("a message could not be encoded")]
    Encode(#[source] bincode::error::EncodeError),
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[source] Errno),
}

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// Its descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

impl<T> Received<T> {
    /// The message, which must have come without descriptors.
    ///
    /// # Errors
    /// When descriptors came along; they are closed.
    pub fn without_fds(self) -> Result<T, ChannelError> {
        self.with_fds::<0>().map(|(message, [])| message)
    }

    /// The message, which must have come with exactly `N` descriptors.
    ///
    /// # Errors
    /// When another number of descriptors came along; they are closed.
    pub fn with_fds<const N: usize>(self) -> Result<(T, [OwnedFd; N]), ChannelError> {
        let got = self.fds.len();
        let fds = <[OwnedFd; N]>::try_from(self.fds).map_err(|_fds| ChannelError::Fds { got, expected: N })?;
        Ok((self.message, fds))
    }
}

/// One end of a message channel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Two connected ends, both close-on-exec.
    ///
    /// # Errors
    /// When the kernel has no descriptor or memory left.
    pub fn pair() -> Result<(Self, Self), ChannelError> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(ChannelError::Socket)?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// The control channel that a jailed process finds as descriptor 0. To be called once, first thing in `main`.
    #[must_use]
    #[allow(unsafe_code, reason = "a descriptor that is inherited across execve is a number")]
    pub fn from_stdin() -> Self {
        use std::os::fd::FromRawFd;
        // SAFETY: descriptor 0 is the control socket that the broker put there before execveat, and no other code of a
        // jailed process reads from, closes or owns standard input.
        Self { socket: unsafe { OwnedFd::from_raw_fd(0) } }
    }

    /// Sends a message with descriptors, waiting while the socket is full.
    ///
    /// # Errors
    /// When the message is too long, `fds` are too many, or the other end is gone.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        self.send_flags(message, fds, MsgFlags::MSG_NOSIGNAL)
    }

    /// Sends a message without waiting.
    ///
    /// # Errors
    /// As [`Channel::send`], and [`ChannelError::WouldBlock`] when the socket is full.
    pub fn try_send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        self.send_flags(message, fds, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
    }

    fn send_flags<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
        flags: MsgFlags,
    ) -> Result<(), ChannelError> {
        if fds.len() > MAX_FDS {
            return Err(ChannelError::Fds { got: fds.len(), expected: MAX_FDS });
        }
        let mut buffer = [0u8; MAX_MESSAGE_BYTES];
        let length = bincode::serde::encode_into_slice(message, &mut buffer, CONFIG).map_err(ChannelError::Encode)?;
        let bytes = buffer.get(..length).ok_or(ChannelError::Truncated)?;
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        loop {
            match sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(ChannelError::Closed),
                Err(Errno::EAGAIN) => return Err(ChannelError::WouldBlock),
                Err(errno) => return Err(ChannelError::Socket(errno)),
            }
        }
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// When the other end is closed or sent something else than one `T`.
    pub fn recv<T: DeserializeOwned>(&self) -> Result<Received<T>, ChannelError> {
        self.recv_flags(MsgFlags::empty())
    }

    /// Takes a message that is there already.
    ///
    /// # Errors
    /// As [`Channel::recv`], and [`ChannelError::WouldBlock`] when there is none.
    pub fn try_recv<T: DeserializeOwned>(&self) -> Result<Received<T>, ChannelError> {
        self.recv_flags(MsgFlags::MSG_DONTWAIT)
    }

    /// Waits for a message for at most `limit`.
    ///
    /// # Errors
    /// As [`Channel::recv`], and [`ChannelError::Deadline`] when none came in time.
    pub fn recv_timeout<T: DeserializeOwned>(&self, limit: Duration) -> Result<Received<T>, ChannelError> {
        self.within(limit, || self.try_recv())
    }

    /// As [`Channel::recv_timeout`], with no room for descriptors: the kernel installs none, so that there is none to be
    /// closed.
    ///
    /// # Errors
    /// As there, and [`ChannelError::Descriptors`] when some came.
    pub fn recv_plain_timeout<T: DeserializeOwned>(&self, limit: Duration) -> Result<T, ChannelError> {
        self.within(limit, || self.recv_plain())
    }

    /// Calls `receive`, which does not wait, until something is there.
    fn within<T>(&self, limit: Duration, receive: impl Fn() -> Result<T, ChannelError>) -> Result<T, ChannelError> {
        let mut patience = Patience { left: limit };
        loop {
            match receive() {
                Err(ChannelError::WouldBlock) => {}
                other => return other,
            }
            let Some(slice) = patience.slice() else {
                return Err(ChannelError::Deadline(limit));
            };
            // Rounded up, so that the last wait does not spin through the rest of a millisecond.
            let timeout = PollTimeout::try_from(slice.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
            let start = Instant::now();
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => patience.waited(start.elapsed()),
                Err(errno) => return Err(ChannelError::Socket(errno)),
            }
        }
    }

    fn recv_plain<T: DeserializeOwned>(&self) -> Result<T, ChannelError> {
        let mut buffer = [0u8; MAX_MESSAGE_BYTES];
        let (length, flags) = loop {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            match recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut slices, None, MsgFlags::MSG_DONTWAIT) {
                Ok(received) => break (received.bytes, received.flags),
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::EAGAIN) => return Err(ChannelError::WouldBlock),
                Err(errno) => return Err(ChannelError::Socket(errno)),
            }
        };
        if flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(ChannelError::Descriptors);
        }
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(ChannelError::Truncated);
        }
        decode(buffer.get(..length).ok_or(ChannelError::Truncated)?)
    }

    fn recv_flags<T: DeserializeOwned>(&self, flags: MsgFlags) -> Result<Received<T>, ChannelError> {
        let mut buffer = [0u8; MAX_MESSAGE_BYTES];
        let mut control = cmsg_space!([std::os::fd::RawFd; SCM_MAX_FD]);
        let (length, fds, truncated) = loop {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received = recvmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                flags | MsgFlags::MSG_CMSG_CLOEXEC,
            );
            match received {
                Ok(received) => {
                    let mut fds = Vec::new();
                    for message in received.cmsgs().map_err(ChannelError::Socket)? {
                        if let ControlMessageOwned::ScmRights(raw) = message {
                            fds.extend(raw.into_iter().map(own));
                        }
                    }
                    let truncated = received.flags.contains(MsgFlags::MSG_TRUNC) || fds.len() > MAX_FDS;
                    break (received.bytes, fds, truncated);
                }
                // The other end closed without having read all that we sent; its last words may still wait behind that.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::EAGAIN) => return Err(ChannelError::WouldBlock),
                Err(errno) => return Err(ChannelError::Socket(errno)),
            }
        };
        if truncated {
            return Err(ChannelError::Truncated);
        }
        let message = decode(buffer.get(..length).ok_or(ChannelError::Truncated)?)?;
        Ok(Received { message, fds })
    }
}

/// What is left of a time limit, counted in slices.
///
/// When the whole machine stands still for a while (a suspended laptop, a paused or starved virtual machine), the clock goes on
/// although the other end could not have answered: of such a time, one slice counts.
#[derive(Debug)]
struct Patience {
    left: Duration,
}

impl Patience {
    const SLICE: Duration = Duration::from_millis(250);

    /// How long to wait next; `None` when the limit is reached.
    fn slice(&self) -> Option<Duration> {
        (!self.left.is_zero()).then(|| self.left.min(Self::SLICE))
    }

    /// A wait of a slice took this long.
    fn waited(&mut self, elapsed: Duration) {
        self.left = self.left.saturating_sub(elapsed.min(Self::SLICE));
    }
}

/// The one message that a datagram is.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ChannelError> {
    let length = bytes.len();
    // Messages are never empty, not even those of a unit type: see `Lockdown`, `ToDevice` and the rest.
    if length == 0 {
        return Err(ChannelError::Closed);
    }
    let (message, consumed) = bincode::serde::decode_from_slice(bytes, CONFIG).map_err(ChannelError::Decode)?;
    if consumed != length {
        return Err(ChannelError::Leftover { consumed, leftover: length.saturating_sub(consumed) });
    }
    Ok(message)
}

/// Takes ownership of a descriptor that the kernel has just installed for this process.
#[allow(unsafe_code, reason = "nix hands received descriptors over as integers")]
fn own(raw: std::os::fd::RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel installed `raw` in this process by the SCM_RIGHTS message just received, nobody else knows it,
    // and each received number is passed here once.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<OwnedFd> for Channel {
    /// Wraps a `SOCK_SEQPACKET` socket that came as a descriptor.
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stood_still_costs_one_slice_of_a_limit() {
        let mut patience = Patience { left: Duration::from_secs(2) };
        patience.waited(Duration::from_secs(3600));
        assert_eq!(patience.left, Duration::from_millis(1750));
        (0..6).for_each(|_| patience.waited(Patience::SLICE));
        assert_eq!(patience.slice(), Some(Patience::SLICE));
        patience.waited(Duration::from_millis(251));
        assert_eq!(patience.slice(), None);
    }
    use crate::message::{SerialRead, ToDevice};
    use crate::value::Text;
    use nix::sys::socket::send;

    #[test]
    fn message_with_descriptors_arrives_whole() {
        let (a, b) = Channel::pair().unwrap();
        let file = tempfile();
        a.send(&Text::truncated("hello"), &[file.as_fd(), file.as_fd()]).unwrap();
        let (text, fds) = b.recv::<Text>().unwrap().with_fds::<2>().unwrap();
        assert_eq!(text.to_string(), "hello");
        assert_ne!(fds[0].as_raw_fd(), fds[1].as_raw_fd());
    }

    #[test]
    fn leftover_bytes_are_an_error() {
        let (a, b) = Channel::pair().unwrap();
        send(a.socket.as_raw_fd(), &[3, 9], MsgFlags::empty()).unwrap();
        assert!(matches!(b.recv::<SerialRead>(), Err(ChannelError::Leftover { consumed: 1, leftover: 1 })));
    }

    #[test]
    fn unknown_variant_is_an_error() {
        let (a, b) = Channel::pair().unwrap();
        send(a.socket.as_raw_fd(), &[0xff; 4], MsgFlags::empty()).unwrap();
        assert!(matches!(b.recv::<ToDevice>(), Err(ChannelError::Decode(_))));
    }

    #[test]
    fn length_beyond_the_limit_is_refused_before_it_is_allocated() {
        let (a, b) = Channel::pair().unwrap();
        send(a.socket.as_raw_fd(), &[0xff; 8], MsgFlags::empty()).unwrap();
        assert!(matches!(b.recv::<Vec<u64>>(), Err(ChannelError::Decode(_))));
    }

    #[test]
    fn datagram_beyond_the_limit_is_an_error() {
        let (a, b) = Channel::pair().unwrap();
        send(a.socket.as_raw_fd(), &[0; MAX_MESSAGE_BYTES + 1], MsgFlags::empty()).unwrap();
        assert!(matches!(b.recv::<SerialRead>(), Err(ChannelError::Truncated)));
    }

    #[test]
    fn stray_descriptor_is_refused_and_closed() {
        let (a, b) = Channel::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        a.send(&SerialRead { offset: 1 }, &[writer.as_fd()]).unwrap();
        drop(writer);
        let refused = b.recv::<SerialRead>().unwrap().without_fds();
        assert!(matches!(refused, Err(ChannelError::Fds { got: 1, expected: 0 })));
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&reader, &mut byte), Ok(0), "the write end must be closed");
    }

    #[test]
    fn descriptor_where_none_may_come_is_refused_and_never_installed() {
        let (a, b) = Channel::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        a.send(&SerialRead { offset: 1 }, &[writer.as_fd()]).unwrap();
        a.send(&SerialRead { offset: 2 }, &[]).unwrap();
        drop(writer);
        let limit = Duration::from_secs(20);
        assert!(matches!(b.recv_plain_timeout::<SerialRead>(limit), Err(ChannelError::Descriptors)));
        assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0), "the write end must be closed");
        assert_eq!(b.recv_plain_timeout::<SerialRead>(limit).unwrap().offset, 2);
        drop(a);
        assert!(matches!(b.recv_plain_timeout::<SerialRead>(limit), Err(ChannelError::Closed)));
    }

    #[test]
    fn last_words_of_an_end_that_did_not_listen_arrive() {
        let (a, b) = Channel::pair().unwrap();
        b.send(&ToDevice::Shutdown, &[]).unwrap();
        a.send(&SerialRead { offset: 5 }, &[]).unwrap();
        drop(a);
        assert_eq!(b.recv::<SerialRead>().unwrap().message.offset, 5);
        assert!(matches!(b.recv::<SerialRead>(), Err(ChannelError::Closed)));
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (a, b) = Channel::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let many = vec![writer.as_raw_fd(); MAX_FDS + 1];
        let rights = [ControlMessage::ScmRights(&many)];
        let bytes = [IoSlice::new(&[1])];
        sendmsg::<UnixAddr>(a.socket.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
        drop(writer);
        assert!(matches!(b.recv::<SerialRead>(), Err(ChannelError::Truncated)));
        assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0), "the write ends must be closed");
    }

    #[test]
    fn closed_end_and_deadline_are_told_apart() {
        let (a, b) = Channel::pair().unwrap();
        let limit = Duration::from_millis(5);
        assert!(matches!(b.recv_timeout::<SerialRead>(limit), Err(ChannelError::Deadline(_))));
        drop(a);
        assert!(matches!(b.recv_timeout::<SerialRead>(limit), Err(ChannelError::Closed)));
        assert!(matches!(b.send(&SerialRead { offset: 0 }, &[]), Err(ChannelError::Closed)));
    }

    fn tempfile() -> OwnedFd {
        nix::sys::memfd::memfd_create(c"test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap()
    }
}
