//! The lab: how long a stock Debian kernel takes to user space, and how fast its disk is, beside QEMU in the same lab.
//!
//! Everything runs in one boot of the lab, in turns, with the same kernel, initramfs, memory and image. Times are those of
//! the lab's clock, taken by a program in the lab (`stopwatch`); the rates are the guest's own (`bench-init`).

use super::figure::{Better, Figures};
use super::lab_qemu;
use super::subject::{BULKHEAD, QEMU};
use crate::architecture::Architecture;
use crate::binaries::{Binaries, Profile};
use crate::command::progress;
use crate::console::Patience;
use crate::emulator::Emulator;
use crate::images;
use crate::lab::{self, Lab};
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::time::Duration;

/// Runs of each subject unless told otherwise; one is a boot, a boot with `quiet`, and one with a disk.
const RUNS: usize = 9;
/// The groups of figures of the x86_64 lab, for which there are goals.
pub(super) const BOOT: &str = "boot in the lab";
pub(super) const DISK: &str = "disk in the lab";
const MEMORY_MIB: u32 = 256;
/// How long the whole may take, and how long it may be silent: longer than the limit of each run.
const PATIENCE: Patience = Patience { total: Duration::from_secs(3600), silence: Duration::from_secs(400) };
/// The limit of each run in seconds.
const LIMIT: u32 = 300;

/// Measures.
///
/// # Errors
/// When the lab or a run in it fails.
pub(crate) fn measure(architecture: Architecture, runs: Option<usize>, figures: &mut Figures) -> Result<()> {
    let runs = runs.unwrap_or(RUNS);
    let lab = Lab::prepare(Emulator::of(architecture)?)?;
    let binaries = if architecture == Architecture::native() {
        Binaries::build(Profile::Release)?
    } else {
        Binaries::build_traced_for(architecture)?
    };
    let mut disk = lab.disk()?;
    let qemu = lab_qemu::add(&mut disk, architecture)?;
    add_guest(&mut disk, &lab, &binaries)?;
    disk.script("bulkhead/run", script(architecture, &qemu, runs));
    let groups = Groups::of(architecture);
    progress(format_args!("lab: {runs} runs of each"));
    let watch = lab::watch(PATIENCE, |line| {
        println!("{line}");
        if let Some((subject, name, value)) = figure(line) {
            let (group, unit, better) = groups.kind(&name);
            figures.add(group, (&name, unit, better), subject, value);
        }
    });
    match lab.run(&format!("bench-{}", architecture.debian()), &disk, watch)? {
        0 => Ok(()),
        status => bail!("the benchmark in the lab ended with status {status}"),
    }
}

/// The groups of figures of a lab.
struct Groups {
    boot: &'static str,
    disk: &'static str,
}

impl Groups {
    fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::X86_64 => Self { boot: BOOT, disk: DISK },
            // QEMU has no microvm there.
            Architecture::Aarch64 => {
                Self { boot: "boot in the arm64 lab, QEMU virt", disk: "disk in the arm64 lab, QEMU virt" }
            }
        }
    }

    /// Where a figure belongs, and what it is.
    fn kind(&self, name: &str) -> (&'static str, &'static str, Better) {
        match name {
            "user space" | "user space, quiet" | "kernel's own clock, quiet" | "gone" => {
                (self.boot, "ms", Better::Lower)
            }
            "outside of the guest" | "programs" => (self.boot, "% of the processor's time", Better::Lower),
            "fsync" => (self.disk, "1/s", Better::Higher),
            small if small.starts_with("4 KiB") => (self.disk, "1/s", Better::Higher),
            _ => (self.disk, "MB/s", Better::Higher),
        }
    }
}

/// Our programs, and what both subjects boot.
fn add_guest(disk: &mut Tree, lab: &Lab, binaries: &Binaries) -> Result<()> {
    let named = |name: &str| -> Result<&PathBuf> {
        binaries.programs.iter().find(|path| path.ends_with(name)).with_context(|| format!("cargo built no {name}"))
    };
    for program in &binaries.programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        if name == "broker" || name.starts_with("bulkhead-") || name == "stopwatch" {
            disk.program(&images::in_lab("bin", program)?, program);
        }
    }
    let initrd = lab.folder().join("bench.cpio");
    let mut tree = Tree::default();
    for folder in ["dev", "proc"] {
        tree.directory(folder);
    }
    images::add_modules(&mut tree, lab.kernel(), &["virtio", "virtio_ring", "virtio_mmio", "virtio_blk"])?;
    tree.console().program("init", named("bench-init")?);
    tree.write_cpio(&initrd)?;
    disk.copy("bulkhead/guest/initrd.cpio", &initrd);
    disk.copy("bulkhead/guest/vmlinuz", &lab.kernel().image);
    Ok(())
}

/// What the lab runs.
fn script(architecture: Architecture, qemu: &str, runs: usize) -> String {
    let (machine, console) = match architecture {
        Architecture::X86_64 => ("-M microvm", "ttyS0"),
        Architecture::Aarch64 => ("-M virt,gic-version=host", "ttyAMA0"),
    };
    let qemu = format!("{qemu} {machine} -global virtio-mmio.force-legacy=false");
    let numbers = format!("runs={runs} memory={MEMORY_MIB} limit={LIMIT}");
    let body = include_str!("../../../tests/lab/l1-bench.sh");
    format!("#!/bin/sh\n{numbers}\nqemu='{qemu}' qemu_console={console}\n{body}")
}

/// The subject, the name and the value of a line `bench SUBJECT RUN NAME = VALUE`; nothing for what is not shown.
fn figure(line: &str) -> Option<(&'static str, String, f64)> {
    let (words, value) = line.strip_prefix("bench ")?.split_once(" = ")?;
    let (subject, rest) = words.split_once(' ')?;
    let (run, name) = rest.split_once(' ')?;
    let subject = match subject {
        "bulkhead" => BULKHEAD,
        "qemu" => QEMU,
        _ => return None,
    };
    let name = match (run, name) {
        // With interrupts off while the kernel prints, its clock stands.
        ("boot", "kernel's own clock") => return None,
        ("boot", name) => name.to_owned(),
        ("quiet", "user space" | "kernel's own clock") => format!("{name}, quiet"),
        ("disk", "user space" | "kernel's own clock" | "outside of the guest" | "programs" | "gone") => return None,
        ("disk", name) => name.to_owned(),
        _ => return None,
    };
    Some((subject, name, value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_the_stopwatch_is_a_figure_of_its_subject() {
        assert_eq!(
            figure("bench bulkhead boot user space = 3400.5"),
            Some((BULKHEAD, "user space".to_owned(), 3400.5))
        );
        assert_eq!(figure("bench qemu quiet user space = 9"), Some((QEMU, "user space, quiet".to_owned(), 9.0)));
        let rate = figure("bench qemu disk 4 KiB random read = 669.0");
        assert_eq!(rate, Some((QEMU, "4 KiB random read".to_owned(), 669.0)));
    }

    #[test]
    fn other_lines_are_none() {
        for line in [
            "bench bulkhead warm user space = 1",
            "bench qemu boot kernel's own clock = 1",
            "bench qemu disk gone = 1",
            "bench",
            "[ 0.1] x = 1",
        ] {
            assert_eq!(figure(line), None, "{line}");
        }
    }
}
