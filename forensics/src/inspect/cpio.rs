//! cpio archives, walked as the kernel does it (init/initramfs.c).

use super::archive::{Archive, Member};
use super::cursor::Cursor;
use super::limits::{PATH_BYTES, Work};
use super::tree::Kind;
use super::trouble::Trouble;

/// Bytes of a newc header.
const HEADER: usize = 110;
const HEADER_BYTES: u64 = 110;

/// Why an archive ended where no archive should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The bytes end at a header's place, without a TRAILER!!! entry.
    NoTrailer,
    /// They end within a header.
    CutHeader,
    /// They end within the body of this entry, which lacks so many bytes of its size.
    CutBody { path: String, size: u64, missing: u64 },
    /// The old character format.
    Odc,
    /// No header of any cpio.
    NoMagic { head: String },
    /// A header field is no hexadecimal number.
    BadField,
    /// The sum of the bytes of this entry is not what its header says.
    Checksum { path: String },
}

/// What one archive came to.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// Whether it ended with its trailer.
    pub(crate) trailer: bool,
    /// Whether headers are of the variant with check sums.
    pub(crate) crc: bool,
    /// What is wrong with it.
    pub(crate) fault: Option<Fault>,
}

struct Header {
    crc: bool,
    ino: u32,
    mode: u32,
    links: u32,
    size: u64,
    device: (u32, u32),
    name_bytes: u32,
    sum: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let crc = match bytes.get(..6).unwrap_or_default() {
            b"070701" => false,
            b"070702" => true,
            b"070707" => return Err(Fault::Odc),
            head => return Err(Fault::NoMagic { head: String::from_utf8_lossy(head).escape_debug().to_string() }),
        };
        let field = |index: usize| {
            let start = index.saturating_mul(8).saturating_add(6);
            let digits = bytes.get(start..start.saturating_add(8)).ok_or(Fault::BadField)?;
            let digit = |value: u32, byte: &u8| Some((value << 4) | char::from(*byte).to_digit(16)?);
            digits.iter().try_fold(0_u32, digit).ok_or(Fault::BadField)
        };
        Ok(Self {
            crc,
            ino: field(0)?,
            mode: field(1)?,
            links: field(4)?,
            size: u64::from(field(6)?),
            device: (field(7)?, field(8)?),
            name_bytes: field(11)?,
            sum: field(12)?,
        })
    }

    /// What all names of the file share.
    fn hard_link(&self) -> Option<u64> {
        let numbers = [self.ino, self.device.0, self.device.1, self.mode & 0o170_000];
        let file = self.links > 1 && Kind::of_mode(self.mode) == Kind::File;
        let mix = |hash: u64, number: &u32| (hash ^ u64::from(*number)).wrapping_mul(0x0000_0100_0000_01b3);
        file.then(|| numbers.iter().fold(0xcbf2_9ce4_8422_2325, mix))
    }
}

/// Rounds up to a multiple of 4.
fn align(position: u64) -> u64 {
    position.saturating_add(3) & !3
}

/// Walks the archive at `cursor`, whose headers are aligned to `base`, into `archive`. Afterwards the cursor is behind it.
pub(crate) fn walk(
    cursor: &mut Cursor<'_>,
    archive: &mut Archive<'_>,
    work: &Work,
    link_space: u64,
) -> Result<Walked, Trouble> {
    let mut walked = Walked::default();
    let mut entries = 0_u64;
    loop {
        let head = cursor.peek(HEADER)?;
        // After each entry the kernel takes up whatever follows, with a trailer or without.
        if head.first().is_none_or(|byte| *byte != b'0' && (entries > 0 || *byte == 0)) {
            walked.fault = Some(Fault::NoTrailer);
            return Ok(walked);
        }
        entries = entries.saturating_add(1);
        let magic = head.get(..head.len().min(6)).unwrap_or_default();
        if head.len() < HEADER && (b"070701".starts_with(magic) || b"070702".starts_with(magic)) {
            walked.fault = Some(Fault::CutHeader);
            return Ok(walked);
        }
        let header = match Header::parse(head) {
            Err(fault) => {
                walked.fault = Some(fault);
                return Ok(walked);
            }
            Ok(header) => header,
        };
        walked.crc |= header.crc;
        if let Some(fault) = member(cursor, archive, work, &header, link_space, &mut walked.trailer)? {
            walked.fault = Some(fault);
            return Ok(walked);
        }
        if walked.trailer {
            return Ok(walked);
        }
    }
}

/// Walks one entry.
fn member(
    cursor: &mut Cursor<'_>,
    archive: &mut Archive<'_>,
    work: &Work,
    header: &Header,
    link_space: u64,
    trailer: &mut bool,
) -> Result<Option<Fault>, Trouble> {
    let name_at = cursor.position().saturating_add(HEADER_BYTES);
    let body_at = align(name_at.saturating_add(u64::from(header.name_bytes)));
    let next = align(body_at.saturating_add(header.size));
    let name_bytes = usize::try_from(header.name_bytes).unwrap_or(usize::MAX);
    if !(1..=PATH_BYTES).contains(&name_bytes) {
        // The kernel passes over such an entry.
        cursor.seek(next);
        return Ok(None);
    }
    cursor.seek(name_at);
    let name = cursor.take(name_bytes)?;
    if name.len() < name_bytes {
        return Ok(Some(Fault::CutHeader));
    }
    let path = super::bytes::before_nul(&name);
    if path == b"TRAILER!!!" {
        *trailer = true;
        cursor.seek(next);
        return Ok(None);
    }
    let kind = Kind::of_mode(header.mode);
    let shown = || String::from_utf8_lossy(path).into_owned();
    let length = usize::try_from(header.size).unwrap_or(usize::MAX);
    let cut = |body: &[u8]| {
        let missing = u64::try_from(length.saturating_sub(body.len())).unwrap_or(u64::MAX);
        Fault::CutBody { path: shown(), size: header.size, missing }
    };
    cursor.seek(body_at);
    let mut target = Vec::new();
    if kind == Kind::Link {
        if length > PATH_BYTES {
            // The kernel passes over such a link.
            cursor.seek(next);
            return Ok(None);
        }
        target = cursor.take(length)?;
        if target.len() < length {
            return Ok(Some(cut(&target)));
        }
    }
    // Hard links are counted anew after each trailer.
    let hard_link = header.hard_link().map(|key| key ^ link_space);
    let resolved = archive.paths.resolve(work, path)?;
    let own = resolved.as_deref().unwrap_or(path);
    let entry = Member { path: own, mode: header.mode, size: header.size, offset: body_at, hard_link };
    // What lies behind a link that leads nowhere is not made.
    let made = resolved.is_some() && archive.paths.add(own, kind, super::bytes::before_nul(&target));
    if made {
        archive.add(work, &entry)?;
    } else {
        archive.pass_over(work)?;
    }
    if kind == Kind::Link {
        if made && archive.wants(&entry) {
            archive.keep(kind, target);
        }
        cursor.seek(next);
        return Ok(None);
    }
    if made && archive.wants(&entry) {
        let body = cursor.take(length)?;
        if body.len() < length {
            return Ok(Some(cut(&body)));
        }
        let sum = sum_of(&body);
        archive.keep(kind, body);
        cursor.seek(next);
        let wrong = header.crc && kind == Kind::File && sum != header.sum;
        return Ok(wrong.then(|| Fault::Checksum { path: shown() }));
    }
    if header.crc && kind == Kind::File && header.size > 0 {
        if let Some(fault) = check_sum(cursor, header, &shown)? {
            return Ok(Some(fault));
        }
    } else if header.size > 0 {
        // The last byte, so that an archive that ends before it is told from one that ends with it.
        cursor.seek(body_at.saturating_add(header.size).saturating_sub(1));
        if cursor.peek(1)?.is_empty() {
            return Ok(Some(Fault::CutBody { path: shown(), size: header.size, missing: 0 }));
        }
    }
    cursor.seek(next);
    Ok(None)
}

fn sum_of(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum: u32, byte| sum.wrapping_add(u32::from(*byte)))
}

/// Reads a body for its check sum.
fn check_sum(cursor: &mut Cursor<'_>, header: &Header, path: &dyn Fn() -> String) -> Result<Option<Fault>, Trouble> {
    let mut left = header.size;
    let mut sum = 0_u32;
    while left > 0 {
        let ahead = cursor.peek(usize::try_from(left).unwrap_or(usize::MAX))?;
        if ahead.is_empty() {
            return Ok(Some(Fault::CutBody { path: path(), size: header.size, missing: left }));
        }
        sum = sum.wrapping_add(sum_of(ahead));
        let count = u64::try_from(ahead.len()).unwrap_or(u64::MAX);
        cursor.skip(count);
        left = left.saturating_sub(count);
    }
    Ok((sum != header.sum).then(|| Fault::Checksum { path: path() }))
}
