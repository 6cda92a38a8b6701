//! `broker explain`: what a console log means.

use super::Inspection;
use super::log::Log;
use crate::cli::{Cli, ExplainArgs};
use crate::process::Spawner;
use crate::report;
use crate::timings::Timings;
use serde_json::json;
use std::os::fd::AsFd;
use std::process::ExitCode;
use wire::message::{InspectorTask, LogForm};

/// How it ended, and the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Explained = 0,
    NothingToExplain = 1,
    CannotTell = 3,
}

impl Outcome {
    fn of(inspection: &Inspection) -> Self {
        if inspection.cannot_tell.is_some() {
            Self::CannotTell
        } else if inspection.findings.is_empty() {
            Self::NothingToExplain
        } else {
            Self::Explained
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Explained => "explained",
            Self::NothingToExplain => "nothing-to-explain",
            Self::CannotTell => "cannot-tell",
        }
    }
}

/// `broker explain`.
pub(crate) fn main(cli: &Cli, args: &ExplainArgs) -> ExitCode {
    let inspection = explain(cli, args).unwrap_or_else(Inspection::failed);
    let outcome = Outcome::of(&inspection);
    if args.json {
        let value = json!({ "facts": inspection.facts_json(), "findings": inspection.findings_json(), "outcome": outcome.name(), "exit_code": outcome as u8,
                            "message": inspection.cannot_tell });
        report::print_json(&value, false);
        inspection.cannot_tell.iter().for_each(|why| report::say(why));
    } else {
        let mut lines: Vec<_> = inspection.findings.iter().flat_map(super::result::finding_lines).collect();
        match (outcome, &inspection.cannot_tell) {
            (_, Some(why)) => report::say(why),
            (Outcome::NothingToExplain, None) => lines.push("there is nothing to explain in this log".to_owned()),
            _ => {}
        }
        lines.extend(inspection.fact_lines());
        report::print_lines(&lines);
    }
    ExitCode::from(outcome as u8)
}

fn explain(cli: &Cli, args: &ExplainArgs) -> Result<Inspection, String> {
    let log = Log::copy(args.log.as_deref()).map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    if log.left_out > 0 {
        report::say(&format!(
            "{} is long: its first and its last 8 MiB are looked at, the {} bytes between them are not",
            log.name, log.left_out
        ));
    }
    let task = InspectorTask::Explain { architecture: args.arch.map(Into::into), form: LogForm::Plain };
    let mut spawner = Spawner::new(cli.bin_dir.as_deref(), Timings::default());
    super::run_alone(&mut spawner, args.audit, task, &[log.reader.as_fd()])
        .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

/// The exit codes, as `--help` shows them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes (the JSON outcome in brackets):
   0  an explanation was printed [explained]
   1  there is nothing to explain [nothing-to-explain]
   3  the log could not be looked at [cannot-tell]";
