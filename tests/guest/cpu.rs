//! The processor's and the machine's registers: ports, MMIO, local APIC, I/O APIC, interrupts.

use crate::console;
use core::arch::asm;
use core::ptr::{addr_of_mut, read_volatile, write_volatile};

const LAPIC: usize = 0xfee0_0000;
const IOAPIC: usize = 0xfec0_0000;
const VECTORS: usize = 80;
/// The local APIC timer's vector.
pub const TIMER: u8 = 0x30;
/// The vector of GSI 0; GSI n has the nth after it.
pub const GSI_BASE: u8 = 0x31;
/// KVM's local APIC timer counts nanoseconds (`APIC_BUS_CYCLE_NS`).
pub const TICKS_PER_MS: u32 = 1_000_000;

pub fn outb(port: u16, value: u8) {
    // SAFETY: a port write of the test guest; what it does is the machine's to decide.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: as for `outb`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

pub fn mmio_read(address: usize) -> u32 {
    // SAFETY: all device windows are identity-mapped.
    unsafe { read_volatile(address as *const u32) }
}

pub fn mmio_write(address: usize, value: u32) {
    // SAFETY: as for `mmio_read`.
    unsafe { write_volatile(address as *mut u32, value) }
}

static mut IDT: [[u64; 2]; VECTORS] = [[0; 2]; VECTORS];
static mut COUNTS: [u64; VECTORS] = [0; VECTORS];

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Loads an IDT in which every vector has a handler, masks the 8259 and enables the local APIC.
pub fn init() {
    unsafe extern "C" {
        static isr_stubs: u8;
    }
    let mut cs: u64;
    // SAFETY: reads a selector.
    unsafe { asm!("mov {0:r}, cs", out(reg) cs, options(nomem, nostack, preserves_flags)) }
    cs &= 0xffff;
    let stubs = &raw const isr_stubs as u64;
    for vector in 0..VECTORS {
        let handler = stubs + 16 * vector as u64;
        let low = handler & 0xffff | cs << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: only this function writes to the IDT, before it is loaded.
        unsafe { write_volatile(addr_of_mut!(IDT[vector]), [low, handler >> 32]) };
    }
    let pointer = Pointer { limit: (VECTORS * 16 - 1) as u16, base: addr_of_mut!(IDT) as u64 };
    // SAFETY: the IDT is complete and lives for ever.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack, preserves_flags)) }
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    mmio_write(LAPIC + 0x80, 0);
    mmio_write(LAPIC + 0xf0, 0x1ff);
}

#[unsafe(no_mangle)]
extern "C" fn isr_handler(vector: u64, error: u64, rip: u64) {
    if vector < 32 {
        let cr2: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) }
        for (name, value) in [("FAIL exception ", vector), (" error ", error), (" rip ", rip), (" cr2 ", cr2)] {
            console::text(name);
            console::hex(value);
        }
        console::text("\n");
        crate::power_off();
    }
    // SAFETY: interrupts are off in here, and elsewhere the counters are only read.
    unsafe {
        let count = addr_of_mut!(COUNTS[vector as usize]);
        write_volatile(count, read_volatile(count) + 1);
    }
    mmio_write(LAPIC + 0xb0, 0);
}

/// How many interrupts of `vector` came so far.
pub fn count(vector: u8) -> u64 {
    // SAFETY: an aligned load.
    unsafe { read_volatile(addr_of_mut!(COUNTS[vector as usize])) }
}

/// Waits for an interrupt unless `done` holds; interrupts are on in here only.
pub fn wait_until(mut done: impl FnMut() -> bool) {
    while !done() {
        // SAFETY: sti takes effect after the next instruction, so no interrupt is lost between the check and hlt.
        unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
    }
}

/// As [`wait_until`], for about `limit_ms`; false when the time is up.
pub fn wait_ms(limit_ms: u64, mut done: impl FnMut() -> bool) -> bool {
    timer(TICKS_PER_MS * 10, true);
    let end = count(TIMER) + limit_ms.div_ceil(10);
    let mut good = false;
    wait_until(|| {
        good = done();
        good || count(TIMER) >= end
    });
    timer(0, false);
    good
}

/// Starts the local APIC timer, or stops it with 0 ticks.
pub fn timer(ticks: u32, periodic: bool) {
    mmio_write(LAPIC + 0x3e0, 0xb);
    mmio_write(LAPIC + 0x320, u32::from(TIMER) | u32::from(periodic) << 17);
    mmio_write(LAPIC + 0x380, ticks);
}

/// The local APIC timer's current count.
pub fn timer_left() -> u32 {
    mmio_read(LAPIC + 0x390)
}

pub fn apic_id() -> u8 {
    (mmio_read(LAPIC + 0x20) >> 24) as u8
}

/// Sends an inter-processor interrupt.
pub fn ipi(apic_id: u8, command: u32) {
    mmio_write(LAPIC + 0x310, u32::from(apic_id) << 24);
    mmio_write(LAPIC + 0x300, command);
}

/// Routes a GSI, edge-triggered, to this processor; returns its vector.
pub fn route(gsi: u8) -> u8 {
    let vector = GSI_BASE + gsi;
    for (register, value) in [(1, u32::from(apic_id()) << 24), (0, u32::from(vector))] {
        mmio_write(IOAPIC, 0x10 + 2 * u32::from(gsi) + register);
        mmio_write(IOAPIC + 0x10, value);
    }
    vector
}

/// Reads a register of the I/O APIC.
pub fn ioapic_read(register: u32) -> u32 {
    mmio_write(IOAPIC, register);
    mmio_read(IOAPIC + 0x10)
}
