//! The command line.

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Boots an untrusted root filesystem in a KVM virtual machine built from several jailed processes.
#[derive(Debug, Parser)]
#[command(name = "broker", version, propagate_version = true)]
#[command(after_help = "See `broker run --help` for the exit codes, and `broker doctor` for what this host can do.")]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Says more: -v each jail that is built, -vv everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// The form of the log.
    #[arg(long, value_enum, default_value = "text", global = true, value_name = "FORM")]
    pub(crate) log_format: LogFormat,
    /// Appends the log to a file instead of writing it to standard error.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// Where the bulkhead-* binaries are [default: beside this program, or ../libexec/bulkhead from there].
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boots a virtual machine and stays until it ends.
    #[command(after_help = EXIT_CODES)]
    Run(RunArgs),
    /// Says everything that is wrong with a config, without starting anything.
    Check(CheckArgs),
    /// Says what an image or a kernel is and whether it will boot, without booting it.
    #[command(after_help = crate::inspector::inspect::EXIT_CODES)]
    Inspect(InspectArgs),
    /// Says what a console log means: what happened, why, and what to do.
    #[command(after_help = crate::inspector::explain::EXIT_CODES)]
    Explain(ExplainArgs),
    /// Runs one device process alone, for a vhost-user front end such as QEMU.
    Device(DeviceArgs),
    /// Says whether this host can run Bulkhead, and what it lacks.
    Doctor(DoctorArgs),
    /// Shows what the jailed processes may do, and what of that this host's kernel can enforce.
    Policy(PolicyArgs),
    /// Restores the terminal when the broker is gone (started by `broker run`).
    #[command(hide = true)]
    RestoreTerminal,
}

/// The exit codes, as `--help` shows them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes (the JSON reason in brackets):
   0  the guest powered off [guest-poweroff]
   1  the host could not run it [host-error]
   2  wrong usage or config [config]
   3  a boot file was refused [boot-refused]
   4  a jail could not be built [jail-failed]
   5  KVM failed [kvm-error]
  10  the guest rebooted [guest-reboot]
  11  the guest halted [guest-halted]
  12  the guest's kernel panicked [guest-panic]
  13  triple fault [triple-fault]
  14  left with Ctrl-A x [user-quit]
  20  a process of ours died [process-died]
  21  a process broke its seccomp policy [seccomp-violation]
  22  the host ran out of memory [out-of-memory]
  23  a process broke the protocol or failed [device-failed]
  30  limits.wall_time was reached [limit-wall-time]
  31  limits.cpu_time was reached [limit-cpu-time]
  32  limits.memory was reached [limit-memory]
  33  limits.console was reached [limit-console]
  34  limits.disk_writes was reached [limit-disk-writes]
 130  SIGINT [sigint]
 143  SIGTERM or SIGHUP [sigterm]";

/// Shows what is wrong with the command line, or the help that was asked for; gives the exit code, which of `broker inspect`
/// and `broker explain` is that of something that could not be looked at.
pub(crate) fn refuse(error: &clap::Error) -> std::process::ExitCode {
    // Nobody is left to be told where standard error is gone.
    error.print().unwrap_or(());
    let command = Cli::command();
    let is_command = |word: &str| command.get_subcommands().any(|one| one.get_name() == word);
    let chosen = std::env::args_os().skip(1).filter_map(|word| word.into_string().ok()).find(|word| is_command(word));
    let looks = chosen.is_some_and(|name| name == "inspect" || name == "explain");
    let code = if looks && error.use_stderr() {
        crate::inspector::inspect::WRONG_USAGE
    } else {
        u8::try_from(error.exit_code()).unwrap_or(1)
    };
    std::process::ExitCode::from(code)
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `broker run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The config file (TOML). Every flag below overrides what it says.
    pub(crate) config: Option<PathBuf>,
    /// The machine, when there is no config file.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Prints one JSON object at the end, as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
    /// Says at the end which process took which step of the run, from when to when, in microseconds; also in --json.
    #[arg(long)]
    pub(crate) timings: bool,
    /// Logs syscalls that a policy lacks instead of killing the process, and lists them at the end.
    #[arg(long)]
    pub(crate) audit: bool,
}

/// The machine by flags, in the manner of other VMMs.
#[derive(Debug, Default, Args)]
pub(crate) struct MachineArgs {
    /// The kernel image: bzImage or ELF.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// A raw disk image; read-only unless :ephemeral (writes vanish) or :rw follows; :io-uring has many requests in flight. Repeat it for more disks.
    #[arg(short, long = "disk", value_name = "FILE[:ro|:ephemeral|:rw][:io-uring]")]
    pub(crate) disk: Vec<String>,
    /// The number of virtual CPUs, 1 to 32.
    #[arg(short = 'c', long = "vcpus", visible_alias = "cpus", value_name = "N")]
    pub(crate) vcpus: Option<String>,
    /// Guest memory: MiB, or with a unit (512MiB, 4GiB).
    #[arg(short, long = "memory", visible_alias = "mem", value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// The kernel command line; console=, panic= and reboot= are added unless given, and root=/dev/vda for a disk without an initrd.
    #[arg(short = 'p', long = "params", visible_alias = "cmdline", value_name = "WORDS", allow_hyphen_values = true)]
    pub(crate) params: Option<String>,
    /// Where the guest's console goes: stdio, none or file=FILE; "serial" means stdio. Repeat it for several.
    #[arg(long, value_name = "WHERE")]
    pub(crate) console: Vec<String>,
    /// Gives the guest no ACPI tables; disks are named on the kernel command line then.
    #[arg(long)]
    pub(crate) no_acpi: bool,
    /// Does not look at the kernel, the initrd and the root disk beside the launch.
    #[arg(long)]
    pub(crate) no_preflight: bool,
    /// Does not explain the console of a run that ends badly.
    #[arg(long)]
    pub(crate) no_explain: bool,
    /// Ends the run after this time, such as 90s or 10m.
    #[arg(long, value_name = "TIME")]
    pub(crate) wall_time: Option<String>,
    /// Ends the run once its processes have used this much CPU time together, such as 90s or 10m.
    #[arg(long, value_name = "TIME")]
    pub(crate) cpu_time: Option<String>,
    /// Makes the guest's kernel talk early and say everything.
    #[arg(long)]
    pub(crate) debug: bool,
}

/// `broker inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A file system, an initramfs, a disk, an archive or a kernel.
    pub(crate) image: PathBuf,
    /// A kernel to look at beside it.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The guest's architecture [default: this host's].
    #[arg(long, value_enum)]
    pub(crate) arch: Option<ArchName>,
    /// The guest's kernel command line, for init=, rdinit= and root=.
    #[arg(short = 'p', long, alias = "params", value_name = "WORDS", default_value = "", hide_default_value = true)]
    #[arg(allow_hyphen_values = true)]
    pub(crate) cmdline: String,
    /// The guest's memory: MiB, or with a unit (512MiB, 4GiB).
    #[arg(short, long, visible_alias = "mem", value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Logs syscalls that the policy lacks instead of killing the process.
    #[arg(long)]
    pub(crate) audit: bool,
}

/// `broker explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The log; standard input for none or -.
    pub(crate) log: Option<PathBuf>,
    /// The architecture of the guest that printed it, where the log does not tell.
    #[arg(long, value_enum)]
    pub(crate) arch: Option<ArchName>,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Logs syscalls that the policy lacks instead of killing the process.
    #[arg(long)]
    pub(crate) audit: bool,
}

/// `broker check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The config file (TOML).
    pub(crate) config: PathBuf,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `broker device`.
#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Which device.
    #[command(subcommand)]
    pub(crate) device: Device,
}

/// The devices that run alone.
#[derive(Debug, Subcommand)]
pub(crate) enum Device {
    /// A disk (vhost-user-blk). Serves one connection, then ends.
    VirtioBlk(BlockArgs),
}

/// `broker device virtio-blk`.
#[derive(Debug, Args)]
pub(crate) struct BlockArgs {
    /// Where to listen; the socket is removed at the end.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// The raw disk image.
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: PathBuf,
    /// How the disk is written to.
    #[arg(long, value_enum, default_value = "read-only")]
    pub(crate) mode: Mode,
    /// How its bytes are moved.
    #[arg(long, value_enum, default_value = "sync")]
    pub(crate) engine: Engine,
    /// The serial number that the guest sees, up to 20 printable characters.
    #[arg(long, default_value = "disk0")]
    pub(crate) id: String,
    /// Logs syscalls that the policy lacks instead of killing the process.
    #[arg(long)]
    pub(crate) audit: bool,
    /// Prints one JSON object at the end.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a disk is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The guest cannot write.
    #[value(alias = "ro")]
    ReadOnly,
    /// Writes vanish at the end.
    Ephemeral,
    /// Writes go to the image.
    #[value(alias = "rw")]
    ReadWrite,
}

impl From<Mode> for wire::message::DiskMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::ReadOnly => Self::ReadOnly,
            Mode::Ephemeral => Self::Ephemeral,
            Mode::ReadWrite => Self::ReadWrite,
        }
    }
}

/// How a disk's bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// One request after the other.
    Sync,
    /// Many at once, by a restricted io_uring.
    IoUring,
}

impl From<Engine> for wire::message::DiskEngine {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Sync => Self::Sync,
            Engine::IoUring => Self::IoUring,
        }
    }
}

/// `broker doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `broker policy`.
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) task: PolicyTask,
}

/// What there is to know of policies.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyTask {
    /// Prints the system call filters in words, with the reason for each call.
    Show(PolicyShowArgs),
    /// Says what this host's kernel has of what the jails use, and what falls away without it. Exit code 1 when something
    /// is missing that no jail stands without.
    Check(PolicyCheckArgs),
}

/// `broker policy show`.
#[derive(Debug, Args)]
pub(crate) struct PolicyShowArgs {
    /// Only this process's filters.
    #[arg(value_enum)]
    pub(crate) process: Option<ProcessName>,
    /// The architecture [default: this host's].
    #[arg(long, value_enum)]
    pub(crate) arch: Option<ArchName>,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `broker policy check`.
#[derive(Debug, Args)]
pub(crate) struct PolicyCheckArgs {
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A jailed process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProcessName {
    /// Writes the kernel, the initrd and the boot tables into guest memory.
    Loader,
    /// Runs the vCPUs.
    Vmm,
    /// The serial console.
    Serial,
    /// One disk.
    VirtioBlk,
    /// Looks at an image, a kernel or a console log.
    Inspector,
}

impl From<ProcessName> for policies::Process {
    fn from(name: ProcessName) -> Self {
        match name {
            ProcessName::Loader => Self::Loader,
            ProcessName::Vmm => Self::Vmm,
            ProcessName::Serial => Self::Serial,
            ProcessName::VirtioBlk => Self::VirtioBlk,
            ProcessName::Inspector => Self::Inspector,
        }
    }
}

/// An architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArchName {
    /// PCs and servers.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64")]
    Aarch64,
}

impl From<ArchName> for wire::message::Architecture {
    fn from(name: ArchName) -> Self {
        match name {
            ArchName::X86_64 => Self::X86_64,
            ArchName::Aarch64 => Self::Aarch64,
        }
    }
}

impl From<ArchName> for policies::rules::Arch {
    fn from(name: ArchName) -> Self {
        match name {
            ArchName::X86_64 => Self::X86_64,
            ArchName::Aarch64 => Self::Aarch64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_other_vmms_are_understood() {
        let cli = Cli::parse_from([
            "broker",
            "run",
            "-k",
            "vmlinuz",
            "-i",
            "initrd.img",
            "-d",
            "a.ext4",
            "-d",
            "b:rw",
            "-c",
            "2",
            "-m",
            "512",
            "-p",
            "-v root=/dev/vda",
            "--console",
            "serial",
        ]);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.machine.disk, ["a.ext4", "b:rw"]);
        assert_eq!(run.machine.params.as_deref(), Some("-v root=/dev/vda"));
    }

    #[test]
    fn every_exit_code_stands_in_the_help() {
        for reason in crate::ends::Reason::ALL {
            assert!(EXIT_CODES.contains(&format!("[{}]", reason.name())), "{reason:?}");
            assert!(EXIT_CODES.contains(&format!("{:>4}  ", reason.code())), "{reason:?}");
        }
    }
}
