//! The way into an attempt, from the real binary's own places.

use crate::Seat;
use crate::attempt::{Attempt, Done};
use crate::held::Held;
use crate::raw;
use crate::task::{self, TASK_BYTES};
use std::sync::OnceLock;

static TASK: [u8; TASK_BYTES] = task::task();
static HELD: OnceLock<Held> = OnceLock::new();
static CHOSEN: OnceLock<Option<(Seat, Attempt)>> = OnceLock::new();

/// Looks at the descriptors and finds the attempt, while the process may still do what it needs for that.
pub fn look() {
    HELD.get_or_init(Held::look);
    CHOSEN.get_or_init(choose);
}

fn choose() -> Option<(Seat, Attempt)> {
    let words = task::read(std::hint::black_box(&TASK));
    let (seat, name) = words.split_once(' ')?;
    let seat = Seat::ALL.into_iter().find(|one| one.name() == seat)?;
    let attempt = crate::attempts().into_iter().find(|attempt| attempt.name == name);
    if attempt.is_none() {
        say("the payload knows no such attempt");
    }
    Some((seat, attempt?))
}

/// Makes the attempt, if it is that of `seat`; says what came of it, and lets the process go on if it still can.
pub fn enter(seat: Seat) {
    let (Some(held), Some(Some((chosen, attempt)))) = (HELD.get(), CHOSEN.get()) else { return };
    if *chosen != seat {
        return;
    }
    say("begin");
    match attempt.make(held) {
        Done::Refused(errno) => say(&format!("refused {errno:?}")),
        Done::NotThere => say("not there"),
        Done::Succeeded(value) => say(&format!("succeeded with {value}")),
        Done::Sent => say("sent"),
    }
}

/// One line on the log, by one write.
fn say(line: &str) {
    let line = format!("hostile: {line}\n");
    // A full log loses the line, and the test then fails.
    raw::call(libc::SYS_write, [2, raw::address::<str>(&line), line.len(), 0, 0, 0]).unwrap_or(0);
}
