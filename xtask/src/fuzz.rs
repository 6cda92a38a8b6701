//! `cargo xtask fuzz`: the fuzzers of `fuzz/`, and the unit tests under the address sanitizer.
//!
//! cargo-fuzz is not needed: all that it adds are the compiler's flags below. They are unstable ones, which a stable
//! compiler takes with RUSTC_BOOTSTRAP, and its own runtime of the sanitizer is linked.

use crate::command::{capture, cargo, progress, run};
use crate::totals::Totals;
use crate::{packages, paths};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// How long each target is fuzzed by `cargo xtask test`, in seconds.
const SMOKE_SECONDS: u32 = 20;
/// Fuzzers that run at the same time: one more than the cores of a small machine, as some of them wait for the kernel.
const AT_ONCE: usize = 3;
/// How long one input may take, in seconds: far more than any does, on a machine that does other things as well.
const INPUT_SECONDS: u32 = 25;
/// The most memory of a fuzzer in MiB, with the sanitizer's own.
const MEMORY_MIB: u32 = 2560;
/// The end of a fuzzer's log that is shown when it fails, in lines.
const TAIL_LINES: usize = 40;

/// What tells libFuzzer which code an input reached, and the address sanitizer, whose runtime cannot be in a static
/// program: the flags of cargo-fuzz.
const FUZZ_FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Ctarget-feature=-crt-static --cfg fuzzing";
/// The sanitizer alone.
const SANITIZER_FLAGS: &str = "-Zsanitizer=address -Ctarget-feature=-crt-static";
/// The crates with unsafe modules that have unit tests.
const UNSAFE_CRATES: &[&str] = &["wire", "policies", "vmm-core", "device-procs", "broker"];

/// The arguments of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The targets; all of them if none is named.
    targets: Vec<String>,
    /// How long each is fuzzed, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    time: u32,
    /// List the targets, and what each feeds to what.
    #[arg(long)]
    list: bool,
    /// Write the seeds anew, which are in `fuzz/seeds`.
    #[arg(long)]
    seeds: bool,
    /// Run the unit tests of the crates with unsafe modules under the address sanitizer instead.
    #[arg(long, conflicts_with_all = ["targets", "seeds", "list"])]
    asan_tests: bool,
}

/// A fuzzer.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    name: String,
    about: String,
}

/// The task; each target that ran counts once.
///
/// # Errors
/// When a fuzzer cannot be built, or is not known.
pub(crate) fn main(arguments: &Arguments) -> Result<Totals> {
    let mut totals = Totals::default();
    let mut targets = targets()?;
    if arguments.list {
        for target in &targets {
            println!("{:18} {}", target.name, target.about);
        }
        return Ok(totals);
    }
    if arguments.seeds {
        let folder = paths::repository().join("fuzz/seeds");
        run(cargo().args(["run", "--quiet", "--package", "harness", "--example", "seeds", "--"]).arg(&folder))?;
        return Ok(totals);
    }
    if arguments.asan_tests {
        asan_tests(&mut totals)?;
        return Ok(totals);
    }
    let unknown = arguments.targets.iter().find(|name| !targets.iter().any(|target| target.name == **name));
    if let Some(name) = unknown {
        bail!("there is no target {name:?}; `cargo xtask fuzz --list` names all");
    }
    if !arguments.targets.is_empty() {
        targets.retain(|target| arguments.targets.contains(&target.name));
    }
    fuzz(&targets, arguments.time)
}

/// A short run of every target, for `cargo xtask test`.
///
/// # Errors
/// As [`main`].
pub(crate) fn smoke() -> Result<Totals> {
    fuzz(&targets()?, SMOKE_SECONDS)
}

/// The fuzzers that there are, by the names of their files; each says in its first line what it does.
fn targets() -> Result<Vec<Target>> {
    let folder = paths::repository().join("fuzz/fuzz_targets");
    let mut targets = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?.flatten() {
        let path = entry.path();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let about = text.lines().next().and_then(|line| line.strip_prefix("//! Fuzzes: ")).unwrap_or_default();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        targets.push(Target { name, about: about.trim_end_matches('.').to_owned() });
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

/// Builds the fuzzers of `targets` and runs them, some at a time.
fn fuzz(targets: &[Target], seconds: u32) -> Result<Totals> {
    let programs = build(targets)?;
    let folder = paths::cache_folder("fuzz")?;
    let queue = Mutex::new(targets.iter());
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(target) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                    let result = Fuzzer { target, folder: &folder, programs: &programs }.run(seconds);
                    let Ok(mut totals) = totals.lock() else { return };
                    match result {
                        Ok(said) => {
                            progress(format_args!("fuzz {}: {said}", target.name));
                            totals.passed = totals.passed.saturating_add(1);
                        }
                        Err(error) => {
                            eprintln!("xtask: fuzz {}: {error:#}", target.name);
                            totals.failure(format!("fuzz {}", target.name));
                        }
                    }
                }
            });
        }
    });
    totals.into_inner().map_err(|_poisoned| anyhow::anyhow!("a thread that ran fuzzers died"))
}

/// A folder for what is built with flags of its own.
fn target_folder(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) if !folder.is_empty() => std::path::absolute(folder).context("CARGO_TARGET_DIR is not usable")?,
        _ => paths::repository().join("target"),
    };
    Ok(folder.join(name))
}

/// A cargo with these flags of the compiler, for this machine.
fn sanitized(task: &str, folder: &Path, flags: &str) -> Result<Command> {
    let mut command = cargo();
    command.args([task, "--target", &host()?, "--target-dir"]).arg(folder);
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags).env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(command)
}

/// The name of this machine for the compiler.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = capture(Command::new(rustc).arg("-vV"))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let host =
        said.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not say what host it is for")?;
    Ok(host.to_owned())
}

/// Builds fuzzers; returns the folder with them.
fn build(targets: &[Target]) -> Result<PathBuf> {
    // libFuzzer is C++ and comes as its source.
    packages::install(packages::FUZZ_TOOLS)?;
    progress("building the fuzzers");
    let folder = target_folder("fuzz")?;
    let mut command = sanitized("build", &folder, FUZZ_FLAGS)?;
    command.args(["--release", "--quiet"]).current_dir(paths::repository().join("fuzz"));
    for target in targets {
        command.args(["--bin", &target.name]);
    }
    run(command.stdin(Stdio::null()))?;
    Ok(folder.join(host()?).join("release"))
}

/// A fuzzer about to run.
struct Fuzzer<'a> {
    target: &'a Target,
    folder: &'a Path,
    programs: &'a Path,
}

impl Fuzzer<'_> {
    /// Runs it; says what it did.
    fn run(&self, seconds: u32) -> Result<String> {
        let name = &self.target.name;
        let own = |kind: &str| -> Result<PathBuf> {
            let folder = self.folder.join(kind).join(name);
            paths::directory(&folder)?;
            Ok(folder)
        };
        let (corpus, failures) = (own("corpus")?, own("failures")?);
        let log = self.folder.join(format!("{name}.log"));
        let mut command = Command::new(self.programs.join(name));
        command.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={INPUT_SECONDS}"));
        command.arg(format!("-rss_limit_mb={MEMORY_MIB}")).arg(format!("-artifact_prefix={}/", failures.display()));
        command.args(["-use_value_profile=0", "-max_len=16384", "-print_final_stats=1"]).arg(corpus);
        for kind in ["seeds", "regressions"] {
            let folder = paths::repository().join("fuzz").join(kind).join(name);
            if folder.is_dir() {
                command.arg(folder);
            }
        }
        // Leaks are looked for by a tracer, which containers forbid; memory that grows is found by its limit.
        command.env("ASAN_OPTIONS", "detect_leaks=0");
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = output.try_clone().context("no descriptor is left")?;
        let status = command.stdin(Stdio::null()).stdout(output).stderr(errors).status();
        let status = status.with_context(|| format!("cannot start the fuzzer {name}"))?;
        let said = String::from_utf8_lossy(&fs::read(&log).context("the log of a fuzzer is gone")?).into_owned();
        if !status.success() {
            for line in tail(&said) {
                eprintln!("{line}");
            }
            let input = said.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path);
            let keep = format!("keep it in fuzz/regressions/{name}, where `cargo test -p harness` replays it");
            bail!("failed ({status}) on the input {}; {keep}", input.unwrap_or("of its log"));
        }
        done(&said).with_context(|| format!("the fuzzer {name} did not say what it did; see {}", log.display()))
    }
}

fn tail(log: &str) -> Vec<&str> {
    let lines: Vec<_> = log.lines().collect();
    lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().to_vec()
}

/// Of libFuzzer's last lines, the numbers of inputs and of covered branches.
fn done(log: &str) -> Option<String> {
    let done = log.lines().rev().find(|line| line.starts_with("Done "))?;
    let mut words = log.lines().rev().find(|line| line.contains(" cov: "))?.split_whitespace();
    let covered = words.by_ref().skip_while(|word| *word != "cov:").nth(1)?;
    Some(format!("{}, {covered} places covered", done.trim_start_matches("Done ")))
}

/// The unit tests of the crates with unsafe modules, under the sanitizer.
fn asan_tests(totals: &mut Totals) -> Result<()> {
    let mut command = sanitized("test", &target_folder("asan")?, SANITIZER_FLAGS)?;
    command.args(["--no-fail-fast", "--quiet", "--lib"]);
    for name in UNSAFE_CRATES {
        command.args(["--package", name]);
    }
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    crate::testing::libtest(totals, &mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fuzzer_says_what_it_does() {
        let targets = targets().unwrap();
        assert!(targets.len() > 10);
        assert!(targets.iter().all(|target| !target.about.is_empty()), "{targets:?}");
    }

    #[test]
    fn last_words_of_a_fuzzer_are_understood() {
        let log = "#2\tINITED cov: 55 ft: 56\n#900\tREDUCE cov: 91 ft: 99 corp: 3/9b\nDone 1234 runs in 21 second(s)\n";
        assert_eq!(done(log).as_deref(), Some("1234 runs in 21 second(s), 91 places covered"));
        assert_eq!(done("nothing"), None);
        assert_eq!(tail("a\nb\n"), ["a", "b"]);
    }
}
