//! The end of a run, for a person on standard error and for a program as one JSON object on standard output.

use crate::config::Problem;
use crate::ends::{End, Exit, Reason};
use crate::inspector::{Inspection, finding_lines};
use crate::process::Supervised;
use crate::supervise::{Looked, Outcome};
use crate::timings::Timings;
use nix::sys::stat::{SFlag, fstat};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How a run is reported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// Whether a JSON object is printed.
    pub(crate) json: bool,
    /// Whether the guest's console was on standard output, which may stand in the middle of a line.
    pub(crate) console_on_stdout: bool,
}

/// Ends whatever escape sequence the guest left open, and undoes what could hide or forge our words on a terminal:
/// cancel, string terminator, soft reset, plain text, the main screen, a visible cursor, no mouse or paste reports.
const RESET_TERMINAL: &[u8] =
    b"\x18\x1b\\\x1b[!p\x1b[0m\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?2004l\r\n";

/// Reports a run that was launched.
///
/// `timings` are told if they were asked for.
pub(crate) fn outcome(
    outcome: &mut Outcome,
    style: Style,
    duration: Duration,
    timings: Option<&Timings>,
    started_ns: u64,
) {
    if style.console_on_stdout && std::io::stdout().is_terminal() {
        let mut stdout = std::io::stdout().lock();
        if let Err(error) = stdout.write_all(RESET_TERMINAL).and_then(|()| stdout.flush()) {
            tracing::debug!("the terminal is gone: {error}");
        }
    }
    outcome.preflight.iter_mut().for_each(Looked::tell);
    let outcome = &*outcome;
    let seconds = duration.as_secs_f64();
    say(&format!("{} (after {seconds:.1} s)", outcome.end.message));
    for (name, dropped) in outcome.console.names.iter().zip(&outcome.console.dropped_bytes) {
        if *dropped > 0 {
            say(&format!(
                "{dropped} bytes of console output did not go to {name}: it was full (console.limit) or stuck"
            ));
        }
    }
    for ((process, syscall), count) in &outcome.missed {
        say(&format!("audit: {process} made {count} calls of {syscall} that its policy lacks"));
    }
    if !matches!(outcome.end.reason, Reason::GuestPoweroff | Reason::GuestReboot) {
        for (vcpu, lines) in &outcome.registers {
            say(&format!("vCPU {vcpu}, its registers and last exits:"));
            lines.iter().for_each(|line| say(&format!("  {line}")));
        }
    }
    for finding in outcome.explanation.iter().flat_map(|explanation| &explanation.findings) {
        finding_lines(finding).iter().for_each(|line| say(line));
    }
    if let Some(why) = outcome.explanation.as_ref().and_then(|explanation| explanation.cannot_tell.as_ref()) {
        say(&format!("the end could not be explained: {why}"));
    }
    for line in timings.iter().flat_map(|timings| timings.lines()) {
        say(&line);
    }
    if style.json {
        let mut value = run_json(outcome, duration, started_ns);
        if let (Some(timings), Some(object)) = (timings, value.as_object_mut()) {
            object.insert("timings".to_owned(), timings.json());
        }
        print_json(&value, style.console_on_stdout);
    }
}

/// Reports a run that could not be launched.
pub(crate) fn failure(end: &End, style: Style, duration: Duration) {
    say(&end.message);
    if style.json {
        let value = json!({
            "reason": end.reason.name(), "exit_code": end.reason.code(), "message": end.message,
            "duration_ms": millis(duration), "first_console_byte_ms": null,
            "console": { "received_bytes": 0, "dropped": [] }, "processes": [],
            "preflight": [], "explanation": [],
        });
        print_json(&value, false);
    }
}

/// Reports what is wrong with a config; as JSON, also that nothing is.
pub(crate) fn problems(problems: &[Problem], json: bool) {
    for problem in problems {
        say(&problem.to_string());
    }
    if json {
        let reason = if problems.is_empty() { Value::Null } else { Reason::Config.name().into() };
        let code = if problems.is_empty() { 0 } else { Reason::Config.code() };
        let all: Vec<_> = problems.iter().map(Problem::json).collect();
        let message = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        print_json(&json!({ "reason": reason, "exit_code": code, "message": message, "problems": all }), false);
    }
}

/// Prints `value` as the last line of standard output, at the start of a line.
pub(crate) fn print_json(value: &Value, after_console: bool) {
    let line = format!("{}{value}\n", if after_console { "\n" } else { "" });
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
        tracing::debug!("standard output is gone: {error}");
    }
}

/// Prints lines on standard output.
pub(crate) fn print_lines(lines: &[String]) {
    let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        tracing::debug!("standard output is gone: {error}");
    }
}

/// Tells the user something on standard error.
pub(crate) fn say(text: &str) {
    // Not eprintln!, which panics when standard error is gone.
    if let Err(error) = writeln!(std::io::stderr(), "broker: {text}") {
        tracing::debug!("standard error is gone: {error}");
    }
}

/// Whether what is said while the guest runs cannot keep the broker waiting: a pipe does when it is full and nobody reads it.
pub(crate) fn is_read_at_once() -> bool {
    let stderr = std::io::stderr();
    let is_file =
        || fstat(&stderr).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG);
    stderr.is_terminal() || is_file()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn run_json(outcome: &Outcome, duration: Duration, started_ns: u64) -> Value {
    let first_byte_ms = outcome.console.first_byte_ns.map(|at| at.saturating_sub(started_ns) / 1_000_000);
    let dropped: Vec<_> = outcome
        .console
        .names
        .iter()
        .zip(&outcome.console.dropped_bytes)
        .map(|(output, bytes)| json!({ "output": output, "bytes": bytes }))
        .collect();
    let missed: Vec<_> = outcome
        .missed
        .iter()
        .map(|((process, syscall), count)| json!({ "process": process, "syscall": syscall, "count": count }))
        .collect();
    json!({
        "reason": outcome.end.reason.name(),
        "exit_code": outcome.end.reason.code(),
        "message": outcome.end.message,
        "duration_ms": millis(duration),
        "first_console_byte_ms": first_byte_ms,
        "console": { "received_bytes": outcome.console.received_bytes, "dropped": dropped },
        "processes": outcome.processes.iter().map(process_json).collect::<Vec<_>>(),
        "confinement": outcome.confinement,
        "audit": missed,
        "preflight": outcome.preflight.iter().map(Looked::json).collect::<Vec<_>>(),
        "explanation": outcome.explanation.as_ref().map(Inspection::findings_json).unwrap_or_default(),
        "registers": outcome
            .registers
            .iter()
            .map(|(vcpu, lines)| json!({ "vcpu": vcpu, "lines": lines.iter().map(ToString::to_string).collect::<Vec<_>>() }))
            .collect::<Vec<_>>(),
    })
}

fn process_json(process: &Supervised) -> Value {
    let exit = process.ended.map(|ended| match ended.exit {
        Exit::Code(code) => json!({ "code": code }),
        Exit::Signal(signal) => json!({ "signal": signal, "by_broker": process.killed }),
    });
    json!({
        "name": process.name,
        "pid": process.child.pid.as_raw(),
        "exit": exit,
        "peak_rss_kib": process.ended.map(|ended| ended.peak_rss_kib),
        "user_ms": process.ended.map(|ended| ended.user_ms),
        "system_ms": process.ended.map(|ended| ended.system_ms),
        "landlock_abi": process.lockdown.map(|lockdown| lockdown.landlock_abi),
    })
}
