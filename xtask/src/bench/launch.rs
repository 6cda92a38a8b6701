//! Launch: from exec to the guest's first byte, and to the end of the last process after the guest's reset.

use super::Setup;
use super::figure::{Better, Figures};
use super::run::Vm;
use super::subject::Subject;
use crate::command::progress;
use anyhow::Result;
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;

const GROUP: &str = "launch";

/// Runs of each subject unless told otherwise.
const RUNS: usize = 40;

/// Runs whose steps are looked at.
const TIMED: usize = 9;

/// Measures.
///
/// # Errors
/// When a run fails.
pub(crate) fn measure(setup: &Setup, figures: &mut Figures) -> Result<()> {
    let subjects = [Subject::Bulkhead, Subject::Qemu, Subject::Floor];
    let runs = setup.runs.unwrap_or(RUNS);
    progress(format_args!("launch: {runs} runs of each"));
    for subject in subjects {
        once(setup, subject)?;
    }
    for _ in 0..runs {
        for subject in subjects {
            let (first, gone) = once(setup, subject)?;
            let mut add = |name, time: Duration| {
                figures.add(GROUP, (name, "ms", Better::Lower), subject.name(), time.as_secs_f64() * 1e3);
            };
            add("first byte", first);
            add("gone", gone);
            add("gone after the first byte", gone.saturating_sub(first));
        }
    }
    Ok(())
}

/// One run: when its first byte came, and when all of it was gone.
fn once(setup: &Setup, subject: Subject) -> Result<(Duration, Duration)> {
    let command = subject.command(setup, &setup.guests.quick(), subject.end());
    let mut vm = Vm::start(command, &setup.log())?;
    let first = vm.await_byte()?;
    Ok((first, vm.await_gone(subject.end_code())?))
}

/// What the steps of a launch took, as the broker says it: those of the run that is in the middle of several. Nothing
/// where it does not know `--timings`.
pub(crate) fn timings(setup: &Setup) -> Option<Value> {
    let mut all: Vec<_> = (0..TIMED).map_while(|_| timed(setup)).collect();
    all.sort_by_key(end_us);
    (all.len() == TIMED).then(|| all.swap_remove(TIMED / 2))
}

/// The steps of one run.
fn timed(setup: &Setup) -> Option<Value> {
    let mut command = Subject::Bulkhead.command(setup, &setup.guests.quick(), Subject::Bulkhead.end());
    let output = command.args(["--timings", "--json"]).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut report: Value = serde_json::from_str(text.lines().last()?).ok()?;
    Some(report.get_mut("timings")?.take()).filter(Value::is_array)
}

/// When the last step was done.
fn end_us(timings: &Value) -> u64 {
    let ends = timings.as_array().into_iter().flatten().filter_map(|step| step.get("to_us")?.as_u64());
    ends.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn end_of_a_launch_is_that_of_its_last_step() {
        assert_eq!(end_us(&json!([{"to_us": 7}, {"to_us": 9}, {"to_us": 3}])), 9);
        assert_eq!(end_us(&json!({})), 0);
    }
}
