//! Inspectors: jailed processes that look at an image, a kernel or a console log, which the broker itself never reads.
//!
//! What an inspector says is bounded in number, size and time, and is printed and nothing else: a captured one can lie about
//! what it was given, and has nothing more.

pub(crate) mod explain;
pub(crate) mod inspect;
mod log;
mod result;
mod session;

pub(crate) use result::{Inspection, finding_lines, is_unrecognised};
pub(crate) use session::Session;

use crate::cores;
use crate::memory::{self, MemoryError};
use crate::process::{Spawner, StartError};
use nix::errno::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;
use wire::message::{HostSeen, InspectorTask};

/// How long an inspector may take, with building its jail.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// How much processor time it may use, in seconds.
pub(crate) const CPU_SECONDS: u64 = 20;

/// Why an inspector could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InspectorError {
    /// Its process could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There is no memory for the log.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// What it is to look at cannot be opened for it.
    #[error("what is to be looked at cannot be opened for reading alone")]
    Reopen(#[source] Errno),
    /// The broker cannot leave its core.
    #[error("the broker cannot keep off the core of its process")]
    Cores(#[source] Errno),
    /// The broker could not give up its privileges.
    #[error("the broker could not give up its privileges")]
    Privileges(#[source] Errno),
}

/// Runs an inspector that is alone, to its end.
fn run_alone(
    spawner: &mut Spawner,
    audit: bool,
    task: InspectorTask,
    fds: &[BorrowedFd<'_>],
) -> Result<Inspection, InspectorError> {
    let cores = cores::Shared::take();
    let mut session = Session::start(spawner, audit, task, fds)?;
    cores.leave().map_err(InspectorError::Cores)?;
    session.must_end_within(LIMIT);
    session.enter();
    // To look at its jail takes what is given up here, before anything untrusted is read.
    crate::privileges::give_up().map_err(InspectorError::Privileges)?;
    session.begin(HostSeen::default());
    Ok(session.run(None))
}

/// The memory in which serial records the console, and a descriptor of it for reading alone.
///
/// # Errors
/// When the kernel has no memory or descriptor left.
pub(crate) fn recording() -> Result<(OwnedFd, OwnedFd), InspectorError> {
    let memory = memory::recording()?;
    let reader = read_only(&memory)?;
    Ok((memory, reader))
}

/// What `fd` refers to, opened once more for reading alone and with an offset of its own.
///
/// # Errors
/// When it cannot be opened so.
pub(crate) fn read_only(fd: &impl std::os::fd::AsRawFd) -> Result<OwnedFd, InspectorError> {
    crate::files::reopen(fd, nix::fcntl::OFlag::O_RDONLY).map_err(InspectorError::Reopen)
}
