//! Processes that do what they must not: the launch is refused, or the run ends, with the right reason and nothing left.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use policies::Process;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tests::machine::{Ended, Machine};
use tests::outside::{self, Seen};
use tests::probe::{self, PROCESSES};

/// Runs a machine to its end, and asserts that each process that it says it started is gone.
fn run(machine: Machine) -> Ended {
    let ended = machine.run();
    let processes = ended.report["processes"].as_array().cloned().unwrap_or_default();
    for process in processes {
        let pid = process["pid"].as_i64().unwrap();
        assert!(!Path::new("/proc").join(pid.to_string()).exists(), "{process} is left: {}", ended.story());
    }
    ended
}

fn message(ended: &Ended) -> &str {
    ended.report["message"].as_str().unwrap_or_default()
}

/// A launch that the probe's `task` in the place of `process` must make fail, with a sentence that has `words`.
fn launch_refused(process: Process, task: &str, words: &[&str]) {
    let ended = run(probe::machine("test=banner", process, task));
    ended.expect(4, "jail-failed");
    assert!(message(&ended).contains(&format!("the jail of the {}", process.name())), "{}", ended.story());
    for word in words {
        assert!(message(&ended).contains(word), "no {word:?}: {}", ended.story());
    }
    assert_eq!(ended.console, "", "the guest was started: {}", ended.story());
    assert_eq!(ended.report["processes"].as_array().unwrap().len(), 4, "{}", ended.story());
}

#[test]
fn process_that_says_ready_without_a_filter_is_refused() {
    for process in PROCESSES {
        launch_refused(process, "no-lockdown", &["is not tight", "Seccomp: 0, must be 2"]);
    }
}

#[test]
fn process_with_a_descriptor_that_it_was_not_given_is_refused() {
    for process in PROCESSES {
        launch_refused(process, "extra-fd", &["is not tight", "it holds descriptor", "memfd:extra"]);
    }
}

#[test]
fn process_with_a_thread_without_a_filter_is_refused() {
    for process in PROCESSES {
        launch_refused(process, "unfiltered-thread", &["is not tight", "Seccomp: 0, must be 2"]);
    }
}

#[test]
fn process_that_never_answers_is_refused_after_the_deadline() {
    launch_refused(Process::Serial, "silent", &["did not say that it is in its jail within 30 seconds"]);
}

#[test]
fn process_that_ends_at_once_is_refused() {
    for process in PROCESSES {
        launch_refused(process, "exit", &["ended with status 7"]);
    }
    launch_refused(Process::VirtioBlk, "panic", &["panicked"]);
}

#[test]
fn process_that_breaks_the_protocol_before_its_jail_is_refused() {
    for (task, words) in [
        ("flood", "came before it was in its jail"),
        ("garbage", "a message could not be decoded"),
        ("oversized", "a message was cut off"),
        ("leftover", "with 9 more"),
        ("stray-fd", "a message came with 1 descriptors instead of 0"),
        ("many-fds", "a message was cut off"),
    ] {
        for process in [Process::Vmm, Process::Serial, Process::VirtioBlk] {
            launch_refused(process, task, &["it broke the protocol", words]);
        }
    }
}

#[test]
fn binary_that_cannot_be_executed_is_refused() {
    for (mode, content) in [(0o644, None), (0o755, Some("no program"))] {
        let machine = Machine::new("test=banner");
        let bin = probe::binaries_with(machine.folder(), Process::Serial, "silent");
        let path = bin.join(Process::Serial.binary());
        content.map(|content| fs::write(&path, content)).transpose().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let ended = run(machine.args(["--bin-dir".as_ref(), bin.as_os_str()]));
        ended.expect(4, "jail-failed");
        assert!(message(&ended).contains("serial could not execute its binary"), "{}", ended.story());
        assert_eq!(ended.console, "");
    }
}

#[test]
fn binary_that_is_missing_ends_with_1_and_is_named() {
    for process in PROCESSES {
        let machine = Machine::new("test=banner");
        let bin = probe::binaries_without(machine.folder(), process);
        let image = tests::disk::image(machine.folder(), "disk.img", 64);
        let ended = run(machine.disk(&image, "ro").args(["--bin-dir".as_ref(), bin.as_os_str()]));
        ended.expect(1, "host-error");
        let words = format!("{} is not there; build it", bin.join(process.binary()).display());
        assert!(message(&ended).contains(&words), "{}", ended.story());
    }
}

#[test]
fn forbidden_system_call_ends_with_21_and_names_the_process() {
    for process in PROCESSES {
        let ended = run(probe::machine("test=banner", process, "violate"));
        ended.expect(21, "seccomp-violation");
        assert!(message(&ended).contains(&format!("the {}", process.name())), "{}", ended.story());
        let all = ended.report["processes"].as_array().unwrap();
        let one = all.iter().find(|one| one["name"].as_str().unwrap().starts_with(process.name())).unwrap();
        assert_eq!(one["exit"]["signal"].as_i64(), Some(31), "{}", ended.story());
    }
}

#[test]
fn audit_names_process_and_call_and_goes_on() {
    let ended = run(probe::machine("test=banner,ready", Process::Serial, "violate").args(["--audit"]));
    ended.passed(&["banner", "ready"]).expect(0, "guest-poweroff");
    let wanted = serde_json::json!([{ "process": "serial", "syscall": "getppid", "count": 1 }]);
    assert_eq!(ended.report["audit"], wanted, "{}", ended.story());
    assert!(ended.log.contains("audit: serial made 1 calls of getppid that its policy lacks"), "{}", ended.story());
}

fn device_failed(process: Process, task: &str, guest: &str, words: &[&str]) {
    let ended = run(probe::machine(guest, process, task));
    ended.expect(23, "device-failed");
    for word in words {
        assert!(message(&ended).contains(word), "no {word:?}: {}", ended.story());
    }
}

#[test]
fn garbage_from_serial_to_the_vmm_ends_with_23() {
    device_failed(Process::Serial, "garbage-to-vmm", "test=uart", &["the vmm gave the serial process up"]);
}

#[test]
fn impossible_index_of_serial_ends_with_23() {
    device_failed(Process::Serial, "impossible-ring", "test=banner", &["the vmm gave the serial process up"]);
}

#[test]
fn garbage_on_the_vhost_user_socket_ends_with_23() {
    device_failed(Process::VirtioBlk, "garbage-to-vmm", "test=blk-read", &["the virtio-blk-0 process"]);
}

#[test]
fn garbage_on_the_control_channel_ends_with_23() {
    for process in [Process::Vmm, Process::Serial, Process::VirtioBlk] {
        let name = format!("the {}", process.name());
        device_failed(process, "garbage-later", "test=banner", &[&name, "it broke the protocol"]);
    }
}

#[test]
fn second_ready_ends_with_23() {
    device_failed(Process::Serial, "two-ready", "test=banner", &["the serial process", "Ready came at the wrong time"]);
}

/// Of a process that says that it is ready and is gone: whether the broker came to look at its jail is a matter of time.
fn expect_dead_when_ready(ended: &Ended) {
    match ended.status.code() {
        Some(4) => ended.expect(4, "jail-failed"),
        _ => ended.expect(20, "process-died"),
    };
}

#[test]
fn process_that_ends_with_0_before_its_time_is_refused_or_ends_with_20() {
    for process in [Process::Vmm, Process::Serial, Process::VirtioBlk] {
        let ended = run(probe::machine("test=ready end=sleep", process, "hang-up"));
        expect_dead_when_ready(&ended);
        assert!(message(&ended).contains(&format!("the {}", process.name())), "{}", ended.story());
    }
}

#[test]
fn error_of_kvm_ends_with_5() {
    for task in ["not-built", "kvm-error", "failed-later"] {
        let ended = run(probe::machine("test=banner", Process::Vmm, task));
        ended.expect(5, "kvm-error");
        assert!(message(&ended).contains("the probe says so"), "{}", ended.story());
        assert!(message(&ended).contains("broker doctor"), "{}", ended.story());
    }
}

#[test]
fn flood_of_messages_is_cut_and_ends_with_23() {
    let ended = run(probe::machine("test=banner", Process::VirtioBlk, "flood-later"));
    ended.expect(23, "device-failed");
    assert!(ended.log.lines().count() < 40, "{}", ended.story());
}

#[test]
fn full_log_does_not_stop_a_process_and_is_cut() {
    let ended = run(probe::machine("test=banner end=sleep", Process::Serial, "log-flood"));
    ended.expect(14, "user-quit");
    assert!(ended.log.contains("line 0 of a flood"), "{}", ended.story());
    assert!(ended.log.lines().count() < 2000, "{} lines", ended.log.lines().count());
}

#[test]
fn full_log_does_not_hide_a_panic() {
    let ended = run(probe::machine("test=banner", Process::Serial, "log-flood-panic"));
    expect_dead_when_ready(&ended);
    assert!(message(&ended).contains("panicked"), "{}", ended.story());
}

#[test]
fn refused_launch_leaves_no_process() {
    let running = probe::machine("test=banner", Process::Serial, "silent").start();
    let started = || -> Vec<Seen> { outside::jailed(running.pid()) };
    let end = std::time::Instant::now() + tests::machine::LIMIT;
    // The loader may be done already.
    while started().len() < 3 {
        assert!(std::time::Instant::now() < end, "only {:?}", started());
        std::thread::yield_now();
    }
    let seen = started();
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().expect(143, "sigterm");
    outside::await_gone(&seen);
}
