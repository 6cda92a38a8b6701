//! `broker inspect`: what an image or a kernel is, and what will go wrong with it, without booting it.

use super::Inspection;
use crate::cli::{Cli, InspectArgs};
use crate::config::parse_size;
use crate::files::{Kind, open_file};
use crate::process::Spawner;
use crate::report;
use crate::timings::Timings;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use wire::message::{Architecture, InspectedGuest, InspectorTask};
use wire::{CommandLine, MemoryBytes};

/// `broker inspect`.
pub(crate) fn main(cli: &Cli, args: &InspectArgs) -> ExitCode {
    let inspection = inspect(cli, args).unwrap_or_else(Inspection::failed);
    if args.json {
        report::print_json(&inspection.json(), false);
        inspection.cannot_tell.iter().for_each(|why| report::say(why));
    } else {
        report::print_lines(&inspection.lines(&args.image.display().to_string()));
    }
    ExitCode::from(inspection.verdict().code())
}

fn inspect(cli: &Cli, args: &InspectArgs) -> Result<Inspection, String> {
    let cmdline = CommandLine::try_from(args.cmdline.clone()).map_err(|error| format!("--cmdline: {error}"))?;
    let memory = args.memory.as_deref().map(guest_memory).transpose()?;
    let image = open(&args.image)?;
    let kernel = args.kernel.as_deref().map(open).transpose()?;
    let architecture = args.arch.map_or_else(native, Into::into);
    let task = InspectorTask::Inspect {
        guest: InspectedGuest { architecture, cmdline, memory },
        has_image: true,
        has_kernel: kernel.is_some(),
        may_be_kernel: kernel.is_none(),
    };
    let fds: Vec<_> = [Some(&image), kernel.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect();
    let mut spawner = Spawner::new(cli.bin_dir.as_deref(), Timings::default());
    super::run_alone(&mut spawner, args.audit, task, &fds).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

fn open(path: &Path) -> Result<File, String> {
    let opened = open_file(path, Kind::Image, false).map_err(|error| {
        format!("{} {error}; name a file system, an initramfs, a disk, an archive or a kernel", path.display())
    })?;
    Ok(opened.file)
}

fn guest_memory(text: &str) -> Result<MemoryBytes, String> {
    let bytes = parse_size(text, Some(1 << 20)).map_err(|error| format!("--memory is {text:?}; {error}"))?;
    MemoryBytes::try_from(bytes).map_err(|error| format!("--memory: {error}"))
}

/// The architecture of this host, which its guests have.
pub(crate) fn native() -> Architecture {
    match policies::rules::Arch::native() {
        policies::rules::Arch::X86_64 => Architecture::X86_64,
        policies::rules::Arch::Aarch64 => Architecture::Aarch64,
    }
}

/// The exit codes, as `--help` shows them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes (the JSON verdict in brackets):
   0  nothing is wrong [clean]
   1  it may fail [warnings]
   2  it will not boot [will-not-boot]
   3  it could not be looked at, or is nothing that is known [cannot-tell]";

/// What a command line of `broker inspect` and `broker explain` that is wrong ends with: 2 means something else there.
pub(crate) const WRONG_USAGE: u8 = 3;
