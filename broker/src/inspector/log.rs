//! A console log for an inspector: copied into memory as it is, without a look at it, its beginning and its end if it is
//! longer than what is kept.
//!
//! A file could change while it is read, and a pipe cannot be read at offsets; the inspector gets neither.

use super::InspectorError;
use crate::files::{FileError, Kind, open_file};
use crate::memory;
use nix::errno::Errno;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

/// The bytes that are kept of the beginning of a log.
const HEAD_BYTES: usize = 8 << 20;
/// The bytes that are kept of its end.
const TAIL_BYTES: usize = 8 << 20;
/// The most bytes that are read of what has no end, such as a pipe.
const STREAM_BYTES: u64 = 4 << 30;

/// Why a log cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    /// The file.
    #[error("{0}")]
    File(String, #[source] FileError),
    /// Nothing was given.
    #[error("standard input is a terminal; name a log file, or write `broker explain < LOG`")]
    Terminal,
    /// It cannot be read.
    #[error("the log cannot be read")]
    Read(#[source] io::Error),
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] InspectorError),
}

/// A log in memory.
#[derive(Debug)]
pub(super) struct Log {
    /// A descriptor of it, for reading alone.
    pub(super) reader: OwnedFd,
    /// What it is called.
    pub(super) name: String,
    /// The bytes between its beginning and its end that were left out.
    pub(super) left_out: u64,
}

impl Log {
    /// Copies the file `path`, or standard input for none or `-`.
    pub(super) fn copy(path: Option<&Path>) -> Result<Self, LogError> {
        let mut memory = File::from(memory::log().map_err(InspectorError::from)?);
        let (name, left_out) = match path.filter(|path| *path != Path::new("-")) {
            Some(path) => {
                let name = path.display().to_string();
                let opened =
                    open_file(path, Kind::Regular, false).map_err(|error| LogError::File(name.clone(), error))?;
                let left_out = copy_file(opened.file, opened.bytes, &mut memory).map_err(LogError::Read)?;
                (name, left_out)
            }
            None => {
                let stdin = io::stdin();
                if stdin.is_terminal() {
                    return Err(LogError::Terminal);
                }
                let left_out = copy_stream(stdin.lock(), &mut memory).map_err(LogError::Read)?;
                ("standard input".to_owned(), left_out)
            }
        };
        memory::seal(&memory).map_err(InspectorError::from)?;
        Ok(Self { reader: super::read_only(&memory)?, name, left_out })
    }
}

/// Copies what is kept of a file of `bytes` bytes; gives the number of those that are not.
fn copy_file(mut file: File, bytes: u64, to: &mut File) -> io::Result<u64> {
    let (head, tail) = (HEAD_BYTES as u64, TAIL_BYTES as u64);
    let left_out = bytes.saturating_sub(head.saturating_add(tail));
    if left_out == 0 {
        io::copy(&mut (&mut file).take(head.saturating_add(tail)), to)?;
        return Ok(0);
    }
    io::copy(&mut (&mut file).take(head), to)?;
    to.write_all(wire::recording::left_out(left_out).as_bytes())?;
    file.seek(SeekFrom::Start(bytes.saturating_sub(tail)))?;
    io::copy(&mut file.take(tail), to)?;
    Ok(left_out)
}

/// As [`copy_file`], of what can only be read on.
fn copy_stream(stream: impl Read, to: &mut File) -> io::Result<u64> {
    let mut stream = stream.take(STREAM_BYTES);
    io::copy(&mut (&mut stream).take(HEAD_BYTES as u64), to)?;
    let mut tail = Tail::default();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => tail.add(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let left_out = tail.lost;
    if left_out > 0 {
        to.write_all(wire::recording::left_out(left_out).as_bytes())?;
    }
    let (older, newer) = tail.parts();
    to.write_all(older)?;
    to.write_all(newer)?;
    Ok(left_out)
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    /// Where the next byte goes, once it is full.
    next: usize,
    lost: u64,
}

impl Tail {
    fn add(&mut self, new: &[u8]) {
        let room = TAIL_BYTES.saturating_sub(self.bytes.len());
        let (append, mut rest) = new.split_at_checked(room).unwrap_or((new, &[]));
        self.bytes.extend(append);
        while !rest.is_empty() {
            let Some(place) = self.bytes.get_mut(self.next..).filter(|place| !place.is_empty()) else { return };
            let count = place.len().min(rest.len());
            let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            place.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            self.next = self.next.saturating_add(count).checked_rem(TAIL_BYTES).unwrap_or(0);
            self.lost = self.lost.saturating_add(count as u64);
            rest = later;
        }
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        let (newer, older) = self.bytes.split_at_checked(self.next).unwrap_or((&self.bytes, &[]));
        (older, newer)
    }
}

impl From<Errno> for LogError {
    fn from(errno: Errno) -> Self {
        Self::Read(errno.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(copy: impl FnOnce(&mut File) -> io::Result<u64>) -> (Vec<u8>, u64) {
        let mut to = tempfile::tempfile().unwrap();
        let left_out = copy(&mut to).unwrap();
        to.rewind().unwrap();
        let mut text = Vec::new();
        to.read_to_end(&mut text).unwrap();
        (text, left_out)
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn log(bytes: usize) -> Vec<u8> {
        (0_u32..).flat_map(u32::to_le_bytes).take(bytes).collect()
    }

    #[test]
    fn log_that_fits_is_copied_whole() {
        for bytes in [0, 100, HEAD_BYTES, HEAD_BYTES + 1, HEAD_BYTES + TAIL_BYTES] {
            let log = log(bytes);
            assert!(kept(|to| copy_file(file(&log), bytes as u64, to)) == (log.clone(), 0), "{bytes}");
            assert!(kept(|to| copy_stream(&log[..], to)) == (log.clone(), 0), "{bytes}");
        }
    }

    #[test]
    fn long_log_keeps_its_beginning_and_its_end() {
        let extra = 1_234_567;
        let log = log(HEAD_BYTES + TAIL_BYTES + extra);
        let middle = wire::recording::left_out(extra as u64);
        let wanted = [&log[..HEAD_BYTES], middle.as_bytes(), &log[HEAD_BYTES + extra..]].concat();
        assert!(kept(|to| copy_file(file(&log), log.len() as u64, to)) == (wanted.clone(), extra as u64));
        assert!(kept(|to| copy_stream(&log[..], to)) == (wanted, extra as u64));
    }
}
