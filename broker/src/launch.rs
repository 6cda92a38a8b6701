//! The launch: memory, sockets and events, and the children side by side, each with the descriptors of its row.
//!
//! Returns as soon as all children are started; the supervisor waits for them, checks their jails and starts the guest.
//! When something fails half-way, dropping what was started kills and reaps it.

use crate::cgroup::Confinement;
use crate::config::{Plan, RunLimits};
use crate::console::{self, ConsoleError, ConsoleFds};
use crate::cores::{self, Cookie};
use crate::ends::{End, Reason};
use crate::files::{self, FileError};
use crate::inspector::{self, InspectorError};
use crate::memory::{self, MemoryError};
use crate::preflight;
use crate::process::{Role, Spawner, StartError, Supervised};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use policies::Process;
use policies::spawn::Limits;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use wire::clock::now_ns;
use wire::message::{
    ConsoleOutput, DiskEngine, DiskMode, StartBlock, StartLoader, StartSerial, StartVmm, URING_WORKERS,
};
use wire::{Channel, ChannelError, DiskId, MemoryBytes, SectorCount};

/// The stack of a vCPU's thread, which counts as the vmm's data.
const THREAD_STACK_BYTES: u64 = 2 << 20;
/// An ephemeral disk's map takes this part of its size, of which only touched pages exist: two bits for 4 KiB.
const OVERLAY_MAP_SHARE: u64 = 16 << 10;

/// Why a launch failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// /dev/kvm cannot be opened.
    #[error("/dev/kvm cannot be opened: {}{}", .0.desc(), kvm_hint(*.0))]
    Kvm(Errno),
    /// Guest memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The console cannot be opened.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A disk image cannot be used.
    #[error("the disk image {}", .0.display())]
    Disk(PathBuf, #[source] FileError),
    /// Sockets or events cannot be made.
    #[error("the connections between the processes cannot be made")]
    Connections(#[source] Errno),
    /// The channel between vmm and serial cannot be made.
    #[error("the connections between the processes cannot be made")]
    Channel(#[from] ChannelError),
    /// The processes cannot be confined.
    #[error("the processes cannot be confined")]
    Confine(#[source] std::io::Error),
    /// A limit was asked for that only a cgroup can keep.
    #[error(
        "limits.cpus needs a cgroup with the cpu controller, and there is none ({0}); leave it out, or start the broker \
         where it may make cgroups, such as by `systemd-run --scope -p Delegate=yes`"
    )]
    NoCpuController(String),
    /// The broker cannot leave the cores of its processes.
    #[error("the broker cannot keep off the cores of its processes")]
    Cores(#[source] Errno),
    /// A child cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The console cannot be recorded.
    #[error("the console cannot be recorded")]
    Recording(#[from] InspectorError),
}

fn kvm_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT | Errno::ENXIO | Errno::ENODEV => {
            "; load the module kvm_intel or kvm_amd, or enable virtualization in the firmware"
        }
        Errno::EACCES | Errno::EPERM => "; put this user into the group kvm, or run as root",
        _ => "",
    }
}

impl LaunchError {
    /// As the end of a run.
    pub(crate) fn into_end(self) -> End {
        let reason = match &self {
            Self::Start(StartError::Spawn(_)) => Reason::JailFailed,
            _ => Reason::HostError,
        };
        End::new(reason, format!("{:#}", anyhow::Error::from(self)))
    }
}

/// A disk's connections, the vmm's side.
struct Wiring {
    vmm: OwnedFd,
    kick: OwnedFd,
    call: OwnedFd,
}

/// What was started.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Whether the children were asked to be audited.
    pub(crate) audit: bool,
    /// The children; the first may be a loader.
    pub(crate) processes: Vec<Supervised>,
    /// The terminal that has to be raw while the guest runs.
    pub(crate) terminal: Option<OwnedFd>,
    /// Shared descriptors whose flags are put back at the end.
    pub(crate) borrowed: Vec<crate::console::BorrowedFlags>,
    /// The names of the kernel and of the initrd.
    pub(crate) boot_files: (String, String),
    /// With `--debug`: the number of vCPUs whose registers are told at a bad end.
    pub(crate) dumps: Option<u8>,
    /// What each console output is called.
    pub(crate) console_names: Vec<String>,
    /// What the run may use.
    pub(crate) limits: RunLimits,
    /// What limits the processes.
    pub(crate) confinement: Confinement,
    /// The core scheduling cookie of the processes, where the kernel has that.
    pub(crate) cookie: Option<Cookie>,
    /// Those that look at boot files and wait to explain a bad end.
    pub(crate) inspectors: preflight::Started,
}

/// Makes what the processes of `spawner` are confined by, up to `tasks` threads. `guest_bytes` is what a cgroup counts of
/// the guest's memory.
///
/// # Errors
/// When a limit cannot be kept here.
pub(crate) fn confine(
    spawner: &mut Spawner,
    limits: &RunLimits,
    guest_bytes: u64,
    tasks: u64,
) -> Result<Confinement, LaunchError> {
    let confinement = Confinement::new(limits, guest_bytes, tasks);
    if limits.cpu_percent.is_some() && !confinement.has("cpu") {
        return Err(LaunchError::NoCpuController(confinement.why_not().unwrap_or_default()));
    }
    if limits.memory_bytes.is_some() && !confinement.has("memory") {
        let why = confinement.why_not().unwrap_or_default();
        tracing::warn!("limits.memory is kept for each process, not for all of them together: {why}");
    }
    spawner.confine(&confinement, limits).map_err(LaunchError::Confine)?;
    Ok(confinement)
}

/// The most data of a process where no cgroup keeps `limits.memory`; `needs` is what it has for itself from the start.
fn data_bytes(limits: &RunLimits, confinement: &Confinement, needs: u64) -> Option<u64> {
    limits.memory_bytes.filter(|_| !confinement.has("memory")).map(|bytes| bytes.saturating_add(needs))
}

/// Starts the children of a machine.
///
/// # Errors
/// When the host lacks something; nothing is left of what was started.
pub(crate) fn launch(plan: Plan, spawner: &mut Spawner, audit: bool) -> Result<Launched, LaunchError> {
    let begun_ns = now_ns();
    let kvm = open("/dev/kvm", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(LaunchError::Kvm)?;
    for disk in &plan.disks {
        files::lock_image(&disk.file, disk.mode).map_err(|error| LaunchError::Disk(disk.path.clone(), error))?;
    }
    // The loader, serial, the vmm with its control thread.
    let tasks = plan.disks.iter().map(|disk| disk_tasks(disk.engine)).fold(3, u64::saturating_add);
    let tasks = tasks.saturating_add(plan.vcpus.get().into());
    // Huge pages are counted by a controller of their own (hugetlb).
    let guest_bytes = if plan.huge_pages.is_some() { 0 } else { plan.memory.get() };
    let confinement = confine(spawner, &plan.limits, guest_bytes, tasks)?;
    let cores = cores::Shared::take();
    spawner.timings().own("files, cgroup", begun_ns);
    spawner.share_empty_net().map_err(StartError::Spawn)?;
    let mut children = Children::begin(&plan, spawner, &confinement)?;
    let (recording, recorded) = plan.explain.then(inspector::recording).transpose()?.unzip();
    let inspectors = preflight::start(&plan, spawner, audit, recorded);

    // While they build the first halves of their jails, all that the machine is made of is made.
    let begun_ns = now_ns();
    let memory = memory::guest_memory(plan.memory, plan.huge_pages)?;
    let ring = memory::posted_write_ring()?;
    let (doorbell, serial_irq) = (event()?, event()?);
    let (vmm_serial, serial_vmm) = Channel::pair()?;
    let is_written = plan.disks.iter().any(|disk| disk.mode != DiskMode::ReadOnly);
    let counter = match plan.limits.disk_write_bytes.filter(|_| is_written) {
        Some(bytes) => Some((memory::write_counter()?, bytes)),
        None => None,
    };
    tell_loader(&mut children.loader, &plan, audit, &memory)?;
    let mut wiring = Vec::new();
    for (child, disk) in children.blocks.iter_mut().zip(&plan.disks) {
        let (vmm, device) = stream_pair()?;
        wiring.push(Wiring { vmm, kick: event()?, call: event()? });
        let disk = BlockDisk {
            path: &disk.path,
            file: &disk.file,
            mode: disk.mode,
            engine: disk.engine,
            capacity: disk.capacity,
            id: &disk.id,
            socket: device,
            counter: counter.as_ref().map(|(fd, bytes)| (fd.as_fd(), *bytes)),
        };
        disk.tell(child, audit)?;
    }
    let mut fds =
        vec![kvm.as_fd(), memory.as_fd(), vmm_serial.as_fd(), ring.as_fd(), doorbell.as_fd(), serial_irq.as_fd()];
    fds.extend(wiring.iter().flat_map(|disk| [disk.vmm.as_fd(), disk.kick.as_fd(), disk.call.as_fd()]));
    let start = StartVmm {
        audit,
        memory: plan.memory,
        vcpus: plan.vcpus,
        disks: plan.disk_count,
        gic: plan.gic,
        cpus: plan.cpus.clone(),
        debug: plan.debug,
    };
    children.vmm.tell(&start, &fds)?;
    // Last of all that can fail, as it empties files.
    let console = ConsoleFds::open(&plan.console, &plan.inputs)?;
    let wires = [serial_vmm.as_fd(), ring.as_fd(), doorbell.as_fd(), serial_irq.as_fd()];
    tell_serial(&mut children.serial, &plan, audit, &console, &wires, recording.as_ref())?;
    spawner.timings().own("memory, sockets, console", begun_ns);
    let cookie = cores.leave().map_err(LaunchError::Cores)?;
    confinement.log(cookie.is_some());
    let path = |path: &Path| path.display().to_string();
    let stdio = (console.outputs.len() > plan.console.files.len()).then(|| "standard output".to_owned());
    Ok(Launched {
        audit,
        processes: children.into_vec(),
        terminal: console.terminal,
        dumps: plan.debug.then(|| plan.vcpus.get()),
        borrowed: console.borrowed,
        boot_files: (path(&plan.kernel.path), plan.initrd.as_ref().map(|file| path(&file.path)).unwrap_or_default()),
        limits: plan.limits,
        confinement,
        cookie,
        inspectors,
        console_names: stdio.into_iter().chain(plan.console.files.iter().map(|file| path(file))).collect(),
    })
}

/// The processes of a machine, before they are told anything.
struct Children {
    loader: Supervised,
    vmm: Supervised,
    serial: Supervised,
    blocks: Vec<Supervised>,
}

impl Children {
    /// Starts them, the one that takes longest first.
    fn begin(plan: &Plan, spawner: &mut Spawner, confinement: &Confinement) -> Result<Self, LaunchError> {
        let data = |needs| data_bytes(&plan.limits, confinement, needs);
        let limits = |process, file_size_bytes, data_bytes| Limits {
            data_bytes,
            ..Limits::for_process(process, plan.memory, file_size_bytes)
        };
        let stacks = u64::from(plan.vcpus.get()).saturating_mul(THREAD_STACK_BYTES);
        let vmm = spawner.begin(Role::Vmm, limits(Process::Vmm, None, data(stacks)))?;
        let loader = spawner.begin(Role::Loader, limits(Process::Loader, Some(0), data(0)))?;
        let serial =
            spawner.begin(Role::Serial, limits(Process::Serial, console::file_size_bytes(&plan.console), data(0)))?;
        let blocks = (0u8..).zip(&plan.disks).map(|(number, disk)| {
            let limits = block_limits(disk.mode, disk.engine, disk.capacity, plan.memory);
            let data_bytes = data(disk.capacity.bytes() / OVERLAY_MAP_SHARE);
            spawner.begin(Role::Block(number), Limits { data_bytes, ..limits })
        });
        let blocks = blocks.collect::<Result<_, _>>()?;
        Ok(Self { loader, vmm, serial, blocks })
    }

    /// The loader first, then the others in the order in which they are reported.
    fn into_vec(self) -> Vec<Supervised> {
        [self.loader, self.vmm, self.serial].into_iter().chain(self.blocks).collect()
    }
}

fn tell_loader(child: &mut Supervised, plan: &Plan, audit: bool, memory: &OwnedFd) -> Result<(), StartError> {
    let start = StartLoader {
        audit,
        memory: plan.memory,
        vcpus: plan.vcpus,
        disks: plan.disk_count,
        gic: plan.gic,
        has_initrd: plan.initrd.is_some(),
        acpi: plan.acpi,
        cmdline: plan.cmdline.clone(),
    };
    let mut fds = vec![memory.as_fd(), plan.kernel.file.as_fd()];
    fds.extend(plan.initrd.as_ref().map(|initrd| initrd.file.as_fd()));
    child.tell(&start, &fds)
}

fn tell_serial(
    child: &mut Supervised,
    plan: &Plan,
    audit: bool,
    console: &ConsoleFds,
    wires: &[BorrowedFd<'_>],
    recording: Option<&OwnedFd>,
) -> Result<(), StartError> {
    let outputs: Vec<ConsoleOutput> = console.outputs.iter().map(|(kind, _)| *kind).collect();
    let start = StartSerial {
        audit,
        has_input: console.input.is_some(),
        escapes: console.terminal.is_some(),
        outputs,
        limit_bytes: plan.limits.console_bytes,
        has_recording: recording.is_some(),
    };
    let mut fds = wires.to_vec();
    fds.extend(console.input.as_ref().map(AsFd::as_fd));
    fds.extend(console.outputs.iter().map(|(_, fd)| fd.as_fd()));
    fds.extend(recording.map(AsFd::as_fd));
    child.tell(&start, &fds)
}

/// The tasks of a disk's process, and of the kernel for it.
pub(crate) fn disk_tasks(engine: DiskEngine) -> u64 {
    match engine {
        DiskEngine::Sync => 1,
        DiskEngine::IoUring => URING_WORKERS.into_iter().map(u64::from).fold(1, u64::saturating_add),
    }
}

/// What the process of a disk is told.
#[derive(Debug)]
pub(crate) struct BlockDisk<'a> {
    /// The image's name.
    pub(crate) path: &'a Path,
    /// The image.
    pub(crate) file: &'a File,
    /// How it is written to.
    pub(crate) mode: DiskMode,
    /// How its bytes are moved.
    pub(crate) engine: DiskEngine,
    /// Its size.
    pub(crate) capacity: SectorCount,
    /// The serial number.
    pub(crate) id: &'a DiskId,
    /// The connected vhost-user socket.
    pub(crate) socket: OwnedFd,
    /// The counter of what the guest writes to all its disks, and how much it may, if that is limited.
    pub(crate) counter: Option<(BorrowedFd<'a>, u64)>,
}

/// The limits of the process of a disk that will map `memory` at most.
pub(crate) fn block_limits(mode: DiskMode, engine: DiskEngine, capacity: SectorCount, memory: MemoryBytes) -> Limits {
    /// The overlay is written in whole clusters.
    const CLUSTER_BYTES: u64 = 4096;
    let file_size_bytes = match mode {
        DiskMode::ReadOnly => 0,
        DiskMode::Ephemeral | DiskMode::ReadWrite => capacity.bytes().next_multiple_of(CLUSTER_BYTES),
    };
    // The rings take 40 KiB; those of all disks of an ordinary user are counted together.
    let locked_bytes = if engine == DiskEngine::IoUring { 8 << 20 } else { 0 };
    Limits { locked_bytes, ..Limits::for_process(Process::VirtioBlk, memory, Some(file_size_bytes)) }
}

impl BlockDisk<'_> {
    /// Tells the process of the disk.
    ///
    /// # Errors
    /// When an ephemeral disk has no place to write to, or the process cannot be told.
    pub(crate) fn tell(&self, child: &mut Supervised, audit: bool) -> Result<(), LaunchError> {
        let overlay = match self.mode {
            DiskMode::Ephemeral => {
                Some(files::overlay().map_err(|error| LaunchError::Disk(self.path.to_owned(), error))?)
            }
            DiskMode::ReadOnly | DiskMode::ReadWrite => None,
        };
        // Nothing is counted where nothing can be written.
        let counter = self.counter.filter(|_| self.mode != DiskMode::ReadOnly);
        let start = StartBlock {
            audit,
            mode: self.mode,
            engine: self.engine,
            capacity: self.capacity,
            id: self.id.clone(),
            write_limit_bytes: counter.map(|(_, bytes)| bytes),
        };
        let mut fds = vec![self.socket.as_fd(), self.file.as_fd()];
        fds.extend(overlay.as_ref().map(AsFd::as_fd));
        fds.extend(counter.map(|(fd, _)| fd));
        let again = match self.engine {
            DiskEngine::Sync => None,
            DiskEngine::IoUring => Some(self.open_again()?),
        };
        fds.extend(again.as_ref().map(AsFd::as_fd));
        if self.engine == DiskEngine::IoUring {
            child.given.allow_uring();
        }
        Ok(child.tell(&start, &fds)?)
    }

    /// The image for a ring, without its lock: the kernel lets go of a ring's files a while after its process is gone, and
    /// the lock must go with the process.
    fn open_again(&self) -> Result<OwnedFd, LaunchError> {
        let access = if self.mode == DiskMode::ReadWrite { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        files::reopen(self.file, access)
            .map_err(|errno| LaunchError::Disk(self.path.to_owned(), FileError::Open(errno)))
    }
}

fn event() -> Result<OwnedFd, LaunchError> {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map(OwnedFd::from)
        .map_err(LaunchError::Connections)
}

fn stream_pair() -> Result<(OwnedFd, OwnedFd), LaunchError> {
    socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).map_err(LaunchError::Connections)
}
