//! An initramfs: archives and compressed archives one after the other, read as the kernel reads them (init/initramfs.c).

use super::archive::{Archive, Member};
use super::bytes::{Bytes, Raw, size, up_to};
use super::cpio::{self, Fault};
use super::cursor::Cursor;
use super::initramfs_findings as findings;
use super::limits::INITRAMFS_PARTS;
use super::scene::{Scene, Words};
use super::tree::Kind;
use super::trouble::Trouble;
use super::unpack::{End, Method, Unpacked};
use std::rc::Rc;
use wire::report::Confidence::Certain;

/// Whether these first bytes may begin an initramfs.
pub(crate) fn begins(head: &[u8]) -> bool {
    matches!(head.get(..6), Some(b"070701" | b"070702" | b"070707"))
}

/// What the parts came to, together.
#[derive(Debug, Default)]
struct Totals {
    unpacked: u64,
    formats: Vec<String>,
    /// What was found after the last thing that was understood is not known.
    cut: bool,
    /// The kernel's tables of hard links, which each trailer empties.
    link_space: u64,
}

/// Looks at the initramfs in `raw`.
pub(crate) fn inspect(scene: &mut Scene<'_>, raw: Raw<'_>) {
    let mut archive = Archive::new(scene.work, true);
    let mut totals = Totals::default();
    if let Err(trouble) = built_in(scene, &mut archive).and_then(|()| walk(scene, raw, &mut archive, &mut totals)) {
        scene.trouble("the initramfs", &trouble);
        totals.cut = true;
        archive.set_partial();
    }
    if archive.paths.is_full() {
        let trouble = Trouble::Bound("it has more links or directories than are kept: where paths lead is not sure");
        scene.trouble("the initramfs", &trouble);
    }
    archive.finish();
    let entries = archive.entries().saturating_sub(u32::try_from(BUILT_IN.len()).unwrap_or_default());
    scene.fact("format", format_args!("initramfs ({})", totals.formats.join(", then ")));
    scene.fact("entries", entries);
    let more = if totals.cut { "at least " } else { "" };
    scene.fact("unpacked-size", format_args!("{more}{}", size(totals.unpacked)));
    findings::memory(scene, raw.len(), totals.unpacked);
    if entries == 0 && !totals.cut && scene.report.worst().is_none() {
        let words = Words {
            what: &"the initramfs has no files",
            why: &"no archive in it has an entry",
            remedy: &"make it anew: (cd FOLDER && find . | cpio -o -H newc) > initramfs.cpio",
        };
        scene.fatal("initramfs-empty", Certain, &words, &[]);
        return;
    }
    super::root::initramfs(scene, &archive, totals.cut);
}

/// What every kernel has before it unpacks anything (usr/default_cpio_list).
const BUILT_IN: [(&[u8], u32); 3] = [(b"dev", 0o040_755), (b"dev/console", 0o020_600), (b"root", 0o040_700)];

fn built_in(scene: &Scene<'_>, archive: &mut Archive<'_>) -> Result<(), Trouble> {
    for (path, mode) in BUILT_IN {
        archive.paths.add(path, Kind::of_mode(mode), b"");
        archive.add(scene.work, &Member { path, mode, size: 0, offset: 0, hard_link: None })?;
    }
    Ok(())
}

/// Walks all parts into `archive`.
fn walk<'a>(
    scene: &mut Scene<'_>,
    raw: Raw<'a>,
    archive: &mut Archive<'a>,
    totals: &mut Totals,
) -> Result<(), Trouble> {
    let mut cursor = Cursor::new(&raw, 0);
    for number in 1..=INITRAMFS_PARTS {
        if !cursor.skip_zeros()? {
            return Ok(());
        }
        let position = cursor.position();
        let rest = raw.part(position, u64::MAX);
        let head = up_to(&rest, 0, 8)?;
        let mut scene = if number == 1 { scene.whole() } else { scene.part(format_args!("part {number}")) };
        let taken = if head.first() == Some(&b'0') {
            totals.formats.push("cpio".into());
            plain(&mut scene, rest, archive, totals)?
        } else if let Some(method) = Method::of(&head) {
            totals.formats.push(format!("{}-compressed cpio", method.name()));
            findings::variant(&mut scene, method, &rest)?;
            packed(&mut scene, rest, method, archive, totals)?
        } else {
            findings::unknown(&mut scene, position, &head, number > 1);
            // Behind another part there is nothing more that the kernel would take up.
            totals.cut |= number == 1;
            None
        };
        let Some(taken) = taken.filter(|taken| *taken > 0) else { return Ok(()) };
        cursor.seek(position.saturating_add(taken));
    }
    Err(Trouble::Bound("an initramfs has more than 32 parts"))
}

/// Walks the archives that stand here without compression; says how many bytes they take, if something may follow.
fn plain<'a>(
    scene: &mut Scene<'_>,
    rest: Raw<'a>,
    archive: &mut Archive<'a>,
    totals: &mut Totals,
) -> Result<Option<u64>, Trouble> {
    let bytes = Rc::new(rest);
    archive.begin(bytes.clone(), false);
    let mut cursor = Cursor::new(&*bytes, 0);
    loop {
        match archives(scene, &mut cursor, archive, totals)? {
            // What follows is taken up all the same.
            Some(Fault::NoTrailer) => findings::fault(scene, &Fault::NoTrailer, rest.len(), None),
            Some(fault) => {
                totals.unpacked = totals.unpacked.saturating_add(cursor.position());
                findings::fault(scene, &fault, rest.len(), None);
                return Ok(None);
            }
            None => {}
        }
        let more = cursor.skip_zeros()?;
        if !more || cursor.peek(1)? != b"0" || cursor.position() & 3 != 0 {
            totals.unpacked = totals.unpacked.saturating_add(cursor.position());
            return Ok(Some(cursor.position()));
        }
    }
}

/// Walks one archive; its fault, if it has one.
fn archives(
    scene: &Scene<'_>,
    cursor: &mut Cursor<'_>,
    archive: &mut Archive<'_>,
    totals: &mut Totals,
) -> Result<Option<Fault>, Trouble> {
    totals.link_space = totals.link_space.wrapping_add(0x9e37_79b9_7f4a_7c15);
    Ok(cpio::walk(cursor, archive, scene.work, totals.link_space)?.fault)
}

/// Walks the archives in a compressed part; says how many bytes it takes, if that is known.
fn packed<'a>(
    scene: &mut Scene<'_>,
    rest: Raw<'a>,
    method: Method,
    archive: &mut Archive<'a>,
    totals: &mut Totals,
) -> Result<Option<u64>, Trouble> {
    let bytes = Rc::new(Unpacked::new(rest, method));
    archive.begin(bytes.clone(), true);
    let walked = packed_archives(scene, &bytes, archive, totals);
    bytes.close();
    let end = bytes.end();
    match (&end, walked) {
        (Some(End::Broken { unpacked, why }), _) => {
            totals.unpacked = totals.unpacked.saturating_add(*unpacked);
            totals.cut = true;
            // Of a stream that is damaged, the kernel has no more than this.
            if !matches!(why, Trouble::Corrupt(_)) {
                archive.set_partial();
            }
            findings::broken(scene, method, *unpacked, why);
            Ok(None)
        }
        (_, Err(trouble)) => Err(trouble),
        (Some(End::Whole { packed, unpacked }), Ok(fault)) => {
            totals.unpacked = totals.unpacked.saturating_add(*unpacked);
            if let Some(fault) = &fault {
                findings::fault(scene, fault, *unpacked, Some(method));
            }
            Ok(matches!(fault, None | Some(Fault::NoTrailer)).then_some(*packed))
        }
        (None, Ok(fault)) => {
            if let Some(fault) = &fault {
                findings::fault(scene, fault, 0, Some(method));
            }
            Ok(None)
        }
    }
}

/// Walks archives until a fault or the end of the stream.
fn packed_archives(
    scene: &Scene<'_>,
    bytes: &Unpacked<'_>,
    archive: &mut Archive<'_>,
    totals: &mut Totals,
) -> Result<Option<Fault>, Trouble> {
    let mut cursor = Cursor::new(bytes, 0);
    let mut trailer = None;
    while cursor.skip_zeros()? {
        if let Some(fault) = archives(scene, &mut cursor, archive, totals)? {
            if fault == Fault::NoTrailer {
                trailer = Some(fault);
                continue;
            }
            // The rest still says whether the stream is whole.
            while !cursor.take(1 << 16)?.is_empty() {}
            return Ok(Some(fault));
        }
    }
    Ok(trailer)
}
