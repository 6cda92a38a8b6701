//! The inspector in its jail, with `broker inspect`, `broker explain`, beside a launch and at a bad end.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use policies::Process;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tests::binaries::binary;
use tests::machine::{LIMIT, Machine, no_program_is_written};
use tests::outside;
use tests::probe::{binaries_with, binaries_without};

/// Runs the broker with something on its standard input.
fn broker(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(binary("broker"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let forks = no_program_is_written();
    let mut child = command.spawn().unwrap();
    drop(forks);
    // It may have ended before it has read all.
    child.stdin.take().unwrap().write_all(input).unwrap_or(());
    child.wait_with_output().unwrap()
}

fn inspect(path: &Path, arguments: &[&str]) -> (Option<i32>, Value, String) {
    let all = [&["inspect", "--json", path.to_str().unwrap()][..], arguments].concat();
    read(&broker(&all, b""))
}

fn read(output: &Output) -> (Option<i32>, Value, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), report, said)
}

/// A file that is nothing, of so many bytes.
fn image(folder: &Path, bytes: u64) -> std::path::PathBuf {
    let path = folder.join("image");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

/// An inspection by a probe in the inspector's place, which must come to nothing, with a sentence that has `words`.
fn cannot_tell(task: &str, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let bin = binaries_with(folder.path(), Process::Inspector, task);
    let (code, report, said) = inspect(&image(folder.path(), 512), &["--bin-dir", bin.to_str().unwrap()]);
    assert_eq!((code, &report["verdict"]), (Some(3), &"cannot-tell".into()), "{report} {said}");
    for word in words {
        assert!(report["message"].as_str().unwrap().contains(word), "no {word:?}: {report}");
    }
}

#[test]
fn image_is_looked_at_in_a_jail_and_the_report_has_its_parts() {
    let folder = tempfile::tempdir().unwrap();
    let (code, report, said) = inspect(&image(folder.path(), 1 << 20), &["-v"]);
    assert!(said.contains("jail built and checked"), "{said}");
    assert_eq!(report["exit_code"].as_i64(), code.map(i64::from), "{report}");
    assert!(report["facts"].is_array() && report["findings"].is_array(), "{report}");
    assert!(["clean", "warnings", "will-not-boot", "cannot-tell"].map(Value::from).contains(&report["verdict"]));
}

#[test]
fn what_is_no_file_is_refused_with_a_sentence_and_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let missing = folder.path().join("missing");
    for (path, words) in [
        (folder.path(), "is a directory, not a regular file or a block device"),
        (&fifo, "is a FIFO, not a regular file or a block device"),
        (Path::new("/dev/null"), "is a character device, not a regular file"),
        (&missing, "cannot be opened: No such file or directory"),
    ] {
        let (code, report, said) = inspect(path, &[]);
        assert_eq!((code, &report["verdict"]), (Some(3), &"cannot-tell".into()), "{report}");
        assert!(report["message"].as_str().unwrap().contains(words) && said.contains(words), "{report} {said}");
    }
    let output = broker(&["explain", folder.path().to_str().unwrap()], b"");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(3) && said.contains("is a directory, not a regular file"), "{output:?}");
}

#[test]
fn wrong_usage_is_not_taken_for_a_verdict() {
    for arguments in [&["inspect"][..], &["inspect", "--nonsense", "x"], &["explain", "a", "b"]] {
        assert_eq!(broker(arguments, b"").status.code(), Some(3), "{arguments:?}");
    }
    assert_eq!(broker(&["run", "--nonsense"], b"").status.code(), Some(2));
    assert_eq!(broker(&["inspect", "--help"], b"").status.code(), Some(0));
}

#[test]
fn captured_inspector_is_ended_and_its_signal_is_named() {
    cannot_tell("violate", &["killed by SIGSYS", "a system call that its policy does not allow"]);
    cannot_tell("panic", &["panicked"]);
    cannot_tell("exit", &["ended with status 7"]);
}

#[test]
fn killed_inspector_is_told_with_its_signal() {
    let running = Machine::new("test=ready end=sleep").args(["--wall-time", "3s", "--no-preflight"]).start();
    running.await_text("PASS ready\n");
    nix::sys::signal::kill(outside::explainer(running.pid()).pid, Signal::SIGKILL).unwrap();
    let ended = running.wait();
    ended.expect(30, "limit-wall-time");
    let words = "the end could not be explained: the inspector was killed by SIGKILL";
    assert!(ended.log.contains(words), "{}", ended.story());
}

#[test]
fn inspector_without_a_tight_jail_is_not_let_at_anything() {
    cannot_tell("no-lockdown", &["the jail of inspector is not tight", "Seccomp: 0, must be 2"]);
    cannot_tell("extra-fd", &["is not tight", "memfd:extra"]);
    cannot_tell("unfiltered-thread", &["is not tight", "Seccomp: 0, must be 2"]);
}

#[test]
fn inspector_that_breaks_the_protocol_is_cut_off() {
    for task in ["garbage", "oversized", "leftover", "stray-fd", "flood", "two-ready", "garbage-later", "flood-later"] {
        cannot_tell(task, &["broke the protocol"]);
    }
    cannot_tell("hang-up", &["ended before its time"]);
}

#[test]
fn inspector_that_never_answers_is_killed_after_its_time() {
    let begun = Instant::now();
    cannot_tell("silent", &["was not done within 30 seconds"]);
    assert!(begun.elapsed() < LIMIT);
}

#[test]
fn inspector_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let bin = binaries_without(folder.path(), Process::Inspector);
    let (code, report, _) = inspect(&image(folder.path(), 512), &["--bin-dir", bin.to_str().unwrap()]);
    assert_eq!(code, Some(3));
    assert!(report["message"].as_str().unwrap().contains("bulkhead-inspector is not there; build it"), "{report}");
}

#[test]
fn killed_broker_takes_its_inspector_along() {
    let folder = tempfile::tempdir().unwrap();
    let bin = binaries_with(folder.path(), Process::Inspector, "mute");
    let path = image(folder.path(), 512);
    let mut command = Command::new(binary("broker"));
    command.args(["inspect", path.to_str().unwrap(), "--bin-dir", bin.to_str().unwrap()]);
    let forks = no_program_is_written();
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    drop(forks);
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    let seen = [outside::explainer(pid)];
    child.kill().unwrap();
    outside::await_gone(&seen);
    child.wait().unwrap();
}

#[test]
fn log_is_explained_from_a_file_and_from_a_pipe_alike() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let text = b"Linux version 6.1.0\nall is well\n";
    fs::write(&path, text).unwrap();
    let of_file = broker(&["explain", "--json", path.to_str().unwrap()], b"");
    for arguments in [&["explain", "--json"][..], &["explain", "--json", "-"]] {
        assert_eq!(read(&broker(arguments, text)), read(&of_file));
    }
    let (code, report, _) = read(&of_file);
    assert_eq!((code, &report["outcome"]), (Some(1), &"nothing-to-explain".into()), "{report}");
}

#[test]
fn log_of_a_gibibyte_is_cut_in_its_middle_and_takes_little_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), 1 << 30);
    let begun = Instant::now();
    let (code, report, said) = read(&broker(&["explain", "--json", path.to_str().unwrap()], b""));
    assert!(matches!(code, Some(0 | 1)), "{report} {said}");
    assert!(said.contains("its first and its last 8 MiB are looked at"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn boot_files_are_looked_at_beside_the_launch_unless_that_is_unwanted() {
    let machine = Machine::new("test=ready end=triple");
    let disk = tests::disk::image(machine.folder(), "root.img", 64);
    // Ended badly, so that the inspectors come to their end.
    let ended = machine.disk(&disk, "ro").run();
    ended.passed(&["ready"]).expect(13, "triple-fault");
    let looked = ended.report["preflight"].as_array().unwrap();
    let files: Vec<_> = looked.iter().map(|one| one["file"].as_str().unwrap()).collect();
    assert_eq!(files.len(), 2, "{}", ended.story());
    assert!(
        files.iter().any(|file| file.ends_with("guest.elf")) && files.iter().any(|file| file.ends_with("root.img"))
    );
    for one in looked {
        let message = one["message"].as_str().unwrap_or_default();
        assert!(!message.contains("inspector"), "{}", ended.story());
    }
    let ended = Machine::new("test=ready").args(["--no-preflight"]).run();
    ended.passed(&["ready"]).expect(0, "guest-poweroff");
    assert_eq!(ended.report["preflight"], serde_json::json!([]));
}

#[test]
fn captured_preflight_inspector_harms_no_guest_and_is_told() {
    for (task, words) in [("violate", "SIGSYS"), ("garbage", "broke the protocol"), ("no-lockdown", "is not tight")] {
        let machine = Machine::new("test=ready end=triple");
        let bin = binaries_with(machine.folder(), Process::Inspector, task);
        let ended = machine.args(["--bin-dir".as_ref(), bin.as_os_str()]).run();
        ended.passed(&["ready"]).expect(13, "triple-fault");
        let looked = ended.report["preflight"].as_array().unwrap();
        assert!(looked[0]["message"].as_str().unwrap().contains(words), "{}", ended.story());
        assert!(ended.log.contains("could not be looked at before the boot"), "{}", ended.story());
        assert!(ended.log.contains("the end could not be explained"), "{}", ended.story());
    }
}

#[test]
fn mute_preflight_inspectors_hold_no_guest_up() {
    let machine = Machine::new("test=ready");
    let bin = binaries_with(machine.folder(), Process::Inspector, "mute");
    let begun = Instant::now();
    let ended = machine.args(["--bin-dir".as_ref(), bin.as_os_str()]).run();
    ended.passed(&["ready"]).expect(0, "guest-poweroff");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}: {}", begun.elapsed(), ended.story());
}

#[test]
fn missing_inspector_harms_no_guest() {
    let machine = Machine::new("test=ready end=triple");
    let bin = binaries_without(machine.folder(), Process::Inspector);
    let ended = machine.args(["--bin-dir".as_ref(), bin.as_os_str()]).run();
    ended.passed(&["ready"]).expect(13, "triple-fault");
    assert!(ended.log.contains("is not looked at before the boot"), "{}", ended.story());
}

#[test]
fn end_in_order_and_the_user_wish_are_not_explained() {
    for words in ["test=ready", "test=ready end=reboot"] {
        let ended = Machine::new(words).run();
        assert_eq!(ended.report["explanation"], serde_json::json!([]), "{}", ended.story());
    }
    let running = Machine::new("test=ready end=sleep").start();
    running.await_text("PASS ready\n");
    let seen = [outside::explainer(running.pid())];
    running.signal(Signal::SIGTERM);
    let ended = running.wait();
    ended.expect(143, "sigterm");
    assert_eq!(ended.report["explanation"], serde_json::json!([]));
    outside::await_gone(&seen);
}

#[test]
fn nobody_waits_for_the_end_when_no_explanation_is_wanted() {
    let running = Machine::new("test=ready end=sleep").args(["--no-explain", "--no-preflight"]).start();
    running.await_text("PASS ready\n");
    assert_eq!(outside::inspectors(running.pid()), []);
    let serial = outside::jailed(running.pid()).into_iter().find(|seen| seen.program == "bulkhead-serial").unwrap();
    assert!(!serial.holds().contains_key("memfd:recording"));
    running.signal(Signal::SIGTERM);
    running.wait().expect(143, "sigterm");
}

#[test]
fn broker_of_a_machine_keeps_no_file_of_its_inspectors_open() {
    let machine = Machine::new("test=ready end=sleep");
    let disk = tests::disk::image(machine.folder(), "root.img", 64);
    let running = machine.disk(&disk, "ro").start();
    running.await_text("PASS ready\n");
    // All but this one are done and gone.
    let explainer = outside::explainer(running.pid());
    assert_eq!(explainer.holds().get("memfd:recording"), Some(&1));
    let broker = outside::Seen { pid: running.pid(), program: "broker".to_owned() };
    let holds = broker.holds();
    for name in ["root.img", "guest.elf", "memfd:recording"] {
        assert!(!holds.contains_key(name), "{holds:?}");
    }
    running.signal(Signal::SIGTERM);
    running.wait().expect(143, "sigterm");
}
