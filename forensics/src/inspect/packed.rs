//! A compressed thing: what is in it.

use super::bytes::{Bytes, Raw, up_to};
use super::fs::{erofs, ext, squashfs};
use super::scene::{Scene, Words};
use super::trouble::Trouble;
use super::unpack::{Method, Unpacked};
use super::{initramfs, kernel, recognise, tar};
use std::rc::Rc;
use wire::report::Confidence::Likely;

/// Looks into the stream and hands it on.
pub(crate) fn inspect(scene: &mut Scene<'_>, raw: Raw<'_>, method: Method) -> Result<(), Trouble> {
    let unpacked = Unpacked::new(raw, method);
    // What the decoder says against it is said where the initramfs is looked at.
    let head = up_to(&unpacked, 0, recognise::HEAD).unwrap_or_default();
    unpacked.close();
    if tar::begins(&head) {
        scene.fact("compression", method.name());
        return recognise::archive(scene, Rc::new(unpacked), true);
    }
    let disk = if ext::begins(&head) || squashfs::begins(&head) || erofs::begins(&head) {
        "file system"
    } else if kernel::is_kernel(&head) {
        "kernel"
    } else if head.get(510..512) == Some(&[0x55, 0xaa]) {
        "disk"
    } else {
        initramfs::inspect(scene, raw);
        return Ok(());
    };
    scene.fact("format", format_args!("{}-compressed {disk}", method.name()));
    let words = Words {
        what: &format_args!("this is a {disk} compressed with {}", method.name()),
        why: &"a disk is not unpacked by anyone: the kernel finds no file system on it",
        remedy: &format_args!("unpack it first ({})", tool(method)),
    };
    scene.fatal("image-is-compressed", Likely, &words, &[]);
    Ok(())
}

fn tool(method: Method) -> &'static str {
    match method {
        Method::Gzip => "gunzip",
        Method::Bzip2 => "bunzip2",
        Method::Lzma | Method::Xz => "unxz",
        Method::Lzo => "lzop -d",
        Method::Lz4Legacy => "lz4 -d",
        Method::Zstd => "unzstd",
    }
}
