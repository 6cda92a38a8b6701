//! The recording of a console: the first and the last of what a guest printed, in shared memory that serial writes and an
//! inspector reads when serial is gone.
//!
//! Serial maps it before its jail is shut and writes by stores alone, so that its filter allows nothing for it. Only
//! touched pages exist. The reader believes nothing of it: the count may be any number, and is only used to say which part
//! of the memory is text.
//!
//! Layout: the number of bytes printed so far (64 bits, little endian) at offset 0, the first [`HEAD_BYTES`] of them from
//! offset 4096 on, then a ring with the last [`TAIL_BYTES`] of what came after.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// The bytes that are kept of the beginning.
pub const HEAD_BYTES: usize = 1 << 20;
/// The bytes that are kept of the end.
pub const TAIL_BYTES: usize = 3 << 20;
/// The size of the memfd.
pub const RECORDING_BYTES: usize = HEAD + HEAD_BYTES + TAIL_BYTES;

const COUNT: usize = 0;
const HEAD: usize = 4096;
const TAIL: usize = HEAD + HEAD_BYTES;

/// A recording cannot be mapped.
#[derive(Debug, thiserror::Error)]
#[error("the recording of the console cannot be mapped")]
pub struct RecordingError(#[source] MmapRegionError);

/// Serial's side.
#[derive(Debug)]
pub struct Recorder {
    memory: MmapRegion,
    count: u64,
}

impl Recorder {
    /// Maps the recording in `memfd`.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn map(memfd: OwnedFd) -> Result<Self, RecordingError> {
        let memory = MmapRegion::from_file(FileOffset::new(File::from(memfd), 0), RECORDING_BYTES);
        memory.map(|memory| Self { memory, count: 0 }).map_err(RecordingError)
    }

    /// Adds what the guest printed.
    pub fn record(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (at, room) = place(self.count);
            let (now, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            // Within the mapping by the arithmetic of `place`.
            self.memory.as_volatile_slice().write_slice(now, at).unwrap_or(());
            self.count = self.count.saturating_add(now.len() as u64);
            bytes = rest;
        }
        self.memory.as_volatile_slice().store(self.count.to_le(), COUNT, Ordering::Release).unwrap_or(());
    }
}

/// Where the byte after `count` others goes, and how many more fit behind it.
fn place(count: u64) -> (usize, usize) {
    let bytes = |count: u64| usize::try_from(count).unwrap_or(0);
    match count.checked_sub(HEAD_BYTES as u64) {
        None => (HEAD.saturating_add(bytes(count)), HEAD_BYTES.saturating_sub(bytes(count))),
        Some(behind) => {
            let at = bytes(behind % TAIL_BYTES as u64);
            (TAIL.saturating_add(at), TAIL_BYTES.saturating_sub(at))
        }
    }
}

/// The text of a recording that `read` reads at offsets: its beginning, and its end if it is longer than that, with a line
/// between the two where something is missing.
///
/// # Errors
/// Those of `read`.
pub fn text(read: impl Fn(u64, &mut [u8]) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let mut count = [0; 8];
    read(COUNT as u64, &mut count)?;
    let count = u64::from_le_bytes(count);
    let kept = |bytes: u64, most: usize| usize::try_from(bytes).map_or(most, |bytes| bytes.min(most));
    let mut head = vec![0; kept(count, HEAD_BYTES)];
    read(HEAD as u64, &mut head)?;
    let behind = count.saturating_sub(HEAD_BYTES as u64);
    let mut tail = vec![0; kept(behind, TAIL_BYTES)];
    read(TAIL as u64, &mut tail)?;
    let lost = behind.saturating_sub(TAIL_BYTES as u64);
    if lost > 0 {
        head.extend(left_out(lost).into_bytes());
        tail.rotate_left(kept(behind % TAIL_BYTES as u64, TAIL_BYTES));
    }
    head.extend(tail);
    Ok(head)
}

/// The line that stands for `bytes` bytes of a log that were not kept.
#[must_use]
pub fn left_out(bytes: u64) -> String {
    format!("\n[{bytes} bytes were not kept]\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn recording() -> (Recorder, File) {
        let memfd = nix::sys::memfd::memfd_create(c"recording", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let file = File::from(memfd);
        file.set_len(RECORDING_BYTES as u64).unwrap();
        (Recorder::map(file.try_clone().unwrap().into()).unwrap(), file)
    }

    fn read(file: &File) -> Vec<u8> {
        text(|offset, buffer| file.read_exact_at(buffer, offset)).unwrap()
    }

    #[test]
    fn short_log_is_kept_whole() {
        let (mut recorder, file) = recording();
        assert_eq!(read(&file), b"");
        recorder.record(b"Linux ");
        recorder.record(b"version\n");
        assert_eq!(read(&file), b"Linux version\n");
    }

    #[test]
    fn long_log_keeps_its_beginning_and_its_end_in_order() {
        let (mut recorder, file) = recording();
        let line = |number: usize| format!("line {number:>9}\n");
        let lines = 600_000;
        for number in 0..lines {
            recorder.record(line(number).as_bytes());
        }
        let text = String::from_utf8(read(&file)).unwrap();
        let total = lines * line(0).len();
        let lost = total - HEAD_BYTES - TAIL_BYTES;
        assert!(text.starts_with(&line(0)) && text.ends_with(&line(lines - 1)));
        assert_eq!(text.len(), HEAD_BYTES + TAIL_BYTES + left_out(lost as u64).len());
        let (head, tail) = text.split_once(&left_out(lost as u64)).unwrap();
        assert_eq!((head.len(), tail.len()), (HEAD_BYTES, TAIL_BYTES));
        let numbers: Vec<usize> = tail.lines().skip(1).map(|line| line[5..].trim().parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }

    #[test]
    fn log_that_just_fits_has_no_gap() {
        let (mut recorder, file) = recording();
        recorder.record(&vec![b'x'; HEAD_BYTES + TAIL_BYTES]);
        assert_eq!(read(&file), vec![b'x'; HEAD_BYTES + TAIL_BYTES]);
    }

    #[test]
    fn impossible_count_is_no_more_than_the_memory() {
        let (_recorder, file) = recording();
        file.write_all_at(&u64::MAX.to_le_bytes(), 0).unwrap();
        assert!(read(&file).len() <= RECORDING_BYTES + 64);
    }
}
