//! Counting what libtest says, wherever the tests ran.

use crate::threat_model::Results;
use std::fmt;

/// How many tests passed, failed and were skipped, and why those were.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// Names of what failed, for the summary.
    pub(crate) failures: Vec<String>,
    /// What the hostile suite measured.
    pub(crate) hostile: Results,
    /// Whether a result line came at all.
    pub(crate) complete: bool,
}

impl Totals {
    /// Takes a line of a test program's output: `test result: ok. 3 passed; 0 failed; 1 ignored; …`, or `test NAME ... FAILED`.
    pub(crate) fn line(&mut self, line: &str) {
        self.hostile.line(line);
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
        let Some((_, counts)) = line.split_once("test result: ").and_then(|(_, rest)| rest.split_once(". ")) else {
            return;
        };
        self.complete = true;
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
            match what {
                "passed" => self.passed = self.passed.saturating_add(number),
                "failed" => self.failed = self.failed.saturating_add(number),
                "ignored" => self.skipped = self.skipped.saturating_add(number),
                _ => {}
            }
        }
    }

    /// Adds the counts of another.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed = self.passed.saturating_add(other.passed);
        self.failed = self.failed.saturating_add(other.failed);
        self.skipped = self.skipped.saturating_add(other.skipped);
        self.failures.extend(other.failures);
        self.hostile.add(other.hostile);
    }

    /// Counts a failure that is no test of libtest's.
    pub(crate) fn failure(&mut self, what: impl Into<String>) {
        self.failed = self.failed.saturating_add(1);
        self.failures.push(what.into());
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::Totals;

    #[test]
    fn result_lines_are_summed() {
        let mut totals = Totals::default();
        totals.line("running 2 tests");
        totals.line("test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 7 filtered out; finished in 0.01s");
        totals.line("test a::b ... FAILED");
        totals.line("test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s");
        assert_eq!(totals.to_string(), "13 passed, 1 failed, 3 skipped");
        assert_eq!(totals.failures, ["a::b"]);
        assert!(totals.complete);
    }

    #[test]
    fn other_lines_count_nothing() {
        let mut totals = Totals::default();
        totals.line("99 passed; test results are fine");
        assert_eq!(totals, Totals::default());
    }
}
