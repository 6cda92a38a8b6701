//! What an inspection or an explanation comes to.

use std::fmt;
use wire::Text;
use wire::report::{Confidence, EvidenceLines, Fact, Finding, FindingId, Severity};

/// Facts and findings, in the order in which they were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is so.
    pub facts: Vec<Fact>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The most facts that are kept: an image can have as many partitions and members as it likes.
    pub const MAX_FACTS: usize = wire::report::MAX_FACTS;
    /// The most findings that are kept.
    pub const MAX_FINDINGS: usize = wire::report::MAX_FINDINGS;

    /// Adds a fact of the whole thing, unless there are too many. A `name` that is no identifier is left out.
    pub fn fact(&mut self, name: &str, value: impl fmt::Display) {
        self.fact_of("", name, value);
    }

    /// As [`Self::fact`], of a part of it.
    pub fn fact_of(&mut self, of: &str, name: &str, value: impl fmt::Display) {
        if let (true, Ok(name)) = (self.facts.len() < Self::MAX_FACTS, FindingId::try_from(name)) {
            self.facts.push(Fact { name, of: Text::truncated(of), value: Text::truncated(value) });
        }
    }

    /// Adds a finding, unless there are too many.
    pub fn finding(&mut self, finding: Finding) {
        if self.findings.len() < Self::MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    /// The severity of the worst finding.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

/// A finding of our own words. `None` for an `id` that is no identifier.
pub fn finding<T: fmt::Display>(
    id: &str,
    severity: Severity,
    confidence: Confidence,
    [what, why, remedy]: [&dyn fmt::Display; 3],
    evidence: impl IntoIterator<Item = T>,
) -> Option<Finding> {
    Some(Finding {
        id: FindingId::try_from(id).ok()?,
        severity,
        confidence,
        what: Text::truncated(what),
        why: Text::truncated(why),
        evidence: EvidenceLines::truncated(evidence),
        remedy: Text::truncated(remedy),
    })
}
