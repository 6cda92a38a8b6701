//! A client of the block process that is not ours: QEMU, with `vhost-user-blk-pci` and guest memory in a shared memfd,
//! boots a Debian kernel whose disk is served by `broker device virtio-blk`, jailed as always. Needs no KVM.
//!
//! `cargo xtask test` makes the guest's files and runs this.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::linux::{Ended, Guest, Running, assert_jailed, folder, sha256};
use tests::outside::jailed;

/// Serves `image` to a QEMU whose guest runs `test`, and gives what the guest and the broker said.
fn serve(image: &Path, mode: &str, test: &str) -> (Ended, Ended) {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("blk.sock");
    let mut command = Command::new(folder("BULKHEAD_BIN_DIR").join("broker"));
    command.args(["device", "virtio-blk", "--json", "-v", "--id", "from-qemu", "--mode", mode, "--socket"]);
    let mut broker = Running::start(command.arg(&socket).arg("--disk").arg(image), place);
    broker.await_listener(&socket);

    let mut qemu = start_qemu(&socket, test);
    qemu.blame(&broker);
    qemu.await_text("bulkhead-guest: initramfs");
    // The process that serves the disk is in its jail, also without a machine of ours.
    let processes = jailed(broker.pid());
    assert_eq!(processes.len(), 1, "{processes:?}");
    assert_jailed(&processes);
    let guest = qemu.end();
    (guest, broker.end())
}

fn start_qemu(socket: &Path, test: &str) -> Running {
    let files = folder("BULKHEAD_GUEST_DIR");
    let program = std::env::var_os("BULKHEAD_QEMU").map_or_else(|| PathBuf::from("qemu-system-x86_64"), PathBuf::from);
    let mut command = Command::new(program);
    command.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "256M", "-machine", "q35,memory-backend=memory"]);
    command.args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"]);
    command.args(["-display", "none", "-monitor", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    command.arg("-chardev").arg(format!("socket,id=disk,path={}", socket.display()));
    command.args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"]);
    command.arg("-kernel").arg(files.join("vmlinuz")).arg("-initrd").arg(files.join("initrd.cpio"));
    // The kernel looks whether the timer ticks while it counts loops, which goes wrong when the emulator gets no processor.
    command.arg("-append").arg(format!("console=ttyS0 panic=-1 no_timer_check quiet bulkhead.test={test}"));
    Running::start(&mut command, tempfile::tempdir().unwrap())
}

#[test]
#[ignore = "needs QEMU and a guest: run by `cargo xtask test`"]
fn guest_of_qemu_reads_a_read_only_disk() {
    let files = Guest::new();
    let image = files.pattern_image("disk", 4, 11);
    let sum = sha256(&image);
    let (guest, broker) = serve(&image, "read-only", "disks");
    assert_eq!(guest.code, Some(0), "{guest}\n{broker}");
    let vda = guest.line("bulkhead-guest: vda ");
    assert_eq!(vda, format!("sectors=8192 ro=1 serial=from-qemu sha256={sum}"), "{broker}");
    assert_eq!(broker.code, Some(0), "{broker}");
}

#[test]
#[ignore = "needs QEMU and a guest: run by `cargo xtask test`"]
fn guest_of_qemu_writes_and_reads_back() {
    let files = Guest::new();
    let image = files.pattern_image("disk", 8, 12);
    let before = fs::read(&image).unwrap();
    let (guest, broker) = serve(&image, "read-write", "write-vda");
    assert_eq!(guest.code, Some(0), "{guest}\n{broker}");
    assert_eq!(guest.line("bulkhead-guest: want "), guest.line("bulkhead-guest: read "), "{broker}");
    let after = fs::read(&image).unwrap();
    let pattern = b"bulkhead wrote this\n".iter().copied().cycle().take(4 << 20);
    assert!(after.iter().copied().take(4 << 20).eq(pattern), "what the guest wrote is not in the image; {broker}");
    assert!(after[4 << 20..] == before[4 << 20..], "what the guest did not write changed");
    assert_eq!(broker.code, Some(0), "{broker}");
}

#[test]
#[ignore = "needs QEMU and a guest: run by `cargo xtask test`"]
fn file_system_that_a_guest_of_qemu_wrote_is_complete_for_the_next() {
    let files = Guest::new();
    let image = files.root_image();
    let (first, broker) = serve(&image, "read-write", "files-vda");
    assert_eq!(first.line("bulkhead-guest: unm"), "ounted", "{first}\n{broker}");
    let (second, broker) = serve(&image, "read-only", "files-vda-read");
    for number in 1..=8 {
        let start = format!("bulkhead-guest: file {number} ");
        assert_eq!(first.line(&start), second.line(&start), "{broker}");
    }
}
