//! Everything that is refused before a guest starts: configs with exit code 2 and nothing created, boot files with 3.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tests::guest::Guest;
use tests::machine::{Ended, Machine};

/// The rest of a config that is right.
const BOOT: &str = "[boot]\nkernel = \"guest.elf\"\n";

/// A config, where it is wrong, and words of what is wrong and of what would be right.
type Case = (&'static str, usize, &'static str, &'static [&'static str]);

const CASES: [Case; 36] = [
    ("[machine]\nvcpu = 2\n", 2, "machine.vcpu", &["is no known key", "did you mean `vcpus`?"]),
    ("[machin]\n", 1, "machin", &["is no known key", "did you mean `machine`?"]),
    ("colour = 1\n", 1, "colour", &["is no known key", "known keys here: machine, boot, disk, console"]),
    (
        "[machine]\nvcpus = \"two\"\n",
        2,
        "machine.vcpus",
        &["is a value of type string", "write a whole number, 1 to 32"],
    ),
    ("[machine]\nvcpus = 1.5\n", 2, "machine.vcpus", &["is a value of type float", "write a whole number, 1 to 32"]),
    ("[machine]\nvcpus = 0\n", 2, "machine.vcpus", &["is 0", "1 to "]),
    ("[machine]\nvcpus = 33\n", 2, "machine.vcpus", &["is 33", "1 to "]),
    ("[machine]\nvcpus = -1\n", 2, "machine.vcpus", &["is -1", "1 to "]),
    ("[machine]\nvcpus = 99999999999999999999\n", 2, "machine.vcpus", &["is 99999999999999999999", "1 to "]),
    ("[machine]\nmemory = \"64MB\"\n", 2, "machine.memory", &["is \"64MB\"", "MiB"]),
    ("[machine]\nmemory = 0\n", 2, "machine.memory", &["guest memory is 0 bytes", "write a multiple of"]),
    ("[machine]\nmemory = -5\n", 2, "machine.memory", &["is -5", "such as \"512MiB\""]),
    ("[machine]\nmemory = \"1000B\"\n", 2, "machine.memory", &["guest memory is 1000 bytes", "write a multiple of"]),
    ("[machine]\nmemory = \"2TiB\"\n", 2, "machine.memory", &["guest memory is 2 TiB", "write 1 TiB or less"]),
    ("[machine]\nmemory = true\n", 2, "machine.memory", &["is a value of type boolean", "such as \"512MiB\""]),
    (
        "[machine]\nhuge_pages = \"3MiB\"\n",
        2,
        "machine.huge_pages",
        &["is \"3MiB\"", "write \"2MiB\" or \"1GiB\", or leave it out"],
    ),
    (
        "[machine]\nmemory = \"3MiB\"\nhuge_pages = \"2MiB\"\n",
        2,
        "machine.memory",
        &["guest memory is 3 MiB", "write a multiple of 2 MiB, such as 4 MiB"],
    ),
    ("machine = 5\n", 1, "machine", &["is a value of type integer", "write a section [machine]"]),
    (
        "[[disk]]\npath = \"gone.img\"\n",
        2,
        "disk[0].path",
        &["gone.img cannot be opened: No such file", "name a raw disk image"],
    ),
    (
        "[[disk]]\npath = \"odd.img\"\n",
        2,
        "disk[0].path",
        &["odd.img has 1000 bytes, which is no multiple of 512", "truncate -s 1024"],
    ),
    ("[[disk]]\npath = \"empty.img\"\n", 2, "disk[0].path", &["empty.img is empty", "at least 512 bytes"]),
    ("[[disk]]\npath = \".\"\n", 2, "disk[0].path", &["is a directory", "name a raw disk image"]),
    ("[[disk]]\npath = \"fifo\"\n", 2, "disk[0].path", &["is a FIFO", "name a raw disk image"]),
    ("[[disk]]\n", 1, "disk[0].path", &["is missing", "path = \"rootfs.ext4\""]),
    (
        "[[disk]]\npath = \"a.img\"\nmode = \"rw\"\n",
        3,
        "disk[0].mode",
        &["is \"rw\"", "write \"read-only\", \"ephemeral\" or \"read-write\""],
    ),
    (
        "[[disk]]\npath = \"a.img\"\nmode = \"read-write\"\n[[disk]]\npath = \"hard-link.img\"\nmode = \"read-write\"\n",
        5,
        "disk[1].path",
        &["hard-link.img is the same image as in", ":2: disk[0].path", "must be alone"],
    ),
    (
        "[[disk]]\npath = \"a.img\"\n[[disk]]\npath = \"symlink.img\"\nmode = \"read-write\"\n",
        4,
        "disk[1].path",
        &["symlink.img is the same image as in", "must be alone"],
    ),
    (
        "[[disk]]\npath = \"a.img\"\nid = \"x\"\n[[disk]]\npath = \"b.img\"\nid = \"x\"\n",
        6,
        "disk[1].id",
        &["the disk id \"x\" is also that of", "give each disk an id of its own"],
    ),
    (
        "[[disk]]\npath = \"a.img\"\nid = \"longer than twenty characters\"\n",
        3,
        "disk[0].id",
        &["20", "such as \"root\""],
    ),
    ("disk = 1\n", 1, "disk", &["is a value of type integer", "write each disk as a section [[disk]]"]),
    ("[console]\noutput = \"tty\"\n", 2, "console.output", &["is \"tty\"", "{ file = \"console.log\" }"]),
    ("[console]\noutput = { fil = \"x\" }\n", 2, "console.output.fil", &["is no known key", "did you mean `file`?"]),
    ("[console]\noutput = { file = \"a.img\" }\nlimit = 0\n", 3, "console.limit", &["is 0", "such as \"16MiB\""]),
    ("[console]\noutput = { file = \"guest.elf\" }\n", 2, "console.output", &["guest.elf", "another file"]),
    ("[console]\noutput = { file = \"fifo\" }\n", 2, "console.output", &["fifo is no regular file", "file"]),
    ("[machine\nvcpus = 2\n", 1, "syntax", &["write valid TOML"]),
];

/// The [boot] section itself is wrong.
const BOOT_CASES: [Case; 8] = [
    ("[boot]\n", 1, "boot.kernel", &["is missing", "kernel = \"vmlinuz\""]),
    ("[boot]\nkernel = \"gone\"\n", 2, "boot.kernel", &["gone cannot be opened: No such file", "name a regular file"]),
    ("[boot]\nkernel = \"empty.img\"\n", 2, "boot.kernel", &["empty.img is empty", "name a file with content"]),
    ("[boot]\nkernel = 7\n", 2, "boot.kernel", &["is a value of type integer", "write a path in quotes"]),
    (
        "[boot]\nkernel = \"guest.elf\"\ninitrd = \"gone\"\n",
        3,
        "boot.initrd",
        &["gone cannot be opened: No such file", "name a regular file"],
    ),
    (
        "[machine]\nmemory = \"4MiB\"\n[boot]\nkernel = \"guest.elf\"\ninitrd = \"large.img\"\n",
        2,
        "machine.memory",
        &["guest memory is 4 MiB", "initrd (4096 KiB) need at least"],
    ),
    (
        "[boot]\nkernel = \"guest.elf\"\nacpi = \"no\"\n",
        3,
        "boot.acpi",
        &["is a value of type string", "write true or false"],
    ),
    ("[boot]\nkernel = \"guest.elf\"\ncmdline = 5\n", 3, "boot.cmdline", &["is a value of type integer", "in quotes"]),
];

/// A folder with everything that the configs name, and a console file with content.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("guest.elf"), Guest::Long.bytes()).unwrap();
    fs::write(at("odd.img"), [0; 1000]).unwrap();
    fs::write(at("empty.img"), []).unwrap();
    fs::write(at("a.img"), [0; 1024]).unwrap();
    fs::write(at("b.img"), [0; 1024]).unwrap();
    fs::write(at("large.img"), vec![1; 4 << 20]).unwrap();
    fs::hard_link(at("a.img"), at("hard-link.img")).unwrap();
    std::os::unix::fs::symlink("a.img", at("symlink.img")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(at("console.log"), "precious").unwrap();
    fs::create_dir(at("tmp")).unwrap();
    fs::create_dir(at("no-binaries")).unwrap();
    folder
}

/// All that is in a folder, with what changes when a file is written to.
fn listing(folder: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let entries = fs::read_dir(folder).unwrap().chain(fs::read_dir(folder.join("tmp")).unwrap());
    let facts = |path: &Path| fs::symlink_metadata(path).map(|m| (m.size(), m.mtime(), m.mtime_nsec())).unwrap();
    entries.flatten().map(|entry| (entry.path(), facts(&entry.path()))).collect()
}

/// A broker whose folder of binaries is empty: what tries to start a process ends with 1 instead of 2.
fn broker(folder: &Path, args: &[&str]) -> Ended {
    Machine::bare()
        .env("TMPDIR", &folder.join("tmp"))
        .args(["--bin-dir", folder.join("no-binaries").to_str().unwrap()])
        .args(args)
        .run()
}

fn refused(text: &str, line: usize, key: &str, words: &[&str]) {
    let folder = folder();
    let config = folder.path().join("config.toml");
    // A console file that is right, wherever the config does not speak of the console itself.
    let console = "[console]\noutput = { file = \"console.log\" }\n";
    let text = if text.contains("[console]") { text.to_owned() } else { format!("{text}{console}") };
    fs::write(&config, &text).unwrap();
    let before = listing(folder.path());
    let config = config.to_str().unwrap();
    for args in [&["check", "--json", config][..], &["run", "--json", config]] {
        let ended = broker(folder.path(), args);
        ended.expect(2, "config");
        let place = format!("broker: {config}:{line}: {key}: ");
        let said = ended.log.lines().find(|said| said.starts_with(&place));
        let said = said.unwrap_or_else(|| panic!("no {place:?} for\n{text}\n{}", ended.story()));
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said:?}");
        }
        let problems = ended.report["problems"].as_array().unwrap();
        let same =
            |problem: &&serde_json::Value| problem["line"].as_u64() == Some(line as u64) && problem["key"] == key;
        assert!(problems.iter().any(|problem| same(&problem)), "{}", ended.story());
        assert_eq!(listing(folder.path()), before, "something was created or written to by {args:?}\n{text}");
        assert!(!ended.log.contains("panicked"), "{}", ended.story());
    }
}

#[test]
fn every_wrong_config_is_refused_with_2_and_its_place_and_nothing_is_created() {
    for (text, line, key, words) in CASES {
        // Keys without a section come first in TOML, sections may come in any order.
        refused(&format!("{text}{BOOT}"), line, key, words);
    }
    for (text, line, key, words) in BOOT_CASES {
        refused(text, line, key, words);
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once_in_the_order_of_lines() {
    let folder = folder();
    let config = folder.path().join("config.toml");
    fs::write(&config, "[machine]\nvcpus = 0\nmemry = 1\n[boot]\nkernel = \"gone\"\n[[disk]]\npath = \"odd.img\"\n")
        .unwrap();
    let ended = broker(folder.path(), &["check", config.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(2));
    let lines: Vec<_> = ended.log.lines().filter_map(|line| line.split(':').nth(2)).collect();
    assert_eq!(lines, ["2", "3", "5", "7"], "{}", ended.story());
}

#[test]
fn right_config_is_found_right_and_starts_nothing() {
    let folder = folder();
    let config = folder.path().join("config.toml");
    fs::write(&config, format!("{BOOT}[console]\noutput = {{ file = \"console.log\" }}\n")).unwrap();
    let before = listing(folder.path());
    let ended = broker(folder.path(), &["check", config.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.story());
    assert_eq!(listing(folder.path()), before);
}

#[test]
fn relative_paths_are_relative_to_the_config() {
    let folder = folder();
    let config = folder.path().join("config.toml");
    fs::write(&config, format!("[machine]\nmemory = 64\n{BOOT}cmdline = \"test=banner\"\n")).unwrap();
    // The test's own working folder is another one.
    let ended = Machine::bare().args(["run", "--json", config.to_str().unwrap()]).run();
    ended.passed(&["banner"]).expect(0, "guest-poweroff");
}

#[test]
fn config_that_is_no_file_is_refused() {
    let folder = folder();
    for name in ["gone.toml", ".", "fifo"] {
        let config = folder.path().join(name);
        let ended = broker(folder.path(), &["run", config.to_str().unwrap()]);
        assert_eq!(ended.status.code(), Some(2), "{}", ended.story());
        assert!(ended.log.contains("name a config file (TOML)"), "{}", ended.story());
    }
    fs::write(folder.path().join("latin.toml"), b"[boot]\nkernel = \"\xe4\"\n").unwrap();
    let ended = broker(folder.path(), &["run", folder.path().join("latin.toml").to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(2), "{}", ended.story());
    assert!(ended.log.contains("UTF-8"), "{}", ended.story());
}

#[test]
fn wrong_flags_are_refused_with_2_and_named() {
    let folder = folder();
    let kernel = folder.path().join("guest.elf");
    let kernel = kernel.to_str().unwrap();
    let odd = folder.path().join("odd.img");
    let before = listing(folder.path());
    for (args, words) in [
        (&["-c", "0"][..], ["--vcpus", "is 0"]),
        (&["-c", "33"], ["--vcpus", "is 33"]),
        (&["-c", "many"], ["--vcpus", "many"]),
        (&["-m", "none"], ["--memory", "none"]),
        (&["-m", "1"], ["--memory", "guest memory is 1 MiB"]),
        (&["-d", odd.to_str().unwrap()], ["--disk", "no multiple of 512"]),
        (&["-d", "gone.img:rw"], ["--disk", "No such file"]),
        (&["-i", "gone"], ["--initrd", "No such file"]),
        (&["--console", "tty"], ["--console", "tty"]),
        (&["--unknown"], ["--unknown", "unexpected argument"]),
    ] {
        let ended = broker(folder.path(), &[&["run", "-k", kernel], args].concat());
        assert_eq!(ended.status.code(), Some(2), "{args:?} {}", ended.story());
        assert!(words.iter().all(|word| ended.log.contains(word)), "{args:?} {}", ended.story());
        assert_eq!(listing(folder.path()), before, "{args:?}");
    }
    let ended = broker(folder.path(), &["run"]);
    assert_eq!(ended.status.code(), Some(2), "{}", ended.story());
    assert!(ended.log.contains("--kernel: is missing"), "{}", ended.story());
}

/// The guest's ELF file with other bytes at `at`.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut content = Guest::Long.bytes().to_vec();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    content
}

/// Runs a kernel, and perhaps an initrd, that the loader must refuse with a sentence that has `words`.
fn boot_refused(kernel: &[u8], initrd: Option<&[u8]>, words: &[&str]) {
    let machine = Machine::new("test=ready");
    let path = machine.folder().join("the-kernel");
    fs::write(&path, kernel).unwrap();
    let mut machine = machine.kernel(path);
    if let Some(initrd) = initrd {
        let path = machine.folder().join("the-initrd");
        fs::write(&path, initrd).unwrap();
        machine = machine.args(["-i", path.to_str().unwrap()]);
    }
    let ended = machine.run();
    ended.expect(3, "boot-refused");
    let message = ended.report["message"].as_str().unwrap();
    for word in words {
        assert!(message.contains(word), "no {word:?}: {}", ended.story());
    }
    assert!(ended.console.is_empty(), "a guest was started: {}", ended.story());
    assert!(message.contains("cannot be booted: "), "{}", ended.story());
}

#[test]
fn kernel_that_is_none_is_refused_with_3() {
    boot_refused(&[0; 4096], None, &["the kernel", "the-kernel"]);
    boot_refused(b"#!/bin/sh\n", None, &["the kernel", "the-kernel"]);
}

#[test]
fn truncated_kernel_is_refused_with_3_wherever_it_ends() {
    let whole = Guest::Long.bytes();
    for length in [1, 4, 16, 63, 64, 100, whole.len() / 2] {
        boot_refused(&whole[..length], None, &["the kernel"]);
    }
}

#[test]
fn kernel_of_another_architecture_is_refused_with_3() {
    // e_machine: EM_AARCH64; and EI_CLASS: ELFCLASS32; and EI_DATA: big endian (elf(5)).
    boot_refused(&patched(18, &[183, 0]), None, &["the kernel"]);
    boot_refused(&patched(4, &[1]), None, &["the kernel"]);
    boot_refused(&patched(5, &[2]), None, &["the kernel"]);
    // An arm64 Image: code, offsets, and its magic at 56 ("Booting AArch64 Linux").
    let mut image = vec![0; 8192];
    image[56..60].copy_from_slice(b"ARM\x64");
    boot_refused(&image, None, &["the kernel"]);
}

#[test]
fn corrupt_kernel_is_refused_with_3() {
    // e_phoff, e_phentsize and e_phnum that lead nowhere, and an entry point outside of every segment.
    boot_refused(&patched(32, &[0xff; 8]), None, &["the kernel"]);
    boot_refused(&patched(54, &[0, 0]), None, &["the kernel"]);
    boot_refused(&patched(56, &[0xff, 0xff]), None, &["the kernel"]);
    boot_refused(&patched(56, &[0, 0]), None, &["the kernel"]);
    boot_refused(&patched(24, &[0xff; 8]), None, &["the kernel"]);
}

#[test]
fn kernel_too_large_for_memory_is_refused_with_3() {
    // The first program header's p_memsz (at 40 of the header) is 1 GiB, of 64 MiB of memory.
    let header = usize::try_from(u64::from_le_bytes(Guest::Long.bytes()[32..40].try_into().unwrap())).unwrap();
    boot_refused(&patched(header + 40, &(1_u64 << 30).to_le_bytes()), None, &["the kernel"]);
}

#[test]
fn bzimage_that_is_truncated_or_corrupt_is_refused_with_3() {
    // "Linux x86 boot protocol": boot_flag at 0x1fe, "HdrS" at 0x202, version at 0x206, setup_sects at 0x1f1.
    let mut image = vec![0; 0x400];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    for (version, sectors) in [(0x0100_u16, 4), (0x020c, 4), (0x020f, 255), (0xffff, 0)] {
        image[0x206..0x208].copy_from_slice(&version.to_le_bytes());
        image[0x1f1] = sectors;
        boot_refused(&image, None, &["the kernel"]);
    }
}

#[test]
fn initrd_larger_than_memory_leaves_room_for_is_refused_with_3() {
    // The broker's own rule of thumb lets it pass, the loader knows where the kernel lies.
    let ended = {
        let machine = Machine::new("test=ready").memory("8");
        let path = machine.folder().join("the-initrd");
        fs::write(&path, vec![7; 6 << 20]).unwrap();
        machine.args(["-i", path.to_str().unwrap()]).run()
    };
    ended.expect(3, "boot-refused");
    assert!(ended.report["message"].as_str().unwrap().contains("the-initrd"), "{}", ended.story());
}
