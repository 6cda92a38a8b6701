//! From a draft to a plan: checked against the host and against itself, with every input file open.

use super::cmdline::complete_cmdline;
use super::hardware::{self, Host};
use super::image::open_disk;
use super::limits::{self, RunLimits};
use super::size::show_size;
use super::{Draft, DraftDisk, Given, HugePages, Origin, Output, Problem};
use crate::files::{Kind, file_type, open_file};
use nix::sys::stat::{SFlag, stat};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use wire::message::{DiskEngine, DiskMode, GicVersion};
use wire::{CommandLine, CpuList, DiskCount, DiskId, MemoryBytes, SectorCount, VcpuCount};

/// Guest memory unless the config says otherwise.
const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
/// The most bytes in a console file unless the config says otherwise.
const DEFAULT_CONSOLE_LIMIT_BYTES: u64 = 16 << 20;
/// The most outputs that serial takes.
const MAX_OUTPUTS: usize = 4;

/// An input file of the boot.
#[derive(Debug)]
pub(crate) struct Input {
    /// Its name.
    pub(crate) path: PathBuf,
    /// The file, read-only.
    pub(crate) file: File,
}

/// Why an ephemeral disk has no io_uring, and what would be right.
pub(crate) const EPHEMERAL_URING: (&str, &str) = (
    "is \"io-uring\" for an ephemeral disk, whose writes go to an overlay one after the other",
    "use engine \"sync\", or another mode",
);

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The image's name.
    pub(crate) path: PathBuf,
    /// How its bytes are moved.
    pub(crate) engine: DiskEngine,
    /// The image, writable only for [`DiskMode::ReadWrite`].
    pub(crate) file: File,
    /// How it is written to.
    pub(crate) mode: DiskMode,
    /// The image's size.
    pub(crate) capacity: SectorCount,
    /// The serial number.
    pub(crate) id: DiskId,
}

/// The console.
#[derive(Debug)]
pub(crate) struct Console {
    /// Whether it is on standard input and output.
    pub(crate) stdio: bool,
    /// Files that it is written to.
    pub(crate) files: Vec<PathBuf>,
    /// The most bytes in each file.
    pub(crate) limit_bytes: u64,
}

/// A machine that can be launched.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The number of virtual CPUs.
    pub(crate) vcpus: VcpuCount,
    /// The interrupt controller.
    pub(crate) gic: GicVersion,
    /// The host CPUs that may run vCPUs.
    pub(crate) cpus: CpuList,
    /// Whether the registers are told when a guest ends badly.
    pub(crate) debug: bool,
    /// Guest memory.
    pub(crate) memory: MemoryBytes,
    /// Huge pages.
    pub(crate) huge_pages: Option<HugePages>,
    /// The kernel image.
    pub(crate) kernel: Input,
    /// The initial RAM disk.
    pub(crate) initrd: Option<Input>,
    /// The complete command line.
    pub(crate) cmdline: CommandLine,
    /// Whether the guest gets ACPI tables.
    pub(crate) acpi: bool,
    /// Whether the boot files are looked at beside the launch.
    pub(crate) preflight: bool,
    /// Whether the console of a run that ends badly is explained.
    pub(crate) explain: bool,
    /// The disks.
    pub(crate) disks: Vec<Disk>,
    /// The number of disks.
    pub(crate) disk_count: DiskCount,
    /// The console.
    pub(crate) console: Console,
    /// What it may use of the host.
    pub(crate) limits: RunLimits,
    /// Device and inode of every input, none of which the console may be written to.
    pub(crate) inputs: Vec<(u64, u64)>,
}

struct Checker {
    problems: Vec<Problem>,
    inputs: Vec<(u64, u64)>,
}

/// Checks `draft`; creates nothing.
///
/// # Errors
/// Everything that is wrong.
pub(crate) fn check(draft: Draft, host: Host) -> Result<Plan, Vec<Problem>> {
    let mut checker = Checker { problems: Vec::new(), inputs: Vec::new() };
    if let Some(Ok(opened)) = draft.config_file.as_deref().map(|path| open_file(path, Kind::Regular, false)) {
        checker.inputs.push(opened.identity);
    }
    let vcpus = checker.vcpus(draft.vcpus.as_ref(), host);
    let vcpus_given = vcpus.zip(draft.vcpus.as_ref().map(|given| given.origin.clone()));
    draft.gic.as_ref().and_then(|given| checker.take(hardware::gic_is_for_arm64(given)));
    let gic = checker.take(hardware::gic(draft.gic.as_ref(), vcpus_given, host));
    let cpus = checker.take(hardware::cpus(draft.cpus.as_ref(), host));
    let memory = checker.memory(draft.memory.as_ref(), draft.huge_pages.as_ref());
    let kernel = checker.kernel(&draft);
    let initrd = draft.initrd.as_ref().and_then(|initrd| checker.boot_file(initrd));
    if let (Some(memory), Some(kernel)) = (memory, &kernel) {
        checker.fits(&draft, memory, kernel, initrd.as_ref());
    }
    let cmdline = checker.cmdline(&draft);
    let disks = checker.disks(draft.disks);
    let disk_count = DiskCount::try_from(u8::try_from(disks.len()).unwrap_or(u8::MAX)).ok();
    let console = checker.console(draft.console.as_deref(), draft.limit.as_ref());
    let limits = limits::check(&draft.limits, draft.limit.as_ref(), &mut checker.problems);
    let initrd_is_right = draft.initrd.is_some() == initrd.is_some();
    match (vcpus.zip(gic).zip(cpus), memory, kernel, cmdline, disk_count) {
        (Some(((vcpus, gic), cpus)), Some(memory), Some((kernel, _)), Some(cmdline), Some(disk_count))
            if checker.problems.is_empty() && initrd_is_right =>
        {
            Ok(Plan {
                vcpus,
                gic,
                cpus,
                debug: draft.debug,
                memory,
                huge_pages: draft.huge_pages.map(|given| given.value),
                kernel,
                initrd: initrd.map(|(initrd, _)| initrd),
                cmdline,
                acpi: draft.acpi.unwrap_or(true),
                preflight: draft.preflight.unwrap_or(true),
                explain: draft.explain.unwrap_or(true),
                disks,
                disk_count,
                console,
                limits,
                inputs: checker.inputs,
            })
        }
        _ => Err(checker.problems),
    }
}

impl Checker {
    fn problem(&mut self, origin: &Origin, what: impl Into<String>, right: impl Into<String>) {
        self.problems.push(Problem::new(origin, what, right));
    }

    fn take<T>(&mut self, checked: Result<T, Problem>) -> Option<T> {
        checked.map_err(|problem| self.problems.push(problem)).ok()
    }

    fn vcpus(&mut self, given: Option<&Given<i128>>, host: Host) -> Option<VcpuCount> {
        let Some(given) = given else { return VcpuCount::try_from(1).ok() };
        let most = host.max_vcpus.map_or(VcpuCount::MAX, |offered| offered.min(VcpuCount::MAX));
        let count = u8::try_from(given.value).ok().filter(|&count| count <= most);
        match count.and_then(|count| VcpuCount::try_from(count).ok()) {
            Some(count) => Some(count),
            None => {
                let right = match host.max_vcpus {
                    Some(offered) if offered < VcpuCount::MAX => {
                        let why = if hardware::has_gic_v2_only(host) { ", as many as its GICv2 serves" } else { "" };
                        format!("this host's KVM offers 1 to {most}{why}")
                    }
                    _ => format!("write 1 to {most}"),
                };
                self.problem(&given.origin, format!("is {}", given.value), right);
                None
            }
        }
    }

    fn memory(&mut self, given: Option<&Given<u64>>, huge: Option<&Given<HugePages>>) -> Option<MemoryBytes> {
        let bytes = given.map_or(DEFAULT_MEMORY_BYTES, |given| given.value);
        let page = huge.map_or(MemoryBytes::GRANULE, |huge| huge.value.bytes());
        let origin = match (given, huge) {
            (Some(given), _) => given.origin.clone(),
            (None, Some(huge)) => huge.origin.clone(),
            (None, None) => Origin::flag("--memory"),
        };
        if bytes == 0 || !bytes.is_multiple_of(page) {
            let right = format!(
                "write a multiple of {}, such as {}",
                show_size(page),
                show_size(page.saturating_mul(bytes.div_ceil(page).max(1),))
            );
            self.problem(&origin, format!("guest memory is {}", show_size(bytes)), right);
            return None;
        }
        match MemoryBytes::try_from(bytes) {
            Ok(memory) => Some(memory),
            Err(_) => {
                self.problem(&origin, format!("guest memory is {}", show_size(bytes)), "write 1 TiB or less");
                None
            }
        }
    }

    fn kernel(&mut self, draft: &Draft) -> Option<(Input, u64)> {
        match &draft.kernel {
            Some(kernel) => self.boot_file(kernel),
            None => {
                if !draft.kernel_named {
                    let right = "name the kernel image: broker run -k vmlinuz, or broker run config.toml";
                    self.problem(&Origin::flag("--kernel"), "is missing", right);
                }
                None
            }
        }
    }

    fn boot_file(&mut self, given: &Given<PathBuf>) -> Option<(Input, u64)> {
        match open_file(&given.value, Kind::Regular, false) {
            Ok(opened) if opened.bytes == 0 => {
                self.problem(&given.origin, format!("{} is empty", given.value.display()), "name a file with content");
                None
            }
            Ok(opened) => {
                self.inputs.push(opened.identity);
                Some((Input { path: given.value.clone(), file: opened.file }, opened.bytes))
            }
            Err(error) => {
                let what = format!("{} {error}", given.value.display());
                self.problem(&given.origin, what, "name a regular file that this user can read");
                None
            }
        }
    }

    /// A rule of thumb that never refuses what could boot: the loader, which reads the headers, knows exactly.
    fn fits(&mut self, draft: &Draft, memory: MemoryBytes, kernel: &(Input, u64), initrd: Option<&(Input, u64)>) {
        // A Linux kernel unpacks itself beside its image; one of a few kilobytes is a bare-metal guest.
        let room = kernel.1.saturating_mul(4).saturating_add(1 << 20).min(16 << 20);
        let initrd_bytes = initrd.map_or(0, |(_, bytes)| *bytes);
        let needed = kernel.1.saturating_add(initrd_bytes).saturating_add(room);
        if memory.get() < needed {
            let origin = match (&draft.memory, &draft.kernel) {
                (Some(given), _) => given.origin.clone(),
                (None, Some(kernel)) => kernel.origin.clone(),
                (None, None) => Origin::flag("--memory"),
            };
            let right = format!(
                "kernel ({} KiB) and initrd ({} KiB) need at least {}",
                kernel.1.div_ceil(1024),
                initrd_bytes.div_ceil(1024),
                show_size(needed.next_multiple_of(MemoryBytes::GRANULE))
            );
            self.problem(&origin, format!("guest memory is {}", show_size(memory.get())), right);
        }
    }

    fn cmdline(&mut self, draft: &Draft) -> Option<CommandLine> {
        let given = draft.cmdline.as_ref().map_or("", |given| given.value.as_str());
        let root = draft.disks.first().filter(|_| draft.initrd.is_none()).map(|disk| disk.mode);
        let line = complete_cmdline(given, draft.debug, draft.acpi.unwrap_or(true), root);
        match CommandLine::try_from(line) {
            Ok(line) => Some(line),
            Err(error) => {
                let origin =
                    draft.cmdline.as_ref().map_or_else(|| Origin::flag("--params"), |given| given.origin.clone());
                self.problem(&origin, error.to_string(), "this counts the words that the broker adds");
                None
            }
        }
    }

    fn disks(&mut self, drafts: Vec<DraftDisk>) -> Vec<Disk> {
        if let Some(first) = drafts.get(usize::from(DiskCount::MAX)) {
            let what = format!("there are {} disks", drafts.len());
            self.problem(&first.path.origin, what, format!("a machine has at most {}", DiskCount::MAX));
        }
        let mut seen: HashMap<(u64, u64), (Origin, bool)> = HashMap::new();
        let mut ids: HashMap<String, Origin> = HashMap::new();
        let mut disks = Vec::new();
        for (index, draft) in drafts.into_iter().enumerate() {
            let id = self.disk_id(index, &draft, &mut ids);
            let origin = draft.path.origin;
            let (opened, capacity) = match open_disk(&draft.path.value, draft.mode) {
                Ok(opened) => opened,
                Err((what, right)) => {
                    self.problem(&origin, what, right);
                    continue;
                }
            };
            let engine = draft.engine.as_ref().map_or(DiskEngine::Sync, |engine| engine.value);
            if let Some(engine) =
                draft.engine.filter(|_| draft.mode == DiskMode::Ephemeral && engine == DiskEngine::IoUring)
            {
                self.problem(&engine.origin, EPHEMERAL_URING.0, EPHEMERAL_URING.1);
            }
            let writes = draft.mode == DiskMode::ReadWrite;
            if self.inputs.contains(&opened.identity) && writes && !seen.contains_key(&opened.identity) {
                let what = format!("{} is also an input of this machine", draft.path.value.display());
                self.problem(&origin, what, "use another file, or mode \"ephemeral\"");
            }
            match seen.get(&opened.identity) {
                Some((other, other_writes)) if writes || *other_writes => {
                    let what = format!("{} is the same image as in {other}", draft.path.value.display());
                    self.problem(
                        &origin,
                        what,
                        "a disk that is written to must be alone: use mode \"ephemeral\" or a copy",
                    );
                }
                Some(_) => {}
                None => {
                    seen.insert(opened.identity, (origin, writes));
                }
            }
            self.inputs.push(opened.identity);
            if let Some(id) = id {
                disks.push(Disk { path: draft.path.value, file: opened.file, mode: draft.mode, engine, capacity, id });
            }
        }
        disks
    }

    fn disk_id(&mut self, index: usize, draft: &DraftDisk, ids: &mut HashMap<String, Origin>) -> Option<DiskId> {
        let (text, origin) = match &draft.id {
            Some(given) => (given.value.clone(), &given.origin),
            None => (format!("disk{index}"), &draft.path.origin),
        };
        if let Some(other) = ids.insert(text.clone(), origin.clone()) {
            self.problem(
                origin,
                format!("the disk id {text:?} is also that of {other}"),
                "give each disk an id of its own",
            );
            return None;
        }
        match DiskId::try_from(text) {
            Ok(id) => Some(id),
            Err(error) => {
                self.problem(origin, error.to_string(), "such as \"root\"");
                None
            }
        }
    }

    fn console(&mut self, outputs: Option<&[Given<Output>]>, limit: Option<&Given<u64>>) -> Console {
        let limit_bytes = limit.map_or(DEFAULT_CONSOLE_LIMIT_BYTES, |given| given.value);
        let mut console = Console { stdio: outputs.is_none(), files: Vec::new(), limit_bytes };
        if let Some(zero) = limit.filter(|given| given.value == 0) {
            self.problem(&zero.origin, "is 0", "write a size such as \"16MiB\", or output = \"none\"");
        }
        let outputs = outputs.unwrap_or(&[]);
        for output in outputs {
            match &output.value {
                Output::Stdio => console.stdio = true,
                Output::None if outputs.len() > 1 => {
                    self.problem(
                        &output.origin,
                        "is \"none\" beside other outputs",
                        "leave \"none\" out, or the others",
                    );
                }
                Output::None => {}
                Output::File(path) => {
                    self.console_file(path, &output.origin);
                    if console.files.contains(path) {
                        self.problem(&output.origin, format!("{} is named twice", path.display()), "name it once");
                    }
                    console.files.push(path.clone());
                }
            }
        }
        if let Some(last) = outputs.last().filter(|_| console.files.len().saturating_add(1) > MAX_OUTPUTS) {
            self.problem(&last.origin, "there are too many files", "write at most 3 files");
        }
        console
    }

    fn console_file(&mut self, path: &Path, origin: &Origin) {
        if let Ok(stat) = stat(path) {
            if file_type(&stat) != SFlag::S_IFREG {
                self.problem(
                    origin,
                    format!("{} is no regular file", path.display()),
                    "name a file that can be written",
                );
            } else if self.inputs.contains(&(stat.st_dev, stat.st_ino)) {
                let what = format!("{} is an input of this machine", path.display());
                self.problem(origin, what, "name another file; this one would be overwritten");
            } else if nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_err() {
                self.problem(
                    origin,
                    format!("{} cannot be written", path.display()),
                    "name a file that can be written",
                );
            }
            return;
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            self.problem(origin, format!("the folder {} does not exist", folder.display()), "make it, or name another");
        }
    }
}

#[cfg(test)]
mod tests;
