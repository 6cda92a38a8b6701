//! The vmm's side of the serial port: writes are posted, the line status is answered here, other reads are asked for.
//!
//! Neither the guest nor serial is trusted: offsets are masked, a full ring drops the write, and a serial that publishes
//! an impossible index or does not answer within two seconds ends the run.

use super::sync::lock;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;
use wire::message::{SerialRead, SerialValue, StopReason};
use wire::ring::{Posted, PostedWrite, Producer, RingError};
use wire::{Channel, ChannelError, Text};

/// The number of serial in [`StopReason::DeviceFailed`].
const DEVICE: u8 = 0;
/// How long serial may take to answer a register read.
const READ_DEADLINE: Duration = Duration::from_secs(2);
/// The registers' mask: eight of them (16550A).
const OFFSET_MASK: u8 = 7;
/// The line status register (16550A §8.6.3).
const LINE_STATUS: u8 = 5;
/// Line status: the transmitter holding register and the transmitter are empty.
const TRANSMITTER_EMPTY: u8 = 0x60;
/// The transmitter shows itself empty while this many writes fit: more than a driver sends after one look at it.
const ROOM: u32 = 64;

/// Why serial failed.
#[derive(Debug, thiserror::Error)]
enum SerialError {
    #[error("serial broke the posted-write ring")]
    Ring(#[source] RingError),
    #[error("serial does not answer")]
    Channel(#[source] ChannelError),
    #[error("serial's doorbell cannot be rung")]
    Doorbell(#[source] std::io::Error),
}

impl From<SerialError> for StopReason {
    fn from(error: SerialError) -> Self {
        Self::DeviceFailed { device: DEVICE, why: Text::truncated(super::chain(&error)) }
    }
}

#[derive(Debug)]
struct Line {
    producer: Producer,
    channel: Channel,
}

/// The serial port as the vCPUs see it.
#[derive(Debug)]
pub struct SerialProxy {
    line: Mutex<Line>,
    doorbell: EventFd,
    /// As the producer counted it last: the control thread asks for it, and must not wait for a vCPU thread.
    dropped: AtomicU64,
}

impl SerialProxy {
    /// The port in front of a serial process.
    ///
    /// # Errors
    /// When the ring cannot be mapped.
    pub fn new(socket: OwnedFd, ring: OwnedFd, doorbell: EventFd) -> Result<Self, RingError> {
        let line = Line { producer: Producer::map(ring)?, channel: Channel::from(socket) };
        Ok(Self { line: Mutex::new(line), doorbell, dropped: AtomicU64::new(0) })
    }

    /// Reads a register.
    ///
    /// # Errors
    /// When serial breaks the protocol or does not answer in time.
    pub fn read(&self, offset: u8) -> Result<u8, StopReason> {
        let offset = offset & OFFSET_MASK;
        let line = lock(&self.line);
        if offset == LINE_STATUS {
            let empty = line.producer.space().map_err(SerialError::Ring)? >= ROOM;
            let received = line.producer.line_status() & !TRANSMITTER_EMPTY;
            return Ok(if empty { received | TRANSMITTER_EMPTY } else { received });
        }
        // Without waiting: a serial that answers without reading would fill the socket up.
        line.channel.try_send(&SerialRead { offset }, &[]).map_err(SerialError::Channel)?;
        let answer = line.channel.recv_plain_timeout::<SerialValue>(READ_DEADLINE).map_err(SerialError::Channel)?;
        Ok(answer.value)
    }

    /// Writes a register.
    ///
    /// # Errors
    /// When serial breaks the protocol.
    pub fn write(&self, offset: u8, value: u8) -> Result<(), StopReason> {
        let offset = offset & OFFSET_MASK;
        let mut line = lock(&self.line);
        let posted = line.producer.post(PostedWrite { offset, value }).map_err(SerialError::Ring)?;
        match posted {
            Posted::Dropped => self.dropped.store(line.producer.dropped(), Ordering::Relaxed),
            Posted::RingDoorbell => {
                drop(line);
                self.doorbell.write(1).map_err(SerialError::Doorbell)?;
            }
            Posted::Quiet => {}
        }
        Ok(())
    }

    /// Register writes that were lost because the ring was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use wire::ring::{Consumer, RING_BYTES, SLOTS};

    fn port() -> (SerialProxy, Consumer, Channel, EventFd) {
        let ring = memfd_create(c"ring", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&ring, RING_BYTES as i64).unwrap();
        let (ours, theirs) = Channel::pair().unwrap();
        let doorbell = EventFd::new(nix::libc::EFD_NONBLOCK).unwrap();
        let consumer = Consumer::map(ring.try_clone().unwrap()).unwrap();
        let proxy = SerialProxy::new(ours.into(), ring, doorbell.try_clone().unwrap()).unwrap();
        (proxy, consumer, theirs, doorbell)
    }

    #[test]
    fn write_to_a_sleeping_serial_rings_the_doorbell_once() {
        let (proxy, mut consumer, _channel, doorbell) = port();
        assert!(consumer.sleep());
        proxy.write(0, b'x').unwrap();
        assert_eq!(doorbell.read().unwrap(), 1);
        consumer.wake();
        proxy.write(8, b'y').unwrap();
        assert!(doorbell.read().is_err());
        assert_eq!(consumer.take().unwrap(), Some(PostedWrite { offset: 0, value: b'x' }));
        assert_eq!(consumer.take().unwrap(), Some(PostedWrite { offset: 0, value: b'y' }));
    }

    #[test]
    fn line_status_shows_a_busy_transmitter_before_the_ring_is_full() {
        let (proxy, consumer, _channel, _) = port();
        consumer.publish_line_status(0x61);
        assert_eq!(proxy.read(5).unwrap(), 0x61);
        for _ in 0..SLOTS - ROOM + 1 {
            proxy.write(0, b'x').unwrap();
        }
        assert_eq!(proxy.read(5).unwrap(), 0x01);
        for _ in 0..ROOM {
            proxy.write(0, b'x').unwrap();
        }
        assert_eq!(proxy.dropped(), 1);
    }

    #[test]
    fn register_read_is_answered_by_serial() {
        let (proxy, _consumer, channel, _) = port();
        let serial = std::thread::spawn(move || {
            let read = channel.recv::<SerialRead>().unwrap().without_fds().unwrap();
            channel.send(&SerialValue { value: read.offset + 40 }, &[]).unwrap();
        });
        assert_eq!(proxy.read(2).unwrap(), 42);
        serial.join().unwrap();
    }

    #[test]
    fn serial_that_answers_without_reading_fails_the_device() {
        let (proxy, _consumer, channel, _) = port();
        let failed = (0..100_000).find_map(|_| {
            channel.try_send(&SerialValue { value: 1 }, &[]).unwrap();
            proxy.read(0).err()
        });
        assert!(matches!(failed, Some(StopReason::DeviceFailed { device: 0, .. })));
    }

    #[test]
    fn lost_writes_are_told_while_a_register_read_waits() {
        let (proxy, _consumer, _channel, _) = port();
        let _line = lock(&proxy.line);
        assert_eq!(proxy.dropped(), 0);
    }

    #[test]
    fn serial_that_is_gone_fails_the_device() {
        let (proxy, _consumer, channel, _) = port();
        drop(channel);
        assert!(matches!(proxy.read(0), Err(StopReason::DeviceFailed { device: 0, .. })));
    }
}
