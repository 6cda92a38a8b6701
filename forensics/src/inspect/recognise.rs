//! What an image is, by its first bytes; and who looks at it then.

use super::bytes::{Bytes, Raw, up_to};
use super::cmdline::{self, Layout};
use super::fs::{erofs, ext, ext_findings, squashfs};
use super::scene::{Scene, Words};
use super::tree::Tree;
use super::trouble::Trouble;
use super::unpack::Method;
use super::{disk, foreign, initramfs, kernel, packed, root, tar};
use std::rc::Rc;
use wire::report::Confidence::{Certain, Likely};

/// The first bytes, in which every magic is.
pub(crate) const HEAD: usize = 68 << 10;

/// The magic of lz4's frame of today, which the kernel does not know: said of an initramfs.
const LZ4_FRAME: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// Recognises the image and looks at it.
pub(crate) fn image(scene: &mut Scene<'_>, raw: Raw<'_>) {
    let head = match up_to(&raw, 0, HEAD) {
        Ok(head) => head,
        Err(trouble) => return scene.trouble("the image", &trouble),
    };
    if head.is_empty() {
        let words =
            Words { what: &"the image is empty", why: &"it has no bytes at all", remedy: &"make or copy it anew" };
        return scene.fatal("image-empty", Certain, &words, &[]);
    }
    if let Err(trouble) = dispatch(scene, raw, &head) {
        scene.trouble("the image", &trouble);
    }
}

fn dispatch(scene: &mut Scene<'_>, raw: Raw<'_>, head: &[u8]) -> Result<(), Trouble> {
    // A file system is told by a magic that neither an archive nor a boot sector has in its place.
    if filesystem(scene, raw, head)? {
        return Ok(());
    }
    if initramfs::begins(head) {
        initramfs::inspect(scene, raw);
        return Ok(());
    }
    if tar::begins(head) {
        return archive(scene, Rc::new(raw), false);
    }
    if foreign::recognise(scene, &raw, head)? {
        return Ok(());
    }
    if kernel::is_kernel(head) {
        let words = Words {
            what: &"this is a kernel, not an image",
            why: &"it begins as a kernel or a program does",
            remedy: &"give it as the kernel (-k), and an initramfs or a disk as the image",
        };
        scene.fatal("image-is-a-kernel", Likely, &words, &[]);
        return Ok(());
    }
    if let Some(table) = disk::read(scene, &raw)? {
        return whole_disk(scene, raw, &table, foreign::filesystem_name(head));
    }
    if let Some(method) = Method::of(head) {
        return packed::inspect(scene, raw, method);
    }
    // An initramfs may begin with zeros.
    let zeros = head.iter().take_while(|byte| **byte == 0).count();
    if head.get(zeros..).is_some_and(initramfs::begins) || head.starts_with(&LZ4_FRAME) {
        initramfs::inspect(scene, raw);
        return Ok(());
    }
    unknown(scene, head);
    Ok(())
}

/// Says that it is not known what this is.
pub(crate) fn unknown(scene: &mut Scene<'_>, head: &[u8]) {
    let zeros = head.iter().all(|byte| *byte == 0);
    scene.fact("format", if zeros { "zeros" } else { "unknown" });
    let shown: Vec<_> = head.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let words = Words {
        what: &"it cannot be told what this is",
        why: &if zeros {
            "its first 68 KiB are zeros"
        } else {
            "it begins like none of: cpio, tar, ext2/3/4, squashfs, erofs, a disk with GPT or MBR, a compressed one of these"
        },
        remedy: &"see what `file` says of it; copy it anew if it was one of these",
    };
    scene.warn("not-recognised", Certain, &words, &[format!("it begins with {}", shown.join(" "))]);
}

/// Looks at a file system, if there is one that is read here.
fn filesystem(scene: &mut Scene<'_>, raw: Raw<'_>, head: &[u8]) -> Result<bool, Trouble> {
    if squashfs::begins(head) {
        whole(scene, "squashfs");
        let squashfs = squashfs::Squashfs::open(raw)?;
        squashfs.check(scene);
        tree(scene, &squashfs);
    } else if erofs::begins(head) {
        whole(scene, "erofs");
        let erofs = erofs::Erofs::open(raw)?;
        erofs.check(scene);
        tree(scene, &erofs);
    } else if ext::begins(head) && !tar::begins(head) && !initramfs::begins(head) {
        whole(scene, "ext4");
        let ext = ext::Ext::open(raw)?;
        ext_findings::check(scene, &ext, &raw);
        tree(scene, &ext);
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// The whole image is one file system: what the command line says of partitions is wrong.
fn whole(scene: &mut Scene<'_>, kind: &str) {
    if scene.of.is_empty() {
        cmdline::root(scene, &Layout::Whole(kind));
    }
}

fn tree(scene: &mut Scene<'_>, tree: &dyn Tree) {
    match tree.root() {
        Ok(_) => root::filesystem(scene, tree),
        Err(trouble) => scene.trouble("the root directory", &trouble),
    }
}

/// A disk: each partition for itself. Only the one that is root= must have an init.
fn whole_disk(
    scene: &mut Scene<'_>,
    raw: Raw<'_>,
    table: &disk::Table,
    mountable: Option<&str>,
) -> Result<(), Trouble> {
    disk::check(scene, &raw, table);
    if let Some(name) = mountable {
        scene.fact("filesystem", name);
    }
    let root = cmdline::root(scene, &Layout::Partitions(table, mountable));
    for partition in &table.partitions {
        let part = raw.part(partition.offset, partition.length);
        let mut scene = scene.part(format_args!("partition {}", partition.number));
        let head = up_to(&part, 0, HEAD)?;
        if root.is_some_and(|root| root != partition.number) {
            // Its format, but nothing of an init, which it need not have.
            scene.fact("filesystem", foreign::filesystem_name(&head).unwrap_or("not recognised"));
            continue;
        }
        let mut report = crate::Report::default();
        let mut own = Scene { guest: scene.guest, work: scene.work, report: &mut report, of: scene.of.clone() };
        let read = filesystem(&mut own, part, &head);
        if let Err(trouble) = &read {
            own.trouble("the file system", trouble);
        }
        let known = read != Ok(false);
        if !known {
            scene.fact("filesystem", foreign::filesystem_name(&head).unwrap_or("not recognised"));
        }
        if !known && root.is_some() {
            foreign::cannot_look(&mut scene, &head);
        }
        // Where it is not known which partition is the root, one without an init says nothing.
        let has_init = report.facts.iter().any(|fact| fact.name.as_str() == "init");
        if root.is_none() && !has_init {
            report.findings.retain(|finding| finding.severity != wire::report::Severity::Fatal);
        }
        for fact in report.facts {
            scene.report.fact_of(fact.of.to_string().as_str(), fact.name.as_str(), fact.value);
        }
        for finding in report.findings {
            scene.report.finding(finding);
        }
    }
    Ok(())
}

/// A tar archive: no disk, but what is in it can be said.
pub(crate) fn archive<'a>(scene: &mut Scene<'_>, bytes: Rc<dyn Bytes + 'a>, is_packed: bool) -> Result<(), Trouble> {
    let mut archive = super::archive::Archive::new(scene.work, false);
    let walked = tar::walk(&bytes, is_packed, &mut archive, scene.work);
    archive.finish();
    scene.fact("format", "tar archive");
    scene.fact("entries", archive.entries());
    let walked = walked?;
    if let Some(fault) = &walked.fault {
        let words = Words {
            what: &"the tar archive is cut or damaged",
            why: fault,
            remedy: &"copy it anew, and compare checksums",
        };
        scene.fatal("tar-truncated", Certain, &words, &[]);
    }
    let words = Words {
        what: &"this is a tar archive, which a kernel can neither mount nor unpack",
        why: &if walked.is_image {
            "it is the image of a container, with its layers as archives inside"
        } else {
            "it has files, but no file system"
        },
        remedy: &if walked.is_image {
            "unpack its layers one over the other into a folder (umoci unpack, docker export), then mke2fs -d FOLDER disk.ext4 1G"
        } else {
            "unpack it into a folder, then mke2fs -d FOLDER disk.ext4 1G, or (cd FOLDER && find . | cpio -o -H newc)"
        },
    };
    scene.warn("tar-is-no-disk", Certain, &words, &[]);
    if !walked.is_image && walked.fault.is_none() {
        root::filesystem(scene, &archive);
    }
    Ok(())
}
