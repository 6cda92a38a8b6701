//! Any sequence of register accesses to the virtio-mmio transport, and whatever the device process does meanwhile.
//!
//! The device process is started only with a queue that lies in guest memory and with features that were offered, and
//! never a second time before it was stopped. What the guest reads in memory is what a read would answer.

use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileMemory};
use vmm_core::vmm::virtio::device::{Health, VirtioDevice};
use vmm_core::vmm::virtio::mmio::MmioTransport;
use vmm_core::vmm::virtio::view::Views;
use vmm_core::vmm::virtio::{Backend, Offer, QUEUE_SIZE_MAX, Queue, VERSION_1};
use wire::DiskCount;
use wire::message::StopReason;

const MEMORY: [(u64, usize); 2] = [(0, 0x1_0000), (0x10_0000, 0x1000)];
const OFFERED: u64 = VERSION_1 | 1 << 9 | 1 << 28;
const STATUS: u64 = 0x70;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;

/// Whether the device process was started, and whether it fails from now on.
#[derive(Debug, Default)]
struct State {
    active: bool,
    fails: bool,
}

#[derive(Debug, Default, Clone)]
struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn answer(&self, starts: bool) -> std::result::Result<(), StopReason> {
        let mut state = self.0.lock().expect("one thread");
        assert_ne!(state.active, starts, "the device was started or stopped twice");
        state.active = starts;
        if state.fails { Err(StopReason::PowerOff) } else { Ok(()) }
    }
}

impl Backend for Disk {
    fn activate(&mut self, features: u64, queues: &[Queue]) -> std::result::Result<(), StopReason> {
        assert_eq!(features & !OFFERED, 0, "features that were not offered");
        assert_ne!(features & VERSION_1, 0);
        let [queue] = queues else { panic!("{queues:?}") };
        assert!(queue.size.is_power_of_two() && queue.size <= QUEUE_SIZE_MAX, "{queue:?}");
        let size = u64::from(queue.size);
        let parts = [(queue.descriptors, 16, 16 * size), (queue.avail, 2, 6 + 2 * size), (queue.used, 4, 6 + 8 * size)];
        for (start, alignment, bytes) in parts {
            let inside = |(from, length): (u64, usize)| {
                start >= from && start.checked_add(bytes).is_some_and(|end| end <= from + length as u64)
            };
            assert!(start % alignment == 0 && MEMORY.into_iter().any(inside), "{queue:x?} is not in memory");
        }
        self.answer(true)
    }

    fn reset(&mut self) -> std::result::Result<(), StopReason> {
        self.answer(false)
    }
}

/// Accesses of any width at any offset.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let memory = GuestMemoryMmap::from_ranges(&MEMORY.map(|(start, bytes)| (GuestAddress(start), bytes)));
    let disk = Disk::default();
    let offer = Offer { features: OFFERED, config: (0..60).collect() };
    let memory = memory.expect("guest memory");
    let device = VirtioDevice::new("disk 1".to_owned(), offer, memory, disk.clone(), Arc::new(Health::default()));
    let views = Views::map(DiskCount::try_from(1).expect("one disk")).expect("memory").expect("a view");
    let mut transport = MmioTransport::new(device, Some(views.of(0)));
    let alarm = transport.alarm();
    compare(&views, &transport);
    while !input.is_empty() {
        let before = status(&transport);
        match input.int_in_range(0..=4_u8)? {
            // As a driver does, so that a fuzzer need not find the register map.
            0 | 1 => {
                let offset = u64::from(input.arbitrary::<u8>()?) & !3;
                let value = input.arbitrary::<u32>()?;
                if transport.write(offset, &value.to_le_bytes()).is_err() {
                    // The vCPU stops here, and the run with it.
                    assert!(disk.0.lock().expect("one thread").fails);
                    return Ok(());
                }
                if offset != STATUS || value != 0 {
                    assert_eq!(before & !NEEDS_RESET & !status(&transport), 0, "a status bit went without a reset");
                } else {
                    assert_eq!(status(&transport), 0, "a reset left something");
                    assert!(!disk.0.lock().expect("one thread").active, "a device runs after its reset");
                }
            }
            2 => {
                let offset = input.arbitrary::<u64>()?;
                let width = input.int_in_range(0..=16_usize)?;
                let data = input.bytes(width)?;
                if transport.write(offset, data).is_err() {
                    return Ok(());
                }
            }
            3 => {
                let offset = input.arbitrary::<u64>()?;
                let width = input.int_in_range(0..=16_usize)?;
                let mut data = vec![0; width];
                transport.read(offset, &mut data);
                let mut again = vec![0; width];
                transport.read(offset, &mut again);
                assert_eq!(data, again, "a read changes what is read");
                assert_eq!(before, status(&transport), "a read changes the status");
            }
            _ => {
                let what = input.arbitrary::<u8>()?;
                if what & 1 != 0 {
                    alarm.raise();
                }
                disk.0.lock().expect("one thread").fails |= what == 0xff;
            }
        }
        compare(&views, &transport);
        let active = disk.0.lock().expect("one thread").active;
        assert!(!active || status(&transport) & DRIVER_OK != 0, "the device runs before DRIVER_OK");
    }
    Ok(())
}

/// What the guest reads without leaving, against what it would be answered.
fn compare(views: &Views, transport: &MmioTransport<Disk>) {
    let (mut answered, mut shown) = ([0; 0x200], [0; 0x200]);
    transport.read(0, &mut answered);
    views.memory().as_volatile_slice().read_slice(&mut shown, 0).expect("a window");
    assert_eq!(answered, shown, "the guest reads something else than it would be answered");
}

fn status(transport: &MmioTransport<Disk>) -> u32 {
    let mut word = [0; 4];
    transport.read(STATUS, &mut word);
    u32::from_le_bytes(word)
}

/// A driver that does everything right, and starts again.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let write = |seed: Seed, offset: u8, value: u32| seed.u8(0).u8(offset).u32(value);
    let words = [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x24, 0),
        (0x20, 1 << 9),
        (0x70, 11),
        (0x30, 0),
        (0x38, 16),
        (0x80, 0x1000),
        (0x84, 0),
        (0x90, 0x2000),
        (0xa0, 0x3000),
        (0x44, 1),
        (0x70, 15),
        (0x50, 0),
    ];
    let driver = |seed| words.into_iter().fold(seed, |seed, (offset, value)| write(seed, offset, value));
    vec![
        ("driver", driver(Seed::new()).u8(3).u64(0x100).u8(8).done()),
        ("driver_twice", driver(driver(Seed::new()).u8(4).u8(3)).done()),
        ("second_driver_ok", write(driver(Seed::new()), 0x70, 15).u8(4).u8(0xff).u8(0).u8(0x70).u32(0).done()),
    ]
}
