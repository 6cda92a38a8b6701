//! A running machine's processes from outside: each in its jail, each with its descriptors and no other.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use std::collections::{BTreeMap, BTreeSet};
use tests::disk;
use tests::machine::{Machine, Running};
use tests::outside::{self, Seen};

const NAMESPACES: [&str; 6] = ["user", "pid", "mnt", "ipc", "uts", "cgroup"];

/// A machine with two disks and two vCPUs that sleeps, and its processes by program; last, the inspector that waits for its end.
fn machine() -> (Running, Vec<Seen>) {
    let machine = Machine::new("test=blk-read,ready end=sleep").vcpus("2");
    let first = disk::image(machine.folder(), "first.img", 64);
    let second = disk::image(machine.folder(), "second.img", 64);
    let running = machine.disk(&first, "ro").disk(&second, "ephemeral").start();
    running.await_text("PASS ready\n");
    let mut seen = outside::jailed(running.pid());
    assert_eq!(seen.len(), 4, "{seen:?}");
    seen.push(outside::explainer(running.pid()));
    (running, seen)
}

fn end(running: Running) {
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().expect(143, "sigterm");
}

#[test]
fn every_thread_is_filtered_and_has_no_privilege() {
    let (running, seen) = machine();
    for process in &seen {
        process.assert_unprivileged();
    }
    end(running);
}

#[test]
fn no_process_dumps_or_shares_its_memory() {
    let (running, seen) = machine();
    seen.iter().for_each(Seen::assert_keeps_its_memory);
    // The vmm has mapped guest memory before its jail was shut: out of dumps (dd), not for children (dc), not mergeable.
    let mapped = seen[3].mapping_flags("guest-memory");
    assert!(!mapped.is_empty(), "{:?}", seen[3]);
    for flags in mapped {
        let has = |flag: &str| flags.iter().any(|one| one == flag);
        assert!(has("dd") && has("dc") && has("sh") && !has("mg"), "{flags:?}");
    }
    // The disk's process maps it later, as shared memory all the same.
    let mapped = seen[1].mapping_flags("guest-memory");
    assert!(!mapped.is_empty() && mapped.iter().all(|flags| flags.iter().any(|flag| flag == "sh")), "{mapped:?}");
    end(running);
}

#[test]
fn vmm_has_a_thread_for_each_vcpu_and_others_have_one_thread() {
    let (running, seen) = machine();
    for process in &seen {
        let threads = process.thread_status().len();
        if process.program == "bulkhead-vmm" {
            assert!(threads >= 3, "{threads}");
        } else {
            assert_eq!(threads, 1, "{process:?}");
        }
    }
    end(running);
}

#[test]
fn every_process_has_namespaces_of_its_own() {
    let (running, seen) = machine();
    let test = Seen { pid: nix::unistd::Pid::this(), program: String::new() };
    for name in NAMESPACES {
        let mut all = BTreeSet::from([test.namespace(name)]);
        for process in &seen {
            assert!(all.insert(process.namespace(name)), "{process:?} shares its {name} namespace");
        }
    }
    end(running);
}

#[test]
fn every_process_is_in_a_network_namespace_without_the_broker() {
    let (running, seen) = machine();
    let test = Seen { pid: nix::unistd::Pid::this(), program: String::new() };
    let all: BTreeSet<_> = seen.iter().map(|process| process.namespace("net")).collect();
    assert!(!all.contains(&test.namespace("net")));
    // Root makes one for all of them; an ordinary user cannot, and each has its own.
    let expected = if nix::unistd::geteuid().is_root() { 1 } else { seen.len() };
    assert_eq!(all.len(), expected, "{all:?}");
    for process in &seen {
        assert_eq!(process.addresses(), "", "{process:?}");
    }
    end(running);
}

#[test]
fn every_root_is_empty_and_read_only() {
    let (running, seen) = machine();
    for process in &seen {
        assert_eq!(process.root(), [""; 0].map(std::path::PathBuf::from), "{process:?}");
        let mounts = process.mounts();
        assert_eq!(mounts.len(), 1, "{process:?}: {mounts:?}");
        let options = mounts[0].split(' ').nth(5).unwrap().to_owned();
        assert!(options.split(',').any(|option| option == "ro"), "{process:?}: {mounts:?}");
    }
    end(running);
}

#[test]
fn every_process_holds_the_descriptors_of_its_row_and_no_other() {
    let (running, seen) = machine();
    let mut holds: Vec<_> = seen.iter().map(Seen::holds).collect();
    end(running);
    // The vmm makes eventfds for itself, beside the doorbell, the serial interrupt, and two for each disk.
    let own = holds[3].remove("anon_inode:[eventfd]");
    assert!(own.is_some_and(|count| count >= 6), "{own:?}");
    let row = |kinds: &[(&str, usize)]| kinds.iter().map(|&(kind, count)| (kind.to_owned(), count)).collect();
    let rows: [BTreeMap<String, usize>; 5] = [
        // Control and vmm; log, console input, console output; doorbell and interrupt; the recording.
        row(&[
            ("socket", 2),
            ("pipe", 3),
            ("anon_inode:[eventfd]", 2),
            ("memfd:posted-writes", 1),
            ("memfd:recording", 1),
        ]),
        // The guest drives this one: control and vmm; log; kick, call and error.
        row(&[
            ("socket", 2),
            ("pipe", 1),
            ("anon_inode:[eventpoll]", 1),
            ("anon_inode:[eventfd]", 3),
            ("guest-memory", 1),
            ("first.img", 1),
        ]),
        // And not this one, which has got nothing of the guest yet.
        row(&[("socket", 2), ("pipe", 1), ("anon_inode:[eventpoll]", 1), ("second.img", 1), ("unnamed file", 1)]),
        // Control, serial and two disks; log; no /dev/kvm, no file.
        row(&[
            ("socket", 4),
            ("pipe", 1),
            ("guest-memory", 1),
            ("memfd:posted-writes", 1),
            ("anon_inode:kvm-vm", 1),
            ("anon_inode:kvm-vcpu:0", 1),
            ("anon_inode:kvm-vcpu:1", 1),
        ]),
        // Control; log; the console as serial records it.
        row(&[("socket", 1), ("pipe", 1), ("memfd:recording", 1)]),
    ];
    assert_eq!(holds, rows);
}

#[test]
fn disk_with_an_io_uring_has_one_and_no_other_disk_has() {
    let machine = Machine::new("test=blk-read,ready end=sleep");
    let first = disk::image(machine.folder(), "first.img", 64);
    let second = disk::image(machine.folder(), "second.img", 64);
    let running = machine.disk(&first, "ro:io-uring").disk(&second, "ro").start();
    running.await_text("PASS ready\n");
    let holds: Vec<_> = outside::jailed(running.pid()).iter().map(Seen::holds).collect();
    end(running);
    let rings = |holds: &BTreeMap<String, usize>| holds.get("anon_inode:[io_uring]").copied().unwrap_or(0);
    let (with, without): (Vec<_>, Vec<_>) = holds.iter().partition(|holds| rings(holds) > 0);
    assert_eq!((with.len(), rings(with[0]), with[0].get("first.img")), (1, 1, Some(&1)), "{holds:?}");
    assert!(without.iter().any(|holds| holds.contains_key("second.img")), "{holds:?}");
}

#[test]
fn every_process_of_a_broker_of_root_has_a_user_id_of_its_own() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (running, seen) = machine();
    let mut all = BTreeSet::from(["0".to_owned()]);
    for process in &seen {
        let status = process.thread_status().remove(0);
        let ids: BTreeSet<_> = status["Uid"].split_whitespace().map(str::to_owned).collect();
        assert_eq!(ids.len(), 1, "{process:?}: {ids:?}");
        assert!(ids.into_iter().all(|id| all.insert(id)), "{process:?} shares its user id");
    }
    end(running);
}

#[test]
fn root_that_may_not_look_into_other_processes_can_launch() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root has this capability to go without");
        return;
    }
    // As in a container. Whoever is in the broker's memory and takes on an id makes that memory private to the kernel.
    let setpriv = std::path::Path::new("/usr/bin/setpriv");
    for _ in 0..5 {
        let machine = Machine::new("test=banner").by(setpriv, &["--bounding-set=-sys_ptrace", "--"]);
        machine.run().passed(&["banner"]).expect(0, "guest-poweroff");
    }
}
