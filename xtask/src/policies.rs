//! `cargo xtask policies`: what the tests make of the seccomp policies, for each filter: which rules are used how often,
//! which are not and must go or be marked, and which calls are missing.

use crate::architecture::Architecture;
use crate::binaries::{self, Binaries, Profile, TestProgram};
use crate::command::progress;
use crate::emulator::Emulator;
use crate::lab::Lab;
use crate::testing;
use crate::totals::Totals;
use crate::traced::{self, Traced};
use anyhow::{Context, Result};
use policies::rules::{Arch, Mark, policies};
use policies::usage::{Finding, Scope, ThreadUse, Usage, parse};
use serde_json::{Value, json};

impl Architecture {
    fn of_policies(self) -> Arch {
        match self {
            Self::X86_64 => Arch::X86_64,
            Self::Aarch64 => Arch::Aarch64,
        }
    }
}

/// Traces the tests and prints the table, or JSON; whether everything is as it must be. Without `lab`, only those tests
/// with small guests run that suffice; small guests are for x86_64 only.
///
/// # Errors
/// When something cannot be built, or the tracing fails.
pub(crate) fn run(architecture: Architecture, lab: bool, as_json: bool) -> Result<bool> {
    let small = architecture == Architecture::X86_64 && testing::kvm_is_there().is_ok();
    let lab = lab || !small;
    let mut traced = Traced::default();
    if small && architecture == Architecture::native() {
        traced.add(traced::here(&Binaries::build(Profile::Dev)?, &binaries::integration_tests()?, lab)?);
    }
    if lab {
        progress("tracing the tests with Linux guests, in the lab");
        traced.add(traced::in_lab(&Lab::prepare(Emulator::of(architecture)?)?, !small)?);
    }
    let scope = if lab { Scope::Linux } else { Scope::Small };
    let usage = usage(architecture, &traced.trace, scope)?;
    if as_json {
        println!("{}", in_json(architecture, &usage));
    } else {
        print!("{usage}");
        usage.problems().iter().for_each(|problem| println!("{problem}"));
    }
    for failure in &traced.failures {
        eprintln!("xtask: failed while traced, so that the uses may be too few: {failure}");
    }
    Ok(usage.is_clean() && traced.failures.is_empty())
}

/// The part of it that small guests can tell, as a step of the tests.
///
/// # Errors
/// As [`run`].
pub(crate) fn check(totals: &mut Totals, binaries: &Binaries, programs: &[TestProgram]) -> Result<()> {
    judge(totals, Architecture::X86_64, traced::here(binaries, programs, false)?, Scope::Small)
}

/// The same with Linux guests in a lab, whose tests count as well: all but [`traced::SLOW_TESTS`].
///
/// # Errors
/// As [`run`].
pub(crate) fn check_in_lab(totals: &mut Totals, lab: &Lab) -> Result<()> {
    judge(totals, lab.architecture(), traced::in_lab(lab, true)?, Scope::Linux)
}

fn judge(totals: &mut Totals, architecture: Architecture, traced: Traced, scope: Scope) -> Result<()> {
    let usage = usage(architecture, &traced.trace, scope)?;
    print!("{usage}");
    // Those that a lab has counted are among the totals already.
    if traced.totals.failed == 0 {
        for failure in traced.failures {
            totals.failure(format!("policies: {failure}, while traced"));
        }
    }
    totals.add(traced.totals);
    for problem in usage.problems() {
        totals.failure(format!("policies: {problem}"));
    }
    // Each filter counts as a test.
    let filters = usage.threads.iter().filter(|thread| thread.rules.iter().all(|rule| rule.finding.is_none()));
    totals.passed = totals.passed.saturating_add(u64::try_from(filters.count()).unwrap_or(0));
    Ok(())
}

fn usage(architecture: Architecture, trace: &str, scope: Scope) -> Result<Usage> {
    let calls = parse(trace).context("the trace cannot be used")?;
    Ok(Usage::new(policies(architecture.of_policies()), &calls, scope))
}

fn in_json(architecture: Architecture, usage: &Usage) -> Value {
    let rules = |thread: &ThreadUse| -> Vec<Value> {
        let rules = thread.rules.iter().map(|used| {
            let (mark, reason) = match used.rule.mark {
                Mark::None => (None, None),
                Mark::Unexercised(why) => (Some("unexercised"), Some(why)),
                Mark::Lab(why) => (Some("lab"), Some(why)),
                Mark::Sometimes(why) => (Some("sometimes"), Some(why)),
            };
            let finding = used.finding.map(|finding| match finding {
                Finding::Surplus => "surplus",
                Finding::StaleMark => "stale mark",
            });
            json!({ "rule": used.rule.to_string(), "syscall": used.rule.syscall, "why": used.rule.why, "count": used.count,
                    "mark": mark, "mark_reason": reason, "finding": finding })
        });
        rules.collect()
    };
    let threads = usage.threads.iter().map(|thread| {
        json!({ "process": thread.policy.process.name(), "thread": thread.policy.thread,
                "system_calls": thread.policy.syscalls().len(), "rules": rules(thread) })
    });
    let missing = usage.missing.iter().map(|call| {
        json!({ "process": call.process, "thread": call.thread, "syscall": call.syscall, "args": call.args,
                "count": call.count })
    });
    json!({ "architecture": architecture.of_policies().name(), "clean": usage.is_clean(),
            "filters": threads.collect::<Vec<_>>(), "missing": missing.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_names_each_filter_and_what_is_missing() {
        let trace = "serial main poll _ _ _ _ _ _ 7\nserial main openat _ _ _ _ _ _ 1\n";
        let usage = usage(Architecture::X86_64, trace, Scope::Small).unwrap();
        let json = in_json(Architecture::X86_64, &usage);
        assert_eq!(json.pointer("/clean"), Some(&json!(false)));
        assert_eq!(json.pointer("/filters").and_then(Value::as_array).map(Vec::len), Some(7));
        assert_eq!(json.pointer("/missing/0/syscall"), Some(&json!("openat")));
        assert_eq!(json.pointer("/missing").and_then(Value::as_array).map(Vec::len), Some(1));
    }
}
