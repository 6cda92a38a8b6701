//! The case from which this project comes: an archive that is cut inside the code of a shared object. The kernel gives a file the
//! size that the archive says before it copies, so that zeros stand where the rest would be, and no error is told.

use super::bench::{Bench, read};
use super::boot::Boot;
use crate::command::{capture, program};
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};

/// A library whose only function lies 64 KiB behind everything that the dynamic loader reads of it.
const LIBRARY: &str = ".section .late,\"awx\",%progbits\n.skip 65536\n.globl work\n.type work, %function\nwork: ret\n\
    .section .note.GNU-stack,\"\",%progbits\n";
/// An init that calls it, and ends.
const INIT_X86: &str = ".globl _start\n_start: call work@PLT\nxor %edi, %edi\nmov $60, %eax\nsyscall\n\
    .section .note.GNU-stack,\"\",%progbits\n";
const INIT_ARM: &str = ".globl _start\n_start: bl work\nmov x0, #0\nmov x8, #93\nsvc #0\n\
    .section .note.GNU-stack,\"\",%progbits\n";

/// Where the library is in the image: in the last folder, so that the archive ends with it.
const FOLDER: &str = "zlib";

/// Assembles and links `source` with `arguments`.
fn link(bench: &Bench, folder: &Path, name: &str, source: &str, arguments: &[&str]) -> Result<PathBuf> {
    let (text, linked) = (folder.join(format!("{name}.s")), folder.join(name));
    fs::write(&text, source)?;
    let mut compiler = program(&format!("{}-gcc", bench.triple()))?;
    capture(compiler.args(["-nostdlib", "-o"]).arg(&linked).arg(&text).args(arguments).current_dir(folder))?;
    Ok(linked)
}

/// The archive ends inside the library's code.
pub(crate) fn cut_in_code(bench: &Bench, boot: &mut Boot) -> Result<()> {
    let library = link(bench, &boot.folder, "libwork.so", LIBRARY, &["-shared"])?;
    let source = if bench.is_x86() { INIT_X86 } else { INIT_ARM };
    let path = format!("-Wl,-rpath,/{FOLDER}");
    let init = link(bench, &boot.folder, "linked-init", source, &["libwork.so", &path])?;
    let (loader, from) = bench.loader();
    boot.tree.program("init", &init).program(loader, &from).program(&format!("{FOLDER}/libwork.so"), &library);
    let mut archive = boot.cpio()?;
    archive.truncate(archive.len().saturating_sub(read(&library)?.len().saturating_mul(2) / 5));
    boot.archive = Some(archive);
    Ok(())
}
