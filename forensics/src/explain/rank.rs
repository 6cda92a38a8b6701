//! Which findings there are and which comes first: causes before their consequences, the earlier before the later, what is
//! fatal before what may be.

use super::knowledge::{ENTRIES, Entry};
use super::names::Names;
use super::scan::{Scan, holds};
use crate::report;
use wire::Text;
use wire::report::{Finding, Severity};

/// An entry that applies.
#[derive(Debug)]
pub(crate) struct Cause {
    /// The line in which it was seen, if it was in one.
    pub(crate) line: Option<usize>,
    /// The finding.
    pub(crate) finding: Option<Finding>,
}

/// An entry that applies, before it is a finding.
struct Applied<'a> {
    entry: &'static Entry,
    line: Option<usize>,
    evidence: &'a [Text],
    names: Names,
    /// Whether another finding is its cause.
    consequence: bool,
    /// Whether something fatal is its consequence.
    cause: bool,
}

/// All that applies, in the order in which it is told. Of entries with the same id, the first in the knowledge that applies
/// is taken.
pub(crate) fn rank(scan: &Scan, global: &Names) -> Vec<Cause> {
    let mut applied: Vec<Applied<'_>> = Vec::new();
    for (entry, hit) in ENTRIES.iter().zip(&scan.hits) {
        let (line, evidence, names) = match hit {
            Some(hit) => {
                let names = hit.names.with(&scan.context.near(hit.line)).with(global);
                (Some(hit.line), hit.evidence.as_slice(), names)
            }
            // Without patterns, the conditions alone decide.
            None if entry.patterns.is_empty() => (None, [].as_slice(), global.clone()),
            None => continue,
        };
        if holds(entry, &names) && !applied.iter().any(|other| other.entry.id == entry.id) {
            applied.push(Applied { entry, line, evidence, names, consequence: false, cause: false });
        }
    }
    let found: Vec<_> = applied.iter().map(|one| one.entry.id).collect();
    applied.retain(|one| !one.entry.unless_found.iter().any(|id| found.contains(id)));
    link(&mut applied);
    applied.sort_by_key(|one| {
        let severity = severity(one);
        let class = match (one.consequence, severity) {
            (false, Severity::Fatal) => 0,
            (true, Severity::Fatal) => 1,
            (_, Severity::Warning) => 2,
            (_, Severity::Note) => 3,
        };
        // Of findings in one line, the more general can be a consequence of more.
        (class, one.line.unwrap_or(usize::MAX), one.entry.consequence_of.len())
    });
    // A consequence in a line that another finding has explained says nothing new.
    let mut told = Vec::new();
    applied.retain(|one| {
        let new = !one.consequence || one.line.is_none_or(|line| !told.contains(&line)) && one.line.is_some();
        told.extend(one.line);
        new
    });
    applied.iter().map(|one| Cause { line: one.line, finding: finding(one) }).collect()
}

/// Marks causes and consequences: who names an id that is there, not in a later line, is its consequence.
fn link(applied: &mut [Applied<'_>]) {
    let all: Vec<_> = applied.iter().map(|one| (one.entry.id, one.line.unwrap_or(0))).collect();
    let mut causes = Vec::new();
    for one in applied.iter_mut() {
        let line = one.line.unwrap_or(usize::MAX);
        let mine = all.iter().filter(|(id, at)| *at <= line && one.entry.consequence_of.contains(id));
        let mine: Vec<_> = mine.map(|(id, _)| *id).collect();
        one.consequence = !mine.is_empty();
        if one.entry.severity == Severity::Fatal {
            causes.extend(mine);
        }
    }
    for one in applied {
        one.cause = causes.contains(&one.entry.id);
    }
}

/// What led to something fatal is fatal.
fn severity(one: &Applied<'_>) -> Severity {
    if one.cause { Severity::Fatal } else { one.entry.severity }
}

fn finding(one: &Applied<'_>) -> Option<Finding> {
    let mut evidence: Vec<Text> = Vec::new();
    if one.line.is_some() {
        // The fault that ended init stands before the line of its end.
        evidence.extend(one.names.get("fault-line").map(Text::truncated));
        evidence.extend(one.evidence.iter().cloned());
    }
    let fill = |template: &str| one.names.fill(template);
    let what =
        if one.consequence { format!("As a consequence: {}", fill(one.entry.what)) } else { fill(one.entry.what) };
    report::finding(
        one.entry.id,
        severity(one),
        one.entry.confidence,
        [&what, &fill(one.entry.why), &fill(one.entry.remedy)],
        evidence,
    )
}
