//! The floor: `floor KERNEL WORDS MIB` starts an ELF guest by PVH and shows its console, until it resets.
//!
//! It does what no VMM can do without, in the order that costs least, and nothing else: no jail, no device but a
//! transmitter, no check of what the guest does. What Bulkhead takes longer is the price of all that.

mod arch;

use anyhow::{Context, Result};
use std::path::PathBuf;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("usage: floor KERNEL WORDS MIB");
    let (kernel, words, memory) = (PathBuf::from(next()?), next()?, next()?);
    arch::run(&kernel, &words, memory.parse().context("MIB is no number")?)
}
