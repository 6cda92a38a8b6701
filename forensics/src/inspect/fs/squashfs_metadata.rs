//! The metadata of squashfs: tables of blocks of 8 KiB, each packed for itself.

use super::squashfs::Codec;
use crate::inspect::bytes::{Raw, exactly, u16_at};
use crate::inspect::trouble::Trouble;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// What a block unpacks to at most.
const BLOCK_BYTES: usize = 8192;
/// Blocks that are kept.
const KEPT_BLOCKS: usize = 128;
/// The bit of a header that says that the block is not packed.
const PLAIN: u16 = 0x8000;

/// An unpacked block, and where the next one begins.
type Block = (Vec<u8>, u64);

/// Reads metadata.
pub(super) struct Metadata<'a> {
    raw: Raw<'a>,
    codec: Codec,
    kept: RefCell<BTreeMap<u64, Block>>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(raw: Raw<'a>, codec: Codec) -> Self {
        Self { raw, codec, kept: RefCell::new(BTreeMap::new()) }
    }

    /// Reads up to `length` bytes that begin `inside` the block at `place`, and go on in the blocks behind it. The place
    /// and the offset of what follows come back as well.
    pub(super) fn read(&self, place: u64, inside: usize, length: usize) -> Result<(Vec<u8>, (u64, usize)), Trouble> {
        let mut bytes = Vec::new();
        let (mut place, mut inside) = (place, inside);
        loop {
            let (part, next) = self.part(place, inside, length.saturating_sub(bytes.len()))?;
            bytes.extend_from_slice(&part);
            inside = inside.saturating_add(part.len());
            if bytes.len() >= length {
                return Ok((bytes, (place, inside)));
            }
            if part.is_empty() && inside > 0 && inside < BLOCK_BYTES {
                return Err(Trouble::corrupt("a table of squashfs ends within an entry"));
            }
            (place, inside) = (next, inside.saturating_sub(BLOCK_BYTES));
        }
    }

    /// A part of one block, and where the next block begins.
    fn part(&self, place: u64, inside: usize, length: usize) -> Result<(Vec<u8>, u64), Trouble> {
        let mut kept = self.kept.borrow_mut();
        if !kept.contains_key(&place) {
            if kept.len() >= KEPT_BLOCKS {
                kept.clear();
            }
            kept.insert(place, self.block(place)?);
        }
        let Some((block, next)) = kept.get(&place) else { return Ok((Vec::new(), place)) };
        let end = inside.saturating_add(length).min(block.len());
        self.raw.work().step(end.saturating_sub(inside))?;
        Ok((block.get(inside..end).unwrap_or_default().to_vec(), *next))
    }

    fn block(&self, place: u64) -> Result<Block, Trouble> {
        let cut = || Trouble::corrupt("a table of squashfs is behind the end of the image");
        let header = u16_at(&exactly(&self.raw, place, 2)?.ok_or_else(cut)?, 0);
        let length = usize::from(header & !PLAIN);
        let packed = exactly(&self.raw, place.saturating_add(2), length)?.ok_or_else(cut)?;
        let next = place.saturating_add(2).saturating_add(u64::from(header & !PLAIN));
        if header & PLAIN != 0 || length == 0 {
            if length == 0 || length > BLOCK_BYTES {
                return Err(Trouble::corrupt("a block of squashfs metadata has an impossible size"));
            }
            return Ok((packed, next));
        }
        let mut block = vec![0; BLOCK_BYTES];
        let count = self.codec.unpack(self.raw.work(), &packed, &mut block)?;
        if count == 0 {
            return Err(Trouble::corrupt("a block of squashfs metadata unpacks to nothing"));
        }
        block.truncate(count);
        Ok((block, next))
    }
}
