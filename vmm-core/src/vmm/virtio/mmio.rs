//! The virtio-mmio registers, version 2 (virtio 1.2 §4.2.2).
//!
//! The driver is distrusted: registers are accessed by aligned 32-bit words only, everything else reads as all ones and
//! is not written. No access panics.
//!
//! InterruptStatus always reads with bit 0 set: completions go from the device process through an irqfd to KVM and never
//! pass the vmm, so every interrupt may be one.

use super::device::{QueueField, QueuePart, VirtioDevice};
use super::{Backend, DEVICE_ID_BLOCK};
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
const INTERRUPT_USED: u32 = 1;
/// InterruptStatus: a configuration change.
const INTERRUPT_CONFIG: u32 = 2;
/// QueueNotify: the ioeventfd at this offset takes it from the vmm.
pub const QUEUE_NOTIFY: u64 = 0x50;

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
    (0x060, Register::InterruptStatus),
    (0x064, Register::InterruptAck),
    (0x070, Register::Status),
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
}

impl<B: Backend> MmioTransport<B> {
    /// The registers of `device`.
    pub fn new(device: VirtioDevice<B>) -> Self {
        Self { device, device_features_select: 0, driver_features_select: 0, queue_select: 0 }
    }

    /// The driver reads `data.len()` bytes at `offset` of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_START) {
            return self.device.read_config(offset, data);
        }
        data.fill(0xff);
        if let (Ok(word), Some(register)) = (<&mut [u8; 4]>::try_from(data), register_at(offset)) {
            *word = self.read_register(register).to_le_bytes();
        }
    }

    /// The driver writes `data` at `offset` of the window.
    ///
    /// # Errors
    /// When the device process fails.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), StopReason> {
        match (<[u8; 4]>::try_from(data), register_at(offset)) {
            (Ok(word), Some(register)) => self.write_register(register, u32::from_le_bytes(word)),
            _ => {
                self.device.refuse("writes where there is no register");
                Ok(())
            }
        }
    }

    fn read_register(&self, register: Register) -> u32 {
        match register {
            Register::Constant(value) => value,
            Register::DeviceFeatures => half(self.device.features(), self.device_features_select),
            Register::QueueSizeMax => self.device.queue_size_max(self.queue_select).into(),
            Register::Queue(QueueField::Ready) => self.device.queue_ready(self.queue_select).into(),
            Register::InterruptStatus if self.device.config_changed() => INTERRUPT_USED | INTERRUPT_CONFIG,
            Register::InterruptStatus => INTERRUPT_USED,
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
    use super::super::device::Health;
    use super::super::device::tests::{Mock, OFFERED, device};
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    fn transport() -> (MmioTransport<Mock>, Mock, Arc<Health>) {
        let (device, mock, health) = device();
        (MmioTransport::new(device), mock, health)
    }

    fn read(transport: &MmioTransport<Mock>, offset: u64) -> u32 {
        let mut word = [0; 4];
        transport.read(offset, &mut word);
        u32::from_le_bytes(word)
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
    fn register_access_of_another_width_reads_ones_and_writes_nothing() {
        let (mut transport, _, _) = transport();
        for width in [0, 1, 2, 3, 5, 8, 64] {
            let mut data = vec![0; width];
            transport.read(0x0, &mut data);
            assert_eq!(data, vec![0xff; width]);
            transport.write(0x70, &vec![1; width]).unwrap();
            assert_eq!(read(&transport, 0x70), 0);
        }
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
        let (mut transport, _, health) = transport();
        assert_eq!(read(&transport, 0x60), 1);
        write(&mut transport, 0x64, 3);
        assert_eq!(read(&transport, 0x60), 1);
        health.config_changed.store(true, Ordering::SeqCst);
        assert_eq!(read(&transport, 0x60), 3);
        write(&mut transport, 0x64, 2);
        assert_eq!(read(&transport, 0x60), 1);
    }
}
