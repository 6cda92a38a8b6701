//! One view of every tree of files, read-only, and the walk along a path as the kernel does it.

use super::limits::{PATH_BYTES, SYMLINKS, Work};
use super::trouble::Trouble;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Link,
    CharDevice,
    Other,
}

impl Kind {
    /// That of the type bits of a mode.
    pub(crate) fn of_mode(mode: u32) -> Self {
        match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Link,
            0o020_000 => Self::CharDevice,
            _ => Self::Other,
        }
    }
}

/// A file, a directory, a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    /// The tree's own name of it: an inode number, an address, a hash.
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    /// Type and permissions.
    pub(crate) mode: u32,
    pub(crate) size: u64,
}

/// A tree of files.
pub(crate) trait Tree {
    /// What the walk along paths is counted with.
    fn work(&self) -> &Work;
    /// Its root directory.
    fn root(&self) -> Result<Node, Trouble>;
    /// What is called `name` in `directory`.
    fn child(&self, directory: &Node, name: &[u8]) -> Result<Option<Node>, Trouble>;
    /// Reads a file or the target of a link.
    fn read_at(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble>;
    /// Some names in `directory`, at most `limits::LISTED_NAMES`; an archive may only know those of directories of modules.
    fn names(&self, directory: &Node) -> Result<Vec<Vec<u8>>, Trouble>;
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// To this node, whose path without links is this.
    Node(Node, String),
    /// Nowhere.
    No(NotFound),
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotFound {
    /// This is not there; the links that led to it.
    Missing { path: String, through: Vec<String> },
    /// This is no directory but is used as one.
    NotDirectory { path: String },
    /// More than 40 links.
    Loop { through: Vec<String> },
    /// It cannot be told.
    Unknown(Trouble),
}

/// The links of an evidence line are not more than these.
const SHOWN_LINKS: usize = 8;

/// A walk along a path.
struct Walk<'a> {
    tree: &'a dyn Tree,
    /// The directories from the root on, with their names.
    stack: Vec<(Vec<u8>, Node)>,
    links: u32,
    through: Vec<String>,
}

/// Follows `path` from the root, with links followed to the end.
pub(crate) fn lookup(tree: &dyn Tree, path: &[u8]) -> Found {
    walk(tree, path, true)
}

/// As [`lookup`], but a link at the end is the answer.
pub(crate) fn lookup_link(tree: &dyn Tree, path: &[u8]) -> Found {
    walk(tree, path, false)
}

fn walk(tree: &dyn Tree, path: &[u8], follow_last: bool) -> Found {
    let root = match tree.root() {
        Ok(root) => root,
        Err(trouble) => return Found::No(NotFound::Unknown(trouble)),
    };
    let mut walk = Walk { tree, stack: vec![(Vec::new(), root)], links: 0, through: Vec::new() };
    match walk.run(path, follow_last) {
        Ok(node) => {
            let path = walk.path();
            Found::Node(node, path)
        }
        Err(why) => Found::No(why),
    }
}

/// The components of `path` with the last one first, as they are taken from the end.
fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let mut parts: Vec<_> = parts.map(<[u8]>::to_vec).collect();
    parts.reverse();
    parts
}

impl Walk<'_> {
    fn path(&self) -> String {
        let mut path = String::new();
        for (name, _) in self.stack.iter().skip(1) {
            path.push('/');
            path.push_str(&String::from_utf8_lossy(name));
        }
        if path.is_empty() { "/".into() } else { path }
    }

    fn child_path(&self, name: &[u8]) -> String {
        let path = self.path();
        let name = String::from_utf8_lossy(name);
        if path == "/" { format!("/{name}") } else { format!("{path}/{name}") }
    }

    fn run(&mut self, path: &[u8], follow_last: bool) -> Result<Node, NotFound> {
        if path.len() > PATH_BYTES {
            return Err(NotFound::Unknown(Trouble::Unsupported("a path is longer than 4096 bytes".into())));
        }
        let mut todo = self.parts(path)?;
        while let Some(name) = todo.pop() {
            let Some(directory) = self.stack.last().map(|(_, node)| *node) else { break };
            if directory.kind != Kind::Directory {
                return Err(NotFound::NotDirectory { path: self.path() });
            }
            if name == b".." {
                if self.stack.len() > 1 {
                    self.stack.pop();
                }
                continue;
            }
            let node = match self.tree.child(&directory, &name).map_err(NotFound::Unknown)? {
                Some(node) => node,
                None => return Err(NotFound::Missing { path: self.child_path(&name), through: self.through.clone() }),
            };
            if node.kind == Kind::Link && (follow_last || !todo.is_empty()) {
                let target = self.follow(&node, &name)?;
                if target.first() == Some(&b'/') {
                    self.stack.truncate(1);
                }
                todo.extend(self.parts(&target)?);
                continue;
            }
            self.stack.push((name, node));
        }
        self.stack.last().map(|(_, node)| *node).ok_or(NotFound::Loop { through: Vec::new() })
    }

    /// As [`reversed`], counted.
    fn parts(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, NotFound> {
        let parts = reversed(path);
        self.tree.work().path_steps(parts.len()).map_err(NotFound::Unknown)?;
        Ok(parts)
    }

    /// The target of a link.
    fn follow(&mut self, node: &Node, name: &[u8]) -> Result<Vec<u8>, NotFound> {
        self.links = self.links.saturating_add(1);
        if self.links > SYMLINKS {
            return Err(NotFound::Loop { through: self.through.clone() });
        }
        let target = target(self.tree, node).map_err(NotFound::Unknown)?;
        if target.is_empty() {
            return Err(NotFound::Missing { path: self.child_path(name), through: self.through.clone() });
        }
        if self.through.len() < SHOWN_LINKS {
            self.through.push(format!("{} -> {}", self.child_path(name), String::from_utf8_lossy(&target)));
        }
        Ok(target)
    }
}

/// The target of a link, up to the longest path.
pub(crate) fn target(tree: &dyn Tree, node: &Node) -> Result<Vec<u8>, Trouble> {
    let length = usize::try_from(node.size).unwrap_or(usize::MAX).min(PATH_BYTES);
    let mut target = vec![0; length];
    let count = tree.read_at(node, 0, &mut target)?;
    target.truncate(count);
    Ok(super::bytes::before_nul(&target).to_vec())
}

/// A file of a tree as bytes.
pub(crate) struct File<'a> {
    pub(crate) tree: &'a dyn Tree,
    pub(crate) node: Node,
}

impl super::bytes::Bytes for File<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        self.tree.read_at(&self.node, offset, buffer)
    }
}
