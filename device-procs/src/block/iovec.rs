//! Positioned vectored I/O straight between a file and guest memory.
//!
//! Distrusts nobody: it takes [`VolatileSlice`]s, which only `vm-memory` makes, after its range check. Promises that the
//! kernel reads and writes nothing but the bytes of those slices, and that no Rust reference to them ever exists.
#![allow(
    unsafe_code,
    reason = "preadv and pwritev on memory that another party changes at any time have no safe wrapper"
)]

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::VolatileSlice;

/// The most iovecs of one call: `UIO_MAXIOV`, "man 2 readv".
pub(super) const MAX_IOVECS: usize = 1024;

/// Reads from `file` at `offset` into the slices, in order; gives the number of bytes, which may be short.
pub(super) fn read_at<'a, 'm: 'a>(
    file: BorrowedFd<'_>,
    into: impl Iterator<Item = &'a VolatileSlice<'m>>,
    offset: u64,
) -> Result<usize, Errno> {
    let offset = libc::off_t::try_from(offset).map_err(|_too_large| Errno::EOVERFLOW)?;
    let guards: Vec<_> = into.take(MAX_IOVECS).map(VolatileSlice::ptr_guard_mut).collect();
    let iovecs: Vec<_> =
        guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_too_many| Errno::EINVAL)?;
    // SAFETY: `iovecs` holds `count` entries and outlives the call. Each one covers exactly the memory of a
    // VolatileSlice, which by the contract of its constructor is valid for `iov_len` bytes as long as the slice lives,
    // and `guards` keeps it mapped. It is memory for volatile access, to which no reference exists, so that the kernel
    // may write to it. The descriptor is open for the call, being borrowed.
    let read = unsafe { libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count, offset) };
    usize::try_from(read).map_err(|_negative| Errno::last())
}

/// Writes the slices, in order, to `file` at `offset`; gives the number of bytes, which may be short.
pub(super) fn write_at<'a, 'm: 'a>(
    file: BorrowedFd<'_>,
    from: impl Iterator<Item = &'a VolatileSlice<'m>>,
    offset: u64,
) -> Result<usize, Errno> {
    let offset = libc::off_t::try_from(offset).map_err(|_too_large| Errno::EOVERFLOW)?;
    let guards: Vec<_> = from.take(MAX_IOVECS).map(VolatileSlice::ptr_guard).collect();
    let iovecs: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() })
        .collect();
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_too_many| Errno::EINVAL)?;
    // SAFETY: as in `read_at`; the kernel only reads from the memory.
    let written = unsafe { libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), count, offset) };
    usize::try_from(written).map_err(|_negative| Errno::last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn slices_are_filled_in_order_from_the_offset() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let (mut a, mut b) = ([0; 3], [0; 2]);
        {
            let slices = [VolatileSlice::from(&mut a[..]), VolatileSlice::from(&mut b[..])];
            assert_eq!(read_at(file.as_fd(), slices.iter(), 4), Ok(5));
        }
        assert_eq!((&a, &b), (b"456", b"78"));
    }

    #[test]
    fn slices_are_written_in_order_at_the_offset() {
        let mut file = tempfile::tempfile().unwrap();
        let (mut a, mut b) = (*b"abc", *b"de");
        let slices = [VolatileSlice::from(&mut a[..]), VolatileSlice::from(&mut b[..])];
        assert_eq!(write_at(file.as_fd(), slices.iter(), 1), Ok(5));
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"\0abcde");
    }

    #[test]
    fn more_slices_than_the_kernel_takes_are_a_short_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mut byte = [1; 1];
        let slice = VolatileSlice::from(&mut byte[..]);
        assert_eq!(read_at(file.as_fd(), std::iter::repeat_n(&slice, 2000), 0), Ok(MAX_IOVECS));
    }

    #[test]
    fn offset_beyond_the_signed_range_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(read_at(file.as_fd(), std::iter::empty(), u64::MAX), Err(Errno::EOVERFLOW));
        assert_eq!(write_at(file.as_fd(), std::iter::empty(), u64::MAX), Err(Errno::EOVERFLOW));
    }
}
