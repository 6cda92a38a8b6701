//! root= against what is there. The image is taken for the first disk.

use super::disk::Table;
use super::scene::{Scene, Words};
use wire::report::Confidence::{Certain, Likely};

/// What the disk has.
#[derive(Debug)]
pub(crate) enum Layout<'a> {
    /// One file system of this kind.
    Whole(&'a str),
    /// Partitions, and what file system begins at the first byte all the same, as on an ISO image that is also a disk.
    Partitions(&'a Table, Option<&'a str>),
}

/// What root= asks for.
#[derive(Debug, PartialEq, Eq)]
enum Root<'a> {
    /// The first disk, or a partition of it.
    First(Option<u32>),
    /// A partition by the id in the table, in lower case.
    Uuid(String),
    /// A partition by its name in the table.
    Label(&'a str),
    /// A file system, which only an initramfs can find.
    Filesystem,
    /// Something of which this image says nothing.
    Other,
}

fn parse(root: &str) -> Root<'_> {
    if let Some(uuid) = root.strip_prefix("PARTUUID=") {
        return Root::Uuid(uuid.to_ascii_lowercase());
    }
    if let Some(label) = root.strip_prefix("PARTLABEL=") {
        return Root::Label(label);
    }
    if root.starts_with("UUID=") || root.starts_with("LABEL=") {
        return Root::Filesystem;
    }
    match root.strip_prefix("/dev/vda").or_else(|| root.strip_prefix("vda")) {
        Some("") => Root::First(None),
        Some(number) => number.parse().map_or(Root::Other, |number| Root::First(Some(number))),
        None => Root::Other,
    }
}

/// Whether root= names a partition of the first disk, or one by its id or name.
pub(crate) fn names_a_partition(scene: &Scene<'_>) -> bool {
    let root = scene.parameter("root").map(parse);
    matches!(root, Some(Root::First(Some(_)) | Root::Uuid(_) | Root::Label(_)))
}

/// Checks root= against the disk; the partition that it names.
pub(crate) fn root(scene: &mut Scene<'_>, layout: &Layout<'_>) -> Option<u32> {
    if let Layout::Whole(kind) = layout {
        types(scene, kind);
    }
    let given = scene.parameter("root")?;
    let evidence = [format!("the command line has root={given}")];
    let parsed = parse(given);
    if parsed == Root::Filesystem {
        let words = Words {
            what: &format_args!("root={given} is not understood by the kernel itself"),
            why: &"LABEL= and UUID= are resolved by programs in an initramfs; without one: `Cannot open root device`, unknown-block(0,0)",
            remedy: &"without an initramfs, name the disk (root=/dev/vda) or the partition (root=PARTUUID=...)",
        };
        scene.warn("root-needs-initramfs", Likely, &words, &evidence);
        return None;
    }
    match layout {
        Layout::Whole(_) => {
            of_whole(scene, &parsed, given, &evidence);
            None
        }
        Layout::Partitions(_, Some(_)) if parsed == Root::First(None) => None,
        Layout::Partitions(table, _) => of_partitions(scene, &parsed, given, table, &evidence),
    }
}

fn of_whole(scene: &mut Scene<'_>, parsed: &Root<'_>, given: &str, evidence: &[String]) {
    if matches!(parsed, Root::First(Some(_)) | Root::Uuid(_) | Root::Label(_)) {
        let words = Words {
            what: &format_args!("root={given} names a partition, but the image has none"),
            why: &"it is one file system from its first byte on: `Cannot open root device`",
            remedy: &"use root=/dev/vda",
        };
        scene.fatal("root-names-no-partition", Likely, &words, evidence);
    }
}

fn of_partitions(
    scene: &mut Scene<'_>,
    parsed: &Root<'_>,
    given: &str,
    table: &Table,
    evidence: &[String],
) -> Option<u32> {
    let has = |wanted: u32| table.partitions.iter().find(|partition| partition.number == wanted);
    let found = match parsed {
        Root::First(Some(number)) => has(*number),
        Root::Uuid(uuid) => {
            // PARTUUID=.../PARTNROFF=1 counts from another one, and is left to the kernel.
            if uuid.contains('/') {
                return None;
            }
            table.partitions.iter().find(|partition| partition.uuid == *uuid)
        }
        Root::Label(label) => table.partitions.iter().find(|partition| partition.label == *label),
        Root::First(None) => {
            let words = Words {
                what: &"root=/dev/vda names the whole disk, but the disk has partitions",
                why: &"no file system begins at its first byte: `Unable to mount root fs`",
                remedy: &"name the partition, as root=/dev/vda1",
            };
            scene.fatal("root-names-whole-disk", Likely, &words, &numbers(table));
            return None;
        }
        Root::Filesystem | Root::Other => return None,
    };
    match found {
        Some(partition) => {
            scene.fact("root-partition", partition.number);
            Some(partition.number)
        }
        None => {
            let words = Words {
                what: &format_args!("root={given} names a partition that the disk does not have"),
                why: &"`Cannot open root device`; with rootwait, the kernel waits for it forever",
                remedy: &"name one that is there",
            };
            let mut lines = evidence.to_vec();
            lines.extend(numbers(table));
            scene.fatal("root-partition-missing", Likely, &words, &lines);
            None
        }
    }
}

/// What there is instead.
fn numbers(table: &Table) -> Vec<String> {
    let line = |partition: &super::disk::Partition| {
        let label = if partition.label.is_empty() { String::new() } else { format!(" PARTLABEL={}", partition.label) };
        format!("there is /dev/vda{} PARTUUID={}{label}", partition.number, partition.uuid)
    };
    table.partitions.iter().take(16).map(line).collect()
}

/// rootfstype= against the file system.
fn types(scene: &mut Scene<'_>, kind: &str) {
    let Some(given) = scene.parameter("rootfstype") else { return };
    let fits = given.split(',').any(|own| own == kind || (kind == "ext4" && matches!(own, "ext2" | "ext3" | "auto")));
    if !fits {
        let words = Words {
            what: &format_args!("rootfstype={given}, but the file system is {kind}"),
            why: &"the kernel tries no other: `Unable to mount root fs`",
            remedy: &format_args!("use rootfstype={kind}, or leave it out"),
        };
        scene.fatal("root-type-wrong", Certain, &words, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_parameters_are_understood() {
        assert_eq!(parse("/dev/vda"), Root::First(None));
        assert_eq!(parse("/dev/vda12"), Root::First(Some(12)));
        assert_eq!(parse("/dev/vdb1"), Root::Other);
        assert_eq!(parse("PARTUUID=ABC-01"), Root::Uuid("abc-01".into()));
        assert_eq!(parse("LABEL=root"), Root::Filesystem);
        assert_eq!(parse("254:1"), Root::Other);
    }
}
