//! One boot in QEMU alone: what it boots, and the log that comes of it.

use super::bench::{Bench, read};
use crate::architecture::Architecture;
use crate::command::program;
use crate::console::{Console, Patience};
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What an init does that has nothing to complain of.
pub(crate) const HEALTHY_INIT: &str = "#!/usr/bin/sh\nmount -t proc proc /proc\nmount -t sysfs sysfs /sys\n\
    echo \"hello from $(uname -r)\"\ncat /proc/uptime\npoweroff -f\n";

/// What ends a log besides the end of QEMU: these lines come once nothing else does.
const LAST_LINES: &[&str] = &["---[ end Kernel panic", "reboot: System halted"];
/// How long a boot may take.
const DEADLINE: Duration = Duration::from_secs(75);
/// The largest log that is kept, in bytes.
const MAX_LOG_BYTES: usize = 100 << 10;

/// A disk of the machine.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The image.
    pub(crate) image: PathBuf,
    /// Whether the machine may not write to it.
    pub(crate) read_only: bool,
}

/// What is booted; a case changes what it breaks.
#[derive(Debug)]
pub(crate) struct Boot {
    /// The content of the initramfs.
    pub(crate) tree: Tree,
    /// The initramfs as it is, if the tree alone does not say it.
    pub(crate) archive: Option<Vec<u8>>,
    /// The command line.
    pub(crate) cmdline: String,
    /// The processor, if not the usual one.
    pub(crate) cpu: Option<&'static str>,
    /// Memory in MiB.
    pub(crate) memory_mib: u32,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// The disk.
    pub(crate) disk: Option<Disk>,
    /// The text with which the log ends where the machine neither ends nor panics.
    pub(crate) until: Option<&'static str>,
    /// How long the console may be silent before the log ends, where the silence is the failure.
    pub(crate) silence: Option<Duration>,
    /// A folder for files.
    pub(crate) folder: PathBuf,
}

impl Boot {
    /// A boot that goes well.
    pub(crate) fn healthy(bench: &Bench, folder: &Path) -> Self {
        let mut tree = bench.base();
        tree.script("init", HEALTHY_INIT);
        Self {
            tree,
            archive: None,
            cmdline: format!("console={} panic=-1", bench.architecture.console()),
            cpu: None,
            memory_mib: 256,
            cpus: 1,
            disk: None,
            until: None,
            silence: None,
            folder: folder.to_owned(),
        }
    }

    /// Adds words to the command line.
    pub(crate) fn append(&mut self, words: &str) {
        self.cmdline.push(' ');
        self.cmdline.push_str(words);
    }

    /// The initramfs as a plain archive.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn cpio(&self) -> Result<Vec<u8>> {
        let path = self.folder.join("plain.cpio");
        self.tree.write_cpio(&path)?;
        read(&path)
    }

    /// Boots it and gives what the console said.
    ///
    /// # Errors
    /// When QEMU cannot be started, or nothing of what ends a log comes in time.
    pub(crate) fn run(&self, bench: &Bench) -> Result<Vec<u8>> {
        let initrd = self.folder.join("initrd");
        let archive = match &self.archive {
            Some(archive) => archive.clone(),
            None => self.cpio()?,
        };
        crate::paths::write_atomically(&initrd, &archive)?;
        let mut console = Console::start(&self.command(bench, &initrd)?, &self.folder.join("console"))?;
        let patience = Patience { total: DEADLINE, silence: self.silence.unwrap_or(DEADLINE) };
        let waited = match self.until {
            Some(text) => console.wait_for(text, patience, |_| {}).map(drop),
            None => wait_for_any(&mut console, patience),
        };
        let log = read(&self.folder.join("console"))?;
        match waited {
            Err(error) if self.silence.is_none() || log.len() > MAX_LOG_BYTES => {
                eprint!("{}", console.tail(12));
                Err(error)
            }
            _ if log.len() > MAX_LOG_BYTES => bail!("the log has {} bytes, more than {MAX_LOG_BYTES}", log.len()),
            _ => Ok(log),
        }
    }

    fn command(&self, bench: &Bench, initrd: &Path) -> Result<std::process::Command> {
        let name = match bench.architecture {
            Architecture::X86_64 => "qemu-system-x86_64",
            Architecture::Aarch64 => "qemu-system-aarch64",
        };
        let mut command = program(name)?;
        command.args(["-accel", "tcg", "-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio"]);
        command.args(["-no-reboot", "-rtc", "base=2026-01-01", "-m", &self.memory_mib.to_string()]);
        command.args(["-smp", &self.cpus.to_string()]).args(bench.machine(self.cpu));
        command.arg("-kernel").arg(&bench.kernel.image).arg("-initrd").arg(initrd).args(["-append", &self.cmdline]);
        if let Some(disk) = &self.disk {
            let image = disk.image.to_str().context("the folder's name is no text")?;
            let read_only = if disk.read_only { "on" } else { "off" };
            command.args(["-drive", &format!("file={image},if=none,id=disk,format=raw,readonly={read_only}")]);
            command.args(["-device", "virtio-blk-pci,drive=disk"]);
        }
        Ok(command)
    }
}

/// Waits for the end of QEMU or for a line after which nothing comes.
fn wait_for_any(console: &mut Console, patience: Patience) -> Result<()> {
    let mut last = false;
    loop {
        // Line by line, so that each of the last lines is seen whole.
        if console.wait_for("\n", patience, |line| last |= LAST_LINES.iter().any(|text| line.contains(text)))?
            == crate::console::Waited::Closed
            || last
        {
            return Ok(());
        }
    }
}
