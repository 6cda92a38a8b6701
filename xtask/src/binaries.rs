//! What cargo builds: the broker with its processes, and the test programs, for this machine or for the other lab.

use crate::architecture::Architecture;
use crate::command::{cargo, progress};
use crate::packages;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a build is optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build.
    Dev,
    /// Quick to run.
    Release,
}

/// The built programs, all in one folder.
#[derive(Debug)]
pub(crate) struct Binaries {
    /// The folder; the broker looks for its processes beside itself.
    pub(crate) folder: PathBuf,
    /// The programs.
    pub(crate) programs: Vec<PathBuf>,
}

impl Binaries {
    /// Builds the broker and all its processes, and those that the tests put into their places.
    ///
    /// # Errors
    /// When cargo fails, or builds no broker.
    pub(crate) fn build(profile: Profile) -> Result<Self> {
        progress("building the broker and its processes");
        let mut arguments = vec!["build", "--workspace", "--exclude", "xtask", "--bins"];
        if profile == Profile::Release {
            arguments.push("--release");
        }
        let mut programs = built(cargo().args(arguments), "bin")?;
        if profile == Profile::Dev {
            programs.extend(built(hostile(&mut with("build")), "bin")?);
        }
        Self::of(programs)
    }

    /// As [`Binaries::build`], to be run on an `architecture`: optimised where the lab must emulate it.
    ///
    /// # Errors
    /// As [`Binaries::build`], and when the tools of a cross build are missing.
    pub(crate) fn build_for(architecture: Architecture) -> Result<Self> {
        if architecture == Architecture::native() {
            return Self::build(Profile::Dev);
        }
        progress("building the broker and its processes for aarch64");
        let mut command = cross("build", architecture)?;
        command.args([
            "--release",
            "--bins",
            "-p",
            "broker",
            "-p",
            "vmm-core",
            "-p",
            "device-procs",
            "-p",
            "forensics",
        ]);
        let mut programs = built(&mut command, "bin")?;
        programs.extend(built(hostile(&mut cross("build", architecture)?), "bin")?);
        Self::of(programs)
    }

    /// As [`Binaries::build_for`], with what the tests need to trace them.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn build_traced_for(architecture: Architecture) -> Result<Self> {
        if architecture == Architecture::native() {
            return Self::build(Profile::Dev);
        }
        progress("building the broker, its processes and the tracer for aarch64");
        let mut command = cross("build", architecture)?;
        let packages = [
            "--release",
            "--bins",
            "-p",
            "broker",
            "-p",
            "vmm-core",
            "-p",
            "device-procs",
            "-p",
            "forensics",
            "-p",
            "tests",
        ];
        Self::of(built(command.args(packages), "bin")?)
    }

    fn of(built: Vec<TestProgram>) -> Result<Self> {
        let programs: Vec<_> = built.into_iter().map(|built| built.path).collect();
        let broker = programs.iter().find(|path| path.ends_with("broker")).context("cargo built no broker")?;
        let folder = broker.parent().context("the broker is in no folder")?.to_owned();
        Ok(Self { folder, programs })
    }
}

/// A test program.
#[derive(Debug)]
pub(crate) struct TestProgram {
    /// The name of its target.
    pub(crate) name: String,
    /// The program.
    pub(crate) path: PathBuf,
}

/// Builds the programs of the integration tests in `tests/`.
///
/// # Errors
/// When cargo fails.
pub(crate) fn integration_tests() -> Result<Vec<TestProgram>> {
    progress("building the end-to-end tests");
    built(cargo().args(["test", "--no-run", "--package", "tests", "--test", "*"]), "test")
}

/// Builds one of the programs of the integration tests, to be run on an `architecture`.
///
/// # Errors
/// As [`Binaries::build_for`].
pub(crate) fn integration_test(name: &str, architecture: Architecture) -> Result<Vec<TestProgram>> {
    progress(format_args!("building the end-to-end tests {name}"));
    let mut command = if architecture == Architecture::native() {
        with("test")
    } else {
        let mut command = cross("test", architecture)?;
        command.arg("--release");
        command
    };
    built(command.args(["--no-run", "--package", "tests", "--test", name]), "test")
}

/// Builds the binaries with the way in for what a captured process tries; never in a release build, which refuses them.
fn hostile(command: &mut Command) -> &mut Command {
    command.args(["-p", "vmm-core", "-p", "device-procs", "-p", "forensics"]);
    command.args(["--features", "vmm-core/hostile,device-procs/hostile,forensics/hostile"]);
    for name in ["loader", "vmm", "serial", "virtio-blk", "inspector"] {
        command.arg("--bin").arg(format!("hostile-{name}"));
    }
    command
}

fn with(task: &str) -> Command {
    let mut command = cargo();
    command.arg(task);
    command
}

/// A cargo that builds for another architecture, with a compiler that is not the one of this repository's toolchain and
/// therefore into a folder of its own.
fn cross(task: &str, architecture: Architecture) -> Result<Command> {
    if architecture != Architecture::Aarch64 {
        bail!("programs for x86_64 are built on x86_64 only");
    }
    packages::install_cross_tools()?;
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) if !folder.is_empty() => std::path::absolute(folder).context("CARGO_TARGET_DIR is not usable")?,
        _ => crate::paths::repository().join("target"),
    };
    let mut command = with(task);
    command.args(["--target", "aarch64-unknown-linux-gnu", "--target-dir"]).arg(target.join("arm64"));
    // Link-time optimisation doubles the time of the build and saves none in the tests.
    command.env("RUSTC", packages::DEBIAN_RUSTC).env("CARGO_PROFILE_RELEASE_LTO", "off");
    // What is built for development is copied for each run of a test, in an emulated machine.
    command.env("CARGO_PROFILE_DEV_STRIP", "symbols").env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("RUSTC_WRAPPER");
    Ok(command)
}

/// Runs cargo and takes the programs of a kind (of cargo's target kinds) that it says it has built.
fn built(command: &mut Command, kind: &str) -> Result<Vec<TestProgram>> {
    let output = command
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| executable(line, kind)).collect())
}

/// The program of one of cargo's messages, if it is about one of that kind.
fn executable(message: &str, kind: &str) -> Option<TestProgram> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = Path::new(message.get("executable")?.as_str()?).to_owned();
    let target = message.get("target")?;
    target.get("kind")?.as_array()?.iter().find(|&is| is == kind)?;
    let name = target.get("name")?.as_str()?.to_owned();
    Some(TestProgram { name, path })
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn message_about_a_program_gives_its_path() {
        let message =
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"kvm"},"executable":"/t/deps/kvm-1"}"#;
        let program = executable(message, "test").unwrap();
        assert_eq!((program.name.as_str(), program.path.to_str()), ("kvm", Some("/t/deps/kvm-1")));
    }

    #[test]
    fn program_of_another_kind_is_none() {
        // cargo builds the binaries of a package along with its integration tests.
        let message =
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"stage"},"executable":"/t/stage"}"#;
        assert!(executable(message, "test").is_none());
        assert!(executable(message, "bin").is_some());
    }

    #[test]
    fn other_messages_are_none() {
        let library = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"wire"},"executable":null}"#;
        assert!(executable(library, "lib").is_none());
        assert!(executable("Compiling", "bin").is_none());
    }
}
