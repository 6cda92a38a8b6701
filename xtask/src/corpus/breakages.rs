//! Breaking an initramfs and what is in it.

use super::bench::{Bench, read};
use super::boot::{Boot, HEALTHY_INIT};
use super::programs::{self, Code};
use crate::command::program as tool;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a console is silent that stays so.
const SILENCE: Duration = Duration::from_secs(12);

/// An init of this code alone.
pub(crate) fn program(bench: &Bench, boot: &mut Boot, code: Code) -> Result<()> {
    boot.tree.script("init", programs::elf(bench.architecture, code));
    Ok(())
}

/// As [`program`], and the kernel tells of signals.
pub(crate) fn traced(bench: &Bench, boot: &mut Boot, code: Code) -> Result<()> {
    boot.append("print-fatal-signals=1 sysctl.debug.exception-trace=1");
    program(bench, boot, code)
}

/// As [`program`], on an old processor.
pub(crate) fn new_cpu(bench: &Bench, boot: &mut Boot, code: Code) -> Result<()> {
    boot.cpu = Some(if bench.is_x86() { "qemu64" } else { "cortex-a53" });
    program(bench, boot, code)
}

/// A healthy init that runs these commands before its end.
pub(crate) fn shell(boot: &mut Boot, commands: &str) {
    boot.tree.script("init", HEALTHY_INIT.replace("poweroff -f", &format!("{commands}\npoweroff -f")));
}

/// Programs that are no init fail, and complain in words that look like a failure.
pub(crate) fn noisy(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.tree.script("usr/bin/crash", programs::elf(bench.architecture, programs::SEGFAULT));
    boot.tree.script("usr/bin/undefined", programs::elf(bench.architecture, programs::UNDEFINED));
    shell(
        boot,
        "/usr/bin/crash\n/usr/bin/undefined\n/usr/bin/not-there\necho 'error: kernel panic is what this is not about'\n\
         echo '[    1.5] daemon: failed (error -2), out of memory for the cache'\nmount -t ext4 /dev/nothing /mnt",
    );
    Ok(())
}

/// Two archives, the second one compressed, as distributions make it with microcode.
pub(crate) fn two_parts(_: &Bench, boot: &mut Boot) -> Result<()> {
    let whole = boot.cpio()?;
    let mut early = crate::tree::Tree::default();
    early.file("early", "x");
    let folder = boot.folder.join("early.cpio");
    early.write_cpio(&folder)?;
    let mut archive = read(&folder)?;
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive.extend(filtered(tool("gzip")?.arg("-1"), &whole)?);
    boot.archive = Some(archive);
    Ok(())
}

/// busybox, all but its first pages overwritten with zeros.
pub(crate) fn zeroed_busybox(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let mut bytes = read(&bench.busybox)?;
    let end = bytes.len() / 2;
    bytes.get_mut(4096..end).context("busybox is too short")?.fill(0);
    boot.tree.script("usr/bin/busybox", bytes);
    Ok(())
}

/// An init that needs the dynamic loader and libraries.
fn dynamic(bench: &Bench, boot: &mut Boot) {
    let (loader, from) = bench.loader();
    boot.tree.program("usr/bin/busybox", &bench.dynamic_busybox).program(loader, &from);
    for name in ["libc.so.6", "libresolv.so.2", "libm.so.6"] {
        boot.tree.program(&format!("lib/{}/{name}", bench.triple()), &bench.library(name));
    }
}

/// The archive is cut in the middle of its last file, the C library.
pub(crate) fn cut_in_library(bench: &Bench, boot: &mut Boot) -> Result<()> {
    dynamic(bench, boot);
    // Files are in the order of their names; the C library is to be the last one.
    let folder = format!("zlib/{}", bench.triple());
    boot.tree.program(&format!("{folder}/libc.so.6"), &bench.library("libc.so.6"));
    boot.tree.symlink(&format!("lib/{}/libc.so.6", bench.triple()), &format!("/{folder}/libc.so.6"));
    let mut archive = boot.cpio()?;
    let length = read(&bench.library("libc.so.6"))?.len();
    archive.truncate(archive.len().saturating_sub(length.saturating_mul(4) / 5));
    boot.archive = Some(archive);
    Ok(())
}

/// The archive is cut in the middle of its last file, init.
pub(crate) fn cut_in_init(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.tree.program("zinit", &bench.busybox);
    boot.append("rdinit=/zinit");
    let mut archive = boot.cpio()?;
    let length = read(&bench.busybox)?.len();
    archive.truncate(archive.len().saturating_sub(length / 2));
    boot.archive = Some(archive);
    Ok(())
}

/// A program whose code lies in a part of its segment that the file does not have.
pub(crate) fn short_file(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.tree.script("init", programs::elf_of_size(bench.architecture, programs::EXIT_0, Some(4 << 16)));
    Ok(())
}

/// A program whose library is not there.
pub(crate) fn library_missing(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let (loader, from) = bench.loader();
    boot.tree.program("usr/bin/busybox", &bench.dynamic_busybox).program(loader, &from);
    Ok(())
}

/// A program whose dynamic loader is not there.
pub(crate) fn loader_missing(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.tree.program("init", &bench.dynamic_busybox);
    Ok(())
}

/// A program whose dynamic loader is a text.
pub(crate) fn loader_is_text(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let (loader, _) = bench.loader();
    boot.tree
        .program("init", &bench.dynamic_busybox)
        .script(loader, "no program at all, but long enough for a header".repeat(9));
    Ok(())
}

/// An initramfs without init.
pub(crate) fn no_init(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.tree = bench.base();
    Ok(())
}

/// An init that waits for ever.
pub(crate) fn silent_init(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.silence = Some(SILENCE);
    program(bench, boot, programs::PAUSE)
}

/// No console at all, on x86.
pub(crate) fn no_console(_: &Bench, boot: &mut Boot) -> Result<()> {
    boot.cmdline = "panic=-1".to_owned();
    boot.tree.script("init", "#!/usr/bin/sh\nexit 1\n");
    Ok(())
}

/// A gzip of the archive that ends too early.
pub(crate) fn gzip_cut(_: &Bench, boot: &mut Boot) -> Result<()> {
    let mut archive = filtered(tool("gzip")?.arg("-1"), &boot.cpio()?)?;
    archive.truncate(archive.len() / 2);
    boot.archive = Some(archive);
    Ok(())
}

/// A gzip of the archive with other bytes in its middle.
pub(crate) fn gzip_damaged(_: &Bench, boot: &mut Boot) -> Result<()> {
    let mut archive = filtered(tool("gzip")?.arg("-1"), &boot.cpio()?)?;
    let middle = archive.len() / 3;
    archive.get_mut(middle..middle.saturating_add(4096)).context("it is too short")?.fill(0xff);
    boot.archive = Some(archive);
    Ok(())
}

/// xz as the program makes it, which is not what the kernel reads.
pub(crate) fn xz_crc64(_: &Bench, boot: &mut Boot) -> Result<()> {
    boot.archive = Some(filtered(tool("xz")?.args(["-0", "--check=crc64", "-c"]), &boot.cpio()?)?);
    Ok(())
}

/// An archive of POSIX's old kind.
pub(crate) fn odc(_: &Bench, boot: &mut Boot) -> Result<()> {
    let folder = boot.folder.join("tree");
    boot.tree.write_folder(&folder)?;
    boot.archive = Some(filtered(
        tool("cpio")?.args(["-o", "-H", "odc", "--quiet"]).current_dir(&folder),
        b"init\nusr\nusr/bin\nusr/bin/busybox\nusr/bin/sh\n",
    )?);
    Ok(())
}

/// Bytes that are no archive.
pub(crate) fn unknown_magic(_: &Bench, boot: &mut Boot) -> Result<()> {
    boot.archive = Some(b"This is no archive that a kernel knows.\n".repeat(4096));
    Ok(())
}

/// A whole archive and something after it.
pub(crate) fn junk(_: &Bench, boot: &mut Boot) -> Result<()> {
    let mut archive = boot.cpio()?;
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive.extend(b"something that is no archive\n".repeat(64));
    boot.archive = Some(archive);
    Ok(())
}

/// An archive that does not fit into memory once it is unpacked.
pub(crate) fn too_large(_: &Bench, boot: &mut Boot) -> Result<()> {
    boot.tree.file("big", vec![0; 200 << 20]);
    boot.archive = Some(filtered(tool("gzip")?.arg("-1"), &boot.cpio()?)?);
    boot.memory_mib = 192;
    Ok(())
}

/// An init that takes all memory.
pub(crate) fn fills_memory(_: &Bench, boot: &mut Boot) -> Result<()> {
    boot.memory_mib = 192;
    boot.tree.script("init", "#!/usr/bin/sh\nmount -t devtmpfs dev /dev\nmount -t tmpfs -o size=1G tmpfs /tmp\nexec dd if=/dev/zero of=/tmp/a bs=1M\n");
    Ok(())
}

/// What a filter program makes of `input`.
fn filtered(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start a filter")?;
    let mut to = child.stdin.take().context("the filter has no input")?;
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || to.write_all(input));
        let output = child.wait_with_output();
        drop(writer.join());
        output
    })
    .context("cannot read from the filter")?;
    if !output.status.success() {
        bail!("the filter failed: {}", output.status);
    }
    Ok(output.stdout)
}

/// Overwrites `bytes` of a file at `offset`.
///
/// # Errors
/// When the file is shorter or cannot be written.
pub(crate) fn overwrite(path: &std::path::Path, offset: usize, bytes: &[u8]) -> Result<()> {
    let mut content = read(path)?;
    content
        .get_mut(offset..)
        .and_then(|rest| rest.get_mut(..bytes.len()))
        .context("the file is too short")?
        .copy_from_slice(bytes);
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
