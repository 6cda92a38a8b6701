//! Where things are: the repository, and the cache for everything that was downloaded or generated.
//!
//! The cache (`.cache/` in the repository, or `$BULKHEAD_CACHE`) may be deleted at any time. What is in it under its
//! final name is complete: everything is made under a temporary name and renamed.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The root of the repository: where cargo found this crate, not where it was when compiled, if cargo runs it.
pub(crate) fn repository() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The cache, made when missing.
pub(crate) fn cache() -> Result<PathBuf> {
    let path = match std::env::var_os("BULKHEAD_CACHE") {
        Some(path) if !path.is_empty() => std::path::absolute(&path)
            .with_context(|| format!("BULKHEAD_CACHE names no usable folder: {}", path.display()))?,
        _ => repository().join(".cache"),
    };
    directory(&path)?;
    Ok(path)
}

/// The folder `name` of the cache, made when missing.
pub(crate) fn cache_folder(name: &str) -> Result<PathBuf> {
    let path = cache()?.join(name);
    directory(&path)?;
    Ok(path)
}

/// Makes a folder and its parents.
pub(crate) fn directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Writes a file whole or not at all.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    directory(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot make a temporary file in {}", folder.display()))?;
    std::io::Write::write_all(&mut file, content).with_context(|| format!("cannot write {}", path.display()))?;
    // Temporary files are the owner's alone; what stays is for all to read.
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// A folder for one run of the lab, removed when dropped. What killed runs left behind is removed here as well.
pub(crate) fn run_folder() -> Result<TempDir> {
    let runs = cache_folder("runs")?;
    for entry in fs::read_dir(&runs).with_context(|| format!("cannot list {}", runs.display()))?.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next());
        if owner.is_none_or(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove the old {}", entry.path().display()))?;
        }
    }
    tempfile::Builder::new()
        .prefix(&format!("{}-", std::process::id()))
        .tempdir_in(&runs)
        .with_context(|| format!("cannot make a folder in {}", runs.display()))
}
