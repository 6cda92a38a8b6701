//! The event loop: the control channel, the vhost-user socket and the kick eventfds, in one thread.
//!
//! Distrusts the front end, whose faults end the connection, and the guest, which cannot keep the loop from the sockets:
//! rings are processed in batches. Promises to end when the broker says so or is gone, or when the front end is gone.

use super::backend::Backend;
use super::waits::Source;
use nix::errno::Errno;
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
    /// The broker's fault.
    #[error("the control channel failed")]
    Control(#[source] ChannelError),
    /// The queues could not be made.
    #[error("the queues could not be made")]
    Queues(#[source] virtio_queue::Error),
    /// The host's fault.
    #[error("waiting for events failed")]
    Waits(#[source] Errno),
    /// The host's fault: what is in flight will never be told of.
    #[error("the io_uring of the disk failed")]
    Engine(#[source] Errno),
}

/// Serves `socket` until something ends it.
#[allow(
    clippy::arc_with_non_send_sync,
    reason = "the handler of the vhost crate takes an Arc, and there is one thread"
)]
pub(super) fn serve(channel: &Channel, socket: UnixStream, backend: Backend) -> Result<End, ServeError> {
    backend.waits().add(Source::Control, channel).map_err(ServeError::Waits)?;
    backend.waits().add(Source::FrontEnd, &socket).map_err(ServeError::Waits)?;
    let backend = Arc::new(Mutex::new(backend));
    let mut handler = BackendReqHandler::from_stream(socket, Arc::clone(&backend));
    loop {
        let events = {
            let backend = lock(&backend);
            backend.waits().wait(backend.is_pending()).map_err(ServeError::Waits)?
        };
        for event in events {
            match event {
                Source::Control => match channel.try_recv::<ToDevice>().and_then(wire::Received::without_fds) {
                    Ok(ToDevice::Shutdown) => return Ok(End::Shutdown),
                    Err(ChannelError::WouldBlock) => {}
                    Err(ChannelError::Closed) => return Ok(End::BrokerGone),
                    Err(error) => return Err(ServeError::Control(error)),
                },
                Source::FrontEnd => match handler.handle_request() {
                    Ok(()) => {}
                    Err(VhostError::Disconnected | VhostError::SocketBroken(_)) => return Ok(End::Disconnected),
                    Err(error) => {
                        let failure = lock(&backend).failure();
                        return Err(failure.map_or(ServeError::FrontEnd(error), ServeError::Engine));
                    }
                },
                Source::Done => lock(&backend).kicked_all(),
                Source::Kick(index) => lock(&backend).kicked(index),
            }
        }
        let mut backend = lock(&backend);
        backend.process();
        if let Some(errno) = backend.failure() {
            return Err(ServeError::Engine(errno));
        }
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

/// One thread holds the lock, so that it is always free; a panic ends the process.
fn lock(backend: &Mutex<Backend>) -> MutexGuard<'_, Backend> {
    backend.lock().unwrap_or_else(PoisonError::into_inner)
}
