//! The event loop: the control channel, the vhost-user socket and the kick eventfds, in one thread.
//!
//! Distrusts the front end, whose faults end the connection, and the guest, which cannot keep the loop from the sockets:
//! rings are processed in batches. Promises to end when the broker says so or is gone, or when the front end is gone.

use super::backend::Backend;
use super::queue::SetupError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};
use wire::message::{FromBlock, ToDevice};
use wire::{Channel, ChannelError};

/// Why the loop ended as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The front end closed the connection.
    Disconnected,
    /// The broker asked for it.
    Shutdown,
    /// The broker is gone.
    BrokerGone,
}

/// Why the loop could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The front end's fault.
    #[error("the vhost-user front end broke the protocol")]
    FrontEnd(#[source] VhostError),
    /// The front end gave something else than an eventfd.
    #[error("the vhost-user front end broke the protocol")]
    Kick(#[source] SetupError),
    /// The broker's fault.
    #[error("the control channel failed")]
    Control(#[source] ChannelError),
    /// The queues could not be made.
    #[error("the queues could not be made")]
    Queues(#[source] virtio_queue::Error),
    /// The host's fault.
    #[error("waiting for events failed")]
    Poll(#[source] Errno),
}

/// What woke the loop.
#[derive(Debug, Default)]
struct Events {
    control: bool,
    front_end: bool,
    kicked: Vec<usize>,
}

/// Serves `socket` until something ends it.
pub(super) fn serve(channel: &Channel, socket: UnixStream, backend: Backend) -> Result<End, ServeError> {
    let backend = Arc::new(Mutex::new(backend));
    let mut handler = BackendReqHandler::from_stream(socket, Arc::clone(&backend));
    loop {
        let events = wait(channel.as_fd(), socket_of(&handler), &lock(&backend))?;
        if events.control {
            match channel.try_recv::<ToDevice>().and_then(wire::Received::without_fds) {
                Ok(ToDevice::Shutdown) => return Ok(End::Shutdown),
                Err(ChannelError::WouldBlock) => {}
                Err(ChannelError::Closed) => return Ok(End::BrokerGone),
                Err(error) => return Err(ServeError::Control(error)),
            }
        }
        if events.front_end {
            match handler.handle_request() {
                Ok(()) => {}
                Err(VhostError::Disconnected | VhostError::SocketBroken(_)) => return Ok(End::Disconnected),
                Err(error) => return Err(ServeError::FrontEnd(error)),
            }
        }
        let mut backend = lock(&backend);
        for index in events.kicked {
            backend.take_kick(index).map_err(ServeError::Kick)?;
        }
        backend.process();
        let broken = backend.take_report().map(FromBlock::Broken);
        let limit = backend.take_limit_report().then_some(FromBlock::LimitReached);
        for message in broken.into_iter().chain(limit) {
            match channel.send(&message, &[]) {
                Ok(()) => {}
                Err(ChannelError::Closed) => return Ok(End::BrokerGone),
                Err(error) => return Err(ServeError::Control(error)),
            }
        }
    }
}

/// The handler's socket, to wait for.
#[allow(
    unsafe_code,
    reason = "the handler gives its socket as a number only, and a duplicate would be one more open descriptor"
)]
fn socket_of(handler: &BackendReqHandler<Mutex<Backend>>) -> BorrowedFd<'_> {
    // SAFETY: the number is that of the UnixStream that `handler` owns for its whole life and never gives away, and the
    // result borrows `handler`.
    unsafe { BorrowedFd::borrow_raw(handler.as_raw_fd()) }
}

/// One thread holds the lock, so that it is always free; a panic ends the process.
fn lock(backend: &Mutex<Backend>) -> MutexGuard<'_, Backend> {
    backend.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for something to do; only looks, if something is to be done already.
fn wait(control: BorrowedFd<'_>, front_end: BorrowedFd<'_>, backend: &Backend) -> Result<Events, ServeError> {
    let (indices, kicks): (Vec<_>, Vec<_>) = backend.kicks().unzip();
    let mut fds = vec![PollFd::new(control, PollFlags::POLLIN), PollFd::new(front_end, PollFlags::POLLIN)];
    fds.extend(kicks.iter().map(|kick| PollFd::new(kick.as_fd(), PollFlags::POLLIN)));
    let timeout = if backend.is_pending() { PollTimeout::ZERO } else { PollTimeout::NONE };
    loop {
        match poll(&mut fds, timeout) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(ServeError::Poll(errno)),
        }
    }
    // Errors and hang-ups count as well: the read that follows tells which.
    let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
    let (control, front_end) = (ready.next().unwrap_or(false), ready.next().unwrap_or(false));
    let kicked = indices.into_iter().zip(ready).filter_map(|(index, ready)| ready.then_some(index)).collect();
    Ok(Events { control, front_end, kicked })
}
