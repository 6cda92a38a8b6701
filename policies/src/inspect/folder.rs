//! A folder in /proc that is opened once: what is read in it costs no walk from the root for each file, and is of one
//! process, whatever becomes of its number.

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC);

/// The folder.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens it.
    pub(super) fn open(path: PathBuf) -> Result<Self, (PathBuf, io::Error)> {
        match open(&path, FLAGS | OFlag::O_DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path }),
            Err(errno) => Err((path, errno.into())),
        }
    }

    /// One in it.
    pub(super) fn folder(&self, name: &str) -> Result<Self, (PathBuf, io::Error)> {
        let fd = openat(&self.fd, name, FLAGS | OFlag::O_DIRECTORY, Mode::empty()).map_err(self.failed(name))?;
        Ok(Self { fd, path: self.path(name) })
    }

    /// The whole of a file in it.
    pub(super) fn text(&self, name: &str) -> Result<String, (PathBuf, io::Error)> {
        let file = openat(&self.fd, name, FLAGS, Mode::empty()).map_err(self.failed(name))?;
        io::read_to_string(File::from(file)).map_err(|error| (self.path(name), error))
    }

    /// Where a link in it leads to.
    pub(super) fn link(&self, name: &str) -> Result<OsString, (PathBuf, io::Error)> {
        readlinkat(&self.fd, name).map_err(self.failed(name))
    }

    /// What a link in it leads to.
    pub(super) fn stat(&self, name: &str) -> Result<FileStat, (PathBuf, io::Error)> {
        fstatat(&self.fd, name, AtFlags::empty()).map_err(self.failed(name))
    }

    /// The names of all that is in it.
    pub(super) fn names(self) -> Result<Vec<String>, (PathBuf, io::Error)> {
        let Self { fd, path } = self;
        let failed = |errno: Errno| (path.clone(), io::Error::from(errno));
        let mut names = Vec::new();
        for entry in Dir::from_fd(fd).map_err(failed)? {
            let name = OsString::from_vec(entry.map_err(failed)?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                names.push(name.to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// The path of something in it, for people.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(Path::new(name))
    }

    fn failed(&self, name: &str) -> impl FnOnce(Errno) -> (PathBuf, io::Error) {
        let path = self.path(name);
        move |errno| (path, errno.into())
    }
}
