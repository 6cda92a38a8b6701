//! A stock Debian kernel, booted by the real `broker`: on this machine where its /dev/kvm can run Linux, else in the lab.
//!
//! `cargo xtask test` makes the guest's files and runs this, there where it can run. What the guest does in each test is
//! in `tests/lab/guest-tests`, under the name that the test gives.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::Command;
use tests::linux::{Guest, assert_jailed, folder, sha256, typed};
use tests::outside::{await_gone, jailed};

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn initramfs_reaches_user_space_and_powers_off() {
    let ended = Guest::new().test("hello").boot().end();
    ended.expect(0, "guest-poweroff");
    assert!(ended.line("bulkhead-guest: hello from ").ends_with(", 1 processors"), "{ended}");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn two_vcpus_are_seen_by_the_guest_and_work() {
    let ended = Guest::new().test("processors").vcpus(2).boot().end();
    ended.expect(0, "guest-poweroff");
    assert_eq!(ended.line("bulkhead-guest: processors online "), "0-1, nproc 2", "{ended}");
    assert_eq!(ended.line("bulkhead-guest: processor 1 "), "works");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn kernel_and_initramfs_alone_give_a_shell() {
    let mut running = typed(&["-k", "Image", "-i", "rootfs.cpio"]);
    running.await_text("guest# ");
    running.type_line("poweroff -f");
    running.end().expect(0, "guest-poweroff");
}

tests::on_aarch64! {
    #[test]
    #[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
    fn six_vcpus_are_seen_by_the_guest_and_work() {
        let ended = Guest::new().test("processors").vcpus(6).boot().end();
        ended.expect(0, "guest-poweroff");
        assert_eq!(ended.line("bulkhead-guest: processors online "), "0-5, nproc 6", "{ended}");
        assert_eq!(ended.line("bulkhead-guest: processor 5 "), "works");
    }

    /// As many as there may be, and more than the 16 that one affinity level numbers for interrupts between processors
    /// (GICv3, ICC_SGI1R_EL1).
    #[test]
    #[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test --all`, since it takes nearly two minutes"]
    fn many_vcpus_are_seen_by_the_guest_and_work() {
        let ended = Guest::new().test("processors").vcpus(32).boot().end();
        ended.expect(0, "guest-poweroff");
        assert_eq!(ended.line("bulkhead-guest: processors online "), "0-31, nproc 32", "{ended}");
        assert_eq!(ended.line("bulkhead-guest: processor 31 "), "works");
    }

    #[test]
    #[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
    fn compressed_image_reaches_user_space() {
        let ended = Guest::new().test("hello").compressed().boot().end();
        ended.expect(0, "guest-poweroff");
        assert!(ended.line("bulkhead-guest: hello from ").ends_with(", 1 processors"), "{ended}");
    }

    /// Debian's kernels have their drivers of disks in an initramfs. Without one they show that the broker told them of
    /// the disk, and panic.
    #[test]
    #[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
    fn kernel_and_disk_alone_are_told_of_the_root_file_system() {
        let words = "run -k Image -d rootfs.ext4 -c 6 -m 512 --debug --console serial";
        let ended = typed(&words.split(' ').skip(1).collect::<Vec<_>>()).end();
        ended.expect(12, "guest-panic");
        let cmdline = ended.console.lines().find(|line| line.contains("Kernel command line: ")).unwrap_or_default();
        for word in ["root=/dev/vda", "console=ttyS0", "earlycon", "panic=-1"] {
            assert!(cmdline.contains(word), "{word} is not in {cmdline}; {ended}");
        }
        assert!(ended.console.contains("Booting Linux on physical CPU"), "the first line is missing; {ended}");
        assert!(ended.console.contains("VFS: Unable to mount root fs"), "{ended}");
        let registers = ended.report.get("registers").and_then(serde_json::Value::as_array);
        assert_eq!(registers.map(Vec::len), Some(6), "{ended}");
    }

    #[test]
    #[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
    fn kernel_disk_and_six_vcpus_give_a_shell_on_the_disk() {
        let words = "-k Image -i rootfs.cpio -d rootfs.ext4 -c 6 -m 512 --debug --console serial -p root=/dev/vda";
        let mut running = typed(&words.split(' ').collect::<Vec<_>>());
        running.await_text("bulkhead-guest: login shell");
        running.await_text("guest# ");
        running.type_line("echo answer-$((6 * 7)) on $(nproc) from $(grep -c '^/dev/vda / ext4 ro' /proc/mounts)");
        running.await_text("answer-42 on 6 from 1");
        running.type_line("poweroff");
        running.end().expect(0, "guest-poweroff");
    }
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn root_file_system_gives_a_login_shell_that_answers() {
    let guest = Guest::new().word("root=/dev/vda ro").vcpus(2);
    let root = guest.root_image();
    let sum = sha256(&root);
    let mut running = guest.disk(&root, "ro").boot();
    running.await_text("bulkhead-guest: root file system");
    running.await_text("bulkhead-guest: login shell");
    running.await_text("guest# ");
    running.type_line("echo answer-$((6 * 7)) on $(nproc) from $(grep -c '^/dev/vda / ext4 ro' /proc/mounts)");
    running.await_text("answer-42 on 2 from 1");
    // What is typed while the shell prints must not get lost.
    running.type_line("seq 1 300");
    running.type_line("echo typed-$((1 + 1))-ahead");
    running.await_text("typed-2-ahead");
    running.type_line("poweroff");
    let ended = running.end();
    ended.expect(0, "guest-poweroff");
    assert_eq!(sha256(&root), sum, "a read-only image changed");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn two_disks_show_their_own_content() {
    let guest = Guest::new().test("disks").vcpus(2);
    let (a, b) = (guest.pattern_image("a", 4, 1), guest.pattern_image("b", 6, 2));
    let (sum_a, sum_b) = (sha256(&a), sha256(&b));
    let ended = guest.disk(&a, "ro").disk(&b, "ephemeral").boot().end();
    ended.expect(0, "guest-poweroff");
    let (vda, vdb) = (ended.line("bulkhead-guest: vda "), ended.line("bulkhead-guest: vdb "));
    assert!(vda.starts_with("sectors=8192 ro=1 serial="), "{vda}");
    assert!(vdb.starts_with("sectors=12288 ro=0 serial="), "{vdb}");
    assert!(vda.ends_with(&format!("sha256={sum_a}")), "{vda}");
    assert!(vdb.ends_with(&format!("sha256={sum_b}")), "{vdb}");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn ephemeral_disk_gives_back_what_was_written_and_keeps_its_image() {
    let guest = Guest::new().test("write-vda");
    let image = guest.pattern_image("disk", 8, 3);
    let before = sha256(&image);
    let ended = guest.disk(&image, "ephemeral").boot().end();
    ended.expect(0, "guest-poweroff");
    assert_eq!(ended.line("bulkhead-guest: writ"), "ten", "{ended}");
    assert_eq!(ended.line("bulkhead-guest: want "), ended.line("bulkhead-guest: read "));
    assert_eq!(sha256(&image), before, "an ephemeral image changed");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn read_write_disk_holds_what_the_guest_wrote_and_nothing_else_changed() {
    let guest = Guest::new().test("write-vda");
    let image = guest.pattern_image("disk", 8, 4);
    let before = fs::read(&image).unwrap();
    let ended = guest.disk(&image, "rw").boot().end();
    ended.expect(0, "guest-poweroff");
    let after = fs::read(&image).unwrap();
    let pattern = b"bulkhead wrote this\n".iter().copied().cycle().take(4 << 20);
    assert!(after.iter().copied().take(4 << 20).eq(pattern), "what the guest wrote is not in the image; {ended}");
    assert!(after[4 << 20..] == before[4 << 20..], "what the guest did not write changed");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn file_system_on_a_read_write_disk_is_clean_and_complete_after_poweroff() {
    files_are_there_after_poweroff("rw");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn file_system_on_a_disk_with_io_uring_is_clean_and_complete_after_poweroff() {
    files_are_there_after_poweroff("rw:io-uring");
}

fn files_are_there_after_poweroff(mode: &str) {
    let guest = Guest::new().test("files-vda");
    let image = guest.root_image();
    let ended = guest.disk(&image, mode).boot().end();
    ended.expect(0, "guest-poweroff");
    assert_eq!(ended.line("bulkhead-guest: tri"), "mmed", "{ended}");
    assert_eq!(ended.line("bulkhead-guest: unm"), "ounted", "{ended}");
    assert_clean(&image);
    let written: Vec<_> = (1..=8).map(|n| ended.line(&format!("bulkhead-guest: file {n} ")).to_owned()).collect();

    // A second machine finds the same files, on the image that the first one left.
    let guest = Guest::new().test("files-vda-read");
    let again = guest.disk(&image, "ro").boot().end();
    again.expect(0, "guest-poweroff");
    let read: Vec<_> = (1..=8).map(|n| again.line(&format!("bulkhead-guest: file {n} ")).to_owned()).collect();
    assert_eq!(read, written);
}

/// Has the file system on an image checked without changing it.
fn assert_clean(image: &Path) {
    let output = Command::new("e2fsck")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-f", "-n"])
        .arg(image)
        .output()
        .expect("e2fsck runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "e2fsck: {}\n{said}", output.status);
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn kernel_panic_ends_the_run_as_guest_panic() {
    let ended = Guest::new().test("panic").boot().end();
    ended.expect(12, "guest-panic");
    assert!(ended.console.contains("Attempted to kill init! exitcode=0x00000300"), "{ended}");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn undefined_instruction_in_init_ends_the_run_as_guest_panic_with_the_whole_console() {
    let guest = Guest::new().word("root=/dev/vda init=/sbin/undefined").flag("--debug");
    let root = guest.root_image();
    let ended = guest.disk(&root, "ro").boot().end();
    ended.expect(12, "guest-panic");
    let panic = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000004";
    let (_, after) = ended.printed().split_once(panic).unwrap_or_else(|| panic!("no {panic}; {ended}"));
    let fault = ["undefined instruction", "invalid opcode"].iter().any(|fault| ended.printed().contains(fault));
    assert!(fault, "no line tells of the fault; {ended}");
    assert!(after.contains("Kernel Offset: 0x") && after.ends_with('\n'), "the end of the console is missing; {ended}");
    let received = ended.report.pointer("/console/received_bytes").and_then(serde_json::Value::as_u64);
    assert_eq!(received, Some(ended.printed().len() as u64), "{ended}");
    let message = ended.report.get("message").and_then(serde_json::Value::as_str).unwrap_or_default();
    assert!(message.contains("exitcode=0x00000004"), "{message}");
    let explained = ended.report.pointer("/explanation/0/id").and_then(serde_json::Value::as_str);
    assert_eq!(explained, Some(UNDEFINED), "{ended}");
}

tests::on_aarch64! {
    /// The wait status of an init that ran into zeros, which are `udf #0`, and what is said of it.
    const ZEROS: (&str, &str) = ("0x00000004", "init-illegal-instruction");
    /// What is said of an undefined instruction, whose bytes an arm64 kernel does not print.
    const UNDEFINED: &str = "init-illegal-instruction";
}
tests::on_x86_64! {
    /// The wait status of an init that ran into zeros, which write to where rax points, and what is said of it.
    const ZEROS: (&str, &str) = ("0x0000000b", "init-segfault");
    /// What is said of an undefined instruction, whose bytes the kernel prints.
    const UNDEFINED: &str = "init-undefined-instruction";
}

/// The case from which this project comes: a busybox that was overwritten, and a kernel that says a number.
#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn initramfs_with_a_damaged_busybox_is_predicted_and_its_end_explained() {
    let guest = Guest::new().flag("--debug");
    let image = guest.damaged_initrd("bin/busybox");
    let predicted = Command::new(folder("BULKHEAD_BIN_DIR").join("broker"))
        .args(["inspect", "--json"])
        .arg(&image)
        .output()
        .expect("broker inspect");
    let said = String::from_utf8_lossy(&predicted.stdout);
    assert_eq!(predicted.status.code(), Some(2), "{said}");
    assert!(said.contains(r#""id":"code-destroyed-at-entry""#), "{said}");
    let ended = guest.initrd(image).boot().end();
    ended.expect(12, "guest-panic");
    let (status, finding) = ZEROS;
    let panic = format!("Kernel panic - not syncing: Attempted to kill init! exitcode={status}");
    assert!(ended.printed().contains(&panic), "{ended}");
    let first = ended.report.pointer("/explanation/0").unwrap_or_else(|| panic!("no explanation; {ended}"));
    assert_eq!(first.get("id").and_then(serde_json::Value::as_str), Some(finding), "{ended}");
    let remedy = first.get("remedy").and_then(serde_json::Value::as_str).unwrap_or_default();
    assert!(remedy.contains("broker inspect"), "{remedy}");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn reboot_ends_the_run_as_guest_reboot() {
    Guest::new().test("reboot").vcpus(2).boot().end().expect(10, "guest-reboot");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn halt_ends_the_run_as_guest_halted() {
    Guest::new().test("halt").vcpus(2).boot().end().expect(11, "guest-halted");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn ordinary_user_in_the_group_of_kvm_boots_with_a_disk() {
    let guest = Guest::new().test("disks").vcpus(2).as_ordinary_user();
    let image = guest.pattern_image("disk", 2, 5);
    let sum = sha256(&image);
    let ended = guest.disk(&image, "ephemeral").boot().end();
    ended.expect(0, "guest-poweroff");
    assert!(ended.line("bulkhead-guest: vda ").ends_with(&sum), "{ended}");
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn memory_above_4_gib_is_used() {
    let ended = Guest::new().test("memory").memory_mib(4096).boot().end();
    ended.expect(0, "guest-poweroff");
    let total: u64 = ended.line("bulkhead-guest: MemTotal:").split_whitespace().next().unwrap().parse().unwrap();
    assert!(total > 3_700_000, "{total} KiB; {ended}");
    assert!(ended.console.contains("-13fffffff : System RAM"), "{ended}");
}

tests::on_x86_64! {
    /// Debian's cloud kernels are built without `CONFIG_X86_MPPARSE` and `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`: without ACPI
    /// they know no I/O APIC, use no local APIC timer (they hope for a PIT, which this machine does not have) and find no
    /// disk. What can be tested with them is the way to user space, the words on the command line, and the reset. The guest
    /// speaks through the kernel's log, since the serial port has no interrupt for it.
    #[test]
    #[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
    fn guest_without_acpi_boots_and_is_told_of_its_disks() {
        let guest = Guest::new().test("no-acpi").flag("--no-acpi");
        let image = guest.pattern_image("disk", 2, 6);
        let ended = guest.disk(&image, "ro").boot().end();
        ended.expect(10, "guest-reboot");
        assert!(ended.console.contains("bulkhead-guest: there are no ACPI tables"), "{ended}");
        assert!(ended.console.contains("virtio_mmio.device=4K@0xd0000000:5"), "{ended}");
    }
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn processes_of_a_running_guest_are_jailed_and_end_with_the_broker() {
    let guest = Guest::new().test("sleep").vcpus(2);
    let image = guest.pattern_image("disk", 2, 7);
    let mut running = guest.disk(&image, "ephemeral").boot();
    running.await_text("bulkhead-guest: waiting");
    let processes = jailed(running.pid());
    let names: Vec<_> = processes.iter().map(|process| process.program.as_str()).collect();
    assert_eq!(names, ["bulkhead-serial", "bulkhead-virtio-blk", "bulkhead-vmm"]);
    assert_jailed(&processes);
    let cgroup = processes[0].cgroup().expect("a cgroup of version 2");
    assert!(processes.iter().all(|process| process.cgroup().as_ref() == Some(&cgroup)), "{processes:?}");

    running.signal(Signal::SIGTERM);
    let ended = running.end();
    ended.expect(143, "sigterm");
    await_gone(&processes);
    let confinement = &ended.report["confinement"];
    if confinement["by"] == "cgroup" {
        assert_eq!(confinement["cgroup"].as_str().map(Path::new), Some(cgroup.as_path()), "{confinement}");
        assert!(!cgroup.exists(), "{} is left", cgroup.display());
    } else {
        assert!(confinement["why_not_more"].is_string(), "{confinement}");
    }
}

#[test]
#[ignore = "needs a /dev/kvm that runs Linux: run by `cargo xtask test`"]
fn killed_broker_takes_its_processes_with_it() {
    let mut running = Guest::new().test("sleep").boot();
    running.await_text("bulkhead-guest: waiting");
    let processes = jailed(running.pid());
    assert_eq!(processes.len(), 2, "{processes:?}");
    running.signal(Signal::SIGKILL);
    await_gone(&processes);
}
