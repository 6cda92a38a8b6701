//! Any bytes as an image, an archive, a program, a kernel or a file system, to what the inspector makes of them.
//!
//! It comes to an end within the bounds that it was given, says the same twice, and each finding has words, evidence that
//! can be told and a remedy. An archive that is made well has as many entries as it was given, and no fault.

use arbitrary::{Result, Unstructured};
use forensics::Report;
use forensics::inspect::limits::Work;
use forensics::inspect::{Architecture, Guest, image_within, kernel_within};

/// What one input may cost: little, so that many can be tried.
const BYTES: u64 = 8 << 20;
/// The largest file system that an input stands for.
const FILESYSTEM_BYTES: usize = 256 << 10;

/// A file of the fixtures of forensics.
macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../../forensics/fixtures/", $name)).as_slice()
    };
}

fn guest(architecture: Architecture, cmdline: &str) -> Guest {
    Guest { architecture, cmdline: cmdline.into(), memory_bytes: Some(256 << 20) }
}

/// What must hold for any report.
fn check(report: &Report, work: &Work) {
    assert!(report.facts.len() <= Report::MAX_FACTS && report.findings.len() <= Report::MAX_FINDINGS);
    // One more step than the bound, and nothing after it.
    assert!(work.read_bytes() + work.unpacked_bytes() <= BYTES + (16 << 20), "{work:?}");
    for finding in &report.findings {
        assert!(!finding.what.is_empty() && !finding.why.is_empty() && !finding.remedy.is_empty(), "{finding:?}");
    }
}

fn look_at_image(bytes: &[u8], guest: &Guest) -> Report {
    let work = Work::limited(BYTES);
    let report = image_within(&bytes, guest, &work);
    check(&report, &work);
    report
}

/// Any bytes as an image.
///
/// # Panics
/// When something does not hold.
pub fn image(bytes: &[u8]) {
    let first = look_at_image(bytes, &guest(Architecture::X86_64, "root=/dev/vda1 rootfstype=ext4"));
    let again = look_at_image(bytes, &guest(Architecture::X86_64, "root=/dev/vda1 rootfstype=ext4"));
    assert_eq!(first, again);
    look_at_image(bytes, &guest(Architecture::Aarch64, ""));
}

/// Any bytes as a kernel.
///
/// # Panics
/// When something does not hold.
pub fn kernel(bytes: &[u8]) {
    for architecture in [Architecture::X86_64, Architecture::Aarch64] {
        let work = Work::limited(BYTES);
        check(&kernel_within(&bytes, &guest(architecture, "console=ttyS0"), &work), &work);
    }
}

/// An entry of an archive in the format newc.
fn entry(archive: &mut Vec<u8>, name: &[u8], mode: u32, links: u32, body: &[u8]) {
    let header = [1, mode, 0, 0, links, 0, body.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend_from_slice(b"070701");
    for field in header {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name);
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(body);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn arbitrary_archive(u: &mut Unstructured<'_>) -> Result<(Vec<u8>, usize)> {
    const NAMES: [&[u8]; 12] = [
        b"init",
        b"./init",
        b"bin",
        b"bin/sh",
        b"sbin",
        b"sbin/init",
        b"lib",
        b"lib/ld.so",
        b"lib/modules/6.1/modules.builtin",
        b"a",
        b"a/../b",
        b"dev",
    ];
    let mut archive = Vec::new();
    let count = u.int_in_range(0..=24_usize)?;
    for _ in 0..count {
        let own: Vec<u8>;
        let name = match u.int_in_range(0..=15_usize)? {
            known @ 0..=11 => NAMES[known],
            _ => {
                own = u.bytes(4)?.iter().map(|byte| byte | 1).collect();
                &own
            }
        };
        let mode = *u.choose(&[0o100_755, 0o100_644, 0o040_755, 0o120_777, 0o020_600])?;
        let length = u.int_in_range(0..=512_usize)?.min(u.len());
        let body = if mode & 0o170_000 == 0o040_000 { &[] } else { u.bytes(length)? };
        entry(&mut archive, name, mode, u.int_in_range(1..=2)?, body);
    }
    entry(&mut archive, b"TRAILER!!!", 0, 1, &[]);
    Ok((archive, count))
}

/// An archive that is made well, whole and cut anywhere.
///
/// # Panics
/// When something does not hold.
pub fn cpio(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let cut = u16::arbitrary_or_zero(&mut u);
    let Ok((archive, count)) = arbitrary_archive(&mut u) else { return };
    let report = look_at_image(&archive, &guest(Architecture::X86_64, ""));
    let entries = report.facts.iter().find(|fact| fact.name.as_str() == "entries").map(|fact| fact.value.to_string());
    assert_eq!(entries, Some(count.to_string()), "{report:?}");
    assert!(
        !report
            .findings
            .iter()
            .any(|finding| finding.id.as_str().starts_with("cpio-") && finding.id.as_str() != "cpio-parent-missing"),
        "{report:?}"
    );
    let end = usize::from(cut) % (archive.len() + 1);
    look_at_image(&archive[..end], &guest(Architecture::Aarch64, "rdinit=/sbin/init"));
}

/// A number of 16 bits, or 0 where there are no bytes.
trait OrZero {
    fn arbitrary_or_zero(u: &mut Unstructured<'_>) -> Self;
}

impl OrZero for u16 {
    fn arbitrary_or_zero(u: &mut Unstructured<'_>) -> Self {
        u.arbitrary().unwrap_or_default()
    }
}

/// Any bytes as the init of an archive that is whole.
///
/// # Panics
/// When something does not hold.
pub fn elf(bytes: &[u8]) {
    let mut archive = Vec::new();
    entry(&mut archive, b"lib", 0o040_755, 2, &[]);
    entry(&mut archive, b"lib/ld.so", 0o100_755, 1, bytes);
    entry(&mut archive, b"init", 0o100_755, 1, bytes);
    entry(&mut archive, b"TRAILER!!!", 0, 1, &[]);
    for architecture in [Architecture::X86_64, Architecture::Aarch64] {
        look_at_image(&archive, &guest(architecture, ""));
    }
}

/// Makes a file system of runs: how many units of 32 zeros, how many bytes, and those.
fn expand(mut runs: &[u8]) -> Vec<u8> {
    let mut image = Vec::new();
    while let Some((head, rest)) = runs.split_first_chunk::<4>() {
        let zeros = usize::from(u16::from_le_bytes([head[0], head[1]])) * 32;
        let count = usize::from(u16::from_le_bytes([head[2], head[3]])).min(rest.len());
        if image.len() + zeros + count > FILESYSTEM_BYTES {
            break;
        }
        image.resize(image.len() + zeros, 0);
        image.extend_from_slice(&rest[..count]);
        runs = &rest[count..];
    }
    image
}

/// Writes a file system as such runs.
fn pack(image: &[u8]) -> Vec<u8> {
    let mut runs = Vec::new();
    let units: Vec<&[u8]> = image.chunks(32).collect();
    let mut at = 0;
    while at < units.len() {
        let is_zero = |unit: &&&[u8]| unit.iter().all(|byte| *byte == 0);
        let zeros = units[at..].iter().take_while(is_zero).take(65535).count();
        at += zeros;
        let data: Vec<u8> =
            units[at..].iter().take_while(|unit| !is_zero(unit)).take(2000).flat_map(|unit| unit.to_vec()).collect();
        at += data.len().div_ceil(32);
        runs.extend_from_slice(&(zeros as u16).to_le_bytes());
        runs.extend_from_slice(&(data.len() as u16).to_le_bytes());
        runs.extend_from_slice(&data);
    }
    runs
}

/// Any file system, written as runs.
///
/// # Panics
/// When something does not hold.
pub fn filesystem(bytes: &[u8]) {
    let image = expand(bytes);
    look_at_image(&image, &guest(Architecture::X86_64, "root=/dev/vda init=/bin/sh"));
    look_at_image(&image, &guest(Architecture::X86_64, ""));
}

/// Inputs to begin with.
#[must_use]
pub fn image_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let all = [
        ("cpio", fixture!("initramfs.cpio")),
        ("cpio_crc", fixture!("initramfs-crc.cpio")),
        ("cpio_odc", fixture!("initramfs-odc.cpio")),
        ("gzip", fixture!("initramfs.cpio.gz")),
        ("xz", fixture!("initramfs.cpio.xz")),
        ("xz_crc64", fixture!("initramfs-crc64.cpio.xz")),
        ("lzma", fixture!("initramfs.cpio.lzma")),
        ("zstd", fixture!("initramfs.cpio.zst")),
        ("lz4", fixture!("initramfs.cpio.lz4")),
        ("lz4_frame", fixture!("initramfs-frame.cpio.lz4")),
        ("bzip2", fixture!("initramfs.cpio.bz2")),
        ("tar", fixture!("layer.tar")),
        ("tar_gz", fixture!("layer.tar.gz")),
    ];
    let mut seeds: Vec<_> = all.into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect();
    seeds.push(("two_parts", [fixture!("initramfs.cpio"), fixture!("initramfs.cpio.zst")].concat()));
    seeds
}

/// Inputs to begin with.
#[must_use]
pub fn cpio_seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![("bytes", (0..=255).cycle().take(900).collect()), ("one", vec![9, 0, 1, 0, 0, 0, 0, 0])]
}

/// Inputs to begin with.
#[must_use]
pub fn elf_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let init = fixture!("init-x86_64").to_vec();
    let mut arm = init.clone();
    arm[18] = 183;
    vec![("x86_64", init), ("arm64", arm), ("script", b"#!/lib/ld.so\n".to_vec())]
}

/// Inputs to begin with.
#[must_use]
pub fn kernel_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut bz_image = vec![0; 0x800];
    bz_image[0x1f1] = 1;
    bz_image[0x202..0x206].copy_from_slice(b"HdrS");
    bz_image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    bz_image[0x236] = 1;
    bz_image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    bz_image[0x248..0x24c].copy_from_slice(&0x400_u32.to_le_bytes());
    let payload = fixture!("initramfs.cpio.gz");
    bz_image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bz_image.extend_from_slice(payload);
    let mut image = vec![0; 0x1000];
    image[24] = 2;
    image[56..60].copy_from_slice(b"ARM\x64");
    image.extend_from_slice(b"Linux version 6.1.0 (fixture)\nIKCFG_ST");
    image.extend_from_slice(fixture!("initramfs.cpio.gz"));
    vec![("bz_image", bz_image), ("arm64_image", image), ("elf", fixture!("init-x86_64").to_vec())]
}

/// Inputs to begin with.
#[must_use]
pub fn filesystem_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let all = [
        ("ext2", fixture!("root.ext2")),
        ("ext4", fixture!("root.ext4")),
        ("squashfs_gzip", fixture!("root-gzip.squashfs")),
        ("squashfs_xz", fixture!("root-xz.squashfs")),
        ("squashfs_zstd", fixture!("root-zstd.squashfs")),
        ("squashfs_lz4", fixture!("root-lz4.squashfs")),
        ("erofs", fixture!("root.erofs")),
        ("erofs_chunks", fixture!("root-chunks.erofs")),
    ];
    all.into_iter().map(|(name, image)| (name, pack(image))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_written_as_runs_is_read_back() {
        let image = fixture!("root.ext4");
        let mut read = expand(&pack(image));
        read.resize(image.len(), 0);
        assert!(read == image);
    }
}
