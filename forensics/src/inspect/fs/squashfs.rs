//! squashfs 4.0: superblock, inodes, directories, data blocks and fragments (Linux: fs/squashfs/squashfs_fs.h).

use super::squashfs_metadata::Metadata;
use crate::inspect::bytes::{Bytes, Raw, exactly, size, u16_at, u32_at, u64_at};
use crate::inspect::limits::{DIRECTORY_BYTES, LISTED_NAMES, Work};
use crate::inspect::scene::{Scene, Words};
use crate::inspect::tree::{Kind, Node, Tree};
use crate::inspect::trouble::Trouble;
use crate::inspect::unpack::{self, Method};
use std::cell::RefCell;
use wire::report::Confidence::Certain;

const MAGIC: &[u8] = b"hsqs";
/// The largest data block.
const BLOCK_MAX: u32 = 1 << 20;
/// The bit of a data block's size that says that it is not packed.
const PLAIN: u32 = 1 << 24;
/// Sizes of blocks that are read at once: a block of metadata full.
const SIZES_AT_ONCE: u64 = 2048;
const NO_FRAGMENT: u32 = u32::MAX;

/// Whether a superblock is there.
pub(crate) fn begins(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// What packs the blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codec {
    number: u16,
}

impl Codec {
    fn name(self) -> &'static str {
        match self.number {
            1 => "zlib",
            2 => "lzma",
            3 => "lzo",
            4 => "xz",
            5 => "lz4",
            6 => "zstd",
            _ => "unknown",
        }
    }

    /// Unpacks a block, and counts it.
    pub(super) fn unpack(self, work: &Work, packed: &[u8], output: &mut [u8]) -> Result<usize, Trouble> {
        let method = match self.number {
            1 => Method::Gzip,
            2 => Method::Lzma,
            4 => Method::Xz,
            5 => Method::Lz4Legacy,
            6 => Method::Zstd,
            _ => return Err(Trouble::Unsupported(format!("squashfs with {} is not read here", self.name()))),
        };
        let count = unpack::block(method, packed, output)?;
        work.unpack_by(method.weight(), count.max(1))?;
        Ok(count)
    }
}

/// A squashfs.
pub(crate) struct Squashfs<'a> {
    raw: Raw<'a>,
    superblock: Vec<u8>,
    codec: Codec,
    metadata: Metadata<'a>,
    /// The data block that was unpacked last.
    last: RefCell<Option<(u64, Vec<u8>)>>,
    /// How far the sizes of a file's blocks were added up: inode, block, place.
    sums: RefCell<Option<(u64, u64, u64)>>,
}

struct File {
    start: u64,
    size: u64,
    fragment: u32,
    fragment_offset: u32,
    /// Where the sizes of the blocks are.
    sizes: (u64, usize),
}

impl<'a> Squashfs<'a> {
    /// Reads the superblock.
    pub(crate) fn open(raw: Raw<'a>) -> Result<Self, Trouble> {
        let superblock = exactly(&raw, 0, 96)?;
        let superblock = superblock.ok_or_else(|| Trouble::corrupt("the image ends within the superblock"))?;
        let block = u32_at(&superblock, 12);
        if !block.is_power_of_two() || !(4096..=BLOCK_MAX).contains(&block) || u16_at(&superblock, 28) != 4 {
            return Err(Trouble::corrupt("the superblock of squashfs has an impossible block size or version"));
        }
        let codec = Codec { number: u16_at(&superblock, 20) };
        let metadata = Metadata::new(raw, codec);
        Ok(Self { raw, superblock, codec, metadata, last: RefCell::new(None), sums: RefCell::new(None) })
    }

    /// Facts and findings of the superblock.
    pub(crate) fn check(&self, scene: &mut Scene<'_>) {
        scene.fact("format", "squashfs");
        let option = match self.codec.number {
            1 => ", which needs CONFIG_SQUASHFS_ZLIB",
            3 => ", which needs CONFIG_SQUASHFS_LZO",
            4 => ", which needs CONFIG_SQUASHFS_XZ",
            5 => ", which needs CONFIG_SQUASHFS_LZ4",
            6 => ", which needs CONFIG_SQUASHFS_ZSTD",
            _ => "",
        };
        scene.fact("compression", format_args!("{}{option}", self.codec.name()));
        scene.fact("entries", u32_at(&self.superblock, 4));
        let bytes = u64_at(&self.superblock, 40);
        scene.fact("filesystem-size", size(bytes));
        if matches!(self.codec.number, 2) || self.codec.number > 6 {
            let words = Words {
                what: &format_args!("the squashfs is compressed with {}, which no kernel unpacks", self.codec.name()),
                why: &"it will say `Filesystem uses \"...\" compression. This is not supported`",
                remedy: &"make it anew with mksquashfs -comp zstd, xz or gzip",
            };
            scene.fatal("squashfs-compression", Certain, &words, &[]);
        }
        if bytes > self.raw.len() {
            let words = Words {
                what: &"the squashfs is larger than the image that it is in",
                why: &"the image was cut; the kernel does not mount it",
                remedy: &"copy the image anew and whole",
            };
            let evidence = [format!("the file system has {}, there are {}", size(bytes), size(self.raw.len()))];
            scene.fatal("filesystem-larger-than-image", Certain, &words, &evidence);
        }
    }

    /// The first bytes of an inode, with its type, and where they are.
    fn inode(&self, id: u64, length: usize) -> Result<(Vec<u8>, u16), Trouble> {
        let place = u64_at(&self.superblock, 64).saturating_add(id >> 16);
        let inside = usize::try_from(id & 0xffff).unwrap_or_default();
        let (bytes, _) = self.metadata.read(place, inside, length)?;
        let kind = u16_at(&bytes, 0);
        Ok((bytes, kind))
    }

    fn node(&self, id: u64) -> Result<Node, Trouble> {
        let (head, kind) = self.inode(id, 32)?;
        let permissions = u32::from(u16_at(&head, 2));
        let (kind, mode, size) = match kind {
            1 => (Kind::Directory, 0o040_000, u64::from(u16_at(&head, 24))),
            8 => (Kind::Directory, 0o040_000, u64::from(u32_at(&head, 20))),
            2 => (Kind::File, 0o100_000, u64::from(u32_at(&head, 28))),
            9 => (Kind::File, 0o100_000, u64_at(&head, 24)),
            3 | 10 => (Kind::Link, 0o120_000, u64::from(u32_at(&head, 20))),
            5 | 12 => (Kind::CharDevice, 0o020_000, 0),
            _ => (Kind::Other, 0, 0),
        };
        Ok(Node { id, kind, mode: mode | permissions, size })
    }

    fn file(&self, id: u64) -> Result<Option<File>, Trouble> {
        let place = u64_at(&self.superblock, 64).saturating_add(id >> 16);
        let inside = usize::try_from(id & 0xffff).unwrap_or_default();
        let (_, kind) = self.inode(id, 16)?;
        let length = if kind == 9 { 56 } else { 32 };
        let (bytes, sizes) = self.metadata.read(place, inside, length)?;
        Ok(match kind {
            2 => Some(File {
                start: u64::from(u32_at(&bytes, 16)),
                fragment: u32_at(&bytes, 20),
                fragment_offset: u32_at(&bytes, 24),
                size: u64::from(u32_at(&bytes, 28)),
                sizes,
            }),
            9 => Some(File {
                start: u64_at(&bytes, 16),
                size: u64_at(&bytes, 24),
                fragment: u32_at(&bytes, 44),
                fragment_offset: u32_at(&bytes, 48),
                sizes,
            }),
            _ => None,
        })
    }

    fn block_bytes(&self) -> u64 {
        u64::from(u32_at(&self.superblock, 12))
    }

    /// Where block `index` of a file is, and its size as it is written.
    fn place(&self, id: u64, file: &File, index: u64) -> Result<(u64, u32), Trouble> {
        let known = self.sums.borrow().filter(|(own, block, _)| *own == id && *block <= index);
        let (_, mut block, mut place) = known.unwrap_or((id, 0, file.start));
        // The sizes stand one after the other, and are read a block of metadata at a time; those before `block` are known.
        let mut at = file.sizes;
        let mut passed = 0;
        while passed < index {
            let until = if passed < block { block } else { index };
            let step = until.saturating_sub(passed).min(SIZES_AT_ONCE);
            let length = usize::try_from(step.saturating_mul(4)).unwrap_or_default();
            let (bytes, next) = self.metadata.read(at.0, at.1, length)?;
            if passed >= block {
                let sizes = bytes.chunks_exact(4).map(|size| u64::from(u32_at(size, 0) & (PLAIN - 1)));
                place = sizes.fold(place, u64::saturating_add);
                block = block.saturating_add(step);
            }
            passed = passed.saturating_add(step);
            at = next;
        }
        let (bytes, _) = self.metadata.read(at.0, at.1, 4)?;
        *self.sums.borrow_mut() = Some((id, index, place));
        Ok((place, u32_at(&bytes, 0)))
    }

    /// The fragment that holds the tail of a file.
    fn fragment(&self, index: u32) -> Result<(u64, u32), Trouble> {
        let table = u64_at(&self.superblock, 80).saturating_add(u64::from(index / 512).saturating_mul(8));
        let place = exactly(&self.raw, table, 8)?;
        let place = place.ok_or_else(|| Trouble::corrupt("the table of fragments is behind the end of the image"))?;
        let inside = usize::try_from(index % 512).unwrap_or_default().saturating_mul(16);
        let (entry, _) = self.metadata.read(u64_at(&place, 0), inside, 16)?;
        Ok((u64_at(&entry, 0), u32_at(&entry, 8)))
    }

    /// Copies out of a data block from `inside` on.
    fn data(&self, (place, size): (u64, u32), inside: usize, to: &mut [u8]) -> Result<usize, Trouble> {
        let mut last = self.last.borrow_mut();
        if last.as_ref().is_none_or(|(own, _)| *own != place) {
            let length = usize::try_from(size & (PLAIN - 1)).unwrap_or_default();
            let block = usize::try_from(self.block_bytes()).unwrap_or_default();
            if length > block {
                return Err(Trouble::corrupt("a data block of squashfs is larger than its block size"));
            }
            let mut packed = vec![0; length];
            if self.raw.read_at(place, &mut packed)? < length {
                return Err(Trouble::corrupt("a data block is behind the end of the image"));
            }
            let data = if size & PLAIN != 0 {
                packed
            } else {
                let mut data = vec![0; block];
                let count = self.codec.unpack(self.raw.work(), &packed, &mut data)?;
                data.truncate(count);
                data
            };
            *last = Some((place, data));
        }
        let data = last.as_ref().and_then(|(_, data)| data.get(inside..)).unwrap_or_default();
        let count = data.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..count), data.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    fn read(&self, id: u64, file: &File, offset: u64, to: &mut [u8]) -> Result<usize, Trouble> {
        let block = self.block_bytes();
        let (index, inside) = (offset / block, usize::try_from(offset % block).unwrap_or_default());
        let left = usize::try_from(file.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let in_block = usize::try_from(block).unwrap_or_default().saturating_sub(inside);
        let length = to.len().min(left).min(in_block);
        let to = to.get_mut(..length).unwrap_or_default();
        let tail = file.fragment != NO_FRAGMENT && index == file.size / block;
        if tail {
            let inside = inside.saturating_add(usize::try_from(file.fragment_offset).unwrap_or(usize::MAX));
            return self.data(self.fragment(file.fragment)?, inside, to);
        }
        let (place, size) = self.place(id, file, index)?;
        if size & (PLAIN - 1) == 0 {
            self.raw.work().unpack(to.len())?;
            to.fill(0);
            return Ok(to.len());
        }
        self.data((place, size), inside, to)
    }

    /// Gives every entry of a directory to `visit`, until it has seen enough.
    fn visit(&self, directory: &Node, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), Trouble> {
        let (head, kind) = self.inode(directory.id, if directory.size > 0 { 32 } else { 16 })?;
        let (start, inside) = if kind == 8 {
            let (head, _) = self.inode(directory.id, 36)?;
            (u32_at(&head, 24), u16_at(&head, 34))
        } else {
            (u32_at(&head, 16), u16_at(&head, 26))
        };
        // The size counts three bytes for . and .., which are not there.
        let mut left = directory.size.saturating_sub(3);
        if left > DIRECTORY_BYTES {
            return Err(Trouble::Bound("a directory has more than 256 MiB"));
        }
        let place = u64_at(&self.superblock, 72).saturating_add(u64::from(start));
        let mut at = (place, usize::from(inside));
        let take = |at: &mut (u64, usize), length: usize, left: &mut u64| -> Result<Vec<u8>, Trouble> {
            let (bytes, next) = self.metadata.read(at.0, at.1, length)?;
            (*at, *left) = (next, left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX)));
            Ok(bytes)
        };
        while left > 0 {
            let header = take(&mut at, 12, &mut left)?;
            let count = u32_at(&header, 0).min(255);
            for _ in 0..=count {
                if left == 0 {
                    return Ok(());
                }
                let entry = take(&mut at, 8, &mut left)?;
                let name = take(&mut at, usize::from(u16_at(&entry, 6)).saturating_add(1), &mut left)?;
                let id = (u64::from(u32_at(&header, 4)) << 16) | u64::from(u16_at(&entry, 0));
                if visit(id, &name) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Tree for Squashfs<'_> {
    fn work(&self) -> &Work {
        self.raw.work()
    }

    fn root(&self) -> Result<Node, Trouble> {
        let root = self.node(u64_at(&self.superblock, 32))?;
        if root.kind == Kind::Directory { Ok(root) } else { Err(Trouble::corrupt("the root is no directory")) }
    }

    fn child(&self, directory: &Node, name: &[u8]) -> Result<Option<Node>, Trouble> {
        let mut found = None;
        self.visit(directory, &mut |id, own| {
            if own == name {
                found = Some(id);
            }
            found.is_some()
        })?;
        found.map(|id| self.node(id)).transpose()
    }

    fn read_at(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        if node.kind == Kind::Link {
            let (bytes, _) =
                self.inode(node.id, usize::try_from(node.size.min(4096)).unwrap_or_default().saturating_add(24))?;
            let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset.saturating_add(24)..));
            let from = from.unwrap_or_default();
            let count = from.len().min(buffer.len());
            if let (Some(to), Some(from)) = (buffer.get_mut(..count), from.get(..count)) {
                to.copy_from_slice(from);
            }
            return Ok(count);
        }
        let Some(file) = self.file(node.id)? else { return Ok(0) };
        let mut done = 0_usize;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let position = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            if position >= file.size {
                break;
            }
            match self.read(node.id, &file, position, rest)? {
                0 => return Err(Trouble::corrupt("a data block of squashfs is shorter than its file")),
                count => done = done.saturating_add(count),
            }
        }
        Ok(done)
    }

    fn names(&self, directory: &Node) -> Result<Vec<Vec<u8>>, Trouble> {
        let mut names = Vec::new();
        self.visit(directory, &mut |_, name| {
            names.push(name.to_vec());
            names.len() >= LISTED_NAMES
        })?;
        Ok(names)
    }
}
