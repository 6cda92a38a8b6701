//! The bare-metal guest of the end-to-end tests.
//!
//! The command line says what to do: `test=a,b,c` names scenarios, `end=` how to end. Each scenario prints `PASS name` or
//! `FAIL name why` on COM1. It trusts nothing of the machine; the machine is what is tested.
#![no_std]
#![no_main]

mod bench;
mod block;
mod boot;
mod console;
mod cpu;
mod malformed;
#[cfg(pvh)]
mod pvh;
mod scenario;
mod virtio;

use boot::BootInfo;

/// Why a scenario failed.
pub type Outcome = Result<(), &'static str>;

/// What the command line says.
#[derive(Clone, Copy)]
pub struct Args(&'static [u8]);

impl Args {
    /// The value of `name=value`.
    pub fn get(self, name: &str) -> Option<&'static [u8]> {
        self.nth(name, 0)
    }

    /// The nth value of `name=value`.
    pub fn nth(self, name: &str, n: usize) -> Option<&'static [u8]> {
        let value = |word: &'static [u8]| word.strip_prefix(name.as_bytes())?.strip_prefix(b"=");
        self.0.split(|&b| b == b' ').filter_map(value).nth(n)
    }

    /// The value of `name=123`.
    pub fn number(self, name: &str) -> Option<u64> {
        let digit = |value: u64, &b: &u8| Some(value * 10 + u64::from(b.is_ascii_digit().then(|| b - b'0')?));
        self.get(name)?.iter().try_fold(0, digit)
    }
}

#[unsafe(no_mangle)]
extern "C" fn guest_main(pvh: u64, info: u64) -> ! {
    cpu::init();
    let boot = BootInfo::new(pvh != 0, info);
    let args = Args(boot.command_line());
    for name in args.get("test").unwrap_or(b"banner").split(|&b| b == b',') {
        let outcome = scenario::run(name, args, boot);
        console::text(if outcome.is_ok() { "PASS " } else { "FAIL " });
        console::bytes(name);
        if let Err(why) = outcome {
            console::text(" ");
            console::text(why);
        }
        console::text("\n");
    }
    end(args.get("end").unwrap_or(b"poweroff"))
}

/// Ends as the command line says.
fn end(how: &[u8]) -> ! {
    match how {
        b"reset" => cpu::outb(0x602, 1),
        b"keyboard" => cpu::outb(0x64, 0xfe),
        b"triple" => scenario::triple_fault(),
        b"halt" => {
            console::text("reboot: System halted\n");
            halt();
        }
        b"panic" => {
            console::text("Kernel panic - not syncing: the test guest wants it so\n");
            cpu::outb(0x602, 1);
        }
        // Takes all of the processor's time.
        b"spin" => loop {
            core::hint::spin_loop();
        },
        b"sleep" => cpu::wait_until(|| false),
        _ => power_off(),
    }
    halt()
}

/// ACPI S5 (`layout::SLEEP_CONTROL_PORT`, `layout::SLEEP_S5`).
pub fn power_off() -> ! {
    cpu::outb(0x600, 5 << 2 | 1 << 5);
    halt()
}

fn halt() -> ! {
    loop {
        // SAFETY: stops this processor, which is what is wanted.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    console::text("FAIL panic line ");
    console::hex(info.location().map_or(0, |at| u64::from(at.line())));
    console::text("\n");
    power_off()
}
