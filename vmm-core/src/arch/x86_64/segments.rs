//! The global descriptor tables that a guest starts with (Intel SDM volume 3 §3.4.5).

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

/// Flat 64-bit code: present, ring 0, execute and read, accessed, long mode.
const CODE_64: u64 = 0x00AF_9B00_0000_FFFF;
/// Flat 32-bit code: present, ring 0, execute and read, accessed, 4 GiB.
const CODE_32: u64 = 0x00CF_9B00_0000_FFFF;
/// Flat data: present, ring 0, read and write, accessed, 4 GiB.
const DATA: u64 = 0x00CF_9300_0000_FFFF;
/// A busy 32-bit task state segment of 0x68 bytes at 0, which only has to be there ("PVH boot protocol").
const TASK_STATE: u64 = 0x0000_8B00_0000_0067;

/// The table of [`wire::message::Entry::X86Long`]: null, code at 0x8, data at 0x10.
pub const LONG: [u64; 3] = [0, CODE_64, DATA];
/// The table of [`wire::message::Entry::X86Pvh`]: null, code at 0x8, data at 0x10, task state at 0x18.
pub const PVH: [u64; 4] = [0, CODE_32, DATA, TASK_STATE];

/// Writes a descriptor table to `start`.
///
/// # Errors
/// When `start` is not in guest memory.
pub fn write<M: GuestMemory>(memory: &M, start: u64, table: &[u64]) -> Result<(), GuestMemoryError> {
    let bytes: Vec<u8> = table.iter().flat_map(|descriptor| descriptor.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(start))
}
