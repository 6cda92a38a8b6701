//! ext2, ext3 and ext4: superblock, group descriptors, inodes, extents and block maps, directories
//! (Linux: Documentation/filesystems/ext4).

use crate::inspect::bytes::{Bytes, Raw, exactly, u8_at, u16_at, u32_at};
use crate::inspect::limits::{DIRECTORY_BYTES, LISTED_NAMES, Work};
use crate::inspect::tree::{Kind, Node, Tree};
use crate::inspect::trouble::Trouble;
use std::cell::Cell;

/// Where the superblock is.
const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// A block has 1 KiB, shifted by this at most.
const BLOCK_SHIFT_MAX: u32 = 6;
const ROOT: u64 = 2;
/// Inode flags.
const INODE_ENCRYPTED: u32 = 0x800;
const INODE_EXTENTS: u32 = 0x8_0000;
const INODE_INLINE: u32 = 0x1000_0000;
/// What is in the inode itself, in the place of its blocks; and the attribute that has the rest.
const INLINE_BYTES: usize = 60;
const INLINE_REST: (u8, &[u8]) = (7, b"data");
const ATTRIBUTES_MAGIC: u32 = 0xea02_0000;
/// Levels of a tree of extents.
const EXTENT_DEPTH: u16 = 5;
const EXTENT_MAGIC: u16 = 0xf30a;
/// An extent longer than this is one that was never written.
const EXTENT_WRITTEN: u32 = 32768;
/// Incompatible features that change where things are.
pub(crate) const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;

/// How many fields of a superblock must be right beside its magic, which other bytes may be as well: one that was
/// damaged in two of the eight is still told.
const RIGHT_FIELDS: usize = 6;

/// Whether a superblock is there.
pub(crate) fn begins(head: &[u8]) -> bool {
    let superblock = head.get(1024..).unwrap_or_default();
    let field = |offset| u32_at(superblock, offset);
    let small = |offset| u16_at(superblock, offset);
    let fields = [
        // Inodes and blocks, of all and of a group.
        field(0) != 0,
        field(4) != 0,
        field(32) != 0,
        field(40) != 0,
        // The size of a block, the revision.
        field(24) <= BLOCK_SHIFT_MAX,
        field(76) <= 1,
        // The state, and what is done on errors.
        small(58) <= 7,
        (1..=3).contains(&small(60)),
    ];
    small(56) == MAGIC && fields.iter().filter(|right| **right).count() >= RIGHT_FIELDS
}

/// An ext file system.
pub(crate) struct Ext<'a> {
    raw: Raw<'a>,
    pub(crate) superblock: Vec<u8>,
    block_bytes: u64,
    /// The last run of blocks that was looked up: inode, first block, blocks, and where they are.
    run: Cell<Option<(u64, Run)>>,
}

/// Blocks of a file that are side by side.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: u64,
    blocks: u64,
    /// Where they are; nothing for a hole.
    at: Option<u64>,
}

struct Inode {
    /// Where it is.
    at: u64,
    mode: u32,
    size: u64,
    flags: u32,
    block: Vec<u8>,
}

impl<'a> Ext<'a> {
    /// Reads the superblock.
    pub(crate) fn open(raw: Raw<'a>) -> Result<Self, Trouble> {
        let superblock = exactly(&raw, SUPERBLOCK, 1024)?;
        let superblock = superblock.ok_or_else(|| Trouble::corrupt("the image ends within the superblock"))?;
        let shift = u32_at(&superblock, 24);
        if shift > BLOCK_SHIFT_MAX {
            return Err(Trouble::corrupt("the superblock has an impossible block size"));
        }
        if u32_at(&superblock, 40) == 0 || u32_at(&superblock, 32) == 0 {
            return Err(Trouble::corrupt("the superblock has groups without inodes or blocks"));
        }
        Ok(Self { raw, superblock, block_bytes: 1024 << shift, run: Cell::new(None) })
    }

    /// A field of the superblock.
    pub(crate) fn field(&self, offset: usize) -> u32 {
        u32_at(&self.superblock, offset)
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Features that must be known to mount it.
    pub(crate) fn incompatible(&self) -> u32 {
        self.field(96)
    }

    /// Blocks of the file system.
    pub(crate) fn blocks(&self) -> u64 {
        let high = if self.incompatible() & WIDE != 0 { self.field(336) } else { 0 };
        u64::from(self.field(4)) | (u64::from(high) << 32)
    }

    fn inode_bytes(&self) -> u64 {
        if self.field(76) == 0 { 128 } else { u64::from(u16_at(&self.superblock, 88)).clamp(128, 4096) }
    }

    fn inode(&self, number: u64) -> Result<Inode, Trouble> {
        let index = number.checked_sub(1).filter(|_| number <= u64::from(self.field(0)));
        let index = index.ok_or_else(|| Trouble::Corrupt(format!("there is no inode {number}")))?;
        let per_group = u64::from(self.field(40)).max(1);
        let (group, inside) = (index / per_group, index % per_group);
        if self.incompatible() & META_BG != 0 {
            return Err(Trouble::Unsupported("the ext4 feature meta_bg is not read by this program".into()));
        }
        let wide = self.incompatible() & WIDE != 0;
        let descriptor = if wide { u64::from(u16_at(&self.superblock, 254)).clamp(32, 1024) } else { 32 };
        let table = u64::from(self.field(20)).saturating_add(1).saturating_mul(self.block_bytes);
        let at = table.saturating_add(group.saturating_mul(descriptor));
        let entry = exactly(&self.raw, at, if descriptor >= 64 { 64 } else { 32 })?;
        let entry = entry.ok_or_else(|| Trouble::corrupt("a group descriptor is behind the end of the image"))?;
        let table = u64::from(u32_at(&entry, 8)) | (u64::from(u32_at(&entry, 40)) << 32);
        let at = table.saturating_mul(self.block_bytes).saturating_add(inside.saturating_mul(self.inode_bytes()));
        let bytes = exactly(&self.raw, at, 128)?;
        let bytes = bytes.ok_or_else(|| Trouble::Corrupt(format!("inode {number} is behind the end of the image")))?;
        Ok(Inode {
            at,
            mode: u32::from(u16_at(&bytes, 0)),
            size: u64::from(u32_at(&bytes, 4)) | (u64::from(u32_at(&bytes, 108)) << 32),
            flags: u32_at(&bytes, 32),
            block: bytes.get(40..100).unwrap_or_default().to_vec(),
        })
    }

    fn node(&self, number: u64) -> Result<Node, Trouble> {
        let inode = self.inode(number)?;
        Ok(Node { id: number, kind: Kind::of_mode(inode.mode), mode: inode.mode, size: inode.size })
    }

    /// Where block `wanted` of a file is.
    fn run(&self, number: u64, inode: &Inode, wanted: u64) -> Result<Run, Trouble> {
        let holds = |run: &Run| wanted.checked_sub(run.first).is_some_and(|inside| inside < run.blocks);
        if let Some((_, run)) = self.run.get().filter(|(own, run)| *own == number && holds(run)) {
            return Ok(run);
        }
        let run = if inode.flags & INODE_EXTENTS != 0 {
            self.extent(inode, wanted)?
        } else {
            self.mapped(&inode.block, wanted)?
        };
        self.run.set(Some((number, run)));
        Ok(run)
    }

    /// Looks a block up in a tree of extents.
    fn extent(&self, inode: &Inode, wanted: u64) -> Result<Run, Trouble> {
        let mut node = inode.block.clone();
        // A hole ends with the file, or where another part of the tree begins.
        let mut end = inode.size.div_ceil(self.block_bytes);
        for _ in 0..=EXTENT_DEPTH {
            if u16_at(&node, 0) != EXTENT_MAGIC {
                return Err(Trouble::corrupt("an extent node has no magic"));
            }
            let count = usize::from(u16_at(&node, 2));
            let entries = node.get(12..).unwrap_or_default().chunks_exact(12).take(count);
            let last = entries.clone().take_while(|entry| u64::from(u32_at(entry, 0)) <= wanted).last();
            let next = entries.map(|entry| u64::from(u32_at(entry, 0))).find(|first| *first > wanted);
            end = next.unwrap_or(end).min(end);
            let hole = Run { first: wanted, blocks: end.saturating_sub(wanted), at: None };
            let Some(entry) = last else { return Ok(hole) };
            let first = u64::from(u32_at(entry, 0));
            if u16_at(&node, 6) == 0 {
                let length = u32::from(u16_at(entry, 4));
                let written = length <= EXTENT_WRITTEN;
                let blocks = u64::from(if written { length } else { length.saturating_sub(EXTENT_WRITTEN) });
                if wanted.saturating_sub(first) >= blocks {
                    return Ok(hole);
                }
                let at = u64::from(u32_at(entry, 8)) | (u64::from(u16_at(entry, 6)) << 32);
                if at.saturating_add(blocks) > self.blocks() {
                    return Err(Trouble::corrupt("an extent is behind the end of the file system"));
                }
                return Ok(Run { first, blocks, at: written.then_some(at) });
            }
            let at = u64::from(u32_at(entry, 4)) | (u64::from(u16_at(entry, 8)) << 32);
            node = self.block(at)?;
        }
        Err(Trouble::corrupt("a tree of extents is deeper than any can be"))
    }

    fn block(&self, number: u64) -> Result<Vec<u8>, Trouble> {
        let length = usize::try_from(self.block_bytes).unwrap_or_default();
        let block = exactly(&self.raw, number.saturating_mul(self.block_bytes), length)?;
        block.ok_or_else(|| Trouble::Corrupt(format!("block {number} is behind the end of the image")))
    }

    /// Looks a block up in the block map of ext2: twelve blocks, then one, two and three levels of tables.
    fn mapped(&self, map: &[u8], wanted: u64) -> Result<Run, Trouble> {
        let run = |at: u32| Run { first: wanted, blocks: 1, at: (at != 0).then_some(u64::from(at)) };
        let slot = |index: u64| u32_at(map, usize::try_from(index.saturating_mul(4)).unwrap_or(usize::MAX));
        if wanted < 12 {
            return Ok(run(slot(wanted)));
        }
        let per_block = self.block_bytes / 4;
        let mut inside = wanted.saturating_sub(12);
        let mut span = per_block;
        for level in 1..=3_u32 {
            if inside < span {
                let mut at = slot(u64::from(level).saturating_add(11));
                let mut part = span;
                for _ in 0..level {
                    if at == 0 {
                        return Ok(run(0));
                    }
                    part = (part / per_block).max(1);
                    let place = u64::from(at).saturating_mul(self.block_bytes);
                    let entry = place.saturating_add((inside / part).saturating_mul(4));
                    let bytes = exactly(&self.raw, entry, 4)?;
                    let bytes =
                        bytes.ok_or_else(|| Trouble::corrupt("a block table is behind the end of the image"))?;
                    at = u32_at(&bytes, 0);
                    inside %= part;
                }
                return Ok(run(at));
            }
            inside = inside.saturating_sub(span);
            span = span.saturating_mul(per_block);
        }
        Ok(run(0))
    }

    /// Reads a file of which the inode is at hand.
    fn read(&self, number: u64, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let rest = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = rest.min(buffer.len());
        let fast_link = Kind::of_mode(inode.mode) == Kind::Link && inode.size < INLINE_BYTES as u64;
        if inode.flags & INODE_ENCRYPTED != 0 {
            return Err(Trouble::Unsupported("a file is encrypted".into()));
        }
        if fast_link || inode.flags & INODE_INLINE != 0 {
            let data = self.inline(inode)?;
            let from = usize::try_from(offset).ok().and_then(|offset| data.get(offset..)).unwrap_or_default();
            let count = from.len().min(length);
            if let (Some(to), Some(from)) = (buffer.get_mut(..count), from.get(..count)) {
                to.copy_from_slice(from);
            }
            return Ok(count);
        }
        let mut done = 0_usize;
        while let Some(rest) = buffer.get_mut(done..length).filter(|rest| !rest.is_empty()) {
            let position = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            let run = self.run(number, inode, position / self.block_bytes)?;
            let inside = position.saturating_sub(run.first.saturating_mul(self.block_bytes));
            let left = run.blocks.saturating_mul(self.block_bytes).saturating_sub(inside);
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let Some(to) = rest.get_mut(..count).filter(|to| !to.is_empty()) else { break };
            match run.at {
                Some(at) => {
                    let place = at.saturating_mul(self.block_bytes).saturating_add(inside);
                    if self.raw.read_at(place, to)? < count {
                        return Err(Trouble::corrupt("a file has blocks behind the end of the image"));
                    }
                }
                None => {
                    // Zeros cost as much as bytes, so that holes are no way around the bound.
                    self.raw.work().unpack(count)?;
                    to.fill(0);
                }
            }
            done = done.saturating_add(count);
        }
        Ok(done)
    }

    /// The bytes of a file or directory that is in its inode.
    fn inline(&self, inode: &Inode) -> Result<Vec<u8>, Trouble> {
        let mut data = inode.block.clone();
        if inode.size > INLINE_BYTES as u64 {
            let bytes = exactly(&self.raw, inode.at, usize::try_from(self.inode_bytes()).unwrap_or_default())?;
            let rest = bytes.as_deref().and_then(inline_rest);
            data.extend_from_slice(rest.unwrap_or_default());
            if u64::try_from(data.len()).is_ok_and(|length| length < inode.size) {
                return Err(Trouble::corrupt("a file in its inode lacks the rest, which should be in an attribute"));
            }
        }
        Ok(data)
    }

    /// Gives every entry of a directory to `visit`, until it has seen enough.
    fn visit(&self, directory: &Node, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), Trouble> {
        let inode = self.inode(directory.id)?;
        if inode.flags & INODE_INLINE != 0 {
            // The parent's number, then entries; the rest has entries of its own.
            let data = self.inline(&inode)?;
            let (first, rest) = data.split_at_checked(INLINE_BYTES).unwrap_or_default();
            if !entries(first.get(4..).unwrap_or_default(), visit) {
                entries(rest, visit);
            }
            return Ok(());
        }
        if inode.size > DIRECTORY_BYTES {
            return Err(Trouble::Bound("a directory has more than 256 MiB"));
        }
        let mut block = vec![0; usize::try_from(self.block_bytes).unwrap_or_default()];
        let mut offset = 0;
        while offset < inode.size {
            let count = self.read(directory.id, &inode, offset, &mut block)?;
            if count == 0 || entries(block.get(..count).unwrap_or_default(), visit) {
                return Ok(());
            }
            offset = offset.saturating_add(self.block_bytes);
        }
        Ok(())
    }
}

/// What an inode has of its file in an attribute, behind its own fields.
fn inline_rest(inode: &[u8]) -> Option<&[u8]> {
    let attributes = inode.get(usize::from(u16_at(inode, 128)).checked_add(128)?..)?;
    let attributes = attributes.get(4..).filter(|_| u32_at(attributes, 0) == ATTRIBUTES_MAGIC)?;
    let mut entry = attributes;
    while u32_at(entry, 0) != 0 {
        let name_end = usize::from(u8_at(entry, 0)).saturating_add(16);
        if (u8_at(entry, 1), entry.get(16..name_end)?) == INLINE_REST {
            let value = attributes.get(usize::from(u16_at(entry, 2))..)?;
            return value.get(..usize::try_from(u32_at(entry, 8)).ok()?);
        }
        entry = entry.get(name_end.next_multiple_of(4)..)?;
    }
    None
}

/// Goes through the entries of a block; whether the visitor has seen enough.
fn entries(mut block: &[u8], visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> bool {
    while block.len() >= 8 {
        let (inode, length) = (u32_at(block, 0), usize::from(u16_at(block, 4)));
        let name_end = usize::from(u8_at(block, 6)).saturating_add(8);
        // A length of 0 or 65535 stands for 65536.
        let length = if matches!(length, 0 | 65535) { 65536 } else { length };
        if length < 8 {
            return false;
        }
        let name = block.get(8..name_end.min(length)).unwrap_or_default();
        if inode != 0 && !name.is_empty() && visit(u64::from(inode), name) {
            return true;
        }
        block = block.get(length..).unwrap_or_default();
    }
    false
}

impl Tree for Ext<'_> {
    fn work(&self) -> &Work {
        self.raw.work()
    }

    fn root(&self) -> Result<Node, Trouble> {
        let root = self.node(ROOT)?;
        if root.kind == Kind::Directory { Ok(root) } else { Err(Trouble::corrupt("the root is no directory")) }
    }

    fn child(&self, directory: &Node, name: &[u8]) -> Result<Option<Node>, Trouble> {
        let mut found = None;
        self.visit(directory, &mut |inode, own| {
            if own == name {
                found = Some(inode);
            }
            found.is_some()
        })?;
        found.map(|inode| self.node(inode)).transpose()
    }

    fn read_at(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let inode = self.inode(node.id)?;
        self.read(node.id, &inode, offset, buffer)
    }

    fn names(&self, directory: &Node) -> Result<Vec<Vec<u8>>, Trouble> {
        let mut names = Vec::new();
        self.visit(directory, &mut |_, name| {
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
            names.len() >= LISTED_NAMES
        })?;
        Ok(names)
    }
}
