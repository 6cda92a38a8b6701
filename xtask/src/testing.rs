//! `cargo xtask test`: every check and every test, each there where it can run, and one line of sums at the end.

use crate::architecture::Architecture;
use crate::binaries::{self, Binaries, Profile, TestProgram};
use crate::command::{cargo, find_program, progress};
use crate::console::Patience;
use crate::emulator::Emulator;
use crate::images::{self, GuestFiles};
use crate::kernel::Kernel;
use crate::lab::{self, HOST_SUITE, Lab};
use crate::matrix::{self, Machine, Table, Trial};
use crate::packages::{self, Suite};
use crate::tidy;
use crate::totals::Totals;
use crate::tree::Tree;
use crate::{demo, paths, policies, threat_model};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The tests that need a /dev/kvm that runs Linux.
const LINUX_TESTS: &str = "linux";
/// The tests with small guests that need a host which gives cgroups with controllers. The lab does, so that they run there
/// too, wherever else they run.
const CGROUP_TESTS: [&str; 2] = ["limits", "user"];
/// The tests that need QEMU, but no KVM.
const QEMU_TESTS: &str = "qemu_client";
/// How long the tests in the lab may take, and how long they may be silent: longer than all waits of a test, each of which
/// has a deadline of its own.
const LAB_PATIENCE: Patience = Patience { total: Duration::from_secs(3000), silence: Duration::from_secs(900) };

/// What the lab's kernel says when an emulated processor of its own hangs: nested virtualization under emulation does that
/// now and then, and no program in the lab can.
const LAB_STUCK: &str = "watchdog: BUG: soft lockup";

/// Runs everything and gives the sums.
///
/// # Errors
/// When something cannot be had or built; a test that fails is counted instead.
pub(crate) fn run(all: bool) -> Result<Totals> {
    if Architecture::native() != Architecture::X86_64 {
        bail!("the whole of the tests runs on x86_64; on arm64, use `cargo xtask lab --tests ''`");
    }
    packages::install(packages::IMAGE_TOOLS)?;
    packages::install(packages::LAB_TOOLS)?;
    let mut totals = Totals::default();
    step(&mut totals, "format", |totals| cargo_check(totals, "cargo-fmt", &["fmt", "--all", "--check"]));
    step(&mut totals, "clippy", |totals| {
        let arguments = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
        cargo_check(totals, "cargo-clippy", &arguments)?;
        // The way in of the hostile suite is in no ordinary build.
        let features = [
            "--features",
            "vmm-core/hostile,device-procs/hostile,forensics/hostile",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ];
        let arguments =
            [&["clippy", "-p", "hostile", "-p", "vmm-core", "-p", "device-procs", "-p", "forensics"][..], &features]
                .concat();
        cargo_check(totals, "cargo-clippy", &arguments)
    });
    step(&mut totals, "tidy", |totals| {
        for problem in tidy::check()? {
            totals.failure(format!("tidy: {problem}"));
        }
        Ok(())
    });

    let binaries = Binaries::build(Profile::Dev)?;
    let programs = binaries::integration_tests()?;
    let lab = Lab::prepare(Emulator::of(Architecture::native())?)?;
    let guest = GuestFiles::make(&lab.folder().join("guest"), &lab.programs, lab.kernel())?;

    step(&mut totals, "unit tests", |totals| {
        let mut command = cargo();
        command.args(["test", "--workspace", "--exclude", "tests", "--no-fail-fast", "--quiet"]);
        libtest(totals, &mut command)?;
        let mut command = cargo();
        command.args(["test", "--package", "tests", "--lib", "--quiet"]);
        libtest(totals, &mut command)
    });

    step(&mut totals, "fuzzing", |totals| {
        totals.add(crate::fuzz::smoke()?);
        Ok(())
    });

    // Each program runs in one place, but those that find more in the lab.
    let (qemu, others): (Vec<_>, Vec<_>) = programs.iter().partition(|program| program.name == QEMU_TESTS);
    let (linux, small): (Vec<_>, Vec<_>) = others.into_iter().partition(|program| program.name == LINUX_TESTS);
    let mut here = qemu;
    let mut there = Vec::new();
    match kvm_is_there() {
        Ok(()) => {
            let needs_cgroup = |program: &&TestProgram| CGROUP_TESTS.contains(&program.name.as_str());
            there.extend(small.iter().copied().filter(needs_cgroup));
            here.extend(small);
        }
        Err(why) => {
            progress(format_args!("the tests of small guests run in the lab, because {why}"));
            there.extend(small);
        }
    }
    match lab::why_not_direct() {
        None => here.extend(linux),
        Some(why) => {
            progress(format_args!("the tests with Linux guests run in the lab, because {why}"));
            there.extend(linux);
        }
    }
    for program in here {
        step(&mut totals, &format!("tests of {}", program.name), |totals| {
            let mut command = Command::new(&program.path);
            command.current_dir(paths::repository().join("tests"));
            command.env("BULKHEAD_BIN_DIR", &binaries.folder);
            command.env("BULKHEAD_GUEST_DIR", lab.folder().join("guest"));
            if program.name == LINUX_TESTS || program.name == QEMU_TESTS {
                // They are ignored by a plain `cargo test` only because it does not make the guest's files.
                command.args(["--include-ignored", "--test-threads", "2"]);
            }
            if program.name == threat_model::TESTS {
                command.arg("--nocapture");
            }
            libtest(totals, &mut command)
        });
    }
    match kvm_is_there() {
        Ok(()) if Architecture::native() == Architecture::X86_64 => {
            step(&mut totals, "policies", |totals| policies::check(totals, &binaries, &programs));
        }
        _ => {
            progress("without small guests here, the policies are not traced: `cargo xtask policies --lab` does it");
            totals.skipped = totals.skipped.saturating_add(1);
        }
    }
    let mut table = Table::default();
    if !there.is_empty() {
        let linux = there.iter().any(|program| program.name == LINUX_TESTS);
        step(&mut totals, "tests in the lab", |totals| {
            let result = in_lab(totals, "test", &lab, &binaries, &guest, &there, "");
            if linux {
                let trial = Trial::new(Machine::X86_64, HOST_SUITE, "");
                table.line(&trial, &lab.kernel().release, totals);
            }
            result
        });
    }
    for trial in matrix::trials(all) {
        step(&mut totals, &format!("guests of {trial}"), |totals| {
            table.attempt(&trial, totals);
            Ok(())
        });
    }
    step(&mut totals, "demo", |totals| {
        match demo::run(None, Profile::Dev)? {
            0 => totals.passed = totals.passed.saturating_add(1),
            code => totals.failure(format!("demo: exit code {code}")),
        }
        Ok(())
    });
    println!("{table}");
    for difference in threat_model::compare(&totals.hostile)? {
        totals.failure(format!("docs/THREAT_MODEL.md: {difference}"));
    }
    Ok(totals)
}

/// Carries out a trial. The version of the guests' kernel is put into `release`; `name` is that of the console's log.
///
/// # Errors
/// As [`run`].
pub(crate) fn linux_in_lab(totals: &mut Totals, name: &str, trial: &Trial, release: &mut String) -> Result<()> {
    let lab = Lab::prepare(trial.machine.emulator()?)?;
    let kernel = Kernel::cloud(&Suite::open(&trial.suite, lab.architecture())?)?;
    release.clone_from(&kernel.release);
    let binaries = Binaries::build_for(lab.architecture())?;
    let mut programs = binaries::integration_test(LINUX_TESTS, lab.architecture())?;
    if trial.hostile {
        programs.extend(binaries::integration_test(threat_model::TESTS, lab.architecture())?);
    }
    if trial.traced {
        policies::check_in_lab(totals, &lab)?;
    }
    let linux: Vec<_> = programs.iter().collect();
    let guest = GuestFiles::make(&lab.folder().join("guest"), &lab.programs, &kernel)?;
    in_lab(totals, name, &lab, &binaries, &guest, &linux, &trial.filter)
}

/// Runs one step, says how long it took, and counts its error as a failure.
fn step(totals: &mut Totals, name: &str, work: impl FnOnce(&mut Totals) -> Result<()>) {
    progress(format_args!("{name}: begins"));
    let start = Instant::now();
    let mut own = Totals::default();
    if let Err(error) = work(&mut own) {
        eprintln!("xtask: {name}: {error:#}");
        own.failure(format!("{name}: {}", error.to_string().lines().next().unwrap_or_default()));
    }
    progress(format_args!("{name}: {own}, after {} s", start.elapsed().as_secs()));
    totals.add(own);
}

/// Runs a check of cargo's that is a program of its own and may not be installed.
fn cargo_check(totals: &mut Totals, tool: &str, arguments: &[&str]) -> Result<()> {
    let missing = find_program(tool).is_none();
    if missing {
        progress(format_args!("{tool} is not installed, so this is skipped: `rustup component add` installs it"));
        totals.skipped = totals.skipped.saturating_add(1);
        return Ok(());
    }
    crate::command::run(cargo().args(arguments).stdin(Stdio::null()))
}

/// Runs a program that prints as libtest does, shows its output and counts.
///
/// # Errors
/// When it cannot be run. A test that fails is counted.
pub(crate) fn libtest(totals: &mut Totals, command: &mut Command) -> Result<()> {
    let mut own = Totals::default();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let output = child.stdout.take().context("a child without output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the output of the tests")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        own.line(line.trim_end());
    }
    let status = child.wait().context("cannot wait for the tests")?;
    if !own.complete {
        own.failure(format!("{}: no test result, {status}", command.get_program().display()));
    } else if !status.success() && own.failed == 0 {
        own.failure(format!("{}: {status}", command.get_program().display()));
    }
    totals.add(own);
    Ok(())
}

/// Whether small guests can run on this machine.
pub(crate) fn kvm_is_there() -> std::result::Result<(), String> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(drop)
        .map_err(|error| format!("/dev/kvm cannot be opened: {error}"))
}

/// Runs test programs in the lab, one after another; `name` is that of the console's log.
///
/// # Errors
/// When the lab fails. A test that fails is counted.
pub(crate) fn in_lab(
    totals: &mut Totals,
    name: &str,
    lab: &Lab,
    binaries: &Binaries,
    guest: &GuestFiles,
    programs: &[&TestProgram],
    filter: &str,
) -> Result<()> {
    let mut disk = lab.disk()?;
    for program in &binaries.programs {
        disk.program(&images::in_lab("bin", program)?, program);
    }
    for file in [&guest.kernel, &guest.initrd, &guest.root] {
        disk.copy(&images::in_lab("guest", file)?, file);
    }
    let mut script = include_str!("../../tests/lab/l1-tests.sh").to_owned();
    for program in programs {
        disk.program(&images::in_lab("tests", &program.path)?, &program.path);
        let path = images::in_lab("tests", &program.path)?;
        let arguments = if program.name == threat_model::TESTS { "--nocapture" } else { filter };
        script.push_str(&format!("run_tests {} /{path} {arguments}\n", program.name));
    }
    script.push_str("exit $status\n");
    disk.script("bulkhead/run", script);

    let mut attempt = attempt(name, lab, &disk, programs.len());
    if attempt.own.failed > 0 && attempt.stuck {
        progress(format_args!(
            "the lab's own kernel was stuck ({LAB_STUCK}), which no program in it can cause: the {} failures above say \
             nothing of ours. Everything once more, in a fresh lab",
            attempt.own.failed
        ));
        attempt = self::attempt(name, lab, &disk, programs.len());
    }
    totals.add(attempt.own);
    let status = attempt.ended?;
    if status != 0 && totals.failed == 0 {
        totals.failure(format!("tests in the lab: status {status}"));
    }
    Ok(())
}

/// One run of a lab.
struct Attempt {
    own: Totals,
    /// Whether the lab's kernel said [`LAB_STUCK`].
    stuck: bool,
    /// The exit status of what ran in it.
    ended: Result<i32>,
}

fn attempt(name: &str, lab: &Lab, disk: &Tree, programs: usize) -> Attempt {
    let mut own = Totals::default();
    let mut stuck = false;
    let mut results = 0;
    let ended = lab.run(
        name,
        disk,
        lab::watch(LAB_PATIENCE, |line| {
            println!("{line}");
            stuck |= line.contains(LAB_STUCK);
            own.complete = false;
            own.line(line);
            results += usize::from(own.complete);
        }),
    );
    // What was counted before the lab failed counts.
    let missing = programs.saturating_sub(results);
    if missing > 0 {
        own.failure(format!("{missing} test programs in the lab gave no result"));
    }
    Attempt { own, stuck, ended }
}
