//! Text on COM1, polled, without `core::fmt`.

use crate::cpu::{inb, outb};

/// COM1.
pub const PORT: u16 = 0x3f8;
const TRANSMITTER_EMPTY: u8 = 0x20;

pub fn byte(byte: u8) {
    while inb(PORT + 5) & TRANSMITTER_EMPTY == 0 {
        core::hint::spin_loop();
    }
    outb(PORT, byte);
}

pub fn bytes(bytes: &[u8]) {
    bytes.iter().for_each(|&b| byte(b));
}

pub fn text(text: &str) {
    bytes(text.as_bytes());
}

pub fn hex(value: u64) {
    let mut started = false;
    text("0x");
    for shift in (0..16).rev() {
        let digit = (value >> (4 * shift) & 15) as u8;
        started |= digit != 0 || shift == 0;
        if started {
            byte(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
        }
    }
}
