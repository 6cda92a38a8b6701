//! The diagnosis against console logs of boots that were really broken, and of boots that were not (`cargo xtask corpus`).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by a panic")]

use forensics::explain::{HostEvidence, console};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The least logs of which the issue speaks.
const LEAST_BROKEN: usize = 40;
const LEAST_HEALTHY: usize = 8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    log: Vec<Log>,
}

/// A log, and the finding that is to come first; none for a boot that went well.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Log {
    file: String,
    about: String,
    first: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn manifest() -> Vec<Log> {
    let text = fs::read_to_string(folder().join("expected.toml")).unwrap();
    toml::from_str::<Manifest>(&text).unwrap().log
}

/// For one id: logs in which it came first as expected, in which it came first and was not expected, in which it was missed.
#[derive(Default)]
struct Score {
    right: usize,
    wrong: usize,
    missed: usize,
}

fn percent(part: usize, whole: usize) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1} %", 100.0 * part as f64 / whole as f64) }
}

#[test]
fn every_broken_boot_has_its_cause_first_and_healthy_ones_have_none() {
    let logs = manifest();
    let mut scores: BTreeMap<String, Score> = BTreeMap::new();
    let mut problems = Vec::new();
    let (mut broken, mut healthy) = (0, 0);
    for log in &logs {
        let text = fs::read(folder().join(&log.file)).unwrap();
        let report = console(&text, &HostEvidence::default());
        let first = report.findings.first().map(|finding| finding.id.as_str().to_owned());
        match &log.first {
            Some(_) => broken += 1,
            None => healthy += 1,
        }
        if first == log.first && (first.is_some() || report.findings.is_empty()) {
            if let Some(id) = first {
                scores.entry(id).or_default().right += 1;
            }
            continue;
        }
        let all: Vec<_> = report.findings.iter().map(|finding| finding.id.as_str()).collect();
        problems.push(format!("{} ({}): expected {:?}, found {all:?}", log.file, log.about, log.first));
        if let Some(id) = first {
            scores.entry(id).or_default().wrong += 1;
        }
        if let Some(id) = &log.first {
            scores.entry(id.clone()).or_default().missed += 1;
        }
    }
    println!("{:30} {:>6} {:>6} {:>6} {:>10} {:>8}", "finding", "right", "wrong", "missed", "precision", "recall");
    let row = |name: &str, score: &Score| {
        let precision = percent(score.right, score.right + score.wrong);
        let recall = percent(score.right, score.right + score.missed);
        println!("{name:30} {:6} {:6} {:6} {precision:>10} {recall:>8}", score.right, score.wrong, score.missed);
    };
    let mut all = Score::default();
    for (id, score) in &scores {
        row(id, score);
        all.right += score.right;
        all.wrong += score.wrong;
        all.missed += score.missed;
    }
    row("all", &all);
    println!("{broken} broken boots, {healthy} healthy ones");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(
        broken >= LEAST_BROKEN && healthy >= LEAST_HEALTHY,
        "{broken} broken and {healthy} healthy logs are too few"
    );
}

#[test]
fn path_from_the_trap_to_the_panic_is_named_for_every_killed_init() {
    let mut killed = 0;
    for log in manifest() {
        let text = fs::read(folder().join(&log.file)).unwrap();
        if !String::from_utf8_lossy(&text).contains("Attempted to kill init!")
            || log.first.as_deref() == Some("kernel-oops")
        {
            continue;
        }
        let report = console(&text, &HostEvidence::default());
        let path = report.facts.iter().find(|fact| fact.name.as_str() == "trace-path");
        let path = path.unwrap_or_else(|| panic!("{} has no path", log.file)).value.to_string();
        // 5.10 on arm64 ends its traces where it returns to user mode.
        let entry = path.contains("trap entry")
            || log.file.starts_with("arm64-5.10") && path.starts_with("work_pending (")
            || log.first.as_deref() == Some("init-library-missing");
        assert!(entry, "{}: {path}", log.file);
        for part in ["do_exit", "(exit path)", "panic (panic)"] {
            assert!(path.contains(part), "{}: no {part} in {path}", log.file);
        }
        killed += 1;
    }
    assert!(killed > 40, "{killed}");
}

/// Every kernel line of a log with another beginning, `[    1.234567] ` replaced.
fn with_times(log: &[u8], replaced: impl Fn(&str) -> String) -> Vec<u8> {
    let text = String::from_utf8_lossy(log);
    let mut made = String::new();
    for line in text.split_inclusive('\n') {
        match line.split_at_checked(15) {
            Some((time, rest)) if time.starts_with('[') && time.ends_with("] ") => {
                made.push_str(&replaced(time));
                made.push_str(rest);
            }
            _ => made.push_str(line),
        }
    }
    made.into_bytes()
}

#[test]
fn broken_boots_are_explained_alike_with_callers_and_without_times() {
    for log in manifest().into_iter().filter(|log| log.first.is_some()) {
        let text = fs::read(folder().join(&log.file)).unwrap();
        let first = |text: &[u8]| {
            let report = console(text, &HostEvidence::default());
            report.findings.first().map(|finding| finding.id.as_str().to_owned())
        };
        let callers = with_times(&text, |time| format!("{}[    T1] ", time.trim_end()));
        assert_eq!(first(&callers), log.first, "{} with callers", log.file);
        let journal = with_times(&text, |time| format!("Nov 24 01:02:03 guest kernel: {time}"));
        assert_eq!(first(&journal), log.first, "{} of a journal", log.file);
        // Without times, words of the kernel look like those of init, so that its silence cannot be told.
        let silence = log.first.as_deref() == Some("init-silent");
        let bare = first(&with_times(&text, |_| String::new()));
        assert!(silence || bare == log.first, "{} without times: {bare:?}", log.file);
    }
}

#[test]
fn program_that_prints_a_panic_is_not_believed() {
    let healthy = manifest().into_iter().filter(|log| log.first.is_none());
    for log in healthy {
        let mut text = fs::read(folder().join(&log.file)).unwrap();
        text.extend_from_slice(b"Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n");
        text.extend_from_slice(b"Initramfs unpacking failed: read error\r\n[1.5] BUG: soft lockup\r\n");
        assert_eq!(console(&text, &HostEvidence::default()).findings, [], "{}", log.file);
    }
}

#[test]
fn corpus_has_both_architectures_and_all_series_and_no_log_besides() {
    let listed: BTreeSet<_> = manifest().into_iter().map(|log| log.file).collect();
    for architecture in ["x86_64", "arm64"] {
        for series in ["5.10", "6.1", "6.12", "7"] {
            let prefix = format!("{architecture}-{series}-");
            assert!(listed.iter().filter(|name| name.starts_with(&prefix)).count() >= 10, "{prefix}");
        }
    }
    let mut present = BTreeSet::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".log") {
            present.insert(name);
        }
    }
    assert_eq!(present, listed);
}

#[test]
fn cut_of_every_tenth_log_anywhere_is_explained_without_a_fault() {
    for log in manifest().iter().step_by(10) {
        let text = fs::read(folder().join(&log.file)).unwrap();
        for end in (0..text.len()).step_by(997) {
            let report = console(&text[..end], &HostEvidence::default());
            assert!(report.findings.len() <= forensics::Report::MAX_FINDINGS);
        }
    }
}
