//! Breaking a root file system that the kernel itself mounts.
//!
//! Debian's kernels have the drivers of disks and of ext4 as modules. Without an /init in the initramfs, the kernel mounts
//! the root itself; and as it asks for the type of `rootfstype=`, it runs /sbin/modprobe of the initramfs, which is a script
//! of ours that inserts the modules of the disk. `root=` is a number, which needs no driver to be resolved.

use super::bench::Bench;
use super::boot::{Boot, Disk, HEALTHY_INIT};
use super::breakages::{overwrite, shell};
use super::programs;
use crate::command::{capture, program};
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The number of the first virtio disk: block majors are given out from 254 downwards.
const DISK: &str = "254:0";
/// The size of the disk in MiB.
const DISK_MIB: u64 = 16;
/// Where the superblock is, and fields of it ("Linux ext4 disk layout: The Super Block").
const SUPERBLOCK: usize = 1024;
const INODE_COUNT: usize = SUPERBLOCK + 0x10;
const FEATURE_INCOMPAT: usize = SUPERBLOCK + 0x60;
const FEATURE_RO_COMPAT: usize = SUPERBLOCK + 0x64;

/// An initramfs that lets the kernel mount its root, with `arguments` for it.
fn kernel_mounts(bench: &Bench, boot: &mut Boot, skip: &[&str], arguments: &str) -> Result<()> {
    boot.tree = bench.base();
    bench.add_disk_modules(&mut boot.tree, skip)?;
    boot.tree.symlink("sbin/modprobe", "load-disk");
    boot.append(arguments);
    Ok(())
}

/// The root file system of a healthy machine.
fn content(bench: &Bench) -> Tree {
    let mut tree = bench.base();
    tree.script("sbin/init", HEALTHY_INIT);
    tree
}

/// An ext4 image with `features` switched as mke2fs names them, on the machine.
fn disk(boot: &mut Boot, tree: &Tree, features: &str) -> Result<PathBuf> {
    let (folder, image) = (boot.folder.join("root"), boot.folder.join("root.ext4"));
    tree.write_folder(&folder)?;
    let mut command = program("mke2fs")?;
    command.args(["-q", "-F", "-t", "ext4", "-O", features, "-E", "root_owner=0:0", "-d"]);
    capture(command.arg(&folder).arg(&image).arg(format!("{DISK_MIB}M")))?;
    for request in ["mknod dev/console c 5 1", "mknod dev/null c 1 3"] {
        // Made without root's rights, which a folder with devices would need.
        let (name, rest) = request.split_once("dev/").context("a request names no device")?;
        capture(program("debugfs")?.args(["-w", "-R", &format!("{name}{rest}")]).arg(&image))?;
        let device = rest.split(' ').next().unwrap_or_default();
        capture(program("debugfs")?.args(["-w", "-R", &format!("ln {device} dev/{device}")]).arg(&image))?;
    }
    boot.disk = Some(Disk { image: image.clone(), read_only: false });
    Ok(image)
}

/// The usual boot from a disk.
fn from_disk(bench: &Bench, boot: &mut Boot, tree: &Tree, features: &str, arguments: &str) -> Result<PathBuf> {
    kernel_mounts(bench, boot, &[], &format!("root={DISK} rootfstype=ext4 {arguments}"))?;
    disk(boot, tree, features)
}

/// Nothing is broken.
pub(crate) fn healthy(bench: &Bench, boot: &mut Boot) -> Result<()> {
    from_disk(bench, boot, &content(bench), "metadata_csum", "ro").map(drop)
}

/// `root=/dev/vda`, and no driver.
pub(crate) fn no_driver(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.tree = bench.base();
    boot.append("root=/dev/vda rw");
    disk(boot, &content(bench), "metadata_csum").map(drop)
}

/// `root=LABEL=`.
pub(crate) fn label(bench: &Bench, boot: &mut Boot) -> Result<()> {
    kernel_mounts(bench, boot, &[], "root=LABEL=root ro")?;
    disk(boot, &content(bench), "metadata_csum").map(drop)
}

/// `root=UUID=`.
pub(crate) fn uuid(bench: &Bench, boot: &mut Boot) -> Result<()> {
    kernel_mounts(bench, boot, &[], "root=UUID=3b1a4c1e-0b5e-4f5c-9d4f-2f4f5f6a7b8c ro")
}

/// `root=PARTUUID=` of nothing.
pub(crate) fn partuuid(bench: &Bench, boot: &mut Boot) -> Result<()> {
    kernel_mounts(bench, boot, &[], "root=PARTUUID=3b1a4c1e-0b5e-4f5c-9d4f-2f4f5f6a7b8c ro")
}

/// `rootwait`.
pub(crate) fn wait(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.tree = bench.base();
    boot.append("root=/dev/vda1 rootwait");
    boot.silence = Some(Duration::from_secs(12));
    Ok(())
}

/// The number of no disk.
pub(crate) fn wrong_number(bench: &Bench, boot: &mut Boot) -> Result<()> {
    kernel_mounts(bench, boot, &[], "root=8:1 rootfstype=ext4 ro")?;
    disk(boot, &content(bench), "metadata_csum").map(drop)
}

/// A disk full of zeros.
pub(crate) fn no_filesystem(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let image = from_disk(bench, boot, &Tree::default(), "metadata_csum", "ro")?;
    fs::write(&image, vec![0; 4 << 20]).with_context(|| format!("cannot write {}", image.display()))
}

/// A type of file systems that does not exist.
pub(crate) fn unknown_type(bench: &Bench, boot: &mut Boot) -> Result<()> {
    kernel_mounts(bench, boot, &["ext4"], &format!("root={DISK} rootfstype=xfs ro"))?;
    disk(boot, &content(bench), "metadata_csum").map(drop)
}

/// An incompatible feature.
pub(crate) fn ext4_feature(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let image = from_disk(bench, boot, &content(bench), "^metadata_csum", "ro")?;
    set_bits(&image, FEATURE_INCOMPAT, 0x8000_0000)
}

/// A feature with which a file system can only be read.
pub(crate) fn ext4_ro_feature(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let image = from_disk(bench, boot, &content(bench), "^metadata_csum", "rw")?;
    set_bits(&image, FEATURE_RO_COMPAT, 0x4000_0000)
}

/// A journal to be replayed, on a disk that cannot be written to.
pub(crate) fn dirty_journal(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let image = from_disk(bench, boot, &content(bench), "^metadata_csum", "ro")?;
    boot.disk = Some(Disk { image: image.clone(), read_only: true });
    set_bits(&image, FEATURE_INCOMPAT, 4)
}

/// A superblock whose checksum is wrong.
pub(crate) fn bad_checksum(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let image = from_disk(bench, boot, &content(bench), "metadata_csum", "ro")?;
    overwrite(&image, INODE_COUNT, &[0x55])
}

/// No init at any of the usual places.
pub(crate) fn without_init(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let mut tree = Tree::default();
    tree.file("etc/hostname", "nothing\n").directory("dev");
    from_disk(bench, boot, &tree, "metadata_csum", "ro").map(drop)
}

/// `init=` of nothing.
pub(crate) fn init_argument(bench: &Bench, boot: &mut Boot) -> Result<()> {
    from_disk(bench, boot, &content(bench), "metadata_csum", "ro init=/usr/lib/systemd/systemd").map(drop)
}

/// An init for the other architecture.
pub(crate) fn wrong_machine(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let mut tree = Tree::default();
    tree.script("sbin/init", programs::elf(bench.other(), programs::EXIT_0)).directory("dev");
    from_disk(bench, boot, &tree, "metadata_csum", "ro").map(drop)
}

/// init waits for a file system that is frozen.
pub(crate) fn hung_task(bench: &Bench, boot: &mut Boot) -> Result<()> {
    bench.add_disk_modules(&mut boot.tree, &[])?;
    boot.append("sysctl.kernel.hung_task_timeout_secs=4 sysctl.kernel.hung_task_panic=1");
    shell(
        boot,
        "mknod /dev/vda b 254 0\n/sbin/load-disk\nmount -t ext4 /dev/vda /mnt\nfsfreeze --freeze /mnt\necho x >/mnt/x",
    );
    disk(boot, &content(bench), "metadata_csum").map(drop)
}

/// Sets bits of a little-endian word in an image.
fn set_bits(image: &std::path::Path, at: usize, bits: u32) -> Result<()> {
    let content = super::bench::read(image)?;
    let word: [u8; 4] =
        content.get(at..).and_then(|rest| rest.first_chunk()).copied().context("the image is too short")?;
    overwrite(image, at, &(u32::from_le_bytes(word) | bits).to_le_bytes())
}
