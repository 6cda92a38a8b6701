//! File systems and archives of files.

use crate::linked::Linked;
use crate::make::{X86_64, clean, expect, fact, fixture, guest};
use forensics::inspect::image;
use wire::report::Severity::{Fatal, Warning};

#[test]
fn every_file_system_is_looked_into() {
    let all = [
        ("ext2", fixture!("root.ext2")),
        ("ext4", fixture!("root.ext4")),
        ("ext4", fixture!("root-inline.ext4")),
        ("squashfs", fixture!("root-gzip.squashfs")),
        ("squashfs", fixture!("root-xz.squashfs")),
        ("squashfs", fixture!("root-zstd.squashfs")),
        ("squashfs", fixture!("root-lz4.squashfs")),
        ("erofs", fixture!("root.erofs")),
    ];
    for (format, bytes) in all {
        let report = clean(bytes, &guest("root=/dev/vda"));
        assert_eq!(fact(&report, "format"), format);
        assert_eq!(fact(&report, "init"), "/sbin/init");
        assert_eq!(fact(&report, "init-elf"), "/sbin/init: 64-bit, x86-64");
        let report = clean(bytes, &guest("root=/dev/vda init=/init"));
        assert_eq!(fact(&report, "init"), "/init, which is /sbin/init");
        expect(bytes, &guest("init=/bin/none"), "init-missing", Fatal);
    }
}

#[test]
fn label_and_uuid_of_a_file_system_are_told() {
    let report = clean(fixture!("root.ext4"), &guest(""));
    assert_eq!(fact(&report, "label"), "fixture4");
    assert_eq!(fact(&report, "uuid"), "00000000-0000-4000-8000-000000000001");
}

#[test]
fn erofs_in_chunks_needs_a_newer_kernel() {
    let (report, _) = crate::make::found(fixture!("root-chunks.erofs"), &guest(""), "erofs-newer-features");
    assert_eq!(fact(&report, "init"), "/sbin/init");
}

#[test]
fn file_system_that_is_not_read_here_is_not_called_clean() {
    expect(fixture!("root-lzo.squashfs"), &guest(""), "cannot-look-inside", Warning);
    let mut xfs = vec![0; 70_000];
    xfs[..4].copy_from_slice(b"XFSB");
    expect(&xfs, &guest(""), "cannot-look-inside", Warning);
}

/// The ext2 of the fixtures, with some bytes of its superblock changed.
fn ext2(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = fixture!("root.ext2").to_vec();
    image[1024 + at..1024 + at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn superblock_tells_of_mounts_that_will_fail() {
    expect(&ext2(58, &[3, 0]), &guest(""), "ext4-errors", Warning);
    expect(&ext2(96, &[6]), &guest(""), "ext4-dirty-journal", Warning);
    expect(&ext2(99, &[0x10]), &guest(""), "ext4-unsupported-features", Fatal);
    expect(&ext2(102, &[1]), &guest(""), "ext4-read-only-features", Warning);
    expect(&ext2(4, &[0, 0, 1, 0]), &guest(""), "filesystem-larger-than-image", Fatal);
    let ext4 = fixture!("root.ext4");
    expect(&ext4[..40_000], &guest(""), "filesystem-larger-than-image", Fatal);
    let mut damaged = ext4.to_vec();
    damaged[1024 + 120] ^= 1;
    expect(&damaged, &guest(""), "ext4-superblock-checksum", Fatal);
    expect(&fixture!("root-xz.squashfs")[..300], &guest(""), "filesystem-larger-than-image", Fatal);
}

#[test]
fn init_whose_inode_is_damaged_is_told() {
    // The mode of the program, wherever its inode is: a regular file of 0755.
    let mut image = fixture!("root.ext2").to_vec();
    let size = (fixture!("init-x86_64").len() as u32).to_le_bytes();
    let at = image.windows(8).position(|window| window[..2] == [0xed, 0x81] && window[4..8] == size).unwrap();
    image[at] = 0xa4;
    expect(&image, &guest(""), "init-not-executable", Fatal);
}

/// Where the inode of the first file or folder of a name is, in an ext of one group with blocks of 1 KiB.
fn inode_of(image: &[u8], name: &str) -> usize {
    let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    // Behind the kind of the file: a file or a folder.
    let entry =
        image.windows(name.len() + 1).position(|window| matches!(window[0], 1 | 2) && &window[1..] == name.as_bytes());
    let inode = number(entry.unwrap() - 7);
    number(2048 + 8) * 1024 + (inode - 1) * (number(1024 + 88) & 0xffff)
}

#[test]
fn files_and_folders_in_their_inodes_are_read_whole() {
    let whole = fixture!("root-inline.ext4");
    let report = clean(whole, &guest("init=/etc/script"));
    assert_eq!(fact(&report, "script-interpreter"), "/sbin/init, of /etc/script");
    // The script becomes a folder, whose second entry is in the attribute.
    let mut image = whole.to_vec();
    let script = inode_of(&image, "script");
    let number = image.windows(5).position(|window| window == b"\x01init").unwrap() - 7;
    let number = image[number..number + 4].to_vec();
    let entry = |name: &[u8]| [&number[..], &[56, 0, name.len() as u8, 1], name].concat();
    image[script + 1] = 0x41;
    let value = script + 128 + 32 + 4 + 0x24;
    for (at, name) in [(script + 40 + 4, b"early"), (value, b"later")] {
        image[at..at + 56].fill(0);
        image[at..at + 13].copy_from_slice(&entry(name));
    }
    for name in ["early", "later"] {
        let report = clean(&image, &guest(&format!("init=/etc/script/{name}")));
        assert_eq!(fact(&report, "init-elf"), format!("/etc/script/{name}: 64-bit, x86-64"));
    }
    expect(&image, &guest("init=/etc/script/none"), "init-missing", Fatal);
    // Without the attribute the rest cannot be told.
    image[script + 128 + 32] ^= 1;
    expect(&image, &guest("init=/etc/script/later"), "image-corrupt", Warning);
}

#[test]
fn hole_ends_where_the_next_leaf_of_extents_begins() {
    let mut image = fixture!("root.ext4").to_vec();
    let inode = inode_of(&image, "init");
    let first = u16::from_le_bytes(image[inode + 60..inode + 62].try_into().unwrap());
    // A program of three blocks: its headers, a hole, and the name of its loader.
    let mut init = Linked::new(X86_64).loader("/lib/ld-early.so").end();
    init[64 + 112 + 8..][..2].copy_from_slice(&2048_u16.to_le_bytes());
    for length in [64 + 32, 64 + 40] {
        init[length..length + 2].copy_from_slice(&3072_u16.to_le_bytes());
    }
    let [leaves, late] = [[61_u16, 62], [63_u16, 2]];
    assert!(image[61 * 1024..].iter().all(|byte| *byte == 0), "the last blocks are free");
    image[usize::from(first) * 1024..][..init.len()].copy_from_slice(&init);
    image[usize::from(late[0]) * 1024..][..15].copy_from_slice(b"/lib/ld-late.so");
    image[inode + 4..inode + 6].copy_from_slice(&3072_u16.to_le_bytes());
    // A node: its magic, entries, room and depth; each entry: the first block of the file, and where it is.
    let words = |words: &[u16]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let root = words(&[0xf30a, 2, 4, 1, 0, 0, 0, 0, leaves[0], 0, 0, 0, late[1], 0, leaves[1], 0, 0, 0]);
    image[inode + 40..][..root.len()].copy_from_slice(&root);
    for (leaf, from, at) in [(leaves[0], 0, first), (leaves[1], late[1], late[0])] {
        let leaf_node = words(&[0xf30a, 1, 84, 0, 0, 0, from, 0, 1, 0, at, 0]);
        image[usize::from(leaf) * 1024..][..leaf_node.len()].copy_from_slice(&leaf_node);
    }
    let finding = expect(&image, &guest(""), "elf-interpreter-missing", Fatal);
    assert!(finding.what.to_string().contains("/lib/ld-late.so"), "{finding:?}");
    // An extent behind the end of the file system, though not of the disk, is none.
    image.resize(1 << 20, 0);
    image[usize::from(leaves[1]) * 1024 + 20] = 64;
    expect(&image, &guest(""), "image-corrupt", Warning);
}

#[test]
fn magic_alone_makes_no_ext() {
    for mut other in [vec![0; 4096], b"some words ".repeat(1000), vec![0xff; 4096]] {
        other[1080..1082].copy_from_slice(&[0x53, 0xef]);
        expect(&other, &guest(""), "not-recognised", Warning);
    }
    // One that lost some fields is still told by the others.
    for (at, bytes) in [(24, [9, 0, 0, 0]), (32, [0; 4]), (40, [0; 4]), (76, [7; 4])] {
        let report = image(&ext2(at, &bytes).as_slice(), &guest(""));
        let known = report.findings.iter().all(|finding| finding.id.as_str() != "not-recognised");
        assert!(known, "{at}: {report:#?}");
    }
    expect(&ext2(24, &[9]), &guest(""), "image-corrupt", Warning);
    expect(&ext2(40, &[0; 4]), &guest(""), "image-corrupt", Warning);
}

#[test]
fn next_default_is_not_fatal_where_the_first_init_cannot_be_looked_at() {
    let mut image = fixture!("root.ext2").to_vec();
    // /bin/sh is a link, which now leads nowhere: /bin/sh is the last that the kernel tries.
    let link = image.windows(12).position(|window| window == b"../sbin/init").unwrap();
    image[link..link + 12].copy_from_slice(b"../none/init");
    clean(&image, &guest(""));
    let with = |inode: &str, at: usize, value: u8| {
        let mut image = image.clone();
        let inode = inode_of(&image, inode);
        image[inode + at] = value;
        image
    };
    // Without its program, that is the end of the boot.
    expect(&with("init", 1, 0x40), &guest(""), "init-dangling", Fatal);
    // But a program in an encrypted folder, or one that is encrypted itself, may run.
    for name in ["sbin", "init"] {
        let image = with(name, 33, 0x08);
        expect(&image, &guest(""), "cannot-look-inside", Warning);
        expect(&image, &guest(""), "init-dangling", Warning);
    }
}

#[test]
fn layer_of_a_container_is_looked_into_and_is_no_disk() {
    for bytes in [fixture!("layer.tar"), fixture!("layer.tar.gz")] {
        let (report, finding) = crate::make::found(bytes, &guest(""), "tar-is-no-disk");
        assert_eq!((fact(&report, "init"), finding.severity), ("/sbin/init".into(), Warning));
    }
    let without = fixture!("layer.tar").to_vec();
    // The names of the program and of the shell, in all headers with their sums.
    let without = renamed(without, b"./sbin/init", b"./sbin/inix");
    let without = renamed(without, b"./bin/sh", b"./bin/sx");
    let finding = expect(&without, &guest(""), "init-missing", Fatal);
    assert!(finding.why.to_string().contains("container"), "{finding:?}");
    expect(&fixture!("layer.tar")[..2000], &guest(""), "tar-truncated", Fatal);
}

/// Changes the name of an entry, and the sum of its header.
fn renamed(mut tar: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = (0..tar.len()).step_by(512).find(|at| tar[*at..].starts_with(from)).unwrap();
    tar[at..at + to.len()].copy_from_slice(to);
    tar[at + 148..at + 156].fill(b' ');
    let sum: u32 = tar[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
    tar[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar
}
