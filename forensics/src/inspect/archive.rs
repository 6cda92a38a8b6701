//! The index of an archive: for each entry the hash of its path and where its bytes are, so that a million entries fit.
//!
//! A path is told by 64 bits of FNV-1a. An archive can be made so that two paths collide; then this report is wrong and
//! nothing else.

use super::archive_links::Links;
use super::bytes::Bytes;
use super::limits::{self, Work};
use super::tree::{Kind, Node, Tree};
use super::trouble::Trouble;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Entries that are sorted together.
const CHUNK: usize = 1 << 16;
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
/// What a kept body costs beyond its bytes.
const KEPT_OVERHEAD: usize = 64;
/// The most bodies of hard links, and of directories that only paths tell of, that are remembered.
const REMEMBERED: usize = 1 << 17;

/// An entry as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    hash: u64,
    order: u32,
    size: u32,
    offset: u64,
    mode: u16,
    part: u16,
}

/// An entry as an archive has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) size: u64,
    /// Where its body is in the part.
    pub(crate) offset: u64,
    /// What all names of one file share, where it has several.
    pub(crate) hard_link: Option<u64>,
}

/// An archive of one or more parts.
pub(crate) struct Archive<'a> {
    work: &'a Work,
    parts: Vec<(Rc<dyn Bytes + 'a>, bool)>,
    /// The part that was read last, the only one that keeps a decoder.
    open: Cell<usize>,
    chunks: Vec<Vec<Entry>>,
    count: u32,
    kept: BTreeMap<u32, Box<[u8]>>,
    kept_links: usize,
    kept_files: usize,
    bodies: BTreeMap<u64, (u64, u32, u16)>,
    links: BTreeMap<u32, u64>,
    implied: BTreeSet<u64>,
    versions: Vec<(u64, Vec<u8>)>,
    parents_first: bool,
    /// Not all of it was read or remembered: what is not found may be there.
    partial: bool,
    /// Where paths lead, as far as it is unpacked.
    pub(super) paths: Links,
    /// Of the newest chunk, where each path is.
    newest: BTreeMap<u64, usize>,
}

/// The components of a path.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// What identifies the root.
pub(super) fn root_hash() -> u64 {
    FNV_BASIS
}

/// What identifies a name in a directory.
pub(super) fn extend(hash: u64, name: &[u8]) -> u64 {
    std::iter::once(&b'/').chain(name).fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

/// What identifies a path.
pub(crate) fn path_hash(path: &[u8]) -> u64 {
    components(path).fold(FNV_BASIS, extend)
}

/// Whether a file is likely to be asked for: an init, a shell, a loader, a library.
fn is_wanted(path: &[u8]) -> bool {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let known: [&[u8]; 8] =
        [b"init", b"sh", b"busybox", b"bash", b"dash", b"systemd", b"ld.so.cache", b"modules.builtin"];
    known.contains(&name) || name.starts_with(b"ld-") || super::bytes::find(name, b".so").is_some()
}

impl<'a> Archive<'a> {
    /// An empty one. With `parents_first`, a file whose directory did not come before it does not exist, as the kernel
    /// unpacks cpio; otherwise directories are made as they are needed, as tar does.
    pub(crate) fn new(work: &'a Work, parents_first: bool) -> Self {
        Self {
            work,
            parts: Vec::new(),
            open: Cell::new(0),
            chunks: Vec::new(),
            count: 0,
            kept: BTreeMap::new(),
            kept_links: 0,
            kept_files: 0,
            bodies: BTreeMap::new(),
            links: BTreeMap::new(),
            implied: BTreeSet::new(),
            versions: Vec::new(),
            parents_first,
            partial: false,
            paths: Links::default(),
            newest: BTreeMap::new(),
        }
    }

    /// Begins a part, whose entries follow; `packed` if reading it anew is dear.
    pub(crate) fn begin(&mut self, bytes: Rc<dyn Bytes + 'a>, packed: bool) {
        self.parts.push((bytes, packed));
    }

    /// Remembers that entries may follow that were not read.
    pub(crate) fn set_partial(&mut self) {
        self.partial = true;
    }

    /// Whether what is not found may be there all the same, and what is found may be replaced.
    pub(crate) fn is_partial(&self) -> bool {
        self.partial || self.paths.is_full()
    }

    /// The number of entries.
    pub(crate) fn entries(&self) -> u32 {
        self.count
    }

    /// Whether the body of this member should be given to [`Self::keep`].
    pub(crate) fn wants(&self, member: &Member<'_>) -> bool {
        let packed = self.parts.last().is_some_and(|(_, packed)| *packed);
        let cost = usize::try_from(member.size).unwrap_or(usize::MAX).saturating_add(KEPT_OVERHEAD);
        match Kind::of_mode(member.mode) {
            Kind::Link => packed && self.kept_links.saturating_add(cost) <= limits::KEPT_LINK_BYTES,
            Kind::File => {
                packed
                    && (1..=limits::KEPT_FILE_MAX).contains(&member.size)
                    && is_wanted(member.path)
                    && self.kept_files.saturating_add(cost) <= limits::KEPT_FILE_BYTES
            }
            _ => false,
        }
    }

    /// Keeps the body of the entry that was added last, if there is room.
    pub(crate) fn keep(&mut self, kind: Kind, body: Vec<u8>) {
        let cost = body.len().saturating_add(KEPT_OVERHEAD);
        let (total, most) = if kind == Kind::Link {
            (&mut self.kept_links, limits::KEPT_LINK_BYTES)
        } else {
            (&mut self.kept_files, limits::KEPT_FILE_BYTES)
        };
        if total.saturating_add(cost) > most {
            return;
        }
        *total = total.saturating_add(cost);
        self.kept.insert(self.count.saturating_sub(1), body.into_boxed_slice());
    }

    /// Adds an entry.
    pub(crate) fn add(&mut self, work: &Work, member: &Member<'_>) -> Result<(), Trouble> {
        work.entry()?;
        let order = self.count;
        let part = u16::try_from(self.parts.len().saturating_sub(1)).unwrap_or(u16::MAX);
        let size = u32::try_from(member.size).unwrap_or(u32::MAX);
        let entry = Entry {
            hash: path_hash(member.path),
            order,
            size,
            offset: member.offset,
            mode: u16::try_from(member.mode & 0xffff).unwrap_or_default(),
            part,
        };
        if self.chunks.last().is_none_or(|chunk| chunk.len() >= CHUNK) {
            if let Some(chunk) = self.chunks.last_mut() {
                chunk.sort_unstable();
            }
            self.chunks.push(Vec::new());
            self.newest.clear();
        }
        if let Some(chunk) = self.chunks.last_mut() {
            if !self.parents_first {
                self.newest.insert(entry.hash, chunk.len());
            }
            chunk.push(entry);
        }
        self.count = self.count.saturating_add(1);
        if let Some(key) = member.hard_link {
            if self.links.len() < REMEMBERED {
                self.links.insert(order, key);
                if size > 0 {
                    self.bodies.insert(key, (member.offset, size, part));
                }
            } else {
                self.partial = true;
            }
        }
        if !self.parents_first {
            self.imply(member.path);
        }
        self.remember_version(member.path);
        Ok(())
    }

    /// Counts an entry of which nothing is made.
    pub(crate) fn pass_over(&mut self, work: &Work) -> Result<(), Trouble> {
        self.count = self.count.saturating_add(1);
        work.entry()
    }

    /// Adds an entry that is another name of an earlier one.
    pub(crate) fn alias(&mut self, work: &Work, member: &Member<'_>, of: &[u8]) -> Result<(), Trouble> {
        let hash = path_hash(of);
        // The newest chunk is not sorted yet.
        let place = self.newest.get(&hash);
        let in_last = self.chunks.last().zip(place).and_then(|(chunk, place)| chunk.get(*place));
        let Some(own) = in_last.copied().or_else(|| self.entry(hash, false)) else { return self.add(work, member) };
        let mode = u32::from(own.mode);
        self.add(work, &Member { mode, size: u64::from(own.size), offset: own.offset, ..*member })?;
        if let Some(kept) = self.kept.get(&own.order).filter(|_| self.links.len() < REMEMBERED).cloned() {
            self.keep(Kind::of_mode(mode), kept.into_vec());
        }
        Ok(())
    }

    /// Remembers the directories that a path goes through.
    fn imply(&mut self, path: &[u8]) {
        let mut hash = FNV_BASIS;
        let mut parts = components(path).peekable();
        while let Some(part) = parts.next() {
            hash = extend(hash, part);
            if parts.peek().is_some() {
                if self.implied.len() < REMEMBERED {
                    self.implied.insert(hash);
                } else {
                    self.partial |= !self.implied.contains(&hash);
                }
            }
        }
    }

    /// Remembers the names in lib/modules, the one directory that is listed.
    fn remember_version(&mut self, path: &[u8]) {
        let parts: Vec<&[u8]> = components(path).take(6).collect();
        let at = parts.windows(2).position(|pair| matches!(pair, [b"lib", b"modules"]));
        let Some(name) = at.filter(|at| *at <= 1).and_then(|at| parts.get(at.saturating_add(2))) else { return };
        let before = at.and_then(|at| parts.get(..at.saturating_add(2))).unwrap_or_default();
        let directory = before.iter().fold(FNV_BASIS, |hash, part| extend(hash, part));
        let known = self.versions.iter().any(|(own, version)| *own == directory && version == name);
        if !known && self.versions.len() < limits::LISTED_NAMES {
            self.versions.push((directory, name.to_vec()));
        }
    }

    /// Ends the index, after which it can be searched.
    pub(crate) fn finish(&mut self) {
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.sort_unstable();
        }
    }

    /// Of the entries of this path the first or the last.
    fn entry(&self, hash: u64, first: bool) -> Option<Entry> {
        let in_chunk = |chunk: &Vec<Entry>| {
            let begin = chunk.partition_point(|entry| entry.hash < hash);
            let end = chunk.partition_point(|entry| entry.hash <= hash);
            let own = chunk.get(begin..end)?;
            if first { own.first().copied() } else { own.last().copied() }
        };
        if first { self.chunks.iter().find_map(in_chunk) } else { self.chunks.iter().rev().find_map(in_chunk) }
    }

    /// Whether the archive has this path as an entry, be it reachable or not.
    pub(crate) fn has_entry(&self, path: &[u8]) -> bool {
        self.entry(path_hash(path), true).is_some()
    }

    fn node(&self, entry: &Entry) -> Node {
        let mode = u32::from(entry.mode);
        let mut size = u64::from(entry.size);
        if let Some((_, body, _)) = self.body(entry) {
            size = u64::from(body);
        }
        Node { id: entry.hash, kind: Kind::of_mode(mode), mode, size }
    }

    /// What is not found is not there, unless it may be in what was not read.
    fn absent(&self, node: Option<Node>, name: &[u8]) -> Result<Option<Node>, Trouble> {
        if node.is_none() && self.is_partial() {
            let name = String::from_utf8_lossy(name);
            return Err(Trouble::Unsupported(format!("{name} may be in what was not read of the archive")));
        }
        Ok(node)
    }

    /// Where the body of a hard link is, if another name has it.
    fn body(&self, entry: &Entry) -> Option<(u64, u32, u16)> {
        self.links.get(&entry.order).and_then(|key| self.bodies.get(key)).copied().filter(|_| entry.size == 0)
    }
}

/// What a directory that has no entry of its own looks like.
const IMPLIED_DIRECTORY: u32 = 0o040_755;

impl Tree for Archive<'_> {
    fn work(&self) -> &Work {
        self.work
    }

    fn root(&self) -> Result<Node, Trouble> {
        Ok(Node { id: FNV_BASIS, kind: Kind::Directory, mode: IMPLIED_DIRECTORY, size: 0 })
    }

    fn child(&self, directory: &Node, name: &[u8]) -> Result<Option<Node>, Trouble> {
        let hash = extend(directory.id, name);
        let Some(entry) = self.entry(hash, false) else {
            let implied = Node { id: hash, kind: Kind::Directory, mode: IMPLIED_DIRECTORY, size: 0 };
            return self.absent(self.implied.contains(&hash).then_some(implied), name);
        };
        let parent = if directory.id == FNV_BASIS { None } else { self.entry(directory.id, true) };
        if self.parents_first && parent.is_some_and(|parent| parent.order > entry.order) {
            return self.absent(None, name);
        }
        Ok(Some(self.node(&entry)))
    }

    fn read_at(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let Some(entry) = self.entry(node.id, false) else { return Ok(0) };
        if let Some(kept) = self.kept.get(&entry.order) {
            let kept: &[u8] = kept;
            let rest = usize::try_from(offset).ok().and_then(|offset| kept.get(offset..)).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
                to.copy_from_slice(from);
            }
            return Ok(count);
        }
        if node.kind == Kind::Link && !self.parents_first {
            return Err(Trouble::Bound("an archive has more symbolic links than are kept"));
        }
        let (start, size, part) = self.body(&entry).unwrap_or((entry.offset, entry.size, entry.part));
        let part = usize::from(part);
        let before = self.open.replace(part);
        if let Some((bytes, _)) = self.parts.get(before).filter(|_| before != part) {
            bytes.close();
        }
        let Some((bytes, _)) = self.parts.get(part) else { return Ok(0) };
        let rest = usize::try_from(u64::from(size).saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = rest.min(buffer.len());
        bytes.read_at(start.saturating_add(offset), buffer.get_mut(..count).unwrap_or_default())
    }

    fn names(&self, directory: &Node) -> Result<Vec<Vec<u8>>, Trouble> {
        let own = self.versions.iter().filter(|(hash, _)| *hash == directory.id);
        Ok(own.map(|(_, name)| name.clone()).collect())
    }
}
