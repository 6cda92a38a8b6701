//! Where the bytes of a disk are: a file or a block device, behind a trait so that tests can count and fail calls.
//!
//! Distrusts the host's files a little: one that became shorter, or returns less than asked, is an error of the request.

use super::buffers::Buffers;
use super::iovec;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::fdatasync;
use std::fs::File;
use std::os::fd::AsFd;
use vm_memory::VolatileSlice;

/// Why a disk could not do what it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A read failed.
    #[error("the image could not be read at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A write failed.
    #[error("the image could not be written at byte {offset}")]
    Write {
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The file is shorter than the disk.
    #[error("the image ends at byte {offset} or before")]
    EndOfFile {
        /// The first missing byte at the latest.
        offset: u64,
    },
    /// A flush failed.
    #[error("the image could not be flushed")]
    Flush(#[source] Errno),
    /// A range could not be discarded or zeroed.
    #[error("the image could not be zeroed at byte {offset}")]
    Zero {
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        errno: Errno,
    },
}

/// The calls that a disk makes on a file.
pub trait Store: Send + std::fmt::Debug {
    /// `preadv`: how many bytes were read, which may be fewer than asked for; 0 at the end of the file.
    ///
    /// # Errors
    /// As `preadv` has them.
    fn read_at(&self, into: &Buffers<'_>, offset: u64) -> Result<usize, Errno>;
    /// `pwritev`: how many bytes were written, which may be fewer than asked for.
    ///
    /// # Errors
    /// As `pwritev` has them.
    fn write_at(&self, from: &Buffers<'_>, offset: u64) -> Result<usize, Errno>;
    /// `fdatasync`.
    ///
    /// # Errors
    /// As `fdatasync` has them.
    fn sync_data(&self) -> Result<(), Errno>;
    /// `fallocate`.
    ///
    /// # Errors
    /// As `fallocate` has them.
    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno>;
}

impl Store for File {
    fn read_at(&self, into: &Buffers<'_>, offset: u64) -> Result<usize, Errno> {
        iovec::read_at(self.as_fd(), into.slices(), offset)
    }

    fn write_at(&self, from: &Buffers<'_>, offset: u64) -> Result<usize, Errno> {
        iovec::write_at(self.as_fd(), from.slices(), offset)
    }

    fn sync_data(&self) -> Result<(), Errno> {
        fdatasync(self)
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
        let offset = libc::off_t::try_from(offset).map_err(|_too_large| Errno::EOVERFLOW)?;
        let len = libc::off_t::try_from(len).map_err(|_too_large| Errno::EOVERFLOW)?;
        fallocate(self, flags, offset, len)
    }
}

/// Fills all of `into` from `offset` on.
pub(super) fn read_exact(store: &dyn Store, mut into: Buffers<'_>, mut offset: u64) -> Result<(), StoreError> {
    while !into.is_empty() {
        match store.read_at(&into, offset) {
            Ok(0) => return Err(StoreError::EndOfFile { offset }),
            Ok(done) => {
                into.drop_front(done).ok_or(StoreError::Read { offset, errno: Errno::EOVERFLOW })?;
                offset = offset.saturating_add(done as u64);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(StoreError::Read { offset, errno }),
        }
    }
    Ok(())
}

/// Writes all of `from` from `offset` on.
pub(super) fn write_exact(store: &dyn Store, mut from: Buffers<'_>, mut offset: u64) -> Result<(), StoreError> {
    while !from.is_empty() {
        match store.write_at(&from, offset) {
            Ok(0) => return Err(StoreError::Write { offset, errno: Errno::ENOSPC }),
            Ok(done) => {
                from.drop_front(done).ok_or(StoreError::Write { offset, errno: Errno::EOVERFLOW })?;
                offset = offset.saturating_add(done as u64);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(StoreError::Write { offset, errno }),
        }
    }
    Ok(())
}

/// Writes `len` zeros from `offset` on.
pub(super) fn write_zeros(store: &dyn Store, offset: u64, len: u64) -> Result<(), StoreError> {
    const PIECE_BYTES: usize = 1 << 16;
    const PIECES: usize = 16;
    let mut zeros = vec![0u8; PIECE_BYTES.min(usize::try_from(len).unwrap_or(PIECE_BYTES))];
    let piece = VolatileSlice::from(zeros.as_mut_slice());
    let mut done = 0u64;
    while done < len {
        let mut buffers = Buffers::default();
        for _ in 0..PIECES {
            let left = len.saturating_sub(done).saturating_sub(buffers.len() as u64);
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            if let Ok(slice) = piece.subslice(0, here) {
                buffers.push(slice);
            }
        }
        let written = buffers.len() as u64;
        write_exact(store, buffers, offset.saturating_add(done))?;
        done = done.saturating_add(written);
    }
    Ok(())
}

/// `fallocate`, repeated when a signal interrupts it.
pub(super) fn allocate(store: &dyn Store, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
    loop {
        match store.allocate(flags, offset, len) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    /// A store in a temporary file that counts, shortens and fails calls.
    #[derive(Debug, Clone)]
    pub(in super::super) struct Spy(pub(in super::super) Arc<SpyState>);

    #[derive(Debug)]
    pub(in super::super) struct SpyState {
        pub(in super::super) file: File,
        pub(in super::super) syncs: AtomicUsize,
        pub(in super::super) writes: AtomicUsize,
        pub(in super::super) allocations: AtomicUsize,
        pub(in super::super) no_allocate: AtomicBool,
        pub(in super::super) short: AtomicBool,
        pub(in super::super) failure: Mutex<Option<Errno>>,
    }

    impl Spy {
        pub(in super::super) fn new(content: &[u8]) -> Self {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(content, 0).unwrap();
            Self(Arc::new(SpyState {
                file,
                syncs: AtomicUsize::new(0),
                writes: AtomicUsize::new(0),
                allocations: AtomicUsize::new(0),
                no_allocate: AtomicBool::new(false),
                short: AtomicBool::new(false),
                failure: Mutex::new(None),
            }))
        }

        pub(in super::super) fn content(&self) -> Vec<u8> {
            let mut content = vec![0; usize::try_from(self.0.file.metadata().unwrap().len()).unwrap()];
            self.0.file.read_exact_at(&mut content, 0).unwrap();
            content
        }

        pub(in super::super) fn fail(&self, errno: Errno) {
            *self.0.failure.lock().unwrap() = Some(errno);
        }

        fn check(&self) -> Result<(), Errno> {
            self.0.failure.lock().unwrap().map_or(Ok(()), Err)
        }

        fn some_of<'m>(&self, buffers: &Buffers<'m>) -> Buffers<'m> {
            let mut copy = Buffers::default();
            buffers.slices().for_each(|slice| copy.push(*slice));
            if self.0.short.load(Ordering::Relaxed) { copy.split_front(copy.len().div_ceil(2)).unwrap() } else { copy }
        }
    }

    impl Store for Spy {
        fn read_at(&self, into: &Buffers<'_>, offset: u64) -> Result<usize, Errno> {
            self.check()?;
            Store::read_at(&self.0.file, &self.some_of(into), offset)
        }

        fn write_at(&self, from: &Buffers<'_>, offset: u64) -> Result<usize, Errno> {
            self.0.writes.fetch_add(1, Ordering::Relaxed);
            self.check()?;
            Store::write_at(&self.0.file, &self.some_of(from), offset)
        }

        fn sync_data(&self) -> Result<(), Errno> {
            self.0.syncs.fetch_add(1, Ordering::Relaxed);
            self.check()
        }

        fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
            self.0.allocations.fetch_add(1, Ordering::Relaxed);
            self.check()?;
            if self.0.no_allocate.load(Ordering::Relaxed) {
                return Err(Errno::EOPNOTSUPP);
            }
            Store::allocate(&self.0.file, flags, offset, len)
        }
    }

    #[test]
    fn short_reads_are_continued() {
        let spy = Spy::new(b"0123456789");
        spy.0.short.store(true, Ordering::Relaxed);
        let mut bytes = [0; 7];
        read_exact(&spy, Buffers::from(&mut bytes[..]), 2).unwrap();
        assert_eq!(&bytes, b"2345678");
    }

    #[test]
    fn short_writes_are_continued() {
        let spy = Spy::new(b"0123456789");
        spy.0.short.store(true, Ordering::Relaxed);
        write_exact(&spy, Buffers::from(&mut b"abcdefg".to_vec()[..]), 2).unwrap();
        assert_eq!(spy.content(), b"01abcdefg9");
    }

    #[test]
    fn end_of_file_is_an_error() {
        let spy = Spy::new(b"0123456789");
        let read = read_exact(&spy, Buffers::from(&mut [0; 7][..]), 5);
        assert_eq!(read, Err(StoreError::EndOfFile { offset: 10 }));
    }

    #[test]
    fn failed_calls_are_errors() {
        let spy = Spy::new(b"0123456789");
        spy.fail(Errno::EIO);
        let read = read_exact(&spy, Buffers::from(&mut [0; 7][..]), 1);
        assert_eq!(read, Err(StoreError::Read { offset: 1, errno: Errno::EIO }));
        let write = write_exact(&spy, Buffers::from(&mut [0; 7][..]), 1);
        assert_eq!(write, Err(StoreError::Write { offset: 1, errno: Errno::EIO }));
    }

    #[test]
    fn zeros_are_written_in_any_length() {
        let spy = Spy::new(&vec![7; 3_000_000]);
        write_zeros(&spy, 512, 2_500_001).unwrap();
        let content = spy.content();
        assert_eq!(content[..512], vec![7; 512]);
        assert!(content[512..2_500_513].iter().all(|&byte| byte == 0));
        assert_eq!(content[2_500_513..], vec![7; 3_000_000 - 2_500_513]);
    }
}
