//! Runs a broker and writes down the system calls of its jailed processes: `trace FOLDER BROKER arguments…`. With the
//! folder alone, waits until all that were traced so are gone, and prints what was written down.

use anyhow::{Context, Result};
use std::io::Write;
use std::path::PathBuf;
use tests::tracer::{collect, exec_traced};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("no folder for the traces")?);
    match arguments.next() {
        Some(broker) => exec_traced(&folder, &PathBuf::from(broker), &arguments.collect::<Vec<_>>()),
        None => Ok(std::io::stdout().write_all(collect(&folder)?.as_bytes())?),
    }
}
