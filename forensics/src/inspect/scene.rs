//! What every check has at hand: the guest, the counters, and where findings go.

use super::limits::Work;
use super::trouble::Trouble;
use super::{Architecture, Guest};
use crate::Report;
use crate::report::finding;
use std::fmt::Display;
use wire::report::{Confidence, Severity};

/// What a check works with.
pub(crate) struct Scene<'a> {
    pub(crate) guest: &'a Guest,
    pub(crate) work: &'a Work,
    pub(crate) report: &'a mut Report,
    /// The part that is looked at: `partition 2`; empty for the whole.
    pub(crate) of: String,
}

/// The words of a finding: what will happen, why, and what to do.
pub(crate) struct Words<'a> {
    pub(crate) what: &'a dyn Display,
    pub(crate) why: &'a dyn Display,
    pub(crate) remedy: &'a dyn Display,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(guest: &'a Guest, work: &'a Work, report: &'a mut Report) -> Self {
        Self { guest, work, report, of: String::new() }
    }

    /// The same, lent.
    pub(crate) fn whole<'b>(&'b mut self) -> Scene<'b> {
        Scene { guest: self.guest, work: self.work, report: self.report, of: self.of.clone() }
    }

    /// The same for a part.
    pub(crate) fn part<'b>(&'b mut self, of: impl Display) -> Scene<'b> {
        let of = if self.of.is_empty() { of.to_string() } else { format!("{}, {of}", self.of) };
        Scene { guest: self.guest, work: self.work, report: self.report, of }
    }

    /// Adds a fact.
    pub(crate) fn fact(&mut self, name: &str, value: impl Display) {
        self.report.fact_of(&self.of, name, value);
    }

    /// Adds a finding; one of the same words is not said twice.
    pub(crate) fn find(
        &mut self,
        (id, severity, confidence): (&str, Severity, Confidence),
        words: &Words<'_>,
        evidence: &[String],
    ) {
        let mut lines = Vec::with_capacity(evidence.len().saturating_add(1));
        if !self.of.is_empty() {
            lines.push(format!("in {}", self.of));
        }
        lines.extend_from_slice(evidence);
        let made = finding(id, severity, confidence, [words.what, words.why, words.remedy], lines);
        if let Some(made) = made.filter(|made| !self.report.findings.contains(made)) {
            self.report.finding(made);
        }
    }

    /// A finding that ends the boot.
    pub(crate) fn fatal(&mut self, id: &str, confidence: Confidence, words: &Words<'_>, evidence: &[String]) {
        self.find((id, Severity::Fatal, confidence), words, evidence);
    }

    /// A finding that may.
    pub(crate) fn warn(&mut self, id: &str, confidence: Confidence, words: &Words<'_>, evidence: &[String]) {
        self.find((id, Severity::Warning, confidence), words, evidence);
    }

    /// Something worth knowing.
    pub(crate) fn note(&mut self, id: &str, words: &Words<'_>, evidence: &[String]) {
        self.find((id, Severity::Note, Confidence::Certain), words, evidence);
    }

    /// Says that something could not be looked at, and why.
    pub(crate) fn trouble(&mut self, what: &str, trouble: &Trouble) {
        let (id, remedy) = match trouble {
            Trouble::Bound(_) => {
                ("too-large-to-look-at", "nothing, if it is meant to be that large; what lies behind was not checked")
            }
            Trouble::Unsupported(_) => ("cannot-look-inside", "boot it, or convert it to a variant that is read"),
            Trouble::Corrupt(_) => ("image-corrupt", "make or copy the image anew and compare checksums"),
            Trouble::Io(_) => ("cannot-read", "see whether the file or the disk below it is damaged"),
        };
        let words = Words { what: &format!("{what} could not be looked at to its end"), why: trouble, remedy: &remedy };
        match trouble {
            Trouble::Corrupt(_) => self.warn(id, Confidence::Likely, &words, &[]),
            _ => self.warn(id, Confidence::Certain, &words, &[]),
        }
    }

    /// The value of the last `name=` on the kernel command line.
    pub(crate) fn parameter(&self, name: &str) -> Option<&'a str> {
        let value = |word: &'a str| word.strip_prefix(name)?.strip_prefix('=');
        let words = self.guest.cmdline.split_whitespace().take_while(|word| *word != "--");
        words.filter_map(value).last().map(|value| value.trim_matches('"'))
    }

    /// Whether the guest is arm64.
    pub(crate) fn is_arm64(&self) -> bool {
        self.guest.architecture == Architecture::Aarch64
    }
}
