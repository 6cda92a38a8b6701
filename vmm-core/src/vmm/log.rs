//! Lines for the broker's log, on a pipe that must never stop or kill the vmm: what does not fit is lost.

use std::fmt;
use std::io::Write;

/// Writes a line.
pub fn line(text: fmt::Arguments<'_>) {
    writeln!(std::io::stderr(), "{text}").unwrap_or(());
}

/// Counts what a guest does wrong, and says so the 1st, 2nd, 4th, 8th… time.
#[derive(Debug, Default)]
pub struct Grumble {
    count: u64,
}

impl Grumble {
    /// Counts one and logs it if it is due.
    pub fn about(&mut self, text: fmt::Arguments<'_>) {
        self.count = self.count.saturating_add(1);
        if self.count.is_power_of_two() {
            line(format_args!("{text} (refusal {})", self.count));
        }
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}
