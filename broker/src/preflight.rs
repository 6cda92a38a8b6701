//! The inspectors of a run: those that look at the kernel, the initrd and the root disk beside the launch, and the one that
//! waits to explain the console if the run ends badly.
//!
//! They are started last, so that no process of the machine waits for them, and while the broker still has what it takes to
//! build a jail. None is part of the machine: nothing of it depends on them, and what limits it does not count them.

use crate::config::Plan;
use crate::inspector::inspect::native;
use crate::inspector::{self, InspectorError, Session};
use crate::process::Spawner;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use wire::message::{DiskMode, InspectedGuest, InspectorTask, LogForm};

/// How long all of them may take together that look at the boot files, from the launch on. They come after the guest where
/// there is not a processor for each.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// An inspector and what it looks at.
#[derive(Debug)]
pub(crate) struct Looking {
    /// The file, for people.
    pub(crate) subject: String,
    /// The inspector.
    pub(crate) session: Session,
    /// Whether the guest may write to it.
    pub(crate) is_written_to: bool,
}

/// The inspectors of a run.
#[derive(Debug, Default)]
pub(crate) struct Started {
    /// Those that look at boot files.
    pub(crate) preflight: Vec<Looking>,
    /// The one that waits for the end.
    pub(crate) explainer: Option<Session>,
}

/// Starts the inspectors that `plan` wants, the explaining one with the `recording` of the console. One that cannot be started
/// is missed, and that is said; the launch goes on.
pub(crate) fn start(plan: &Plan, spawner: &Spawner, audit: bool, recording: Option<OwnedFd>) -> Started {
    let mut spawner = spawner.outside();
    let mut started = Started::default();
    let mut files = Vec::new();
    if plan.preflight {
        files.push((&plan.kernel.path, &plan.kernel.file, true, false));
        files.extend(plan.initrd.as_ref().map(|initrd| (&initrd.path, &initrd.file, false, false)));
        let root = root_disk(plan.cmdline.as_str(), plan.disks.len(), plan.initrd.is_some());
        let root = root.and_then(|index| plan.disks.get(index));
        files.extend(root.map(|disk| (&disk.path, &disk.file, false, disk.mode == DiskMode::ReadWrite)));
    }
    for (path, file, is_kernel, is_written_to) in files {
        match look_at(plan, &mut spawner, audit, file, is_kernel) {
            Ok(session) => {
                started.preflight.push(Looking { subject: path.display().to_string(), session, is_written_to });
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!("{} is not looked at before the boot: {error:#}", path.display());
            }
        }
    }
    if let Some(recording) = recording {
        let task = InspectorTask::Explain { architecture: Some(native()), form: LogForm::Recording };
        match Session::start(&mut spawner, audit, task, &[recording.as_fd()]) {
            Ok(session) => started.explainer = Some(session),
            Err(error) => tracing::warn!("nothing will explain a bad end: {:#}", anyhow::Error::from(error)),
        }
    }
    started
}

fn look_at(
    plan: &Plan,
    spawner: &mut Spawner,
    audit: bool,
    file: &File,
    is_kernel: bool,
) -> Result<Session, InspectorError> {
    // Opened once more: for reading alone, and with an offset that the loader's reading does not depend on.
    let file = inspector::read_only(file)?;
    let task = InspectorTask::Inspect {
        guest: InspectedGuest { architecture: native(), cmdline: plan.cmdline.clone(), memory: Some(plan.memory) },
        has_image: !is_kernel,
        has_kernel: is_kernel,
        may_be_kernel: false,
    };
    let mut session = Session::start(spawner, audit, task, &[file.as_fd()])?;
    session.must_end_within(LIMIT);
    Ok(session)
}

/// The disk that the kernel or its initrd mounts as root, as far as the command line says. Other disks hold no init, and it
/// would be wrong to miss it there.
fn root_disk(cmdline: &str, disks: usize, has_initrd: bool) -> Option<usize> {
    let words = cmdline.split_whitespace().take_while(|word| *word != "--");
    let Some(root) = words.filter_map(|word| word.strip_prefix("root=")).last() else {
        // An initrd decides by itself.
        return (disks > 0 && !has_initrd).then_some(0);
    };
    let letter = root.strip_prefix("/dev/vd").or_else(|| root.strip_prefix("vd")).and_then(|name| name.bytes().next());
    match letter.and_then(|letter| letter.checked_sub(b'a')) {
        Some(index) => Some(usize::from(index)).filter(|&index| index < disks),
        // A label, an identifier, a number: of the only disk, or of one that only a look at all of them would tell.
        None => (disks == 1 && root != "/dev/ram0").then_some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::root_disk;

    #[test]
    fn root_disk_is_the_one_that_the_command_line_names() {
        assert_eq!(root_disk("console=ttyS0 root=/dev/vdb2 ro", 2, true), Some(1));
        assert_eq!(root_disk("root=/dev/vda root=/dev/vdb", 2, false), Some(1));
        assert_eq!(root_disk("root=/dev/vdc", 2, false), None);
        assert_eq!(root_disk("x -- root=/dev/vdb", 2, true), None);
    }

    #[test]
    fn root_by_another_name_is_looked_for_on_the_only_disk() {
        assert_eq!(root_disk("root=LABEL=root", 1, true), Some(0));
        assert_eq!(root_disk("root=PARTUUID=1234-02", 2, false), None);
    }

    #[test]
    fn disk_beside_an_initrd_that_nothing_names_as_root_is_not_looked_at() {
        assert_eq!(root_disk("console=ttyS0", 1, true), None);
        assert_eq!(root_disk("console=ttyS0", 1, false), Some(0));
        assert_eq!(root_disk("", 0, false), None);
    }
}
