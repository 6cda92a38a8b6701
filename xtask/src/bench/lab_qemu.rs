//! A QEMU for the inside of the lab, where there are no libraries: the program, the libraries that it names, and the
//! firmware of its smallest machine, out of Debian packages of the lab's architecture.

use crate::architecture::Architecture;
use crate::command::{capture_text, program};
use crate::lab::HOST_SUITE;
use crate::packages::{self, Suite, Tool};
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

const READELF: Tool = Tool { program: "readelf", package: "binutils" };

/// Where it is in the lab.
const FOLDER: &str = "bulkhead/qemu";

/// What QEMU is called where.
struct Names {
    package: &'static str,
    program: &'static str,
    loader: &'static str,
    /// Firmware that its smallest machine loads.
    firmware: &'static [&'static str],
}

fn names(architecture: Architecture) -> Names {
    match architecture {
        Architecture::X86_64 => Names {
            package: "qemu-system-x86",
            program: "qemu-system-x86_64",
            loader: "ld-linux-x86-64.so.2",
            firmware: &["bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"],
        },
        Architecture::Aarch64 => Names {
            package: "qemu-system-arm",
            program: "qemu-system-aarch64",
            loader: "ld-linux-aarch64.so.1",
            firmware: &[],
        },
    }
}

/// Puts it on the lab's disk, and says by which words it is run there.
///
/// # Errors
/// When a package cannot be had, or a library is in none of them.
pub(super) fn add(disk: &mut Tree, architecture: Architecture) -> Result<String> {
    packages::install(&[READELF])?;
    let names = names(architecture);
    let suite = Suite::open(HOST_SUITE, architecture)?;
    let binary = suite.unpacked(names.package)?.join("usr/bin").join(names.program);
    disk.program(&format!("{FOLDER}/{}", names.program), &binary);
    for (name, path) in libraries(&suite, names.package, &binary)? {
        disk.program(&format!("{FOLDER}/lib/{name}"), &path);
    }
    if !names.firmware.is_empty() {
        let data = suite.unpacked("qemu-system-data")?.join("usr/share/qemu");
        let bios = suite.unpacked("seabios")?.join("usr/share/seabios");
        for name in names.firmware {
            let places = [bios.join(name), data.join(name)];
            let path = places.iter().find(|path| path.is_file()).with_context(|| format!("no package has {name}"))?;
            disk.copy(&format!("{FOLDER}/share/{name}"), path);
        }
    }
    let (loader, program) = (names.loader, names.program);
    Ok(format!("/{FOLDER}/lib/{loader} --library-path /{FOLDER}/lib /{FOLDER}/{program} -L /{FOLDER}/share"))
}

/// The libraries that a program of a package needs, and those that they need, by name.
fn libraries(suite: &Suite, package: &str, binary: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut here: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut wanted = needed(binary)?;
    let mut packages = VecDeque::from(suite.dependencies(package)?);
    let mut done = Vec::new();
    loop {
        while let Some(at) = wanted.iter().position(|name| here.contains_key(name)) {
            let name = wanted.swap_remove(at);
            if let Some(path) = here.get(&name)
                && !found.contains_key(&name)
            {
                wanted.extend(needed(path)?);
                found.insert(name, path.clone());
            }
        }
        if wanted.is_empty() {
            return Ok(found);
        }
        let Some(next) = packages.pop_front() else {
            bail!("{package} needs {}, which none of its packages has", wanted.join(", "));
        };
        let is_library = next.starts_with("lib") || next.starts_with("zlib");
        if is_library && !done.contains(&next) {
            index(&suite.unpacked(&next)?, &mut here)?;
            // A package that depends on nothing has no such field.
            packages.extend(suite.dependencies(&next).unwrap_or_default());
            done.push(next);
        }
    }
}

/// The names of the libraries that a program or a library is linked with.
fn needed(file: &Path) -> Result<Vec<String>> {
    let dynamic = capture_text(program(READELF.program)?.env("LC_ALL", "C").args(["--wide", "-d"]).arg(file))?;
    let names = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    Ok(names.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect())
}

/// The libraries in a folder, by their names, which may be links.
fn index(folder: &Path, libraries: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            index(&path, libraries)?;
        } else if name.contains(".so")
            && let Ok(file) = fs::canonicalize(&path)
        {
            libraries.entry(name).or_insert(file);
        }
    }
    Ok(())
}
