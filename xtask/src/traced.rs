//! Running the end-to-end tests with a broker that is traced: here, with small guests, and in a lab.
//!
//! A folder takes the place of the one with the binaries: in it, `broker` is a script that has the real one traced.

use crate::architecture::Architecture;
use crate::binaries::{self, Binaries, TestProgram};
use crate::command::{capture_text, progress};
use crate::console::Patience;
use crate::images::{self, GuestFiles};
use crate::lab::{self, Lab};
use crate::paths;
use crate::totals::Totals;
use anyhow::{Context, Result};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// The tests with small guests that make the processes do all that such guests can.
const SMALL_SUITES: &[&str] = &["kvm", "ends", "jails", "user"];
/// Those that only add time.
const OTHER_SUITES: &[&str] = &["hostile", "leftovers", "refusals"];
/// The tests with Linux guests.
const LINUX_SUITE: &str = "linux";
/// The program that traces.
const TRACER: &str = "trace";
/// A test whose broker must be alone in its cgroup, which its tracer would share.
const STAGED: &str = "ordinary_user_with_a_cgroup_of_its_own";
/// Tests that make no other calls than others do, and most of them: a long console without an interrupt, each character of
/// which stops twice.
pub(crate) const SLOW_TESTS: &str = "kernel_and_initramfs kernel_disk_and_six undefined_instruction";
/// Another one, which takes longer than all others.
const SLOWEST: &str = "many_vcpus";
/// What a line of a trace begins with on a lab's console.
const MARK: &str = "bulkhead-trace: ";
/// How long the tests in the lab may take, and how long they may be silent.
const PATIENCE: Patience = Patience { total: Duration::from_secs(3600), silence: Duration::from_secs(400) };

/// Whether a program is one of the project, not of its tests.
fn is_real(program: &Path) -> bool {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    name == "broker" || name.starts_with("bulkhead-")
}

/// What was traced.
#[derive(Debug, Default)]
pub(crate) struct Traced {
    /// What the tracers wrote down.
    pub(crate) trace: String,
    /// Tests that failed meanwhile, so that what they would have exercised may be missing.
    pub(crate) failures: Vec<String>,
    /// The counts of the tests in a lab.
    pub(crate) totals: Totals,
}

impl Traced {
    /// Adds another.
    pub(crate) fn add(&mut self, other: Self) {
        self.trace.push_str(&other.trace);
        self.failures.extend(other.failures);
        self.totals.add(other.totals);
    }
}

/// A folder that stands in for that of the binaries.
struct Stage(TempDir);

impl Stage {
    fn new(binaries: &Binaries) -> Result<Self> {
        // The folder of the repository may be one that the other user of some tests cannot look into.
        let stage = Self(tempfile::Builder::new().prefix("bulkhead-traced-").tempdir().context("no temporary folder")?);
        for name in ["bin", "real", "traces"] {
            fs::create_dir(stage.path(name)).context("no temporary folder")?;
        }
        fs::set_permissions(stage.0.path(), Permissions::from_mode(0o755)).context("the folder stays closed")?;
        fs::set_permissions(stage.path("traces"), Permissions::from_mode(0o1777)).context("the folder stays closed")?;
        for program in &binaries.programs {
            let name = program.file_name().context("a program without a name")?;
            let real = stage.path("real").join(name);
            fs::copy(program, &real).with_context(|| format!("cannot copy {}", program.display()))?;
            if name != "broker" {
                symlink(&real, stage.path("bin").join(name)).context("cannot link to a program")?;
            }
        }
        let lock = stage.path("traces").join("lock");
        File::create(&lock).and_then(|file| file.set_permissions(Permissions::from_mode(0o666))).context("no lock")?;
        let real = stage.path("real");
        let (tracer, broker) = (real.join(TRACER), real.join("broker"));
        let script = format!(
            "#!/bin/sh\nexec '{}' '{}' '{}' \"$@\"\n",
            tracer.display(),
            stage.path("traces").display(),
            broker.display()
        );
        let path = stage.path("bin").join("broker");
        fs::write(&path, script).context("cannot write a script")?;
        fs::set_permissions(&path, Permissions::from_mode(0o755)).context("cannot write a script")?;
        Ok(stage)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// All traces, once their tracers are done.
    fn traces(&self) -> Result<String> {
        capture_text(Command::new(self.path("real").join(TRACER)).arg(self.path("traces")))
    }
}

/// Runs the tests with small guests on this machine's /dev/kvm, `all` of them or those that suffice. A test that
/// fails has its output shown.
///
/// # Errors
/// When the tests cannot be started, or the tracing fails.
pub(crate) fn here(binaries: &Binaries, programs: &[TestProgram], all: bool) -> Result<Traced> {
    let stage = Stage::new(binaries)?;
    let mut failures = Vec::new();
    let others = if all { OTHER_SUITES } else { &[] };
    for name in SMALL_SUITES.iter().chain(others) {
        let program = programs.iter().find(|program| program.name == *name);
        let program = program.with_context(|| format!("there are no tests called {name}"))?;
        progress(format_args!("tracing the tests of {name}"));
        let output = Command::new(&program.path)
            .args(["--skip", STAGED])
            .current_dir(paths::repository().join("tests"))
            .env("BULKHEAD_BIN_DIR", stage.path("bin"))
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", program.path.display()))?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            eprintln!("{}", String::from_utf8_lossy(&said));
            failures.push(format!("the tests of {name}"));
        }
    }
    Ok(Traced { trace: stage.traces()?, failures, totals: Totals::default() })
}

/// Runs the tests with Linux guests in a lab, and those with small guests too where this machine cannot.
///
/// # Errors
/// When the lab or the tracing fails.
pub(crate) fn in_lab(lab: &Lab, small: bool) -> Result<Traced> {
    let architecture = lab.architecture();
    let binaries = Binaries::build_traced_for(architecture)?;
    let mut suites = vec![LINUX_SUITE];
    // Small guests are for x86_64 only.
    if small && architecture == Architecture::X86_64 {
        suites.extend(SMALL_SUITES);
    }
    let mut disk = lab.disk()?;
    for program in &binaries.programs {
        let folder = if is_real(program) { "real" } else { "tools" };
        disk.program(&images::in_lab(folder, program)?, program);
    }
    let guest = GuestFiles::make(&lab.folder().join("guest"), &lab.programs, lab.kernel())?;
    for file in [&guest.kernel, &guest.initrd, &guest.root] {
        disk.copy(&images::in_lab("guest", file)?, file);
    }
    let mut script = include_str!("../../tests/lab/l1-tests.sh").to_owned();
    script.push_str(include_str!("../../tests/lab/l1-trace.sh"));
    for name in suites {
        for program in binaries::integration_test(name, architecture)? {
            disk.program(&images::in_lab("tests", &program.path)?, &program.path);
            let path = images::in_lab("tests", &program.path)?;
            let slow = SLOW_TESTS.split(' ').chain([SLOWEST, STAGED]);
            let skipped: Vec<_> = slow.map(|name| format!("--skip {name}")).collect();
            script.push_str(&format!("run_tests {name} /{path} {}\n", skipped.join(" ")));
        }
    }
    script.push_str("print_traces\nexit $status\n");
    disk.script("bulkhead/run", script);
    let mut trace = String::new();
    let mut totals = Totals::default();
    let name = format!("policies-{}", architecture.debian());
    let status = lab.run(
        &name,
        &disk,
        lab::watch(PATIENCE, |line| match line.strip_prefix(MARK) {
            Some(line) => {
                trace.push_str(line);
                trace.push('\n');
            }
            None => {
                eprintln!("{line}");
                totals.line(line);
            }
        }),
    )?;
    let mut failures = totals.failures.clone();
    if failures.is_empty() && (status != 0 || !totals.complete) {
        failures.push("tests in the lab".to_owned());
    }
    Ok(Traced { trace, failures, totals })
}
