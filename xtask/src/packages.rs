//! Debian packages: the tools that are missing are installed, what goes into images is only downloaded and unpacked.
//!
//! Downloads go through apt with a state of its own in the cache, for any suite of the mirror that the machine is
//! configured for: apt checks the signatures and the checksums, and neither root nor the machine's own lists are needed.

use crate::architecture::Architecture;
use crate::command::{capture, capture_text, find_program, progress, run};
use crate::paths;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program and the Debian package that brings it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// What images are made with.
pub(crate) const IMAGE_TOOLS: &[Tool] =
    &[tool("mke2fs", "e2fsprogs"), tool("modinfo", "kmod"), tool("xz", "xz-utils"), tool("setpriv", "util-linux")];
/// What the x86_64 lab runs on.
pub(crate) const LAB_TOOLS: &[Tool] = &[tool("qemu-system-x86_64", "qemu-system-x86")];
/// What small programs of both architectures are linked with.
pub(crate) const COMPILERS: &[Tool] =
    &[tool("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"), tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")];
/// What libFuzzer is built with.
pub(crate) const FUZZ_TOOLS: &[Tool] = &[tool("c++", "g++")];

/// What the aarch64 lab runs on.
pub(crate) const ARM_LAB_TOOLS: &[Tool] = &[tool("qemu-system-aarch64", "qemu-system-arm")];
/// What programs for aarch64 are built with on another machine: a file that tells that a package is there, and the
/// package. Debian's own rustc is the one for which there is a standard library of another architecture everywhere.
const CROSS_TOOLS: &[(&str, &str)] = &[
    // There are other packages with the same program, of another version than the standard library.
    ("/usr/share/doc/rustc-web", "rustc-web"),
    ("/usr/lib/rustlib/aarch64-unknown-linux-gnu", "libstd-rust-web-dev:arm64"),
    ("/usr/bin/aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    ("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross"),
];
/// The compiler that builds for aarch64 on another machine.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Installs the packages of the tools that are not there, by apt-get, with sudo when needed.
///
/// # Errors
/// When apt-get or sudo is missing or fails.
pub(crate) fn install(tools: &[Tool]) -> Result<()> {
    let missing = tools.iter().filter(|tool| find_program(tool.program).is_none());
    install_packages(missing.map(|tool| tool.package).collect())
}

/// Installs what a build for aarch64 needs on a machine that is none.
///
/// # Errors
/// As [`install`].
pub(crate) fn install_cross_tools() -> Result<()> {
    let missing = CROSS_TOOLS.iter().filter(|(file, _)| !Path::new(file).exists());
    let missing: Vec<_> = missing.map(|(_, package)| *package).collect();
    if missing.iter().any(|package| package.ends_with(":arm64")) && find_program("dpkg").is_some() {
        run(privileged("dpkg")?.args(["--add-architecture", "arm64"]))?;
    }
    install_packages(missing)
}

fn install_packages(mut missing: Vec<&str>) -> Result<()> {
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if find_program("apt-get").is_none() {
        bail!("these Debian packages are needed, but there is no apt-get here: {names}");
    }
    progress(format_args!("installing {names}"));
    // The lists of a fresh container are empty, those of an old one name files that the mirror has dropped.
    run(privileged("apt-get")?.args(["update", "--quiet"]))?;
    run(privileged("apt-get")?
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "--quiet", "--yes", "--no-install-recommends"])
        .args(&missing))
    .with_context(|| format!("cannot install {names}"))
}

/// A command that runs as root.
fn privileged(program: &str) -> Result<Command> {
    if nix::unistd::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    if find_program("sudo").is_none() {
        bail!("`{program}` must run as root, and there is no sudo here: run this as root, or install it yourself");
    }
    let mut command = Command::new("sudo");
    command.args(["--", "env", "DEBIAN_FRONTEND=noninteractive", program]);
    Ok(command)
}

/// Where Debian keeps releases that mirrors have dropped.
const ARCHIVE: &str = "http://archive.debian.org/debian";

/// A suite of the Debian archive for one architecture, with an apt state of its own.
#[derive(Debug)]
pub(crate) struct Suite {
    name: String,
    architecture: Architecture,
    folder: PathBuf,
}

impl Suite {
    /// Opens a suite by its codename; its package list is fetched when it is not
    /// in the cache or older than a day.
    ///
    /// # Errors
    /// When apt is not there, has no Debian mirror configured, or the mirror does not have the suite.
    pub(crate) fn open(name: &str, architecture: Architecture) -> Result<Self> {
        let folder = paths::cache_folder("apt")?.join(format!("{name}-{}", architecture.debian()));
        let suite = Self { name: name.to_owned(), architecture, folder };
        let stamp = suite.folder.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|at| at.elapsed().ok())
            .is_some_and(|age| age.as_secs() < 24 * 3600);
        if !fresh {
            match suite.update().with_context(|| format!("cannot read the package list of Debian {name}")) {
                Ok(()) => paths::write_atomically(&stamp, b"")?,
                Err(error) if stamp.exists() => progress(format_args!("{error:#}; going on with the one in the cache")),
                Err(error) => return Err(error),
            }
        }
        Ok(suite)
    }

    /// The same suite for this machine, if it is not that already.
    ///
    /// # Errors
    /// As [`Suite::open`].
    pub(crate) fn native(&self) -> Result<Option<Self>> {
        let native = Architecture::native();
        (self.architecture != native).then(|| Self::open(&self.name, native)).transpose()
    }

    /// The architecture of its packages.
    pub(crate) fn architecture(&self) -> Architecture {
        self.architecture
    }

    fn update(&self) -> Result<()> {
        let architecture = self.architecture.debian();
        progress(format_args!("reading the package list of Debian {} ({architecture})", self.name));
        for folder in ["lists/partial", "cache/archives/partial"] {
            paths::directory(&self.folder.join(folder))?;
        }
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let signed = if Path::new(keyring).exists() { format!(" signed-by={keyring}") } else { String::new() };
        let read_from = |mirror: &str| {
            let source = format!("deb [arch={architecture}{signed}] {mirror} {} main\n", self.name);
            paths::write_atomically(&self.folder.join("sources.list"), source.as_bytes())?;
            // apt goes on with old or no lists when the mirror fails, unless told otherwise.
            capture(self.apt("apt-get").args(["-o", "APT::Update::Error-Mode=any", "update"]))
        };
        let mirror = mirror()?;
        // Mirrors drop a release some time after its support has ended; what fails there as well is told of the mirror.
        read_from(&mirror).or_else(|error| read_from(ARCHIVE).map_err(|_neither| error)).map(drop)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        for option in [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Dir::Etc::preferencesparts=-".to_owned(),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            // What the machine has installed must not influence what is found.
            "Dir::State::status=/dev/null".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The sandbox user cannot write into a folder of the one who runs this.
            "APT::Sandbox::User=".to_owned(),
            format!("APT::Architecture={}", self.architecture.debian()),
            format!("APT::Architectures={}", self.architecture.debian()),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command.env("LC_ALL", "C");
        command
    }

    /// A field of a package's newest version.
    ///
    /// # Errors
    /// When the suite does not have the package, or the package the field.
    pub(crate) fn field(&self, package: &str, field: &str) -> Result<String> {
        let shown = capture_text(self.apt("apt-cache").args(["show", "--no-all-versions", package]))
            .with_context(|| format!("Debian {} has no package {package}", self.name))?;
        shown
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
            .map(str::to_owned)
            .with_context(|| format!("{package} of Debian {} has no {field}", self.name))
    }

    /// The packages that a package depends on; of alternatives, the first.
    ///
    /// # Errors
    /// As [`Suite::field`].
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let depends = self.field(package, "Depends")?;
        Ok(depends.split(',').filter_map(|one| one.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// The folder into which the newest version of a package is unpacked, which is done when it is not in the cache.
    ///
    /// # Errors
    /// When the package cannot be found, downloaded or unpacked.
    pub(crate) fn unpacked(&self, package: &str) -> Result<PathBuf> {
        let version = self.field(package, "Version")?.replace([':', '~'], "_");
        let packages = paths::cache_folder("packages")?;
        let folder = packages.join(format!("{package}_{version}_{}", self.architecture.debian()));
        if folder.is_dir() {
            return Ok(folder);
        }
        progress(format_args!("downloading {package} {version}"));
        let temporary = tempfile::tempdir_in(&packages)
            .with_context(|| format!("cannot make a folder in {}", packages.display()))?;
        capture(self.apt("apt-get").arg("download").arg(package).current_dir(temporary.path()))
            .with_context(|| format!("cannot download {package} of Debian {}", self.name))?;
        let deb = fs::read_dir(temporary.path())?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get said that it downloaded {package}, but there is no file"))?;
        let content = temporary.path().join("content");
        capture(Command::new("dpkg").arg("-x").arg(&deb).arg(&content))?;
        // Another run may have been faster; its result is as good.
        match fs::rename(&content, &folder) {
            Err(_) if folder.is_dir() => {}
            renamed => renamed.with_context(|| format!("cannot make {}", folder.display()))?,
        }
        Ok(folder)
    }
}

/// The base address of the machine's Debian mirror, from apt's configuration.
fn mirror() -> Result<String> {
    let listed = capture_text(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(LABEL)",
        "Created-By: Packages",
    ]))
    .context("cannot ask apt for its sources; downloads need a Debian machine")?;
    choose_mirror(&listed).context("apt has no Debian mirror configured, look into /etc/apt/sources.list")
}

/// Of lines "address label", the address of the main archive; the security archive has another label, and no lists at
/// all mean no labels.
fn choose_mirror(listed: &str) -> Option<String> {
    let mut lines = listed.lines().filter_map(|line| {
        let (address, label) = line.split_once(' ').unwrap_or((line, ""));
        (!address.is_empty()).then_some((address, label.trim()))
    });
    let mut unlabelled = None;
    let main = lines.find(|(address, label)| {
        if label.is_empty() && address.trim_end_matches('/').ends_with("/debian") {
            unlabelled.get_or_insert(*address);
        }
        *label == "Debian"
    });
    main.map(|(address, _)| address).or(unlabelled).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::choose_mirror;

    #[test]
    fn main_archive_is_chosen_over_security_and_foreign_ones() {
        let listed = "http://a.example/debian-security/ Debian-Security\nhttps://b.example/x/ x\nhttp://a.example/debian/ Debian\n";
        assert_eq!(choose_mirror(listed).as_deref(), Some("http://a.example/debian/"));
    }

    #[test]
    fn mirror_without_lists_is_recognised_by_its_path() {
        let listed = "http://a.example/debian-security/ \nhttp://a.example/debian/ \n";
        assert_eq!(choose_mirror(listed).as_deref(), Some("http://a.example/debian/"));
    }

    #[test]
    fn no_debian_mirror_is_none() {
        assert_eq!(choose_mirror("https://b.example/x/ x\n"), None);
        assert_eq!(choose_mirror(""), None);
    }
}
