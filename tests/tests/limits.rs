//! Limits of a run: each is reached by a real guest, ends it with its own reason, and leaves nothing behind.
//!
//! What a cgroup limits is tested where this host lets the broker make one with that controller; where it does not, the
//! test says why. The lab's host does.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tests::machine::{Ended, LIMIT, Machine, Running};
use tests::outside::{self, Seen};
use tests::{disk, guest::Guest};

/// A machine by a config with these lines beside its kernel, whose guest does as `words` say.
fn machine(words: &str, lines: &str) -> Machine {
    let machine = Machine::bare();
    let kernel = Guest::Long.write(machine.folder());
    let config =
        format!("{lines}\n[machine]\nmemory = \"64MiB\"\n[boot]\nkernel = {kernel:?}\ncmdline = \"{words}\"\n");
    let path = machine.folder().join("config.toml");
    fs::write(&path, config).unwrap();
    machine.args(["run", "--json"]).args([path])
}

fn message(ended: &Ended) -> &str {
    ended.report["message"].as_str().unwrap()
}

/// The CPU time of all processes in milliseconds, by the report.
fn cpu_ms(ended: &Ended) -> u64 {
    let of =
        |process: &serde_json::Value| process["user_ms"].as_u64().unwrap() + process["system_ms"].as_u64().unwrap();
    ended.report["processes"].as_array().unwrap().iter().map(of).sum()
}

#[test]
fn limits_that_are_not_reached_change_nothing() {
    let limits = "[limits]\nwall_time = \"1h\"\ncpu_time = \"1h\"\nmemory = \"256MiB\"\nconsole = \"1MiB\"\n\
                  disk_writes = \"1MiB\"\n[[disk]]\npath = \"disk.img\"\nmode = \"read-write\"\n";
    let machine = machine("test=blk-read,blk-write,blk-discard,ready", limits);
    assert!(disk::image(machine.folder(), "disk.img", 4096).exists());
    let ended = machine.run();
    ended.passed(&["blk-read", "blk-write", "blk-discard", "ready"]).expect(0, "guest-poweroff");
}

#[test]
fn wall_time_ends_with_30() {
    let running =
        machine("test=ready end=sleep", "[limits]\nwall_time = \"1h\"").args(["--wall-time", "1500ms"]).start();
    let ended = running.wait();
    ended.expect(30, "limit-wall-time");
    assert!(ended.report["duration_ms"].as_u64() >= Some(1500), "{}", ended.story());
    assert!(message(&ended).contains("took 1500 ms, its limit (limits.wall_time)"), "{}", ended.story());
    assert!(ended.report["processes"].as_array().unwrap().iter().all(|one| !one["exit"].is_null()));
}

#[test]
fn cpu_time_of_all_processes_ends_with_31() {
    let ended = Machine::new("test=ready end=spin").args(["--cpu-time", "1s"]).run();
    ended.expect(31, "limit-cpu-time");
    // The kernel rounds each process's time down.
    assert!(cpu_ms(&ended) >= 900, "{}", ended.story());
    assert!(message(&ended).contains("limits.cpu_time"), "{}", ended.story());
}

#[test]
fn console_ends_with_33_and_no_byte_more_is_printed() {
    let limits = "[limits]\nconsole = \"16KiB\"\n[console]\noutput = [\"stdio\", { file = \"console.log\" }]";
    let machine = machine("test=flood flood_kib=64 end=sleep", limits);
    let running = machine.start();
    let log = running.folder().join("console.log");
    let ended = running.wait();
    ended.expect(33, "limit-console");
    assert_eq!(ended.console, "#".repeat(16 << 10), "{}", ended.report);
    assert_eq!(ended.report["console"]["received_bytes"].as_u64(), Some(16 << 10));
    assert!(message(&ended).contains("more than 16 KiB (limits.console)"), "{}", ended.story());
    assert!(!log.exists(), "the folder goes with the machine");
}

/// Fills a disk that may take 1 MiB and a block, 128 KiB at a time; gives the image afterwards.
fn fill(mode: &str) -> Vec<u8> {
    let limits = format!("[limits]\ndisk_writes = \"1028KiB\"\n[[disk]]\npath = \"disk.img\"\nmode = \"{mode}\"");
    let machine = machine("test=blk-fill,ready end=sleep", &limits);
    // The machine's folder goes with it.
    let folder = tempfile::tempdir().unwrap();
    let image = disk::image(folder.path(), "disk.img", 4096);
    std::os::unix::fs::symlink(&image, machine.folder().join("disk.img")).unwrap();
    let ended = machine.run();
    ended.expect(34, "limit-disk-writes");
    assert!(message(&ended).contains("more than 1028 KiB to its disks (limits.disk_writes)"), "{}", ended.story());
    fs::read(&image).unwrap()
}

#[test]
fn disk_writes_end_with_34_and_no_byte_more_is_written() {
    let image = fill("read-write");
    let written = image.iter().take_while(|&&byte| byte == 0xff).count();
    assert_eq!(written, 1 << 20);
    let rest = (1 << 20) / disk::SECTOR_BYTES;
    assert!((rest..4096).all(|n| image[n * 512..(n + 1) * 512] == disk::sector(n as u64)), "more was written");
}

#[test]
fn writes_to_an_ephemeral_disk_count_as_well() {
    let image = fill("ephemeral");
    assert!((0..4096).all(|n| image[n * 512..(n + 1) * 512] == disk::sector(n as u64)), "the image was written to");
}

#[test]
fn wrong_limits_are_refused_with_their_lines_and_start_nothing() {
    let ended = machine("test=banner", "[limits]\nwall_time = \"90\"\ndisk_write = \"1GiB\"").run();
    ended.expect(2, "config");
    for said in ["config.toml:2: limits.wall_time: is \"90\"", "config.toml:3: limits.disk_write: is no known key; did"]
    {
        assert!(message(&ended).contains(said), "{}", ended.story());
    }
    let ended = machine("test=banner", "").args(["--cpu-time", "soon"]).run();
    ended.expect(2, "config");
    assert!(message(&ended).contains("--cpu-time: is \"soon\"; write a whole number from 1 on with a unit"));
}

/// A machine that sleeps, its processes, and their cgroup if it is one of their own.
fn sleeping(limits: &str) -> (Running, Vec<Seen>, Option<PathBuf>) {
    let running = machine("test=ready end=sleep", limits).start();
    running.await_text("PASS ready\n");
    let seen = outside::jailed(running.pid());
    assert_eq!(seen.len(), 2, "{seen:?}");
    let ours = format!("bulkhead-{}-", running.pid());
    let folders: Vec<_> = seen.iter().map(Seen::cgroup).collect();
    assert!(folders.windows(2).all(|pair| pair[0] == pair[1]), "{folders:?}");
    let own = folders[0].clone().filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&ours));
    (running, seen, own)
}

fn stop(running: Running) -> Ended {
    running.signal(Signal::SIGTERM);
    let ended = running.wait();
    ended.expect(143, "sigterm");
    ended
}

/// Says why this host's broker has no `controller`, and asserts that the report does as well.
fn skipped(ended: &Ended, controller: &str) {
    let confinement = &ended.report["confinement"];
    let why = confinement["why_not_more"].as_str().unwrap_or_default();
    assert!(!why.is_empty(), "nothing says why there is no {controller}: {}", ended.story());
    eprintln!("skipped: no {controller} controller here: {why}");
}

fn setting(cgroup: &Path, file: &str) -> String {
    fs::read_to_string(cgroup.join(file)).unwrap().trim().to_owned()
}

#[test]
fn processes_are_in_a_cgroup_of_their_own_which_is_removed() {
    let (running, seen, cgroup) = sleeping("");
    let inside = cgroup.as_deref().map(|folder| setting(folder, "cgroup.procs"));
    let pids = cgroup.as_deref().map(|folder| fs::read_to_string(folder.join("pids.max")));
    let ended = stop(running);
    outside::await_gone(&seen);
    let said = &ended.report["confinement"];
    let Some(folder) = cgroup else {
        assert_eq!((said["by"].as_str(), &said["cgroup"]), (Some("rlimits"), &serde_json::Value::Null));
        return skipped(&ended, "cgroup, so no");
    };
    assert_eq!(said["by"].as_str(), Some("cgroup"), "{said}");
    assert_eq!(said["cgroup"].as_str().map(Path::new), Some(folder.as_path()), "{said}");
    // KVM may have a thread of the kernel in it as well.
    let inside: Vec<i32> = inside.unwrap().lines().map(|pid| pid.parse().unwrap()).collect();
    assert!(seen.iter().all(|one| inside.contains(&one.pid.as_raw())), "{seen:?}: {inside:?}");
    assert!(!folder.exists(), "{} is left", folder.display());
    match pids.unwrap() {
        // One vCPU, its control thread, serial and loader; and what may be spare.
        Ok(text) => assert_eq!(text.trim(), "12"),
        Err(_) => skipped(&ended, "pids"),
    }
}

#[test]
fn cgroup_of_a_killed_broker_is_removed() {
    let (running, seen, cgroup) = sleeping("");
    running.signal(Signal::SIGKILL);
    outside::await_gone(&seen);
    assert_eq!(running.wait().status.code(), None);
    let Some(folder) = cgroup else {
        let ended = Machine::new("test=ready").run();
        return skipped(&ended, "cgroup, so no");
    };
    let end = Instant::now() + LIMIT;
    while folder.exists() {
        assert!(Instant::now() < end, "{} is left", folder.display());
        std::thread::yield_now();
    }
}

#[test]
fn share_of_the_cpus_is_set_or_refused() {
    let refused = |ended: Ended| {
        ended.expect(1, "host-error");
        assert!(message(&ended).contains("limits.cpus needs a cgroup with the cpu controller"), "{}", ended.story());
        assert_eq!(ended.report["processes"], serde_json::json!([]), "{}", ended.story());
        eprintln!("skipped: {}", message(&ended));
    };
    // A host may have the controller and yet none to give to the cgroup that the tests are in.
    let probe = machine("test=ready", "[limits]\ncpus = 0.5").run();
    if probe.status.code() == Some(1) {
        return refused(probe);
    }
    let asked = machine("test=echo", "[limits]\ncpus = 0.5").start();
    asked.await_text("READY echo\n");
    let seen = outside::jailed(asked.pid());
    let folder = seen[0].cgroup().unwrap();
    assert_eq!(setting(&folder, "cpu.max"), "50000 100000");
    let ended = stop(asked);
    assert_eq!(ended.report["confinement"]["controllers"], serde_json::json!(["pids", "cpu"]));
}

#[test]
fn memory_beyond_the_guests_ends_with_32_or_is_limited_for_each_process() {
    // Where writes to an ephemeral disk are memory of the process that writes them.
    let place = Path::new("/dev/shm");
    let limits = "[limits]\nmemory = \"32MiB\"\n[[disk]]\npath = \"disk.img\"\nmode = \"ephemeral\"";
    let machine = machine("test=touch,blk-fill,ready touch_mib=40 end=sleep", limits).env("TMPDIR", place);
    fs::File::create(machine.folder().join("disk.img")).unwrap().set_len(96 << 20).unwrap();
    let running = machine.args(["-v"]).start();
    running.await_text("PASS touch\n");
    let seen = outside::jailed(running.pid());
    let data = |process: &Seen| process.limit("Max data size");
    let limited = seen.iter().map(data).collect::<Vec<_>>();
    // Either way it ends: the disk is full at last, and the guest sleeps.
    let by_cgroup = seen[0].cgroup().is_some_and(|folder| folder.join("memory.max").exists());
    if by_cgroup {
        let ended = running.wait();
        ended.expect(32, "limit-memory");
        assert!(message(&ended).contains("used 32 MiB beyond the guest's memory"), "{}", ended.story());
        assert_eq!(ended.report["confinement"]["controllers"], serde_json::json!(["pids", "memory"]));
        return;
    }
    running.await_text("PASS ready\n");
    let ended = stop(running);
    assert!(limited.iter().all(|limit| limit.as_deref() != Some("unlimited")), "{limited:?}");
    assert!(ended.log.contains("limits.memory is kept for each process"), "{}", ended.story());
    skipped(&ended, "memory");
}
