//! The labs: a QEMU without KVM that emulates a processor which can virtualize (x86_64 with SVM, or aarch64 with EL2), so
//! that a Debian kernel in it (L1) has a /dev/kvm that can run Linux (L2), on any machine.

use crate::architecture::Architecture;
use crate::command::progress;
use crate::console::{self, Console, Patience, Waited};
use crate::emulator::Emulator;
use crate::images::{self, Programs};
use crate::kernel::Kernel;
use crate::packages::{self, Suite};
use crate::paths;
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The suite that the lab's host comes from: the one whose kernel and QEMU are known to work as a lab.
pub(crate) const HOST_SUITE: &str = "bookworm";

/// A lab that can be started.
#[derive(Debug)]
pub(crate) struct Lab {
    folder: TempDir,
    emulator: Emulator,
    kernel: Kernel,
    /// The static programs that are in its images.
    pub(crate) programs: Programs,
}

impl Lab {
    /// Prepares a lab: installs and downloads what is missing.
    ///
    /// # Errors
    /// When something cannot be had.
    pub(crate) fn prepare(emulator: Emulator) -> Result<Self> {
        packages::install(packages::IMAGE_TOOLS)?;
        let architecture = emulator.architecture;
        let suite = Suite::open(HOST_SUITE, architecture)?;
        let kernel = Kernel::cloud(&suite)?;
        let programs = Programs::of(&suite)?;
        Ok(Self { folder: paths::run_folder()?, emulator, kernel, programs })
    }

    /// A folder for files of this lab, removed with it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The architecture of the lab's host.
    pub(crate) fn architecture(&self) -> Architecture {
        self.emulator.architecture
    }

    /// The kernel of the lab's host.
    pub(crate) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The disk of the lab's host; `bulkhead/run`, the script that is run, is to be added.
    ///
    /// # Errors
    /// When it cannot be made up.
    pub(crate) fn disk(&self) -> Result<Tree> {
        images::host_disk(&self.programs, &self.kernel, self.emulator.kvm_amd)
    }

    /// Boots the lab with a disk and runs its `bulkhead/run`, whose exit status is the result. `attend` gets the console and the text that ends it, and
    /// returns when that came.
    ///
    /// # Errors
    /// When the lab does not come up, hangs, or ends without saying how its program ended. The tail of the console is in
    /// the error.
    pub(crate) fn run(
        &self,
        name: &str,
        disk: &Tree,
        attend: impl FnOnce(&mut Console, &str) -> Result<Waited>,
    ) -> Result<i32> {
        let initrd = self.folder().join("l1.cpio");
        let image = self.folder().join("l1.ext4");
        images::host_initramfs(&self.programs, &self.kernel)?.write_cpio(&initrd)?;
        disk.write_ext4(&image, DISK_MIB).context("cannot make the lab's disk")?;
        let logs = paths::cache_folder("logs")?;
        console::prune_logs(&logs, 40)?;
        let log = logs.join(format!("{name}.log"));
        let nonce = nonce()?;
        progress(format_args!(
            "starting the lab: QEMU emulates a machine ({}) for Linux {}, its console is in {}",
            self.emulator.machine.join(" "),
            self.kernel.release,
            log.display()
        ));
        let start = Instant::now();
        let mut console = Console::start(&self.command(&initrd, &image, &nonce)?, &log)?;
        let end = format!("bulkhead-lab: end {nonce} status=");
        let status = attend(&mut console, &end).and_then(|waited| Self::status(&mut console, waited));
        let status = status.with_context(|| {
            format!("the lab failed; the end of its console, {}:\n{}", log.display(), console.tail(40))
        })?;
        // The end was said; how the machine goes down does not matter.
        if let Err(error) = console.wait_for_end(Duration::from_secs(30)) {
            progress(format_args!("the lab had to be killed: {error:#}"));
        }
        progress(format_args!("the lab ran for {} s", start.elapsed().as_secs()));
        Ok(status)
    }

    /// Reads the exit status behind the text that ends the console.
    fn status(console: &mut Console, waited: Waited) -> Result<i32> {
        if waited == Waited::Closed {
            bail!("it ended without saying how");
        }
        let soon = Patience { total: Duration::from_secs(20), silence: Duration::from_secs(20) };
        let status = console.rest_of_line(soon)?;
        status.parse().with_context(|| format!("its last line has no status but {status:?}"))
    }

    fn command(&self, initrd: &Path, disk: &Path, nonce: &str) -> Result<Command> {
        let mut command = self.emulator.command()?;
        command.args(["-m", "3072"]);
        command.args(["-display", "none", "-monitor", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(initrd);
        // Commas in a path would end the value, and are written twice.
        let disk = disk.to_string_lossy().replace(',', ",,");
        command.arg("-drive").arg(format!("file={disk},format=raw,if=virtio,cache=unsafe"));
        let console = self.emulator.architecture.console();
        command
            .arg("-append")
            .arg(format!("console={console} panic=-1 mitigations=off quiet loglevel=4 bulkhead.nonce={nonce}"));
        Ok(command)
    }
}

/// The size of the lab's disk in MiB; the file is sparse.
const DISK_MIB: u64 = 1024;
/// The longest time in which the lab must come up; 5 s are usual.
pub(crate) const BOOT: Patience = Patience { total: Duration::from_secs(180), silence: Duration::from_secs(90) };

/// Watches a lab in which nobody types; `line` gets every line of its console.
pub(crate) fn watch(patience: Patience, line: impl FnMut(&str)) -> impl FnOnce(&mut Console, &str) -> Result<Waited> {
    move |console, end| console.wait_for(end, patience, line)
}

/// Joins the user's terminal to a lab, from the point where its script hands it over.
pub(crate) fn terminal(console: &mut Console, end: &str) -> Result<Waited> {
    match console.wait_for(TERMINAL_STARTS, BOOT, |_| {})? {
        Waited::Found => console.join_terminal(end),
        Waited::Closed => Ok(Waited::Closed),
    }
}

/// What a lab's script prints when the user's terminal is to be joined.
pub(crate) const TERMINAL_STARTS: &str = "bulkhead-lab: terminal\r\n";

/// A word that only this run knows.
fn nonce() -> Result<String> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Why Linux guests cannot run on this machine's /dev/kvm, or `None` when they can.
pub(crate) fn why_not_direct() -> Option<String> {
    let kvm = Path::new("/dev/kvm");
    if !kvm.exists() {
        return Some("there is no /dev/kvm here".to_owned());
    }
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(kvm) {
        return Some(format!("/dev/kvm cannot be opened here ({error}); a member of the group kvm could"));
    }
    if Path::new("/sys/module/kvm_pvm").exists() {
        return Some("/dev/kvm is PVM here (/sys/module/kvm_pvm), which cannot run a stock Linux kernel".to_owned());
    }
    None
}
