//! `--timings`: which process took which step of a run, from when to when.
//!
//! The broker notes its own steps and those that it sees of others; what a child says of its own steps is shown as it
//! says it. Nothing else depends on any of it.

use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;
use wire::clock::now_ns;
use wire::message::Times;

/// One step.
#[derive(Debug, Clone)]
struct Span {
    process: String,
    step: &'static str,
    from_ns: u64,
    to_ns: u64,
}

/// The steps so far, shared by all who note some; a clone is the same list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timings {
    origin_ns: u64,
    spans: Rc<RefCell<Vec<Span>>>,
}

/// Steps that are kept: many times what a run with all disks has.
const MOST: usize = 1000;

/// The broker's own name.
const BROKER: &str = "broker";

impl Timings {
    /// Of a broker that began at `origin_ns`, by the clock of [`now_ns`].
    pub(crate) fn new(origin_ns: u64) -> Self {
        Self { origin_ns, spans: Rc::default() }
    }

    /// When the broker began.
    pub(crate) fn origin_ns(&self) -> u64 {
        self.origin_ns
    }

    /// Notes that `process` took `step` from `from_ns` until `to_ns`.
    pub(crate) fn note(&self, process: &str, step: &'static str, from_ns: u64, to_ns: u64) {
        let mut spans = self.spans.borrow_mut();
        if spans.len() < MOST {
            spans.push(Span { process: process.to_owned(), step, from_ns, to_ns });
        }
    }

    /// Notes that `process` took `step` from `from_ns` until now.
    pub(crate) fn until_now(&self, process: &str, step: &'static str, from_ns: u64) {
        self.note(process, step, from_ns, now_ns());
    }

    /// Notes a step of the broker's own, from `from_ns` until now, which is returned.
    pub(crate) fn own(&self, step: &'static str, from_ns: u64) -> u64 {
        let now = now_ns();
        self.note(BROKER, step, from_ns, now);
        now
    }

    /// Notes how a child came into its jail: cloned from `cloned_ns` on, and ready now.
    pub(crate) fn jailed(&self, process: &str, cloned_ns: u64, times: Times) {
        let now = now_ns();
        // A child may say anything.
        let begun = times.begun_ns.clamp(cloned_ns, now);
        let prepared = times.prepared_ns.clamp(begun, now);
        self.note(process, "namespaces, exec", cloned_ns, begun);
        self.note(process, "prepare", begun, prepared);
        self.note(process, "shut the jail", prepared, now);
    }

    fn sorted(&self) -> Vec<Span> {
        let mut spans = self.spans.borrow().clone();
        spans.sort_by_key(|span| (span.from_ns, span.to_ns));
        spans
    }

    fn since_origin_us(&self, ns: u64) -> u64 {
        ns.saturating_sub(self.origin_ns) / 1000
    }

    /// For the report: objects of `process`, `step`, `from_us` and `to_us`, in microseconds since the broker began.
    pub(crate) fn json(&self) -> Value {
        let object = |span: Span| {
            json!({
                "process": span.process,
                "step": span.step,
                "from_us": self.since_origin_us(span.from_ns),
                "to_us": self.since_origin_us(span.to_ns),
            })
        };
        self.sorted().into_iter().map(object).collect()
    }

    /// As a table for people, a line for each step.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |span: Span| {
            let (from, to) = (self.since_origin_us(span.from_ns), self.since_origin_us(span.to_ns));
            let took = to.saturating_sub(from);
            format!("{from:>9} {to:>9} {took:>9}  {:<14} {}", span.process, span.step)
        };
        let heading = format!("{:>9} {:>9} {:>9}  {:<14} step", "from µs", "to µs", "took µs", "process");
        std::iter::once(heading).chain(self.sorted().into_iter().map(line)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_in_the_order_of_their_beginning() {
        let timings = Timings::new(1_000_000);
        timings.clone().note("vmm", "late", 3_000_000, 4_500_000);
        timings.note("serial", "early", 2_000_000, 2_001_000);
        let json = timings.json();
        assert_eq!(json[0], json!({ "process": "serial", "step": "early", "from_us": 1000, "to_us": 1001 }));
        assert_eq!(json[1]["to_us"], 3500);
        let lines = timings.lines();
        assert_eq!((lines.len(), lines[2].split_whitespace().nth(2)), (3, Some("1500")));
    }

    #[test]
    fn child_that_tells_impossible_times_is_shown_within_possible_ones() {
        let timings = Timings::new(0);
        let cloned = now_ns();
        timings.jailed("vmm", cloned, Times { begun_ns: u64::MAX, prepared_ns: 0 });
        let spans = timings.sorted();
        assert!(spans.iter().all(|span| span.from_ns <= span.to_ns && span.from_ns >= cloned));
        assert_eq!(spans.len(), 3);
    }

    #[test]
    fn number_of_steps_is_bounded() {
        let timings = Timings::new(0);
        (0..2 * MOST).for_each(|_| timings.note("vmm", "step", 0, 1));
        assert_eq!(timings.sorted().len(), MOST);
    }
}
