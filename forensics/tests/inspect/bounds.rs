//! What hostile and huge images cost: each says its figures, and what was counted stays within the bounds.

use crate::linked::Linked;
use crate::make::{Cpio, EXIT, X86_64, fact, fixture, guest, program};
use forensics::inspect::image_within;
use forensics::inspect::limits::{self, Work};
use forensics::{Report, Source};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// One of these tests at a time, so that each has its own peak of memory.
static ALONE: Mutex<()> = Mutex::new(());

/// Looks at an image and says what it cost.
fn measured(name: &str, source: &dyn Source, work: &Work) -> Report {
    let before = forget_peak();
    let start = Instant::now();
    let report = image_within(source, &guest("root=/dev/vda"), work);
    println!(
        "{name}: {} bytes large; {:?}, {} bytes read, {} unpacked, {} entries, {} KiB of memory",
        source.len(),
        start.elapsed(),
        work.read_bytes(),
        work.unpacked_bytes(),
        work.entries(),
        peak_kib().saturating_sub(before)
    );
    report
}

/// Begins to look for the peak of memory anew; what is used now, in KiB.
fn forget_peak() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    peak_kib()
}

/// The most memory that this process had, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn has(report: &Report, id: &str) -> bool {
    report.findings.iter().any(|finding| finding.id.as_str() == id)
}

/// Bytes with zeros behind them.
struct Sparse(Vec<u8>, u64);

impl Source for Sparse {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.1.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        buffer[..length].fill(0);
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let count = (self.0.len() - from).min(length);
        buffer[..count].copy_from_slice(&self.0[from..from + count]);
        Ok(length)
    }
}

#[test]
fn ten_gib_of_nearly_nothing_cost_what_is_in_them() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let work = Work::default();
    let report = measured("a sparse ext2", &Sparse(fixture!("root.ext2").to_vec(), 10 << 30), &work);
    assert_eq!((fact(&report, "init"), report.worst()), ("/sbin/init".into(), None));
    assert!(work.read_bytes() < 1 << 20);
    let work = Work::default();
    let zeros = measured("zeros", &Sparse(Vec::new(), 10 << 30), &work);
    assert!(has(&zeros, "not-recognised") && work.read_bytes() < 1 << 20);
    // An archive with zeros behind it is read to its end, but for the bound.
    let work = Work::limited(16 << 20);
    let report = measured("a cpio with zeros behind it", &Sparse(fixture!("initramfs.cpio").to_vec(), 10 << 30), &work);
    assert!(has(&report, "too-large-to-look-at") && work.read_bytes() <= 17 << 20, "{report:#?}");
}

#[test]
fn decompression_bombs_end_at_their_bound() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..32 {
        gzip.write_all(&zeros).unwrap();
    }
    let gzip = gzip.finish().unwrap();
    // A byte of xz counts as six.
    for (name, bytes, weight) in
        [("gzip", gzip.as_slice(), 1), ("xz", fixture!("zeros.xz"), 6), ("zstd", fixture!("zeros.zst"), 1)]
    {
        // A stream may have half of it: 16 MiB, of the 32 MiB that are in each.
        let work = Work::limited(32 << 20);
        let report = measured(&format!("a bomb of {name}"), &bytes, &work);
        assert!(has(&report, "too-large-to-look-at"), "{name}: {report:#?}");
        assert!(work.unpacked_bytes() <= (32 << 20) / weight + (1 << 20), "{name}: {work:?}");
    }
}

#[test]
fn tiny_blocks_of_lz4_cost_what_is_in_them() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // The magic, and blocks of one literal each: a block may have 8 MiB, which none of these has.
    let mut bomb = vec![0x02, 0x21, 0x4c, 0x18];
    bomb.extend_from_slice(&[2, 0, 0, 0, 0x10, b'0'].repeat(50_000));
    let (work, start) = (Work::default(), Instant::now());
    measured("many tiny blocks of lz4", &bomb.as_slice(), &work);
    // To clear the room for each would take more than a minute.
    assert!(start.elapsed().as_secs() < 20 && work.unpacked_bytes() < 1 << 20, "{work:?}");
}

/// An erofs with blocks of 64 KiB, whose root directory is the second of them.
fn erofs(directory: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 16];
    let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
    put(1024, &0xe0f5_e1e2_u32.to_le_bytes());
    put(1024 + 12, &[16]);
    put(1024 + 14, &64_u16.to_le_bytes());
    put(64 * 32 + 4, &0o040_755_u16.to_le_bytes());
    put(64 * 32 + 8, &(directory.len() as u32).to_le_bytes());
    put(64 * 32 + 16, &1_u32.to_le_bytes());
    disk.extend_from_slice(directory);
    disk
}

#[test]
fn names_of_erofs_that_overlap_are_not_looked_through() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Every other name begins near the beginning of the block and ends with it.
    let mut directory = [[1, 1, 1, 1, 1, 1, 1, 1, 0xf4, 0xff, 1, 1], [1; 12]].concat().repeat(2730);
    directory.resize(1 << 16, 1);
    let report = measured("overlapping names of erofs", &erofs(&directory).as_slice(), &Work::default());
    assert!(has(&report, "image-corrupt") && !has(&report, "init-missing"), "{report:#?}");
    // With names as they should be, all are looked through.
    let mut directory = vec![0; 12];
    directory[8] = 12;
    directory.extend_from_slice(b"etc");
    let report = measured("an erofs with one name", &erofs(&directory).as_slice(), &Work::default());
    assert!(has(&report, "init-missing"), "{report:#?}");
}

#[test]
fn loops_of_symbolic_links_end_after_forty() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let looped = Cpio::default().folder("a").link("a/b", "../a/b/b/b/b/b/b/b/b").link("init", "a/b/c").end();
    let work = Work::default();
    let report = image_within(&looped.as_slice(), &guest(""), &work);
    println!("a loop of links: {} bytes read", work.read_bytes());
    assert!(has(&report, "init-link-loop"), "{report:#?}");
    // A chain of forty is followed, as the kernel does; one of forty-one is not.
    for (length, fine) in [(40, true), (41, false)] {
        let chain = (1..length).fold(Cpio::default().link("init", "1"), |archive, number| {
            archive.link(&number.to_string(), &(number + 1).to_string())
        });
        let chain = chain.file(&length.to_string(), &program(X86_64, EXIT)).end();
        assert_eq!(has(&image_within(&chain.as_slice(), &guest(""), &work), "init-link-loop"), !fine, "{length}");
    }
}

/// The files of the largest archive.
const MILLION: usize = 1_000_000;

#[test]
fn folder_with_a_million_entries_is_looked_through() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut archive = Cpio(Vec::with_capacity(MILLION * 128 + 1024)).folder("many");
    for number in 0..MILLION {
        archive = archive.file(&format!("many/{number:07}"), b"....");
    }
    let bytes = archive.file("init", &program(X86_64, EXIT)).end();
    let before = forget_peak();
    let work = Work::default();
    let report = measured("a cpio with a million entries", &bytes.as_slice(), &work);
    assert_eq!((fact(&report, "entries"), report.worst()), ("1000002".into(), None), "{report:#?}");
    println!("the inspector took {} KiB more than the archive itself", peak_kib() - before);
    assert!(work.entries() < limits::ARCHIVE_ENTRIES);
    assert!(peak_kib() - before < 100 << 10, "each entry may cost 32 bytes");
}

/// An archive without an end: the same entry again and again.
struct Endless(Vec<u8>);

impl Source for Endless {
    fn len(&self) -> u64 {
        1 << 40
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let at = (offset % self.0.len() as u64) as usize;
        let count = (self.0.len() - at).min(buffer.len());
        buffer[..count].copy_from_slice(&self.0[at..at + count]);
        Ok(count)
    }
}

#[test]
fn archive_without_an_end_is_left_at_the_bound_of_entries() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let work = Work::limited(1 << 30);
    let report =
        measured("an archive without an end", &Endless(Cpio::default().file("again", b"").0.repeat(1000)), &work);
    assert!(has(&report, "too-large-to-look-at"), "{report:#?}");
    assert!(work.entries() <= limits::ARCHIVE_ENTRIES + 1);
}

#[test]
fn hostile_program_costs_no_more_than_its_bytes_and_the_bound() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut elf = program(X86_64, &EXIT.repeat(100));
    // As many headers as the kernel takes, all of them the first one over and over, and sizes without a limit.
    let header = elf[64..120].to_vec();
    elf[56..58].copy_from_slice(&1170_u16.to_le_bytes());
    elf.truncate(64);
    for number in 0..1170_u32 {
        let mut own = header.clone();
        own[..4].copy_from_slice(&[1_u32, 2, 4, 0x6474_e553][(number % 4) as usize].to_le_bytes());
        own[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        elf.extend_from_slice(&own);
    }
    elf.extend_from_slice(&EXIT.repeat(100));
    let archive = Cpio::default().file("init", &elf).end();
    let work = Work::default();
    let report = measured("a hostile program", &archive.as_slice(), &work);
    assert!(has(&report, "elf-truncated") && report.findings.len() <= Report::MAX_FINDINGS, "{report:#?}");
    assert!(work.read_bytes() < 64 << 20, "{work:?}");
}

#[test]
fn long_paths_through_links_end_at_a_bound() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Each entry goes forty times through a link to itself, by folders up and down.
    let looped = format!("{}l", "a/../".repeat(800));
    let archive = Cpio::default().file("init", &program(X86_64, EXIT)).link("l", &looped);
    let bytes = (0..2_000).fold(archive, |archive, number| archive.file(&format!("l/{number}"), b"")).end();
    let work = Work::limited(64 << 20);
    let report = measured("entries behind a link to itself", &bytes.as_slice(), &work);
    assert!(has(&report, "too-large-to-look-at") && work.entries() < 1_000, "{work:?}");
    // The same in what a program has its libraries looked for.
    let folders = (0..64).map(|number| format!("/l{number}/x")).collect::<Vec<_>>().join(":");
    let mut needy = Linked::new(X86_64).loader("/ld.so").runpath(&folders);
    for number in 0..64 {
        needy = needy.needs(&format!("lib{number}.so"));
    }
    let mut archive = Cpio::default().folder("a").file("init", &needy.end()).file("ld.so", &program(X86_64, EXIT));
    for number in 0..64 {
        archive = archive.link(&format!("l{number}"), &format!("{}l{number}", "a/../".repeat(800)));
    }
    let work = Work::default();
    let report = measured("libraries behind links to themselves", &archive.end().as_slice(), &work);
    assert!(has(&report, "too-large-to-look-at") && !has(&report, "library-missing"), "{report:#?}");
}
