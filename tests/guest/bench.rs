//! A driver that keeps the queues of one or two disks full, for the benchmarks.
//!
//! `bench-blk op=read|write random=0|1 bytes= depth= count= disks=`: `count` requests in all, `depth` in flight on each
//! disk, random or one after the other. `bytes` is a power of two, and so is what is used of the disk. It does what a real driver does for each: event index, a kick only where the
//! device wants one, an interrupt for the next completion only, acknowledged by two register accesses. It prints `BEGIN`
//! and `END` around the work; before that, each buffer was used once.
//!
//! Descriptors, headers and buffers stay as they are between requests, but for the sector, and the loop that every
//! request passes is written by hand: on PVM, the host emulates each instruction of such a guest, for about a microsecond, and
//! what it does besides the device's work should not be what is measured.

use crate::block::{F_FLUSH, IN, OK, OUT};
use crate::virtio::{Descriptor, Device, F_EVENT_IDX, F_VERSION_1, NEXT, WRITE};
use crate::{Args, Outcome, console, cpu};
use core::ptr::{addr_of_mut, read_volatile, write_volatile};
use core::sync::atomic::{Ordering, fence};

/// Entries of a queue, of which a request takes three.
const ENTRIES: usize = 256;
const MOST_DEPTH: u64 = 64;
const MOST_DISKS: usize = 2;
const SECTOR: u64 = 512;
/// Where the buffers begin: above the guest and all that the loader writes.
const BUFFERS: u64 = 16 << 20;
/// The longest wait for an interrupt, in seconds, each of which the timer ends with one.
const ANSWER_S: u64 = 20;

/// What a request has besides its buffer.
#[repr(C)]
#[derive(Clone, Copy)]
struct Slot {
    kind: u32,
    reserved: u32,
    sector: u64,
    status: u8,
}

#[repr(C, align(4096))]
struct Queue {
    descriptors: [Descriptor; ENTRIES],
    avail: Avail,
    used: Used,
    /// The nth begins 24 bytes times n after the first, and its chain is headed by three times n: a head times 8 is a
    /// way to it. As there are many for a head of 8 bits, that way never leaves the array.
    slots: [Slot; ENTRIES / 3 + 1],
}

/// virtio 1.2 §2.7.6, with `used_event`.
#[repr(C, align(4096))]
struct Avail {
    flags: u16,
    index: u16,
    ring: [u16; ENTRIES],
    used_event: u16,
}

/// virtio 1.2 §2.7.8, with `avail_event`.
#[repr(C, align(4096))]
struct Used {
    flags: u16,
    index: u16,
    ring: [[u32; 2]; ENTRIES],
    avail_event: u16,
}

const EMPTY: Queue = Queue {
    descriptors: [Descriptor { address: 0, length: 0, flags: 0, next: 0 }; ENTRIES],
    avail: Avail { flags: 0, index: 0, ring: [0; ENTRIES], used_event: 0 },
    used: Used { flags: 0, index: 0, ring: [[0; 2]; ENTRIES], avail_event: 0 },
    slots: [Slot { kind: 0, reserved: 0, sector: 0, status: 0 }; ENTRIES / 3 + 1],
};

static mut QUEUES: [Queue; MOST_DISKS] = [EMPTY; MOST_DISKS];

/// What is asked for.
#[derive(Clone, Copy)]
struct Work {
    kind: u32,
    random: bool,
    sectors: u64,
    depth: u64,
}

/// A disk with its queue.
struct Disk {
    device: Device,
    queue: *mut Queue,
    work: Work,
    /// The sectors at which requests begin: `state & mask`, then `state += step`.
    state: u64,
    mask: u64,
    step: u64,
    /// The indices up to which requests were offered, told to the device, and taken back.
    offered: u16,
    told: u16,
    taken: u16,
    /// How many interrupts were acknowledged.
    acknowledged: u64,
}

impl Disk {
    fn start(n: usize, work: Work, args: Args) -> Result<Self, &'static str> {
        let mut device = match args.nth("virtio_mmio.device", n) {
            Some(word) => {
                let (base, gsi) = window(word).ok_or("virtio_mmio.device= is not understood")?;
                Device::at(base, gsi)
            }
            None => Device::new(n as u8),
        };
        // SAFETY: only the address is taken.
        let queue = unsafe { addr_of_mut!(QUEUES[n]) };
        // A device whose driver cannot flush writes through.
        if device.offered() & F_EVENT_IDX == 0 || !device.negotiate(F_VERSION_1 | F_EVENT_IDX | F_FLUSH) {
            return Err("the device has no event index");
        }
        // SAFETY: only addresses are taken.
        let (avail, used) = unsafe { (addr_of_mut!((*queue).avail) as u64, addr_of_mut!((*queue).used) as u64) };
        if !device.activate(ENTRIES as u16, [queue as u64, avail, used]) {
            return Err("the device does not start");
        }
        let places =
            (device.config_u64(0) / work.sectors).checked_ilog2().ok_or("the disk is smaller than a request")?;
        let mask = ((1 << places) - 1) * work.sectors;
        // Steps by the golden section come to every place once before they come to one twice, in no order that a disk
        // could know.
        let golden = 0x9e37_79b9_7f4a_7c15_u64.checked_shr(64 - places).unwrap_or(0) | 1;
        let step = if work.random { golden * work.sectors } else { work.sectors };
        let acknowledged = device.interrupts();
        let (offered, told, taken) = (0, 0, 0);
        let disk = Self { device, queue, work, state: 0, mask, step, offered, told, taken, acknowledged };
        let bytes = work.sectors * SECTOR;
        for slot in 0..work.depth {
            let buffer = BUFFERS + (n as u64 * work.depth + slot) * bytes;
            disk.describe(slot as usize, buffer, bytes as u32);
        }
        Ok(disk)
    }

    /// Describes a slot's header, buffer and status. `set_kind` says which way the buffer goes.
    fn describe(&self, slot: usize, buffer: u64, bytes: u32) {
        let first = 3 * slot;
        let next = |n: u16| first as u16 + n;
        // SAFETY: stores into a table of 256 descriptors, of which 64 slots take 192; the addresses are only taken.
        unsafe {
            let header = addr_of_mut!((*self.queue).slots[slot]) as u64;
            let status = addr_of_mut!((*self.queue).slots[slot].status) as u64;
            let table = addr_of_mut!((*self.queue).descriptors);
            (*table)[first] = Descriptor { address: header, length: 16, flags: NEXT, next: next(1) };
            (*table)[first + 1] = Descriptor { address: buffer, length: bytes, flags: NEXT, next: next(2) };
            (*table)[first + 2] = Descriptor { address: status, length: 1, flags: WRITE, next: 0 };
        }
    }

    /// Makes reads or writes of all slots, of which none is in flight.
    fn set_kind(&mut self, kind: u32) {
        for slot in 0..self.work.depth as usize {
            let flags = if kind == IN { NEXT | WRITE } else { NEXT };
            // SAFETY: stores into entries that the device does not use.
            unsafe {
                write_volatile(addr_of_mut!((*self.queue).slots[slot].kind), kind);
                write_volatile(addr_of_mut!((*self.queue).descriptors[3 * slot + 1].flags), flags);
            }
        }
    }

    /// Makes the request of a slot available.
    fn offer(&mut self, slot: u64) {
        let entry = usize::from(self.offered) % ENTRIES;
        self.offered = self.offered.wrapping_add(1);
        // SAFETY: stores into a slot that is not in flight, and into the ring.
        unsafe {
            write_volatile(addr_of_mut!((*self.queue).slots[slot as usize].sector), self.state & self.mask);
            write_volatile(addr_of_mut!((*self.queue).avail.ring[entry]), 3 * slot as u16);
        }
        self.state = self.state.wrapping_add(self.step);
    }

    /// Takes `count` requests that came back, of which neither ring has its end in the middle, and makes them available
    /// once more; not 0 when one of them failed.
    fn renew(&mut self, count: u16) -> u8 {
        let failed: u64;
        // SAFETY: loads from the ring of used chains and from slots, to which a head of 8 bits leads whatever it is, and
        // stores into slots that are not in flight and into the available ring.
        unsafe {
            let used = addr_of_mut!((*self.queue).used.ring[usize::from(self.taken) % ENTRIES]);
            let avail = addr_of_mut!((*self.queue).avail.ring[usize::from(self.offered) % ENTRIES]);
            core::arch::asm!(
                "2: lodsq",
                "movzx eax, al",
                "stosw",
                "or {failed:l}, [{slots} + rax * 8 + {status}]",
                "mov {sector}, {state}",
                "and {sector}, {mask}",
                "mov [{slots} + rax * 8 + {place}], {sector}",
                "add {state}, {step}",
                "dec ecx",
                "jnz 2b",
                failed = inout(reg) 0_u64 => failed,
                slots = in(reg) addr_of_mut!((*self.queue).slots),
                state = inout(reg) self.state,
                sector = out(reg) _,
                mask = in(reg) self.mask,
                step = in(reg) self.step,
                status = const core::mem::offset_of!(Slot, status),
                place = const core::mem::offset_of!(Slot, sector),
                inout("rsi") used => _,
                inout("rdi") avail => _,
                inout("ecx") u32::from(count) => _,
                out("rax") _,
                options(nostack)
            );
        }
        self.taken = self.taken.wrapping_add(count);
        self.offered = self.offered.wrapping_add(count);
        failed as u8
    }

    /// Shows the device what was made available; x86 keeps stores in order.
    fn publish(&self) {
        // SAFETY: a store into the ring.
        unsafe { write_volatile(addr_of_mut!((*self.queue).avail.index), self.offered) }
    }

    /// Tells the device of what was offered, if it wants to be told (virtio 1.2 §2.7.10).
    fn tell(&mut self) {
        if self.offered == self.told {
            return;
        }
        fence(Ordering::SeqCst);
        // SAFETY: a load.
        let event = unsafe { read_volatile(addr_of_mut!((*self.queue).used.avail_event)) };
        if self.offered.wrapping_sub(event).wrapping_sub(1) < self.offered.wrapping_sub(self.told) {
            self.device.notify();
        }
        self.told = self.offered;
    }

    /// Whether something came back that was not taken.
    fn is_back(&self) -> bool {
        // SAFETY: a load.
        unsafe { read_volatile(addr_of_mut!((*self.queue).used.index)) != self.taken }
    }

    /// Takes what came back, and makes as much of it available once more, but at most `again`; how many came back.
    fn take(&mut self, again: u64) -> Result<u64, &'static str> {
        // SAFETY: a load.
        let used = unsafe { read_volatile(addr_of_mut!((*self.queue).used.index)) };
        let back = used.wrapping_sub(self.taken);
        let mut left = u64::from(back).min(again) as u16;
        let mut failed = OK;
        let to_end = |index: u16| (ENTRIES - usize::from(index) % ENTRIES) as u16;
        while left > 0 {
            let count = left.min(to_end(self.taken)).min(to_end(self.offered));
            failed |= self.renew(count);
            left -= count;
        }
        self.publish();
        while self.taken != used {
            // SAFETY: loads as in `renew`.
            failed |= unsafe {
                let head = read_volatile(addr_of_mut!((*self.queue).used.ring[usize::from(self.taken) % ENTRIES]))[0];
                read_volatile(addr_of_mut!((*self.queue).slots[usize::from(head as u8) / 3].status))
            };
            self.taken = self.taken.wrapping_add(1);
        }
        if failed == OK { Ok(u64::from(back)) } else { Err("a request failed") }
    }

    /// Asks for an interrupt when the next request comes back; true when one has already (virtio 1.2 §2.7.7).
    fn is_back_before_it_is_awaited(&self) -> bool {
        // SAFETY: a store into the ring.
        unsafe { write_volatile(addr_of_mut!((*self.queue).avail.used_event), self.taken) };
        fence(Ordering::SeqCst);
        self.is_back()
    }

    /// Acknowledges an interrupt if one came.
    fn acknowledge(&mut self) {
        let came = self.device.interrupts();
        if came != self.acknowledged {
            self.acknowledged = came;
            self.device.acknowledge();
        }
    }
}

/// The window and the interrupt in `512@0xfeb02e00:12`, as the words of Linux's virtio-mmio driver have them.
fn window(word: &[u8]) -> Option<(usize, u8)> {
    let at = word.iter().position(|&b| b == b'@')?;
    let mut parts = word.get(at + 1..)?.strip_prefix(b"0x")?.split(|&b| b == b':');
    let digits = |part: &[u8], radix: u32| {
        part.iter()
            .try_fold(0_u64, |value, &b| Some(value * u64::from(radix) + u64::from(char::from(b).to_digit(radix)?)))
    };
    Some((digits(parts.next()?, 16)? as usize, digits(parts.next()?, 10)? as u8))
}

pub fn run(args: Args) -> Outcome {
    let number = |name: &str, or: u64| args.number(name).unwrap_or(or);
    let kind = match args.get("op") {
        Some(b"read") => IN,
        Some(b"write") => OUT,
        _ => return Err("op= must be read or write"),
    };
    let (bytes, count, depth, disks) =
        (number("bytes", 4096), number("count", 1000), number("depth", 1), number("disks", 1));
    if bytes < SECTOR
        || !bytes.is_power_of_two()
        || depth == 0
        || depth > MOST_DEPTH
        || !(1..=MOST_DISKS as u64).contains(&disks)
    {
        return Err("bytes=, depth= or disks= is out of range");
    }
    let work = Work { kind, random: number("random", 0) == 1, sectors: bytes / SECTOR, depth };
    let mut all = [const { None }; MOST_DISKS];
    for (n, disk) in (0..disks as usize).zip(&mut all) {
        *disk = Some(Disk::start(n, work, args)?);
    }
    cpu::timer(cpu::TICKS_PER_MS * 1000, true);
    // A write does not change what a disk holds outside of the work, so that the first use of each buffer is a read.
    all.iter_mut().flatten().for_each(|disk| disk.set_kind(IN));
    drive(&mut all, depth * disks)?;
    all.iter_mut().flatten().for_each(|disk| disk.set_kind(kind));
    console::text("BEGIN\n");
    drive(&mut all, count)?;
    console::text("END\n");
    cpu::timer(0, false);
    Ok(())
}

/// Makes `count` requests in all, as many at a time as the work says, and waits for all of them.
fn drive(disks: &mut [Option<Disk>; MOST_DISKS], count: u64) -> Outcome {
    let mut left = count;
    let mut in_flight = 0;
    for disk in disks.iter_mut().flatten() {
        let first = disk.work.depth.min(left);
        (0..first).for_each(|slot| disk.offer(slot));
        disk.publish();
        disk.tell();
        left -= first;
        in_flight += first;
    }
    while in_flight > 0 {
        wait(disks)?;
        for disk in disks.iter_mut().flatten() {
            let back = disk.take(left)?;
            let again = back.min(left);
            left -= again;
            in_flight -= back - again;
            disk.tell();
        }
    }
    Ok(())
}

/// Waits for an interrupt, unless something has come back.
fn wait(disks: &mut [Option<Disk>; MOST_DISKS]) -> Outcome {
    let mut back = false;
    for disk in disks.iter().flatten() {
        back |= disk.is_back_before_it_is_awaited();
    }
    if back {
        return Ok(());
    }
    let end = cpu::count(cpu::TIMER) + ANSWER_S;
    cpu::wait_until(|| {
        disks.iter_mut().flatten().for_each(Disk::acknowledge);
        disks.iter().flatten().any(Disk::is_back) || cpu::count(cpu::TIMER) > end
    });
    if cpu::count(cpu::TIMER) > end { Err("a request was not answered") } else { Ok(()) }
}
