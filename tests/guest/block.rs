//! virtio-blk: every request type, its limits, and a driver that keeps the rules (virtio 1.2 §5.2).
//!
//! The image is made by the test: each sector holds its number and then a pattern, see `sector_word`.

use crate::virtio::{
    DEVICE_ID, Descriptor, Device, F_EVENT_IDX, F_INDIRECT, F_VERSION_1, INDIRECT, MAGIC, NEXT, QUEUE_DESC,
    QUEUE_DEVICE, QUEUE_NUM, QUEUE_NUM_MAX, QUEUE_READY, QUEUE_SEL, SIZE, VERSION, WRITE,
};
use crate::{Args, Outcome, console, cpu, malformed};
use core::ptr::{addr_of_mut, read_volatile, write_volatile};

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

pub(crate) const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const PENDING: u8 = 0x77;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
pub(crate) const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// An address in the hole below 4 GiB where no device is.
pub(crate) const NOWHERE: u64 = 0xc100_0000;
/// The longest wait for an answer that must come.
const ANSWER_MS: u64 = 20_000;

#[repr(C, align(4096))]
struct Buffers {
    data: [u64; 1024],
    header: [[u64; 2]; 16],
    table: [Descriptor; 16],
    status: [u8; 16],
}

static mut BUFFERS: Buffers = Buffers {
    data: [0; 1024],
    header: [[0; 2]; 16],
    table: [Descriptor { address: 0, length: 0, flags: 0, next: 0 }; 16],
    status: [0; 16],
};

/// Word `n` of a sector of the image.
fn sector_word(sector: u64, n: u64) -> u64 {
    sector.wrapping_mul(0x0101_0101).wrapping_add(n << 56)
}

pub(crate) fn header(n: usize, kind: u32, sector: u64) -> u64 {
    // SAFETY: stores into a buffer that no request in flight uses.
    unsafe {
        write_volatile(addr_of_mut!(BUFFERS.header[n]), [u64::from(kind), sector]);
        write_volatile(addr_of_mut!(BUFFERS.status[n]), PENDING);
        addr_of_mut!(BUFFERS.header[n]) as u64
    }
}

pub(crate) fn status_address(n: usize) -> u64 {
    // SAFETY: only the address is taken.
    unsafe { addr_of_mut!(BUFFERS.status[n]) as u64 }
}

pub(crate) fn status(n: usize) -> u8 {
    // SAFETY: a load.
    unsafe { read_volatile(addr_of_mut!(BUFFERS.status[n])) }
}

pub(crate) fn data_address(word: usize) -> u64 {
    // SAFETY: only the address is taken.
    unsafe { addr_of_mut!(BUFFERS.data[word]) as u64 }
}

fn word(n: usize) -> u64 {
    // SAFETY: a load.
    unsafe { read_volatile(addr_of_mut!(BUFFERS.data[n])) }
}

fn set_word(n: usize, value: u64) {
    // SAFETY: a store into a buffer that no request in flight uses.
    unsafe { write_volatile(addr_of_mut!(BUFFERS.data[n]), value) }
}

pub(crate) struct Disk {
    pub(crate) device: Device,
    features: u64,
    sectors: u64,
}

impl Disk {
    pub(crate) fn start(n: u8, wanted: u64) -> Result<Self, &'static str> {
        let mut device = Device::new(n);
        let features = device.offered() & wanted | F_VERSION_1;
        if !device.start(features) {
            return Err("the device does not start");
        }
        let sectors = device.config_u64(0);
        Ok(Self { device, features, sectors })
    }

    /// One request with `bytes` of data, in `parts` descriptors; its status.
    fn request(&mut self, kind: u32, sector: u64, bytes: u32, parts: u32) -> Result<u8, &'static str> {
        let direction = if matches!(kind, IN | GET_ID) { WRITE } else { 0 };
        let mut chain = [(header(0, kind, sector), 16, 0); 18];
        let mut length = 1;
        for part in 0..parts {
            let size = bytes / parts;
            chain[length] = (data_address(0) + u64::from(part * size), size, direction);
            length += 1;
        }
        chain[length] = (status_address(0), 1, WRITE);
        self.device.chain(0, &chain[..length + 1]);
        self.go()
    }

    fn go(&mut self) -> Result<u8, &'static str> {
        self.device.offer(0);
        self.device.notify();
        if self.device.wait(1, ANSWER_MS) { Ok(status(0)) } else { Err("a request was not answered") }
    }

    fn expect(&mut self, kind: u32, sector: u64, bytes: u32, wanted: u8) -> Outcome {
        let got = self.request(kind, sector, bytes, u32::from(bytes > 0))?;
        if got == wanted { Ok(()) } else { Err("a request got the wrong status") }
    }

    /// Reads one sector and compares it with the image as it was made.
    pub(crate) fn check(&mut self, sector: u64) -> Outcome {
        (0..64).for_each(|n| set_word(n, !0));
        self.expect(IN, sector, 512, OK)?;
        let good = (0..64).all(|n| word(n) == sector_word(sector, n as u64));
        if good { Ok(()) } else { Err("a sector has other content than the image") }
    }
}

pub fn run(name: &[u8], args: Args) -> Outcome {
    let n = args.number("disk").unwrap_or(0) as u8;
    let plain = F_FLUSH | F_SEG_MAX | F_BLK_SIZE | F_DISCARD | F_WRITE_ZEROES | F_RO;
    let all = plain | F_EVENT_IDX | F_INDIRECT;
    match name {
        b"blk-identity" => identity(n, args),
        b"blk-read" => read(Disk::start(n, plain)?),
        b"blk-write" => write(Disk::start(n, plain)?),
        b"blk-readonly" => readonly(Disk::start(n, plain)?),
        b"blk-discard" => discard(Disk::start(n, plain)?),
        b"blk-fill" => fill(Disk::start(n, plain)?),
        b"blk-id" => get_id(Disk::start(n, plain)?),
        b"blk-range" => range(Disk::start(n, plain)?),
        b"blk-many" => many(Disk::start(n, all)?),
        b"blk-indirect" => indirect(Disk::start(n, all)?),
        b"blk-frozen" => frozen(Disk::start(n, plain)?),
        b"blk-features" => features(n),
        b"blk-malformed" => malformed::run(n, all),
        _ => Err("no such scenario"),
    }
}

fn identity(n: u8, args: Args) -> Outcome {
    let device = Device::new(n);
    if device.read(MAGIC) != 0x7472_6976 || device.read(VERSION) != 2 || device.read(DEVICE_ID) != 2 {
        return Err("no virtio-mmio version 2 block device");
    }
    let readonly = args.number("ro").unwrap_or(0) == 1;
    let wanted = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_FLUSH | F_SEG_MAX | F_BLK_SIZE;
    let offered = device.offered();
    if offered & wanted != wanted {
        return Err("a feature is missing");
    }
    if (offered & F_RO != 0) != readonly {
        return Err("the read-only feature is wrong");
    }
    if !readonly && offered & (F_DISCARD | F_WRITE_ZEROES) != F_DISCARD | F_WRITE_ZEROES {
        return Err("discard or write-zeroes is missing");
    }
    if args.number("sectors").is_some_and(|sectors| sectors != device.config_u64(0)) {
        return Err("the capacity is wrong");
    }
    if device.config(20) != 512 { Err("the block size is not 512") } else { Ok(()) }
}

fn read(mut disk: Disk) -> Outcome {
    for sector in [0, 1, disk.sectors / 2, disk.sectors - 1] {
        disk.check(sector)?;
    }
    let before = disk.device.interrupts();
    if disk.request(IN, 3, 4096, 8)? != OK {
        return Err("a read in eight parts failed");
    }
    if !(0..512).all(|n| word(n) == sector_word(3 + n as u64 / 64, n as u64 % 64)) {
        return Err("a read in eight parts has other content than the image");
    }
    if disk.device.used_entry(disk.device.used().wrapping_sub(1)) != (0, 4097) {
        return Err("the used length is not the data and the status");
    }
    if cpu::wait_ms(ANSWER_MS, || disk.device.interrupts() > before) { Ok(()) } else { Err("no interrupt came") }
}

/// Writes three sectors from 8 on, which the test looks for in the image.
fn write(mut disk: Disk) -> Outcome {
    (0..192).for_each(|n| set_word(n, 0xb111_c4ea_d000_0000 + n as u64));
    disk.expect(OUT, 8, 1536, OK)?;
    disk.expect(FLUSH, 0, 0, OK)?;
    (0..192).for_each(|n| set_word(n, 0));
    disk.expect(IN, 8, 1536, OK)?;
    if (0..192).all(|n| word(n) == 0xb111_c4ea_d000_0000 + n as u64) {
        disk.check(7)?;
        disk.check(11)
    } else {
        Err("what was written is not read back")
    }
}

fn readonly(mut disk: Disk) -> Outcome {
    disk.expect(OUT, 8, 512, IOERR)?;
    disk.check(8)
}

/// Discards sectors 16 to 23, zeroes 32 to 39, and sends both with wrong ranges.
fn discard(mut disk: Disk) -> Outcome {
    let range = |sector: u64, sectors: u64, flags: u64| {
        set_word(0, sector);
        set_word(1, sectors | flags << 32);
    };
    range(16, 8, 0);
    disk.expect(DISCARD, 0, 16, OK)?;
    for unmap in [0, 1] {
        range(32, 8, unmap);
        disk.expect(WRITE_ZEROES, 0, 16, OK)?;
        disk.expect(IN, 32, 4096, OK)?;
        if !(0..512).all(|n| word(n) == 0) {
            return Err("zeroed sectors are not zero");
        }
    }
    disk.check(31)?;
    disk.check(40)?;
    for (kind, sector, sectors) in [
        (DISCARD, disk.sectors, 1),
        (DISCARD, u64::MAX, 8),
        (WRITE_ZEROES, disk.sectors - 1, 2),
        (WRITE_ZEROES, 0, u32::MAX.into()),
    ] {
        range(sector, sectors, 0);
        disk.expect(kind, 0, 16, IOERR)?;
    }
    range(0, 8, 2);
    disk.expect(DISCARD, 0, 16, UNSUPP)?;
    disk.expect(WRITE_ZEROES, 0, 15, IOERR)?;
    disk.check(0)
}

/// Writes 128 KiB at a time, from the first sector on, until that fails or the disk ends.
fn fill(mut disk: Disk) -> Outcome {
    const PARTS: usize = 16;
    (0..1024).for_each(|n| set_word(n, !0));
    for step in 0..disk.sectors / 256 {
        let mut chain = [(data_address(0), 8192, 0); PARTS + 2];
        chain[0] = (header(0, OUT, step * 256), 16, 0);
        chain[PARTS + 1] = (status_address(0), 1, WRITE);
        disk.device.chain(0, &chain);
        match disk.go()? {
            OK => {}
            IOERR => {
                console::text("the disk takes no more\n");
                return Ok(());
            }
            _ => return Err("a write got the wrong status"),
        }
    }
    Ok(())
}

fn get_id(mut disk: Disk) -> Outcome {
    (0..4).for_each(|n| set_word(n, !0));
    disk.expect(GET_ID, 0, 20, OK)?;
    console::text("ID ");
    for n in 0..20 {
        match (word(n / 8) >> (8 * (n % 8))) as u8 {
            0 => break,
            byte => console::byte(byte),
        }
    }
    console::text("\n");
    Ok(())
}

fn range(mut disk: Disk) -> Outcome {
    for kind in [IN, OUT] {
        disk.expect(kind, disk.sectors, 512, IOERR)?;
        disk.expect(kind, disk.sectors - 1, 1024, IOERR)?;
        disk.expect(kind, u64::MAX, 512, IOERR)?;
        disk.expect(kind, u64::MAX / 512 + 1, 512, IOERR)?;
        disk.expect(kind, 0, 100, IOERR)?;
    }
    disk.expect(99, 0, 512, UNSUPP)?;
    disk.check(disk.sectors - 1)
}

/// Eight requests in flight, 40 times, with event index: each comes back once.
fn many(mut disk: Disk) -> Outcome {
    if disk.features & F_EVENT_IDX == 0 {
        return Err("the event index is not offered");
    }
    for round in 0..40 {
        for n in 0..8 {
            let sector = (round * 8 + n as u64) % disk.sectors;
            let data = data_address(n * 64);
            let first = 3 * n as u16;
            disk.device
                .chain(first, &[(header(n, IN, sector), 16, 0), (data, 512, WRITE), (status_address(n), 1, WRITE)]);
            disk.device.offer(first);
        }
        disk.device.notify();
        if !disk.device.wait(8, ANSWER_MS) {
            return Err("requests were not answered");
        }
        for n in 0..8 {
            let sector = (round * 8 + n as u64) % disk.sectors;
            if status(n) != OK || word(n * 64 + 1) != sector_word(sector, 1) {
                return Err("a request of many went wrong");
            }
        }
    }
    Ok(())
}

pub(crate) fn table(n: usize, descriptor: Descriptor) {
    // SAFETY: a store into a table that no request in flight uses.
    unsafe { write_volatile(addr_of_mut!(BUFFERS.table[n]), descriptor) }
}

pub(crate) fn table_address() -> u64 {
    // SAFETY: only the address is taken.
    unsafe { addr_of_mut!(BUFFERS.table) as u64 }
}

/// Fills the indirect table with a good read of sector 5.
pub(crate) fn good_table() {
    table(0, Descriptor { address: header(0, IN, 5), length: 16, flags: NEXT, next: 1 });
    table(1, Descriptor { address: data_address(0), length: 512, flags: NEXT | WRITE, next: 2 });
    table(2, Descriptor { address: status_address(0), length: 1, flags: WRITE, next: 0 });
}

fn indirect(mut disk: Disk) -> Outcome {
    good_table();
    disk.device.chain(0, &[(table_address(), 48, INDIRECT)]);
    match disk.go()? {
        OK if word(1) == sector_word(5, 1) => Ok(()),
        _ => Err("an indirect request failed"),
    }
}

/// What is written to the queue's registers after DRIVER_OK changes nothing.
fn frozen(mut disk: Disk) -> Outcome {
    disk.check(1)?;
    disk.device.write(QUEUE_SEL, 0);
    disk.device.write(QUEUE_NUM, 2);
    for register in [QUEUE_DESC, QUEUE_DEVICE] {
        disk.device.write(register, NOWHERE as u32);
        disk.device.write(register + 4, 0xffff);
    }
    disk.device.write(QUEUE_READY, 1);
    disk.check(2)
}

/// Features that were not offered are refused, and so is a driver without VERSION_1; a bad queue does not start.
fn features(n: u8) -> Outcome {
    let mut device = Device::new(n);
    let offered = device.offered();
    if device.negotiate(offered | 1 << 63) {
        return Err("a feature that was not offered was taken");
    }
    if device.negotiate(offered & !F_VERSION_1) {
        return Err("a legacy driver was taken");
    }
    device.write(QUEUE_SEL, 0);
    let max = device.read(QUEUE_NUM_MAX);
    if max < u32::from(SIZE) || !max.is_power_of_two() {
        return Err("the queue's largest size is wrong");
    }
    device.write(QUEUE_SEL, 7);
    if device.read(QUEUE_NUM_MAX) != 0 {
        return Err("a queue that is not there has a size");
    }
    Disk::start(n, 0)?.check(0)
}
