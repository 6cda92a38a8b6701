//! What the lab boots: the host (L1) in an initramfs and on a disk, the guest (L2) in an initramfs and on a disk.
//!
//! All images are made anew for each run, from packages in the cache and the scripts in `tests/lab`.

use crate::kernel::{self, Kernel};
use crate::packages::Suite;
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The modules of the guest: its disks, and what they stand on; virtio_pci is for QEMU as the VMM, and older kernels have
/// the checksum of ext4 in a module that ext4 does not name.
const GUEST_MODULES: &[&str] =
    &["virtio", "virtio_ring", "virtio_mmio", "virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];
/// The modules with which the host finds the lab's disk.
const HOST_DISK_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];
/// The modules that give the host a /dev/kvm; on aarch64, it is built in.
const HOST_KVM_MODULES: &[&str] = &["irqbypass", "kvm", "kvm-amd"];

const GUEST_TESTS: &[(&str, &str)] = &[
    ("hello", include_str!("../../tests/lab/guest-tests/hello")),
    ("reboot", include_str!("../../tests/lab/guest-tests/reboot")),
    ("halt", include_str!("../../tests/lab/guest-tests/halt")),
    ("panic", include_str!("../../tests/lab/guest-tests/panic")),
    ("sleep", include_str!("../../tests/lab/guest-tests/sleep")),
    ("processors", include_str!("../../tests/lab/guest-tests/processors")),
    ("disks", include_str!("../../tests/lab/guest-tests/disks")),
    ("write-vda", include_str!("../../tests/lab/guest-tests/write-vda")),
    ("files-vda", include_str!("../../tests/lab/guest-tests/files-vda")),
    ("files-vda-read", include_str!("../../tests/lab/guest-tests/files-vda-read")),
    ("no-acpi", include_str!("../../tests/lab/guest-tests/no-acpi")),
    ("memory", include_str!("../../tests/lab/guest-tests/memory")),
];

/// The static programs that images are made of.
#[derive(Debug)]
pub(crate) struct Programs {
    busybox: PathBuf,
    applets: Vec<String>,
    e2fsck: PathBuf,
    undefined: Vec<u8>,
}

impl Programs {
    /// Takes them from a suite.
    ///
    /// # Errors
    /// When their packages cannot be had.
    pub(crate) fn of(suite: &Suite) -> Result<Self> {
        let busybox = kernel::busybox(suite)?;
        // A busybox is asked for its names, which that of a foreign architecture cannot tell.
        let applets = match suite.native()? {
            Some(native) => kernel::applets(&kernel::busybox(&native)?)?,
            None => kernel::applets(&busybox)?,
        };
        let undefined = suite.architecture().undefined_instruction();
        Ok(Self { busybox, applets, e2fsck: kernel::e2fsck(suite)?, undefined })
    }

    /// A tree with busybox under all its names, and the folders that a Linux system has.
    pub(crate) fn base(&self) -> Tree {
        let mut tree = Tree::default();
        tree.program("bin/busybox", &self.busybox);
        for applet in &self.applets {
            tree.symlink(&format!("bin/{applet}"), "busybox");
        }
        for folder in ["dev", "proc", "sys", "tmp", "run", "root", "mnt", "etc", "sbin"] {
            tree.directory(folder);
        }
        tree
    }
}

/// Adds modules and what they need, and `modules/order`, in which order they are inserted.
///
/// # Errors
/// When a module cannot be read.
pub(crate) fn add_modules(tree: &mut Tree, kernel: &Kernel, names: &[&str]) -> Result<()> {
    let mut order = String::new();
    for module in kernel.modules(names)? {
        order.push_str(&module.name);
        order.push('\n');
        tree.file(&format!("modules/{}", module.name), module.content);
    }
    tree.file("modules/order", order);
    Ok(())
}

fn add_guest_tests(tree: &mut Tree) {
    for (name, script) in GUEST_TESTS {
        tree.script(&format!("tests/{name}"), *script);
    }
}

/// The initramfs of the guest.
///
/// # Errors
/// When a module cannot be read.
pub(crate) fn guest_initramfs(programs: &Programs, kernel: &Kernel) -> Result<Tree> {
    let mut tree = programs.base();
    add_modules(&mut tree, kernel, GUEST_MODULES)?;
    add_guest_tests(&mut tree);
    tree.console().script("init", include_str!("../../tests/lab/guest-initramfs.sh"));
    tree.file("etc/profile", include_str!("../../tests/lab/guest-profile"));
    Ok(tree)
}

/// The root file system of the guest.
pub(crate) fn guest_root(programs: &Programs) -> Tree {
    let mut tree = programs.base();
    add_guest_tests(&mut tree);
    tree.script("sbin/init", include_str!("../../tests/lab/guest-init.sh"))
        .script("sbin/undefined", programs.undefined.as_slice())
        .file("etc/inittab", include_str!("../../tests/lab/guest-inittab"))
        .file("etc/profile", include_str!("../../tests/lab/guest-profile"))
        .file("etc/passwd", "root::0:0:root:/root:/bin/sh\n")
        .file("etc/group", "root:x:0:\n")
        .file("etc/hostname", "guest\n");
    tree
}

/// What the demo's root file system has besides the content of Debian packages: busybox in a folder of its own, so that
/// it fills in for the programs that the packages do not bring, and the start-up.
pub(crate) fn demo_root(programs: &Programs) -> Tree {
    let mut tree = Tree::default();
    tree.program("usr/lib/busybox/busybox", &programs.busybox);
    for applet in &programs.applets {
        tree.symlink(&format!("usr/lib/busybox/{applet}"), "busybox");
    }
    for folder in ["dev", "proc", "sys", "tmp", "run", "root", "mnt", "bin", "lib"] {
        tree.directory(folder);
    }
    tree.symlink("bin/sh", "bash")
        .symlink("sbin/init", "../usr/lib/busybox/init")
        .file("etc/inittab", include_str!("../../tests/lab/demo-inittab"))
        .file("etc/profile", include_str!("../../tests/lab/demo-profile"))
        .file("etc/passwd", "root::0:0:root:/root:/bin/bash\n")
        .file("etc/group", "root:x:0:\n")
        .file("etc/hostname", "bulkhead\n");
    tree
}

/// The place in the lab's folder `folder` of a program of this machine.
///
/// # Errors
/// When the path has no file name that is text.
pub(crate) fn in_lab(folder: &str, program: &Path) -> Result<String> {
    let name = program.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} has no usable name", program.display()))?;
    Ok(format!("bulkhead/{folder}/{name}"))
}

/// The initramfs of the lab's host.
///
/// # Errors
/// When a module cannot be read.
pub(crate) fn host_initramfs(programs: &Programs, kernel: &Kernel) -> Result<Tree> {
    let mut tree = programs.base();
    add_modules(&mut tree, kernel, HOST_DISK_MODULES)?;
    tree.console().script("init", include_str!("../../tests/lab/l1-initramfs.sh"));
    Ok(tree)
}

/// The disk of the lab's host, to which what is to run is added: at least `bulkhead/run`.
///
/// # Errors
/// When a module cannot be read.
pub(crate) fn host_disk(programs: &Programs, kernel: &Kernel, kvm_amd_options: &str) -> Result<Tree> {
    let mut tree = programs.base();
    add_modules(&mut tree, kernel, HOST_KVM_MODULES)?;
    tree.file("modules/kvm_amd.options", format!("{kvm_amd_options}\n"))
        .script("sbin/init", include_str!("../../tests/lab/l1-init.sh"))
        .program("sbin/e2fsck", &programs.e2fsck)
        .file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\ntester:x:1000:1000:an ordinary user:/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )
        .file("etc/group", "root:x:0:\ntty:x:5:\nkvm:x:104:tester\ntester:x:1000:\nnogroup:x:65534:\n")
        .file("etc/profile", "export PATH=/bin:/sbin:/bulkhead/bin PS1='lab# '\n")
        .directory("bulkhead");
    Ok(tree)
}

/// The files of a guest, ready to be booted.
#[derive(Debug)]
pub(crate) struct GuestFiles {
    /// The kernel image.
    pub(crate) kernel: PathBuf,
    /// The initramfs.
    pub(crate) initrd: PathBuf,
    /// The root file system.
    pub(crate) root: PathBuf,
}

/// The size of the guest's root file system in MiB.
const GUEST_ROOT_MIB: u64 = 24;

impl GuestFiles {
    /// Makes the files of the test guest in `folder`.
    ///
    /// # Errors
    /// When an image cannot be made.
    pub(crate) fn make(folder: &Path, programs: &Programs, kernel: &Kernel) -> Result<Self> {
        crate::paths::directory(folder)?;
        let files =
            Self { kernel: folder.join("vmlinuz"), initrd: folder.join("initrd.cpio"), root: folder.join("root.ext4") };
        kernel::copy(&kernel.image, &files.kernel)?;
        guest_initramfs(programs, kernel)?.write_cpio(&files.initrd)?;
        guest_root(programs).write_ext4(&files.root, GUEST_ROOT_MIB)?;
        Ok(files)
    }
}
