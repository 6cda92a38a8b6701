//! One virtqueue of the disk: its life as vhost-user tells it, and the processing of what the driver made available.
//!
//! Distrusts the driver (ring contents) and the front end (configuration). A configuration cannot change while the ring
//! runs. Promises to do every request in order and completely before the next, so that no descriptor head is ever in
//! flight twice, and to touch a broken ring never again until it was stopped.

use super::disk::Disk;
use super::request::{BrokenChain, Limits, Memory, parse};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// The most descriptors of a ring.
pub const QUEUE_SIZE: u16 = 256;

/// The most requests done before the sockets are looked at again.
const BATCH: usize = QUEUE_SIZE as usize;
/// The most bytes moved before that, but for the last request: some tens of milliseconds on a slow disk.
const BATCH_BYTES: u64 = 16 << 20;

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
    #[error("the kick descriptor is no eventfd")]
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
    kick: Option<File>,
    call: Option<File>,
    error: Option<File>,
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
            kick: None,
            call: None,
            error: None,
        })
    }

    /// Whether the ring was started and not stopped since.
    pub(super) fn is_running(&self) -> bool {
        self.queue.ready()
    }

    /// Whether requests are to be processed.
    fn is_active(&self) -> bool {
        self.is_running() && self.enabled && !self.broken
    }

    /// Whether requests are to be processed without waiting for a kick.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.is_active() && self.pending
    }

    /// The descriptor to wait for.
    #[must_use]
    pub fn kick(&self) -> Option<&File> {
        self.kick.as_ref().filter(|_kick| self.is_active())
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

    /// Lets a ring be processed, or not.
    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.pending |= enabled && !self.enabled;
        self.enabled = enabled;
    }

    /// Stops the ring, mends it, and gives the index of the next available entry.
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
    pub(super) fn take_kick(&mut self) -> Result<(), SetupError> {
        let Some(mut kick) = self.kick.as_ref() else { return Ok(()) };
        let mut counter = [0; 8];
        match kick.read(&mut counter) {
            Ok(8) => {
                self.pending = true;
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Ok(_) | Err(_) => Err(SetupError::Kick),
        }
    }

    /// Does up to a batch of requests and notifies the driver if it wants to know.
    ///
    /// # Errors
    /// When the driver broke the ring, which is not processed again until it was stopped.
    pub fn process(&mut self, memory: &Memory, disk: &mut Disk) -> Result<Progress, RingError> {
        if !self.is_active() {
            return Ok(Progress::Idle);
        }
        let progress = self.process_batch(memory, disk).inspect_err(|_error| self.set_broken())?;
        self.pending = progress == Progress::More;
        Ok(progress)
    }

    fn process_batch(&mut self, memory: &Memory, disk: &mut Disk) -> Result<Progress, RingError> {
        let limits = Limits { capacity: disk.capacity(), read_only: disk.is_read_only() };
        let mut done = 0usize;
        let mut full = false;
        // Only this batch counts.
        disk.take_work_bytes();
        let mut moved = 0u64;
        let progress = loop {
            self.queue.disable_notification(memory).map_err(RingError::Queue)?;
            while !full {
                let next = self.queue.iter(memory).map_err(RingError::Queue)?.next();
                let Some(chain) = next else { break };
                let head = chain.head_index();
                let written = execute(memory, chain, limits, disk);
                // What was done before a broken chain is told to the driver nevertheless.
                let written = match written {
                    Ok(written) => written,
                    Err(broken) => {
                        self.notify(memory, done)?;
                        return Err(broken.into());
                    }
                };
                self.queue.add_used(memory, head, written).map_err(RingError::Queue)?;
                done = done.saturating_add(1);
                moved = moved.saturating_add(disk.take_work_bytes());
                full = done >= BATCH || moved >= BATCH_BYTES;
            }
            if full {
                break Progress::More;
            }
            if !self.queue.enable_notification(memory).map_err(RingError::Queue)? {
                break Progress::Idle;
            }
        };
        self.notify(memory, done)?;
        Ok(progress)
    }

    fn notify(&mut self, memory: &Memory, done: usize) -> Result<(), RingError> {
        if done > 0 && self.wants_call(memory)? {
            signal(self.call.as_ref());
        }
        Ok(())
    }

    /// Whether the driver wants to be interrupted (virtio 1.2 §2.7.7).
    fn wants_call(&mut self, memory: &Memory) -> Result<bool, RingError> {
        // Orders the used index before the driver's flag or event index, which it reads next.
        let needed = self.queue.needs_notification(memory).map_err(RingError::Queue)?;
        if self.queue.event_idx_enabled() {
            return Ok(needed);
        }
        let address = GuestAddress(self.queue.avail_ring());
        let flags = memory.load(address, Ordering::Relaxed).map(u16::from_le);
        let flags = flags.map_err(|error| RingError::Queue(virtio_queue::Error::GuestMemory(error)))?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

/// Does one request, writes its status, and gives the number of bytes written to the driver's buffers.
fn execute(
    memory: &Memory,
    chain: virtio_queue::DescriptorChain<&Memory>,
    limits: Limits,
    disk: &mut Disk,
) -> Result<u32, BrokenChain> {
    use super::request::Status;
    let parsed = parse(memory, chain, limits)?;
    let status = match parsed.request {
        Ok(request) => disk.execute(request),
        Err(refusal) => refusal.status(),
    };
    parsed.status.write_obj(status.byte(), 0).map_err(|_outside| BrokenChain::StatusOutsideMemory)?;
    let data_bytes = if status == Status::Ok { parsed.writable_bytes } else { 0 };
    Ok(data_bytes.saturating_add(1))
}

/// Adds one to an eventfd. That it is full already serves as well, and any other failure is the front end's own.
fn signal(eventfd: Option<&File>) {
    if let Some(mut eventfd) = eventfd {
        drop(eventfd.write(&1u64.to_ne_bytes()));
    }
}
