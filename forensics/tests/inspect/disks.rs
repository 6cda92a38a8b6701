//! Disks with partitions, what is taken for one, and what root= says of it.

use crate::make::{clean, expect, fact, fixture, found, guest};
use forensics::inspect::image;
use std::io::Write;
use wire::report::Severity::{Fatal, Warning};

/// Where the second partition begins, in sectors.
const SECOND: usize = 128;

/// A disk with an empty partition and one with a file system.
fn mbr() -> Vec<u8> {
    let mut disk = vec![0; 512 * 512];
    let root = fixture!("root.ext2");
    disk[SECOND * 512..SECOND * 512 + root.len()].copy_from_slice(root);
    disk[440..444].copy_from_slice(&0x1234_5678_u32.to_le_bytes());
    for (number, (start, sectors)) in [(64_u32, 32_u32), (SECOND as u32, 128)].into_iter().enumerate() {
        let entry = 446 + number * 16;
        disk[entry + 4] = 0x83;
        disk[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
        disk[entry + 12..entry + 16].copy_from_slice(&sectors.to_le_bytes());
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

fn gpt() -> Vec<u8> {
    let mut disk = mbr();
    protect(&mut disk);
    let (header, entries) = gpt_at(1, 2, 1);
    disk[512..1024].copy_from_slice(&header);
    disk[1024..1024 + entries.len()].copy_from_slice(&entries);
    // The one at the end.
    let last = disk.len() - 512;
    disk[last..].copy_from_slice(&gpt_at(511, 2, 1).0);
    disk
}

fn protect(disk: &mut [u8]) {
    disk[446..510].fill(0);
    disk[450] = 0xee;
    disk[454] = 1;
    disk[458..462].copy_from_slice(&511_u32.to_le_bytes());
}

/// The header of a GPT in sector `at`, whose entries are in another, and the entries; a sector has `larger` times 512 bytes.
fn gpt_at(at: u64, entries_at: u64, larger: u64) -> (Vec<u8>, Vec<u8>) {
    let mut entries = vec![0; 128 * 128];
    for (number, (first, last, name)) in
        [(64_u64, 95_u64, "boot"), (SECOND as u64, 255, "root")].into_iter().enumerate()
    {
        let entry = &mut entries[number * 128..(number + 1) * 128];
        entry[..32].fill(number as u8 + 1);
        entry[32..40].copy_from_slice(&(first / larger).to_le_bytes());
        entry[40..48].copy_from_slice(&(last / larger).to_le_bytes());
        for (index, unit) in name.encode_utf16().enumerate() {
            entry[56 + index * 2..58 + index * 2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let mut header = vec![0; 512];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[24..32].copy_from_slice(&at.to_le_bytes());
    header[72..80].copy_from_slice(&entries_at.to_le_bytes());
    header[80] = 128;
    header[84] = 128;
    header[88..92].copy_from_slice(&crc(&entries));
    let sum = crc(&header[..92]);
    header[16..20].copy_from_slice(&sum);
    (header, entries)
}

#[test]
fn partition_that_is_the_root_is_looked_into() {
    for (disk, uuid) in [(mbr(), "12345678-02"), (gpt(), "02020202-0202-0202-0202-020202020202")] {
        for root in ["/dev/vda2".to_owned(), format!("PARTUUID={uuid}")] {
            let report = clean(&disk, &guest(&format!("root={root}")));
            assert_eq!((fact(&report, "root-partition"), fact(&report, "init")), ("2".into(), "/sbin/init".into()));
        }
        clean(&disk, &guest(""));
    }
    clean(&gpt(), &guest("root=PARTLABEL=root"));
}

#[test]
fn root_parameter_that_fits_no_partition_is_told() {
    let finding = expect(&mbr(), &guest("root=/dev/vda3"), "root-partition-missing", Fatal);
    assert!(finding.evidence.get().iter().any(|line| line.to_string().contains("/dev/vda2")), "{finding:?}");
    expect(&gpt(), &guest("root=PARTLABEL=rot"), "root-partition-missing", Fatal);
    expect(&mbr(), &guest("root=/dev/vda"), "root-names-whole-disk", Fatal);
    expect(fixture!("root.ext2"), &guest("root=/dev/vda1"), "root-names-no-partition", Fatal);
    expect(fixture!("root.ext2"), &guest("root=LABEL=fixture2"), "root-needs-initramfs", Warning);
    expect(fixture!("root.ext2"), &guest("rootfstype=squashfs"), "root-type-wrong", Fatal);
    expect(&mbr(), &guest("root=/dev/vda1"), "cannot-look-inside", Warning);
}

#[test]
fn iso_image_with_partitions_can_be_mounted_whole() {
    let mut disk = mbr();
    disk[0x8001..0x8006].copy_from_slice(b"CD001");
    let report = clean(&disk, &guest("root=/dev/vda"));
    assert_eq!(fact(&report, "filesystem"), "iso9660");
    expect(&disk, &guest("root=/dev/vda3"), "root-partition-missing", Fatal);
}

#[test]
fn encrypted_disk_can_be_opened_by_an_initramfs() {
    let whole = [&b"LUKS\xba\xbe\x00\x02"[..], &[0; 4096]].concat();
    expect(&whole, &guest("root=/dev/vda"), "cannot-look-inside", Warning);
    let mut disk = mbr();
    disk[SECOND * 512..SECOND * 512 + 4096].copy_from_slice(&whole[..4096]);
    let report = image(&disk.as_slice(), &guest("root=/dev/vda2"));
    assert_eq!(report.worst(), Some(Warning), "{report:#?}");
    assert!(report.facts.iter().any(|fact| fact.value.to_string() == "LUKS"), "{report:#?}");
}

#[test]
fn logical_partitions_count_from_five() {
    let mut disk = mbr();
    // The second entry becomes an extended partition in front of the file system.
    disk[446 + 16 + 4] = 5;
    let table = 100;
    disk[446 + 16 + 8..446 + 16 + 12].copy_from_slice(&(table as u32).to_le_bytes());
    let at = table * 512;
    disk[at + 446 + 4] = 0x83;
    disk[at + 446 + 8..at + 446 + 12].copy_from_slice(&((SECOND - table) as u32).to_le_bytes());
    disk[at + 446 + 12..at + 446 + 16].copy_from_slice(&128_u32.to_le_bytes());
    disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    let report = clean(&disk, &guest("root=/dev/vda5"));
    assert_eq!(fact(&report, "init"), "/sbin/init");
    // A chain of tables that leads back to itself ends.
    disk[at + 462 + 8] = 0;
    disk[at + 462 + 12] = 1;
    disk[at + 462 + 8..at + 462 + 12].copy_from_slice(&1_u32.to_le_bytes());
    let next = at + 512;
    let copy = disk[at + 446..at + 512].to_vec();
    disk[next + 446..next + 512].copy_from_slice(&copy);
    let (report, _) = found(&disk, &guest(""), "too-large-to-look-at");
    assert!(report.facts.len() <= forensics::Report::MAX_FACTS);
}

#[test]
fn disk_that_was_cut_or_damaged_is_told() {
    let disk = mbr();
    expect(&disk[..(SECOND + 100) * 512], &guest(""), "partition-behind-end", Warning);
}

#[test]
fn gpt_that_the_kernel_does_not_take_is_told() {
    let mut damaged = gpt();
    damaged[512 + 40] ^= 1;
    expect(&damaged, &guest(""), "gpt-damaged", Warning);
    expect(&damaged, &guest("root=/dev/vda"), "gpt-damaged", Warning);
    expect(&damaged, &guest("root=/dev/vda2"), "gpt-damaged", Fatal);
    // The one at the end is taken where the command line says so.
    let report = image(&damaged.as_slice(), &guest("gpt root=/dev/vda2"));
    assert_eq!((report.worst(), fact(&report, "init")), (Some(Warning), "/sbin/init".into()), "{report:#?}");
    damaged[512..520].fill(0);
    expect(&damaged, &guest("gpt root=/dev/vda2"), "gpt-damaged", Warning);
    expect(&damaged, &guest("root=/dev/vda2"), "gpt-missing", Fatal);
    expect(&damaged, &guest(""), "gpt-missing", Warning);
    // A header that is longer than it must be has a check sum over all of it.
    let mut long = gpt();
    long[512 + 12..512 + 20].copy_from_slice(&[0, 2, 0, 0, 0, 0, 0, 0]);
    let sum = crc(&long[512..1024]);
    long[512 + 16..512 + 20].copy_from_slice(&sum);
    clean(&long, &guest("root=/dev/vda2"));
}

#[test]
fn gpt_of_large_sectors_is_not_seen_by_the_guest() {
    let mut disk = mbr();
    protect(&mut disk);
    // The partitions begin behind the entries here.
    disk.splice(512..512, vec![0; 64 * 512]);
    let (header, entries) = gpt_at(1, 2, 8);
    disk[4096..4608].copy_from_slice(&header);
    disk[8192..8192 + entries.len()].copy_from_slice(&entries);
    expect(&disk, &guest("root=/dev/vda2"), "gpt-sector-size", Fatal);
    expect(&disk, &guest(""), "gpt-sector-size", Warning);
}

#[test]
fn what_is_no_raw_disk_is_told_with_the_remedy() {
    let with = |magic: &[u8]| [magic, &[0; 2000]].concat();
    for magic in [&b"QFI\xfb"[..], b"KDMV", b"vhdxfile", b"conectix", &[0x3a, 0xff, 0x26, 0xed], b"PK\x03\x04"] {
        let finding = expect(&with(magic), &guest(""), "image-is-not-raw", Fatal);
        assert!(!finding.remedy.is_empty());
    }
    let finding = expect(&with(b"QFI\xfb"), &guest(""), "image-is-not-raw", Fatal);
    assert!(finding.remedy.to_string().contains("qemu-img convert"), "{finding:?}");
    expect(fixture!("init-x86_64"), &guest(""), "image-is-a-kernel", Fatal);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(fixture!("root.ext2")).unwrap();
    let finding = expect(&packed.finish().unwrap(), &guest(""), "image-is-compressed", Fatal);
    assert!(finding.remedy.to_string().contains("gunzip"), "{finding:?}");
    assert_eq!(image(&mbr().as_slice(), &guest("")).worst(), None);
}

#[test]
fn gpt_whose_usable_sectors_are_not_on_the_disk_is_not_taken() {
    let with = |first: u64, last: u64| {
        let mut disk = gpt();
        disk[512 + 40..512 + 48].copy_from_slice(&first.to_le_bytes());
        disk[512 + 48..512 + 56].copy_from_slice(&last.to_le_bytes());
        disk[512 + 16..512 + 20].fill(0);
        let sum = crc(&disk[512..512 + 92]);
        disk[512 + 16..512 + 20].copy_from_slice(&sum);
        disk
    };
    clean(&with(34, 511), &guest("root=/dev/vda2"));
    for (first, last) in [(34, 512), (512, 512), (40, 39)] {
        expect(&with(first, last), &guest("root=/dev/vda2"), "gpt-damaged", Fatal);
        expect(&with(first, last), &guest(""), "gpt-damaged", Warning);
    }
}

#[test]
fn partition_that_the_disk_cuts_is_shorter_or_not_there() {
    let why = |disk: &[u8]| expect(disk, &guest(""), "partition-behind-end", Warning).why.to_string();
    assert!(why(&mbr()[..200 * 512]).contains("truncates the partition"));
    assert!(why(&mbr()[..100 * 512]).contains("has no such partition"));
    assert!(why(&gpt()[..200 * 512]).contains("has no such partition"));
}
