//! What a console log means.
//!
//! One pass over the log finds which entries of the knowledge (`knowledge/*.toml`) apply, and what else the log says: the
//! kernel, how far it came, faults, registers, call traces. Then the causes are put before their consequences. A guest can
//! forge every line, so that a log makes a finding likely at most; certain is only what the host saw.
//!
//! Bounds, whatever the log: [`lines::MAX_LOG_BYTES`] are read, [`lines::MAX_LINE_BYTES`] of a line, one hit for each entry is
//! kept, and a fixed number of faults and traces.

mod context;
mod decode;
mod host;
pub mod knowledge;
pub mod lines;
mod names;
pub mod pattern;
mod rank;
mod scan;
mod trace;

#[cfg(test)]
mod knowledge_tests;

pub use host::HostEvidence;

use crate::Report;
use scan::Scan;

/// Explains a console log.
#[must_use]
pub fn console(log: &[u8], host: &HostEvidence) -> Report {
    let scan = Scan::of(log);
    let mut global = scan.context.global();
    host.bind(&mut global);
    let mut report = Report::default();
    for name in ["kernel", "architecture", "stage", "command-line"] {
        if let Some(value) = global.get(name) {
            report.fact(name, value);
        }
    }
    let ranked = rank::rank(&scan, &global);
    if let Some(first) = ranked.first()
        && let Some(trace) = first.line.and_then(|line| scan.context.trace_at(line))
    {
        if let Some(path) = trace.path() {
            report.fact("trace-path", path);
        }
        for (number, frame) in (1..).zip(&trace.frames) {
            report.fact_of(&format!("frame {number}"), "call", frame.shown());
        }
    }
    for finding in ranked.into_iter().filter_map(|cause| cause.finding) {
        report.finding(finding);
    }
    report
}
