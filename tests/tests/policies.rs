//! What the seccomp policies allow, against what traced processes of a real machine do under their filters; and what
//! `broker policy` says of both.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use policies::Process;
use policies::rules::{Arch, Mark, Rule, ThreadPolicy, policies};
use policies::usage::{Call, Scope, Usage, parse};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use tests::binaries::binary;
use tests::guest::Guest;
use tests::machine::Machine;
use tests::tracer::collect;
use tests::{disk, probe};

/// Runs a machine that is traced; gives the calls that its jailed processes made under their filters.
fn traced(machine: Machine, code: i32, reason: &str) -> Vec<Call> {
    let traces = tempfile::tempdir().unwrap();
    fs::write(traces.path().join("lock"), "").unwrap();
    machine.by(&binary("trace"), &[traces.path().to_str().unwrap()]).run().expect(code, reason);
    parse(&collect(traces.path()).unwrap()).unwrap()
}

fn with_disk() -> Vec<Call> {
    with_disk_of("ro")
}

fn with_disk_of(mode: &str) -> Vec<Call> {
    let machine = Machine::new("test=banner,blk-read");
    let image = disk::image(machine.folder(), "disk.img", 64);
    traced(machine.disk(&image, mode), 0, "guest-poweroff")
}

/// The policies of this architecture, those of one thread changed.
fn changed(thread: &str, change: impl Fn(&mut Vec<Rule>)) -> Vec<ThreadPolicy> {
    let mut all = policies(Arch::native()).to_vec();
    let policy = all.iter_mut().find(|policy| policy.thread == thread).unwrap();
    let mut rules = policy.rules.to_vec();
    change(&mut rules);
    policy.rules = rules.leak();
    all
}

#[test]
fn traced_machine_does_nothing_that_its_policies_lack() {
    let calls = [with_disk(), with_disk_of("ro:io-uring")].concat();
    let usage = Usage::new(policies(Arch::native()), &calls, Scope::Small);
    assert_eq!(usage.missing, []);
    // How far inspectors come that nobody waits for is a matter of time.
    let of_machine = usage.threads.iter().filter(|thread| thread.policy.process != policies::Process::Inspector);
    for thread in of_machine {
        let used = thread.rules.iter().filter(|rule| rule.count > 0).count();
        assert!(used >= 5, "{} {} used {used} rules", thread.policy.process.name(), thread.policy.thread);
    }
}

#[test]
fn rule_that_is_removed_is_found_missing() {
    let is_run = |rule: &Rule| rule.allows("ioctl", &[0, 0xae80, 0, 0, 0, 0]);
    let less = changed("vcpu", |rules| rules.retain(|rule| !is_run(rule)));
    let problems = Usage::new(&less, &with_disk(), Scope::Small).problems();
    let found: Vec<_> = problems.iter().filter(|problem| problem.starts_with("missing")).collect();
    assert!(matches!(found.as_slice(), [one] if one.contains("vmm vcpu called ioctl(0x0, 0xae80,")), "{problems:?}");
}

#[test]
fn rule_that_is_added_is_found_surplus() {
    let extra = Rule { syscall: "openat", why: "a test", mark: Mark::None, when: &[] };
    let calls = with_disk();
    let problems = |all: &[ThreadPolicy]| Usage::new(all, &calls, Scope::Small).problems();
    let before = problems(policies(Arch::native()));
    let after = problems(&changed("vcpu", |rules| rules.push(extra)));
    let new: Vec<_> = after.iter().filter(|problem| !before.contains(problem)).collect();
    assert!(matches!(new.as_slice(), [one] if one.starts_with("surplus: vmm vcpu may call openat")), "{new:?}");
}

#[test]
fn call_for_which_a_process_was_killed_is_found_missing() {
    let folder = tempfile::tempdir().unwrap();
    let bin = probe::binaries_with(folder.path(), Process::Serial, "violate");
    // The tracer knows the processes by the binaries beside the broker.
    fs::copy(binary("broker"), bin.join("broker")).unwrap();
    let kernel = Guest::Long.write(folder.path());
    let machine = Machine::bare_at(&bin.join("broker")).args(["run", "--json", "-m", "64", "-p", "test=banner", "-k"]);
    let calls = traced(machine.args([kernel]), 21, "seccomp-violation");
    let missing = Usage::new(policies(Arch::native()), &calls, Scope::Small).missing;
    let [missing] = missing.as_slice() else { panic!("{missing:?}") };
    assert_eq!(
        (missing.process.as_str(), missing.thread.as_str(), missing.syscall.as_str()),
        ("serial", "main", "getppid")
    );
}

fn policy(arguments: &[&str]) -> Output {
    Command::new(binary("broker")).arg("policy").args(arguments).output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn shown_policy_has_every_filter_of_either_architecture() {
    for arch in Arch::ALL {
        let shown = policy(&["show", "--json", "--arch", arch.name()]);
        assert!(shown.status.success());
        let shown = json(&shown);
        let counts: Vec<_> = shown["filters"].as_array().unwrap().iter().map(|f| f["system_calls"].as_u64()).collect();
        let wanted = policies(arch).iter().map(|policy| u64::try_from(policy.syscalls().len()).ok());
        assert_eq!(counts, wanted.collect::<Vec<_>>());
    }
    let text = String::from_utf8(policy(&["show", "virtio-blk"]).stdout).unwrap();
    assert!(text.starts_with("virtio-blk, thread main: "), "{text}");
    assert!(
        text.contains("mmap when argument 3 is PROT_READ | PROT_WRITE (0x3) and argument 4 is MAP_SHARED"),
        "{text}"
    );
    assert!(!text.contains("KVM_RUN"), "{text}");
}

#[test]
fn unknown_process_is_refused_with_the_names_of_those_that_are() {
    let refused = policy(&["show", "gpu"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("loader, vmm, serial, virtio-blk"), "{said}");
}

#[test]
fn check_of_a_host_on_which_machines_run_finds_nothing_that_is_needed_missing() {
    let checked = policy(&["check", "--json"]);
    let said = json(&checked);
    assert!(checked.status.success(), "{said}");
    assert_eq!(said["usable"], true);
    let findings = said["findings"].as_array().unwrap();
    for name in ["kernel", "seccomp", "landlock", "user namespace", "user namespaces", "cgroup v2", "core scheduling"] {
        assert!(findings.iter().any(|finding| finding["name"] == name), "no {name}: {said}");
    }
    let has_landlock = fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|lsm| lsm.contains("landlock"));
    let landlock = findings.iter().find(|finding| finding["name"] == "landlock").unwrap();
    let offered = landlock["text"].as_str().unwrap().contains("offers Landlock ABI");
    assert!(offered || !has_landlock, "{landlock}");
    assert!(Path::new("/proc/self/ns/user").exists());
}
