//! One function for each boundary that untrusted bytes cross: it feeds them to the code of that boundary as it is, and
//! panics when something does not hold that must hold for any bytes.
//!
//! Three drive them: the fuzzers in `fuzz/`, which look for bytes; `tests/replay.rs`, which runs every seed and every input
//! that a fuzzer once failed on; and `tests/properties.rs`, which runs random bytes of fixed seeds. So what a fuzzer finds
//! stays found without one.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic is how a harness says that something does not hold, and it is in no program of ours"
)]

pub mod acpi;
pub mod block_chains;
pub mod block_front_end;
pub mod block_model;
pub mod broker_events;
pub mod config;
pub mod device_tree;
pub mod disk;
pub mod entry;
pub mod explain;
pub mod inspect;
pub mod ioapic;
pub mod loader;
pub mod mmio;
pub mod packets;
pub mod ring;
pub mod seeds;
pub mod serial_server;
pub mod uart;
pub mod vmm_back_end;
pub mod vmm_serial;
pub mod wire_message;

/// A boundary.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of the fuzzer, of the folders of its inputs, and of the module here.
    pub name: &'static str,
    /// What is fed to what.
    pub about: &'static str,
    /// Feeds it.
    ///
    /// # Panics
    /// When something does not hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with, by name.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

/// All boundaries.
pub const TARGETS: &[Target] = &[
    Target {
        name: "acpi",
        about: "any machine to the ACPI tables, read back by a reader of our own",
        run: acpi::run,
        seeds: acpi::seeds,
    },
    Target {
        name: "block_chains",
        about: "descriptor chains to the block device: nothing but its buffers and its disk changes",
        run: block_chains::run,
        seeds: block_chains::seeds,
    },
    Target {
        name: "block_front_end",
        about: "vhost-user messages to the block device",
        run: block_front_end::run,
        seeds: block_front_end::seeds,
    },
    Target {
        name: "block_model",
        about: "requests and crashes to the block device, against a model in memory",
        run: block_model::run,
        seeds: block_model::seeds,
    },
    Target {
        name: "broker_events",
        about: "packets of captured processes to the supervision of the broker",
        run: broker_events::run,
        seeds: broker_events::seeds,
    },
    Target {
        name: "config",
        about: "TOML and flags to the config of the broker",
        run: config::run,
        seeds: config::seeds,
    },
    Target {
        name: "device_tree",
        about: "any machine to the device tree, read back by a reader of our own",
        run: device_tree::run,
        seeds: device_tree::seeds,
    },
    Target {
        name: "entry",
        about: "entry states of a captured loader to the check of the vmm",
        run: entry::run,
        seeds: entry::seeds,
    },
    Target {
        name: "explain",
        about: "console logs to the explanation of the inspector",
        run: explain::run,
        seeds: explain::seeds,
    },
    Target {
        name: "inspect_cpio",
        about: "any archive that is made well, and cut anywhere, to the inspector",
        run: inspect::cpio,
        seeds: inspect::cpio_seeds,
    },
    Target {
        name: "inspect_elf",
        about: "any bytes as the init of an initramfs to the inspector",
        run: inspect::elf,
        seeds: inspect::elf_seeds,
    },
    Target {
        name: "inspect_filesystem",
        about: "ext, squashfs and erofs images to the inspector",
        run: inspect::filesystem,
        seeds: inspect::filesystem_seeds,
    },
    Target {
        name: "inspect_image",
        about: "any bytes as an image to the inspector",
        run: inspect::image,
        seeds: inspect::image_seeds,
    },
    Target {
        name: "inspect_kernel",
        about: "any bytes as a kernel to the inspector",
        run: inspect::kernel,
        seeds: inspect::kernel_seeds,
    },
    Target { name: "ioapic", about: "register accesses to the IOAPIC", run: ioapic::run, seeds: ioapic::seeds },
    Target {
        name: "loader",
        about: "kernels and initrds to the loader of this host",
        run: loader::native,
        seeds: loader::native_seeds,
    },
    Target {
        name: "loader_arm64",
        about: "kernels and initrds to the loader of arm64",
        run: loader::arm64,
        seeds: loader::arm64_seeds,
    },
    Target {
        name: "mmio",
        about: "register accesses to the virtio-mmio transport",
        run: mmio::run,
        seeds: mmio::seeds,
    },
    Target {
        name: "ring",
        about: "both sides of the posted-write ring to each other",
        run: ring::run,
        seeds: ring::seeds,
    },
    Target {
        name: "serial_server",
        about: "packets of a captured vmm and typed bytes to the serial process",
        run: serial_server::run,
        seeds: serial_server::seeds,
    },
    Target {
        name: "uart",
        about: "register accesses to the 16550A, against a model",
        run: uart::run,
        seeds: uart::seeds,
    },
    Target {
        name: "vmm_back_end",
        about: "answers of a captured disk process to the vmm",
        run: vmm_back_end::run,
        seeds: vmm_back_end::seeds,
    },
    Target {
        name: "vmm_serial",
        about: "answers of a captured serial process to the vmm",
        run: vmm_serial::run,
        seeds: vmm_serial::seeds,
    },
    Target {
        name: "wire_message",
        about: "packets to the decoder of every message type",
        run: wire_message::run,
        seeds: wire_message::seeds,
    },
];

/// Feeds `bytes` to the boundary of this name.
///
/// # Panics
/// When something does not hold, or there is no such boundary.
pub fn run(name: &str, bytes: &[u8]) {
    // A write to a peer that is gone is an error, as in every Rust program; only that libFuzzer's main is none.
    nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGPIPE).thread_block().expect("a mask of signals");
    let target = TARGETS.iter().find(|target| target.name == name).expect("a boundary of this name");
    (target.run)(bytes);
}
