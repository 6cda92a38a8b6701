//! Breaking a kernel module: its first function gets instructions that end or hang the kernel.

use super::bench::Bench;
use super::boot::Boot;
use super::breakages::shell;
use super::programs::Code;
use anyhow::{Context, Result};

/// The module that is broken.
const MODULE: &str = "virtio_blk";

/// What ends a module with a signature.
const SIGNED: &[u8] = b"~Module signature appended~\n";

/// A load from address 0.
const NULL: Code = Code { x86: &[0x31, 0xc0, 0x8b, 0x00], arm: &[0xd280_0000, 0xf940_0000] };
/// `ud2`, `udf #0x17`.
const UNDEFINED: Code = Code { x86: &[0x0f, 0x0b], arm: &[0x17] };
/// A jump to itself.
const LOOP: Code = Code { x86: &[0xeb, 0xfe], arm: &[0x1400_0000] };

/// A program of init inserts the module, and the oops panics.
pub(crate) fn null(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.append("oops=panic");
    insert(bench, boot, NULL, "insmod")
}

/// init itself inserts it.
pub(crate) fn null_in_init(bench: &Bench, boot: &mut Boot) -> Result<()> {
    insert(bench, boot, NULL, "exec /usr/bin/insmod")
}

/// An undefined instruction.
pub(crate) fn undefined(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.append("oops=panic");
    insert(bench, boot, UNDEFINED, "insmod")
}

/// A loop that the soft lockup detector sees.
pub(crate) fn soft_lockup(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.append("sysctl.kernel.watchdog_thresh=2 sysctl.kernel.softlockup_panic=1 rcupdate.rcu_cpu_stall_suppress=1");
    boot.append("preempt=voluntary");
    insert(bench, boot, LOOP, "insmod")
}

/// A loop that RCU sees, as another processor waits for a grace period.
pub(crate) fn rcu_stall(bench: &Bench, boot: &mut Boot) -> Result<()> {
    boot.append("nosoftlockup nowatchdog rcupdate.rcu_cpu_stall_timeout=4 sysctl.kernel.panic_on_rcu_stall=1");
    boot.append("preempt=voluntary");
    boot.cpus = 2;
    insert(
        bench,
        boot,
        LOOP,
        "mount -t devtmpfs dev /dev\nwhile :; do mount -t tmpfs tmpfs /mnt; umount /mnt; done &\ninsmod",
    )
}

fn insert(bench: &Bench, boot: &mut Boot, code: Code, insmod: &str) -> Result<()> {
    let mut script = String::new();
    for module in bench.modules(&[MODULE])? {
        let broken = module.name == format!("{MODULE}.ko");
        let content = if broken { with_code(module.content, code, bench.is_x86())? } else { module.content };
        boot.tree.file(&format!("modules/{}", module.name), content);
        script.push_str(&format!("{} /modules/{}\n", if broken { insmod } else { "insmod" }, module.name));
    }
    shell(boot, &script);
    Ok(())
}

/// The little-endian number of `N` bytes at `at`.
fn number<const N: usize>(file: &[u8], at: usize) -> Result<usize> {
    let bytes = file.get(at..).and_then(|rest| rest.first_chunk::<N>()).context("the module ends too early")?;
    let value = bytes.iter().rev().fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
    usize::try_from(value).context("a field of the module is too large")
}

/// A section header ("ELF-64 Object File Format").
struct Section {
    kind: usize,
    offset: usize,
    size: usize,
    link: usize,
    info: usize,
}

fn sections(file: &[u8]) -> Result<Vec<Section>> {
    let (table, count) = (number::<8>(file, 0x28)?, number::<2>(file, 0x3c)?);
    let section = |index: usize| {
        let at = table.saturating_add(index.saturating_mul(64));
        Ok(Section {
            kind: number::<4>(file, at.saturating_add(4))?,
            offset: number::<8>(file, at.saturating_add(24))?,
            size: number::<8>(file, at.saturating_add(32))?,
            link: number::<4>(file, at.saturating_add(40))?,
            info: number::<4>(file, at.saturating_add(44))?,
        })
    };
    (0..count).map(section).collect()
}

/// The section and the offset in it of a symbol.
fn symbol(file: &[u8], sections: &[Section], wanted: &str) -> Result<(usize, usize)> {
    let table = sections.iter().find(|section| section.kind == 2).context("the module has no symbols")?;
    let names = sections.get(table.link).context("the symbols have no names")?;
    for at in (table.offset..table.offset.saturating_add(table.size)).step_by(24) {
        let name = names.offset.saturating_add(number::<4>(file, at)?);
        if file.get(name..).is_some_and(|rest| rest.starts_with(format!("{wanted}\0").as_bytes())) {
            return Ok((number::<2>(file, at.saturating_add(6))?, number::<8>(file, at.saturating_add(8))?));
        }
    }
    anyhow::bail!("the module has no {wanted}")
}

/// The module with `code` in its first function, behind what the function tracer patches.
fn with_code(mut file: Vec<u8>, code: Code, x86: bool) -> Result<Vec<u8>> {
    // A module that is changed is refused for its signature, one without a signature is taken.
    if file.ends_with(SIGNED) {
        file.truncate(file.len().saturating_sub(SIGNED.len()));
    }
    let all = sections(&file)?;
    let (section, start) = symbol(&file, &all, "init_module")?;
    let place = all.get(section).context("init_module is in no section")?.offset.saturating_add(start);
    let code = if x86 { code.x86.to_vec() } else { code.arm.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let skip = match x86 {
        // ENDBR64, the call of __fentry__.
        true if file.get(place..).is_some_and(|rest| rest.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa])) => 9,
        true => 5,
        // PACIASP or BTI, two NOPs.
        false => 12,
    };
    let from = start.saturating_add(skip);
    let touched = from.saturating_sub(3)..from.saturating_add(code.len());
    for relocations in all.iter().filter(|relocations| relocations.kind == 4 && relocations.info == section) {
        for at in (relocations.offset..relocations.offset.saturating_add(relocations.size)).step_by(24) {
            if touched.contains(&number::<8>(&file, at)?) {
                // Relocation 0 does nothing, on both architectures.
                file.get_mut(at.saturating_add(8)..)
                    .and_then(|rest| rest.get_mut(..8))
                    .context("no relocation")?
                    .fill(0);
            }
        }
    }
    let at = place.saturating_add(skip);
    file.get_mut(at..)
        .and_then(|rest| rest.get_mut(..code.len()))
        .context("the function is too short")?
        .copy_from_slice(&code);
    Ok(file)
}
