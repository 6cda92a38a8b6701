//! Bytes at offsets: where they come from, and the numbers in them.

use super::limits::Work;
use super::trouble::Trouble;
use crate::Source;

/// Bytes of unknown length that can be read anywhere; what lies behind the end reads as nothing.
pub(crate) trait Bytes {
    /// Reads up to `buffer.len()` bytes; fewer only at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble>;

    /// Gives back the memory that is only kept for the next read.
    fn close(&self) {}
}

/// A part of the source, whose reads are counted.
#[derive(Clone, Copy)]
pub(crate) struct Raw<'a> {
    source: &'a dyn Source,
    work: &'a Work,
    start: u64,
    end: u64,
}

impl<'a> Raw<'a> {
    /// The whole source.
    pub(crate) fn new(source: &'a dyn Source, work: &'a Work) -> Self {
        Self { source, work, start: 0, end: source.len() }
    }

    /// The part from `offset` on, of at most `length` bytes.
    pub(crate) fn part(&self, offset: u64, length: u64) -> Self {
        let start = self.start.saturating_add(offset).min(self.end);
        Self { start, end: start.saturating_add(length).min(self.end), ..*self }
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// The counters.
    pub(crate) fn work(&self) -> &'a Work {
        self.work
    }
}

impl Bytes for Raw<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let start = self.start.saturating_add(offset);
        let rest = usize::try_from(self.end.saturating_sub(start)).unwrap_or(usize::MAX);
        let length = rest.min(buffer.len());
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..length).filter(|rest| !rest.is_empty()) {
            let at = start.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            let count = self.source.read_at(at, rest).map_err(|error| Trouble::Io(error.to_string()))?.min(rest.len());
            self.work.read(count)?;
            if count == 0 {
                break;
            }
            done = done.saturating_add(count);
        }
        Ok(done)
    }
}

/// Exactly `length` bytes at `offset`; `None` if the end comes before. `length` is small: it is allocated.
pub(crate) fn exactly(bytes: &dyn Bytes, offset: u64, length: usize) -> Result<Option<Vec<u8>>, Trouble> {
    let mut buffer = vec![0; length];
    Ok((bytes.read_at(offset, &mut buffer)? == length).then_some(buffer))
}

/// As many of `length` bytes at `offset` as there are.
pub(crate) fn up_to(bytes: &dyn Bytes, offset: u64, length: usize) -> Result<Vec<u8>, Trouble> {
    let mut buffer = vec![0; length];
    let count = bytes.read_at(offset, &mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The 16-bit little-endian number at `offset`; 0 behind the end, as of a shorter structure.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    array(bytes, offset).map_or(0, u16::from_le_bytes)
}

/// As [`u16_at`], of 32 bits.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    array(bytes, offset).map_or(0, u32::from_le_bytes)
}

/// As [`u16_at`], of 64 bits.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    array(bytes, offset).map_or(0, u64::from_le_bytes)
}

/// The byte at `offset`; 0 behind the end.
pub(crate) fn u8_at(bytes: &[u8], offset: usize) -> u8 {
    bytes.get(offset).copied().unwrap_or_default()
}

/// The part of `bytes` before its first NUL, with replacement characters for what is no UTF-8.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(before_nul(bytes)).into_owned()
}

/// The part of `bytes` before its first NUL.
pub(crate) fn before_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Where `needle` first is in `bytes`.
pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        let rest = bytes.get(from..)?;
        from = from.saturating_add(rest.iter().position(|byte| *byte == first)?);
        if bytes.get(from..)?.starts_with(needle) {
            return Some(from);
        }
        from = from.saturating_add(1);
    }
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes;
    let mut tenths = 0;
    let mut unit = None;
    for name in UNITS {
        if value < 1024 {
            break;
        }
        tenths = value.wrapping_rem(1024).saturating_mul(10).wrapping_div(1024);
        value = value.wrapping_div(1024);
        unit = Some(name);
    }
    match unit {
        None => format!("{bytes} bytes"),
        Some(unit) if tenths == 0 => format!("{value} {unit}"),
        Some(unit) => format!("{value}.{tenths} {unit}"),
    }
}

/// A UUID as 16 bytes in the order in which it is written.
pub(crate) fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().take(16).enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_a_source_ends_where_it_ends() {
        let work = Work::default();
        let data: &[u8] = b"0123456789";
        let raw = Raw::new(&data, &work).part(4, 3);
        assert_eq!(up_to(&raw, 1, 10).unwrap(), b"56");
        assert_eq!(exactly(&raw, 1, 3).unwrap(), None);
        assert_eq!(up_to(&raw, u64::MAX, 10).unwrap(), b"");
        assert_eq!(work.read_bytes(), 4);
    }

    #[test]
    fn needle_is_found_where_it_is_first() {
        assert_eq!(find(b"a needless needle", b"needle"), Some(2));
        assert_eq!(find(b"nnneedle", b"needle"), Some(2));
        assert_eq!(find(b"a needl", b"needle"), None);
        assert_eq!(find(b"", b"n"), None);
    }

    #[test]
    fn sizes_are_written_for_people() {
        assert_eq!(size(10), "10 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(10 << 30), "10 GiB");
    }
}
