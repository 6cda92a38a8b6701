//! One pass over a log: which entries of the knowledge were hit first where, and what else the log says.

use super::context::Context;
use super::knowledge::{ENTRIES, Entry, Index, Role};
use super::lines::{Line, Lines, Speaker};
use super::names::Names;

/// The most lines that a hit quotes.
const MAX_EVIDENCE: usize = 12;
/// How many lines after a hit its further evidence may stand.
const MAX_DISTANCE: usize = 100;

/// An entry that a line matched.
#[derive(Debug)]
pub(crate) struct Hit {
    /// The line's number.
    pub(crate) line: usize,
    /// The lines that show it.
    pub(crate) evidence: Vec<String>,
    /// What the pattern bound.
    pub(crate) names: Names,
}

/// What the pass found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// For each entry its first hit that nothing took back.
    pub(crate) hits: Vec<Option<Hit>>,
    /// What else the log says.
    pub(crate) context: Context,
}

impl Scan {
    /// Reads a log.
    pub(crate) fn of(log: &[u8]) -> Self {
        let mut scan = Self { hits: ENTRIES.iter().map(|_| None).collect(), context: Context::default() };
        for line in Lines::new(log) {
            scan.see(&line);
        }
        scan
    }

    fn see(&mut self, line: &Line) {
        self.context.see(line);
        let text = line.text.trim_start();
        for (entry, place, role, filled) in Index::get().matches(text) {
            if !heard(entry, line.speaker) {
                continue;
            }
            let Some(slot) = self.hits.get_mut(place) else { continue };
            match (role, slot.as_mut()) {
                (Role::Finds, None) => {
                    let mut names = Names::default();
                    names.bind_filled(&filled);
                    if possible(entry, &names) {
                        *slot = Some(Hit { line: line.number, evidence: vec![text.to_owned()], names });
                    }
                }
                (Role::Shows, Some(hit))
                    if hit.evidence.len() < MAX_EVIDENCE && line.number.saturating_sub(hit.line) < MAX_DISTANCE =>
                {
                    hit.evidence.push(text.to_owned());
                    hit.names.bind_filled(&filled);
                }
                (Role::Cancels, Some(_)) => *slot = None,
                _ => {}
            }
        }
    }
}

/// Whether an entry listens to who said a line.
fn heard(entry: &Entry, speaker: Speaker) -> bool {
    matches!((entry.from, speaker), (Speaker::Unknown, _) | (_, Speaker::Unknown)) || entry.from == speaker
}

/// Whether no condition of an entry speaks against these names, which are not all that there will be.
fn possible(entry: &Entry, names: &Names) -> bool {
    entry.when.iter().all(|(name, values)| match names.get(name) {
        Some(value) => values.iter().any(|wanted| *wanted == value || *wanted == "*"),
        None => true,
    })
}

/// Whether all conditions of an entry hold; an empty value stands for a name that is not bound, `*` for any value.
pub(crate) fn holds(entry: &Entry, names: &Names) -> bool {
    entry.when.iter().all(|(name, values)| match names.get(name) {
        Some(value) => values.iter().any(|wanted| *wanted == value || *wanted == "*"),
        None => values.contains(&""),
    })
}
