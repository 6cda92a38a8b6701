//! erofs: superblock, inodes, directories, and files that are not compressed (Linux: fs/erofs/erofs_fs.h).

use crate::inspect::bytes::{Bytes, Raw, before_nul, exactly, size, text, u8_at, u16_at, u32_at, u64_at, uuid};
use crate::inspect::limits::{DIRECTORY_BYTES, LISTED_NAMES, Work};
use crate::inspect::scene::{Scene, Words};
use crate::inspect::tree::{Kind, Node, Tree};
use crate::inspect::trouble::Trouble;
use wire::report::Confidence::{Certain, Likely};

const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// How a file's bytes are laid out.
const FLAT: u16 = 0;
const INLINE: u16 = 2;
const CHUNKS: u16 = 4;
/// The longest name (EROFS_NAME_LEN).
const NAME_BYTES: usize = 255;
/// A chunk that is a hole.
const HOLE: u32 = u32::MAX;
/// Incompatible features by bit, with the first kernel that knows each.
const FEATURES: [(u32, &str); 7] = [
    (0x1, "zero padding (5.3)"),
    (0x2, "big physical clusters or compression configurations (5.13)"),
    (0x4, "chunked files (5.15)"),
    (0x8, "several devices (5.16)"),
    (0x10, "inline tails of compressed files (5.17)"),
    (0x20, "fragments or deduplication (6.1)"),
    (0x40, "prefixes of attributes (6.4)"),
];
/// What Linux 5.10 knows.
const KNOWN_5_10: u32 = 0x1;
/// What Linux 6.12 knows.
const KNOWN: u32 = 0x7f;

/// Whether a superblock is there.
pub(crate) fn begins(head: &[u8]) -> bool {
    u32_at(head, 1024) == MAGIC
}

/// An erofs.
pub(crate) struct Erofs<'a> {
    raw: Raw<'a>,
    superblock: Vec<u8>,
    block_bytes: u64,
}

struct Inode {
    layout: u16,
    mode: u32,
    size: u64,
    data: u32,
    /// Behind the inode and its attributes.
    end: u64,
}

impl<'a> Erofs<'a> {
    /// Reads the superblock.
    pub(crate) fn open(raw: Raw<'a>) -> Result<Self, Trouble> {
        let superblock = exactly(&raw, SUPERBLOCK, 128)?;
        let superblock = superblock.ok_or_else(|| Trouble::corrupt("the image ends within the superblock"))?;
        let bits = u8_at(&superblock, 12);
        if !(9..=16).contains(&bits) {
            return Err(Trouble::corrupt("the superblock of erofs has an impossible block size"));
        }
        Ok(Self { raw, superblock, block_bytes: 1 << bits })
    }

    /// Facts and findings of the superblock.
    pub(crate) fn check(&self, scene: &mut Scene<'_>) {
        scene.fact("format", "erofs");
        let label = text(self.superblock.get(64..80).unwrap_or_default());
        if !label.is_empty() {
            scene.fact("label", label);
        }
        scene.fact("uuid", uuid(self.superblock.get(48..64).unwrap_or_default()));
        scene.fact("entries", u64_at(&self.superblock, 16));
        let bytes = u64::from(u32_at(&self.superblock, 36)).saturating_mul(self.block_bytes);
        scene.fact("filesystem-size", size(bytes));
        let features = u32_at(&self.superblock, 80);
        let named = FEATURES.iter().filter(|(bit, _)| features & bit != 0);
        let named: Vec<_> = named.map(|(_, name)| (*name).to_owned()).collect();
        if features & !KNOWN != 0 {
            let words = Words {
                what: &"the erofs has features that kernels up to 6.12 do not know",
                why: &"such a kernel says `unidentified incompatible feature` and does not mount it",
                remedy: &"make it with an older mkfs.erofs or fewer features",
            };
            scene.warn("erofs-unknown-features", Certain, &words, &[format!("incompatible features {features:#x}")]);
        } else if features & !KNOWN_5_10 != 0 {
            let words = Words {
                what: &"the erofs has features that Linux 5.10 does not know",
                why: &"a kernel older than they are says `unidentified incompatible feature`",
                remedy: &"nothing for a newer kernel",
            };
            scene.note("erofs-newer-features", &words, &named);
        }
        if bytes > self.raw.len() {
            let words = Words {
                what: &"the erofs is larger than the image that it is in",
                why: &"the image was cut; files in it cannot be read",
                remedy: &"copy the image anew and whole",
            };
            let evidence = [format!("the file system has {}, there are {}", size(bytes), size(self.raw.len()))];
            scene.fatal("filesystem-larger-than-image", Likely, &words, &evidence);
        }
    }

    fn inode(&self, number: u64) -> Result<Inode, Trouble> {
        let table = u64::from(u32_at(&self.superblock, 40)).saturating_mul(self.block_bytes);
        let at = table.saturating_add(number.saturating_mul(32));
        let bytes = exactly(&self.raw, at, 32)?;
        let bytes = bytes.ok_or_else(|| Trouble::Corrupt(format!("inode {number} is behind the end of the image")))?;
        let format = u16_at(&bytes, 0);
        let (own, size) = if format & 1 == 1 { (64, u64_at(&bytes, 8)) } else { (32, u64::from(u32_at(&bytes, 8))) };
        let attributes = match u64::from(u16_at(&bytes, 2)) {
            0 => 0,
            count => count.saturating_sub(1).saturating_mul(4).saturating_add(12),
        };
        let end = at.saturating_add(own).saturating_add(attributes);
        let mode = u32::from(u16_at(&bytes, 4));
        Ok(Inode { layout: (format >> 1) & 7, mode, size, data: u32_at(&bytes, 16), end })
    }

    fn node(&self, number: u64) -> Result<Node, Trouble> {
        let inode = self.inode(number)?;
        Ok(Node { id: number, kind: Kind::of_mode(inode.mode), mode: inode.mode, size: inode.size })
    }

    /// Where a byte of a file is, and how many are there side by side; no place for a hole.
    fn place(&self, inode: &Inode, offset: u64) -> Result<(Option<u64>, u64), Trouble> {
        let start = u64::from(inode.data).saturating_mul(self.block_bytes);
        let left = inode.size.saturating_sub(offset);
        match inode.layout {
            FLAT => Ok((Some(start.saturating_add(offset)), left)),
            INLINE => {
                let whole = inode.size / self.block_bytes * self.block_bytes;
                Ok(if offset < whole {
                    (Some(start.saturating_add(offset)), whole.saturating_sub(offset))
                } else {
                    (Some(inode.end.saturating_add(offset.saturating_sub(whole))), left)
                })
            }
            CHUNKS => {
                let bits = inode.data & 31;
                let chunk = self.block_bytes.checked_shl(bits).filter(|chunk| *chunk <= 1 << 40);
                let chunk = chunk.ok_or_else(|| Trouble::corrupt("a file has chunks of an impossible size"))?;
                let (index, inside) = (offset / chunk, offset % chunk);
                let wide = inode.data & 32 != 0;
                let unit: u64 = if wide { 8 } else { 4 };
                let table = inode.end.saturating_add(unit.saturating_sub(1)) & !unit.saturating_sub(1);
                let at = table.saturating_add(index.saturating_mul(unit));
                let entry = exactly(&self.raw, at, if wide { 8 } else { 4 })?;
                let entry =
                    entry.ok_or_else(|| Trouble::corrupt("a table of chunks is behind the end of the image"))?;
                if wide && u16_at(&entry, 2) != 0 {
                    return Err(Trouble::Unsupported("a file is on another device of the erofs".into()));
                }
                let block = u32_at(&entry, if wide { 4 } else { 0 });
                let place = u64::from(block).saturating_mul(self.block_bytes).saturating_add(inside);
                Ok(((block != HOLE).then_some(place), chunk.saturating_sub(inside).min(left)))
            }
            _ => Err(Trouble::Unsupported("a file is compressed in erofs, which this program does not read".into())),
        }
    }

    fn read(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let mut done = 0_usize;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let position = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            if position >= inode.size {
                break;
            }
            let (place, length) = self.place(inode, position)?;
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
            let Some(to) = rest.get_mut(..count).filter(|to| !to.is_empty()) else { break };
            match place {
                Some(place) if self.raw.read_at(place, to)? < count => {
                    return Err(Trouble::corrupt("a file is behind the end of the image"));
                }
                Some(_) => {}
                None => {
                    self.raw.work().unpack(count)?;
                    to.fill(0);
                }
            }
            done = done.saturating_add(count);
        }
        Ok(done)
    }

    /// Gives every entry of a directory to `visit`, until it has seen enough.
    fn visit(&self, directory: &Node, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), Trouble> {
        let inode = self.inode(directory.id)?;
        if inode.size > DIRECTORY_BYTES {
            return Err(Trouble::Bound("a directory has more than 256 MiB"));
        }
        let mut block = vec![0; usize::try_from(self.block_bytes).unwrap_or_default()];
        let mut offset = 0;
        while offset < inode.size {
            let count = self.read(&inode, offset, &mut block)?;
            let block = block.get(..count).unwrap_or_default();
            // The first name begins where the entries of 12 bytes end.
            let names_at = usize::from(u16_at(block, 8));
            let entries = block.get(..names_at).unwrap_or_default();
            for (index, entry) in entries.chunks_exact(12).enumerate() {
                let start = usize::from(u16_at(entry, 8));
                let next = entries.get(index.saturating_add(1).saturating_mul(12)..).filter(|next| next.len() >= 12);
                let end = next.map_or(block.len(), |next| usize::from(u16_at(next, 8)));
                // Names may be made to overlap: none is longer than this, and each is counted.
                let end = end.min(start.saturating_add(NAME_BYTES).saturating_add(1));
                let name = before_nul(block.get(start..end).unwrap_or_default());
                self.raw.work().step(name.len())?;
                if name.len() > NAME_BYTES {
                    return Err(Trouble::corrupt("a directory of erofs has a name of more than 255 bytes"));
                }
                if !name.is_empty() && visit(u64_at(entry, 0), name) {
                    return Ok(());
                }
            }
            offset = offset.saturating_add(self.block_bytes);
        }
        Ok(())
    }
}

impl Tree for Erofs<'_> {
    fn work(&self) -> &Work {
        self.raw.work()
    }

    fn root(&self) -> Result<Node, Trouble> {
        let root = self.node(u64::from(u16_at(&self.superblock, 14)))?;
        if root.kind == Kind::Directory { Ok(root) } else { Err(Trouble::corrupt("the root is no directory")) }
    }

    fn child(&self, directory: &Node, name: &[u8]) -> Result<Option<Node>, Trouble> {
        let mut found = None;
        self.visit(directory, &mut |number, own| {
            if own == name {
                found = Some(number);
            }
            found.is_some()
        })?;
        found.map(|number| self.node(number)).transpose()
    }

    fn read_at(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        self.read(&self.inode(node.id)?, offset, buffer)
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
