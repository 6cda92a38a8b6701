//! System calls by number, so that no library stands between an attempt and the kernel.
//!
//! An attempt is an attack: its arguments may be wrong on purpose. It runs in a test build, alone, in a jail.
#![allow(unsafe_code, reason = "system calls by number have no safe wrapper; nothing else here is unsafe")]

use nix::errno::Errno;
use std::os::fd::{BorrowedFd, RawFd};

/// Makes a system call.
///
/// # Errors
/// The kernel's.
#[allow(clippy::cast_possible_truncation, reason = "both architectures have 64-bit words")]
pub fn call(number: libc::c_long, arguments: [usize; 6]) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: every pointer among the arguments of an attempt is that of a static or leaked buffer which is larger than
    // what the call reads or writes. A call that gives the process another memory, stack or signal state must be refused
    // by the jail, which is what the attempt is to show; where it is not, the test has failed already.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    Errno::result(result).map(libc::c_long::cast_unsigned).map(|value| value as usize)
}

/// A descriptor of this process, if it is open.
#[must_use]
pub fn open_descriptor(fd: RawFd) -> Option<BorrowedFd<'static>> {
    let number = usize::try_from(fd).ok()?;
    call(libc::SYS_fcntl, [number, libc::F_GETFD.cast_unsigned() as usize, 0, 0, 0, 0]).ok()?;
    // SAFETY: it is open, as the call above shows, and a process of Bulkhead closes what it holds only by its owner, while
    // the look at the descriptors, for which this is borrowed, is over before any owner acts.
    Some(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Fills memory that the kernel has just mapped for this process.
pub fn fill(address: usize, bytes: usize, value: u8) {
    let start = std::ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: the caller got `address` from an mmap of at least `bytes` bytes that is readable and writable, and that no
    // Rust object lies in.
    unsafe { std::ptr::write_bytes(start, value, bytes) }
}

/// The bytes of a buffer from `offset` on that the kernel may have written.
#[must_use]
pub fn read(buffer: &[u64; 4], offset: usize) -> Vec<u8> {
    // SAFETY: the buffer is readable; volatile, because only the kernel writes there.
    let words = unsafe { std::ptr::from_ref(buffer).read_volatile() };
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
    bytes.skip(offset).take(8).collect()
}

/// The address of a value, for an argument. The kernel may write there.
pub fn address<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>().expose_provenance()
}
