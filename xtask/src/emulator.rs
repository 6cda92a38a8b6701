//! The QEMU programs that the labs run on, and the processors that they are asked for.

use crate::architecture::{Architecture, Gic};
use crate::command::{capture, capture_text};
use crate::lab::HOST_SUITE;
use crate::packages::{self, Suite};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// Where the newer QEMU is from.
const QEMU_SUITE: &str = "bookworm-backports";

/// A QEMU and how it must be asked for a processor with nested virtualization.
#[derive(Debug, Clone)]
pub(crate) struct Emulator {
    /// The program.
    pub(crate) program: PathBuf,
    /// Folders of libraries that are not installed.
    pub(crate) libraries: Vec<PathBuf>,
    /// Folders of firmware, when they are not where QEMU looks.
    pub(crate) firmware: Vec<PathBuf>,
    /// Whose machines it emulates.
    pub(crate) architecture: Architecture,
    /// How many processors it has.
    processors: u8,
    /// The machine and the processor.
    pub(crate) machine: &'static [&'static str],
    /// Options of the kvm-amd module in the lab's host.
    pub(crate) kvm_amd: &'static str,
}

impl Emulator {
    /// The usual one for an architecture.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) fn of(architecture: Architecture) -> Result<Self> {
        match architecture {
            Architecture::X86_64 => Self::x86_64(),
            Architecture::Aarch64 => Self::aarch64(Gic::V3),
        }
    }

    /// A QEMU 10 for x86_64, unpacked beside the installed one, with which guests crash now and then. It is asked for a
    /// processor without what its nested virtualization gets wrong: the state of AVX
    /// and PKU is lost (it seems not to intercept XSETBV), and a virtual GIF stops interrupts.
    ///
    /// One processor only: with two, one of them now and then walks its own page tables through the guest's nested ones
    /// after an exit, as if it were still in the guest. Of 60 guests that wrote to a port 16,000 times, 2 to 11 died of
    /// that by a triple fault; with one processor none did, and Linux guests take no longer.
    ///
    /// # Errors
    /// When it cannot be had, or does not run.
    pub(crate) fn x86_64() -> Result<Self> {
        // It brings most libraries that the newer one needs.
        packages::install(packages::LAB_TOOLS)?;
        let suite = Suite::open(QEMU_SUITE, Architecture::X86_64)?;
        let program = suite.unpacked("qemu-system-x86")?.join("usr/bin/qemu-system-x86_64");
        let firmware = vec![
            suite.unpacked("qemu-system-data")?.join("usr/share/qemu"),
            suite.unpacked("seabios")?.join("usr/share/seabios"),
        ];
        let mut libraries = Vec::new();
        if capture_text(Command::new("ldd").arg(&program))?.contains("not found") {
            libraries = missing_libraries(&suite)?;
        }
        let emulator = Self {
            program,
            libraries,
            firmware,
            architecture: Architecture::X86_64,
            processors: 1,
            machine: &["-cpu", "max,+svm,-xsave,-xsaveopt,-avx,-avx2,-f16c,-fma,-vaes,-vpclmulqdq,-pku,-la57,-vgif"],
            kvm_amd: "vgif=0",
        };
        capture(emulator.command()?.arg("--version")).context("the newer QEMU does not run here")?;
        Ok(emulator)
    }

    /// The QEMU for aarch64 that is installed on this machine, with one of the two kinds of interrupt controller.
    ///
    /// # Errors
    /// When it is not installed and cannot be.
    pub(crate) fn aarch64(gic: Gic) -> Result<Self> {
        packages::install(packages::ARM_LAB_TOOLS)?;
        let machine: &[_] = match gic {
            Gic::V2 => &["-M", "virt,virtualization=on,gic-version=2", "-cpu", "cortex-a72"],
            // The default algorithm of pointer authentication takes half of the emulator's time.
            Gic::V3 => &["-M", "virt,virtualization=on,gic-version=3", "-cpu", "max,pauth-impdef=on"],
        };
        let program = crate::command::find_program("qemu-system-aarch64").context("qemu-system-aarch64 is missing")?;
        let (libraries, firmware, architecture) = (Vec::new(), Vec::new(), Architecture::Aarch64);
        Ok(Self { program, libraries, firmware, architecture, processors: 2, machine, kvm_amd: "" })
    }

    /// The program with its processors and its machine, ready for further arguments.
    ///
    /// # Errors
    /// When a folder of libraries has a name that cannot be told.
    pub(crate) fn command(&self) -> Result<Command> {
        let mut command = Command::new(&self.program);
        if !self.libraries.is_empty() {
            let folders = std::env::join_paths(&self.libraries).context("a folder's name has a colon")?;
            command.env("LD_LIBRARY_PATH", folders);
        }
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        let accelerator = if self.processors == 1 { "tcg,thread=single" } else { "tcg,thread=multi" };
        command.args(["-accel", accelerator, "-smp", &self.processors.to_string()]).args(self.machine);
        Ok(command)
    }
}

/// The folders of the libraries that the newer QEMU needs, unpacked from the release that it was built for.
fn missing_libraries(qemu: &Suite) -> Result<Vec<PathBuf>> {
    let release = Suite::open(HOST_SUITE, Architecture::X86_64)?;
    let mut folders = Vec::new();
    for package in qemu.dependencies("qemu-system-x86")? {
        if package.starts_with("lib") && package != "libc6" {
            folders.push(release.unpacked(&package)?.join("usr/lib/x86_64-linux-gnu"));
        }
    }
    Ok(folders)
}
