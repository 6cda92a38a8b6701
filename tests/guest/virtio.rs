//! A driver of virtio-mmio version 2 with one split queue, which can also break every rule (virtio 1.2 §2.7, §4.2).

use crate::cpu;
use core::ptr::{addr_of_mut, read_volatile, write_volatile};

/// Register offsets (virtio 1.2 §4.2.2).
pub const MAGIC: usize = 0x00;
pub const VERSION: usize = 0x04;
pub const DEVICE_ID: usize = 0x08;
const DEVICE_FEATURES: usize = 0x10;
const DEVICE_FEATURES_SEL: usize = 0x14;
const DRIVER_FEATURES: usize = 0x20;
const DRIVER_FEATURES_SEL: usize = 0x24;
pub const QUEUE_SEL: usize = 0x30;
pub const QUEUE_NUM_MAX: usize = 0x34;
pub const QUEUE_NUM: usize = 0x38;
pub const QUEUE_READY: usize = 0x44;
const QUEUE_NOTIFY: usize = 0x50;
const INTERRUPT_STATUS: usize = 0x60;
const INTERRUPT_ACK: usize = 0x64;
pub const STATUS: usize = 0x70;
pub const QUEUE_DESC: usize = 0x80;
const QUEUE_DRIVER: usize = 0x90;
pub const QUEUE_DEVICE: usize = 0xa0;
const CONFIG: usize = 0x100;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 0x40;

pub const F_VERSION_1: u64 = 1 << 32;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_INDIRECT: u64 = 1 << 28;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Entries of the queue.
pub const SIZE: u16 = 64;

/// A descriptor.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

/// The queue's three parts, each with room for the largest alignment.
#[repr(C, align(4096))]
struct Rings {
    descriptors: [Descriptor; SIZE as usize],
    avail: [u16; 4 + SIZE as usize],
    used: [u32; 4 + 2 * SIZE as usize],
}

const EMPTY: Descriptor = Descriptor { address: 0, length: 0, flags: 0, next: 0 };
static mut RINGS: Rings =
    Rings { descriptors: [EMPTY; SIZE as usize], avail: [0; 4 + SIZE as usize], used: [0; 4 + 2 * SIZE as usize] };

/// The device at one window, with the queue.
pub struct Device {
    base: usize,
    vector: u8,
    features: u64,
    avail: u16,
    seen: u16,
}

impl Device {
    /// The disk `n`, not initialized.
    pub fn new(n: u8) -> Self {
        Self::at(0xd000_0000 + usize::from(n) * 0x1000, 5 + n)
    }

    /// A device elsewhere.
    pub fn at(base: usize, gsi: u8) -> Self {
        Self { base, vector: cpu::route(gsi), features: 0, avail: 0, seen: 0 }
    }

    pub fn read(&self, register: usize) -> u32 {
        cpu::mmio_read(self.base + register)
    }

    pub fn write(&self, register: usize, value: u32) {
        cpu::mmio_write(self.base + register, value);
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        let half = |n| {
            self.write(DEVICE_FEATURES_SEL, n);
            u64::from(self.read(DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    pub fn config(&self, offset: usize) -> u32 {
        self.read(CONFIG + offset)
    }

    pub fn config_u64(&self, offset: usize) -> u64 {
        u64::from(self.config(offset)) | u64::from(self.config(offset + 4)) << 32
    }

    /// Resets and negotiates; false when the device refuses the features.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.write(STATUS, 0);
        while self.read(STATUS) != 0 {
            core::hint::spin_loop();
        }
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        for (n, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(DRIVER_FEATURES_SEL, n);
            self.write(DRIVER_FEATURES, half);
        }
        self.features = features;
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.read(STATUS) & FEATURES_OK != 0
    }

    /// Negotiates, sets the queue up and starts the device.
    pub fn start(&mut self, features: u64) -> bool {
        if !self.negotiate(features) {
            return false;
        }
        // SAFETY: the device was just reset and does not use the rings.
        unsafe { addr_of_mut!(RINGS).write_bytes(0, 1) };
        (self.avail, self.seen) = (0, 0);
        // SAFETY: only addresses are taken.
        let (avail, used) = unsafe { (addr_of_mut!(RINGS.avail) as u64, addr_of_mut!(RINGS.used) as u64) };
        self.activate(SIZE, [addr_of_mut!(RINGS) as u64, avail, used])
    }

    /// Starts the device with a queue elsewhere: its descriptors, available and used ring.
    pub fn activate(&self, size: u16, parts: [u64; 3]) -> bool {
        self.write(QUEUE_SEL, 0);
        self.write(QUEUE_NUM, u32::from(size));
        for (register, address) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE].into_iter().zip(parts) {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.read(STATUS) & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Puts a descriptor into the table.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        // SAFETY: a store into the table.
        unsafe { write_volatile(addr_of_mut!(RINGS.descriptors[usize::from(index)]), descriptor) }
    }

    /// Describes a chain of buffers from `first` on.
    pub fn chain(&self, first: u16, buffers: &[(u64, u32, u16)]) {
        for (index, &(address, length, flags)) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            let flags = if last { flags } else { flags | NEXT };
            self.describe(index, Descriptor { address, length, flags, next: if last { 0 } else { index + 1 } });
        }
    }

    /// Makes a head available, without telling the device.
    pub fn offer(&mut self, head: u16) {
        // SAFETY: stores into the ring, the entry before the index; x86 keeps stores in order.
        unsafe {
            write_volatile(addr_of_mut!(RINGS.avail[2 + usize::from(self.avail % SIZE)]), head);
            self.avail = self.avail.wrapping_add(1);
            write_volatile(addr_of_mut!(RINGS.avail[1]), self.avail);
        }
    }

    /// Publishes an index that jumps.
    pub fn jump(&mut self, by: u16) {
        self.avail = self.avail.wrapping_add(by);
        // SAFETY: a store into the ring.
        unsafe { write_volatile(addr_of_mut!(RINGS.avail[1]), self.avail) }
    }

    pub fn notify(&self) {
        self.write(QUEUE_NOTIFY, 0);
    }

    /// How many chains came back in all.
    pub fn used(&self) -> u16 {
        // SAFETY: a load of the 16-bit index that stands in the upper half of the first word.
        (unsafe { read_volatile(addr_of_mut!(RINGS.used[0])) } >> 16) as u16
    }

    /// The head and the length of the nth returned chain.
    pub fn used_entry(&self, n: u16) -> (u32, u32) {
        let at = 1 + 2 * usize::from(n % SIZE);
        // SAFETY: loads from the ring.
        unsafe { (read_volatile(addr_of_mut!(RINGS.used[at])), read_volatile(addr_of_mut!(RINGS.used[at + 1]))) }
    }

    /// Waits by interrupts until `chains` more came back; false when they do not, or the device needs a reset.
    pub fn wait(&mut self, chains: u16, limit_ms: u64) -> bool {
        let wanted = self.seen.wrapping_add(chains);
        let back = |device: &Self| device.used().wrapping_sub(wanted) < 0x8000;
        if self.features & F_EVENT_IDX != 0 {
            // used_event: interrupt when this many are used (virtio 1.2 §2.7.7).
            // SAFETY: a store into the ring.
            unsafe { write_volatile(addr_of_mut!(RINGS.avail[2 + SIZE as usize]), wanted.wrapping_sub(1)) }
        }
        cpu::wait_ms(limit_ms, || back(self));
        self.acknowledge();
        let good = back(self);
        self.seen = self.used();
        good
    }

    /// Acknowledges the interrupts that came, as a driver does after each.
    pub fn acknowledge(&self) {
        let status = self.read(INTERRUPT_STATUS);
        self.write(INTERRUPT_ACK, status);
    }

    /// How many interrupts came.
    pub fn interrupts(&self) -> u64 {
        cpu::count(self.vector)
    }
}
