//! One pass over a log: which entries of the knowledge were hit first where, and what else the log says.

use super::context::Context;
use super::knowledge::{ENTRIES, Entry, Index, Role};
use super::lines::{Line, Lines, Speaker};
use super::names::Names;
use wire::Text;

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
    pub(crate) evidence: Vec<Text>,
    /// What the pattern bound.
    pub(crate) names: Names,
}

impl Hit {
    /// Adds a line to the evidence, unless it is the same as the last or there are enough.
    fn quote(&mut self, text: &str) {
        let quoted = Text::truncated(text);
        if self.evidence.len() < MAX_EVIDENCE && self.evidence.last().is_none_or(|last| *last != quoted) {
            self.evidence.push(quoted);
        }
    }
}

/// What the pass found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// For each entry its first hit that nothing took back.
    pub(crate) hits: Vec<Option<Hit>>,
    /// What else the log says.
    pub(crate) context: Context,
    /// The entries whose following lines are still evidence, and how many of them; few, as an entry is hit once.
    followed: Vec<(usize, usize)>,
}

impl Scan {
    /// Reads a log.
    pub(crate) fn of(log: &[u8]) -> Self {
        let mut scan =
            Self { hits: ENTRIES.iter().map(|_| None).collect(), context: Context::default(), followed: Vec::new() };
        for line in Lines::new(log) {
            scan.see(&line);
        }
        scan
    }

    /// Quotes a line of the kernel for the entries that ask for what follows.
    fn follow(&mut self, speaker: Speaker, text: &str) {
        if speaker == Speaker::Program || self.followed.is_empty() {
            return;
        }
        let hits = &mut self.hits;
        let end = text.starts_with("Kernel panic");
        self.followed.retain_mut(|(place, left)| {
            let hit = hits.get_mut(*place).and_then(Option::as_mut).filter(|_| !end);
            let Some(hit) = hit else { return false };
            hit.quote(text);
            *left = left.saturating_sub(1);
            *left > 0
        });
    }

    fn see(&mut self, line: &Line) {
        self.context.see(line);
        let text = line.text.trim_start();
        self.follow(line.speaker, text);
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
                        *slot = Some(Hit { line: line.number, evidence: vec![Text::truncated(text)], names });
                        if entry.following > 0 {
                            self.followed.push((place, entry.following));
                        }
                    }
                }
                (Role::Shows, Some(hit)) if line.number.saturating_sub(hit.line) < MAX_DISTANCE => {
                    hit.quote(text);
                    hit.names.bind_filled(&filled);
                }
                (Role::Cancels, Some(_)) => *slot = None,
                _ => {}
            }
        }
    }
}

/// Whether a value is one of those that are wanted: an empty one stands for a name that is not bound, `*` for any value, `!`
/// before a value forbids it.
fn wanted(values: &[&str], value: Option<&str>) -> bool {
    let Some(value) = value else { return values.iter().any(|wanted| wanted.is_empty() || wanted.starts_with('!')) };
    if values.iter().any(|wanted| wanted.strip_prefix('!') == Some(value)) {
        return false;
    }
    values.iter().any(|wanted| *wanted == value || *wanted == "*" || wanted.starts_with('!'))
}

/// Whether an entry listens to who said a line.
fn heard(entry: &Entry, speaker: Speaker) -> bool {
    matches!((entry.from, speaker), (Speaker::Unknown, _) | (_, Speaker::Unknown)) || entry.from == speaker
}

/// Whether no condition of an entry speaks against these names, which are not all that there will be.
fn possible(entry: &Entry, names: &Names) -> bool {
    entry.when.iter().all(|(name, values)| names.get(name).is_none_or(|value| wanted(values, Some(value))))
}

/// Whether all conditions of an entry hold.
pub(crate) fn holds(entry: &Entry, names: &Names) -> bool {
    entry.when.iter().all(|(name, values)| wanted(values, names.get(name)))
}
