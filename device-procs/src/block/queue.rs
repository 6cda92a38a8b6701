//! One virtqueue of the disk: its life as vhost-user tells it, and the processing of what the driver made available.
//!
//! Distrusts the driver (ring contents) and the front end (configuration). A configuration cannot change while the ring
//! runs. Promises to do the requests in order, those that follow each other on the disk as one, to refuse a descriptor head
//! that is in flight, and to touch a broken ring never again until it was stopped.

mod process;

use super::flight::{Flight, Kernel};
use super::request::{BrokenChain, Memory};
use nix::errno::Errno;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::Ordering;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

/// The most descriptors of a ring.
pub const QUEUE_SIZE: u16 = 256;

/// What the driver did to break a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The rings are not all inside guest memory.
    #[error("the virtqueue is not inside guest memory")]
    OutsideMemory,
    /// The available index jumped, a head is out of range, or the ring could not be accessed.
    #[error("the available ring is broken")]
    Queue(#[source] virtio_queue::Error),
    /// A chain has no place for a status.
    #[error(transparent)]
    Chain(#[from] BrokenChain),
    /// A chain was made available again before it came back.
    #[error("descriptor head {0} was made available while it was in flight")]
    InFlight(u16),
    /// The host's fault; something may be in flight for ever.
    #[error("the io_uring of the disk failed")]
    Engine(#[source] Errno),
}

/// What the front end must not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// Its configuration cannot change now.
    #[error("the ring runs already")]
    Running,
    /// Its size.
    #[error("the ring size is not a power of two of at most {QUEUE_SIZE}")]
    Size,
    /// Its first index.
    #[error("the ring base does not fit 16 bits")]
    Base,
    /// An address.
    #[error("a ring address is misaligned")]
    Alignment,
    /// No addresses.
    #[error("the ring was started without addresses")]
    NoAddresses,
    /// Its kick.
    #[error("the kick descriptor cannot be waited for")]
    Kick,
}

/// Whether there is more to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The driver will kick.
    Idle,
    /// The batch was full.
    More,
}

/// A virtqueue.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    has_addresses: bool,
    enabled: bool,
    broken: bool,
    /// To be processed without waiting for a kick.
    pending: bool,
    /// Something was done that the driver was not told of.
    untold: bool,
    kick: Option<File>,
    call: Option<File>,
    error: Option<File>,
    /// With an engine that has many requests in flight.
    flight: Option<Flight>,
}

impl Ring {
    /// A stopped ring.
    ///
    /// # Errors
    /// Never: the size is right.
    pub fn new() -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            queue: Queue::new(QUEUE_SIZE)?,
            has_addresses: false,
            enabled: false,
            broken: false,
            pending: false,
            untold: false,
            kick: None,
            call: None,
            error: None,
            flight: None,
        })
    }

    /// Has many requests in flight at once, in `kernel`.
    pub fn set_kernel(&mut self, kernel: Box<dyn Kernel>) {
        self.flight = Some(Flight::new(kernel));
    }

    /// Whether the ring was started and not stopped since.
    pub(super) fn is_running(&self) -> bool {
        self.queue.ready()
    }

    /// Whether requests are to be processed.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.is_running() && self.enabled && !self.broken
    }

    /// Whether something can be done: what is in flight is answered although the ring was disabled since, as nobody else
    /// takes from the kernel what is done.
    fn has_work(&self) -> bool {
        let in_flight = self.flight.as_ref().is_some_and(|flight| !flight.is_empty());
        self.is_running() && !self.broken && (self.enabled || in_flight)
    }

    /// Whether requests are to be processed without waiting for a kick.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        let is_behind = self.flight.as_ref().is_some_and(Flight::is_behind);
        self.has_work() && (self.pending || is_behind)
    }

    /// The descriptor that the driver's notifications arrive at, until the ring is stopped.
    #[must_use]
    pub fn kick(&self) -> Option<&File> {
        self.kick.as_ref()
    }

    fn stopped(&mut self) -> Result<&mut Queue, SetupError> {
        if self.is_running() { Err(SetupError::Running) } else { Ok(&mut self.queue) }
    }

    /// Sets the number of descriptors.
    ///
    /// # Errors
    /// When it is no power of two up to [`QUEUE_SIZE`], or the ring runs.
    pub fn set_size(&mut self, size: u32) -> Result<(), SetupError> {
        let size = u16::try_from(size).map_err(|_too_large| SetupError::Size)?;
        self.stopped()?.try_set_size(size).map_err(|_invalid| SetupError::Size)
    }

    /// Sets where the ring is.
    ///
    /// # Errors
    /// When an address is misaligned, or the ring runs.
    pub fn set_addresses(
        &mut self,
        descriptors: GuestAddress,
        available: GuestAddress,
        used: GuestAddress,
    ) -> Result<(), SetupError> {
        let queue = self.stopped()?;
        queue.try_set_desc_table_address(descriptors).map_err(|_misaligned| SetupError::Alignment)?;
        queue.try_set_avail_ring_address(available).map_err(|_misaligned| SetupError::Alignment)?;
        queue.try_set_used_ring_address(used).map_err(|_misaligned| SetupError::Alignment)?;
        self.has_addresses = true;
        Ok(())
    }

    /// Sets the index of the next available entry.
    ///
    /// # Errors
    /// When it does not fit, or the ring runs.
    pub fn set_base(&mut self, base: u32) -> Result<(), SetupError> {
        let base = u16::try_from(base).map_err(|_too_large| SetupError::Base)?;
        self.stopped()?.set_next_avail(base);
        Ok(())
    }

    /// Sets the eventfd that the driver's notifications arrive at; the first one starts the ring.
    ///
    /// Gives what the driver did wrong, if the ring is broken from the start.
    ///
    /// # Errors
    /// When it has no addresses.
    pub fn start(
        &mut self,
        kick: File,
        memory: &Memory,
        event_idx: bool,
        enabled: bool,
    ) -> Result<Result<(), RingError>, SetupError> {
        if !self.has_addresses {
            return Err(SetupError::NoAddresses);
        }
        self.kick = Some(kick);
        self.pending = true;
        if self.is_running() {
            return Ok(Ok(()));
        }
        self.enabled |= enabled;
        self.queue.set_event_idx(event_idx);
        self.queue.set_ready(true);
        // The driver's used index counts, also after the device process was replaced.
        let checked = self.check(memory).and_then(|()| {
            self.queue.used_idx(memory, Ordering::Acquire).map(|index| index.0).map_err(RingError::Queue)
        });
        Ok(checked.map(|used| self.queue.set_next_used(used)).inspect_err(|_error| self.set_broken()))
    }

    /// Sets the eventfd that completions are signalled with.
    pub fn set_call(&mut self, call: Option<File>) {
        self.call = call;
    }

    /// Sets the eventfd that a broken ring is signalled with.
    pub fn set_error(&mut self, error: Option<File>) {
        self.error = error;
    }

    /// Lets requests be taken from the ring, or not. Those in flight are answered all the same.
    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.pending |= enabled && !self.enabled;
        self.enabled = enabled;
    }

    /// Stops the ring, from which nothing may be in flight ([`Self::drain`]), mends it, and gives the index of the next available entry.
    pub fn stop(&mut self) -> u16 {
        let base = self.queue.next_avail();
        let (size, call, error) = (self.queue.size(), self.call.take(), self.error.take());
        self.queue.reset();
        self.queue.set_size(size);
        self.queue.set_next_avail(base);
        self.has_addresses = false;
        self.broken = false;
        self.pending = false;
        self.kick = None;
        // They outlive a stop: a front end may set them once only.
        (self.call, self.error) = (call, error);
        base
    }

    /// Looks at guest memory again after it was mapped anew.
    pub(super) fn remapped(&mut self, memory: &Memory) -> Result<(), RingError> {
        if !self.is_running() || self.broken {
            return Ok(());
        }
        self.check(memory).inspect_err(|_error| self.set_broken())
    }

    fn check(&self, memory: &Memory) -> Result<(), RingError> {
        if self.queue.is_valid(memory) { Ok(()) } else { Err(RingError::OutsideMemory) }
    }

    fn set_broken(&mut self) {
        self.broken = true;
        signal(self.error.as_ref());
    }

    /// Takes the driver's notification.
    pub(super) fn kicked(&mut self) {
        self.pending = true;
    }
}

/// Adds one to an eventfd. That it is full already serves as well, and any other failure is the front end's own.
fn signal(eventfd: Option<&File>) {
    if let Some(mut eventfd) = eventfd {
        drop(eventfd.write(&1u64.to_ne_bytes()));
    }
}
