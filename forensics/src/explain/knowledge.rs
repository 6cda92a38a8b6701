//! The knowledge, as the build makes it of `knowledge/*.toml`: what a pattern in a log means.

use super::lines::Speaker;
use super::pattern::{Filled, Pattern};
use std::sync::OnceLock;
use wire::report::{Confidence, Severity};

/// One thing that is known.
#[derive(Debug)]
pub struct Entry {
    /// The stable name of the finding; several entries may have the same.
    pub id: &'static str,
    /// The file that it is from, without its ending.
    pub group: &'static str,
    /// How much it weighs.
    pub severity: Severity,
    /// How sure it is.
    pub confidence: Confidence,
    /// Who must have said the line.
    pub from: Speaker,
    /// What the line looks like; any of them.
    pub patterns: &'static [&'static str],
    /// Lines after it that are evidence as well.
    pub evidence: &'static [&'static str],
    /// How many lines of the kernel after it are evidence as well, whatever they say; a panic ends them.
    pub following: usize,
    /// Lines after it that take it back.
    pub unless: &'static [&'static str],
    /// The findings with which this one is none.
    pub unless_found: &'static [&'static str],
    /// Names and the values of which each must have one; `!` before a value forbids it.
    pub when: &'static [(&'static str, &'static [&'static str])],
    /// The findings of which this one is a consequence if they are there.
    pub consequence_of: &'static [&'static str],
    /// What happened, in one sentence.
    pub what: &'static str,
    /// Why.
    pub why: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// A log in which it is the first finding.
    pub sample: &'static str,
    /// What the host saw with it.
    pub sample_host: &'static [(&'static str, &'static [&'static str])],
}

include!(concat!(env!("OUT_DIR"), "/knowledge.rs"));

/// What a pattern of an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It makes the finding.
    Finds,
    /// Its line is evidence after that.
    Shows,
    /// It takes the finding back.
    Cancels,
}

/// A compiled pattern, with the place of its entry.
#[derive(Debug)]
struct Compiled {
    entry: usize,
    role: Role,
    pattern: Pattern,
}

/// All patterns, by the byte with which their lines begin.
#[derive(Debug)]
pub(crate) struct Index {
    by_byte: Vec<Vec<Compiled>>,
    anywhere: Vec<Compiled>,
}

impl Index {
    /// The one of all entries, made once.
    pub(crate) fn get() -> &'static Self {
        static INDEX: OnceLock<Index> = OnceLock::new();
        INDEX.get_or_init(Self::build)
    }

    fn build() -> Self {
        let mut index = Self { by_byte: (0..256).map(|_| Vec::new()).collect(), anywhere: Vec::new() };
        for (number, entry) in ENTRIES.iter().enumerate() {
            for (role, patterns) in
                [(Role::Finds, entry.patterns), (Role::Shows, entry.evidence), (Role::Cancels, entry.unless)]
            {
                // The tests refuse a pattern that is none.
                for pattern in patterns.iter().filter_map(|pattern| Pattern::parse(pattern).ok()) {
                    let byte = pattern.first_byte();
                    let compiled = Compiled { entry: number, role, pattern };
                    match byte.and_then(|byte| index.by_byte.get_mut(usize::from(byte))) {
                        Some(list) => list.push(compiled),
                        None => index.anywhere.push(compiled),
                    }
                }
            }
        }
        index
    }

    /// The patterns that match a line: the entry, its place, what the pattern is for, what it binds.
    pub(crate) fn matches<'t>(
        &'static self,
        text: &'t str,
    ) -> impl Iterator<Item = (&'static Entry, usize, Role, Vec<Filled<'static, 't>>)> {
        let first = text.bytes().next().and_then(|byte| self.by_byte.get(usize::from(byte)));
        first.into_iter().flatten().chain(&self.anywhere).filter_map(move |compiled| {
            let filled = compiled.pattern.matches(text)?;
            Some((ENTRIES.get(compiled.entry)?, compiled.entry, compiled.role, filled))
        })
    }
}
