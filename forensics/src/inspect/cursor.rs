//! Bytes in order, with a look ahead.

use super::bytes::Bytes;
use super::trouble::Trouble;

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 64 << 10;

/// A place in some bytes.
pub(crate) struct Cursor<'a> {
    bytes: &'a dyn Bytes,
    position: u64,
    buffer: Vec<u8>,
    begin: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a dyn Bytes, position: u64) -> Self {
        Self { bytes, position, buffer: Vec::new(), begin: position }
    }

    /// Where it is.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next `count` bytes, up to 64 KiB; fewer at the end.
    pub(crate) fn peek(&mut self, count: usize) -> Result<&[u8], Trouble> {
        let count = count.min(BUFFER_BYTES);
        let inside = |position: u64, begin: u64| usize::try_from(position.saturating_sub(begin)).unwrap_or(usize::MAX);
        let mut used = inside(self.position, self.begin);
        if self.position < self.begin || used.saturating_add(count) > self.buffer.len() {
            // A stream is read in order: what is still ahead in the buffer stays.
            let ahead = if self.position < self.begin { &[] } else { self.buffer.get(used..).unwrap_or_default() };
            let mut buffer = Vec::with_capacity(BUFFER_BYTES);
            buffer.extend_from_slice(ahead);
            let have = buffer.len();
            buffer.resize(BUFFER_BYTES, 0);
            let from = self.position.saturating_add(u64::try_from(have).unwrap_or(u64::MAX));
            let got = self.bytes.read_at(from, buffer.get_mut(have..).unwrap_or_default())?;
            buffer.truncate(have.saturating_add(got));
            (self.buffer, self.begin, used) = (buffer, self.position, 0);
        }
        let rest = self.buffer.get(used..).unwrap_or_default();
        Ok(rest.get(..count.min(rest.len())).unwrap_or_default())
    }

    /// Goes to a place; only forward is cheap.
    pub(crate) fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// Passes over `count` bytes.
    pub(crate) fn skip(&mut self, count: u64) {
        self.position = self.position.saturating_add(count);
    }

    /// Reads up to `length` bytes and passes over them.
    pub(crate) fn take(&mut self, length: usize) -> Result<Vec<u8>, Trouble> {
        let mut taken = Vec::with_capacity(length.min(BUFFER_BYTES));
        while taken.len() < length {
            let ahead = self.peek(length.saturating_sub(taken.len()))?;
            if ahead.is_empty() {
                break;
            }
            let count = ahead.len();
            taken.extend_from_slice(ahead);
            self.skip(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(taken)
    }

    /// Passes over bytes of zero; whether anything follows them.
    pub(crate) fn skip_zeros(&mut self) -> Result<bool, Trouble> {
        loop {
            let ahead = self.peek(BUFFER_BYTES)?;
            if ahead.is_empty() {
                return Ok(false);
            }
            let zeros = ahead.iter().take_while(|byte| **byte == 0).count();
            let all = zeros == ahead.len();
            self.skip(u64::try_from(zeros).unwrap_or(u64::MAX));
            if !all {
                return Ok(true);
            }
        }
    }
}
