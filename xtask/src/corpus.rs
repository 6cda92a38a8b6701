//! `cargo xtask corpus`: boots images that are really broken, in QEMU alone, and keeps what the console said with what is
//! to be found in it. `forensics/tests/corpus.rs` reads them.

mod bench;
mod boot;
mod breakages;
mod cases;
mod library;
mod module;
mod programs;
mod root;

use crate::architecture::Architecture;
use crate::command::progress;
use crate::totals::Totals;
use crate::{packages, paths};
use anyhow::{Context, Result};
use bench::{Bench, SERIES};
use boot::Boot;
use cases::{CASES, Case, name_of};
use clap::Args;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

/// Machines that are emulated at the same time.
const AT_ONCE: usize = 2;

/// The arguments of `cargo xtask corpus`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only the logs whose file name contains one of these; all if none is given.
    filters: Vec<String>,
    /// Only those that are not there.
    #[arg(long)]
    missing: bool,
    /// List the cases and boot nothing.
    #[arg(long)]
    list: bool,
}

/// The folder of the logs.
fn folder() -> PathBuf {
    paths::repository().join("forensics/corpus")
}

/// A log to be made.
struct Job<'a> {
    case: &'static Case,
    bench: &'a Bench,
}

/// The task: each log counts once.
///
/// # Errors
/// When a package cannot be had or the manifest cannot be written.
pub(crate) fn main(arguments: &Arguments) -> Result<Totals> {
    let mut totals = Totals::default();
    if arguments.list {
        for case in CASES {
            println!("{:28} {}", case.name, case.about);
        }
        return Ok(totals);
    }
    packages::install(packages::IMAGE_TOOLS)?;
    packages::install(packages::LAB_TOOLS)?;
    packages::install(packages::ARM_LAB_TOOLS)?;
    packages::install(packages::COMPILERS)?;
    let wanted = |name: &str| {
        (arguments.filters.is_empty() || arguments.filters.iter().any(|filter| name.contains(filter.as_str())))
            && !(arguments.missing && folder().join(name).exists())
    };
    let mut benches = Vec::new();
    for architecture in [Architecture::X86_64, Architecture::Aarch64] {
        for (series, suite) in SERIES {
            if CASES
                .iter()
                .any(|case| case.runs_on(architecture, series) && wanted(&log_name(case, architecture, series)))
            {
                benches.push(Bench::open(architecture, series, suite)?);
            }
        }
    }
    let mut jobs: Vec<_> = benches
        .iter()
        .flat_map(|bench| CASES.iter().map(move |case| Job { case, bench }))
        .filter(|job| job.case.runs_on(job.bench.architecture, job.bench.series))
        .filter(|job| wanted(&log_name(job.case, job.bench.architecture, job.bench.series)))
        .collect();
    progress(format_args!("{} logs to make", jobs.len()));
    jobs.reverse();
    let queue = Mutex::new(jobs);
    let results = Mutex::new(&mut totals);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(job) = queue.lock().ok().and_then(|mut queue| queue.pop()) {
                    let name = log_name(job.case, job.bench.architecture, job.bench.series);
                    let result = make(&job, &name);
                    let Ok(mut totals) = results.lock() else { return };
                    match result {
                        Ok(bytes) => {
                            progress(format_args!("{name}: {bytes} bytes"));
                            totals.passed = totals.passed.saturating_add(1);
                        }
                        Err(error) => totals.failure(format!("{name}: {error:#}")),
                    }
                }
            });
        }
    });
    remove_others()?;
    paths::write_atomically(&folder().join("expected.toml"), manifest()?.as_bytes())?;
    Ok(totals)
}

/// Removes the logs that no case makes any more.
fn remove_others() -> Result<()> {
    let on_any = |name: &str| {
        [Architecture::X86_64, Architecture::Aarch64].into_iter().any(|architecture| {
            SERIES.iter().any(|(series, _)| {
                let made =
                    |case: &&Case| case.runs_on(architecture, series) && log_name(case, architecture, series) == name;
                CASES.iter().any(|case| made(&case))
            })
        })
    };
    for entry in fs::read_dir(folder()).context("cannot list the corpus")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".log") && !on_any(&name) {
            fs::remove_file(entry.path()).with_context(|| format!("cannot remove {name}"))?;
        }
    }
    Ok(())
}

fn log_name(case: &Case, architecture: Architecture, series: &str) -> String {
    format!("{}-{series}-{}.log", name_of(architecture), case.name)
}

/// Makes one log, and gives its size.
fn make(job: &Job<'_>, name: &str) -> Result<usize> {
    let run = paths::run_folder()?;
    let mut boot = Boot::healthy(job.bench, run.path());
    (job.case.break_it)(job.bench, &mut boot).context("cannot make what is to be booted")?;
    let log = boot.run(job.bench)?;
    paths::write_atomically(&folder().join(name), &log)?;
    Ok(log.len())
}

/// The manifest: every log that is there, and its first finding.
fn manifest() -> Result<String> {
    let mut text =
        "# Which finding comes first in each log; none for a boot that went well. Written by `cargo xtask corpus`\n\
        # from the table in xtask/src/corpus/cases.rs.\n"
            .to_owned();
    for architecture in [Architecture::X86_64, Architecture::Aarch64] {
        for (series, _) in SERIES {
            for case in CASES.iter().filter(|case| case.runs_on(architecture, series)) {
                let name = log_name(case, architecture, series);
                if !folder().join(&name).exists() {
                    continue;
                }
                write!(text, "\n[[log]]\nfile = \"{name}\"\nabout = \"{}\"\n", case.about)?;
                if let Some(id) = (case.expected)(architecture, series) {
                    writeln!(text, "first = \"{id}\"")?;
                }
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_names_are_unique_and_every_series_is_used() {
        let mut names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
        for architecture in [Architecture::X86_64, Architecture::Aarch64] {
            for (series, _) in SERIES {
                assert!(CASES.iter().filter(|case| case.runs_on(architecture, series)).count() > 10, "{series}");
            }
        }
    }
}
