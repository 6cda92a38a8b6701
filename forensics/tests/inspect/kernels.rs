//! Kernels of each format, made here with the fields that are looked at.

use crate::make::{X86_64, fact, fixture, guest, program};
use forensics::Report;
use forensics::inspect::{Architecture, Guest, kernel};
use std::io::Write;
use wire::report::Severity::{self, Fatal, Note, Warning};

fn arm() -> Guest {
    Guest { architecture: Architecture::Aarch64, cmdline: String::new(), memory_bytes: None }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// What a kernel carries: its banner and its configuration.
fn with_config(config: &str) -> Vec<u8> {
    [b"Linux version 6.1.2 (someone)\n\0".as_slice(), b"IKCFG_ST", &gzip(config.as_bytes()), b"IKCFG_ED"].concat()
}

fn bz_image(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    image[0x300..0x308].copy_from_slice(b"6.1.2 #1");
    image[0x236] = 1;
    image[0x238..0x23c].copy_from_slice(&60_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image[0x1f4..0x1f8].copy_from_slice(&((payload.len() / 16) as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image
}

fn arm64_image(pages: u8) -> Vec<u8> {
    let mut image = vec![0; 8192];
    image[24] = pages << 1;
    image[56..60].copy_from_slice(b"ARM\x64");
    image.extend_from_slice(&with_config("CONFIG_VIRTIO_MMIO=y\n"));
    image
}

fn expect(bytes: &[u8], guest: &Guest, id: &str, severity: Severity) -> Report {
    let report = kernel(&bytes, guest);
    let found = report.findings.iter().any(|finding| finding.id.as_str() == id && finding.severity == severity);
    assert!(found, "{id} is not in {report:#?}");
    report
}

#[test]
fn bz_image_tells_its_version_and_configuration() {
    let config = "CONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_BLK=y\nCONFIG_SERIAL_8250_CONSOLE=y\nCONFIG_DEVTMPFS=y\n";
    let image = bz_image(&gzip(&[program(X86_64, &[0x90; 64]), with_config(config)].concat()));
    let report = expect(&image, &guest(""), "kernel-driver-is-module", Note);
    assert_eq!(fact(&report, "format"), "bzImage, boot protocol 2.15");
    assert_eq!(fact(&report, "version"), "6.1.2 #1");
    assert_eq!(fact(&report, "compression"), "gzip");
    assert_eq!(fact(&report, "command-line-limit"), "60 bytes");
    assert!(fact(&report, "config").contains("VIRTIO_MMIO=m VIRTIO_BLK=y"), "{report:#?}");
    // CONFIG_BLK_DEV_INITRD is not among them.
    expect(&image, &guest(""), "kernel-lacks-option", Warning);
    expect(&image, &arm(), "kernel-wrong-architecture", Fatal);
    expect(&image, &guest(&"x".repeat(61)), "kernel-command-line-too-long", Fatal);
    expect(&image[..image.len() - 100], &guest(""), "kernel-truncated", Fatal);
    let mut damaged = image.clone();
    let middle = damaged.len() - 40;
    damaged[middle..].fill(0xff);
    expect(&damaged, &guest(""), "kernel-payload-broken", Fatal);
}

#[test]
fn kernel_without_a_configuration_says_that_it_cannot_be_told() {
    let image = bz_image(&gzip(&program(X86_64, &[0x90; 64])));
    let report = kernel(&image.as_slice(), &guest(""));
    assert_eq!(report.findings, []);
    assert!(fact(&report, "config").contains("cannot be told"));
}

#[test]
fn arm64_image_tells_its_pages() {
    let report = kernel(&arm64_image(1).as_slice(), &arm());
    assert_eq!((fact(&report, "page-size"), fact(&report, "format")), ("4 KiB".into(), "arm64 Image".into()));
    assert_eq!(fact(&report, "version"), "Linux version 6.1.2 (someone)");
    expect(&arm64_image(3), &arm(), "kernel-page-size", Warning);
    expect(&arm64_image(1), &guest(""), "kernel-wrong-architecture", Fatal);
    let report = kernel(&gzip(&arm64_image(1)).as_slice(), &arm());
    assert_eq!((fact(&report, "page-size"), fact(&report, "compression")), ("4 KiB".into(), "gzip".into()));
    let mut big = arm64_image(1);
    big[24] |= 1;
    expect(&big, &arm(), "kernel-big-endian", Fatal);
}

#[test]
fn what_is_no_kernel_is_told() {
    expect(b"hello", &guest(""), "kernel-not-recognised", Fatal);
    expect(fixture!("initramfs.cpio.gz"), &guest(""), "kernel-not-recognised", Fatal);
    expect(fixture!("root.ext2"), &arm(), "kernel-not-recognised", Fatal);
    let mut zboot = vec![0; 4096];
    zboot[..8].copy_from_slice(b"MZ\0\0zimg");
    expect(&zboot, &arm(), "kernel-zboot", Fatal);
    expect(&program(183, &[0; 64]), &guest(""), "kernel-wrong-architecture", Fatal);
}
