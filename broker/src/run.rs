//! `broker run` and `broker check`.

use crate::cli::{CheckArgs, Cli, RunArgs};
use crate::config::{self, Host, Origin, Place, Plan, Problem};
use crate::ends::{End, Reason};
use crate::launch::launch;
use crate::oom::OomWatch;
use crate::process::Spawner;
use crate::report::{self, Style};
use crate::supervise::{Supervisor, catch_signals};
use crate::timings::Timings;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// The longest config file.
const CONFIG_BYTES: u64 = 1 << 20;

/// `broker run`.
pub(crate) fn main(cli: &Cli, args: &RunArgs, started: Instant, timings: &Timings) -> ExitCode {
    let plan = match read(args.config.as_deref(), Some(&args.machine)) {
        Ok(plan) => plan,
        Err(problems) => {
            report::problems(&problems, args.json);
            return Reason::Config.exit_code();
        }
    };
    timings.own("config", timings.origin_ns());
    let mut style = Style { json: args.json, console_on_stdout: false };
    let failed = |end: End, style| {
        report::failure(&end, style, started.elapsed());
        end.reason.exit_code()
    };
    let oom = OomWatch::start();
    let signals = match catch_signals() {
        Ok(signals) => signals,
        Err(errno) => return failed(End::new(Reason::HostError, format!("signals cannot be caught: {errno}")), style),
    };
    let on_stdio = plan.console.stdio;
    let launched = match launch(plan, &mut Spawner::new(cli.bin_dir.as_deref(), timings.clone()), args.audit) {
        Ok(launched) => launched,
        Err(error) => return failed(error.into_end(), style),
    };
    let mut outcome = Supervisor::new(launched, signals, oom, started, timings.clone()).run();
    style.console_on_stdout = on_stdio && outcome.console.first_byte_ns.is_some();
    report::outcome(&mut outcome, style, started.elapsed(), args.timings.then_some(timings), timings.origin_ns());
    outcome.end.reason.exit_code()
}

/// `broker check`.
pub(crate) fn check(args: &CheckArgs) -> ExitCode {
    match read(Some(&args.config), None) {
        Ok(_) => {
            report::problems(&[], args.json);
            ExitCode::SUCCESS
        }
        Err(problems) => {
            report::problems(&problems, args.json);
            Reason::Config.exit_code()
        }
    }
}

/// Reads the config and the flags, and checks both; creates nothing.
fn read(file: Option<&Path>, flags: Option<&crate::cli::MachineArgs>) -> Result<Plan, Vec<Problem>> {
    let (mut draft, mut problems) = match file {
        Some(file) => config::parse(file, &read_text(file).map_err(|problem| vec![problem])?),
        None => (config::Draft::default(), Vec::new()),
    };
    if let Some(flags) = flags {
        problems.extend(config::override_with_flags(&mut draft, flags));
    }
    match config::check(draft, Host::probe()) {
        Ok(plan) if problems.is_empty() => Ok(plan),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            problems.sort_by_key(|problem| match problem.origin.place {
                Place::Line { line, .. } => line,
                Place::CommandLine => 0,
            });
            Err(problems)
        }
    }
}

fn read_text(file: &Path) -> Result<String, Problem> {
    let origin =
        Origin { place: Place::Line { file: file.display().to_string().into(), line: 1 }, key: "config".to_owned() };
    let opened = crate::files::open_file(file, crate::files::Kind::Regular, false)
        .map_err(|error| Problem::new(&origin, error.to_string(), "name a config file (TOML)"))?;
    if opened.bytes > CONFIG_BYTES {
        return Err(Problem::new(&origin, "is larger than 1 MiB", "name a config file (TOML)"));
    }
    std::io::read_to_string(opened.file)
        .map_err(|error| Problem::new(&origin, format!("cannot be read: {error}"), "write valid TOML in UTF-8"))
}
