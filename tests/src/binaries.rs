//! Where Bulkhead's binaries are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The binary `name`.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(folder).join(name);
    assert!(path.exists(), "{} is missing", path.display());
    path
}

fn run(cargo: &mut Command) {
    let status = cargo.status().expect("cargo does not start: set BULKHEAD_BIN_DIR");
    assert!(status.success(), "the binaries cannot be built");
}

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("BULKHEAD_BIN_DIR") {
        return folder.into();
    }
    // <target folder>/<triple>/<profile>/deps/<test program>
    let program = std::env::current_exe().expect("the test program has no path");
    let folder = program.parent().and_then(Path::parent).expect("the test program is not in a target folder");
    let target = folder.parent().and_then(Path::parent).expect("the test program is not in a target folder");
    // cargo has let go of its lock when it runs tests; it does not build the binaries of other packages by itself.
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "build",
        "--quiet",
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
    cargo.args(["-p", "tests"]);
    cargo.arg("--target-dir").arg(target).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    run(&mut cargo);
    if !folder.ends_with("release") {
        let mut hostile = Command::new(cargo.get_program());
        hostile.args(["build", "--quiet", "-p", "vmm-core", "-p", "device-procs", "-p", "forensics"]);
        for name in ["loader", "vmm", "serial", "virtio-blk", "inspector"] {
            hostile.arg("--bin").arg(format!("hostile-{name}"));
        }
        hostile.args(["--features", "vmm-core/hostile,device-procs/hostile,forensics/hostile"]);
        run(hostile.arg("--target-dir").arg(target).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")));
    }
    folder.to_owned()
}
