//! Every process captured: the real binaries, which after their jails are complete try what they must not be able to do.
//!
//! Each attempt is a machine of its own. Its result is printed in a line that `cargo xtask threat-model` makes the tables
//! of `docs/THREAT_MODEL.md` of.

#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use hostile::Seat;
use hostile::attempt::{Attempt, Expect};
use std::collections::BTreeMap;
use std::env::consts::ARCH;
use tests::captured;

/// How many attempts are made, in the environment: `all`, or `few`, of each group only the first and none that must wait,
/// for a slow machine. Otherwise some of those rows of the matrix that hold very many.
const HOW_MANY: &str = "BULKHEAD_HOSTILE";
/// A row with more attempts than this has very many, and each of this number is made.
const MANY: usize = 8;

/// Those attempts, with their places in the matrix, that `seat` makes and `choose` likes.
fn attempts(seat: Seat, choose: impl Fn(&Attempt) -> bool) -> Vec<(usize, Attempt)> {
    let how_many = std::env::var(HOW_MANY).unwrap_or_default();
    let mut rows: BTreeMap<_, usize> = BTreeMap::new();
    let mut is_wanted = |attempt: &Attempt| {
        let key = if how_many == "few" { attempt.group } else { attempt.row.as_str() };
        let count = rows.entry(key.to_owned()).or_default();
        *count += 1;
        match how_many.as_str() {
            "all" => true,
            "few" => *count == 1 && !matches!(attempt.expect, Expect::Deadline(..)),
            _ => *count <= MANY || *count % MANY == 0,
        }
    };
    let all = hostile::attempts().into_iter().enumerate();
    let own = all.filter(|(_, attempt)| attempt.seats.contains(&seat) && choose(attempt));
    own.filter(|(_, attempt)| is_wanted(attempt)).collect()
}

/// Whether an attempt ends only by a deadline.
fn is_slow(attempt: &Attempt) -> bool {
    matches!(attempt.expect, Expect::Deadline(..) | Expect::Terminated)
}

/// Makes attempts one after the other, and fails with all that went wrong.
fn make(seat: Seat, attempts: Vec<(usize, Attempt)>) {
    let mut failures = Vec::new();
    for (place, attempt) in attempts {
        match captured::run(&attempt, seat) {
            Ok(cell) => {
                // One write, so that tests side by side do not mix their lines.
                let Attempt { group, row, .. } = attempt;
                println!("hostile-result\t{ARCH}\t{place}\t{group}\t{row}\t{}\t{cell}", seat.name());
            }
            Err(story) => failures.push(story),
        }
    }
    assert!(failures.is_empty(), "{} attempts did not end as they must:\n{}", failures.len(), failures.join("\n\n"));
}

#[test]
fn captured_loader_reaches_nothing() {
    make(Seat::Loader, attempts(Seat::Loader, |attempt| !is_slow(attempt)));
}

#[test]
fn captured_control_thread_of_the_vmm_reaches_nothing() {
    make(Seat::VmmControl, attempts(Seat::VmmControl, |attempt| !is_slow(attempt)));
}

#[test]
fn captured_vcpu_thread_reaches_nothing() {
    make(Seat::VmmVcpu, attempts(Seat::VmmVcpu, |attempt| !is_slow(attempt)));
}

#[test]
fn captured_serial_reaches_nothing() {
    make(Seat::Serial, attempts(Seat::Serial, |attempt| !is_slow(attempt)));
}

#[test]
fn captured_virtio_blk_reaches_nothing() {
    make(Seat::VirtioBlk, attempts(Seat::VirtioBlk, |attempt| !is_slow(attempt)));
}

#[test]
fn captured_inspector_reaches_nothing() {
    make(Seat::Inspector, attempts(Seat::Inspector, |attempt| !is_slow(attempt)));
}

/// These wait for the broker's deadlines, all at the same time.
#[test]
fn captured_process_that_never_answers_is_ended() {
    std::thread::scope(|scope| {
        for seat in Seat::ALL {
            scope.spawn(move || make(seat, attempts(seat, is_slow)));
        }
    });
}

#[test]
fn ordinary_binaries_have_no_way_in() {
    for process in tests::probe::ALL {
        let content = std::fs::read(tests::binaries::binary(process.binary())).unwrap_or_default();
        let mark = hostile::task::MARK.as_bytes();
        assert!(!content.is_empty());
        assert!(!content.windows(mark.len()).any(|window| window == mark), "{}", process.binary());
    }
}
