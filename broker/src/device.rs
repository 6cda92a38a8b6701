//! `broker device`: one device process alone, jailed as always, for the vhost-user front end of another VMM.
//!
//! The front end is trusted with the disk, as it is its user; the process is not trusted with more than the disk.

use crate::cli::{BlockArgs, Cli, Device, DeviceArgs, Engine};
use crate::config::{EPHEMERAL_URING, RunLimits, open_disk};
use crate::cores;
use crate::ends::{End, Reason};
use crate::files::lock_image;
use crate::launch::{self, BlockDisk, LaunchError, Launched};
use crate::oom::OomWatch;
use crate::process::{Role, Spawner};
use crate::report::{self, Style};
use crate::supervise::{Supervisor, catch_signals};
use crate::timings::Timings;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use wire::message::DiskMode;
use wire::{DiskId, MemoryBytes};

/// `broker device`.
pub(crate) fn main(cli: &Cli, args: &DeviceArgs, started: Instant) -> ExitCode {
    let Device::VirtioBlk(args) = &args.device;
    let style = Style { json: args.json, console_on_stdout: false };
    match serve(cli, args, started) {
        Ok(supervisor) => {
            let mut outcome = supervisor.run();
            report::outcome(&mut outcome, style, started.elapsed(), None, 0);
            outcome.end.reason.exit_code()
        }
        Err(end) => {
            report::failure(&end, style, started.elapsed());
            end.reason.exit_code()
        }
    }
}

fn serve(cli: &Cli, args: &BlockArgs, started: Instant) -> Result<Supervisor, End> {
    let config = |what: String| End::new(Reason::Config, what);
    let mode = args.mode.into();
    let (opened, capacity) =
        open_disk(&args.disk, mode).map_err(|(what, right)| config(format!("--disk: {what}; {right}")))?;
    if mode == DiskMode::Ephemeral && args.engine == Engine::IoUring {
        return Err(config(format!("--engine: {}; {}", EPHEMERAL_URING.0, EPHEMERAL_URING.1)));
    }
    let id = DiskId::try_from(args.id.clone()).map_err(|error| config(format!("--id: {error}")))?;
    let host = |what: &str, error: io::Error| End::new(Reason::HostError, format!("{what}: {error}"));
    lock_image(&opened.file, mode).map_err(|error| LaunchError::Disk(args.disk.clone(), error).into_end())?;
    let memory = MemoryBytes::try_from(MemoryBytes::MAX).map_err(|error| config(error.to_string()))?;
    let oom = OomWatch::start();
    let signals = catch_signals().map_err(|errno| host("signals cannot be caught", errno.into()))?;
    let socket = Socket::bind(&args.socket).map_err(|error| host(&args.socket.display().to_string(), error))?;
    tracing::info!(socket = %args.socket.display(), "waiting for a front end");
    let front_end = socket.accept(&signals)?;
    // Served once: a second front end finds no socket rather than one that nobody answers.
    drop(socket);
    let limits = RunLimits::default();
    let mut spawner = Spawner::new(cli.bin_dir.as_deref(), Timings::default());
    let confinement = launch::confine(&mut spawner, &limits, memory.get(), launch::disk_tasks(args.engine.into()))
        .map_err(LaunchError::into_end)?;
    let cores = cores::Shared::take();
    let failed = |error| LaunchError::Start(error).into_end();
    let limits_of_disk = launch::block_limits(mode, args.engine.into(), capacity, memory);
    let mut block = spawner.begin(Role::Block(0), limits_of_disk).map_err(failed)?;
    let disk = BlockDisk {
        path: &args.disk,
        file: &opened.file,
        mode,
        engine: args.engine.into(),
        capacity,
        id: &id,
        socket: OwnedFd::from(front_end),
        counter: None,
    };
    disk.tell(&mut block, args.audit).map_err(LaunchError::into_end)?;
    let cookie = cores.leave().map_err(|errno| LaunchError::Cores(errno).into_end())?;
    confinement.log(cookie.is_some());
    let launched = Launched {
        audit: args.audit,
        processes: vec![block],
        terminal: None,
        borrowed: Vec::new(),
        boot_files: (String::new(), String::new()),
        dumps: None,
        console_names: Vec::new(),
        limits,
        confinement,
        cookie,
        inspectors: Default::default(),
    };
    Ok(Supervisor::new(launched, signals, oom, started, Timings::default()))
}

/// A listening socket whose file is removed when it is dropped.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    fn bind(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            // Left behind by a broker that was killed: nobody listens there.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead_socket(path) => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            other => other?,
        };
        Ok(Self { listener, path: path.to_owned() })
    }

    fn accept(&self, signals: &SignalFd) -> Result<UnixStream, End> {
        let failed = |error: io::Error| End::new(Reason::HostError, format!("no connection: {error}"));
        loop {
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(failed(errno.into())),
            }
            let [signalled, connected] = fds.map(|fd| fd.any().unwrap_or(false));
            if signalled {
                let interrupted =
                    matches!(signals.read_signal(), Ok(Some(info)) if info.ssi_signo == libc::SIGINT.cast_unsigned());
                let reason = if interrupted { Reason::Sigint } else { Reason::Sigterm };
                return Err(End::new(reason, "ended before a front end connected"));
            }
            if connected {
                return self.listener.accept().map(|(stream, _)| stream).map_err(failed);
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!("{} could not be removed: {error}", self.path.display());
        }
    }
}

/// Connecting to a file that is no socket is refused as well, so its type counts first.
fn is_dead_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_file_is_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(Socket::bind(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = Socket::bind(&path).unwrap();
        assert!(Socket::bind(&path).is_err());
        drop(live);
    }

    #[test]
    fn file_that_is_no_socket_is_not_replaced() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Socket::bind(file.path()).is_err());
        assert!(file.path().exists());
    }
}
