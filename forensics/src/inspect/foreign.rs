//! What people take for a raw disk or a file system that this program reads, and is neither.

use super::bytes::{Raw, u16_at, u32_at, up_to};
use super::scene::{Scene, Words};
use super::trouble::Trouble;
use wire::report::Confidence::{Certain, Likely};

/// A container format by its magic: offset, magic, name, remedy.
const FORMATS: [(usize, &[u8], &str, &str); 13] = [
    (0, b"QFI\xfb", "a qcow2 disk", "convert it: qemu-img convert -O raw IMAGE disk.raw"),
    (0, b"KDMV", "a VMDK disk", "convert it: qemu-img convert -O raw IMAGE disk.raw"),
    (
        0,
        b"# Disk DescriptorFile",
        "the description of a VMDK disk",
        "convert it: qemu-img convert -O raw IMAGE disk.raw",
    ),
    (0, b"vhdxfile", "a VHDX disk", "convert it: qemu-img convert -O raw IMAGE disk.raw"),
    (0, b"conectix", "a VHD disk", "convert it: qemu-img convert -O raw IMAGE disk.raw"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "a VDI disk", "convert it: qemu-img convert -O raw IMAGE disk.raw"),
    (0, b"QED\0", "a QED disk", "convert it: qemu-img convert -O raw IMAGE disk.raw"),
    (0, &[0x3a, 0xff, 0x26, 0xed], "an Android sparse image", "convert it: simg2img IMAGE disk.raw"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it, and give what is in it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it, and give what is in it"),
    (0, b"!<arch>\n", "an ar archive or a Debian package", "unpack it with dpkg -x, and give what is in it"),
    (0, &[0xed, 0xab, 0xee, 0xdb], "an RPM package", "unpack it with rpm2cpio, and give what is in it"),
    (
        0,
        &[0x27, 0x05, 0x19, 0x56],
        "an image for U-Boot (uImage)",
        "take the header of 64 bytes off: dd if=IMAGE of=FILE bs=64 skip=1",
    ),
];

const LUKS: &str = "LUKS";

/// File systems that are known by name alone: offset, magic, name.
const FILESYSTEMS: [(usize, &[u8], &str); 13] = [
    (0, b"LUKS\xba\xbe", LUKS),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0x8001, b"CD001", "iso9660"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
    (0x52, b"FAT32", "fat"),
    (0x36, b"FAT1", "fat"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (0xff6, b"SWAPSPACE2", "swap"),
    (512, b"LABELONE", "lvm"),
    (0, &[0x45, 0x3d, 0xcd, 0x28], "cramfs"),
    (0, b"-rom1fs-", "romfs"),
];

/// Whether `head` has `magic` at `offset`.
fn has(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    head.get(offset..).is_some_and(|head| head.starts_with(magic))
}

/// The name of the file system, of those that are read and those that are not.
pub(crate) fn filesystem_name(head: &[u8]) -> Option<&'static str> {
    if super::fs::squashfs::begins(head) {
        return Some("squashfs");
    }
    if super::fs::erofs::begins(head) {
        return Some("erofs");
    }
    let known = FILESYSTEMS.iter().find(|(offset, magic, _)| has(head, *offset, magic)).map(|(_, _, name)| *name);
    known.or_else(|| super::fs::ext::begins(head).then_some("ext4"))
}

/// Says that a file system is not read here.
pub(crate) fn cannot_look(scene: &mut Scene<'_>, head: &[u8]) {
    let name = filesystem_name(head).unwrap_or("unknown");
    if name == LUKS {
        let words = Words {
            what: &"it is encrypted (LUKS)",
            why: &"only an initramfs with the key can open it; the kernel cannot mount it by itself",
            remedy: &"see that the initramfs opens it; boot it to find out the rest",
        };
        return scene.warn("cannot-look-inside", Certain, &words, &[]);
    }
    let words = Words {
        what: &format_args!("the file system is {name}, which this program does not read"),
        why: &"whether it has an init that can run was not looked at",
        remedy: &"see that the kernel has it built in; boot it to find out the rest",
    };
    scene.warn("cannot-look-inside", Certain, &words, &[]);
}

/// Says what it is, if it is something foreign.
pub(crate) fn recognise(scene: &mut Scene<'_>, raw: &Raw<'_>, head: &[u8]) -> Result<bool, Trouble> {
    if let Some((_, _, name, remedy)) = FORMATS.iter().find(|(offset, magic, ..)| has(head, *offset, magic)) {
        container(scene, name, remedy);
        return Ok(true);
    }
    let footer = up_to(raw, raw.len().saturating_sub(512), 8)?;
    if footer.starts_with(b"koly") {
        container(scene, "a disk image of macOS (dmg)", "convert it: dmg2img IMAGE disk.raw");
        return Ok(true);
    }
    // A fixed VHD is a raw disk with a footer.
    if footer.starts_with(b"conectix") {
        scene.fact("footer", "VHD of fixed size, which is a raw disk but for its last 512 bytes");
    }
    let fat = has(head, 0x52, b"FAT32") || has(head, 0x36, b"FAT1");
    let partitions = u16_at(head, 510) == 0xaa55 && u32_at(head, 446 + 12) != 0;
    if let Some(name) = filesystem_name(head).filter(|name| (*name != "iso9660" && !fat) || !partitions) {
        scene.fact("format", name);
        if name == "swap" || name == "fat" || name == "lvm" {
            let words = Words {
                what: &format_args!("this is {name}, on which no root file system can be"),
                why: &"the kernel cannot run an init from it",
                remedy: &"give the image of a root file system",
            };
            scene.warn("filesystem-cannot-be-root", Likely, &words, &[]);
        } else {
            cannot_look(scene, head);
        }
        return Ok(true);
    }
    Ok(false)
}

fn container(scene: &mut Scene<'_>, name: &str, remedy: &str) {
    scene.fact("format", name);
    let words = Words {
        what: &format_args!("this is {name}, not a raw image"),
        why: &"the guest sees its bytes as they are, and finds neither partitions nor a file system",
        remedy: &remedy,
    };
    scene.fatal("image-is-not-raw", Certain, &words, &[]);
}
