//! What it takes that a guest reads what this process has written.
//!
//! A guest maps registers as device memory. Where the processor cannot force it to use the caches (before FEAT_S2FWB), its
//! reads go past them, to what was written back (Arm architecture reference manual, "Mismatched memory attributes").

#![allow(unsafe_code, reason = "an instruction for the cache")]

use std::arch::asm;

/// Has a guest that reads the word at `address` past the caches read what was stored there. `address` is mapped.
pub fn write_back(address: usize) {
    // SAFETY: cleaning a line by its address changes no memory and no register. Linux lets user space do it (SCTLR_EL1.UCI);
    // an address that is not mapped would be a fault, never another access.
    unsafe { asm!("dc cvac, {0}", "dsb sy", in(reg) address, options(nostack, preserves_flags)) }
}
