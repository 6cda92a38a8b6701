//! Every way for a run to end, each with its reason and its exit code, and with nothing left behind.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use nix::sys::signal::{Signal, kill};
use tests::machine::{Ended, Machine, Running};
use tests::{disk, outside};

fn end(words: &str) -> Ended {
    Machine::new(words).run()
}

#[test]
fn poweroff_ends_with_0() {
    end("test=ready end=poweroff").passed(&["ready"]).expect(0, "guest-poweroff");
}

#[test]
fn reset_register_ends_with_10() {
    end("test=ready end=reset").passed(&["ready"]).expect(10, "guest-reboot");
}

#[test]
fn keyboard_reset_ends_with_10() {
    end("test=ready end=keyboard").passed(&["ready"]).expect(10, "guest-reboot");
}

#[test]
fn halted_vcpu_ends_with_11() {
    end("test=ready end=halt").passed(&["ready"]).expect(11, "guest-halted");
}

#[test]
fn kernel_panic_ends_with_12_and_tells_its_line() {
    let ended = end("test=ready end=panic");
    ended.passed(&["ready"]).expect(12, "guest-panic");
    let message = ended.report["message"].as_str().unwrap();
    assert!(message.contains("the test guest wants it so"), "{}", ended.story());
}

#[test]
fn triple_fault_ends_with_13() {
    end("test=ready end=triple").passed(&["ready"]).expect(13, "triple-fault");
}

#[test]
fn debug_prints_the_registers_of_a_guest_that_ends_badly() {
    let ended = Machine::new("test=ready end=triple").args(["--debug"]).run();
    ended.passed(&["ready"]).expect(13, "triple-fault");
    assert!(ended.log.contains("cr3"), "{}", ended.story());
}

/// A machine with a disk and two vCPUs that sleeps, and its processes.
fn sleeping() -> (Running, Vec<outside::Seen>) {
    let machine = Machine::new("test=ready end=sleep").vcpus("2");
    let image = disk::image(machine.folder(), "disk.img", 64);
    let running = machine.disk(&image, "rw").start();
    running.await_text("PASS ready\n");
    let seen = outside::jailed(running.pid());
    let programs: Vec<_> = seen.iter().map(|seen| seen.program.as_str()).collect();
    assert_eq!(programs, ["bulkhead-serial", "bulkhead-virtio-blk", "bulkhead-vmm"]);
    (running, seen)
}

#[test]
fn sigint_ends_with_130_and_leaves_nothing() {
    let (running, seen) = sleeping();
    running.signal(Signal::SIGINT);
    running.wait().expect(130, "sigint");
    outside::await_gone(&seen);
}

#[test]
fn sigterm_ends_with_143_and_leaves_nothing() {
    let (running, seen) = sleeping();
    let all = [seen, outside::inspectors(running.pid())].concat();
    running.signal(Signal::SIGTERM);
    running.wait().expect(143, "sigterm");
    outside::await_gone(&all);
}

#[test]
fn killed_broker_takes_its_children_along() {
    let (running, seen) = sleeping();
    let all = [seen, outside::inspectors(running.pid())].concat();
    running.signal(Signal::SIGKILL);
    outside::await_gone(&all);
    assert_eq!(running.wait().status.code(), None);
}

fn kill_child(program: &str) {
    let (running, seen) = sleeping();
    let victim = seen.iter().find(|seen| seen.program == program).unwrap();
    kill(victim.pid, Signal::SIGKILL).unwrap();
    let ended = running.wait();
    ended.expect(20, "process-died");
    let name = program.trim_start_matches("bulkhead-");
    let message = ended.report["message"].as_str().unwrap();
    assert!(message.contains(name), "{}", ended.story());
    outside::await_gone(&seen);
}

#[test]
fn killed_vmm_ends_with_20_and_is_named() {
    kill_child("bulkhead-vmm");
}

#[test]
fn killed_serial_ends_with_20_and_is_named() {
    kill_child("bulkhead-serial");
}

#[test]
fn killed_virtio_blk_ends_with_20_and_is_named() {
    kill_child("bulkhead-virtio-blk");
}

#[test]
fn disk_process_that_never_answers_the_vmm_is_cut_off_and_ends_with_23() {
    let ended = tests::probe::machine("test=blk-read", policies::Process::VirtioBlk, "mute").run();
    ended.expect(23, "device-failed");
    assert!(ended.report["message"].as_str().unwrap().contains("the virtio-blk-0 process"), "{}", ended.story());
}

/// As a host does that is suspended, or whose user pauses a container: waits in the kernel are restarted, which is a
/// system call of its own.
#[test]
fn stopped_and_continued_processes_go_on() {
    let machine = Machine::new("test=echo,blk-read").vcpus("2");
    let image = disk::image(machine.folder(), "disk.img", 64);
    let mut running = machine.disk(&image, "ro").start();
    running.await_text("READY echo\n");
    let seen = outside::jailed(running.pid());
    assert_eq!(seen.len(), 3, "{seen:?}");
    let end = std::time::Instant::now() + tests::machine::LIMIT;
    let waits = |one: &outside::Seen| one.thread_status().iter().all(|status| status["State"].starts_with('S'));
    while !seen.iter().all(waits) {
        assert!(std::time::Instant::now() < end, "a thread does not come to rest");
        std::thread::yield_now();
    }
    seen.iter().for_each(|one| kill(one.pid, Signal::SIGSTOP).unwrap());
    // T, or t where somebody traces it.
    let is_stopped = |state: &str| state.starts_with(['T', 't']);
    let stopped = |one: &outside::Seen| one.thread_status().iter().all(|status| is_stopped(&status["State"]));
    while !seen.iter().all(stopped) {
        assert!(std::time::Instant::now() < end, "a thread does not stop");
        std::thread::yield_now();
    }
    seen.iter().for_each(|one| kill(one.pid, Signal::SIGCONT).unwrap());
    running.write_input(b"still here\n");
    running.await_text("still here\n");
    running.wait().passed(&["echo", "blk-read"]).expect(0, "guest-poweroff");
}

#[test]
fn report_tells_every_process() {
    let machine = Machine::new("test=ready");
    let image = disk::image(machine.folder(), "disk.img", 64);
    let running = machine.disk(&image, "ro").start();
    running.await_text("PASS ready\n");
    let ended = running.wait();
    ended.expect(0, "guest-poweroff");
    let processes = ended.report["processes"].as_array().unwrap();
    let mut names: Vec<_> = processes.iter().map(|process| process["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names.len(), 4, "{}", ended.story());
    assert!(names.iter().any(|name| name.starts_with("virtio-blk")), "{}", ended.story());
    for process in processes {
        assert_eq!(process["exit"]["code"].as_i64(), Some(0), "{}", ended.story());
        assert!(process["peak_rss_kib"].as_u64() > Some(0), "{}", ended.story());
    }
}

#[test]
fn kernel_that_is_none_is_refused_with_3() {
    for content in [&b"not a kernel"[..], &tests::guest::Guest::Long.bytes()[..5000]] {
        let machine = Machine::new("test=ready");
        let path = machine.folder().join("bad");
        std::fs::write(&path, content).unwrap();
        machine.kernel(path).run().expect(3, "boot-refused");
    }
}

#[test]
fn audit_finds_no_system_call_that_a_policy_lacks() {
    let machine =
        Machine::new("test=blk-read,blk-write,blk-discard,blk-range,blk-malformed,timer,smp").args(["--audit"]);
    let image = disk::image(machine.folder(), "disk.img", 4096);
    let ended = machine.vcpus("2").disk(&image, "ephemeral").run();
    ended.passed(&["blk-read", "blk-write", "blk-discard", "smp"]).expect(0, "guest-poweroff");
    assert_eq!(ended.report["audit"], serde_json::json!([]), "{}", ended.story());
}

#[test]
fn ctrl_a_x_ends_with_14_and_the_terminal_is_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = tests::guest::Guest::Long.write(folder.path());
    let pty = nix::pty::openpty(None, None).unwrap();
    let before = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    let slave = || std::process::Stdio::from(pty.slave.try_clone().unwrap());
    let mut broker = std::process::Command::new(tests::binaries::binary("broker"));
    broker.args(["run", "-m", "64", "-p", "test=ready end=sleep", "-k"]).arg(kernel);
    let mut broker = broker.stdin(slave()).stdout(slave()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut shown = String::new();
    while !shown.contains("PASS ready") {
        let mut fds = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&pty.master), nix::poll::PollFlags::POLLIN)];
        let limit = nix::poll::PollTimeout::from(60_000_u16);
        assert_eq!(nix::poll::poll(&mut fds, limit), Ok(1), "the terminal shows only {shown:?}");
        let mut buffer = [0; 512];
        let length = nix::unistd::read(&pty.master, &mut buffer).unwrap();
        shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    let during = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    assert_ne!(during.local_flags, before.local_flags, "the terminal is not in raw mode");
    nix::unistd::write(&pty.master, b"\x01x").unwrap();
    assert_eq!(broker.wait().unwrap().code(), Some(14));
    assert_eq!(nix::sys::termios::tcgetattr(&pty.slave).unwrap(), before);
}
