//! Values that are checked once, where they enter, and carry their check in their type.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::{NonZeroU8, NonZeroU64};

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {got}, must be {allowed}")]
pub struct InvalidValue {
    what: &'static str,
    got: String,
    allowed: &'static str,
}

impl InvalidValue {
    fn new(what: &'static str, got: impl fmt::Display, allowed: &'static str) -> Self {
        Self { what, got: got.to_string(), allowed }
    }
}

/// The number of virtual CPUs: 1 to 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct VcpuCount(NonZeroU8);

impl VcpuCount {
    /// The most virtual CPUs that a machine can have.
    pub const MAX: u8 = 32;

    /// The count.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0.get()
    }
}

impl TryFrom<u8> for VcpuCount {
    type Error = InvalidValue;
    fn try_from(count: u8) -> Result<Self, InvalidValue> {
        NonZeroU8::new(count)
            .filter(|count| count.get() <= Self::MAX)
            .map(Self)
            .ok_or_else(|| InvalidValue::new("the number of vCPUs", count, "1 to 32"))
    }
}

impl From<VcpuCount> for u8 {
    fn from(count: VcpuCount) -> u8 {
        count.get()
    }
}

/// Numbers of host CPUs: at most 256, each below 1024 (the size of the C library's `cpu_set_t`), none twice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u16>", into = "Vec<u16>")]
pub struct CpuList(Vec<u16>);

impl CpuList {
    /// The most CPUs in a list.
    pub const MAX: usize = 256;
    /// The first number that is too large.
    pub const END: u16 = 1024;

    /// The numbers; none means any CPU.
    #[must_use]
    pub fn get(&self) -> &[u16] {
        &self.0
    }
}

impl TryFrom<Vec<u16>> for CpuList {
    type Error = InvalidValue;
    fn try_from(cpus: Vec<u16>) -> Result<Self, InvalidValue> {
        if cpus.len() > Self::MAX {
            return Err(InvalidValue::new("the number of host CPUs", cpus.len(), "at most 256"));
        }
        if let Some(cpu) = cpus.iter().find(|&&cpu| cpu >= Self::END) {
            return Err(InvalidValue::new("a host CPU's number", cpu, "0 to 1023"));
        }
        let mut seen = std::collections::BTreeSet::new();
        match cpus.iter().find(|&&cpu| !seen.insert(cpu)) {
            Some(cpu) => Err(InvalidValue::new("a host CPU's number", format_args!("{cpu} again"), "named once")),
            None => Ok(Self(cpus)),
        }
    }
}

impl From<CpuList> for Vec<u16> {
    fn from(cpus: CpuList) -> Vec<u16> {
        cpus.0
    }
}

/// The number of disks: 0 to 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct DiskCount(u8);

impl DiskCount {
    /// The most disks that a machine can have.
    pub const MAX: u8 = 16;

    /// The count.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for DiskCount {
    type Error = InvalidValue;
    fn try_from(count: u8) -> Result<Self, InvalidValue> {
        if count <= Self::MAX {
            Ok(Self(count))
        } else {
            Err(InvalidValue::new("the number of disks", count, "0 to 16"))
        }
    }
}

impl From<DiskCount> for u8 {
    fn from(count: DiskCount) -> u8 {
        count.get()
    }
}

/// The size of guest memory in bytes: a multiple of 2 MiB, from 2 MiB to 1 TiB.
///
/// The memfd that backs it has exactly this size. Guest-physical addresses below the 32-bit hole map to the start of the
/// file, those above 4 GiB to the rest, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemoryBytes(NonZeroU64);

impl MemoryBytes {
    /// The granularity of the size: a 2 MiB huge page.
    pub const GRANULE: u64 = 2 << 20;
    /// The largest size.
    pub const MAX: u64 = 1 << 40;

    /// The size in bytes.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl TryFrom<u64> for MemoryBytes {
    type Error = InvalidValue;
    fn try_from(bytes: u64) -> Result<Self, InvalidValue> {
        NonZeroU64::new(bytes)
            .filter(|size| size.get().is_multiple_of(Self::GRANULE) && size.get() <= Self::MAX)
            .map(Self)
            .ok_or_else(|| InvalidValue::new("the guest memory size", bytes, "a multiple of 2 MiB, up to 1 TiB"))
    }
}

impl From<MemoryBytes> for u64 {
    fn from(bytes: MemoryBytes) -> u64 {
        bytes.get()
    }
}

/// The size of a disk in sectors of 512 bytes: at least one, and addressable by a signed 64-bit byte offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SectorCount(NonZeroU64);

impl SectorCount {
    /// Bytes in a sector, the unit of all virtio-blk addresses (virtio 1.2 §5.2.4).
    pub const SECTOR_BYTES: u64 = 512;

    /// The number of sectors.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The size in bytes; cannot overflow, by construction.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0.get().saturating_mul(Self::SECTOR_BYTES)
    }

    /// The sectors of an image of `bytes` bytes.
    ///
    /// # Errors
    /// When the size is 0 or not a multiple of 512.
    pub fn from_bytes(bytes: u64) -> Result<Self, InvalidValue> {
        if !bytes.is_multiple_of(Self::SECTOR_BYTES) {
            return Err(InvalidValue::new("the image size in bytes", bytes, "a multiple of 512"));
        }
        Self::try_from(bytes / Self::SECTOR_BYTES)
    }
}

impl TryFrom<u64> for SectorCount {
    type Error = InvalidValue;
    fn try_from(sectors: u64) -> Result<Self, InvalidValue> {
        NonZeroU64::new(sectors)
            .filter(|sectors| sectors.get() <= i64::MAX.unsigned_abs() / Self::SECTOR_BYTES)
            .map(Self)
            .ok_or_else(|| InvalidValue::new("the number of sectors", sectors, "1 to 2^54 - 1"))
    }
}

impl From<SectorCount> for u64 {
    fn from(sectors: SectorCount) -> u64 {
        sectors.get()
    }
}

/// The serial number that a disk answers to `VIRTIO_BLK_T_GET_ID`: up to 20 printable ASCII bytes (virtio 1.2 §5.2.6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskId(String);

impl DiskId {
    /// The longest identifier in bytes.
    pub const MAX_BYTES: usize = 20;

    /// The identifier without its padding.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DiskId {
    type Error = InvalidValue;
    fn try_from(id: String) -> Result<Self, InvalidValue> {
        if id.len() <= Self::MAX_BYTES && id.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(id))
        } else {
            Err(InvalidValue::new("the disk id", format_args!("{id:?}"), "up to 20 printable ASCII characters"))
        }
    }
}

impl From<DiskId> for String {
    fn from(id: DiskId) -> String {
        id.0
    }
}

/// A kernel command line: up to 2047 bytes without a NUL or a line break.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommandLine(String);

impl CommandLine {
    /// The longest command line in bytes, without the final NUL: `COMMAND_LINE_SIZE` of x86_64 and arm64 less one.
    pub const MAX_BYTES: usize = 2047;

    /// The command line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CommandLine {
    type Error = InvalidValue;
    fn try_from(line: String) -> Result<Self, InvalidValue> {
        if line.len() > Self::MAX_BYTES {
            return Err(InvalidValue::new("the length of the kernel command line", line.len(), "at most 2047 bytes"));
        }
        if line.bytes().any(|byte| matches!(byte, 0 | b'\n' | b'\r')) {
            return Err(InvalidValue::new(
                "the kernel command line",
                format_args!("{line:?}"),
                "one line without a NUL",
            ));
        }
        Ok(Self(line))
    }
}

impl From<CommandLine> for String {
    fn from(line: CommandLine) -> String {
        line.0
    }
}

/// Whether a character is invisible or changes the direction of its neighbours, so that a text does not read as it is.
fn misleads(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A sentence from another process, for a person to read: up to 1024 bytes.
///
/// Displaying it escapes control characters and those that mislead the eye, so that a captured process can neither drive
/// the terminal nor reorder a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text(String);

impl Text {
    /// The longest text in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// Takes what fits of `text`, cut at a character boundary.
    pub fn truncated(text: impl fmt::Display) -> Self {
        let mut text = text.to_string();
        if text.len() > Self::MAX_BYTES {
            let end = (0..=Self::MAX_BYTES).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
            text.truncate(end);
        }
        Self(text)
    }

    /// Its length in bytes, as it travels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<String> for Text {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        if text.len() <= Self::MAX_BYTES {
            Ok(Self(text))
        } else {
            Err(InvalidValue::new("the length of a text", text.len(), "at most 1024 bytes"))
        }
    }
}

impl From<Text> for String {
    fn from(text: Text) -> String {
        text.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if character.is_control() || misleads(character) {
                write!(f, "{}", character.escape_default())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpu_count_outside_1_to_32_is_refused() {
        assert!(VcpuCount::try_from(0).is_err());
        assert!(VcpuCount::try_from(33).is_err());
        assert_eq!(VcpuCount::try_from(32).unwrap().get(), 32);
    }

    #[test]
    fn cpu_list_with_a_bad_number_is_refused() {
        assert!(CpuList::try_from(vec![1024]).is_err());
        assert!(CpuList::try_from(vec![4, 5, 4]).is_err());
        assert!(CpuList::try_from((0..257).collect::<Vec<u16>>()).is_err());
        assert_eq!(CpuList::try_from(vec![4, 5]).unwrap().get(), [4, 5]);
    }

    #[test]
    fn memory_that_is_no_multiple_of_a_huge_page_is_refused() {
        assert!(MemoryBytes::try_from(0).is_err());
        assert!(MemoryBytes::try_from((2 << 20) + 4096).is_err());
        assert!(MemoryBytes::try_from(MemoryBytes::MAX + MemoryBytes::GRANULE).is_err());
        assert!(MemoryBytes::try_from(512 << 20).is_ok());
    }

    #[test]
    fn image_of_odd_size_is_refused() {
        assert!(SectorCount::from_bytes(0).is_err());
        assert!(SectorCount::from_bytes(513).is_err());
        assert!(SectorCount::try_from(u64::MAX).is_err());
        assert_eq!(SectorCount::from_bytes(1024).unwrap().get(), 2);
    }

    #[test]
    fn text_with_escape_sequences_is_shown_harmless() {
        assert_eq!(Text::truncated("a\x1b[2Jb\n").to_string(), "a\\u{1b}[2Jb\\n");
        assert_eq!(Text::truncated("a\u{202e}b").to_string(), "a\\u{202e}b");
        assert_eq!(String::from(Text::truncated("é".repeat(600))).len(), 1024);
        assert!(Text::try_from("x".repeat(1025)).is_err());
    }

    #[test]
    fn command_line_with_a_second_line_is_refused() {
        assert!(CommandLine::try_from("a\nb".to_owned()).is_err());
        assert!(CommandLine::try_from("a\0".to_owned()).is_err());
        assert!(CommandLine::try_from("x".repeat(2048)).is_err());
    }

    #[test]
    fn disk_id_longer_than_20_bytes_is_refused() {
        assert!(DiskId::try_from("x".repeat(21)).is_err());
        assert!(DiskId::try_from("a b".to_owned()).is_err());
        assert_eq!(DiskId::try_from("vda".to_owned()).unwrap().as_str(), "vda");
    }
}
