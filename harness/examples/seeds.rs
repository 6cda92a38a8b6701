//! Writes the seeds of every target into the folder that is named: `cargo xtask fuzz --seeds` calls it with `fuzz/seeds`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| std::io::Error::other("name the folder to write to"))?;
    for target in harness::TARGETS {
        let own = folder.join(target.name);
        if own.is_dir() {
            std::fs::remove_dir_all(&own)?;
        }
        std::fs::create_dir_all(&own)?;
        for (name, bytes) in (target.seeds)() {
            std::fs::write(own.join(name), bytes)?;
        }
    }
    Ok(())
}
