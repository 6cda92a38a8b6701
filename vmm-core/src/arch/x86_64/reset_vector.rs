//! The code at the reset vector, where firmware would be.
//!
//! On a machine whose ACPI is hardware-reduced, Linux takes for granted that EFI resets it, and without EFI jumps to
//! FFFF:0000 in real mode (arch/x86/kernel/reboot.c, `BOOT_BIOS`) before it tries the reset register of the FADT.

use super::layout::{RESET_PORT, RESET_VALUE};

/// FFFF:0000 as a physical address; 16 bytes are left below 1 MiB.
pub const RESET_VECTOR: u64 = 0xF_FFF0;

/// Writes the reset value to the reset port, and stops should that not end the machine.
#[must_use]
pub fn code() -> [u8; 9] {
    let [low, high] = RESET_PORT.to_le_bytes();
    [
        0xba,
        low,
        high, // mov dx, RESET_PORT
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_fits_between_the_reset_vector_and_1_mib() {
        assert!(RESET_VECTOR + code().len() as u64 <= 1 << 20);
    }
}
