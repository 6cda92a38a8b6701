//! The virtio-mmio registers, version 2 (virtio 1.2 §4.2.2).
//!
//! The driver is distrusted: registers are written by aligned 32-bit words only. What is no register that can be read, and
//! the rest of the window, reads as all ones. No access panics.
//!
//! Where KVM has read-only memory, the driver reads a [`View`] of the window instead, without an exit. It always shows what
//! [`MmioTransport::read`] would answer, but while a write or [`Alarm::raise`] is at work.
//!
//! InterruptStatus always reads with bit 0 set: completions go from the device process through an irqfd to KVM and never
//! pass the vmm, so every interrupt may be one.

use super::device::{Health, QueueField, QueuePart, VirtioDevice};
use super::view::View;
use super::{Backend, DEVICE_ID_BLOCK};
use crate::arch::layout::VIRTIO_WINDOW_BYTES;
use crate::vmm::sync::lock;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use wire::message::StopReason;

/// Where the configuration space starts in a window (virtio 1.2 §4.2.2).
const CONFIG_START: u64 = 0x100;
/// "virt", the value of MagicValue.
const MAGIC: u32 = 0x7472_6976;
/// The value of Version: not the legacy interface.
const VERSION: u32 = 2;
/// The value of VendorID: "BLKH", read as bytes.
const VENDOR: u32 = u32::from_le_bytes(*b"BLKH");
/// InterruptStatus: a used buffer.
pub const INTERRUPT_USED: u32 = 1;
/// InterruptStatus: a configuration change.
const INTERRUPT_CONFIG: u32 = 2;
/// QueueNotify: the ioeventfd at this offset takes it from the vmm.
pub const QUEUE_NOTIFY: u64 = 0x50;
/// InterruptStatus.
const INTERRUPT_STATUS: u64 = 0x60;
/// InterruptACK: an ioeventfd at this offset takes [`INTERRUPT_USED`] from the vmm, for which that means nothing.
pub const INTERRUPT_ACK: u64 = 0x64;
/// Status.
const STATUS: u64 = 0x70;

/// A register, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Constant(u32),
    DeviceFeatures,
    DeviceFeaturesSelect,
    DriverFeatures,
    DriverFeaturesSelect,
    QueueSelect,
    QueueSizeMax,
    Queue(QueueField),
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
}

const fn address(part: QueuePart, high: bool) -> Register {
    Register::Queue(QueueField::Address { part, high })
}

/// The register map (virtio 1.2 §4.2.2, table 4.1); registers of features that are not offered are left out.
const REGISTERS: &[(u64, Register)] = &[
    (0x000, Register::Constant(MAGIC)),
    (0x004, Register::Constant(VERSION)),
    (0x008, Register::Constant(DEVICE_ID_BLOCK)),
    (0x00c, Register::Constant(VENDOR)),
    (0x010, Register::DeviceFeatures),
    (0x014, Register::DeviceFeaturesSelect),
    (0x020, Register::DriverFeatures),
    (0x024, Register::DriverFeaturesSelect),
    (0x030, Register::QueueSelect),
    (0x034, Register::QueueSizeMax),
    (0x038, Register::Queue(QueueField::Size)),
    (0x044, Register::Queue(QueueField::Ready)),
    (QUEUE_NOTIFY, Register::QueueNotify),
    (INTERRUPT_STATUS, Register::InterruptStatus),
    (INTERRUPT_ACK, Register::InterruptAck),
    (STATUS, Register::Status),
    (0x080, address(QueuePart::Descriptors, false)),
    (0x084, address(QueuePart::Descriptors, true)),
    (0x090, address(QueuePart::Avail, false)),
    (0x094, address(QueuePart::Avail, true)),
    (0x0a0, address(QueuePart::Used, false)),
    (0x0a4, address(QueuePart::Used, true)),
    // ConfigGeneration: the configuration space never changes.
    (0x0fc, Register::Constant(0)),
];

fn register_at(offset: u64) -> Option<Register> {
    REGISTERS.iter().find(|&&(at, _)| at == offset).map(|&(_, register)| register)
}

/// A virtio device behind virtio-mmio registers.
#[derive(Debug)]
pub struct MmioTransport<B> {
    device: VirtioDevice<B>,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    /// Locked while it is written, so that what is shown last is what was true last.
    view: Option<Arc<Mutex<View>>>,
}

/// The control thread's end of a transport. It waits for no vCPU thread, which may wait for the control thread.
#[derive(Debug)]
pub struct Alarm {
    health: Arc<Health>,
    view: Option<Arc<Mutex<View>>>,
}

impl Alarm {
    /// The device process has stopped its device: from now on the driver reads that it needs a reset, and that its
    /// configuration has changed (virtio 1.2 §2.1.2).
    pub fn raise(&self) {
        self.health.needs_reset.store(true, Ordering::SeqCst);
        self.health.config_changed.store(true, Ordering::SeqCst);
        if let Some(view) = &self.view {
            let view = lock(view);
            view.show(STATUS, self.health.status());
            view.show(INTERRUPT_STATUS, interrupt_status(&self.health));
        }
    }

    /// What the control thread learns of the device.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }
}

impl<B: Backend> MmioTransport<B> {
    /// The registers of `device`, which are shown in `view` as well.
    pub fn new(device: VirtioDevice<B>, view: Option<View>) -> Self {
        let view = view.map(|view| Arc::new(Mutex::new(view)));
        let transport = Self { device, device_features_select: 0, driver_features_select: 0, queue_select: 0, view };
        transport.show((0..VIRTIO_WINDOW_BYTES).step_by(4));
        transport
    }

    /// The control thread's end.
    #[must_use]
    pub fn alarm(&self) -> Alarm {
        Alarm { health: Arc::clone(self.device.health()), view: self.view.clone() }
    }

    /// The driver reads `data.len()` bytes at `offset` of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(0..) {
            let at = offset.wrapping_add(at);
            let bytes = self.word(at & !3).to_le_bytes();
            // The index is below 4.
            *byte = bytes.into_iter().nth((at & 3) as usize).unwrap_or(0xff);
        }
    }

    /// Shows the words at `offsets`.
    fn show(&self, offsets: impl Iterator<Item = u64>) {
        if let Some(view) = &self.view {
            let view = lock(view);
            offsets.for_each(|offset| view.show(offset, self.word(offset)));
        }
    }

    /// The word at `offset`, a multiple of 4.
    fn word(&self, offset: u64) -> u32 {
        match offset.checked_sub(CONFIG_START) {
            None => register_at(offset).map_or(u32::MAX, |register| self.read_register(register)),
            Some(offset) => {
                let mut word = [0; 4];
                self.device.read_config(offset, &mut word);
                u32::from_le_bytes(word)
            }
        }
    }

    /// The driver writes `data` at `offset` of the window.
    ///
    /// # Errors
    /// When the device process fails.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), StopReason> {
        let (Ok(word), Some(register)) = (<[u8; 4]>::try_from(data), register_at(offset)) else {
            self.device.refuse("writes where there is no register");
            return Ok(());
        };
        self.write_register(register, u32::from_le_bytes(word))?;
        // The configuration space never changes.
        self.show(REGISTERS.iter().map(|&(offset, _)| offset));
        Ok(())
    }

    fn read_register(&self, register: Register) -> u32 {
        match register {
            Register::Constant(value) => value,
            Register::DeviceFeatures => half(self.device.features(), self.device_features_select),
            Register::QueueSizeMax => self.device.queue_size_max(self.queue_select).into(),
            Register::Queue(QueueField::Ready) => self.device.queue_ready(self.queue_select).into(),
            Register::InterruptStatus => interrupt_status(self.device.health()),
            Register::Status => self.device.status(),
            // The rest is write-only.
            _ => u32::MAX,
        }
    }

    fn write_register(&mut self, register: Register, value: u32) -> Result<(), StopReason> {
        match register {
            Register::DeviceFeaturesSelect => self.device_features_select = value,
            Register::DriverFeaturesSelect => self.driver_features_select = value,
            Register::DriverFeatures => self.device.write_driver_features(self.driver_features_select, value),
            Register::QueueSelect => self.queue_select = value,
            Register::Queue(field) => self.device.write_queue(self.queue_select, field, value),
            Register::InterruptAck if value & INTERRUPT_CONFIG != 0 => self.device.acknowledge_config(),
            // KVM takes the notifications of queues that exist; those of others mean nothing.
            Register::InterruptAck | Register::QueueNotify => {}
            Register::Status => {
                if value == 0 {
                    (self.device_features_select, self.driver_features_select, self.queue_select) = (0, 0, 0);
                }
                self.device.write_status(value)?;
            }
            Register::Constant(_) | Register::DeviceFeatures | Register::QueueSizeMax | Register::InterruptStatus => {
                self.device.refuse("writes a register that is read-only");
            }
        }
        Ok(())
    }
}

fn interrupt_status(health: &Health) -> u32 {
    if health.config_changed.load(Ordering::SeqCst) { INTERRUPT_USED | INTERRUPT_CONFIG } else { INTERRUPT_USED }
}

fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::tests::{Mock, OFFERED, device};
    use super::super::view::Views;
    use super::*;
    use wire::DiskCount;

    fn transport() -> (MmioTransport<Mock>, Mock, Alarm) {
        let (device, mock, _) = device();
        let views = Views::map(DiskCount::try_from(1).unwrap()).unwrap().unwrap();
        let transport = MmioTransport::new(device, Some(views.of(0)));
        let alarm = transport.alarm();
        (transport, mock, alarm)
    }

    /// Reads a word, and sees to it that the view shows the same.
    fn read(transport: &MmioTransport<Mock>, offset: u64) -> u32 {
        let mut word = [0; 4];
        transport.read(offset, &mut word);
        let word = u32::from_le_bytes(word);
        assert_eq!(lock(transport.view.as_ref().unwrap()).shown(offset), Some(word), "at {offset:#x}");
        word
    }

    fn write(transport: &mut MmioTransport<Mock>, offset: u64, value: u32) {
        transport.write(offset, &value.to_le_bytes()).unwrap();
    }

    #[test]
    fn driver_that_follows_the_specification_starts_the_device() {
        let (mut transport, mock, _) = transport();
        assert_eq!([0, 4, 8].map(|offset| read(&transport, offset)), [0x7472_6976, 2, 2]);
        for status in [0, 1, 3] {
            write(&mut transport, 0x70, status);
        }
        let mut features = 0;
        for select in [0, 1] {
            write(&mut transport, 0x14, select);
            features |= u64::from(read(&transport, 0x10)) << (32 * select);
        }
        assert_eq!(features, OFFERED);
        for select in [0, 1] {
            write(&mut transport, 0x24, select);
            write(&mut transport, 0x20, half(features, select));
        }
        write(&mut transport, 0x70, 11);
        assert_eq!(read(&transport, 0x70), 11);
        write(&mut transport, 0x30, 0);
        assert_eq!((read(&transport, 0x34), read(&transport, 0x44)), (256, 0));
        let words = [(0x38, 16), (0x80, 0x1000), (0x84, 0), (0x90, 0x2000), (0x94, 0), (0xa0, 0x3000), (0xa4, 0)];
        for (offset, value) in words {
            write(&mut transport, offset, value);
        }
        write(&mut transport, 0x44, 1);
        assert_eq!(read(&transport, 0x44), 1);
        write(&mut transport, 0x70, 15);
        let activations = mock.activations.lock().unwrap();
        assert_eq!((activations.len(), activations[0].1[0].used), (1, 0x3000));
    }

    #[test]
    fn register_access_of_another_width_reads_its_bytes_and_writes_nothing() {
        let (mut transport, _, _) = transport();
        let bytes = *b"virt\x02\0\0\0\x02\0\0\0BLKH\x00\x02\0\0";
        for width in [0, 1, 2, 3, 5, 8, 20] {
            let mut data = vec![0; width];
            transport.read(0x0, &mut data);
            assert_eq!(data, bytes[..width]);
            transport.write(0x70, &vec![1; width]).unwrap();
            assert_eq!(read(&transport, 0x70), 0);
        }
        let mut across = [0; 4];
        transport.read(0xfe, &mut across);
        assert_eq!(across, [0, 0, 0, 1], "the last register and the configuration space");
    }

    #[test]
    fn view_shows_the_whole_window_at_each_step() {
        let (mut transport, _, alarm) = transport();
        // `read` compares.
        let check = |transport: &_| (0..0x1000).step_by(4).map(|offset| read(transport, offset)).max();
        check(&transport);
        let steps = [(0x70, 1), (0x70, 3), (0x14, 1), (0x24, 1), (0x20, 1), (0x70, 11), (0x80, 0x1000), (0x90, 0x2000)];
        for (offset, value) in steps.into_iter().chain([(0xa0, 0x3000), (0x44, 1), (0x70, 15), (0x30, 7)]) {
            write(&mut transport, offset, value);
            check(&transport);
        }
        alarm.raise();
        check(&transport);
        assert_eq!((read(&transport, 0x70), read(&transport, 0x60)), (15 | 64, 3));
        for (offset, value) in [(0x64, 2), (0x70, 0)] {
            write(&mut transport, offset, value);
            check(&transport);
        }
        assert_eq!((read(&transport, 0x70), read(&transport, 0x60)), (0, 1));
    }

    #[test]
    fn transport_without_a_view_answers_itself() {
        let (device, _, _) = device();
        let mut transport = MmioTransport::new(device, None);
        write(&mut transport, 0x70, 1);
        transport.alarm().raise();
        let mut word = [0; 4];
        transport.read(0x70, &mut word);
        assert_eq!(u32::from_le_bytes(word), 65);
    }

    #[test]
    fn no_offset_or_width_panics() {
        let (mut transport, _, _) = transport();
        for offset in (0..0x1000).chain([u64::MAX - 1, u64::MAX]) {
            for width in [1, 2, 4, 8] {
                transport.read(offset, &mut vec![0; width]);
                transport.write(offset, &vec![0xff; width]).unwrap();
            }
        }
    }

    #[test]
    fn configuration_space_is_read_by_bytes_and_ends_in_ones() {
        let (transport, _, _) = transport();
        let mut data = [0; 4];
        transport.read(0x100 + 58, &mut data);
        assert_eq!(data, [58, 59, 0xff, 0xff]);
        transport.read(0xfff, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn interrupt_status_always_shows_a_used_buffer() {
        let (mut transport, _, alarm) = transport();
        assert_eq!(read(&transport, 0x60), 1);
        write(&mut transport, 0x64, 3);
        assert_eq!(read(&transport, 0x60), 1);
        alarm.raise();
        assert_eq!(read(&transport, 0x60), 3);
        write(&mut transport, 0x64, 2);
        assert_eq!(read(&transport, 0x60), 1);
    }
}
