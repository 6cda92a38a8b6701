//! The directories of an archive that are symbolic links: what comes behind one of them is unpacked where it leads.

use super::archive::{components, extend, root_hash};
use super::limits::{KEPT_LINK_BYTES, PATH_BYTES, SYMLINKS, Work};
use super::tree::Kind;
use super::trouble::Trouble;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What a link costs beyond its target.
const OVERHEAD: usize = 64;
/// The most directories.
const DIRECTORIES: usize = 1 << 18;

/// The links that stand in what is unpacked so far, by the hash of their path, and the directories, with whether there is
/// something in them.
#[derive(Debug, Default)]
pub(super) struct Links {
    targets: BTreeMap<u64, Box<[u8]>>,
    bytes: usize,
    directories: BTreeMap<u64, bool>,
    full: bool,
}

impl Links {
    /// Whether there were more than are kept: from then on, no link is followed.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Whether a path goes through no link, and not up.
    fn is_plain(&self, path: &[u8]) -> bool {
        let mut hash = root_hash();
        let mut names = components(path).peekable();
        while let Some(name) = names.next() {
            hash = extend(hash, name);
            if name == b".." || names.peek().is_some() && self.targets.contains_key(&hash) {
                return false;
            }
        }
        true
    }

    /// The path without links, but for one at its end, which is replaced and not followed; nothing if it leads nowhere.
    pub(super) fn resolve<'p>(&self, work: &Work, path: &'p [u8]) -> Result<Option<Cow<'p, [u8]>>, Trouble> {
        if self.full || self.is_plain(path) {
            return Ok(Some(path.into()));
        }
        let mut todo: Vec<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        work.components(todo.len())?;
        todo.reverse();
        // The names from the root on, with the hash of the path up to each.
        let mut done: Vec<(Vec<u8>, u64)> = Vec::new();
        let mut followed = 0_u32;
        while let Some(name) = todo.pop() {
            if name == b".." {
                done.pop();
                continue;
            }
            let hash = extend(done.last().map_or(root_hash(), |(_, hash)| *hash), &name);
            let Some(target) = self.targets.get(&hash).filter(|_| !todo.is_empty()) else {
                done.push((name, hash));
                continue;
            };
            followed = followed.saturating_add(1);
            let length: usize = todo.iter().map(|name| name.len().saturating_add(1)).sum();
            if followed > SYMLINKS || length.saturating_add(target.len()) > PATH_BYTES {
                return Ok(None);
            }
            if target.first() == Some(&b'/') {
                done.clear();
            }
            let rest: Vec<_> = components(target).map(<[u8]>::to_vec).collect();
            work.components(rest.len())?;
            todo.extend(rest.into_iter().rev());
        }
        let names: Vec<_> = done.into_iter().map(|(name, _)| name).collect();
        Ok(Some(names.join(&b'/').into()))
    }

    /// Takes the entry of this resolved path, with its target if it is a link. Whether the kernel makes it: a link takes the
    /// place of no directory that has something in it.
    pub(super) fn add(&mut self, path: &[u8], kind: Kind, target: &[u8]) -> bool {
        if self.full {
            return true;
        }
        let mut hash = root_hash();
        let mut parent = hash;
        for name in components(path) {
            (parent, hash) = (hash, extend(hash, name));
        }
        if kind == Kind::Link && self.directories.get(&hash) == Some(&true) {
            return false;
        }
        if let Some(filled) = self.directories.get_mut(&parent) {
            *filled = true;
        }
        if let Some(before) = self.targets.remove(&hash) {
            self.bytes = self.bytes.saturating_sub(before.len().saturating_add(OVERHEAD));
        }
        match kind {
            Kind::Link if !target.is_empty() => {
                self.bytes = self.bytes.saturating_add(target.len()).saturating_add(OVERHEAD);
                self.targets.insert(hash, target.into());
            }
            // Without its parent, it is not made.
            Kind::Directory if parent == root_hash() || self.directories.contains_key(&parent) => {
                self.directories.entry(hash).or_insert(false);
            }
            _ => {}
        }
        if self.bytes > KEPT_LINK_BYTES || self.directories.len() > DIRECTORIES {
            *self = Self { full: true, ..Self::default() };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(links: &Links, path: &str) -> Option<String> {
        links
            .resolve(&Work::default(), path.as_bytes())
            .unwrap()
            .map(|path| String::from_utf8(path.into_owned()).unwrap())
    }

    #[test]
    fn path_leads_through_the_links_that_are_there() {
        let mut links = Links::default();
        for (path, target) in [("lib", "usr/lib"), ("usr/lib/x", "/other/./y"), ("a/up", "../lib"), ("loop", "loop/z")]
        {
            assert!(links.add(path.as_bytes(), Kind::Link, target.as_bytes()));
        }
        assert_eq!(resolved(&links, "./lib/libc.so").unwrap(), "usr/lib/libc.so");
        assert_eq!(resolved(&links, "/lib/x/z").unwrap(), "other/y/z");
        assert_eq!(resolved(&links, "a/up/z").unwrap(), "usr/lib/z");
        assert_eq!(resolved(&links, "lib").unwrap(), "lib");
        assert_eq!(resolved(&links, "loop/x"), None);
        // What replaces a link ends it.
        assert!(links.add(b"lib", Kind::Directory, b""));
        assert_eq!(resolved(&links, "lib/libc.so").unwrap(), "lib/libc.so");
    }

    #[test]
    fn link_takes_the_place_of_an_empty_directory_only() {
        let mut links = Links::default();
        for path in ["lib", "lib/x", "bin"] {
            assert!(links.add(path.as_bytes(), Kind::Directory, b""));
        }
        assert!(!links.add(b"lib", Kind::Link, b"usr/lib"));
        assert!(links.add(b"bin", Kind::Link, b"usr/bin"));
    }

    #[test]
    fn number_of_links_is_bounded() {
        let mut links = Links::default();
        links.add(b"first", Kind::Link, b"x");
        assert_eq!(resolved(&links, "first/y").unwrap(), "x/y");
        for number in 0..1 << 17 {
            links.add(format!("{number}").as_bytes(), Kind::Link, b"x");
        }
        assert!(links.is_full() && links.targets.is_empty());
        assert_eq!(resolved(&links, "first/y").unwrap(), "first/y");
    }
}
