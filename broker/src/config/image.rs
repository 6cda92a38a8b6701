//! Opens disk images, and says what is wrong with those that cannot be disks.

use crate::files::{FileError, Kind, Opened, open_file};
use std::path::Path;
use wire::SectorCount;
use wire::message::DiskMode;

/// Opens a disk image as its mode needs it.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub(crate) fn open_disk(path: &Path, mode: DiskMode) -> Result<(Opened, SectorCount), (String, String)> {
    let opened = open_file(path, Kind::Image, mode == DiskMode::ReadWrite).map_err(|error| {
        let right = if matches!(error, FileError::Open(nix::errno::Errno::EACCES | nix::errno::Errno::EROFS)) {
            "give this user the right to it, or use another mode"
        } else {
            "name a raw disk image"
        };
        (format!("{} {error}", path.display()), right.to_owned())
    })?;
    match SectorCount::from_bytes(opened.bytes) {
        Ok(capacity) => Ok((opened, capacity)),
        Err(_) if opened.bytes == 0 => {
            Err((format!("{} is empty", path.display()), "name a raw disk image with at least 512 bytes".to_owned()))
        }
        Err(_) => {
            let whole = opened.bytes.next_multiple_of(SectorCount::SECTOR_BYTES);
            let what = format!("{} has {} bytes, which is no multiple of 512", path.display(), opened.bytes);
            Err((what, format!("if it is a raw image, make it whole: truncate -s {whole} {}", path.display())))
        }
    }
}
