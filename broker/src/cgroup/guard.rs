//! The guard of a machine's cgroup (this program again, as `broker remove-cgroup`): removes it once the broker is done with it,
//! or gone without a word, even by SIGKILL.
//!
//! The broker itself could not: to remove a folder from the root of the hierarchy takes a capability, and it has given up
//! all. The guard keeps what the broker began with; it reads one byte, of the broker, and nothing else.

use super::{place, remove};
use nix::sys::signal::SigSet;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};

/// A guard that runs.
#[derive(Debug)]
pub(super) struct Guard {
    process: Child,
    to_guard: ChildStdin,
}

impl Guard {
    /// Starts a guard of the cgroup `folder`, and of the one that the broker has gone into, if any.
    pub(super) fn start(folder: &Path, leaf: Option<&Path>) -> std::io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("remove-cgroup").arg(folder).args(leaf);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let to_guard = process.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        Ok(Self { process, to_guard })
    }

    /// Has the cgroup removed, and waits for that.
    pub(super) fn finish(mut self) -> std::io::Result<()> {
        self.to_guard.write_all(b"x")?;
        drop(self.to_guard);
        self.process.wait().map(drop)
    }
}

/// `broker remove-cgroup`.
pub(crate) fn guard_main(folder: &Path, leaf: Option<&Path>) -> ExitCode {
    // What is meant for the broker, such as Ctrl-C, is not for this process.
    if let Err(errno) = SigSet::all().thread_block() {
        tracing::debug!("signals are not blocked: {errno}");
    }
    let finished = matches!(std::io::stdin().read(&mut [0]), Ok(1));
    let removed = remove(folder).is_ok();
    // A broker that lives goes back by itself.
    let left = finished || leaf.is_none_or(|leaf| place::Leaf::of(leaf).is_some_and(|leaf| leaf.leave().is_ok()));
    if removed && left { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
