//! The messages of each pair of processes, as types.
//!
//! The first message on every control channel is the child's `Start…`, from the broker; with it come the file
//! descriptors of the child's row in `docs/ARCHITECTURE.md`, in the order given at each type. The child then builds its
//! jail and answers `Ready`; what it reads before that, it reads from the broker alone.

mod inspector;

pub use inspector::{
    Architecture, DiskSeen, Exits, FromInspector, HostSeen, InspectedGuest, InspectorTask, LogForm, MachineSeen,
    StartInspector, ToInspector, VcpuSeen,
};

use crate::value::{CommandLine, CpuList, DiskCount, DiskId, MemoryBytes, SectorCount, Text, VcpuCount};
use serde::{Deserialize, Serialize};

/// What a child says of the jail that it has just entered. The broker believes none of it: it looks in /proc.
///
/// With `audit`, one seccomp listener of each filter comes along as a file descriptor, in the order of the filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lockdown {
    /// The Landlock ABI that was enforced, 0 where the kernel has none.
    pub landlock_abi: u8,
    /// Whether the kernel refuses memory that is writable and executable (`PR_SET_MDWE`, Linux 6.3).
    pub mdwe: bool,
    /// The number of seccomp listeners that come with this message.
    pub listeners: u8,
    /// When it did what, for `--timings`.
    pub times: Times,
}

/// When a child took which step, by [`crate::clock::now_ns`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Its `main` began.
    pub begun_ns: u64,
    /// It had prepared what needs more rights than its work, and began to shut its jail.
    pub prepared_ns: u64,
}

/// The version of an aarch64 machine's interrupt controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GicVersion {
    /// GICv2: up to 8 vCPUs.
    V2,
    /// GICv3.
    V3,
}

/// broker → loader. Descriptors: guest memory, kernel image (read-only), then the initrd (read-only) if `has_initrd`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartLoader {
    /// Report missing syscalls instead of killing.
    pub audit: bool,
    /// The size of guest memory.
    pub memory: MemoryBytes,
    /// The number of virtual CPUs, for the MADT or the FDT.
    pub vcpus: VcpuCount,
    /// The number of virtio-mmio block devices, for the DSDT or the FDT.
    pub disks: DiskCount,
    /// The interrupt controller, for the FDT; of no meaning on x86_64.
    pub gic: GicVersion,
    /// Whether an initrd comes along.
    pub has_initrd: bool,
    /// Whether the guest gets ACPI tables. Without them, virtio devices are named on the command line.
    pub acpi: bool,
    /// The kernel command line, complete but for the `virtio_mmio.device=` words that the loader adds without ACPI.
    pub cmdline: CommandLine,
}

/// broker → loader, after `Ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToLoader {
    /// The jail was checked: read the boot files.
    Load,
}

/// Which file a loader's refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootFile {
    /// The kernel image.
    Kernel,
    /// The initial RAM disk.
    Initrd,
}

/// How the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// x86_64, 64-bit boot protocol ("Linux x86 boot protocol", 64-bit boot): long mode, rsi = `boot_params`.
    X86Long {
        /// Initial rip.
        entry: u64,
        /// Guest-physical address of the zero page.
        boot_params: u64,
        /// Guest-physical address of the top-level page table.
        page_table: u64,
        /// Guest-physical address of the global descriptor table (null, code 64, data, each 8 bytes).
        gdt: u64,
    },
    /// x86_64, PVH: 32-bit protected mode without paging, ebx = `start_info`.
    X86Pvh {
        /// Initial eip.
        entry: u32,
        /// Guest-physical address of `hvm_start_info`.
        start_info: u32,
        /// Guest-physical address of the global descriptor table (null, code 32, data, task state, each 8 bytes).
        gdt: u32,
    },
    /// arm64 ("Booting AArch64 Linux"): EL1, x0 = `fdt`.
    Arm64 {
        /// Initial pc.
        entry: u64,
        /// Guest-physical address of the flattened device tree.
        fdt: u64,
    },
}

/// loader → broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromLoader {
    /// In its jail; nothing untrusted was read yet.
    Ready(Lockdown),
    /// Guest memory is prepared; the loader exits with status 0 after this.
    Loaded(Entry),
    /// A boot file cannot be booted; the text says why and what would be right, without the file's name.
    Refused {
        /// The file at fault.
        file: BootFile,
        /// Why.
        why: Text,
    },
    /// The host is at fault.
    Failed(Text),
}

/// broker → vmm. Descriptors: /dev/kvm, guest memory, the socket to serial, the posted-write ring (a memfd of
/// [`crate::ring::RING_BYTES`]), its doorbell eventfd, the serial irq eventfd, then for each disk: the vhost-user
/// socket, the kick eventfd and the call eventfd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartVmm {
    /// Report missing syscalls instead of killing.
    pub audit: bool,
    /// The size of guest memory.
    pub memory: MemoryBytes,
    /// The number of virtual CPUs.
    pub vcpus: VcpuCount,
    /// The number of disks.
    pub disks: DiskCount,
    /// The interrupt controller; of no meaning on x86_64.
    pub gic: GicVersion,
    /// The host's CPUs that may run vCPUs; empty for all.
    pub cpus: CpuList,
    /// Whether the vmm tells the registers of every vCPU before `Stopped`.
    pub debug: bool,
}

/// broker → vmm, after `Ready`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToVmm {
    /// All jails were checked and the guest is loaded: start the vCPUs.
    Run(Entry),
    /// Serial read the kernel's words for a halted system: look whether every vCPU has stopped for good.
    CheckHalted,
    /// Tell what was seen of the guest and, with `debug`, the registers of every vCPU. The guest stands still meanwhile.
    Dump,
}

/// Why the guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// ACPI S5, PSCI `SYSTEM_OFF`.
    PowerOff,
    /// ACPI reset register, keyboard controller reset, PSCI `SYSTEM_RESET`.
    Reset,
    /// Every vCPU waits with interrupts off.
    Halted,
    /// A triple fault of a vCPU.
    TripleFault,
    /// A device process broke the protocol, did not answer in time, or is gone.
    DeviceFailed {
        /// 0 is serial, 1 the first disk, and so on.
        device: u8,
        /// What it did.
        why: Text,
    },
    /// KVM refused to go on: `KVM_EXIT_INTERNAL_ERROR`, `KVM_EXIT_FAIL_ENTRY` or an error of `KVM_RUN`.
    KvmError(Text),
}

/// vmm → broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromVmm {
    /// In its jail, every thread of it; nothing untrusted was read yet.
    Ready(Lockdown),
    /// The vCPUs run.
    Running,
    /// The registers and the last exits of a vCPU: the answer to [`ToVmm::Dump`], one message for each vCPU that came out
    /// of the guest in time, and, with `debug`, also before `Stopped`.
    Registers {
        /// The vCPU, from 0.
        vcpu: u8,
        /// What there is to say, in lines.
        lines: Vec<Text>,
    },
    /// The guest ended; all vCPU threads are done and every posted write is in the ring. The vmm exits with status 0.
    Stopped(StopReason),
    /// KVM or the host refused the machine, before the jail was shut.
    NotBuilt(Text),
    /// It failed.
    Failed(Text),
    /// What was seen of the guest, after the registers: the end of the answer to [`ToVmm::Dump`], and also sent before
    /// `Stopped`.
    Seen(MachineSeen),
}

/// A console output of serial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleOutput {
    /// A terminal or a pipe: as fast as it takes the bytes, the guest waits meanwhile.
    Stream,
    /// A regular file: bytes beyond the limit are dropped and counted.
    File {
        /// The most bytes to write.
        limit_bytes: u64,
    },
}

/// broker → serial. Descriptors: the socket to vmm, the posted-write ring, its doorbell eventfd, the irq eventfd, the
/// console input if `has_input`, one for each output, then the recording (a memfd of
/// [`crate::recording::RECORDING_BYTES`]) if `has_recording`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartSerial {
    /// Report missing syscalls instead of killing.
    pub audit: bool,
    /// Whether an input descriptor comes along.
    pub has_input: bool,
    /// Whether the input is a terminal in raw mode, where Ctrl-A x leaves and Ctrl-A Ctrl-A is one Ctrl-A.
    pub escapes: bool,
    /// What the output descriptors are; at most 4.
    pub outputs: Vec<ConsoleOutput>,
    /// The most bytes that the guest may print; none for no limit.
    pub limit_bytes: Option<u64>,
    /// Whether a memfd for a recording of the console comes along.
    pub has_recording: bool,
}

/// broker → a device process, after `Ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDevice {
    /// The vmm is gone: finish what is in flight, report, and exit with status 0.
    Shutdown,
}

/// serial → broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromSerial {
    /// In its jail; nothing untrusted was read yet.
    Ready(Lockdown),
    /// The guest wrote its first byte.
    FirstByte {
        /// `CLOCK_MONOTONIC` in nanoseconds.
        at_ns: u64,
    },
    /// The console shows a kernel panic; sent once, with the line.
    Panic(Text),
    /// The console shows that the kernel halted the system.
    Halted,
    /// The user typed Ctrl-A x.
    Leave,
    /// The guest has printed as much as it may; sent once. What else it prints is lost.
    LimitReached,
    /// The answer to [`ToDevice::Shutdown`]: everything is written.
    Finished {
        /// Bytes that the guest sent.
        received_bytes: u64,
        /// Bytes dropped at each output, in the order of the outputs.
        dropped_bytes: Vec<u64>,
    },
    /// The host is at fault.
    Failed(Text),
}

/// vmm → serial, on their own socket: one register read. All posted writes before it are done first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialRead {
    /// The register's offset, 0 to 7.
    pub offset: u8,
}

/// serial → vmm: the register's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialValue {
    /// The value.
    pub value: u8,
}

/// How a disk is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskMode {
    /// The guest cannot write.
    ReadOnly,
    /// Writes go to an unnamed overlay file that ends with the process.
    Ephemeral,
    /// Writes go to the image.
    ReadWrite,
}

/// How a disk's process moves bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskEngine {
    /// One request after the other, by system calls.
    Sync,
    /// Many at once, by an io_uring that can do nothing else. Not for [`DiskMode::Ephemeral`].
    IoUring,
}

/// The most kernel threads that work for the io_uring of a disk: on what has an end, as all that a disk does, and on what may
/// have none.
pub const URING_WORKERS: [u32; 2] = [4, 1];

/// The size of the memfd with the counter of disk writes, a number of 64 bits at its start: a page.
pub const WRITE_COUNTER_BYTES: usize = 4096;

/// broker → virtio-blk. Descriptors: the vhost-user socket (connected), the disk image, the overlay file if `mode` is
/// [`DiskMode::Ephemeral`], the counter of disk writes if `write_limit_bytes` is given, and the image once more, opened anew, if
/// `engine` is [`DiskEngine::IoUring`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartBlock {
    /// Report missing syscalls instead of killing.
    pub audit: bool,
    /// How the disk is written to.
    pub mode: DiskMode,
    /// How it moves bytes.
    pub engine: DiskEngine,
    /// The size of the image.
    pub capacity: SectorCount,
    /// The serial number.
    pub id: DiskId,
    /// The most bytes that the guest may write to all its disks; none for no limit.
    pub write_limit_bytes: Option<u64>,
}

/// virtio-blk → broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromBlock {
    /// In its jail; nothing untrusted was read yet.
    Ready(Lockdown),
    /// The guest broke the virtio protocol; the device needs a reset. Sent at most once between resets.
    Broken(Text),
    /// The guest wanted to write more than it may; sent once. Such requests fail.
    LimitReached,
    /// The front end closed the connection or [`ToDevice::Shutdown`] came: everything is done.
    Finished,
    /// The host or the front end is at fault.
    Failed(Text),
}
