//! Who is measured: Bulkhead, and what anyone can measure it against.

use super::Setup;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bulkhead, with every jail.
pub(crate) const BULKHEAD: &str = "bulkhead";
/// Debian's QEMU with its smallest machine.
pub(crate) const QEMU: &str = "qemu microvm";
/// The fewest KVM calls that start a guest.
pub(crate) const FLOOR: &str = "floor";
/// Reading or writing the same file as `dd` does.
pub(crate) const NO_GUEST: &str = "no guest";

/// The guest's memory everywhere.
pub(crate) const MEMORY_MIB: u32 = 128;

/// A VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// See [`BULKHEAD`].
    Bulkhead,
    /// See [`QEMU`].
    Qemu,
    /// See [`FLOOR`].
    Floor,
}

impl Subject {
    /// Its name in figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bulkhead => BULKHEAD,
            Self::Qemu => QEMU,
            Self::Floor => FLOOR,
        }
    }

    /// The guest's word for an end of which this VMM goes away in order.
    pub(crate) fn end(self) -> &'static str {
        match self {
            // With -no-reboot, QEMU takes a triple fault for the reset that it is on a real machine.
            Self::Qemu => "end=triple",
            Self::Bulkhead | Self::Floor => "end=reset",
        }
    }

    /// The exit code with which it goes away then.
    pub(crate) fn end_code(self) -> i32 {
        match self {
            Self::Bulkhead => 10,
            Self::Qemu | Self::Floor => 0,
        }
    }

    /// The names under which guest memory stands in the maps of its processes.
    pub(crate) fn guest_memory(self) -> &'static str {
        match self {
            Self::Bulkhead | Self::Floor => "/memfd:guest-memory",
            Self::Qemu => "/memfd:memory-backend-memfd",
        }
    }

    /// The command that runs `guest` with the command line `words`, its console on standard output.
    pub(crate) fn command(self, setup: &Setup, guest: &Path, words: &str) -> Command {
        let memory = MEMORY_MIB.to_string();
        match self {
            Self::Bulkhead => {
                let mut command = Command::new(setup.program("broker"));
                command.args(["run", "-m", &memory, "-p", words, "-k"]).arg(guest);
                command
            }
            Self::Floor => {
                let mut command = Command::new(setup.program("floor"));
                command.arg(guest).args([words, &memory]);
                command
            }
            Self::Qemu => {
                let mut command = Command::new(&setup.qemu);
                command.args(["-M", "microvm,memory-backend=ram", "-enable-kvm", "-cpu", QEMU_CPU, "-m", &memory]);
                command.args(["-object", &format!("memory-backend-memfd,id=ram,size={memory}M")]);
                command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
                command.args(["-append", words, "-kernel"]).arg(guest);
                command
            }
        }
    }
}

/// QEMU 7.2 gives up on a KVM that refuses to set IA32_ARCH_CAPABILITIES.
const QEMU_CPU: &str = "host,-arch-capabilities";

/// The guests, which the program `guests` of the tests has written.
#[derive(Debug)]
pub(crate) struct Guests(PathBuf);

impl Guests {
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Prints one byte and ends.
    pub(crate) fn quick(&self) -> PathBuf {
        self.0.join("guest-quick.elf")
    }

    /// The one of the tests, which QEMU takes as well.
    pub(crate) fn scenarios(&self) -> PathBuf {
        self.0.join("guest-pvh.elf")
    }
}
