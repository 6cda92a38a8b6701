//! The repository's own lints: small rules that no other tool checks.

use crate::{paths, unsafety};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The longest file in lines.
const MAX_LINES: usize = 500;

/// Checks all rules and gives every breach as a sentence with its place.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn check() -> Result<Vec<String>> {
    let root = paths::repository();
    let mut files = Vec::new();
    list(&root, &mut files)?;
    let mut problems = Vec::new();
    let mut selectors: Vec<(PathBuf, PathBuf)> = Vec::new();
    for path in files {
        let name = path.strip_prefix(&root).unwrap_or(&path).to_owned();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !matches!(extension, "rs" | "toml" | "md" | "sh" | "") || name.ends_with("Cargo.lock") {
            continue;
        }
        // What is no text needs none of these rules.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        problems.extend(machine_paths(&name, &text));
        if extension == "rs" {
            problems.extend(length(&name, &text));
            problems.extend(header(&name, &text));
            if !is_guest(&name) {
                problems.extend(unsafety::problems(&name, &text));
            }
            if has_target_cfg(&text) {
                selectors.push((crate_of(&name), name.clone()));
            }
        }
        if extension == "toml" && name.starts_with("policies/seccomp") {
            problems.extend(policy(&name, &text));
        }
    }
    problems.extend(several_selectors(&mut selectors));
    Ok(problems)
}

/// The Rust files of the programs that run on a host, by name, with their text.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn sources() -> Result<Vec<(PathBuf, String)>> {
    let root = paths::repository();
    let mut files = Vec::new();
    list(&root, &mut files)?;
    let name = |path: &Path| path.strip_prefix(&root).unwrap_or(path).to_owned();
    let rust = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.filter(|path| !is_guest(&name(path)))
        .map(|path| {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((name(path), text))
        })
        .collect()
}

/// The bare-metal guest of the tests has a machine of its own to break.
fn is_guest(name: &Path) -> bool {
    name.starts_with("tests/guest")
}

/// All files that belong to the repository: those of folders that are neither hidden nor built.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hidden = name.starts_with('.') && name != ".ci" && name != ".cargo";
        if hidden || name.starts_with("target") || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn length(name: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > MAX_LINES).then(|| format!("{}: has {lines} lines, the limit is {MAX_LINES}", name.display()))
}

/// A file's first lines say its job.
fn header(name: &Path, text: &str) -> Option<String> {
    // Attributes of the whole file may stand first.
    let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!")).unwrap_or_default();
    (!first.starts_with("//!")).then(|| format!("{}:1: does not begin with a //! comment", name.display()))
}

/// The crate of a file: the first part of its path.
fn crate_of(name: &Path) -> PathBuf {
    name.iter().next().map(PathBuf::from).unwrap_or_default()
}

fn has_target_cfg(text: &str) -> bool {
    // Written in two parts, so that this file is not one of those that it looks for.
    let condition = concat!("target", "_arch");
    text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(condition))
}

/// One file in each crate selects the architecture.
fn several_selectors(selectors: &mut [(PathBuf, PathBuf)]) -> Vec<String> {
    selectors.sort();
    let repeated = selectors.windows(2).filter_map(|pair| match pair {
        [(a, first), (b, second)] if a == b => Some(format!(
            "{}: selects the architecture, which {} does for the crate {}",
            second.display(),
            first.display(),
            a.display()
        )),
        _ => None,
    });
    repeated.collect()
}

/// Each entry of a seccomp policy says why it is there.
fn policy(name: &Path, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut entry: Option<(usize, bool)> = None;
    let end = |entry: Option<(usize, bool)>, problems: &mut Vec<String>| {
        if let Some((line, false)) = entry {
            problems.push(format!("{}:{line}: this entry has no why", name.display()));
        }
    };
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.starts_with('[') && !line.starts_with("[{") {
            end(entry.take(), &mut problems);
            entry = (line == "[[thread.allow]]").then_some((number, false));
        } else if let Some(why) = line.strip_prefix("why").and_then(|rest| rest.trim_start().strip_prefix('=')) {
            let empty = why.trim().trim_matches('"').trim().is_empty();
            entry = entry.map(|(line, _)| (line, !empty));
        }
    }
    end(entry, &mut problems);
    problems
}

/// Nothing in the tree names a place of the machine that it was written on.
fn machine_paths(name: &Path, text: &str) -> Vec<String> {
    // Written in parts, as above.
    let forbidden = [concat!("/ho", "me/"), concat!("/ro", "ot/."), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
    let lines = (1..).zip(text.lines());
    lines
        .filter_map(|(number, line)| {
            let found = forbidden.iter().find(|place| line.contains(*place))?;
            Some(format!("{}:{number}: names a place of one machine, {found}…", name.display()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_is_too_long_is_reported() {
        assert!(length(Path::new("a.rs"), &"\n".repeat(MAX_LINES + 1)).is_some());
        assert!(length(Path::new("a.rs"), &"\n".repeat(MAX_LINES)).is_none());
    }

    #[test]
    fn file_without_a_header_is_reported() {
        assert!(header(Path::new("a.rs"), "use std::fs;\n").is_some());
        assert!(header(Path::new("a.rs"), "\n//! A job.\n").is_none());
    }

    #[test]
    fn second_selector_of_a_crate_is_reported() {
        let condition = format!("#[cfg({}_arch = \"x86_64\")]\n", "target");
        assert!(has_target_cfg(&condition));
        assert!(!has_target_cfg(&format!("// {condition}")));
        let file = |name: &str| (crate_of(Path::new(name)), PathBuf::from(name));
        assert_eq!(several_selectors(&mut [file("a/x.rs"), file("b/y.rs")]).len(), 0);
        assert_eq!(several_selectors(&mut [file("a/x.rs"), file("b/y.rs"), file("a/z.rs")]).len(), 1);
    }

    #[test]
    fn policy_entry_without_a_reason_is_reported() {
        let good = "[[thread]]\nname = \"main\"\n[[thread.allow]]\nsyscall = \"read\"\nwhy = \"input\"\n";
        let bad = "[[thread.allow]]\nsyscall = \"write\"\nwhy = \"\"\n[[thread.allow]]\nsyscall = \"close\"\n";
        assert_eq!(policy(Path::new("p.toml"), good), Vec::<String>::new());
        assert_eq!(policy(Path::new("p.toml"), bad).len(), 2);
    }

    #[test]
    fn place_of_one_machine_is_reported() {
        let text = format!("let a = \"/{}/x\";\n", "home");
        assert_eq!(machine_paths(Path::new("a.rs"), &text).len(), 1);
    }
}
