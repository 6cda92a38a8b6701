//! What a log costs, whatever is in it: time in proportion to its length, a report of bounded size.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use forensics::Report;
use forensics::explain::knowledge::ENTRIES;
use forensics::explain::lines::MAX_LOG_BYTES;
use forensics::explain::{HostEvidence, console};
use std::time::{Duration, Instant};

/// A log that is `bytes` long, of one piece again and again.
fn repeated(piece: &str, bytes: usize) -> Vec<u8> {
    piece.bytes().cycle().take(bytes).collect()
}

fn time(log: &[u8]) -> Duration {
    let start = Instant::now();
    let report = console(log, &HostEvidence::default());
    assert!(report.findings.len() <= Report::MAX_FINDINGS && report.facts.len() <= Report::MAX_FACTS);
    start.elapsed()
}

#[test]
fn time_grows_with_the_length_of_a_log_and_no_faster() {
    let samples: String = ENTRIES.iter().map(|entry| entry.sample).collect();
    // The beginnings of patterns without their ends, so that each is begun and none is found.
    let begun: String = ENTRIES
        .iter()
        .flat_map(|entry| entry.patterns)
        .map(|pattern| format!("[    1.000000] {}\n", pattern.trim_start_matches('*').split('{').next().unwrap()))
        .collect();
    let modules = format!("[    1.000000] Call Trace:\n[    1.000000]  f+0x1/0x2 [{}]\n", "m".repeat(3000));
    let pieces = [
        ("samples of all entries", samples.as_str()),
        ("beginnings of all patterns", begun.as_str()),
        ("brackets", "["),
        ("escapes", "\x1b["),
        ("times", "[    1.000000] "),
        ("carriage returns", "a\r"),
        ("empty lines", "\n"),
        ("quotes", "VFS: Cannot open root device \""),
        ("faults", "[    1.000000] a[1]: segfault at 10 ip 00 sp 00 error 4 in x\n"),
        ("frames", "[    1.000000] Call Trace:\n[    1.000000]  f+0x1/0x2 [m]\n"),
        ("modules with long names", modules.as_str()),
        ("one line", "x"),
    ];
    let (short, long) = (256 << 10, 2 << 20);
    time(samples.as_bytes());
    for (name, piece) in pieces {
        let (little, much) = (time(&repeated(piece, short)), time(&repeated(piece, long)));
        println!("{name:28} {little:>8.1?} for 256 KiB, {much:>8.1?} for 2 MiB");
        // Eight times the length; four times more than that is left for a machine that does other things as well.
        assert!(much < little * 32 + Duration::from_millis(500), "{name}: {little:?} and {much:?}");
    }
    let largest = time(&repeated("[    1.000000] Call Trace:\n[    1.000000]  f+0x1/0x2 [m]\n", MAX_LOG_BYTES));
    println!("the dearest of them, 16 MiB    {largest:>8.1?}");
    assert!(largest < Duration::from_secs(60), "{largest:?}");
}

#[test]
fn what_is_beyond_the_largest_log_is_not_read() {
    let mut log = repeated(&format!("{}\n", "x".repeat(1023)), MAX_LOG_BYTES);
    log.extend_from_slice(b"Kernel panic - not syncing: too late\n");
    assert!(
        console(&log, &HostEvidence::default()).findings.iter().all(|finding| finding.id.as_str() != "kernel-panic")
    );
}
