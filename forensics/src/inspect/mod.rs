//! What an image or a kernel is, and what will go wrong with it.
//!
//! Everything here reads bytes that nobody vouches for, with readers of our own and pure decompressors, within the bounds
//! of [`limits`].

mod archive;
mod archive_links;
mod bytes;
mod cmdline;
mod cpio;
mod cursor;
mod disk;
mod elf;
mod exec;
mod foreign;
mod fs;
mod gpt;
mod initramfs;
mod initramfs_findings;
mod kernel;
mod kernel_config;
mod libraries;
pub mod limits;
mod loader;
mod packed;
mod program;
mod recognise;
mod root;
mod scene;
mod tar;
mod tree;
mod trouble;
mod unpack;

use crate::{Report, Source};
use bytes::Raw;
use limits::Work;
use scene::Scene;

/// The architecture of the guest that is to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit PCs.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// The guest that the image is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its architecture.
    pub architecture: Architecture,
    /// The kernel command line (`init=`, `rdinit=`, `root=`), as far as it is known.
    pub cmdline: String,
    /// Its memory in bytes, where it is known.
    pub memory_bytes: Option<u64>,
}

/// Looks at an initramfs, a file system, a disk or an archive.
#[must_use]
pub fn image(source: &dyn Source, guest: &Guest) -> Report {
    image_within(source, guest, &Work::default())
}

/// As [`image`], within bounds of the caller's, whose counters then say what it cost.
#[must_use]
pub fn image_within(source: &dyn Source, guest: &Guest, work: &Work) -> Report {
    let mut report = Report::default();
    let raw = Raw::new(source, work);
    let mut scene = Scene::new(guest, work, &mut report);
    scene.fact("size", bytes::size(raw.len()));
    recognise::image(&mut scene, raw);
    report
}

/// Looks at a kernel.
#[must_use]
pub fn kernel(source: &dyn Source, guest: &Guest) -> Report {
    kernel_within(source, guest, &Work::default())
}

/// As [`kernel`], within bounds of the caller's.
#[must_use]
pub fn kernel_within(source: &dyn Source, guest: &Guest, work: &Work) -> Report {
    let mut report = Report::default();
    let raw = Raw::new(source, work);
    let mut scene = Scene::new(guest, work, &mut report);
    scene.fact("size", bytes::size(raw.len()));
    kernel::inspect(&mut scene, raw);
    report
}
