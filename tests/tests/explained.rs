//! What is said of machines that do not boot: found in the image before, and explained at the end from the console and from
//! what the host saw.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tests::binaries::binary;
use tests::machine::{Ended, Machine, no_program_is_written};

/// The ids of findings.
fn ids(findings: &Value) -> Vec<&str> {
    findings.as_array().unwrap().iter().map(|finding| finding["id"].as_str().unwrap()).collect()
}

fn json(arguments: &[&str]) -> (Option<i32>, Value) {
    let forks = no_program_is_written();
    let mut command = Command::new(binary("broker"));
    let child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    drop(forks);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

/// A cpio archive (newc) with these files, each with its mode.
fn initramfs(folder: &Path, files: &[(&str, u32, &[u8])]) -> PathBuf {
    let mut bytes = Vec::new();
    let end = ("TRAILER!!!", 0, &b""[..]);
    for (number, (name, mode, content)) in files.iter().chain([&end]).enumerate() {
        let fields = [number + 1, *mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        bytes.extend(b"070701");
        bytes.extend(fields.iter().flat_map(|field| format!("{field:08X}").into_bytes()));
        for part in [name.as_bytes(), b"\0"] {
            bytes.extend(part);
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let path = folder.join("initramfs.cpio");
    fs::write(&path, bytes).unwrap();
    path
}

/// What is said of a run in its report, and on standard error with what, why and what to do.
fn explained(ended: &Ended, wanted: &str) -> Value {
    let findings = &ended.report["explanation"];
    assert!(ids(findings).contains(&wanted), "no {wanted}: {}", ended.story());
    let found = findings.as_array().unwrap().iter().find(|finding| finding["id"] == wanted).unwrap().clone();
    for part in [format!("[{wanted}, "), "broker:   why ".to_owned(), "broker:   remedy ".to_owned()] {
        assert!(ended.log.contains(&part), "no {part:?}: {}", ended.story());
    }
    found
}

#[test]
fn panic_is_explained_with_its_line_at_the_end_of_the_run() {
    let ended = Machine::new("test=ready end=panic").run();
    ended.passed(&["ready"]).expect(12, "guest-panic");
    let found = explained(&ended, "kernel-panic");
    assert_eq!(found["confidence"], "likely", "a guest can forge its console: {found}");
    let evidence = found["evidence"].to_string();
    assert!(evidence.contains("Kernel panic - not syncing: the test guest wants it so"), "{found}");
}

#[test]
fn triple_fault_is_explained_from_what_the_host_saw() {
    let ended = Machine::new("test=ready end=triple").run();
    ended.passed(&["ready"]).expect(13, "triple-fault");
    assert_eq!(explained(&ended, "triple-fault")["confidence"], "certain");
}

#[test]
fn explanation_that_is_unwanted_is_not_there() {
    let ended = Machine::new("test=ready end=panic").args(["--no-explain"]).run();
    ended.passed(&["ready"]).expect(12, "guest-panic");
    assert_eq!(ended.report["explanation"], serde_json::json!([]));
    assert!(!ended.log.contains("remedy"), "{}", ended.story());
}

#[test]
fn initramfs_without_an_init_is_told_before_the_boot_and_boots_all_the_same() {
    let machine = Machine::new("test=ready end=halt");
    let initrd = initramfs(machine.folder(), &[("dev", 0o40_755, b""), ("etc", 0o40_755, b"")]);
    let ended = machine.args(["-i".as_ref(), initrd.as_os_str()]).run();
    ended.passed(&["ready"]).expect(11, "guest-halted");
    let looked = ended.report["preflight"].as_array().unwrap();
    let one = looked.iter().find(|one| one["file"].as_str().unwrap().ends_with("initramfs.cpio")).unwrap();
    assert_eq!(one["verdict"], "will-not-boot", "{}", ended.story());
    assert!(ids(&one["findings"]).contains(&"init-missing"), "{}", ended.story());
    assert!(ended.log.contains("initramfs.cpio: fatal: "), "{}", ended.story());
}

#[test]
fn inspection_of_an_initramfs_says_what_is_wrong_with_its_init() {
    let folder = tempfile::tempdir().unwrap();
    let dev = ("dev", 0o40_755, &b""[..]);
    for (init, wanted, code) in [
        (("init", 0o100_644, &b"#!/bin/sh\n"[..]), "init-not-executable", 2),
        (("init", 0o100_755, &b"#!/bin/sh\n"[..]), "interpreter-missing", 2),
    ] {
        let path = initramfs(folder.path(), &[dev, init]);
        let (status, report) = json(&["inspect", "--json", path.to_str().unwrap()]);
        assert_eq!(status, Some(code), "{report}");
        assert!(ids(&report["findings"]).iter().any(|id| id.contains(wanted)), "no {wanted}: {report}");
        assert_eq!((&report["verdict"], &report["exit_code"]), (&"will-not-boot".into(), &code.into()), "{report}");
    }
}

#[test]
fn kernel_is_looked_at_as_one_and_garbage_cannot_be_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = tests::guest::Guest::Long.write(folder.path());
    let (status, report) = json(&["inspect", "--json", kernel.to_str().unwrap()]);
    assert!(matches!(status, Some(0 | 1)), "{report}");
    assert!(report["facts"].as_array().unwrap().iter().any(|fact| fact["name"] == "machine"), "{report}");
    let garbage = folder.path().join("garbage");
    fs::write(&garbage, b"It was a dark and stormy night; the rain fell in torrents.\n".repeat(99)).unwrap();
    let (status, report) = json(&["inspect", "--json", garbage.to_str().unwrap()]);
    assert_eq!((status, &report["verdict"]), (Some(3), &"cannot-tell".into()), "{report}");
}

#[test]
fn log_of_a_killed_init_is_explained() {
    let log = concat!(env!("CARGO_MANIFEST_DIR"), "/../forensics/corpus/arm64-5.10-init-new-cpu.log");
    let (status, report) = json(&["explain", "--json", log]);
    assert_eq!((status, &report["outcome"]), (Some(0), &"explained".into()), "{report}");
    let first = &report["findings"][0];
    assert_eq!(first["id"], "init-illegal-instruction", "{report}");
    assert!(first["evidence"].to_string().contains("exitcode=0x00000004"), "{report}");
}

tests::on_x86_64! {
    /// A kernel (ELF, 64-bit entry) of a few instructions.
    fn kernel(folder: &Path, code: &[u8]) -> PathBuf {
        const START: u64 = 0x10_0000;
        const AT: u64 = 0x1000;
        let length = code.len() as u64;
        // e_ident, e_type EXEC, e_machine X86_64, e_version; e_entry, e_phoff, e_shoff; flags and sizes (ELF-64, System V ABI).
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend([2_u16, 62].into_iter().flat_map(u16::to_le_bytes));
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend([START, 64, 0].into_iter().flat_map(u64::to_le_bytes));
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend([64_u16, 56, 1, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
        // p_type LOAD, p_flags RX; p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align.
        bytes.extend([1_u32, 5].into_iter().flat_map(u32::to_le_bytes));
        bytes.extend([AT, START, START, length, length, AT].into_iter().flat_map(u64::to_le_bytes));
        bytes.resize(0x1000, 0);
        bytes.extend(code);
        let path = folder.join("mute.elf");
        fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn silent_guest_is_explained_from_where_its_processor_stands() {
        let machine = Machine::new("");
        // jmp $
        let kernel = kernel(machine.folder(), &[0xeb, 0xfe]);
        let ended = machine.kernel(kernel).args(["--wall-time", "2s"]).run();
        ended.expect(30, "limit-wall-time");
        let findings = ended.report["explanation"].to_string();
        assert!(!ids(&ended.report["explanation"]).is_empty(), "{}", ended.story());
        assert!(findings.contains("0x100000"), "the vmm told its program counter: {}", ended.story());
    }

    #[test]
    fn silent_triple_fault_is_explained_as_one_before_the_first_word() {
        let machine = Machine::new("");
        // ud2, without a table of handlers.
        let kernel = kernel(machine.folder(), &[0x0f, 0x0b]);
        let ended = machine.kernel(kernel).run();
        ended.expect(13, "triple-fault");
        assert_eq!(ended.report["console"]["received_bytes"], 0);
        let first = &ended.report["explanation"][0];
        assert_eq!(first["severity"], "fatal", "{}", ended.story());
        assert!(first["why"].to_string().contains("0x100000"), "{}", ended.story());
    }
}
