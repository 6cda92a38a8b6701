//! `cargo xtask lab`: the lab with a shell or a command in it.

use crate::binaries::Binaries;
use crate::console::Patience;
use crate::emulator::Emulator;
use crate::images::{self, GuestFiles};
use crate::lab::{self, Lab};
use anyhow::Result;
use std::time::Duration;

/// Starts the lab; gives the exit status of the command or of the shell.
///
/// # Errors
/// When something cannot be had, or the lab fails.
pub(crate) fn run(emulator: Emulator, command: Option<&str>, bare: bool) -> Result<i32> {
    let lab = Lab::prepare(emulator)?;
    let guest = GuestFiles::make(&lab.folder().join("guest"), &lab.programs, lab.kernel())?;
    let mut disk = lab.disk()?;
    for file in [&guest.kernel, &guest.initrd, &guest.root] {
        disk.copy(&images::in_lab("guest", file)?, file);
    }
    if !bare {
        for program in Binaries::build_for(lab.architecture())?.programs {
            disk.program(&images::in_lab("bin", &program)?, &program);
        }
    }
    let environment = "#!/bin/sh\nexport PATH=$PATH:/bulkhead/bin\n";
    match command {
        Some(command) => {
            disk.script("bulkhead/run", format!("{environment}{command}\n"));
            let patience = Patience { total: Duration::from_secs(3600), silence: Duration::from_secs(600) };
            lab.run("lab", &disk, lab::watch(patience, |line| println!("{line}")))
        }
        None => {
            let size = crate::demo::terminal_size();
            let shell = "echo 'bulkhead-lab: terminal'\nexec sh -l\n";
            disk.script("bulkhead/run", format!("{environment}{size}{shell}"));
            lab.run("lab", &disk, lab::terminal)
        }
    }
}
