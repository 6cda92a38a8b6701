//! Memory without bound.

use crate::Seat;
use crate::attempt::{Act, Attempt, Done};
use crate::held::Held;
use crate::raw;

const GROUP: &str = "rights and limits";
/// A step.
const STEP_BYTES: usize = 8 << 20;
/// More address space than any process of a machine with 64 MiB may have: the vmm, with 4 GiB beside guest memory.
const BOUND_BYTES: usize = 5 << 30;
const READ_WRITE: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;
const PRIVATE: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as usize;

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let others = &[Seat::Loader, Seat::Serial, Seat::VirtioBlk, Seat::Inspector];
    let name = "allocate and use memory without bound";
    let row = "allocate memory without bound";
    vec![
        Attempt::new(GROUP, name, row, Act::Do(|_: &Held| allocate(true))).by(others),
        Attempt::new(GROUP, row, row, Act::Do(|_: &Held| allocate(false))).by(&[Seat::VmmControl, Seat::VmmVcpu]),
    ]
}

/// Maps until the kernel refuses; gives all back, so that the process can go on.
fn allocate(is_used: bool) -> Done {
    let mut blocks = Vec::with_capacity(BOUND_BYTES / STEP_BYTES);
    let end = loop {
        if blocks.len() >= BOUND_BYTES / STEP_BYTES {
            break Done::Succeeded(BOUND_BYTES);
        }
        match raw::call(libc::SYS_mmap, [0, STEP_BYTES, READ_WRITE, PRIVATE, usize::MAX, 0]) {
            Ok(address) => blocks.push(address),
            Err(errno) => break Done::Refused(errno),
        }
        if let (true, Some(&address)) = (is_used, blocks.last()) {
            raw::fill(address, STEP_BYTES, 1);
        }
    };
    for address in blocks {
        raw::call(libc::SYS_munmap, [address, STEP_BYTES, 0, 0, 0, 0]).unwrap_or(0);
    }
    end
}
