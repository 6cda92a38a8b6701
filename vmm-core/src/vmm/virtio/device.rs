//! The state of a virtio device that every transport has: status, features, queues (virtio 1.2 §2.1, §2.2, §3.1).
//!
//! The driver is distrusted. Steps out of order are refused and leave the state as it was, a queue is checked when it
//! becomes ready and frozen from then on, and the device process hears of nothing but a complete, checked state.

use super::{Backend, Offer, QUEUE_SIZE_MAX, QUEUES, Queue, VERSION_1};
use crate::vmm::log::Grumble;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use vm_memory::GuestMemoryMmap;
use wire::message::{DiskSeen, StopReason};

/// Device status bits (virtio 1.2 §2.1).
pub mod status {
    /// The driver has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// The driver is ready; queues run.
    pub const DRIVER_OK: u32 = 4;
    /// The features are agreed on.
    pub const FEATURES_OK: u32 = 8;
    /// The device has met an error from which only a reset helps.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver has given up.
    pub const FAILED: u32 = 128;
    /// All that a driver may set.
    pub const ALL: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// What the control thread learns of a device process, and of the driver, while the guest runs.
#[derive(Debug, Default)]
pub struct Health {
    /// The status bits that the driver has set.
    driver: AtomicU32,
    /// The device process has stopped the device: it needs a reset.
    pub needs_reset: AtomicBool,
    /// The driver has not acknowledged the configuration change that announces it.
    pub config_changed: AtomicBool,
    /// Every status bit that the driver has ever set.
    pub reached: AtomicU32,
    /// What the driver did that it must not.
    pub refusals: AtomicU64,
}

impl Health {
    /// The device status.
    #[must_use]
    pub fn status(&self) -> u32 {
        let driver = self.driver.load(Ordering::SeqCst);
        if self.needs_reset.load(Ordering::SeqCst) { driver | status::NEEDS_RESET } else { driver }
    }

    /// What was seen of the driver.
    #[must_use]
    pub fn seen(&self) -> DiskSeen {
        let status = u8::try_from(self.reached.load(Ordering::Relaxed) & status::ALL).unwrap_or(0);
        DiskSeen { status, refusals: self.refusals.load(Ordering::Relaxed) }
    }
}

/// A part of a queue's configuration that the driver writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueField {
    /// The number of descriptors.
    Size,
    /// An address's lower or upper half.
    Address {
        /// Which part of the queue.
        part: QueuePart,
        /// Whether it is bits 32 to 63.
        high: bool,
    },
    /// Whether the queue may be used.
    Ready,
}

/// A part of a split virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueuePart {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Avail,
    /// The used ring.
    Used,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    queue: Queue,
    ready: bool,
}

const UNUSED: Slot = Slot { queue: Queue { size: QUEUE_SIZE_MAX, descriptors: 0, avail: 0, used: 0 }, ready: false };

/// A virtio device.
#[derive(Debug)]
pub struct VirtioDevice<B> {
    name: String,
    offer: Offer,
    memory: GuestMemoryMmap,
    backend: B,
    health: Arc<Health>,
    driver_features: u64,
    queues: [Slot; QUEUES],
    active: bool,
    refused: Grumble,
}

impl<B: Backend> VirtioDevice<B> {
    /// A device in its reset state.
    pub fn new(name: String, offer: Offer, memory: GuestMemoryMmap, backend: B, health: Arc<Health>) -> Self {
        let refused = Grumble::default();
        let (driver_features, queues, active) = (0, [UNUSED; QUEUES], false);
        Self { name, offer, memory, backend, health, driver_features, queues, active, refused }
    }

    /// The features that the device offers.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.offer.features
    }

    /// The device status.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.health.status()
    }

    /// What the control thread learns of it.
    #[must_use]
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// The driver has seen the configuration change.
    pub fn acknowledge_config(&self) {
        self.health.config_changed.store(false, Ordering::SeqCst);
    }

    /// Whether a queue is ready; false for queues that do not exist.
    #[must_use]
    pub fn queue_ready(&self, queue: u32) -> bool {
        self.slot(queue).is_some_and(|slot| slot.ready)
    }

    /// The largest size of a queue in descriptors; 0 for queues that do not exist.
    #[must_use]
    pub fn queue_size_max(&self, queue: u32) -> u16 {
        self.slot(queue).map_or(0, |_| QUEUE_SIZE_MAX)
    }

    /// Bytes of the configuration space; all ones beyond its end.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let known = usize::try_from(at).ok().and_then(|at| self.offer.config.get(at));
            *byte = known.copied().unwrap_or(0xff);
        }
    }

    /// How many writes of the driver were refused.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refused.count()
    }

    /// The driver writes half of its features.
    pub fn write_driver_features(&mut self, select: u32, value: u32) {
        let status = self.driver_status();
        if status & status::DRIVER == 0 || status & status::FEATURES_OK != 0 {
            return self.refuse("chooses features out of turn");
        }
        let (shift, mask) = match select {
            0 => (0, 0xffff_ffff),
            1 => (32, 0xffff_ffff_u64 << 32),
            // There are no features beyond bit 63; a driver may only write 0 there.
            _ if value == 0 => return,
            _ => return self.refuse("chooses features that do not exist"),
        };
        self.driver_features = (self.driver_features & !mask) | (u64::from(value) << shift);
    }

    /// The driver writes the device status.
    ///
    /// # Errors
    /// When the device process fails to start or to stop.
    pub fn write_status(&mut self, value: u32) -> Result<(), StopReason> {
        if value == 0 {
            return self.reset();
        }
        let (new, old) = (value & status::ALL, self.driver_status());
        if new & old != old {
            self.refuse("clears a status bit without a reset");
            return Ok(());
        }
        let order = [
            (status::DRIVER, status::ACKNOWLEDGE),
            (status::FEATURES_OK, status::DRIVER),
            (status::DRIVER_OK, status::FEATURES_OK),
        ];
        if order.iter().any(|&(step, before)| new & step != 0 && new & before == 0) {
            self.refuse("leaves out a step of the initialization");
            return Ok(());
        }
        let added = new & !old;
        if added & status::FEATURES_OK != 0 && !self.features_agreed() {
            self.refuse("chooses features that were not offered, or not VERSION_1");
            self.set_driver_status(old | (new & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED)));
            return Ok(());
        }
        self.set_driver_status(new);
        if added & status::DRIVER_OK != 0 { self.activate() } else { Ok(()) }
    }

    /// The driver writes a part of a queue's configuration.
    pub fn write_queue(&mut self, queue: u32, field: QueueField, value: u32) {
        let steps = status::FEATURES_OK | status::DRIVER_OK | status::FAILED;
        let open = self.driver_status() & steps == status::FEATURES_OK;
        let Some(slot) = self.slot(queue).copied() else {
            return self.refuse("configures a queue that does not exist");
        };
        let clears_what_is_clear = field == QueueField::Ready && value == 0 && !slot.ready;
        if !open && !clears_what_is_clear {
            return self.refuse("configures a queue out of turn");
        }
        if slot.ready && field != QueueField::Ready {
            return self.refuse("changes a queue that is ready");
        }
        match slot.write(field, value) {
            Ok(new) if new.ready => match new.queue.check(&self.memory) {
                Ok(()) => self.set_slot(queue, new),
                Err(error) => self.count_refusal(format_args!("a queue is refused: {error}")),
            },
            Ok(new) => self.set_slot(queue, new),
            Err(why) => self.refuse(why),
        }
    }

    fn driver_status(&self) -> u32 {
        self.health.driver.load(Ordering::SeqCst)
    }

    fn set_driver_status(&self, status: u32) {
        self.health.driver.store(status, Ordering::SeqCst);
        self.health.reached.fetch_or(status, Ordering::Relaxed);
    }

    fn features_agreed(&self) -> bool {
        self.driver_features & !self.offer.features == 0 && self.driver_features & VERSION_1 != 0
    }

    fn activate(&mut self) -> Result<(), StopReason> {
        let ready: Vec<Queue> = self.queues.iter().filter(|slot| slot.ready).map(|slot| slot.queue).collect();
        if ready.len() != QUEUES {
            self.refuse("starts without its queue");
            self.health.needs_reset.store(true, Ordering::SeqCst);
            return Ok(());
        }
        self.active = true;
        self.backend.activate(self.driver_features, &ready)
    }

    fn reset(&mut self) -> Result<(), StopReason> {
        if self.active {
            self.active = false;
            self.backend.reset()?;
        }
        (self.driver_features, self.queues) = (0, [UNUSED; QUEUES]);
        self.set_driver_status(0);
        self.health.needs_reset.store(false, Ordering::SeqCst);
        self.health.config_changed.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn slot(&self, queue: u32) -> Option<&Slot> {
        self.queues.get(usize::try_from(queue).ok()?)
    }

    fn set_slot(&mut self, queue: u32, new: Slot) {
        let slot = usize::try_from(queue).ok().and_then(|queue| self.queues.get_mut(queue));
        if let Some(slot) = slot {
            *slot = new;
        }
    }

    /// Counts something that the driver must not do.
    pub fn refuse(&mut self, what: &str) {
        self.count_refusal(format_args!("the driver {what}"));
    }

    fn count_refusal(&mut self, what: std::fmt::Arguments<'_>) {
        self.refused.about(format_args!("{}: {what}", self.name));
        self.health.refusals.store(self.refused.count(), Ordering::Relaxed);
    }
}

impl Slot {
    fn write(mut self, field: QueueField, value: u32) -> Result<Self, &'static str> {
        match field {
            QueueField::Size => {
                self.queue.size = u16::try_from(value).map_err(|_large| "asks for a queue too large")?
            }
            QueueField::Ready if value <= 1 => self.ready = value == 1,
            QueueField::Ready => return Err("makes a queue neither ready nor not"),
            QueueField::Address { part, high } => {
                let address = match part {
                    QueuePart::Descriptors => &mut self.queue.descriptors,
                    QueuePart::Avail => &mut self.queue.avail,
                    QueuePart::Used => &mut self.queue.used,
                };
                let value = u64::from(value);
                *address = if high { (*address & 0xffff_ffff) | (value << 32) } else { (*address >> 32 << 32) | value };
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
pub(super) mod tests;
