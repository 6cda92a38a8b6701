//! A boot file that is compressed with gzip (RFC 1952), unpacked piece by piece.
//!
//! Distrusts every byte: what comes out is bounded by who takes it, in size and in its place in guest memory, and has the
//! checksum that the file ends with, or is refused.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::LoadError;
use super::image::{Image, ImageError};
use super::kernel::KernelError;
use flate2::read::GzDecoder;
use std::io::{self, Read};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Bytes that are unpacked at once on their way to guest memory.
const PIECE_BYTES: usize = 64 << 10;

/// The content of a gzip file, from its start.
#[derive(Debug)]
pub struct Unpacked<'a>(GzDecoder<Packed<'a>>);

impl<'a> Unpacked<'a> {
    /// Begins to unpack. Reads the header of the file; what is wrong with it shows at the first read.
    #[must_use]
    pub fn new(image: &'a Image) -> Self {
        Self(GzDecoder::new(Packed { image, offset: 0 }))
    }

    /// The next bytes, up to `limit`, fewer at the end.
    ///
    /// # Errors
    /// When the file cannot be read, is truncated or corrupt.
    pub fn read(&mut self, limit: usize) -> Result<Vec<u8>, LoadError> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        Read::by_ref(&mut self.0).take(limit).read_to_end(&mut bytes).map_err(refusal)?;
        Ok(bytes)
    }

    /// Unpacks all that is left into guest memory at `start`, and says how many bytes that is; `None` if it is more than
    /// `limit` bytes.
    ///
    /// # Errors
    /// When the file cannot be read, is truncated or corrupt, or `start` is not in guest memory.
    pub fn copy<M: GuestMemory>(&mut self, memory: &M, start: u64, limit: u64) -> Result<Option<u64>, LoadError> {
        let mut done = 0_u64;
        loop {
            let piece = self.read(PIECE_BYTES)?;
            if piece.is_empty() {
                return Ok(Some(done));
            }
            let end = done.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            if end > limit {
                return Ok(None);
            }
            memory.write_slice(&piece, GuestAddress(start.saturating_add(done)))?;
            done = end;
        }
    }
}

/// What the decoder says, in our words; the host's own errors come through it unchanged.
fn refusal(error: io::Error) -> LoadError {
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends in the middle",
        _ => "its content does not unpack, or not to what its checksum says",
    };
    match error.downcast::<ImageError>() {
        Ok(host) => host.into(),
        Err(_of_the_decoder) => KernelError::Corrupt { format: "gzip file", what }.into(),
    }
}

/// The bytes of the file, in order.
#[derive(Debug)]
struct Packed<'a> {
    image: &'a Image,
    offset: u64,
}

impl Read for Packed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.image.read(self.offset, buffer.len()).map_err(io::Error::other)?;
        for (to, from) in buffer.iter_mut().zip(&bytes) {
            *to = *from;
        }
        self.offset = self.offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(bytes.len())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::loader::image::tests::image;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;
    use vm_memory::GuestMemoryMmap;

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn content() -> Vec<u8> {
        (0..300_000_u32).flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect()
    }

    fn unpack(file: &[u8], limit: u64) -> (Result<Option<u64>, LoadError>, GuestMemoryMmap) {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        (Unpacked::new(&image(file)).copy(&memory, 0x1000, limit), memory)
    }

    #[test]
    fn content_arrives_in_pieces() {
        let content = content();
        let bytes = u64::try_from(content.len()).unwrap();
        let (unpacked, memory) = unpack(&gzip(&content), bytes);
        assert_eq!(unpacked.unwrap(), Some(bytes));
        let mut copy = vec![0; content.len()];
        memory.read_slice(&mut copy, GuestAddress(0x1000)).unwrap();
        assert!(copy == content);
    }

    #[test]
    fn content_beyond_the_limit_is_not_written() {
        let (unpacked, memory) = unpack(&gzip(&[0xFF; 1 << 20]), 100_000);
        assert_eq!(unpacked.unwrap(), None);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x1000 + 100_000)).unwrap(), 0);
    }

    #[test]
    fn truncated_or_corrupt_file_is_refused() {
        let file = gzip(&content());
        for length in (2..file.len()).step_by(9973).chain([file.len() - 1, file.len() - 8]) {
            let (cut, _) = unpack(&file[..length], u64::MAX);
            assert!(matches!(cut, Err(LoadError::Kernel(KernelError::Corrupt { .. }))), "{length} bytes: {cut:?}");
        }
        for offset in [3, 2000, file.len() - 6, file.len() - 1] {
            let mut file = file.clone();
            file[offset] ^= 0xFF;
            let (broken, _) = unpack(&file, u64::MAX);
            assert!(matches!(broken, Err(LoadError::Kernel(KernelError::Corrupt { .. }))), "at {offset}: {broken:?}");
        }
    }

    #[test]
    fn place_outside_of_memory_is_an_error() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let file = image(&gzip(&[1; 5000]));
        assert!(matches!(Unpacked::new(&file).copy(&memory, 0, u64::MAX), Err(LoadError::Memory(_))));
    }
}
