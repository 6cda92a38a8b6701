//! Every input that is kept, without a fuzzer: the seeds, and those on which something once failed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a panic is how a test fails")]

use harness::{TARGETS, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz").join(name)
}

/// The files of a folder by name; none where there is no folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeMap::new() };
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    entries.map(|entry| entry.unwrap().path()).map(|path| (name(&path), std::fs::read(&path).unwrap())).collect()
}

/// Says which input it was, if the harness panics on it.
struct Named<'a>(&'a Target, &'a str);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input is {} of the target {}", self.1, self.0.name);
        }
    }
}

fn replay(kind: &str) -> usize {
    let mut count = 0;
    for target in TARGETS {
        for (name, bytes) in files(&folder(kind).join(target.name)) {
            let _named = Named(target, &name);
            (target.run)(&bytes);
            count += 1;
        }
    }
    count
}

#[test]
fn every_seed_holds() {
    assert!(replay("seeds") >= TARGETS.len());
}

#[test]
fn every_input_that_once_failed_holds() {
    replay("regressions");
}

#[test]
fn seeds_in_the_tree_are_those_of_the_generator() {
    for target in TARGETS {
        let made: BTreeMap<_, _> = (target.seeds)().into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        assert!(files(&folder("seeds").join(target.name)) == made, "{}: run `cargo xtask fuzz --seeds`", target.name);
        assert!(!made.is_empty(), "{} has no seed", target.name);
    }
}

#[test]
fn every_folder_and_fuzzer_belongs_to_a_target() {
    let known: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    for kind in ["seeds", "regressions"] {
        for entry in std::fs::read_dir(folder(kind)).into_iter().flatten() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(known.contains(&name) || name == "README.md", "{kind}/{name} is of no target");
        }
    }
    let fuzzers = files(&folder("fuzz_targets"));
    assert_eq!(fuzzers.len(), known.len());
    for name in known {
        let source = fuzzers.get(&format!("{name}.rs")).unwrap_or_else(|| panic!("{name} has no fuzzer"));
        assert!(
            String::from_utf8_lossy(source).contains(&format!("run(\"{name}\"")),
            "{name}.rs fuzzes something else"
        );
    }
}
