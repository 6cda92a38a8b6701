//! How a run can end: the reasons, their exit codes, and the judgement of what was seen.

use crate::config::{show_duration, show_size};
use nix::sys::signal::Signal;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;
use wire::Text;
use wire::message::{BootFile, StopReason};

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The guest powered off.
    GuestPoweroff,
    /// A device process that ran alone served its front end to the end.
    Finished,
    /// The host could not run it.
    HostError,
    /// Wrong usage or config.
    Config,
    /// The loader refused a boot file.
    BootRefused,
    /// A jail could not be built, or is not tight.
    JailFailed,
    /// KVM failed.
    KvmError,
    /// The guest rebooted.
    GuestReboot,
    /// The guest halted.
    GuestHalted,
    /// The guest's kernel panicked.
    GuestPanic,
    /// A vCPU triple-faulted.
    TripleFault,
    /// Ctrl-A x.
    UserQuit,
    /// A process died.
    ProcessDied,
    /// A process broke its seccomp policy.
    SeccompViolation,
    /// The kernel killed a process for want of memory.
    OutOfMemory,
    /// A process broke the protocol, or failed and said so.
    DeviceFailed,
    /// The run took as long as it may.
    LimitWallTime,
    /// Its processes used as much CPU time as they may.
    LimitCpuTime,
    /// Its processes used as much memory as they may.
    LimitMemory,
    /// The guest printed as much as it may.
    LimitConsole,
    /// The guest wrote as much to its disks as it may.
    LimitDiskWrites,
    /// SIGINT.
    Sigint,
    /// SIGTERM or SIGHUP.
    Sigterm,
}

impl Reason {
    /// Those of `broker run`.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 22] = [
        Self::GuestPoweroff,
        Self::HostError,
        Self::Config,
        Self::BootRefused,
        Self::JailFailed,
        Self::KvmError,
        Self::GuestReboot,
        Self::GuestHalted,
        Self::GuestPanic,
        Self::TripleFault,
        Self::UserQuit,
        Self::ProcessDied,
        Self::SeccompViolation,
        Self::OutOfMemory,
        Self::DeviceFailed,
        Self::LimitWallTime,
        Self::LimitCpuTime,
        Self::LimitMemory,
        Self::LimitConsole,
        Self::LimitDiskWrites,
        Self::Sigint,
        Self::Sigterm,
    ];

    fn row(self) -> (u8, &'static str) {
        match self {
            Self::GuestPoweroff => (0, "guest-poweroff"),
            Self::Finished => (0, "device-finished"),
            Self::HostError => (1, "host-error"),
            Self::Config => (2, "config"),
            Self::BootRefused => (3, "boot-refused"),
            Self::JailFailed => (4, "jail-failed"),
            Self::KvmError => (5, "kvm-error"),
            Self::GuestReboot => (10, "guest-reboot"),
            Self::GuestHalted => (11, "guest-halted"),
            Self::GuestPanic => (12, "guest-panic"),
            Self::TripleFault => (13, "triple-fault"),
            Self::UserQuit => (14, "user-quit"),
            Self::ProcessDied => (20, "process-died"),
            Self::SeccompViolation => (21, "seccomp-violation"),
            Self::OutOfMemory => (22, "out-of-memory"),
            Self::DeviceFailed => (23, "device-failed"),
            Self::LimitWallTime => (30, "limit-wall-time"),
            Self::LimitCpuTime => (31, "limit-cpu-time"),
            Self::LimitMemory => (32, "limit-memory"),
            Self::LimitConsole => (33, "limit-console"),
            Self::LimitDiskWrites => (34, "limit-disk-writes"),
            Self::Sigint => (130, "sigint"),
            Self::Sigterm => (143, "sigterm"),
        }
    }

    /// The exit code.
    pub(crate) fn code(self) -> u8 {
        self.row().0
    }

    /// The exit code of the broker.
    pub(crate) fn exit_code(self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// The name in JSON.
    pub(crate) fn name(self) -> &'static str {
        self.row().1
    }
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Why.
    pub(crate) reason: Reason,
    /// What happened and what to do next, for a person.
    pub(crate) message: String,
}

impl End {
    /// An end for `reason`.
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(0) => f.write_str("ended before its time"),
            Self::Code(101) => f.write_str("panicked (a bug; its message is in the log above)"),
            Self::Code(code) => write!(f, "ended with status {code}"),
            Self::Signal(signal) => match Signal::try_from(signal) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {signal}"),
            },
        }
    }
}

/// Something that ends a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A signal to the broker.
    Signal(Signal),
    /// Ctrl-A x.
    UserQuit,
    /// The guest ended, says the vmm.
    Stopped(StopReason),
    /// A process ended that should not have, and did not say why.
    Died {
        /// The process.
        name: String,
        /// How.
        exit: Exit,
    },
    /// The loader refused a boot file.
    Refused {
        /// Which.
        file: BootFile,
        /// Its name.
        path: String,
        /// Why.
        why: Text,
    },
    /// A process could not enter its jail, or its jail is not tight.
    Jail {
        /// The process.
        name: String,
        /// Why.
        why: String,
    },
    /// A process failed and said so, broke the protocol, or did not answer.
    Failed {
        /// The process.
        name: String,
        /// What it did.
        why: String,
    },
    /// The vmm could not build the machine.
    Kvm(Text),
    /// The host is at fault.
    Host(String),
    /// A device process that ran alone is done.
    Finished,
    /// A limit of the run was reached.
    Limit(Limit),
}

/// A limit that was reached, with its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Of the time that the run takes.
    WallTime(Duration),
    /// Of the CPU time of all its processes.
    CpuTime(Duration),
    /// Of what all processes use of memory beyond the guest's, in bytes.
    Memory(u64),
    /// Of what the guest prints, in bytes; serial's word.
    Console(u64),
    /// Of what the guest writes to its disks, in bytes; the word of a disk's process.
    DiskWrites(u64),
}

impl Limit {
    fn end(self) -> End {
        match self {
            Self::WallTime(time) => {
                let message = format!("the run took {}, its limit (limits.wall_time)", show_duration(time));
                End::new(Reason::LimitWallTime, format!("{message}; the guest was stopped"))
            }
            Self::CpuTime(time) => {
                let message = format!("the processes used {} of CPU time, their limit", show_duration(time));
                End::new(Reason::LimitCpuTime, format!("{message} (limits.cpu_time); the guest was stopped"))
            }
            Self::Memory(bytes) => {
                let message = format!("the processes used {} beyond the guest's memory", show_size(bytes));
                End::new(Reason::LimitMemory, format!("{message}, their limit (limits.memory); the guest was stopped"))
            }
            Self::Console(bytes) => {
                let message = format!("the guest printed more than {} (limits.console)", show_size(bytes));
                End::new(Reason::LimitConsole, format!("{message}; it was stopped"))
            }
            Self::DiskWrites(bytes) => {
                let message = format!("the guest wanted to write more than {} to its disks", show_size(bytes));
                End::new(Reason::LimitDiskWrites, format!("{message} (limits.disk_writes); it was stopped"))
            }
        }
    }
}

/// All that was seen.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// What ended the run, in order; the later ones may be consequences.
    pub(crate) causes: Vec<Cause>,
    /// The guest's panic line, from the console: a hint, as the guest's user space can forge it.
    pub(crate) panic: Option<Text>,
    /// Whether the kernel killed for want of memory meanwhile.
    pub(crate) oom: bool,
    /// The memory limit in bytes, if the kernel killed because of that one.
    pub(crate) memory_limit: Option<u64>,
    /// The names of the devices by number, as the vmm counts them.
    pub(crate) device_names: Vec<String>,
}

impl Evidence {
    /// The judgement: a broken policy before all else, then what the user did first, then what a process did to itself,
    /// then what a process says; that the user typed Ctrl-A x is serial's word.
    pub(crate) fn judge(&self) -> End {
        let deaths = || {
            self.causes.iter().filter_map(|cause| match cause {
                Cause::Died { name, exit } => Some((name, *exit)),
                _ => None,
            })
        };
        if let Some((name, _)) = deaths().find(|&(_, exit)| exit == Exit::Signal(libc::SIGSYS)) {
            return End::new(
                Reason::SeccompViolation,
                format!(
                    "the {name} process made a system call that its policy does not allow, and was killed; it may be captured. \
                     If it is not, run again with --audit to learn which call it was"
                ),
            );
        }
        let first = self.causes.first().filter(|cause| matches!(cause, Cause::Signal(_)));
        if let Some(end) = first.and_then(asked_for) {
            return end;
        }
        // Measured by the broker; the kernel may have helped with a SIGKILL of its own (RLIMIT_CPU).
        let measured =
            |cause: &&Cause| matches!(cause, Cause::Limit(Limit::WallTime(_) | Limit::CpuTime(_) | Limit::Memory(_)));
        if let Some(cause) = self.causes.iter().find(measured) {
            return self.of(cause);
        }
        let killed = || deaths().find(|&(_, exit)| exit == Exit::Signal(libc::SIGKILL));
        if let (Some((name, _)), Some(bytes)) = (killed(), self.memory_limit) {
            return End::new(
                Reason::LimitMemory,
                format!(
                    "the kernel killed the {name} process because all of them used {} beyond the guest's memory \
                     (limits.memory)",
                    show_size(bytes)
                ),
            );
        }
        if let Some((name, _)) = killed().filter(|_| self.oom) {
            return End::new(
                Reason::OutOfMemory,
                format!(
                    "the kernel killed the {name} process because memory ran out; give the guest less memory, or the host more"
                ),
            );
        }
        // A jail, a refusal or the host: said at first hand, before any guest ran.
        let said = self
            .causes
            .iter()
            .find(|cause| matches!(cause, Cause::Jail { .. } | Cause::Refused { .. } | Cause::Host(_) | Cause::Kvm(_)));
        if let Some(cause) = said {
            return self.of(cause);
        }
        // Before what others say of it: a vmm sees only that a device is gone.
        if let Some((name, exit)) = deaths().next() {
            return died(name, exit);
        }
        let strong = self.causes.iter().find(|cause| !matches!(cause, Cause::Finished));
        strong.or(self.causes.first()).map_or_else(
            || End::new(Reason::HostError, "the run ended for no reason that was seen; this is a bug of the broker"),
            |cause| self.of(cause),
        )
    }

    fn of(&self, cause: &Cause) -> End {
        match cause {
            Cause::Stopped(reason) => self.stopped(reason),
            Cause::Died { name, exit } => died(name, *exit),
            Cause::Refused { file, path, why } => {
                let what = match file {
                    BootFile::Kernel => "kernel",
                    BootFile::Initrd => "initrd",
                };
                End::new(Reason::BootRefused, format!("the {what} {path} cannot be booted: {why}"))
            }
            Cause::Jail { name, why } => End::new(
                Reason::JailFailed,
                format!("the jail of the {name} process could not be built, so nothing was started: {why}"),
            ),
            Cause::Failed { name, why } => End::new(Reason::DeviceFailed, format!("the {name} process failed: {why}")),
            Cause::Kvm(why) => End::new(
                Reason::KvmError,
                format!("KVM could not build the machine: {why}; `broker doctor` looks at this host"),
            ),
            Cause::Host(why) => End::new(Reason::HostError, why.clone()),
            Cause::Limit(limit) => limit.end(),
            Cause::Finished => End::new(Reason::Finished, "the front end closed the connection"),
            Cause::Signal(_) | Cause::UserQuit => {
                asked_for(cause).unwrap_or_else(|| End::new(Reason::Sigterm, "the run was ended from outside"))
            }
        }
    }

    fn stopped(&self, reason: &StopReason) -> End {
        match (reason, &self.panic) {
            (StopReason::Reset | StopReason::Halted | StopReason::TripleFault, Some(line)) => {
                End::new(Reason::GuestPanic, format!("the guest's kernel panicked: {line}"))
            }
            (StopReason::PowerOff, _) => End::new(Reason::GuestPoweroff, "the guest powered off"),
            (StopReason::Reset, None) => End::new(Reason::GuestReboot, "the guest rebooted, which ends the run"),
            (StopReason::Halted, None) => End::new(Reason::GuestHalted, "the guest halted"),
            (StopReason::TripleFault, None) => End::new(
                Reason::TripleFault,
                "the guest's processor triple-faulted; its kernel may be broken or built for another processor. \
                 Run again with --debug to see its first words",
            ),
            (StopReason::DeviceFailed { device, why }, _) => {
                let name = self.device_names.get(usize::from(*device)).map_or("unknown device", String::as_str);
                End::new(Reason::DeviceFailed, format!("the vmm gave the {name} process up: {why}"))
            }
            (StopReason::KvmError(why), _) => {
                End::new(Reason::KvmError, format!("KVM could not go on: {why}; `broker doctor` looks at this host"))
            }
        }
    }
}

fn asked_for(cause: &Cause) -> Option<End> {
    Some(match cause {
        Cause::Signal(Signal::SIGINT) => End::new(Reason::Sigint, "interrupted (SIGINT)"),
        Cause::Signal(Signal::SIGHUP) => End::new(Reason::Sigterm, "the terminal hung up (SIGHUP)"),
        Cause::Signal(_) => End::new(Reason::Sigterm, "terminated (SIGTERM)"),
        Cause::UserQuit => End::new(Reason::UserQuit, "left with Ctrl-A x; the guest was stopped"),
        _ => return None,
    })
}

fn died(name: &str, exit: Exit) -> End {
    End::new(Reason::ProcessDied, format!("the {name} process {exit}, so the guest was stopped"))
}

#[cfg(test)]
#[path = "ends/tests.rs"]
mod tests;
