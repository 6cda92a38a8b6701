//! Writes the bare-metal guests into a folder, for the benchmarks: `guests FOLDER`.

use anyhow::{Context, Result};
use std::path::PathBuf;
use tests::guest::Guest;

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("no folder for the guests")?);
    for (name, guest) in [("guest.elf", Guest::Long), ("guest-pvh.elf", Guest::Pvh), ("guest-quick.elf", Guest::Quick)]
    {
        let path = folder.join(name);
        std::fs::write(&path, guest.bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
