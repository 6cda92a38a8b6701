//! What is wrong with the parts of an initramfs, in the kernel's words and in ours.

use super::bytes::{Raw, size, u8_at, u32_at, up_to};
use super::cpio::Fault;
use super::scene::{Scene, Words};
use super::trouble::Trouble;
use super::unpack::Method;
use wire::report::Confidence::{Certain, Likely, Possible};
use wire::report::Severity;

/// Memory that a kernel needs for itself, at the least.
const KERNEL_BYTES: u64 = 48 << 20;

/// A cpio that ends wrong, at `end` of the part that it is in, or of what that part unpacks to.
pub(super) fn fault(scene: &mut Scene<'_>, fault: &Fault, end: u64, inside: Option<Method>) {
    let part = inside.map_or(String::new(), |method| format!(" inside the {}-compressed part", method.name()));
    let at = format!("the bytes{part} end at {end}");
    let again = "make or copy the archive anew, and compare checksums";
    match fault {
        Fault::CutBody { path, size: bytes, missing } => {
            let missing =
                if *missing > 0 { format!(", {} of which are missing", size(*missing)) } else { String::new() };
            let words = Words {
                what: &format_args!("the archive ends within the file {path}"),
                why: &"the kernel makes each file as long as its header says before it copies what there is, so that the rest is zeros: code there is an illegal instruction (exitcode=0x00000004 on arm64, 0x0000000b on x86), all files behind it are missing",
                remedy: &again,
            };
            scene.fatal("cpio-truncated", Likely, &words, &[format!("{path} has {}{missing}", size(*bytes)), at]);
        }
        Fault::CutHeader => {
            let words = Words {
                what: &"the archive ends within the header of an entry",
                why: &"what stands behind it is missing",
                remedy: &again,
            };
            scene.fatal("cpio-truncated", Likely, &words, &[at]);
        }
        Fault::NoTrailer => {
            let words = Words {
                what: &format_args!("the archive{part} has no TRAILER!!! entry at its end"),
                why: &"the kernel does not mind, but it may have been cut between two files",
                remedy: &again,
            };
            scene.warn("cpio-no-trailer", Certain, &words, &[at]);
        }
        Fault::Odc => {
            let words = Words {
                what: &"the archive has the old character format (odc), which the kernel does not unpack",
                why: &"it will say `incorrect cpio method used: use -H newc option`",
                remedy: &"make it with cpio -o -H newc",
            };
            scene.fatal("cpio-odc", Certain, &words, &["the magic is 070707".into()]);
        }
        Fault::NoMagic { head } => {
            let words = Words {
                what: &"an archive goes on with something that is no entry",
                why: &"the kernel will say `no cpio magic`, and unpacks nothing behind it",
                remedy: &again,
            };
            scene.fatal("cpio-corrupt", Likely, &words, &[format!("where a header must be stands {head:?}")]);
        }
        Fault::BadField => {
            let words = Words {
                what: &"the header of an entry has a field that is no number",
                why: &"the archive was damaged; the kernel misreads all that follows",
                remedy: &again,
            };
            scene.fatal("cpio-corrupt", Likely, &words, &[]);
        }
        Fault::Checksum { path } => {
            let words = Words {
                what: &format_args!("the file {path} does not have the check sum of its header"),
                why: &"it was damaged; kernels since 5.19 say `bad data checksum` and unpack nothing behind it",
                remedy: &again,
            };
            scene.fatal("cpio-checksum", Likely, &words, &["the archive has the crc format, 070702".into()]);
        }
    }
}

/// A compressed part that does not unpack to its end.
pub(super) fn broken(scene: &mut Scene<'_>, method: Method, unpacked: u64, why: &Trouble) {
    let Trouble::Corrupt(why) = why else {
        scene.trouble("the initramfs", why);
        return;
    };
    let words = Words {
        what: &format_args!("the {} stream of the initramfs is cut or damaged", method.name()),
        why: &"the kernel will say `Initramfs unpacking failed` and go on with the files that came before",
        remedy: &"make or copy it anew, and compare checksums",
    };
    let evidence = [format!("after {} the decoder says: {why}", size(unpacked))];
    scene.fatal("initramfs-stream-broken", Likely, &words, &evidence);
}

/// Bytes that are neither cpio nor a compression that the kernel knows. Behind another part they take nothing from it: the
/// kernel keeps what it unpacked and goes on.
pub(super) fn unknown(scene: &mut Scene<'_>, position: u64, head: &[u8], behind_another: bool) {
    let evidence = [format!("at {position} stands {}", hex(head))];
    let severity = if behind_another { Severity::Warning } else { Severity::Fatal };
    if head.starts_with(&[0x04, 0x22, 0x4d, 0x18]) {
        let words = Words {
            what: &"the initramfs is compressed with lz4 in a frame that the kernel does not read",
            why: &"it reads the legacy frame only, and will say `invalid magic at start of compressed archive`",
            remedy: &"compress it with lz4 -l",
        };
        scene.find(("lz4-frame-not-legacy", severity, Certain), &words, &evidence);
        return;
    }
    let words = Words {
        what: &"a part of the initramfs is neither cpio nor compressed in a way that the kernel knows",
        why: &"it will say `invalid magic at start of compressed archive`, and goes on with what stands before",
        remedy: &"see what was appended, or make the initramfs anew",
    };
    scene.find(("initramfs-junk", severity, Likely), &words, &evidence);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Variants of a compression that the kernel's decoders refuse.
pub(super) fn variant(scene: &mut Scene<'_>, method: Method, rest: &Raw<'_>) -> Result<(), Trouble> {
    let head = up_to(rest, 0, 16)?;
    scene.fact("compression", format_args!("{}, which needs {}", method.name(), method.option()));
    match method {
        // xz file format 2.1.1.2: the check is in the low four bits of the eighth byte.
        Method::Xz if !matches!(u8_at(&head, 7) & 0x0f, 0 | 1) => {
            let check = match u8_at(&head, 7) & 0x0f {
                4 => "CRC64",
                10 => "SHA-256",
                _ => "unknown",
            };
            let words = Words {
                what: &format_args!(
                    "the initramfs is compressed by xz with a {check} check, which the kernel cannot compute"
                ),
                why: &"it will say `Input was encoded with settings that are not supported by this XZ decoder`",
                remedy: &"compress it with xz --check=crc32",
            };
            scene.fatal("xz-check-not-crc32", Certain, &words, &[format!("the stream flags say {check}")]);
        }
        Method::Lzo => {
            let words = Words {
                what: &"the initramfs is compressed with lzo, which this program does not unpack",
                why: &"what is in it was not checked",
                remedy: &"boot it, or compress it with gzip or zstd",
            };
            scene.warn("cannot-look-inside", Certain, &words, &[]);
        }
        Method::Lzma if u32_at(&head, 1) > 1 << 27 => {
            let words = Words {
                what: &"the initramfs is compressed by lzma with a very large dictionary",
                why: &"the kernel must allocate it whole",
                remedy: &"compress it with lzma -6",
            };
            scene.warn("lzma-dictionary-large", Possible, &words, &[]);
        }
        _ => {}
    }
    Ok(())
}

/// Whether the guest has the memory for what is unpacked.
pub(super) fn memory(scene: &mut Scene<'_>, packed: u64, unpacked: u64) {
    let Some(memory) = scene.guest.memory_bytes else { return };
    let need = packed.saturating_add(unpacked).saturating_add(KERNEL_BYTES);
    let evidence = [
        format!("the initramfs has {}, unpacked {}", size(packed), size(unpacked)),
        format!("the guest has {} of memory", size(memory)),
    ];
    // Without root= it is unpacked into a tmpfs, which may use half of the memory, unless rootfstype= names others.
    let tmpfs = scene.parameter("root").is_none_or(str::is_empty)
        && scene.parameter("rootfstype").is_none_or(|types| types.contains("tmpfs"));
    let half = tmpfs && unpacked > memory / 2;
    if need > memory || half {
        let why: &str = if need > memory {
            "while it is unpacked, memory must hold both, and the kernel: `Initramfs unpacking failed: write error`, or the kernel runs out of memory"
        } else {
            "without root= it is unpacked into a tmpfs, which takes at most half of the memory: `Initramfs unpacking failed: write error`"
        };
        let words = Words {
            what: &"the guest has too little memory to unpack the initramfs",
            why: &why,
            remedy: &format_args!(
                "give it {} or more",
                size(need.max(unpacked.saturating_mul(2)).saturating_add(1 << 26))
            ),
        };
        scene.fatal("initramfs-exceeds-memory", Likely, &words, &evidence);
    } else if need > memory / 4 * 3 {
        let words = Words {
            what: &"the initramfs takes most of the guest's memory",
            why: &"little is left for the programs in it",
            remedy: &"give the guest more memory",
        };
        scene.warn("initramfs-nearly-exceeds-memory", Likely, &words, &evidence);
    }
}
