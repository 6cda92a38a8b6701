//! The knowledge holds what it promises: every entry's sample yields its id, every pattern and text can be used.

use super::knowledge::{ENTRIES, Entry, GROUPS, LAYERS};
use super::pattern::{Kind, Pattern};
use super::{HostEvidence, console};
use std::collections::BTreeSet;
use wire::Text;
use wire::report::{Confidence, FindingId, Severity};

/// Names that are bound beside those of a pattern, if the log has them; a text may use them in brackets only.
const ALWAYS: &[&str] = &["stage", "end", "output", "init-said"];

/// The names that a text uses outside of brackets.
fn needed(template: &str) -> Vec<String> {
    let mut outside = String::new();
    let mut depth = false;
    for character in template.chars() {
        match character {
            '[' => depth = true,
            ']' => depth = false,
            _ if !depth => outside.push(character),
            _ => {}
        }
    }
    let names = outside.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
    names.map(|(name, _)| name.to_owned()).collect()
}

fn host(entry: &Entry) -> HostEvidence {
    let mut host = HostEvidence::default();
    for (name, values) in entry.sample_host {
        let value = values[0];
        match *name {
            "reason" => host.reason = Some(value.to_owned()),
            "console" => host.console_bytes = Some(value.parse().unwrap()),
            "disks" => host.disks_ready = vec![value == "ready"],
            "exits" => host.exits = Some(value.parse().unwrap()),
            "counters" => {
                let counter = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap();
                host.program_counters = value.split(',').map(counter).collect();
            }
            other => {
                panic!("{}: sample-host has {other:?}, must be reason, console, disks, exits or counters", entry.id)
            }
        }
    }
    host
}

#[test]
fn sample_of_every_entry_yields_its_id_first() {
    for entry in ENTRIES {
        let report = console(entry.sample.as_bytes(), &host(entry));
        // A note never comes before what failed.
        let mut findings =
            report.findings.iter().filter(|one| entry.severity > Severity::Note || one.severity == entry.severity);
        let first = findings.next().unwrap_or_else(|| panic!("{}: the sample yields nothing", entry.id));
        assert_eq!(first.id.as_str(), entry.id, "the sample:\n{}", entry.sample);
        assert_eq!(first.confidence, entry.confidence, "{}", entry.id);
        for text in [&first.what, &first.why, &first.remedy] {
            assert!(!text.to_string().contains('?') && text.len() < Text::MAX_BYTES, "{}: {text}", entry.id);
        }
        let start = entry.what.split(['{', '[']).next().unwrap_or_default();
        assert!(first.what.to_string().starts_with(start), "{}: another entry was taken: {}", entry.id, first.what);
    }
}

#[test]
fn every_pattern_can_be_read_and_binds_what_the_texts_use() {
    for entry in ENTRIES {
        let mut bound: BTreeSet<String> = ALWAYS.iter().map(|name| (*name).to_owned()).collect();
        // A condition that leaves out the empty value says that the name has one.
        bound.extend(
            entry
                .when
                .iter()
                .filter(|(_, values)| values.iter().all(|value| !value.is_empty() && !value.starts_with('!')))
                .map(|(name, _)| (*name).to_owned()),
        );
        let instruction = bound.contains("instruction-kind");
        if instruction {
            bound.extend(["instruction", "instruction-bytes"].map(str::to_owned));
            if entry.when.iter().any(|(_, values)| values == &["feature"]) {
                bound.insert("feature".to_owned());
            }
        }
        if bound.contains("host-exits") {
            bound.insert("host-exit-count".to_owned());
        }
        if bound.contains("host-counters") {
            bound.insert("host-counter".to_owned());
        }
        let patterns = entry.patterns.iter().chain(entry.evidence).chain(entry.unless);
        let parsed: Vec<_> =
            patterns.map(|text| Pattern::parse(text).unwrap_or_else(|error| panic!("{}: {error}", entry.id))).collect();
        let mut common: Option<BTreeSet<String>> = None;
        for pattern in parsed.iter().take(entry.patterns.len()) {
            let mut names: BTreeSet<String> = BTreeSet::new();
            for (name, kind) in pattern.names() {
                names.insert(name.to_owned());
                if kind == Kind::Errno {
                    names.extend(["error-name", "error-meaning"].map(str::to_owned));
                }
            }
            common = Some(common.map_or(names.clone(), |common| common.intersection(&names).cloned().collect()));
        }
        bound.extend(common.unwrap_or_default());
        for text in [entry.what, entry.why, entry.remedy] {
            for name in needed(text) {
                assert!(
                    bound.contains(&name),
                    "{}: {name} may have no value, so it belongs into brackets: {text}",
                    entry.id
                );
            }
        }
    }
}

#[test]
fn entries_name_ids_that_exist_and_say_something() {
    let ids: BTreeSet<_> = ENTRIES.iter().map(|entry| entry.id).collect();
    for entry in ENTRIES {
        assert!(FindingId::try_from(entry.id).is_ok(), "{}", entry.id);
        assert!(GROUPS.iter().any(|(group, _)| *group == entry.group));
        for cause in entry.consequence_of.iter().chain(entry.unless_found) {
            assert!(ids.contains(cause) && *cause != entry.id, "{}: there is no other entry {cause}", entry.id);
        }
        for text in [entry.what, entry.why, entry.remedy] {
            assert!(text.len() > 15 && text.ends_with(['.', ']']), "{}: {text:?} is no sentence", entry.id);
        }
        let host = entry.when.iter().any(|(name, _)| name.starts_with("host-"));
        assert!(host || entry.confidence < Confidence::Certain, "{}: a log alone is never certain", entry.id);
    }
}

#[test]
fn layers_are_named_and_no_function_stands_twice() {
    let mut seen = BTreeSet::new();
    for (layer, functions) in LAYERS {
        assert!(!layer.is_empty() && !functions.is_empty());
        for function in *functions {
            assert!(seen.insert(function), "{function} is in two layers");
        }
    }
}

#[test]
fn names_in_brackets_need_no_value() {
    assert_eq!(needed("x {a}[ {b}] {c}"), ["a", "c"]);
}

/// The ids of the findings of a log, the first of which explains it.
fn told(log: &str) -> Vec<String> {
    let report = console(log.as_bytes(), &HostEvidence::default());
    report.findings.iter().map(|finding| finding.id.as_str().to_owned()).collect()
}

#[test]
fn stall_that_was_overcome_explains_nothing() {
    for stall in [
        "rcu: INFO: rcu_sched self-detected stall on CPU",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [init:1]",
        "INFO: task sh:7 blocked for more than 120 seconds.",
    ] {
        let boot = format!("[    1.000000] Run /init as init process\nhello\n[   40.000000] {stall}\n");
        assert_eq!(told(&boot).len(), 1, "{stall}");
        assert!(told(&format!("{boot}[   90.000000] reboot: Power down\n")).is_empty(), "{stall}");
        let killed = "[   90.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n";
        assert_eq!(told(&format!("{boot}{killed}")), ["init-exited"], "{stall}");
        let rootless =
            "[   90.000000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n";
        assert_eq!(told(&format!("{boot}{rootless}")), ["root-unmounted"], "{stall}");
    }
}

#[test]
fn stall_is_the_cause_only_where_nothing_shows_that_it_was_overcome() {
    for (stall, id, panic) in [
        ("rcu: INFO: rcu_sched self-detected stall on CPU", "rcu-stall", "RCU Stall"),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [init:1]", "soft-lockup", "softlockup: hung tasks"),
        ("INFO: task sh:7 blocked for more than 120 seconds.", "hung-task", "hung_task: blocked tasks"),
    ] {
        let boot = format!("[    1.000000] Run /init as init process\nhello\n[   40.000000] {stall}\n");
        assert_eq!(told(&format!("{boot}[   40.100000] CPU: 0 PID: 1 Comm: init\n")), [id]);
        let later = "[ 3600.000000] EXT4-fs (vda): mounted filesystem with ordered data mode\n";
        assert!(told(&format!("{boot}{later}")).is_empty(), "{stall}");
        assert!(told(&format!("{boot}debian login: \n")).is_empty(), "{stall}");
        // It comes again, and ends the machine.
        let again = format!("{boot}{later}[ 9000.000000] {stall}\n");
        assert_eq!(told(&again), [id]);
        for between in ["", "hello\n"] {
            let own = format!("{again}{between}[ 9000.100000] Kernel panic - not syncing: {panic}\n");
            assert_eq!(told(&own)[0], id);
        }
        let plain = boot.replace("[    1.000000] ", "").replace("[   40.000000] ", "");
        assert_eq!(told(&plain), [id]);
        assert!(told(&format!("{plain}debian login: \n")).is_empty(), "{stall}");
    }
}

#[test]
fn stall_does_not_explain_a_panic_of_another_kind() {
    for stall in [
        "rcu: INFO: rcu_sched self-detected stall on CPU",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [init:1]",
        "INFO: task sh:7 blocked for more than 120 seconds.",
    ] {
        let boot = format!("[    1.000000] Run /init as init process\nhello\n[   40.000000] {stall}\n");
        for (last, id) in [
            ("BUG: kernel NULL pointer dereference, address: 0000000000000000", "kernel-oops"),
            ("kernel BUG at fs/ext4/inode.c:2763!", "kernel-oops"),
            ("Kernel panic - not syncing: EXT4-fs (device vda): panic forced after error", "kernel-panic"),
            ("Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: foo", "kernel-panic"),
            ("Kernel panic - not syncing: Fatal machine check", "kernel-panic"),
        ] {
            assert_eq!(told(&format!("{boot}[ 9000.000000] {last}\n")), [id], "{stall}");
        }
    }
}

#[test]
fn junk_behind_an_initramfs_is_no_cause_of_what_its_init_did() {
    for words in ["Initramfs unpacking failed: ", "rootfs image is not initramfs ("] {
        let junk = format!("[    0.500000] {words}invalid magic at start of compressed archive)\n");
        let boot = format!("{junk}[    1.000000] Run /init as init process\n");
        let missing = "[    1.100000] Failed to execute /init (error -2)\n\
                       [    1.200000] Kernel panic - not syncing: No working init found.\n";
        assert_eq!(told(&format!("{boot}{missing}"))[0], "init-not-found");
        let killed = "[    1.200000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n";
        assert_eq!(told(&format!("{boot}{killed}")), ["init-exited", "initramfs-junk"]);
        assert_eq!(told(&format!("{boot}[    9.000000] reboot: Power down\n")), ["initramfs-junk"]);
    }
}

#[test]
fn kernel_is_not_silent_where_a_program_said_something() {
    let log = "[    0.000000] Linux version 6.1.0 (debian) #1\n[    0.678430] clk: Disabling unused clocks\n";
    assert_eq!(told(log), ["kernel-silent"]);
    assert!(told(&format!("{log}Welcome!\n")).is_empty());
}
