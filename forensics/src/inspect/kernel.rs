//! Kernels: bzImage (Linux x86 boot protocol), ELF, arm64 Image (Documentation/arch/arm64/booting.rst), also compressed.

use super::bytes::{Bytes, Raw, find, size, text, u8_at, u16_at, u32_at, u64_at, up_to};
use super::cursor::Cursor;
use super::elf::{self, Elf, PT_NOTE};
use super::scene::{Scene, Words};
use super::trouble::Trouble;
use super::unpack::{Method, Unpacked};
use super::{Architecture, kernel_config, recognise};
use wire::report::Confidence::{Certain, Likely};

/// What every kernel says of itself.
const BANNER: &[u8] = b"Linux version ";
/// The longest banner that is kept.
const BANNER_BYTES: usize = 256;
/// Bytes that are searched at once, with an overlap as long as what is searched for.
const STEP: usize = 60 << 10;
/// The note that says where a PVH boot enters (XEN_ELFNOTE_PHYS32_ENTRY).
const PVH_NOTE: u32 = 18;
/// The longest command line of arm64 (COMMAND_LINE_SIZE).
const ARM64_CMDLINE: u64 = 2048;

/// What a kernel is by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    BzImage,
    Elf,
    Arm64Image,
    Zboot,
    Compressed(Method),
}

fn kind(head: &[u8]) -> Option<Kind> {
    if head.get(0x202..0x206) == Some(b"HdrS") {
        Some(Kind::BzImage)
    } else if head.starts_with(b"\x7fELF") {
        Some(Kind::Elf)
    } else if head.get(56..60) == Some(b"ARM\x64") {
        Some(Kind::Arm64Image)
    } else if head.starts_with(b"MZ") && head.get(4..8) == Some(b"zimg") {
        Some(Kind::Zboot)
    } else {
        Method::of(head).map(Kind::Compressed)
    }
}

/// Whether these first bytes are those of a kernel, or of a program.
pub(crate) fn is_kernel(head: &[u8]) -> bool {
    matches!(kind(head), Some(Kind::BzImage | Kind::Elf | Kind::Arm64Image | Kind::Zboot))
}

/// Looks at the kernel in `raw`.
pub(crate) fn inspect(scene: &mut Scene<'_>, raw: Raw<'_>) {
    if let Err(trouble) = look(scene, raw) {
        scene.trouble("the kernel", &trouble);
    }
}

fn look(scene: &mut Scene<'_>, raw: Raw<'_>) -> Result<(), Trouble> {
    let head = up_to(&raw, 0, recognise::HEAD)?;
    match kind(&head) {
        Some(Kind::BzImage) => bz_image(scene, raw, &head),
        Some(Kind::Elf) => {
            wrong_unless(scene, Architecture::X86_64, "an ELF file (vmlinux)");
            vmlinux(scene, &raw, "ELF (vmlinux)", true)
        }
        Some(Kind::Arm64Image) => arm64(scene, &raw, &head, raw.len()),
        Some(Kind::Zboot) => {
            scene.fact("format", "EFI zboot image");
            let words = Words {
                what: &"this is an EFI zboot image (vmlinuz.efi)",
                why: &"it unpacks itself only where EFI firmware starts it, and there is none",
                remedy: &"give the Image or Image.gz that it was made from",
            };
            scene.fatal("kernel-zboot", Certain, &words, &[]);
            Ok(())
        }
        Some(Kind::Compressed(method)) => compressed(scene, raw, method),
        None => {
            not_a_kernel(scene, &head);
            Ok(())
        }
    }
}

fn not_a_kernel(scene: &mut Scene<'_>, head: &[u8]) {
    let shown: Vec<_> = head.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    scene.fact("format", "unknown");
    let right = match scene.guest.architecture {
        Architecture::X86_64 => "give a bzImage (vmlinuz) or an ELF vmlinux",
        Architecture::Aarch64 => "give an Image or Image.gz",
    };
    let words = Words { what: &"this is no kernel", why: &"it has no known kernel's header", remedy: &right };
    scene.fatal("kernel-not-recognised", Likely, &words, &[format!("it begins with {}", shown.join(" "))]);
}

/// Says so if the kernel is of a format that only the other architecture boots.
fn wrong_unless(scene: &mut Scene<'_>, architecture: Architecture, format: &str) {
    if scene.guest.architecture == architecture {
        return;
    }
    let (own, right) = match scene.guest.architecture {
        Architecture::X86_64 => ("x86-64", "give a bzImage (vmlinuz) or an ELF vmlinux of x86-64"),
        Architecture::Aarch64 => ("arm64", "give an Image or Image.gz of arm64"),
    };
    let words = Words {
        what: &format_args!("the kernel is {format}, which an {own} guest does not boot"),
        why: &"it is of another architecture, or of a format that is not loaded there",
        remedy: &right,
    };
    scene.fatal("kernel-wrong-architecture", Certain, &words, &[]);
}

fn bz_image(scene: &mut Scene<'_>, raw: Raw<'_>, head: &[u8]) -> Result<(), Trouble> {
    let version = u16_at(head, 0x206);
    scene.fact("format", format_args!("bzImage, boot protocol {}.{:02}", version >> 8, version & 0xff));
    wrong_unless(scene, Architecture::X86_64, "a bzImage for x86");
    let at = usize::from(u16_at(head, 0x20e)).saturating_add(0x200);
    if at > 0x200 {
        scene.fact("version", text(head.get(at..).unwrap_or_default()));
    }
    if version >= 0x20c && u16_at(head, 0x236) & 1 == 0 {
        let words = Words {
            what: &"the kernel has no 64-bit entry",
            why: &"it is a 32-bit kernel",
            remedy: &"give one that was built with CONFIG_64BIT",
        };
        scene.fatal("kernel-not-64-bit", Certain, &words, &[]);
    }
    cmdline(scene, u64::from(u32_at(head, 0x238)));
    let setup = match u8_at(head, 0x1f1) {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let code = setup.saturating_add(1).saturating_mul(512);
    let announced = code.saturating_add(u64::from(u32_at(head, 0x1f4)).saturating_mul(16));
    if raw.len() < announced {
        truncated(scene, raw.len(), announced);
        return Ok(());
    }
    let payload = code.saturating_add(u64::from(u32_at(head, 0x248)));
    let part = raw.part(payload, u64::from(u32_at(head, 0x24c)));
    let Some(method) = Method::of(&up_to(&part, 0, 8)?) else {
        scene.fact("compression", "none, or unknown");
        return Ok(());
    };
    scene.fact("compression", method.name());
    // The build appends the unpacked size, which the legacy frame of lz4 has no end mark before.
    let length = if method == Method::Lz4Legacy { part.len().saturating_sub(4) } else { part.len() };
    let unpacked = Unpacked::new(part.part(0, length), method);
    inner(scene, &unpacked, "the bzImage", true)?;
    unpacked.close();
    Ok(())
}

fn truncated(scene: &mut Scene<'_>, bytes: u64, announced: u64) {
    let words = Words {
        what: &"the kernel is truncated",
        why: &"its header announces more bytes than there are",
        remedy: &"copy it anew, and compare checksums",
    };
    let evidence = [format!("it has {}, its header says {}", size(bytes), size(announced))];
    scene.fatal("kernel-truncated", Certain, &words, &evidence);
}

/// The command line against what the kernel takes.
fn cmdline(scene: &mut Scene<'_>, limit: u64) {
    scene.fact("command-line-limit", format_args!("{limit} bytes"));
    let length = u64::try_from(scene.guest.cmdline.len()).unwrap_or(u64::MAX);
    if limit > 0 && length > limit {
        let words = Words {
            what: &"the command line is longer than the kernel takes",
            why: &"the rest of it would be cut",
            remedy: &"shorten it",
        };
        scene.fatal("kernel-command-line-too-long", Certain, &words, &[format!("it has {length} bytes of {limit}")]);
    }
}

fn arm64(scene: &mut Scene<'_>, bytes: &dyn Bytes, head: &[u8], length: u64) -> Result<(), Trouble> {
    scene.fact("format", "arm64 Image");
    wrong_unless(scene, Architecture::Aarch64, "an arm64 Image");
    let flags = u64_at(head, 24);
    let pages = match (flags >> 1) & 3 {
        1 => "4 KiB",
        2 => "16 KiB",
        3 => "64 KiB",
        _ => "not said",
    };
    scene.fact("page-size", pages);
    if matches!((flags >> 1) & 3, 2 | 3) {
        let words = Words {
            what: &format_args!("the kernel has pages of {pages}, which not every CPU has"),
            why: &"on a CPU without that granule it stops before its first line, without any output",
            remedy: &"use a kernel with pages of 4 KiB, unless the board is known to have them",
        };
        scene.warn("kernel-page-size", Likely, &words, &[]);
    }
    if flags & 1 == 1 {
        let words = Words {
            what: &"the kernel is big-endian",
            why: &"programs and the loader are little-endian",
            remedy: &"give one that was built without CONFIG_CPU_BIG_ENDIAN",
        };
        scene.fatal("kernel-big-endian", Certain, &words, &[]);
    }
    scene.fact("memory-size", size(u64_at(head, 16)));
    cmdline(scene, ARM64_CMDLINE);
    if length < 4096 {
        truncated(scene, length, u64_at(head, 16));
    }
    search(scene, bytes, true)
}

fn vmlinux(scene: &mut Scene<'_>, bytes: &dyn Bytes, format: &str, is_whole: bool) -> Result<(), Trouble> {
    scene.fact("format", format);
    if !elf_facts(scene, bytes)? || !is_whole {
        return Ok(());
    }
    search(scene, bytes, true)
}

/// The facts of an ELF kernel; whether it is one.
fn elf_facts(scene: &mut Scene<'_>, bytes: &dyn Bytes) -> Result<bool, Trouble> {
    let elf = match Elf::read(bytes) {
        Ok(elf) => elf,
        Err(elf::Fault::Trouble(trouble)) => return Err(trouble),
        Err(fault) => {
            let words = Words {
                what: &"the kernel is a damaged ELF file",
                why: &fault,
                remedy: &"build or copy it anew, and compare checksums",
            };
            scene.fatal("kernel-elf-broken", Likely, &words, &[]);
            return Ok(false);
        }
    };
    let right = match scene.guest.architecture {
        Architecture::X86_64 => elf::X86_64,
        Architecture::Aarch64 => elf::AARCH64,
    };
    scene.fact("machine", elf::machine_name(elf.machine));
    if elf.machine != right {
        let words = Words {
            what: &format_args!("the kernel is for {}", elf::machine_name(elf.machine)),
            why: &"the guest has another architecture",
            remedy: &"give a kernel of the guest's architecture",
        };
        scene.fatal("kernel-wrong-architecture", Certain, &words, &[]);
    }
    if !elf.is_fixed() && elf.segment(elf::PT_INTERP).is_some() {
        let words = Words {
            what: &"this is a program, not a kernel",
            why: &"it asks for a dynamic loader",
            remedy: &"give the kernel",
        };
        scene.fatal("kernel-not-recognised", Certain, &words, &[]);
        return Ok(false);
    }
    if elf.machine == elf::X86_64 {
        scene.fact("pvh", if pvh(&elf, bytes)? { "yes" } else { "no; entered by the 64-bit boot protocol" });
    }
    Ok(true)
}

fn pvh(elf: &Elf, bytes: &dyn Bytes) -> Result<bool, Trouble> {
    for segment in elf.segments.iter().filter(|segment| segment.kind == PT_NOTE).take(8) {
        let length = usize::try_from(segment.file_bytes.min(64 << 10)).unwrap_or_default();
        let notes = up_to(bytes, segment.offset, length)?;
        let is_entry = |note: &[u8]| u32_at(note, 8) == PVH_NOTE && note.get(12..16) == Some(b"Xen\0");
        let mut rest = notes.as_slice();
        while rest.len() >= 16 {
            if is_entry(rest) {
                return Ok(true);
            }
            let part = |offset| usize::try_from(u32_at(rest, offset)).unwrap_or(usize::MAX).saturating_add(3) & !3;
            let next = part(0).saturating_add(part(4)).saturating_add(12);
            rest = rest.get(next..).unwrap_or_default();
        }
    }
    Ok(false)
}

/// What a compressed payload is, and whether it is whole.
fn inner(scene: &mut Scene<'_>, unpacked: &Unpacked<'_>, of: &str, is_payload: bool) -> Result<(), Trouble> {
    let head = up_to(unpacked, 0, recognise::HEAD)?;
    if head.starts_with(b"\x7fELF") {
        elf_of_payload(scene, unpacked)?;
    }
    search(scene, unpacked, !is_payload)?;
    if let Some(super::unpack::End::Broken { why: Trouble::Corrupt(why), .. }) = unpacked.end() {
        let words = Words {
            what: &format_args!("what is compressed in {of} is cut or damaged"),
            why: &"the kernel stops before its first line: `-- System halted`, or nothing at all",
            remedy: &"copy it anew, and compare checksums",
        };
        scene.fatal("kernel-payload-broken", Likely, &words, &[why]);
    }
    Ok(())
}

fn elf_of_payload(scene: &mut Scene<'_>, unpacked: &Unpacked<'_>) -> Result<(), Trouble> {
    if let Ok(elf) = Elf::read(unpacked) {
        scene.fact("machine", elf::machine_name(elf.machine));
    }
    Ok(())
}

fn compressed(scene: &mut Scene<'_>, raw: Raw<'_>, method: Method) -> Result<(), Trouble> {
    let unpacked = Unpacked::new(raw, method);
    let head = up_to(&unpacked, 0, recognise::HEAD)?;
    if head.get(56..60) != Some(b"ARM\x64") {
        unpacked.close();
        not_a_kernel(scene, &up_to(&raw, 0, 64)?);
        return Ok(());
    }
    if method != Method::Gzip {
        let words = Words {
            what: &format_args!("the kernel is compressed with {}", method.name()),
            why: &"only gzip is unpacked by the loader (Image.gz)",
            remedy: &"unpack it and give the Image",
        };
        scene.fatal("kernel-compression", Certain, &words, &[]);
    }
    scene.fact("compression", method.name());
    arm64(scene, &unpacked, &head, u64::MAX)?;
    inner(scene, &unpacked, "the file", true)?;
    unpacked.close();
    Ok(())
}

/// Looks through a kernel for its banner and its configuration.
fn search(scene: &mut Scene<'_>, bytes: &dyn Bytes, say_version: bool) -> Result<(), Trouble> {
    let known = |scene: &Scene<'_>, name: &str| scene.report.facts.iter().any(|fact| fact.name.as_str() == name);
    let mut cursor = Cursor::new(bytes, 0);
    let (mut banner, mut config) = (None, None);
    loop {
        let start = cursor.position();
        let window = cursor.peek(STEP.saturating_add(BANNER_BYTES))?;
        if window.is_empty() {
            break;
        }
        if banner.is_none() {
            let line =
                find(window, BANNER).and_then(|at| window.get(at..at.saturating_add(BANNER_BYTES).min(window.len())));
            banner = line.filter(|line| line.get(BANNER.len()).is_some_and(u8::is_ascii_digit)).map(text);
        }
        if config.is_none() {
            let at = find(window, kernel_config::MAGIC).and_then(|at| u64::try_from(at).ok());
            config = at.map(|at| start.saturating_add(at));
        }
        if window.len() < STEP {
            break;
        }
        cursor.skip(u64::try_from(STEP).unwrap_or(u64::MAX));
    }
    if let Some(banner) = banner.filter(|_| say_version || !known(scene, "version")) {
        scene.fact("version", banner.lines().next().unwrap_or_default());
    }
    if !known(scene, "config") {
        let packed = match config {
            Some(at) => Some(Cursor::new(bytes, at).take(kernel_config::PACKED_BYTES)?),
            None => None,
        };
        kernel_config::check(scene, packed.as_deref());
    }
    Ok(())
}
