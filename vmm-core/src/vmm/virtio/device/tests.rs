//! The device state, driven by a mock driver over a mock back end.

use super::*;
use std::sync::Mutex;
use vm_memory::GuestAddress;

/// Features and queues of an activation.
type Activation = (u64, Vec<Queue>);

/// What a mock back end was told.
#[derive(Debug, Default, Clone)]
pub(crate) struct Mock {
    pub(crate) activations: Arc<Mutex<Vec<Activation>>>,
    pub(crate) resets: Arc<Mutex<u32>>,
}

impl Backend for Mock {
    fn activate(&mut self, features: u64, queues: &[Queue]) -> Result<(), StopReason> {
        self.activations.lock().unwrap().push((features, queues.to_vec()));
        Ok(())
    }
    fn reset(&mut self) -> Result<(), StopReason> {
        *self.resets.lock().unwrap() += 1;
        Ok(())
    }
}

pub(crate) const OFFERED: u64 = VERSION_1 | (1 << 9);

pub(crate) fn device() -> (VirtioDevice<Mock>, Mock, Arc<Health>) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let (mock, health) = (Mock::default(), Arc::new(Health::default()));
    let offer = Offer { features: OFFERED, config: (0..60).collect() };
    let device = VirtioDevice::new("disk 1".to_owned(), offer, memory, mock.clone(), Arc::clone(&health));
    (device, mock, health)
}

pub(crate) fn configure_queue(device: &mut VirtioDevice<Mock>) {
    device.write_queue(0, QueueField::Size, 8);
    let parts = [(QueuePart::Descriptors, 0x1000), (QueuePart::Avail, 0x2000), (QueuePart::Used, 0x3000)];
    for (part, address) in parts {
        device.write_queue(0, QueueField::Address { part, high: false }, address);
        device.write_queue(0, QueueField::Address { part, high: true }, 0);
    }
    device.write_queue(0, QueueField::Ready, 1);
}

fn agree(device: &mut VirtioDevice<Mock>, features: u64) {
    device.write_status(1).unwrap();
    device.write_status(3).unwrap();
    device.write_driver_features(0, u32::try_from(features & 0xffff_ffff).unwrap());
    device.write_driver_features(1, u32::try_from(features >> 32).unwrap());
    device.write_status(11).unwrap();
}

#[test]
fn initialization_in_order_starts_the_back_end() {
    let (mut device, mock, _) = device();
    agree(&mut device, OFFERED);
    configure_queue(&mut device);
    device.write_status(15).unwrap();
    assert_eq!((device.status(), device.refusals()), (15, 0));
    let queue = Queue { size: 8, descriptors: 0x1000, avail: 0x2000, used: 0x3000 };
    assert_eq!(*mock.activations.lock().unwrap(), [(OFFERED, vec![queue])]);
}

#[test]
fn feature_that_was_not_offered_is_refused() {
    let (mut device, _, _) = device();
    agree(&mut device, OFFERED | 1);
    assert_eq!(device.status(), 3);
}

#[test]
fn driver_without_version_1_is_refused() {
    let (mut device, _, _) = device();
    agree(&mut device, OFFERED & 0xffff_ffff);
    assert_eq!(device.status(), 3);
}

#[test]
fn skipped_step_is_refused() {
    let (mut device, mock, _) = device();
    for status in [2, 4, 8, 5, 7, 9, 13] {
        device.write_status(status).unwrap();
        assert_eq!(device.status(), 0, "status {status}");
    }
    agree(&mut device, OFFERED);
    device.write_status(4).unwrap();
    assert_eq!(device.status(), 11, "a bit cannot be cleared");
    assert!(mock.activations.lock().unwrap().is_empty());
}

#[test]
fn features_after_features_ok_are_frozen() {
    let (mut device, mock, _) = device();
    agree(&mut device, OFFERED);
    device.write_driver_features(0, 0);
    configure_queue(&mut device);
    device.write_status(15).unwrap();
    assert_eq!(mock.activations.lock().unwrap()[0].0, OFFERED);
    assert_eq!(device.refusals(), 1);
}

#[test]
fn queue_that_is_ready_is_frozen() {
    let (mut device, mock, _) = device();
    agree(&mut device, OFFERED);
    configure_queue(&mut device);
    device.write_queue(0, QueueField::Size, 4);
    device.write_status(15).unwrap();
    device.write_queue(0, QueueField::Ready, 0);
    device.write_queue(0, QueueField::Address { part: QueuePart::Used, high: true }, 1);
    assert!(device.queue_ready(0));
    assert_eq!(device.refusals(), 3);
    assert_eq!(mock.activations.lock().unwrap()[0].1[0].size, 8);
}

#[test]
fn queue_outside_of_memory_never_becomes_ready() {
    let (mut device, mock, health) = device();
    agree(&mut device, OFFERED);
    device.write_queue(0, QueueField::Address { part: QueuePart::Avail, high: true }, 1);
    device.write_queue(0, QueueField::Ready, 1);
    assert!(!device.queue_ready(0));
    device.write_status(15).unwrap();
    assert!(mock.activations.lock().unwrap().is_empty());
    assert!(health.needs_reset.load(Ordering::SeqCst));
    assert_eq!(device.status(), 15 | status::NEEDS_RESET);
}

#[test]
fn queue_that_does_not_exist_has_no_size() {
    let (mut device, _, _) = device();
    agree(&mut device, OFFERED);
    for queue in [1, u32::MAX] {
        assert_eq!(device.queue_size_max(queue), 0);
        device.write_queue(queue, QueueField::Ready, 1);
        assert!(!device.queue_ready(queue));
    }
    assert_eq!(device.queue_size_max(0), 256);
}

#[test]
fn reset_stops_the_back_end_and_forgets_everything() {
    let (mut device, mock, health) = device();
    agree(&mut device, OFFERED);
    configure_queue(&mut device);
    device.write_status(15).unwrap();
    health.needs_reset.store(true, Ordering::SeqCst);
    device.write_status(0).unwrap();
    device.write_status(0).unwrap();
    assert_eq!(*mock.resets.lock().unwrap(), 1);
    assert_eq!(device.status(), 0);
    assert!(!device.queue_ready(0));
    agree(&mut device, VERSION_1);
    configure_queue(&mut device);
    device.write_status(15).unwrap();
    assert_eq!(mock.activations.lock().unwrap()[1].0, VERSION_1);
}
