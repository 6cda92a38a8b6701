//! The command line, with the disks on it where there is no ACPI to find them by, by `linux-loader`.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::layout::{VIRTIO_WINDOW_BYTES, virtio_gsi, virtio_window};
use linux_loader::cmdline::{Cmdline, Error};
use vm_memory::GuestAddress;
use wire::{CommandLine, DiskCount};

/// Room for any command line with all its disks; what the kernel takes is checked afterwards.
const CAPACITY: usize = 16 << 10;
const _: () = assert!(CAPACITY > CommandLine::MAX_BYTES + 64 * DiskCount::MAX as usize);

/// The command line with a `virtio_mmio.device=` word for each of `disks` disks (Linux, admin-guide/kernel-parameters.txt).
///
/// They go before a `--`, after which all words are for init.
///
/// # Errors
/// When there is nothing before the `--`.
pub fn with_disks(cmdline: &str, disks: u8) -> Result<Cmdline, Error> {
    let mut line = Cmdline::try_from(cmdline, CAPACITY)?;
    for n in 0..disks {
        line.add_virtio_mmio_device(VIRTIO_WINDOW_BYTES, GuestAddress(virtio_window(n)), virtio_gsi(n), None)?;
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(cmdline: &str, disks: u8) -> String {
        let line = with_disks(cmdline, disks).unwrap();
        line.as_cstring().unwrap().into_string().unwrap()
    }

    #[test]
    fn each_disk_gets_a_word() {
        assert_eq!(with("quiet", 2), "quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6");
        assert_eq!(with("", 1), "virtio_mmio.device=4K@0xd0000000:5");
        assert_eq!(with("quiet", 0), "quiet");
    }

    #[test]
    fn words_for_init_stay_last() {
        assert_eq!(with("a -- b", 1), "a virtio_mmio.device=4K@0xd0000000:5 -- b");
        assert_eq!(with(" -- b", 1), "virtio_mmio.device=4K@0xd0000000:5 -- b");
        assert_eq!(with("a=\"x -- y\" b", 1), "a=\"x -- y\" b virtio_mmio.device=4K@0xd0000000:5");
        assert_eq!(with("a=-- --x", 1), "a=-- --x virtio_mmio.device=4K@0xd0000000:5");
    }
}
