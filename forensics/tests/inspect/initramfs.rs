//! Archives as the kernel unpacks them.

use crate::linked::Linked;
use crate::make::{Cpio, EXIT, X86_64, clean, expect, fact, fixture, found, guest, program};
use forensics::inspect::limits::Work;
use forensics::inspect::{Architecture, Guest, image, image_within};
use std::io::Write;
use wire::report::Severity::{Fatal, Warning};

fn init() -> Vec<u8> {
    program(X86_64, EXIT)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn initramfs_in_every_compression_has_its_init() {
    let all = [
        ("initramfs (cpio)", fixture!("initramfs.cpio")),
        ("initramfs (cpio)", fixture!("initramfs-crc.cpio")),
        ("initramfs (gzip-compressed cpio)", fixture!("initramfs.cpio.gz")),
        ("initramfs (xz-compressed cpio)", fixture!("initramfs.cpio.xz")),
        ("initramfs (lzma-compressed cpio)", fixture!("initramfs.cpio.lzma")),
        ("initramfs (zstd-compressed cpio)", fixture!("initramfs.cpio.zst")),
        ("initramfs (lz4-compressed cpio)", fixture!("initramfs.cpio.lz4")),
        ("initramfs (bzip2-compressed cpio)", fixture!("initramfs.cpio.bz2")),
    ];
    for (format, bytes) in all {
        let report = clean(bytes, &guest(""));
        assert_eq!(fact(&report, "format"), format);
        assert_eq!(fact(&report, "init"), "/init, which is /sbin/init");
        assert_eq!(fact(&report, "entries"), "9", "{format}");
    }
}

#[test]
fn parts_are_read_one_after_the_other_as_the_kernel_does() {
    let microcode = Cpio::default().folder("kernel").file("kernel/microcode.bin", &[7; 1000]).end();
    let mut both = microcode.clone();
    both.resize(both.len().next_multiple_of(512), 0);
    both.extend_from_slice(fixture!("initramfs.cpio.zst"));
    let report = clean(&both, &guest(""));
    assert_eq!(fact(&report, "format"), "initramfs (cpio, then zstd-compressed cpio)");
    assert_eq!(fact(&report, "init"), "/init, which is /sbin/init");
    expect(&microcode, &guest(""), "init-missing", Fatal);
    expect(&microcode, &guest("root=/dev/vda"), "initramfs-without-init", Warning);
}

#[test]
fn junk_behind_an_archive_takes_nothing_from_it() {
    for junk in [&b"something else"[..], &[0x04, 0x22, 0x4d, 0x18, 0, 0, 0, 0]] {
        let (report, _) = found(&[fixture!("initramfs.cpio.gz"), junk].concat(), &guest(""), junk_id(junk));
        assert_eq!(fact(&report, "init"), "/init, which is /sbin/init");
        assert_eq!(report.worst(), Some(Warning), "{report:#?}");
        // Without an init before it, it is that which is missing.
        let microcode = Cpio::default().folder("kernel").end();
        expect(&[&microcode, junk].concat(), &guest(""), "init-missing", Fatal);
    }
}

#[test]
fn few_bytes_behind_lz4_are_its_end() {
    for length in 1..4 {
        clean(&[fixture!("initramfs.cpio.lz4"), &[0; 3][..length]].concat(), &guest(""));
        let (report, _) =
            found(&[fixture!("initramfs.cpio.lz4"), &[7; 3][..length]].concat(), &guest(""), "initramfs-junk");
        assert_eq!((report.worst(), fact(&report, "entries")), (Some(Warning), "9".into()));
    }
}

fn junk_id(junk: &[u8]) -> &'static str {
    if junk.starts_with(b"something") { "initramfs-junk" } else { "lz4-frame-not-legacy" }
}

#[test]
fn part_without_a_trailer_is_followed_by_the_next_one() {
    let first = Cpio::default().folder("etc").0;
    let (report, _) = found(&[&first, fixture!("initramfs.cpio.gz")].concat(), &guest(""), "cpio-no-trailer");
    assert_eq!(fact(&report, "init"), "/init, which is /sbin/init");
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    let packed = gzip(&Cpio::default().file("init", &init()).0);
    let finding = expect(&packed, &guest(""), "cpio-no-trailer", Warning);
    assert!(finding.what.to_string().contains("inside the gzip-compressed part"), "{finding:?}");
}

#[test]
fn archive_that_was_cut_says_which_file_lost_its_end() {
    let whole = Cpio::default().folder("lib").file("lib/libc.so", &[0x55; 5000]).file("init", &init()).end();
    clean(&whole, &guest(""));
    let finding = expect(&whole[..4000], &guest(""), "cpio-truncated", Fatal);
    assert!(finding.what.to_string().contains("lib/libc.so"), "{finding:?}");
    let end = whole.len() - 124;
    expect(&whole[..end], &guest(""), "cpio-no-trailer", Warning);
    expect(&whole[..end - init().len() - 40], &guest(""), "cpio-truncated", Fatal);
}

#[test]
fn stream_that_was_cut_or_damaged_is_told() {
    for bytes in [
        fixture!("initramfs.cpio.gz"),
        fixture!("initramfs.cpio.xz"),
        fixture!("initramfs.cpio.zst"),
        fixture!("initramfs.cpio.lz4"),
        fixture!("initramfs.cpio.bz2"),
        fixture!("initramfs.cpio.lzma"),
    ] {
        let (report, _) = found(&bytes[..bytes.len() * 2 / 3], &guest(""), "initramfs-stream-broken");
        assert_eq!(report.worst(), Some(Fatal), "{report:#?}");
    }
}

#[test]
fn variants_that_the_kernel_does_not_unpack_are_told() {
    expect(fixture!("initramfs-crc64.cpio.xz"), &guest(""), "xz-check-not-crc32", Fatal);
    expect(fixture!("initramfs-frame.cpio.lz4"), &guest(""), "lz4-frame-not-legacy", Fatal);
    expect(fixture!("initramfs-odc.cpio"), &guest(""), "cpio-odc", Fatal);
    let mut crc = fixture!("initramfs-crc.cpio").to_vec();
    let at = crc.windows(7).position(|window| window == b"fixture").unwrap();
    crc[at] ^= 1;
    expect(&crc, &guest(""), "cpio-checksum", Fatal);
}

#[test]
fn file_whose_folder_comes_later_is_not_unpacked() {
    let archive = Cpio::default().file("sbin/start", &init()).folder("sbin").end();
    expect(&archive, &guest("rdinit=/sbin/start"), "cpio-parent-missing", Fatal);
    let archive = Cpio::default().folder("sbin").file("sbin/start", &init()).end();
    clean(&archive, &guest("rdinit=/sbin/start"));
}

#[test]
fn file_behind_a_link_to_a_folder_is_unpacked_where_the_link_leads() {
    let base = || Cpio::default().folder("usr").folder("usr/sbin").link("sbin", "usr/sbin");
    let split = base().file("sbin/start", &init());
    clean(&split.clone().end(), &guest("rdinit=/usr/sbin/start"));
    clean(&split.clone().link("init", "sbin/start").end(), &guest(""));
    clean(&gzip(&split.end()), &guest("rdinit=/usr/sbin/start"));
    // A folder that comes later takes the place of the link, and a link that of an empty folder only.
    let replaced = base().folder("sbin").file("sbin/start", &init()).end();
    clean(&replaced, &guest("rdinit=/sbin/start"));
    expect(&replaced, &guest("rdinit=/usr/sbin/start"), "init-missing", Fatal);
    let kept = Cpio::default().folder("sbin").file("sbin/start", &init()).link("sbin", "usr/sbin");
    clean(&kept.end(), &guest("rdinit=/sbin/start"));
    let nowhere = Cpio::default().link("sbin", "usr/sbin").file("sbin/start", &init()).end();
    assert_eq!(image(&nowhere.as_slice(), &guest("rdinit=/sbin/start")).worst(), Some(Fatal));
}

#[test]
fn init_is_followed_through_links_inside_the_image() {
    let base = || Cpio::default().folder("sbin").file("sbin/real", &init());
    clean(&base().link("init", "/sbin/real").end(), &guest(""));
    clean(&base().link("init", "sbin/../sbin/./real").end(), &guest(""));
    let finding = expect(&base().link("init", "/usr/sbin/init").end(), &guest(""), "init-dangling", Fatal);
    assert_eq!(finding.evidence.get()[0].to_string(), "/init -> /usr/sbin/init");
    expect(&base().link("init", "other").link("other", "init").end(), &guest(""), "init-link-loop", Fatal);
    expect(&base().end(), &guest(""), "init-missing", Fatal);
    expect(&base().folder("init").end(), &guest(""), "init-not-a-file", Fatal);
    expect(&base().entry("init", 0o100_644, &init()).end(), &guest(""), "init-not-executable", Fatal);
}

#[test]
fn hard_link_has_the_bytes_of_its_other_name() {
    // cpio writes the body with the last name of a file that has several.
    let body = init();
    let mut archive = Cpio::default();
    for (name, body) in [("init", &[][..]), ("busybox", &body[..])] {
        archive = archive.file(name, body);
    }
    let mut bytes = archive.end();
    let links = bytes.windows(6).enumerate().filter(|(_, window)| *window == b"070701").map(|(at, _)| at);
    for at in links.collect::<Vec<_>>().into_iter().take(2) {
        bytes[at + 6 + 32..at + 6 + 40].copy_from_slice(b"00000002");
    }
    clean(&bytes, &guest(""));
}

#[test]
fn memory_that_is_too_small_is_told() {
    let archive = Cpio::default().file("init", &init()).file("large", &vec![1; 3 << 20]).end();
    let with = |memory: u64, cmdline: &str| Guest {
        architecture: Architecture::X86_64,
        cmdline: cmdline.into(),
        memory_bytes: Some(memory),
    };
    clean(&archive, &with(512 << 20, ""));
    expect(&archive, &with(50 << 20, "root=/dev/vda"), "initramfs-exceeds-memory", Fatal);
    expect(&archive, &with(64 << 20, "root=/dev/vda"), "initramfs-nearly-exceeds-memory", Warning);
    // A tmpfs takes half of the memory, a ramfs all of it.
    let archive = gzip(&Cpio::default().file("init", &init()).file("large", &vec![1; 64 << 20]).end());
    expect(&archive, &with(124 << 20, ""), "initramfs-exceeds-memory", Fatal);
    expect(&archive, &with(124 << 20, "rootfstype=tmpfs"), "initramfs-exceeds-memory", Fatal);
    expect(&archive, &with(124 << 20, "rootfstype=ramfs"), "initramfs-nearly-exceeds-memory", Warning);
}

#[test]
fn modules_tell_whether_the_disk_is_found() {
    let base = |built_in: &str| {
        let folders =
            ["lib", "lib/modules", "lib/modules/6.1", "lib/modules/6.1/kernel", "lib/modules/6.1/kernel/drivers"];
        let archive = folders.iter().fold(Cpio::default(), |archive, folder| archive.folder(folder));
        archive
            .folder("lib/modules/6.1/kernel/drivers/virtio")
            .file("lib/modules/6.1/modules.builtin", built_in.as_bytes())
    };
    let init = |archive: Cpio| archive.file("init", &init()).end();
    expect(&init(base("kernel/fs/ext4/ext4.ko\n")), &guest(""), "virtio-mmio-not-here", Warning);
    let module = base("kernel/fs/ext4/ext4.ko\n").file("lib/modules/6.1/kernel/drivers/virtio/virtio_mmio.ko.xz", b"x");
    let report = clean(&init(module), &guest(""));
    let drivers = fact(&report, "drivers");
    assert!(drivers.contains("virtio_mmio module") && drivers.contains("ext4 built in"), "{drivers}");
}

#[test]
fn image_that_is_nothing_known_is_not_called_clean() {
    expect(b"what is this", &guest(""), "not-recognised", Warning);
    expect(&[0; 4096], &guest(""), "not-recognised", Warning);
    expect(b"", &guest(""), "image-empty", Fatal);
    assert_eq!(image(&fixture!("zeros.xz"), &guest("")).worst(), Some(Fatal));
}

/// An init that needs the dynamic loader of glibc.
fn dynamic() -> Vec<u8> {
    Linked::new(X86_64).loader("/lib64/ld-linux-x86-64.so.2").needs("libc.so.6").end()
}

/// With the loader and the library that it needs.
fn loader(archive: Cpio) -> Cpio {
    let archive = archive.folder("lib64").file("lib64/ld-linux-x86-64.so.2", &init());
    archive.file("lib64/libc.so.6", &Linked::new(X86_64).soname("libc.so.6").end())
}

#[test]
fn more_links_than_are_kept_hide_nothing_behind_them() {
    let target = "x".repeat(80);
    let with = |links: u32| {
        let archive = Cpio::default().file("init", &dynamic()).folder("many");
        (0..links).fold(archive, |archive, number| archive.link(&format!("many/{number}"), &target))
    };
    clean(&loader(with(100)).end(), &guest(""));
    expect(&with(100).end(), &guest(""), "elf-interpreter-missing", Fatal);
    let report = image(&loader(with(30_000)).end().as_slice(), &guest(""));
    assert_eq!(report.worst(), Some(Warning), "{report:#?}");
    assert_eq!(report.findings[0].id.as_str(), "too-large-to-look-at", "{report:#?}");
    // All is read, and the loader is found.
    assert_eq!(fact(&report, "entries"), "30005");
    assert!(report.findings.iter().all(|finding| !finding.what.to_string().contains("ld-linux")), "{report:#?}");
    // What is missing may be where a link leads that was not followed.
    let (report, _) = found(&with(30_000).end(), &guest(""), "cannot-look-inside");
    assert_eq!(report.worst(), Some(Warning), "{report:#?}");
}

#[test]
fn nothing_is_missing_in_an_initramfs_that_was_read_in_part() {
    let inits = [
        dynamic(),
        b"#!/bin/sh\n".to_vec(),
        Linked::new(X86_64).loader("/ld.so").needs("libc.so.6").end(),
        Linked::new(X86_64).loader("/ld.so").needs("missing/libc.so").end(),
    ];
    for bytes in inits {
        let first = Cpio::default().file("ld.so", &init()).file("init", &bytes).link("start", "sbin/start");
        let archive = loader(first.file("large", &vec![0; 8 << 20])).end();
        for cmdline in ["", "rdinit=/start", "rdinit=/other"] {
            let report = image_within(&gzip(&archive).as_slice(), &guest(cmdline), &Work::limited(4 << 20));
            assert_eq!(report.worst(), Some(Warning), "{cmdline}: {report:#?}");
        }
        let report = image_within(&gzip(&archive).as_slice(), &guest(""), &Work::limited(4 << 20));
        let ids: Vec<_> = report.findings.iter().map(|finding| finding.id.as_str()).collect();
        assert!(ids.contains(&"too-large-to-look-at") && ids.contains(&"cannot-look-inside"), "{report:#?}");
    }
}

#[test]
fn init_that_cannot_be_executed_is_followed_by_the_others() {
    let base = |failing: &[u8], mode: u32| Cpio::default().folder("bin").entry("init", mode, failing);
    let failing = [
        (init(), 0o100_644, "init-not-executable"),
        (b"text".to_vec(), 0o100_755, "elf-not-a-program"),
        (dynamic(), 0o100_755, "elf-interpreter-missing"),
        (b"#!/bin/none\n".to_vec(), 0o100_755, "script-interpreter-missing"),
    ];
    for (bytes, mode, id) in failing {
        expect(&base(&bytes, mode).end(), &guest("root=/dev/vda"), id, Fatal);
        let shell = base(&bytes, mode).file("bin/sh", &init()).end();
        expect(&shell, &guest("root=/dev/vda"), id, Warning);
        // A failing init= ends the boot before the shell.
        expect(&shell, &guest("init=/sbin/none"), id, Fatal);
        expect(&shell, &guest("init=/bin/sh"), id, Warning);
        expect(&base(&bytes, mode).file("bin/sh", b"text").end(), &guest(""), id, Fatal);
    }
    // An init that is executed, and dies, is followed by nothing.
    let dying = Linked::new(X86_64).loader("/ld.so").needs("libmissing.so").end();
    let dying = base(&dying, 0o100_755).file("ld.so", &init()).file("bin/sh", &init()).end();
    expect(&dying, &guest(""), "library-missing", Fatal);
}
