//! `cargo xtask bench`: how fast Bulkhead is, beside QEMU's smallest machine and a floor of our own.
//!
//! Everything is measured on this machine's /dev/kvm with bare-metal guests and all jails on. Subjects take turns within a
//! run, and what counts is the ratio. Nothing is asserted: whatever the figures are, the exit code is 0.

mod console;
mod counts;
mod density;
mod disk;
mod figure;
mod goals;
mod host;
mod json;
mod lab;
mod lab_qemu;
mod launch;
mod memory;
mod page;
mod plot;
mod processes;
mod run;
mod subject;
mod table;

use crate::architecture::Architecture;
use crate::binaries::{Binaries, Profile};
use crate::command::{self, progress};
use crate::{packages, paths};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use figure::Figures;
use host::Host;
use json::Findings;
use std::path::{Path, PathBuf};
use std::process::Command;
use subject::Guests;
use tempfile::TempDir;

/// `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to measure; everything when nothing is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// The architecture of the lab, this machine's if not given.
    #[arg(long, value_enum)]
    arch: Option<Architecture>,
    /// How often each thing is measured; each part has a number of its own if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    runs: Option<u16>,
    /// Writes all figures with all values to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Takes the figures of parts that are not named from a file that --json has written, and measures only what is named.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Draws the plots (SVG) into a folder.
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
    /// Writes the tables into docs/PERFORMANCE.md and the plots into docs/performance.
    #[arg(long)]
    write: bool,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From exec to the first byte of the guest, and to the end of the last process.
    Launch,
    /// A Debian kernel to user space, and its disk, in the lab.
    Lab,
    /// What a VM costs besides the guest's memory, and what an idle one does.
    Memory,
    /// How fast a guest prints, and what each byte costs.
    Console,
    /// How many requests, and how many bytes, a guest gets from its disks.
    Disk,
    /// How many VMs fit into 2 GiB besides each other, and how many can be launched in a second.
    Density,
}

/// What all parts need.
#[derive(Debug)]
pub(crate) struct Setup {
    binaries: Binaries,
    guests: Guests,
    qemu: PathBuf,
    runs: Option<usize>,
    folder: TempDir,
}

impl Setup {
    fn prepare(runs: Option<u16>) -> Result<Self> {
        if Architecture::native() != Architecture::X86_64 {
            bail!("the guests of the benchmark are for x86_64");
        }
        std::fs::File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm cannot be used")?;
        packages::install(packages::LAB_TOOLS)?;
        let qemu = command::find_program("qemu-system-x86_64").context("QEMU is not installed")?;
        let binaries = Binaries::build(Profile::Release)?;
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let guests = binaries.folder.join("guests");
        command::run(Command::new(guests).arg(folder.path()))?;
        run::adopt_orphans()?;
        Ok(Self { binaries, guests: Guests::in_folder(folder.path()), qemu, runs: runs.map(usize::from), folder })
    }

    /// One of our programs.
    fn program(&self, name: &str) -> PathBuf {
        self.binaries.folder.join(name)
    }

    /// Where a run's errors go.
    fn log(&self) -> PathBuf {
        self.file("log")
    }

    /// A file of the benchmark's own.
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Measures, and shows what was found.
///
/// # Errors
/// When something cannot be measured, or a file cannot be read or written.
pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let older = arguments.from.as_deref().map(read).transpose()?;
    let parts = match (arguments.parts.is_empty(), &older) {
        (true, None) => Part::value_variants(),
        _ => &arguments.parts,
    };
    let mut findings = if parts.is_empty() { Findings::default() } else { measure(parts, arguments)? };
    if let Some(older) = older {
        let host = if parts.is_empty() { older.host } else { findings.host };
        let timings = findings.timings.or(older.timings);
        findings = Findings { host, figures: findings.figures.over(older.figures), timings };
    }
    show(&findings);
    if let Some(path) = &arguments.json {
        paths::write_atomically(path, format!("{:#}\n", json::write(&findings)).as_bytes())?;
    }
    if let Some(folder) = &arguments.plots {
        plot::all(&findings, folder)?;
    }
    if arguments.write {
        page::write(&findings)?;
    }
    Ok(())
}

fn measure(parts: &[Part], arguments: &Arguments) -> Result<Findings> {
    let mut figures = Figures::default();
    let mut timings = None;
    if parts.contains(&Part::Lab) {
        let architecture = arguments.arch.unwrap_or(Architecture::native());
        lab::measure(architecture, arguments.runs.map(usize::from), &mut figures)?;
        if parts == [Part::Lab] {
            let qemu = command::find_program("qemu-system-x86_64").unwrap_or_default();
            return Ok(Findings { host: Host::probe(&qemu), figures, timings });
        }
    }
    let setup = Setup::prepare(arguments.runs)?;
    for part in parts {
        match part {
            // The labs need no setup, and are done.
            Part::Lab => {}
            Part::Memory => memory::measure(&setup, &mut figures)?,
            Part::Console => console::measure(&setup, &mut figures)?,
            Part::Disk => disk::measure(&setup, &mut figures)?,
            Part::Density => density::measure(&setup, &mut figures)?,
            Part::Launch => {
                launch::measure(&setup, &mut figures)?;
                timings = launch::timings(&setup);
                if timings.is_none() {
                    progress("launch: this broker has no --timings, so that the steps cannot be shown");
                }
            }
        }
    }
    Ok(Findings { host: Host::probe(&setup.qemu), figures, timings })
}

/// Prints the tables.
fn show(findings: &Findings) {
    println!("{}", findings.host);
    for group in findings.figures.groups() {
        println!("\n{group}\n{}", table::of_group(&findings.figures, group));
    }
}

fn read(path: &Path) -> Result<Findings> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    json::read(&value).with_context(|| format!("{} is no file of --json", path.display()))
}
