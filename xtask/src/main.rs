//! Tasks of the repository: `cargo xtask demo | test | bench | policies | lab | fuzz | corpus | diagnoses | unsafe | tidy`.

mod architecture;
mod bench;
mod binaries;
mod command;
mod console;
mod corpus;
mod demo;
mod diagnoses;
mod emulator;
mod fuzz;
mod images;
mod kernel;
mod lab;
mod matrix;
mod packages;
mod paths;
mod policies;
mod testing;
mod threat_model;
mod tidy;
mod totals;
mod traced;
mod tree;
mod unsafety;
mod visit;

use anyhow::{Result, bail};
use architecture::{Architecture, Gic};
use binaries::Profile;
use clap::{Parser, Subcommand};
use demo::Place;
use matrix::{Machine, Table, Trial};
use std::process::ExitCode;

/// Tasks of the Bulkhead repository.
///
/// Everything that is downloaded or generated goes to `.cache/` in the repository, or to $BULKHEAD_CACHE; it may be
/// deleted at any time.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make a root file system of Debian packages and boot it with the broker, on this terminal.
    ///
    /// Installs what is missing (by apt-get, with sudo when needed). The guest runs directly where /dev/kvm can run
    /// Linux, else in the lab. Without a terminal, the lines of standard input are typed for the user, and the guest is
    /// switched off.
    Demo {
        /// Run on this machine's /dev/kvm or not at all.
        #[arg(long, conflicts_with = "lab")]
        direct: bool,
        /// Run in the lab even where that is not needed.
        #[arg(long)]
        lab: bool,
    },
    /// Run every check and every test; the last line is "N passed, N failed, N skipped".
    Test {
        /// Boot every kernel in every lab: 5.10, 6.1, 6.12 and 7.x, on x86_64 and on aarch64 with GICv3 and GICv2.
        #[arg(long)]
        all: bool,
    },
    /// Start the lab, a machine emulated by QEMU in which /dev/kvm can run Linux, with a shell on this terminal.
    ///
    /// The broker and its processes are in /bulkhead/bin there, a guest to boot is in /bulkhead/guest.
    Lab {
        /// The architecture of the lab and of what runs in it, this machine's if not given.
        #[arg(long, value_enum)]
        arch: Option<Architecture>,
        /// The interrupt controller of an aarch64 lab, v3 if not given.
        #[arg(long, value_enum)]
        gic: Option<Gic>,
        /// Run this command instead of the shell, and give its exit status.
        #[arg(long, value_name = "COMMAND")]
        run: Option<String>,
        /// Run those of the tests with Linux guests whose names contain FILTER, or one of its words ("" for all).
        #[arg(long, value_name = "FILTER", value_parser = test_names, conflicts_with_all = ["run", "bare"])]
        tests: Option<String>,
        /// The Debian release whose kernel the guests of --tests have.
        #[arg(long, value_name = "SUITE", default_value = lab::HOST_SUITE)]
        guest: String,
        /// Leave the broker out, so that nothing has to be built.
        #[arg(long)]
        bare: bool,
    },
    /// Measure launch, memory, console, disks and density beside QEMU's smallest machine, on this machine's /dev/kvm.
    ///
    /// Prints a table with the ratios and what is to be reached; the exit code does not depend on them.
    /// docs/PERFORMANCE.md says what each figure means.
    Bench(bench::Arguments),
    /// Trace every jailed process through the tests, and print for each filter what it allows and what was used of it.
    ///
    /// Exit code 1 when a rule without a mark was not used, a mark was refuted, or a call was missing. Without --lab, only
    /// the tests with small guests run, which need /dev/kvm.
    Policies {
        /// Whose policies; those of aarch64 are always traced in the lab.
        #[arg(long, value_enum, default_value = "x86_64")]
        arch: Architecture,
        /// Run the tests with Linux guests as well, in the lab.
        #[arg(long)]
        lab: bool,
        /// Print one JSON object instead of the table.
        #[arg(long)]
        json: bool,
    },
    /// Run every attempt of the hostile suite, and write what it measured into docs/THREAT_MODEL.md.
    ThreatModel {
        /// Write nothing, and fail when what is kept there is not what was measured.
        #[arg(long)]
        check: bool,
        /// The architecture; the other one than this machine's runs in the lab, some 15 minutes.
        #[arg(long, value_enum, default_value = "x86_64")]
        arch: Architecture,
    },
    /// Feed made-up bytes to every boundary that untrusted bytes cross, under the address sanitizer, and look for a crash.
    ///
    /// The last line is "N passed, N failed, N skipped". What a fuzzer has learned stays in the cache for the next time.
    Fuzz(fuzz::Arguments),
    /// Boot images that are really broken, in QEMU alone, and keep their console logs in `forensics/corpus`.
    ///
    /// The last line is "N passed, N failed, N skipped".
    Corpus(corpus::Arguments),
    /// Write the list of what `broker explain` knows into docs/DIAGNOSES.md.
    Diagnoses {
        /// Write nothing, and fail when what is kept there is not what is known.
        #[arg(long)]
        check: bool,
    },
    /// List every block of code that is unsafe, with its invariant.
    Unsafe,
    /// Check the repository's own rules: lengths, headers, architecture selectors, reasons in policies, machine paths,
    /// unsafe code only in modules that allow it.
    Tidy,
}

/// Words of which tests' names consist, which the lab's shell takes as they are.
fn test_names(text: &str) -> Result<String, String> {
    if text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ' ') {
        return Ok(text.to_owned());
    }
    Err("name tests by letters, digits and underlines, with a space between them".to_owned())
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo { direct, lab } => {
            let place = if direct { Some(Place::Direct) } else { lab.then_some(Place::Lab) };
            demo::run(place, Profile::Release).map(status)
        }
        Task::Test { all } => testing::run(all).map(|totals| sums(&totals)),
        Task::Lab { arch, gic, run, tests, guest, bare } => {
            let machine = match (arch.unwrap_or(Architecture::native()), gic) {
                (Architecture::Aarch64, gic) => Machine::Aarch64(gic.unwrap_or(Gic::V3)),
                (Architecture::X86_64, None) => Machine::X86_64,
                (Architecture::X86_64, Some(_)) => bail!("--gic is for --arch aarch64"),
            };
            match tests {
                Some(filter) => {
                    let mut totals = totals::Totals::default();
                    Table::default().attempt(&Trial::new(machine, &guest, &filter), &mut totals);
                    Ok(sums(&totals))
                }
                None => visit::run(machine.emulator()?, run.as_deref(), bare).map(status),
            }
        }
        Task::Bench(arguments) => bench::main(&arguments).map(|()| status(0)),
        Task::Policies { arch, lab, json } => policies::run(arch, lab, json).map(|clean| status(i32::from(!clean))),
        Task::ThreatModel { check, arch } => threat_model::run(arch, check).map(|()| status(0)),
        Task::Fuzz(arguments) => fuzz::main(&arguments).map(|totals| sums(&totals)),
        Task::Corpus(arguments) => corpus::main(&arguments).map(|totals| sums(&totals)),
        Task::Diagnoses { check } => diagnoses::run(check).map(|()| status(0)),
        Task::Unsafe => {
            let all = unsafety::list()?;
            for one in &all {
                println!("{one}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Task::Tidy => {
            let problems = tidy::check()?;
            for problem in &problems {
                println!("{problem}");
            }
            Ok(status(i32::from(!problems.is_empty())))
        }
    }
}

/// Says what failed and, in the last line of all, the sums.
fn sums(totals: &totals::Totals) -> ExitCode {
    for failure in &totals.failures {
        eprintln!("xtask: failed: {failure}");
    }
    println!("{totals}");
    status(i32::from(totals.failed > 0))
}

/// An exit code; what does not fit into one is 1.
fn status(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
