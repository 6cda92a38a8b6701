//! A file tree that is made up in memory and written out as an initramfs or as an ext4 image, without root.

use crate::command::{capture, program};
use crate::paths;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Something in a tree.
#[derive(Debug, Clone)]
enum Node {
    Directory,
    Bytes {
        content: Vec<u8>,
        mode: u32,
    },
    Copy {
        from: PathBuf,
        mode: u32,
    },
    Symlink(String),
    /// The character device 5:1, on which the kernel opens the first process's standard files.
    Console,
}

/// A file tree; paths are relative to its root, without a leading slash.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// A directory, with its parents.
    pub(crate) fn directory(&mut self, path: &str) -> &mut Self {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::Directory);
        self
    }

    /// A file with this content.
    pub(crate) fn file(&mut self, path: &str, content: impl Into<Vec<u8>>) -> &mut Self {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::Bytes { content: content.into(), mode: 0o644 });
        self
    }

    /// An executable file with this content.
    pub(crate) fn script(&mut self, path: &str, content: impl Into<Vec<u8>>) -> &mut Self {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::Bytes { content: content.into(), mode: 0o755 });
        self
    }

    /// A copy of a file of this machine, readable for all.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> &mut Self {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::Copy { from: from.to_owned(), mode: 0o644 });
        self
    }

    /// A copy of an executable file of this machine.
    pub(crate) fn program(&mut self, path: &str, from: &Path) -> &mut Self {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::Copy { from: from.to_owned(), mode: 0o755 });
        self
    }

    /// A symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::Symlink(target.to_owned()));
        self
    }

    /// `dev/console`, which an initramfs needs and an ext4 image that is made without root cannot have.
    pub(crate) fn console(&mut self) -> &mut Self {
        self.parents("dev/console");
        self.nodes.insert("dev/console".to_owned(), Node::Console);
        self
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            let parent = path.get(..end).unwrap_or_default();
            self.nodes.entry(parent.to_owned()).or_insert(Node::Directory);
        }
    }

    /// Writes the tree as a cpio archive of the kind "newc" ("Linux initramfs buffer format"), all owned by root.
    ///
    /// # Errors
    /// When a file cannot be read, is too long, or the archive cannot be written.
    pub(crate) fn write_cpio(&self, to: &Path) -> Result<()> {
        let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        let mut out = BufWriter::new(file);
        self.cpio(&mut out).with_context(|| format!("cannot write {}", to.display()))?;
        out.flush().with_context(|| format!("cannot write {}", to.display()))
    }

    fn cpio(&self, out: &mut impl Write) -> Result<()> {
        for (inode, (path, node)) in (1u32..).zip(&self.nodes) {
            let (mode, content, device) = match node {
                Node::Directory => (0o40755, Vec::new(), (0, 0)),
                Node::Bytes { content, mode } => (0o100_000 | mode, content.clone(), (0, 0)),
                Node::Copy { from, mode } => (0o100_000 | mode, read(from)?, (0, 0)),
                Node::Symlink(target) => (0o120_777, target.clone().into_bytes(), (0, 0)),
                Node::Console => (0o20600, Vec::new(), (5, 1)),
            };
            cpio_entry(out, path, inode, mode, &content, device)?;
        }
        cpio_entry(out, "TRAILER!!!", 0, 0, &[], (0, 0))
    }

    /// Writes the tree below a folder, which must not be there yet.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub(crate) fn write_folder(&self, to: &Path) -> Result<()> {
        paths::directory(to)?;
        for (path, node) in &self.nodes {
            let place = to.join(path);
            let written = match node {
                Node::Directory => fs::create_dir(&place),
                Node::Bytes { content, mode } => {
                    fs::write(&place, content).and_then(|()| fs::set_permissions(&place, Permissions::from_mode(*mode)))
                }
                Node::Copy { from, mode } => {
                    fs::copy(from, &place).and_then(|_| fs::set_permissions(&place, Permissions::from_mode(*mode)))
                }
                Node::Symlink(target) => symlink(target, &place),
                Node::Console => Ok(()),
            };
            written.with_context(|| format!("cannot write {}", place.display()))?;
        }
        Ok(())
    }

    /// Makes an ext4 image of `megabytes` MiB that holds the tree.
    ///
    /// # Errors
    /// When mke2fs fails, which it does when the tree does not fit.
    pub(crate) fn write_ext4(&self, to: &Path, megabytes: u64) -> Result<()> {
        let folder = tempfile::tempdir_in(to.parent().unwrap_or(Path::new(".")))
            .with_context(|| format!("cannot make a folder beside {}", to.display()))?;
        let content = folder.path().join("content");
        self.write_folder(&content)?;
        ext4_of_folder(&content, to, megabytes)
    }
}

/// Makes an ext4 image of `megabytes` MiB that holds what is in a folder.
///
/// # Errors
/// When mke2fs fails, which it does when the content does not fit.
pub(crate) fn ext4_of_folder(folder: &Path, to: &Path, megabytes: u64) -> Result<()> {
    if to.exists() {
        fs::remove_file(to).with_context(|| format!("cannot replace {}", to.display()))?;
    }
    let mut command = program("mke2fs")?;
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0,lazy_itable_init=1", "-d"]);
    capture(command.arg(folder).arg(to).arg(format!("{megabytes}M")))
        .with_context(|| format!("cannot make the ext4 image {}", to.display()))?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// One entry of a newc archive: 14 fields of which all but the first are 8 hexadecimal digits, the name and the content,
/// each padded to 4 bytes.
fn cpio_entry(
    out: &mut impl Write,
    name: &str,
    inode: u32,
    mode: u32,
    content: &[u8],
    device: (u32, u32),
) -> Result<()> {
    let Ok(length) = u32::try_from(content.len()) else { bail!("{name} is too long for an initramfs") };
    let name_length = name.len().saturating_add(1);
    let links = if mode & 0o170_000 == 0o40000 { 2 } else { 1 };
    write!(out, "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{length:08x}", 0, 0, 0)?;
    write!(out, "{:08x}{:08x}{:08x}{:08x}{name_length:08x}{:08x}", 0, 0, device.0, device.1, 0)?;
    out.write_all(name.as_bytes())?;
    // The header has 110 bytes.
    pad(out, name_length.saturating_add(110), true)?;
    out.write_all(content)?;
    pad(out, content.len(), false)
}

/// Fills up to a multiple of 4 after `length` bytes; `terminated` when a NUL that `length` counts is still to come.
fn pad(out: &mut impl Write, length: usize, terminated: bool) -> Result<()> {
    let zeros = (length.next_multiple_of(4) - length).saturating_add(usize::from(terminated));
    out.write_all([0; 4].get(..zeros).unwrap_or_default())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn example() -> Tree {
        let mut tree = Tree::default();
        tree.script("bin/hello", "#!/bin/sh\n").file("etc/odd", "12345").symlink("init", "bin/hello").console();
        tree
    }

    #[test]
    fn parents_come_before_their_content() {
        let names: Vec<_> = example().nodes.into_keys().collect();
        assert_eq!(names, ["bin", "bin/hello", "dev", "dev/console", "etc", "etc/odd", "init"]);
    }

    #[test]
    fn archive_is_read_back_by_cpio() {
        if crate::command::find_program("cpio").is_none() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.cpio");
        example().write_cpio(&archive).unwrap();
        let listed = Command::new("cpio")
            .args(["-tv", "--quiet"])
            .stdin(Stdio::from(File::open(&archive).unwrap()))
            .output()
            .unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.status.success(), "{text}");
        assert!(text.contains("-rwxr-xr-x"), "{text}");
        assert!(text.contains("init -> bin/hello"), "{text}");
        assert!(text.contains("crw-------") && text.contains("5,"), "{text}");
    }

    #[test]
    fn folder_holds_content_and_modes() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("tree");
        example().write_folder(&to).unwrap();
        assert_eq!(fs::read(to.join("etc/odd")).unwrap(), b"12345");
        assert_eq!(fs::metadata(to.join("bin/hello")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_link(to.join("init")).unwrap(), Path::new("bin/hello"));
    }
}
