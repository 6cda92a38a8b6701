//! Any TOML and any flags: a plan whose parts fit together, or problems that each say where, what and what would be
//! right. Nothing is created either way.

use crate::seeds::Seed;
use broker::rehearsal::check;
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;

/// A folder with a kernel, an initrd and two images.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, bytes) in [("k", 8192), ("i", 8192), ("a", 1024), ("b", 1024)] {
            std::fs::write(folder.path().join(name), vec![1; bytes]).expect("a file");
        }
        folder
    });
    folder.path()
}

/// Flags, each ended by a NUL, after their number; then the file.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    let Some((count, mut rest)) = bytes.split_first() else { return };
    let mut flags = Vec::new();
    for _ in 0..count % 8 {
        let Some(end) = rest.iter().position(|byte| *byte == 0) else { break };
        let Ok(flag) = std::str::from_utf8(&rest[..end]) else { return };
        flags.push(flag);
        rest = &rest[end + 1..];
    }
    // What is no UTF-8 is refused before it is parsed.
    let Ok(text) = std::str::from_utf8(rest) else { return };
    // A path may name anything that there is, also what hangs the harness or lies outside of its folder.
    if [text].iter().chain(&flags).any(|text| text.contains(['/', '\\'])) {
        return;
    }
    let file = folder().join("config.toml");
    match check(&file, text, &flags) {
        Ok(facts) => {
            assert!((1..=32).contains(&facts.vcpus));
            assert!(facts.memory_bytes.is_multiple_of(2 << 20) && facts.memory_bytes > 0);
            assert!(facts.disks == usize::from(facts.disk_count) && facts.disks <= 16);
            assert!(facts.cmdline.len() < 2048 && !facts.cmdline.contains(['\n', '\r', '\0']));
            assert!(facts.console_files <= 4);
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "it is refused for nothing");
            assert!(problems.iter().all(|problem| !problem.trim().is_empty()));
        }
    }
    let files = std::fs::read_dir(folder()).expect("the folder").count();
    assert_eq!(files, 4, "a check creates nothing");
}

/// The README's config, flags, and things that are wrong.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let flags = |flags: &[&str]| {
        let seed = Seed::new().u8(flags.len() as u8);
        flags.iter().fold(seed, |seed, flag| seed.bytes(flag.as_bytes()).u8(0))
    };
    let whole = b"[machine]\nvcpus = 2\nmemory = \"512MiB\"\nhuge_pages = \"2MiB\"\ncpus = [4, 5]\n\
        [boot]\nkernel = \"k\"\ninitrd = \"i\"\ncmdline = \"ro quiet\"\nacpi = true\n\
        [[disk]]\npath = \"a\"\nmode = \"read-only\"\nid = \"disk0\"\n[[disk]]\npath = \"b\"\nmode = \"ephemeral\"\n\
        [console]\noutput = [\"stdio\", { file = \"c.log\" }]\nlimit = \"16MiB\"\n";
    vec![
        ("whole", flags(&[]).bytes(whole).done()),
        ("flags", flags(&["-kk", "-da:rw", "-c2", "-m64", "-pquiet", "--console=none", "--no-acpi"]).done()),
        ("both", flags(&["-m1GiB"]).bytes(b"[boot]\nkernel=\"k\"\n").done()),
        ("wrong", flags(&[]).bytes(b"[boot]\nkernal = 1\n[[disk]]\n[machine]\nvcpus = 99\nmemory = \"x\"\n").done()),
        ("no_toml", flags(&[]).bytes(b"[boot\nkernel = = \"k\n").done()),
    ]
}
