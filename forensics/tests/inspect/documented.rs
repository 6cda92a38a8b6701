//! The list of findings for people is that of the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// The ids that stand in calls that make findings.
fn made() -> BTreeSet<String> {
    let mut text = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/inspect"), &mut text);
    let calls = ["scene.fatal(", "scene.warn(", "scene.note(", "scene.find(("];
    let ids = calls.iter().flat_map(|call| text.split(call).skip(1)).filter_map(|rest| {
        let rest = rest.trim_start().strip_prefix('"')?;
        rest.split_once('"').map(|(id, _)| id.to_owned())
    });
    ids.collect()
}

#[test]
fn every_finding_is_in_the_list_for_people() {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/INSPECT.md");
    let list = fs::read_to_string(list).unwrap();
    let made = made();
    assert!(made.len() > 50, "{made:?}");
    let missing: Vec<_> = made.iter().filter(|id| !list.contains(&format!("`{id}`"))).collect();
    assert!(missing.is_empty(), "docs/INSPECT.md lacks {missing:?}");
}
