//! The packed bytes of a stream, in order, with the count of those that were taken.

use crate::inspect::bytes::{Bytes, Raw};
use std::io::{self, BufRead, Read};

/// Bytes that are read ahead.
const BUFFER_BYTES: usize = 64 << 10;

/// A reader of packed bytes.
pub(crate) struct Input<'a> {
    raw: Raw<'a>,
    buffer: Vec<u8>,
    used: usize,
    /// Where in `raw` the buffer ends.
    next: u64,
}

impl<'a> Input<'a> {
    pub(crate) fn new(raw: Raw<'a>) -> Self {
        Self { raw, buffer: Vec::new(), used: 0, next: 0 }
    }

    /// The bytes that were taken.
    pub(crate) fn taken(&self) -> u64 {
        let ahead = self.buffer.len().saturating_sub(self.used);
        self.next.saturating_sub(u64::try_from(ahead).unwrap_or(u64::MAX))
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used >= self.buffer.len() {
            self.buffer.resize(BUFFER_BYTES, 0);
            let count = self.raw.read_at(self.next, &mut self.buffer).map_err(io::Error::other)?;
            self.buffer.truncate(count);
            self.used = 0;
            self.next = self.next.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(self.buffer.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.used = self.used.saturating_add(count).min(self.buffer.len());
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let count = ready.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), ready.get(..count)) {
            to.copy_from_slice(from);
        }
        self.consume(count);
        Ok(count)
    }
}
