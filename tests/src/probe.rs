//! Puts the hostile probe into the place of one of Bulkhead's processes. See `src/bin/hostile-probe.rs`.

use crate::binaries::binary;
use crate::machine::Machine;
use hostile::task::{MARK, TASK_BYTES};
use policies::Process;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// All processes of a machine.
pub const PROCESSES: [Process; 4] = [Process::Loader, Process::Vmm, Process::Serial, Process::VirtioBlk];
/// Those, and the one that looks at what a machine is to boot and at its console.
pub const ALL: [Process; 5] = [Process::Loader, Process::Vmm, Process::Serial, Process::VirtioBlk, Process::Inspector];

/// A folder of binaries within `folder` where `process` is left out.
#[must_use]
pub fn binaries_without(folder: &Path, process: Process) -> PathBuf {
    let bin = folder.join("bin");
    fs::create_dir(&bin).expect("no folder for the binaries");
    for other in ALL.into_iter().filter(|&other| other != process) {
        symlink(binary(other.binary()), bin.join(other.binary())).expect("a binary cannot be linked to");
    }
    bin
}

/// A folder of binaries within `folder` where `process` is the probe with a task.
#[must_use]
pub fn binaries_with(folder: &Path, process: Process, task: &str) -> PathBuf {
    binaries_with_program(folder, process, "hostile-probe", task)
}

/// As [`binaries_with`], with another program that takes a task.
#[must_use]
pub fn binaries_with_program(folder: &Path, process: Process, program: &str, task: &str) -> PathBuf {
    let bin = binaries_without(folder, process);
    let (mut content, place) = with_place(program);
    content[place.start..place.start + task.len()].copy_from_slice(task.as_bytes());
    let path = bin.join(process.binary());
    let writes = crate::machine::no_program_is_written();
    fs::write(&path, content).expect("the probe cannot be written");
    drop(writes);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the probe cannot be made executable");
    bin
}

/// A program's content and the place in it for a task.
type Placed = (Vec<u8>, Range<usize>);

/// Finds the place for a task; looked for once, as it takes longer than a machine runs.
fn with_place(program: &str) -> Placed {
    static KNOWN: Mutex<BTreeMap<String, Placed>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().expect("another test failed here");
    let find = || {
        let content = fs::read(binary(program)).expect("the program cannot be read");
        let places = content.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK.as_bytes());
        // The mark stands elsewhere too, as a string; the place for the task is followed by nothing but zeros.
        let ends = places.map(|(at, _)| at + MARK.len()..at + TASK_BYTES);
        let ends: Vec<_> = ends.filter(|range| content[range.clone()].iter().all(|&byte| byte == 0)).collect();
        let [place] = &ends[..] else { panic!("{program} has {} places for its task", ends.len()) };
        let place = place.clone();
        (content, place)
    };
    known.entry(program.to_owned()).or_insert_with(find).clone()
}

/// A machine with a disk in which the probe stands in for `process`.
#[must_use]
pub fn machine(words: &str, process: Process, task: &str) -> Machine {
    let machine = Machine::new(words);
    let image = crate::disk::image(machine.folder(), "disk.img", 64);
    let bin = binaries_with(machine.folder(), process, task);
    machine.disk(&image, "ro").args(["--bin-dir".as_ref(), bin.as_os_str()])
}
