//! The scenarios, but for those of the disk.

use crate::boot::{BootInfo, TRAMPOLINE};
use crate::console::{self, PORT};
use crate::cpu::{self, GSI_BASE, TICKS_PER_MS, TIMER, inb, outb};
use crate::{Args, Outcome, bench, block, power_off};
use core::ptr::{addr_of_mut, copy_nonoverlapping, read_volatile, write_volatile};

const SERIAL_GSI: u8 = 4;
const MIB: u64 = 1 << 20;

pub fn run(name: &[u8], args: Args, boot: BootInfo) -> Outcome {
    match name {
        b"banner" => banner(boot),
        b"uart" => uart(),
        b"echo" => echo(),
        b"timer" => timer(),
        b"ioapic" => ioapic(),
        b"smp" => smp(args),
        b"memory" => memory(args, boot),
        b"acpi" => acpi(),
        b"flood" => flood(args),
        b"touch" => touch(args),
        b"zero" => zero(args),
        b"ready" => Ok(()),
        b"none" => Ok(()),
        b"bench-blk" => bench::run(args),
        name => block::run(name, args),
    }
}

fn banner(boot: BootInfo) -> Outcome {
    console::text(if boot.is_pvh() { "hello from PVH\n" } else { "hello from long mode\n" });
    if boot.is_valid() { Ok(()) } else { Err("the boot structure has no mark") }
}

/// Scratch register, divisor latch, line control and interrupt identification, as a driver probes them.
fn uart() -> Outcome {
    for value in [0x00, 0x55, 0xaa, 0xff] {
        outb(PORT + 7, value);
        if inb(PORT + 7) != value {
            return Err("the scratch register does not hold its value");
        }
    }
    outb(PORT + 3, 0x83);
    outb(PORT, 0x01);
    outb(PORT + 1, 0x00);
    if inb(PORT) != 1 || inb(PORT + 3) != 0x83 {
        return Err("the divisor latch does not hold its value");
    }
    outb(PORT + 3, 0x03);
    outb(PORT + 2, 0x07);
    if inb(PORT + 2) & 0xc0 != 0xc0 {
        return Err("no 16550A: the FIFOs are not reported");
    }
    let vector = cpu::route(SERIAL_GSI);
    let before = cpu::count(vector);
    outb(PORT + 1, 0x02);
    if !cpu::wait_ms(2000, || cpu::count(vector) > before) {
        return Err("no interrupt for the empty transmitter");
    }
    let identification = inb(PORT + 2);
    outb(PORT + 1, 0x00);
    if identification & 0x0f != 0x02 { Err("the interrupt is not identified") } else { Ok(()) }
}

/// Sends back what is typed, up to the end of a line. It looks for a byte after an interrupt only.
fn echo() -> Outcome {
    let vector = cpu::route(SERIAL_GSI);
    let mut seen = cpu::count(vector);
    outb(PORT + 1, 0x01);
    console::text("READY echo\n");
    loop {
        cpu::wait_until(|| cpu::count(vector) > seen);
        seen = cpu::count(vector);
        inb(PORT + 2);
        while inb(PORT + 5) & 1 != 0 {
            let byte = inb(PORT);
            console::byte(byte);
            if byte == b'\n' {
                outb(PORT + 1, 0x00);
                return Ok(());
            }
        }
    }
}

fn timer() -> Outcome {
    let before = cpu::count(TIMER);
    cpu::timer(TICKS_PER_MS * 5, false);
    cpu::wait_until(|| cpu::count(TIMER) > before);
    if cpu::timer_left() != 0 {
        return Err("a one-shot timer went on");
    }
    let before = cpu::count(TIMER);
    cpu::timer(TICKS_PER_MS * 5, true);
    cpu::wait_until(|| cpu::count(TIMER) >= before + 5);
    cpu::timer(0, false);
    Ok(())
}

/// The I/O APIC keeps what is written to it, and a masked pin stays silent.
fn ioapic() -> Outcome {
    if cpu::ioapic_read(1) >> 16 & 0xff != 23 {
        return Err("the I/O APIC has not 24 pins");
    }
    let vector = cpu::route(SERIAL_GSI);
    if cpu::ioapic_read(0x10 + 2 * u32::from(SERIAL_GSI)) & 0xff != u32::from(vector) {
        return Err("a redirection entry does not hold its value");
    }
    cpu::mmio_write(0xfec0_0000, 0x10 + 2 * u32::from(SERIAL_GSI));
    cpu::mmio_write(0xfec0_0010, 1 << 16 | u32::from(GSI_BASE + SERIAL_GSI));
    let before = cpu::count(vector);
    outb(PORT + 1, 0x02);
    let came = cpu::wait_ms(50, || cpu::count(vector) > before);
    outb(PORT + 1, 0x00);
    inb(PORT + 2);
    if came { Err("a masked pin interrupted") } else { Ok(()) }
}

static mut STARTED: [u8; 32] = [0; 32];

#[unsafe(no_mangle)]
extern "C" fn ap_main(id: u32) -> ! {
    // SAFETY: each processor has a byte of its own.
    unsafe { write_volatile(addr_of_mut!(STARTED[(id & 31) as usize]), 1) };
    loop {
        // SAFETY: stops this processor.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Starts the other processors by INIT and SIPI (Intel SDM volume 3, "Multiple-processor initialization").
fn smp(args: Args) -> Outcome {
    unsafe extern "C" {
        static ap_start: u8;
        static ap_end: u8;
    }
    let (start, end) = (&raw const ap_start, &raw const ap_end);
    // SAFETY: the trampoline's page is free RAM in the machine layout.
    unsafe { copy_nonoverlapping(start, TRAMPOLINE as *mut u8, end as usize - start as usize) };
    for id in 1..args.number("cpus").unwrap_or(2) as u8 {
        cpu::ipi(id, 0x4500);
        cpu::wait_ms(10, || false);
        cpu::ipi(id, 0x4600 | (TRAMPOLINE >> 12) as u32);
        // SAFETY: an aligned load of a byte that the other processor stores.
        let started = || unsafe { read_volatile(addr_of_mut!(STARTED[(id & 31) as usize])) } == 1;
        if !cpu::wait_ms(5000, started) {
            return Err("a processor did not start");
        }
    }
    Ok(())
}

/// The memory map has the promised size, and memory is there at the edges of each stretch, with no two the same.
fn memory(args: Args, boot: BootInfo) -> Outcome {
    let wanted = args.number("mem_mib").ok_or("mem_mib= is missing")? * MIB;
    let ram = |n| boot.region(n).map(|region| (region, region.kind == 1));
    let mut total = 0;
    let mut above = 0;
    for pass in 0..2 {
        let mut n = 0;
        while let Some((region, usable)) = ram(n) {
            n += 1;
            if !usable {
                continue;
            }
            let end = region.start + region.bytes;
            if pass == 0 {
                total += region.bytes;
                above += if region.start >= 4 << 30 { region.bytes } else { 0 };
            }
            // The guest itself lies between 2 and 4 MiB, and the boot structures below 1 MiB.
            for address in [region.start.max(8 * MIB), region.start + region.bytes / 2 & !7, end - 8] {
                if address < 8 * MIB || address >= end {
                    continue;
                }
                let mark = address ^ 0x5a5a_0000_a5a5;
                // SAFETY: the memory map says that this is RAM, nothing of ours is there, and 8 GiB are mapped.
                let held = unsafe {
                    if pass == 0 {
                        write_volatile(address as *mut u64, mark);
                    }
                    read_volatile(address as *const u64)
                };
                if held != mark {
                    return Err("memory does not hold its value");
                }
            }
        }
    }
    let hole = 3 << 30;
    if total > wanted || total + MIB < wanted {
        Err("the memory map has another size")
    } else if above != wanted.saturating_sub(hole) {
        Err("the memory above 4 GiB has another size")
    } else {
        Ok(())
    }
}

fn checksum(address: usize, bytes: usize) -> u8 {
    // SAFETY: the tables lie in identity-mapped memory.
    (0..bytes).fold(0, |sum: u8, n| sum.wrapping_add(unsafe { read_volatile((address + n) as *const u8) }))
}

/// Finds the tables from the BIOS area, as a kernel does, and checks their sums (ACPI 6.5 §5.2.5).
fn acpi() -> Outcome {
    let read = |address: usize| cpu::mmio_read(address);
    let rsdp = (0xe_0000..0x10_0000).step_by(16).find(|&at| read(at) == u32::from_le_bytes(*b"RSD "));
    let rsdp = rsdp.ok_or("no RSDP")?;
    if checksum(rsdp, 20) != 0 || checksum(rsdp, 36) != 0 {
        return Err("the RSDP's checksum is wrong");
    }
    let xsdt = read(rsdp + 24) as usize;
    let bytes = read(xsdt + 4) as usize;
    if checksum(xsdt, bytes) != 0 {
        return Err("the XSDT's checksum is wrong");
    }
    let (mut facp, mut apic) = (0, 0);
    for entry in (36..bytes).step_by(8) {
        let table = read(xsdt + entry) as usize;
        if checksum(table, read(table + 4) as usize) != 0 {
            return Err("a table's checksum is wrong");
        }
        match &read(table).to_le_bytes() {
            b"FACP" => facp = table,
            b"APIC" => apic = table,
            _ => {}
        }
    }
    let dsdt = if facp == 0 { 0 } else { read(facp + 140) as usize };
    if apic == 0 || dsdt == 0 || read(dsdt) != u32::from_le_bytes(*b"DSDT") {
        return Err("FADT, MADT or DSDT is missing");
    }
    if checksum(dsdt, read(dsdt + 4) as usize) != 0 { Err("the DSDT's checksum is wrong") } else { Ok(()) }
}

/// Prints `flood_kib` without end of line, as fast as the transmitter takes it: `flood_burst` bytes, as many as its FIFO
/// holds if not given, for each look at the line status.
fn flood(args: Args) -> Outcome {
    let burst = args.number("flood_burst").unwrap_or(16).max(1);
    for n in 0..args.number("flood_kib").unwrap_or(64) * 1024 {
        if n % burst == 0 {
            console::byte(b'#');
        } else {
            outb(PORT, b'#');
        }
    }
    console::text("\n");
    Ok(())
}

/// Writes to every page of the first `touch_mib` from 16 MiB on.
fn touch(args: Args) -> Outcome {
    let bytes = args.number("touch_mib").ok_or("touch_mib= is missing")? * MIB;
    for address in (16 * MIB..16 * MIB + bytes).step_by(4096) {
        // SAFETY: the test gives this much RAM, nothing of ours is there, and 8 GiB are mapped.
        unsafe { write_volatile(address as *mut u64, address) };
    }
    Ok(())
}

/// Nothing is in the first `touch_mib` from 16 MiB on.
fn zero(args: Args) -> Outcome {
    let bytes = args.number("touch_mib").ok_or("touch_mib= is missing")? * MIB;
    // SAFETY: as in `touch`.
    let is_zero = |address| unsafe { read_volatile(address as *const u64) } == 0;
    if (16 * MIB..16 * MIB + bytes).step_by(512).all(is_zero) { Ok(()) } else { Err("memory is not zero") }
}

/// An exception without a handler for it, nor for what follows.
pub fn triple_fault() -> ! {
    let empty = [0_u64; 2];
    // SAFETY: none is needed; this processor does not come back.
    unsafe { core::arch::asm!("lidt [{}]", "ud2", in(reg) &empty, options(nostack)) }
    power_off()
}
