//! `cargo xtask demo`: a root file system of Debian packages, booted by `broker run` on the user's terminal.

use crate::architecture::Architecture;
use crate::binaries::{Binaries, Profile};
use crate::command::{capture, progress};
use crate::console::{Console, Patience, Waited};
use crate::emulator::Emulator;
use crate::images::{self, Programs};
use crate::kernel::{self, Kernel};
use crate::lab::{self, Lab};
use crate::packages::{self, Suite};
use crate::{paths, tree};
use anyhow::{Context, Result, bail};
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where the demo's guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine's /dev/kvm.
    Direct,
    /// In the lab.
    Lab,
}

/// What the guest's root file system is made of, besides busybox.
const PACKAGES: &[&str] = &[
    "base-files",
    "bash",
    "coreutils",
    "grep",
    "libacl1",
    "libattr1",
    "libc6",
    "libgmp10",
    "libpcre2-8-0",
    "libselinux1",
    "libtinfo6",
];
/// Its size in MiB.
const ROOT_MIB: u64 = 96;
/// The prompt of its shell.
const PROMPT: &str = "root@bulkhead:";
/// What is typed for a user who is not there.
const SHOWN_COMMANDS: &[&str] = &["uname -a", "head -n 1 /etc/os-release", "df -h /", "nproc"];
const PATIENCE: Patience = Patience { total: Duration::from_secs(240), silence: Duration::from_secs(120) };

/// Runs the demo and gives the broker's exit code.
///
/// # Errors
/// When something cannot be had, built or started.
pub(crate) fn run(place: Option<Place>, profile: Profile) -> Result<i32> {
    let place = match (place, lab::why_not_direct()) {
        (Some(Place::Direct), None) => Place::Direct,
        (Some(Place::Direct), Some(why)) => bail!("cannot run directly: {why}; without --direct, the lab is used"),
        (Some(Place::Lab), _) => {
            progress("the guest runs in the lab, as asked for");
            Place::Lab
        }
        (None, None) => {
            progress("the guest runs directly on this machine's /dev/kvm");
            Place::Direct
        }
        (None, Some(why)) => {
            progress(format_args!("the guest runs in the lab, because {why}"));
            Place::Lab
        }
    };
    packages::install(packages::IMAGE_TOOLS)?;
    let binaries = Binaries::build(profile)?;
    let suite = Suite::open(lab::HOST_SUITE, Architecture::native())?;
    let guest = Files::make(&suite)?;
    match place {
        Place::Direct => directly(&binaries, &guest),
        Place::Lab => in_lab(&binaries, &guest),
    }
}

/// The demo's guest, in a folder of the cache.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
}

/// The names of the guest's files.
const FILES: &[&str] = &["vmlinuz", "initrd.cpio", "rootfs.ext4", "config.toml"];

impl Files {
    fn make(suite: &Suite) -> Result<Self> {
        let folder = paths::cache_folder("demo")?;
        progress(format_args!("making a root file system of {} Debian packages", PACKAGES.len().saturating_add(1)));
        let programs = Programs::of(suite)?;
        let kernel = Kernel::cloud(suite)?;
        kernel::copy(&kernel.image, &folder.join("vmlinuz"))?;
        images::guest_initramfs(&programs, &kernel)?.write_cpio(&folder.join("initrd.cpio"))?;
        let content = tempfile::tempdir_in(&folder).context("cannot make a folder for the root file system")?;
        let root = content.path().join("root");
        images::demo_root(&programs).write_folder(&root)?;
        for package in PACKAGES {
            let from = suite.unpacked(package)?;
            // Documentation and translations are most of what these packages hold.
            let keep = ["bin", "sbin", "lib", "lib64", "etc", "usr/bin", "usr/sbin", "usr/lib"];
            for part in keep.iter().filter(|part| from.join(part).is_dir()) {
                let to = root.join(part);
                paths::directory(&to)?;
                copy_into(&from.join(part), &to)?;
            }
        }
        tree::ext4_of_folder(&root, &folder.join("rootfs.ext4"), ROOT_MIB)?;
        paths::write_atomically(&folder.join("config.toml"), include_bytes!("../../tests/lab/demo-config.toml"))?;
        Ok(Self { folder })
    }
}

/// Copies what is in a folder into another, without replacing what is there.
fn copy_into(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["-R", "-P", "-n", "--preserve=mode,timestamps"]).arg(from.join(".")).arg(to);
    capture(&mut copy).map(drop)
}

fn directly(binaries: &Binaries, guest: &Files) -> Result<i32> {
    let mut broker = Command::new(binaries.folder.join("broker"));
    broker.arg("run").arg(guest.folder.join("config.toml"));
    if io::stdin().is_terminal() {
        let status = broker.status().context("cannot start the broker")?;
        return status.code().context("the broker was killed");
    }
    let mut console = Console::start(&broker, &paths::cache_folder("logs")?.join("demo.log"))?;
    console.echo = true;
    let shown = |console: &Console| format!("the demo failed; the end of its console:\n{}", console.tail(40));
    type_for_user(&mut console).with_context(|| shown(&console))?;
    let ended = console.wait_for_end(PATIENCE.total).with_context(|| shown(&console))?;
    ended.code().context("the broker was killed")
}

fn in_lab(binaries: &Binaries, guest: &Files) -> Result<i32> {
    let lab = Lab::prepare(Emulator::of(Architecture::native())?)?;
    let mut disk = lab.disk()?;
    for program in &binaries.programs {
        disk.program(&images::in_lab("bin", program)?, program);
    }
    for name in FILES {
        disk.copy(&format!("bulkhead/demo/{name}"), &guest.folder.join(name));
    }
    let size = terminal_size();
    disk.script(
        "bulkhead/run",
        format!(
            "#!/bin/sh\n{size}echo 'bulkhead-lab: terminal'\nexec /bulkhead/bin/broker run /bulkhead/demo/config.toml\n"
        ),
    );
    let user_is_there = io::stdin().is_terminal();
    lab.run("demo", &disk, |console, end| {
        if user_is_there {
            return lab::terminal(console, end);
        }
        if console.wait_for(lab::TERMINAL_STARTS, lab::BOOT, |_| {})? == Waited::Closed {
            return Ok(Waited::Closed);
        }
        console.echo = true;
        type_for_user(console)?;
        console.wait_for(end, PATIENCE, |_| {})
    })
}

/// The command that tells the lab's serial console how large the user's terminal is, or nothing.
pub(crate) fn terminal_size() -> String {
    let size = Command::new("stty").arg("size").stdin(std::process::Stdio::inherit()).output();
    let text = size.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let numbers: Vec<u16> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers.as_slice() {
        [rows, columns] if *rows > 0 && *columns > 0 => format!("stty rows {rows} cols {columns}\n"),
        _ => String::new(),
    }
}

/// Types what standard input holds, line by line, or a few commands where it holds nothing; then switches the guest off.
fn type_for_user(console: &mut Console) -> Result<()> {
    let mut script = String::new();
    io::stdin().read_to_string(&mut script).context("cannot read standard input")?;
    let mut lines: Vec<_> = script.lines().collect();
    if lines.is_empty() {
        lines = SHOWN_COMMANDS.to_vec();
    }
    lines.push("poweroff");
    for line in lines {
        if console.wait_for(PROMPT, PATIENCE, |_| {})? == Waited::Closed {
            bail!("the guest ended before its shell asked for a command");
        }
        console.send(format!("{line}\n").as_bytes())?;
    }
    Ok(())
}
