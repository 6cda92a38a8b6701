//! A boot file: distrusted in all its bytes, read from explicit offsets, each stretch once.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

/// Why a boot file could not be read; the host is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file's size could not be asked for.
    #[error("the size of a boot file is not known")]
    Size(#[source] Errno),
    /// A directory, a pipe or a device.
    #[error("a boot file is not a regular file")]
    NotRegular,
    /// The file could not be read.
    #[error("a boot file could not be read")]
    Read(#[source] io::Error),
    /// The file could not be read into guest memory.
    #[error("a boot file could not be read into guest memory")]
    Copy(#[source] GuestMemoryError),
    /// The file became shorter while it was being read.
    #[error("a boot file was truncated while it was being read")]
    Shrunk,
}

/// An open boot file.
#[derive(Debug)]
pub struct Image {
    file: File,
    bytes: u64,
}

impl Image {
    /// Takes the file and asks for its size. Reads nothing of it.
    ///
    /// # Errors
    /// When it is not a regular file.
    pub fn new(fd: OwnedFd) -> Result<Self, ImageError> {
        let stat = fstat(fd.as_fd()).map_err(ImageError::Size)?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(ImageError::NotRegular);
        }
        Ok(Self { file: File::from(fd), bytes: u64::try_from(stat.st_size).unwrap_or(0) })
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Up to `limit` bytes from `offset`, fewer at the end of the file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, offset: u64, limit: usize) -> Result<Vec<u8>, ImageError> {
        let mut buffer = vec![0; limit];
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.checked_add(u64::try_from(done).unwrap_or(u64::MAX));
            let Some(at) = at.filter(|at| *at < self.bytes) else { break };
            match self.file.read_at(rest, at) {
                Ok(0) => break,
                Ok(count) => done = done.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::Read(error)),
            }
        }
        buffer.truncate(done);
        Ok(buffer)
    }

    /// Reads `bytes` bytes from `offset` into guest memory at `start`, without a copy in between.
    ///
    /// # Errors
    /// When the file is too short or `start` is not in guest memory.
    pub fn copy<M: GuestMemory>(&self, offset: u64, bytes: u64, memory: &M, start: u64) -> Result<(), ImageError> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset)).map_err(ImageError::Read)?;
        let mut done = 0_u64;
        while done < bytes {
            let left = usize::try_from(bytes.saturating_sub(done)).unwrap_or(usize::MAX);
            let target = GuestAddress(start.saturating_add(done));
            match memory.read_volatile_from(target, &mut file, left).map_err(ImageError::Copy)? {
                0 => return Err(ImageError::Shrunk),
                count => done = done.saturating_add(u64::try_from(count).unwrap_or(u64::MAX)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::Write;
    use vm_memory::GuestMemoryMmap;

    /// A boot file with these bytes.
    pub(crate) fn image(bytes: &[u8]) -> Image {
        let mut file = File::from(memfd_create(c"image", MFdFlags::MFD_CLOEXEC).unwrap());
        file.write_all(bytes).unwrap();
        Image::new(file.into()).unwrap()
    }

    #[test]
    fn read_beyond_the_end_gives_what_is_there() {
        let image = image(b"0123456789");
        assert_eq!(image.read(8, 4).unwrap(), b"89");
        assert_eq!(image.read(10, 4).unwrap(), b"");
        assert_eq!(image.read(u64::MAX, 4).unwrap(), b"");
    }

    #[test]
    fn copy_takes_its_stretch_and_no_more() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let image = image(b"0123456789");
        image.copy(2, 3, &memory, 100).unwrap();
        assert_eq!(memory.read_obj::<[u8; 5]>(GuestAddress(99)).unwrap(), *b"\x00234\x00");
    }

    #[test]
    fn copy_beyond_the_file_or_the_memory_is_an_error() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let image = image(b"0123456789");
        assert!(matches!(image.copy(8, 3, &memory, 0), Err(ImageError::Shrunk)));
        assert!(matches!(image.copy(0, 4, &memory, 4094), Err(ImageError::Copy(_))));
        assert!(matches!(image.copy(u64::MAX, 1, &memory, 0), Err(ImageError::Read(_))));
    }

    #[test]
    fn pipe_is_refused() {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        assert!(matches!(Image::new(reader), Err(ImageError::NotRegular)));
    }
}
