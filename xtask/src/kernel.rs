//! A Debian kernel: its image, and the modules that are asked for, each after those that it needs.

use crate::command::{capture, capture_text, program};
use crate::packages::Suite;
use crate::paths;
use anyhow::{Context, Result, bail};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The kernel image.
    pub(crate) image: PathBuf,
    /// Its version, as `uname -r` says it.
    pub(crate) release: String,
    modules: HashMap<String, PathBuf>,
}

impl Kernel {
    /// The cloud kernel of a suite: what the meta package `linux-image-cloud-…` stands for.
    ///
    /// # Errors
    /// When the packages cannot be had, or do not look like a kernel.
    pub(crate) fn cloud(suite: &Suite) -> Result<Self> {
        let meta = format!("linux-image-cloud-{}", suite.architecture().debian());
        let package = suite
            .dependencies(&meta)?
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))
            .with_context(|| format!("{meta} depends on no linux-image-…"))?;
        let mut folders = vec![suite.unpacked(&package)?];
        // Newer suites split the package: linux-image-… has the relations, linux-binary-… and linux-modules-… the files.
        for part in suite.dependencies(&package)? {
            if part.starts_with("linux-binary-") || part.starts_with("linux-modules-") {
                folders.push(suite.unpacked(&part)?);
            }
        }
        Self::in_folders(&folders).with_context(|| format!("{package} is not a kernel as expected"))
    }

    fn in_folders(folders: &[PathBuf]) -> Result<Self> {
        let mut images = Vec::new();
        let mut modules = HashMap::new();
        for folder in folders {
            find_files(folder, &mut |path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name.starts_with("vmlinuz") {
                    images.push(path.to_owned());
                } else if let Some(module) = name.split(".ko").next().filter(|module| *module != name) {
                    modules.insert(canonical(module), path.to_owned());
                }
            })?;
        }
        let image = images.into_iter().next().context("it has no vmlinuz")?;
        let module = modules.values().next().context("it has no modules")?;
        let release = module
            .components()
            .skip_while(|part| part.as_os_str() != "modules")
            .nth(1)
            .context("its modules are not below lib/modules/VERSION")?;
        let release = release.as_os_str().to_string_lossy().into_owned();
        Ok(Self { image, release, modules })
    }

    /// The files of the named modules and of all that they need, in an order in which they can be inserted. A module
    /// that is not there is left out: it is built in, or its driver does not exist in this version.
    ///
    /// # Errors
    /// When a module cannot be read, or needs itself.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in names {
            self.add(&canonical(name), &mut order, &mut seen)?;
        }
        order.into_iter().map(|name| self.decompressed(&name)).collect()
    }

    fn add(&self, name: &str, order: &mut Vec<String>, seen: &mut HashSet<String>) -> Result<()> {
        let Some(path) = self.modules.get(name) else { return Ok(()) };
        if order.iter().any(|done| done == name) {
            return Ok(());
        }
        if !seen.insert(name.to_owned()) {
            bail!("the module {name} needs itself");
        }
        let depends = capture_text(program("modinfo")?.args(["-F", "depends"]).arg(path))?;
        let soft = capture_text(program("modinfo")?.args(["-F", "softdep"]).arg(path))?;
        let soft =
            soft.split_whitespace().skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
        for needed in depends.trim().split(',').chain(soft).filter(|needed| !needed.is_empty()) {
            self.add(&canonical(needed), order, seen)?;
        }
        order.push(name.to_owned());
        Ok(())
    }

    fn decompressed(&self, name: &str) -> Result<Module> {
        let path = self.modules.get(name).with_context(|| format!("there is no module {name}"))?;
        let content = match path.extension().and_then(|extension| extension.to_str()) {
            Some("ko") => fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
            Some("xz") => capture(program("xz")?.arg("-dc").arg(path))?,
            _ => bail!("the module {} is compressed in a way that is not known here", path.display()),
        };
        Ok(Module { name: format!("{name}.ko"), content })
    }
}

/// A kernel module, decompressed.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its file name.
    pub(crate) name: String,
    /// The file.
    pub(crate) content: Vec<u8>,
}

/// The name by which the kernel knows a module.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn find_files(folder: &Path, found: &mut impl FnMut(&Path)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let kind = entry.file_type().with_context(|| format!("cannot look at {}", entry.path().display()))?;
        if kind.is_dir() {
            find_files(&entry.path(), found)?;
        } else if kind.is_file() {
            found(&entry.path());
        }
    }
    Ok(())
}

/// The static busybox of a suite.
///
/// # Errors
/// When the package cannot be had.
pub(crate) fn busybox(suite: &Suite) -> Result<PathBuf> {
    file_of(suite, "busybox-static", &["usr/bin/busybox", "bin/busybox"])
}

/// The static file system check of a suite, for the inside of the lab.
///
/// # Errors
/// When the package cannot be had.
pub(crate) fn e2fsck(suite: &Suite) -> Result<PathBuf> {
    file_of(suite, "e2fsck-static", &["sbin/e2fsck.static", "usr/sbin/e2fsck.static"])
}

fn file_of(suite: &Suite, package: &str, places: &[&str]) -> Result<PathBuf> {
    let folder = suite.unpacked(package)?;
    places
        .iter()
        .map(|place| folder.join(place))
        .find(|path| path.is_file())
        .with_context(|| format!("{package} has none of {}", places.join(", ")))
}

/// The names under which a busybox can be called.
///
/// # Errors
/// When it does not run.
pub(crate) fn applets(busybox: &Path) -> Result<Vec<String>> {
    let listed = capture_text(Command::new(busybox).arg("--list")).context("the static busybox does not run here")?;
    Ok(listed.lines().filter(|name| *name != "busybox").map(str::to_owned).collect())
}

/// Puts a copy of `path` at `to`, whole or not at all.
///
/// # Errors
/// When it cannot be read or written.
pub(crate) fn copy(path: &Path, to: &Path) -> Result<()> {
    let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    paths::write_atomically(to, &content)
}
