//! As an ordinary user with access to /dev/kvm, without it, with little memory, and with huge pages.
//!
//! Each test that this host or this user cannot stage says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tests::binaries::binary;
use tests::machine::Machine;
use tests::outside::{self, Seen};
use tests::probe::PROCESSES;
use tests::{disk, guest::Guest};

/// A user that no one is.
const USER: u32 = 1_234_567_890;

fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: {test} needs root");
    }
    root
}

/// Copies the binaries to where any user can run them, and gives everything in `folder` to [`USER`].
fn hand_over(folder: &Path) -> PathBuf {
    let bin = folder.join("bin");
    fs::create_dir(&bin).unwrap();
    for name in PROCESSES.map(policies::Process::binary).into_iter().chain(["broker", "stage"]) {
        fs::copy(binary(name), bin.join(name)).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let id = (Some(nix::unistd::Uid::from_raw(USER)), Some(nix::unistd::Gid::from_raw(USER)));
    nix::unistd::chown(folder, id.0, id.1).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        nix::unistd::chown(&entry.unwrap().path(), id.0, id.1).unwrap();
    }
    bin
}

#[test]
fn ordinary_user_with_kvm_runs_a_machine_in_the_same_jails() {
    if !is_root("a machine of another user") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = Guest::Long.write(folder.path());
    let image = disk::image(folder.path(), "disk.img", 4096);
    let bin = hand_over(folder.path());
    let image = format!("{}:rw", image.display());
    let machine = Machine::bare_at(&bin.join("broker")).args(["run", "--json", "-m", "64", "-d", &image, "-k"]);
    let words = "test=banner,blk-read,blk-write,ready end=sleep";
    let machine = machine.args([kernel.as_os_str(), "-p".as_ref(), words.as_ref()]).env("TMPDIR", folder.path());
    let running = machine.by(&bin.join("stage"), &[&format!("user={USER}"), "--"]).start();
    running.await_text("PASS ready\n");
    let seen = outside::jailed(running.pid());
    assert_eq!(seen.len(), 3, "{seen:?}");
    let test = Seen { pid: nix::unistd::Pid::this(), program: String::new() };
    for name in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let mut all = BTreeSet::from([test.namespace(name)]);
        assert!(seen.iter().all(|process| all.insert(process.namespace(name))), "{name} is shared: {seen:?}");
    }
    for process in &seen {
        process.assert_unprivileged();
        process.assert_keeps_its_memory();
        for status in process.thread_status() {
            for key in ["Uid", "Gid"] {
                let ids: BTreeSet<_> = status[key].split_whitespace().collect();
                assert_eq!(ids, BTreeSet::from([USER.to_string().as_str()]), "{key} of {process:?}");
            }
        }
        assert!(process.root().is_empty(), "{process:?}");
        let mounts = process.mounts();
        let options = mounts[0].split(' ').nth(5).unwrap();
        assert!(mounts.len() == 1 && options.split(',').any(|option| option == "ro"), "{process:?}: {mounts:?}");
    }
    running.signal(nix::sys::signal::Signal::SIGTERM);
    let ended = running.wait();
    ended.passed(&["banner", "blk-read", "blk-write"]).expect(143, "sigterm");
    outside::await_gone(&seen);
    // Nobody has given this user a cgroup, and the report says so.
    let confinement = &ended.report["confinement"];
    assert_eq!(confinement["by"].as_str(), Some("rlimits"), "{confinement}");
    assert!(confinement["why_not_more"].as_str().is_some_and(|why| !why.is_empty()), "{confinement}");
}

/// A cgroup of version 2 with all that this host has, given to [`USER`] (cgroups(7), "Delegating a hierarchy").
fn delegated() -> Result<Cgroup, String> {
    let own = Seen { pid: nix::unistd::Pid::this(), program: String::new() }.cgroup();
    let parent = own.ok_or("no cgroup2 file system is mounted")?;
    let folder = parent.join(format!("bulkhead-test-delegated-{}", std::process::id()));
    fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let cgroup = Cgroup(folder);
    let id = (Some(nix::unistd::Uid::from_raw(USER)), Some(nix::unistd::Gid::from_raw(USER)));
    for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        nix::unistd::chown(&cgroup.0.join(name), id.0, id.1).map_err(|errno| format!("{name}: {errno}"))?;
    }
    // Only the root can have processes and give controllers on; what comes of it is asserted below.
    if !parent.join("cgroup.type").exists() {
        for controller in ["+memory", "+pids"] {
            fs::write(parent.join("cgroup.subtree_control"), controller).unwrap_or(());
        }
    }
    Ok(cgroup)
}

#[test]
fn ordinary_user_with_a_cgroup_of_its_own_has_its_machine_in_it() {
    if !is_root("a cgroup for another user") {
        return;
    }
    let cgroup = match delegated() {
        Ok(cgroup) => cgroup,
        Err(why) => return eprintln!("skipped: no cgroup can be made: {why}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let kernel = Guest::Long.write(folder.path());
    let bin = hand_over(folder.path());
    let machine = Machine::bare_at(&bin.join("broker")).args(["run", "--json", "-m", "64", "-p", "test=echo", "-k"]);
    let stage = [&format!("cgroup={}", cgroup.0.display()), &format!("user={USER}"), "--"];
    let running = machine.args([kernel.as_os_str()]).by(&bin.join("stage"), &stage).start();
    running.await_text("READY echo\n");
    let seen = outside::jailed(running.pid());
    let places: BTreeSet<_> = seen.iter().map(|one| one.cgroup().unwrap()).collect();
    let own = cgroup.0.join(format!("bulkhead-{}-1", running.pid()));
    assert_eq!(places, BTreeSet::from([own]));
    let controllers = fs::read_to_string(cgroup.0.join("cgroup.controllers")).unwrap();
    running.signal(nix::sys::signal::Signal::SIGTERM);
    let ended = running.wait();
    ended.expect(143, "sigterm");
    let confinement = &ended.report["confinement"];
    assert_eq!(confinement["by"].as_str(), Some("cgroup"), "{confinement}");
    let has_pids = controllers.split_whitespace().any(|name| name == "pids");
    if !has_pids {
        eprintln!("skipped: {} is given no pids controller, but {controllers:?}", cgroup.0.display());
    }
    let expected = if has_pids { serde_json::json!(["pids"]) } else { serde_json::json!([]) };
    assert_eq!(confinement["controllers"], expected, "{confinement}");
    let left: Vec<_> = fs::read_dir(&cgroup.0).unwrap().flatten().filter(|entry| entry.path().is_dir()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn host_that_forbids_user_namespaces_ends_with_4_and_says_which_switch_does() {
    if !is_root("a user namespace of its own") {
        return;
    }
    let ended = Machine::new("test=banner").by(&binary("stage"), &["no-namespaces", "--"]).run();
    ended.expect(4, "jail-failed");
    let message = ended.report["message"].as_str().unwrap();
    assert!(
        message.contains("the sysctl user.max_user_namespaces is 0; have root run `sysctl -w"),
        "{}",
        ended.story()
    );
    assert_eq!(ended.console, "", "the guest was started: {}", ended.story());

    let doctor = Machine::bare().args(["doctor"]).by(&binary("stage"), &["no-namespaces", "--"]).run();
    assert_eq!(doctor.status.code(), Some(1), "{}", doctor.story());
    assert!(doctor.console.contains("the sysctl user.max_user_namespaces is 0"), "{}", doctor.story());
}

/// In two containers, two brokers can have the same process id.
#[test]
fn brokers_with_the_same_process_id_have_processes_of_different_users() {
    if !is_root("a pid namespace") {
        return;
    }
    let start = || {
        let running = Machine::new("test=echo").by(&binary("stage"), &["first-process", "--"]).start();
        running.await_text("READY echo\n");
        let seen = outside::jailed(running.pid());
        assert_eq!(seen.len(), 2, "{seen:?}");
        let status = |process: &Seen| process.thread_status().remove(0);
        let parent = status(&seen[0])["PPid"].parse().unwrap();
        let broker = Seen { pid: nix::unistd::Pid::from_raw(parent), program: String::new() };
        // Its ids, from the test's namespace inwards.
        assert_eq!(status(&broker)["NSpid"].split_whitespace().next_back(), Some("1"));
        (running, seen.iter().map(|process| status(process)["Uid"].clone()).collect::<Vec<_>>())
    };
    let (first, second) = (start(), start());
    let all: BTreeSet<_> = first.1.iter().chain(&second.1).collect();
    assert_eq!(all.len(), 4, "{:?} {:?}", first.1, second.1);
    for mut running in [first.0, second.0] {
        running.write_input(b"\n");
        running.wait().passed(&["echo"]).expect(0, "guest-poweroff");
    }
}

#[test]
fn user_without_kvm_ends_with_1_and_is_told_what_to_do() {
    if !is_root("a host without /dev/kvm") {
        return;
    }
    let machine = Machine::new("test=banner");
    let folder = tempfile::tempdir().unwrap();
    let console = folder.path().join("console.log");
    fs::write(&console, "precious").unwrap();
    let to = format!("file={}", console.display());
    let ended = machine.args(["--console", &to]).by(&binary("stage"), &["without-kvm", "--"]).run();
    ended.expect(1, "host-error");
    assert!(ended.report["message"].as_str().unwrap().contains("/dev/kvm"), "{}", ended.story());
    assert_eq!(ended.report["processes"], serde_json::json!([]), "{}", ended.story());
    assert_eq!(fs::read_to_string(&console).unwrap(), "precious", "the console file was emptied");
}

/// A memory cgroup of this size, of either version; or why there is none.
fn cgroup(bytes: u64) -> Result<PathBuf, String> {
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let name = format!("bulkhead-test-{}", std::process::id());
    let mut why = "there is no memory controller".to_owned();
    for line in own.lines() {
        let fields: Vec<_> = line.splitn(3, ':').collect();
        let (root, limit) = match fields[1] {
            "" => (Path::new("/sys/fs/cgroup"), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let parent = root.join(fields[2].trim_start_matches('/'));
        let folder = parent.join(&name);
        let made = fs::create_dir(&folder).and_then(|()| fs::write(folder.join(limit), bytes.to_string()));
        match made {
            Ok(()) => return Ok(folder),
            Err(error) => {
                why = format!("{}: {error}", folder.display());
                fs::remove_dir(&folder).unwrap_or(());
            }
        }
    }
    Err(why)
}

/// Removes the cgroup, whatever became of the test.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while fs::remove_dir(&self.0).is_err() && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
    }
}

#[test]
fn guest_that_takes_more_memory_than_there_is_ends_with_22() {
    let cgroup = match cgroup(48 << 20) {
        Ok(folder) => Cgroup(folder),
        Err(why) => {
            eprintln!("skipped: no memory cgroup can be made: {why}");
            return;
        }
    };
    let stage = format!("cgroup={}", cgroup.0.display());
    let machine = Machine::new("test=ready,touch touch_mib=200").memory("256");
    let ended = machine.by(&binary("stage"), &[&stage, "--"]).run();
    ended.passed(&["ready"]).expect(22, "out-of-memory");
    assert!(ended.report["message"].as_str().unwrap().contains("memory ran out"), "{}", ended.story());
}

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

fn huge_pages(name: &str) -> Option<u64> {
    fs::read_to_string(Path::new(HUGE_PAGES).join(name)).ok()?.trim().parse().ok()
}

/// Puts the number of reserved pages back.
struct Reserved(u64);

impl Drop for Reserved {
    fn drop(&mut self) {
        fs::write(Path::new(HUGE_PAGES).join("nr_hugepages"), self.0.to_string()).unwrap_or(());
    }
}

fn with_huge_pages(memory: &str) -> (tempfile::TempDir, Machine) {
    let folder = tempfile::tempdir().unwrap();
    let _kernel = Guest::Long.write(folder.path());
    fs::write(folder.path().join("console.log"), "precious").unwrap();
    let config = folder.path().join("config.toml");
    let text = format!(
        "[machine]\nmemory = \"{memory}\"\nhuge_pages = \"2MiB\"\n[boot]\nkernel = \"guest.elf\"\n\
         cmdline = \"test=banner,ready\"\n[console]\noutput = [\"stdio\", {{ file = \"console.log\" }}]\n"
    );
    fs::write(&config, text).unwrap();
    let machine = Machine::bare().args(["run".as_ref(), "--json".as_ref(), config.as_os_str()]);
    (folder, machine)
}

/// One test, as both halves change the one number of this host.
#[test]
fn huge_pages_are_used_where_they_are_and_asked_for_where_they_are_not() {
    let (folder, machine) = with_huge_pages("1TiB");
    let ended = machine.run();
    ended.expect(1, "host-error");
    let message = ended.report["message"].as_str().unwrap();
    assert!(message.contains("leave machine.huge_pages out"), "{}", ended.story());
    assert_eq!(ended.report["processes"], serde_json::json!([]));
    assert_eq!(fs::read_to_string(folder.path().join("console.log")).unwrap(), "precious");

    let Some(before) = huge_pages("nr_hugepages") else {
        eprintln!("skipped: this kernel has no huge pages of 2 MiB");
        return;
    };
    let reserved = Reserved(before);
    let wanted = before + 16;
    let set = fs::write(Path::new(HUGE_PAGES).join("nr_hugepages"), wanted.to_string());
    if set.is_err() || huge_pages("free_hugepages") < Some(16) {
        eprintln!("skipped: 16 huge pages cannot be reserved ({set:?}, {:?} are free)", huge_pages("free_hugepages"));
        return;
    }
    let (_folder, machine) = with_huge_pages("32MiB");
    machine.run().passed(&["banner", "ready"]).expect(0, "guest-poweroff");
    drop(reserved);
    assert_eq!(huge_pages("nr_hugepages"), Some(before), "the pages are not given back");
}
