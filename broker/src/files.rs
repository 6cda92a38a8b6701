//! Opens the user's files: each once, looked at before it is opened for real, and never resolved again.
//!
//! A path is trusted as the user's wish, what lies there is not: a FIFO, a socket or a device must not make the broker
//! wait or act, so the first open is `O_PATH`, and the real one goes through the descriptor that was looked at.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use wire::message::DiskMode;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be opened.
    #[error("cannot be opened: {}", .0.desc())]
    Open(Errno),
    /// It is something else.
    #[error("is {0}, not {1}")]
    Kind(&'static str, &'static str),
    /// Its size cannot be found.
    #[error("its size cannot be found")]
    Size(#[source] std::io::Error),
    /// A virtual machine or another program holds it.
    #[error("is in use by another process{}", .0)]
    Locked(&'static str),
    /// The file system cannot lock.
    #[error("cannot be locked")]
    Lock(#[source] std::io::Error),
    /// There is nowhere to keep what the guest writes to an ephemeral disk.
    #[error("no temporary file for an ephemeral disk can be made in {}", .0.display())]
    Overlay(PathBuf, #[source] std::io::Error),
}

/// Which kinds of file are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    Regular,
    /// A regular file or a block device.
    Image,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The file.
    pub(crate) file: File,
    /// Device and inode, which tell whether two names mean one file.
    pub(crate) identity: (u64, u64),
    /// Its size.
    pub(crate) bytes: u64,
}

/// Opens `path`, which must be a file of `kind`.
///
/// # Errors
/// When it is absent, of another kind, or may not be opened so.
pub(crate) fn open_file(path: &Path, kind: Kind, write: bool) -> Result<Opened, FileError> {
    let seen = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(FileError::Open)?;
    let stat = fstat(&seen).map_err(FileError::Open)?;
    let right = match kind {
        Kind::Regular => "a regular file",
        Kind::Image => "a regular file or a block device",
    };
    match file_type(&stat) {
        SFlag::S_IFREG => {}
        SFlag::S_IFBLK if kind == Kind::Image => {}
        other => return Err(FileError::Kind(name_of(other), right)),
    }
    let access = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    let mut file = File::from(reopen(&seen, access).map_err(FileError::Open)?);
    let bytes = file.seek(SeekFrom::End(0)).and_then(|end| file.rewind().map(|()| end)).map_err(FileError::Size)?;
    Ok(Opened { file, identity: (stat.st_dev, stat.st_ino), bytes })
}

/// Opens what `fd` refers to once more, with flags of its own.
///
/// # Errors
/// When the file's mode forbids it, or when it is a socket.
pub(crate) fn reopen(fd: &impl AsRawFd, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())
}

/// The file type in `stat`.
pub(crate) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn name_of(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFBLK => "a block device",
        SFlag::S_IFCHR => "a character device",
        SFlag::S_IFIFO => "a FIFO",
        SFlag::S_IFSOCK => "a socket",
        _ => "no file",
    }
}

/// Locks an image for as long as anybody holds its descriptor: shared for readers, exclusive for a writer.
///
/// # Errors
/// When somebody else holds a lock that does not go with it.
pub(crate) fn lock_image(file: &File, mode: DiskMode) -> Result<(), FileError> {
    let (locked, who) = match mode {
        DiskMode::ReadWrite => (file.try_lock(), ", and a writer must be alone"),
        DiskMode::ReadOnly | DiskMode::Ephemeral => (file.try_lock_shared(), " that writes to it"),
    };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(FileError::Locked(who)),
        // A file system without locks: nothing that can be done about it, and no reason not to run.
        Err(TryLockError::Error(error)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        Err(TryLockError::Error(error)) => Err(FileError::Lock(error)),
    }
}

/// A file without a name for what the guest writes to an ephemeral disk; it is gone when its last descriptor is closed.
///
/// # Errors
/// When neither `$TMPDIR` nor /var/tmp nor /tmp takes one.
pub(crate) fn overlay() -> Result<File, FileError> {
    // /var/tmp before /tmp: the latter is often memory.
    let folder = match std::env::var_os("TMPDIR") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from("/var/tmp"),
    };
    tempfile::tempfile_in(&folder)
        .or_else(|_| tempfile::tempfile_in("/tmp"))
        .map_err(|error| FileError::Overlay(folder, error))
}

/// Opens a console file for writing, empty. `inputs` are the files that it must not be.
///
/// # Errors
/// When it is no regular file, is an input of this machine, or cannot be opened.
pub(crate) fn create_console(path: &Path, inputs: &[(u64, u64)]) -> Result<File, FileError> {
    // Not truncated before it is known what it is; O_NONBLOCK so that a FIFO without a reader does not hold us up.
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let fd = open(path, flags, Mode::from_bits_truncate(0o644)).map_err(FileError::Open)?;
    let stat = fstat(&fd).map_err(FileError::Open)?;
    if file_type(&stat) != SFlag::S_IFREG {
        return Err(FileError::Kind(name_of(file_type(&stat)), "a regular file"));
    }
    if inputs.contains(&(stat.st_dev, stat.st_ino)) {
        return Err(FileError::Kind("a file that this machine reads", "a file for the console"));
    }
    let file = File::from(fd);
    file.set_len(0).map_err(FileError::Size)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_and_fifo_are_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            open_file(dir.path(), Kind::Regular, false).unwrap_err().to_string(),
            "is a directory, not a regular file"
        );
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert!(matches!(open_file(&fifo, Kind::Image, true), Err(FileError::Kind("a FIFO", _))));
        assert!(create_console(&fifo, &[]).is_err());
    }

    #[test]
    fn missing_file_says_so() {
        let error = open_file(Path::new("/nonexistent/x"), Kind::Regular, false).unwrap_err();
        assert_eq!(error.to_string(), "cannot be opened: No such file or directory");
    }

    #[test]
    fn image_in_use_for_writing_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = |write| open_file(file.path(), Kind::Image, write).unwrap().file;
        let writer = open(true);
        lock_image(&writer, DiskMode::ReadWrite).unwrap();
        assert!(matches!(lock_image(&open(false), DiskMode::ReadOnly), Err(FileError::Locked(_))));
        drop(writer);
        let reader = open(false);
        lock_image(&reader, DiskMode::ReadOnly).unwrap();
        lock_image(&open(false), DiskMode::Ephemeral).unwrap();
        assert!(matches!(lock_image(&open(true), DiskMode::ReadWrite), Err(FileError::Locked(_))));
    }

    #[test]
    fn console_file_that_is_an_input_is_refused_untouched() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"precious").unwrap();
        let identity = open_file(file.path(), Kind::Regular, false).unwrap().identity;
        assert!(create_console(file.path(), &[identity]).is_err());
        assert_eq!(std::fs::read(file.path()).unwrap(), b"precious");
    }
}
