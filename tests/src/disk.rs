//! Disk images whose content tells a guest which sector it reads.

use std::path::{Path, PathBuf};

/// Bytes in a sector.
pub const SECTOR_BYTES: usize = 512;

/// A sector of an image as it is made: the guest's `sector_word`.
#[must_use]
pub fn sector(number: u64) -> Vec<u8> {
    (0..64_u64).flat_map(|n| number.wrapping_mul(0x0101_0101).wrapping_add(n << 56).to_le_bytes()).collect()
}

/// Makes an image of `sectors` sectors.
#[must_use]
pub fn image(folder: &Path, name: &str, sectors: u64) -> PathBuf {
    let path = folder.join(name);
    let content: Vec<u8> = (0..sectors).flat_map(sector).collect();
    std::fs::write(&path, content).expect("the image cannot be written");
    path
}

/// Reads sectors of an image.
#[must_use]
pub fn read(path: &Path, first: usize, sectors: usize) -> Vec<u8> {
    let content = std::fs::read(path).expect("the image cannot be read");
    content[first * SECTOR_BYTES..(first + sectors) * SECTOR_BYTES].to_vec()
}
