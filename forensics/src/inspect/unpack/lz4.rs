//! The legacy frame of lz4, the only one that the kernel reads (lib/decompress_unlz4.c): blocks of up to 8 MiB.

use super::input::Input;
use std::io::{self, Read};

const MAGIC: u32 = 0x184c_2102;
/// What a block unpacks to at most.
const BLOCK_BYTES: usize = 8 << 20;
/// What such a block may have grown to (LZ4_compressBound).
const PACKED_BYTES: usize = BLOCK_BYTES + BLOCK_BYTES / 255 + 16;

/// A decoder of the legacy frame.
pub(crate) struct Reader<'a> {
    input: Input<'a>,
    /// Room for a block, made once, and how much of it is unpacked.
    block: Vec<u8>,
    length: usize,
    used: usize,
    packed: Vec<u8>,
    begun: bool,
    /// The bytes at the end that were read and are too few for a word.
    rest: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: Input<'a>) -> Self {
        Self { input, block: Vec::new(), length: 0, used: 0, packed: Vec::new(), begun: false, rest: 0 }
    }

    /// The bytes of the input that belong to the stream.
    pub(crate) fn taken(&self) -> u64 {
        self.input.taken().saturating_sub(self.rest)
    }

    /// The next word, or nothing where the stream ends: the kernel takes fewer than four bytes for its end as well.
    fn word(&mut self) -> io::Result<Option<u32>> {
        let mut bytes = Vec::with_capacity(4);
        self.input.by_ref().take(4).read_to_end(&mut bytes)?;
        let word = bytes.first_chunk().copied().map(u32::from_le_bytes);
        if word.is_none() {
            self.rest = u64::try_from(bytes.len()).unwrap_or_default();
        }
        Ok(word)
    }

    fn next_block(&mut self) -> io::Result<bool> {
        if !self.begun {
            self.begun = true;
            if self.word()? != Some(MAGIC) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the lz4 magic is wrong"));
            }
        }
        let size = loop {
            match self.word()? {
                Some(MAGIC) => {}
                Some(0) | None => return Ok(false),
                Some(size) => break usize::try_from(size).unwrap_or(usize::MAX),
            }
        };
        if size > PACKED_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an lz4 block is larger than any can be"));
        }
        self.packed.resize(size, 0);
        self.input.read_exact(&mut self.packed)?;
        self.block.resize(BLOCK_BYTES, 0);
        (self.length, self.used) = (0, 0);
        self.length = lz4_flex::block::decompress_into(&self.packed, &mut self.block).map_err(io::Error::other)?;
        Ok(true)
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used >= self.length {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let ready = self.block.get(self.used..self.length).unwrap_or_default();
        let count = ready.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), ready.get(..count)) {
            to.copy_from_slice(from);
        }
        self.used = self.used.saturating_add(count);
        Ok(count)
    }
}
