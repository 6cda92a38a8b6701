//! tar archives: ustar, with the extensions of pax and GNU for long names (POSIX pax, GNU tar manual).

use super::archive::{Archive, Member};
use super::bytes::{Bytes, before_nul};
use super::cursor::Cursor;
use super::limits::{PATH_BYTES, Work};
use super::tree::Kind;
use super::trouble::Trouble;
use std::rc::Rc;

const BLOCK: usize = 512;
/// The most bytes of an extended header that are read.
const EXTENDED_BYTES: u64 = 1 << 20;

/// Whether a header is there.
pub(crate) fn begins(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar") && head.get(..BLOCK).is_some_and(sum_is_right)
}

fn octal(field: &[u8]) -> u64 {
    // GNU writes large numbers in base 256, with the top bit set.
    if let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) {
        return rest.iter().fold(u64::from(first & 0x3f), |value, byte| (value << 8) | u64::from(*byte));
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| (b'0'..=b'7').contains(byte));
    digits.fold(0, |value: u64, byte| value.saturating_mul(8).saturating_add(u64::from(byte.saturating_sub(b'0'))))
}

fn sum_is_right(header: &[u8]) -> bool {
    let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(*byte) };
    let sum: u64 = header.iter().enumerate().map(byte).sum();
    sum == octal(header.get(148..156).unwrap_or_default())
}

/// What an extended header says of the next entry.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extended {
    /// Takes the records of a pax header: `LENGTH KEY=VALUE\n`.
    fn pax(&mut self, mut records: &[u8]) {
        while let Some(space) = records.iter().position(|byte| *byte == b' ') {
            let digits = std::str::from_utf8(records.get(..space).unwrap_or_default()).unwrap_or_default();
            let Some(length) = digits.parse::<usize>().ok().filter(|length| *length > space) else { return };
            let record = records.get(space.saturating_add(1)..length.saturating_sub(1)).unwrap_or_default();
            if let Some(path) = record.strip_prefix(b"path=") {
                self.path = Some(path.to_vec());
            } else if let Some(link) = record.strip_prefix(b"linkpath=") {
                self.link = Some(link.to_vec());
            } else if let Some(size) = record.strip_prefix(b"size=") {
                self.size = std::str::from_utf8(size).ok().and_then(|size| size.parse().ok());
            }
            records = records.get(length..).unwrap_or_default();
        }
    }
}

/// What was seen of an archive.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// It ended within an entry or with something that is no header.
    pub(crate) fault: Option<String>,
    /// It is one that `docker save` or an OCI tool wrote: layers are in it, not files.
    pub(crate) is_image: bool,
}

/// Walks an archive into `archive`.
pub(crate) fn walk<'a>(
    bytes: &Rc<dyn Bytes + 'a>,
    packed: bool,
    archive: &mut Archive<'a>,
    work: &Work,
) -> Result<Walked, Trouble> {
    archive.begin(bytes.clone(), packed);
    let mut cursor = Cursor::new(&**bytes, 0);
    let mut extended = Extended::default();
    let mut walked = Walked::default();
    loop {
        let header = cursor.take(BLOCK)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(walked);
        }
        if header.len() < BLOCK {
            walked.fault = Some("it ends within a header".into());
            return Ok(walked);
        }
        if !sum_is_right(&header) {
            walked.fault = Some(format!("at {} stands no header", cursor.position().saturating_sub(512)));
            return Ok(walked);
        }
        let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
        let size = extended.size.take().unwrap_or_else(|| octal(field(124, 136)));
        let body = cursor.position();
        let next = body.saturating_add(size.saturating_add(511) & !511);
        match field(156, 157) {
            [kind @ (b'x' | b'L' | b'K')] => {
                let length = usize::try_from(size.min(EXTENDED_BYTES)).unwrap_or_default();
                let records = cursor.take(length)?;
                work.entry()?;
                match kind {
                    b'x' => extended.pax(&records),
                    b'L' => extended.path = Some(before_nul(&records).to_vec()),
                    _ => extended.link = Some(before_nul(&records).to_vec()),
                }
            }
            [b'g'] => work.entry()?,
            [kind] => {
                let path = extended.path.take().unwrap_or_else(|| name(&header));
                let link = extended.link.take().unwrap_or_else(|| before_nul(field(157, 257)).to_vec());
                walked.is_image |= matches!(&*path, b"manifest.json" | b"oci-layout" | b"./oci-layout");
                let entry = Entry { kind: *kind, mode: octal(field(100, 108)), path: &path, link: &link, size, body };
                if !add(archive, work, &mut cursor, &entry)? {
                    walked.fault = Some(format!("it ends within {}", String::from_utf8_lossy(&path)));
                    return Ok(walked);
                }
            }
            _ => return Ok(walked),
        }
        cursor.seek(next);
    }
}

/// The name in a header, with its prefix.
fn name(header: &[u8]) -> Vec<u8> {
    let name = before_nul(header.get(..100).unwrap_or_default());
    let prefix = before_nul(header.get(345..500).unwrap_or_default());
    let posix = header.get(257..263) == Some(b"ustar\0");
    if prefix.is_empty() || !posix { name.to_vec() } else { [prefix, b"/", name].concat() }
}

struct Entry<'a> {
    kind: u8,
    mode: u64,
    path: &'a [u8],
    link: &'a [u8],
    size: u64,
    body: u64,
}

/// Adds an entry; whether its body is there.
fn add(archive: &mut Archive<'_>, work: &Work, cursor: &mut Cursor<'_>, entry: &Entry<'_>) -> Result<bool, Trouble> {
    let kind: u32 = match entry.kind {
        b'5' => 0o040_000,
        b'2' => 0o120_000,
        b'3' => 0o020_000,
        b'4' => 0o060_000,
        b'6' => 0o010_000,
        _ => 0o100_000,
    };
    let mode = kind | u32::try_from(entry.mode & 0o7777).unwrap_or_default();
    let mut member = Member { path: entry.path, mode, size: entry.size, offset: entry.body, hard_link: None };
    if entry.path.len() > PATH_BYTES {
        return Ok(true);
    }
    if entry.kind == b'2' {
        // The target is in the header, or in an extended one: it is kept, as it has no body.
        let target = entry.link.get(..entry.link.len().min(PATH_BYTES)).unwrap_or_default();
        member.size = u64::try_from(target.len()).unwrap_or_default();
        archive.add(work, &member)?;
        archive.keep(Kind::Link, target.to_vec());
        return Ok(true);
    }
    if entry.kind == b'1' {
        return archive.alias(work, &member, entry.link).map(|()| true);
    }
    archive.add(work, &member)?;
    if archive.wants(&member) {
        let length = usize::try_from(entry.size).unwrap_or(usize::MAX);
        let body = cursor.take(length)?;
        let whole = body.len() == length;
        archive.keep(Kind::File, body);
        return Ok(whole);
    }
    if entry.size > 0 {
        cursor.seek(entry.body.saturating_add(entry.size).saturating_sub(1));
        return Ok(!cursor.peek(1)?.is_empty());
    }
    Ok(true)
}
