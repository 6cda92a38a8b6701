//! What the corpus is made of: one bench for each architecture and kernel series, with the kernel and the programs that
//! its images are made of.

use crate::architecture::Architecture;
use crate::kernel::{self, Kernel, Module};
use crate::packages::Suite;
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The kernel series, and the Debian release that has each.
pub(crate) const SERIES: &[(&str, &str)] =
    &[("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), ("7", "sid")];

/// Where the small programs come from, whatever the kernel.
const PROGRAMS_SUITE: &str = "bookworm";

/// The modules with which a kernel finds QEMU's disk and mounts ext4; those that a kernel does not have are built in.
const DISK_MODULES: &[&str] = &["virtio_pci", "virtio_mmio", "virtio_blk", "crc32c_generic", "ext4"];

/// A kernel and what goes with it.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The architecture.
    pub(crate) architecture: Architecture,
    /// The kernel series, as logs are named.
    pub(crate) series: &'static str,
    /// The kernel.
    pub(crate) kernel: Kernel,
    /// The static busybox.
    pub(crate) busybox: PathBuf,
    /// The names under which busybox is called.
    applets: Vec<String>,
    /// The busybox that needs a dynamic loader and libraries.
    pub(crate) dynamic_busybox: PathBuf,
    /// The folder of the C library's package.
    libc: PathBuf,
}

impl Bench {
    /// Downloads what is missing.
    ///
    /// # Errors
    /// When a package cannot be had.
    pub(crate) fn open(architecture: Architecture, series: &'static str, suite: &str) -> Result<Self> {
        let programs = Suite::open(PROGRAMS_SUITE, architecture)?;
        let native = Suite::open(PROGRAMS_SUITE, Architecture::native())?;
        Ok(Self {
            architecture,
            series,
            kernel: Kernel::cloud(&Suite::open(suite, architecture)?)?,
            busybox: kernel::busybox(&programs)?,
            applets: kernel::applets(&kernel::busybox(&native)?)?,
            dynamic_busybox: programs.unpacked("busybox")?.join("bin/busybox"),
            libc: programs.unpacked("libc6")?,
        })
    }

    /// Whether it is an x86_64 one.
    pub(crate) fn is_x86(&self) -> bool {
        self.architecture == Architecture::X86_64
    }

    /// The other architecture.
    pub(crate) fn other(&self) -> Architecture {
        if self.is_x86() { Architecture::Aarch64 } else { Architecture::X86_64 }
    }

    /// busybox under all its names, the folders of a Linux system, the console, and no init.
    pub(crate) fn base(&self) -> Tree {
        let mut tree = Tree::default();
        tree.program("usr/bin/busybox", &self.busybox);
        for applet in &self.applets {
            tree.symlink(&format!("usr/bin/{applet}"), "busybox");
        }
        for folder in ["dev", "proc", "sys", "tmp", "root", "mnt", "etc", "sbin"] {
            tree.directory(folder);
        }
        tree.console();
        tree
    }

    /// Adds the disk's modules, with a script that inserts them.
    ///
    /// # Errors
    /// When a module cannot be read.
    pub(crate) fn add_disk_modules(&self, tree: &mut Tree, skip: &[&str]) -> Result<()> {
        let mut script = "#!/usr/bin/sh\n".to_owned();
        for module in self.modules(DISK_MODULES)? {
            let name = module.name.trim_end_matches(".ko");
            if !skip.contains(&name) {
                script.push_str(&format!("/usr/bin/insmod /modules/{}\n", module.name));
                tree.file(&format!("modules/{}", module.name), module.content);
            }
        }
        tree.script("sbin/load-disk", script);
        Ok(())
    }

    /// Modules by name, each after those that it needs.
    ///
    /// # Errors
    /// When a module cannot be read.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        self.kernel.modules(names)
    }

    /// The place of the dynamic loader in an image, and the file.
    pub(crate) fn loader(&self) -> (&'static str, PathBuf) {
        match self.architecture {
            Architecture::X86_64 => ("lib64/ld-linux-x86-64.so.2", self.library("ld-linux-x86-64.so.2")),
            Architecture::Aarch64 => ("lib/ld-linux-aarch64.so.1", self.library("ld-linux-aarch64.so.1")),
        }
    }

    /// A library of the C library's package.
    pub(crate) fn library(&self, name: &str) -> PathBuf {
        self.libc.join("lib").join(self.triple()).join(name)
    }

    /// The folder of libraries, as Debian names it.
    pub(crate) fn triple(&self) -> &'static str {
        if self.is_x86() { "x86_64-linux-gnu" } else { "aarch64-linux-gnu" }
    }

    /// The arguments of QEMU for its machine.
    pub(crate) fn machine(&self, cpu: Option<&str>) -> Vec<String> {
        let (machine, usual) = match self.architecture {
            Architecture::X86_64 => ("pc", "max"),
            Architecture::Aarch64 => ("virt,gic-version=3", "cortex-a72"),
        };
        ["-M", machine, "-cpu", cpu.unwrap_or(usual)].map(str::to_owned).to_vec()
    }
}

/// Reads a whole file.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
