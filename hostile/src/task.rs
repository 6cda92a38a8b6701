//! How a binary is told what to try: by bytes of its own.

use crate::Seat;

/// What stands before the words.
pub const MARK: &str = "the task of this probe: ";
/// The bytes of [`MARK`] and the words.
pub const TASK_BYTES: usize = 128;

/// The bytes of a binary that has no task.
#[must_use]
pub const fn task() -> [u8; TASK_BYTES] {
    let mut bytes = [0; TASK_BYTES];
    let mark = MARK.as_bytes();
    let mut at = 0;
    #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
    while at < mark.len() {
        bytes[at] = mark[at];
        at += 1;
    }
    bytes
}

/// The words in a binary's bytes.
#[must_use]
pub fn read(task: &[u8; TASK_BYTES]) -> String {
    let words = task.get(MARK.len()..).unwrap_or_default();
    String::from_utf8_lossy(words).trim_end_matches('\0').to_owned()
}

/// The words for an attempt of a seat.
#[must_use]
pub fn words(seat: Seat, attempt: &str) -> String {
    format!("{} {attempt}", seat.name())
}
