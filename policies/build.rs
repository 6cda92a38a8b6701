//! Compiles `seccomp/<target architecture>/<process>.toml` into tables of BPF instructions, two for each thread: one
//! that kills the process on a syscall that the policy lacks, and one that asks the broker (`--audit`). And writes the
//! policies of all architectures down as tables of rules, for those who show them or hold them against what is used.
//!
//! A policy without a reason, with an unknown syscall, with an empty mark, or with a rule that another rule makes
//! meaningless does not build.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// `SECCOMP_RET_LOG` of linux/seccomp.h, which `audit` tables replace by `SECCOMP_RET_USER_NOTIF`.
const RET_LOG: u32 = 0x7ffc_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
/// `BPF_RET | BPF_K` of linux/filter.h.
const BPF_RET_K: u16 = 0x06;

const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
/// The names of the files, and of their processes in `Process`. A process that works in one of two ways has a file for each.
const PROCESSES: [(&str, &str); 6] = [
    ("loader", "Loader"),
    ("vmm", "Vmm"),
    ("serial", "Serial"),
    ("virtio-blk", "VirtioBlk"),
    ("virtio-blk-uring", "VirtioBlk"),
    ("inspector", "Inspector"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    thread: Vec<Thread>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Thread {
    name: String,
    allow: Vec<Allow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Allow {
    syscall: String,
    why: String,
    #[serde(default)]
    when: Vec<Condition>,
    /// Why it is needed although no test makes it.
    unexercised: Option<String>,
    /// Why only Linux guests make it, which on x86_64 the lab alone can run everywhere.
    lab: Option<String>,
    /// Why some runs of the tests make it and others do not.
    sometimes: Option<String>,
}

/// A condition on the low 32 bits of one argument.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    arg: u8,
    /// The argument must have this value.
    is: Option<u32>,
    /// These bits of the argument must be clear.
    without: Option<u32>,
    /// What the value or the bits are, in the words of the kernel's headers or of this project.
    means: String,
}

fn main() -> Result<()> {
    let target = std::env::var("CARGO_CFG_TARGET_ARCH")?;
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("seccomp");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed={}", root.display());
    let (mut filters, mut rules) = (String::new(), String::new());
    for arch in ARCHITECTURES {
        writeln!(rules, "const {}: &[ThreadPolicy] = &[", arch.to_uppercase())?;
        for (process, variant) in PROCESSES {
            let path = root.join(arch).join(format!("{process}.toml"));
            println!("cargo::rerun-if-changed={}", path.display());
            let policy = read(&path).with_context(|| format!("policy {}", path.display()))?;
            for thread in &policy.thread {
                describe(thread, variant, &mut rules)?;
            }
            if arch == target {
                compile(&policy, process, arch, &mut filters).with_context(|| format!("policy {}", path.display()))?;
            }
        }
        writeln!(rules, "];")?;
    }
    ensure!(!filters.is_empty(), "there are no policies for {target}");
    std::fs::write(out.join("filters.rs"), filters)?;
    std::fs::write(out.join("rules.rs"), rules)?;
    Ok(())
}

/// Reads a policy and refuses what makes no sense.
fn read(path: &Path) -> Result<Policy> {
    let policy: Policy = toml::from_str(&std::fs::read_to_string(path)?)?;
    for thread in &policy.thread {
        let mut unconditional = BTreeMap::new();
        for allow in &thread.allow {
            let place = format!("{} of thread {}", allow.syscall, thread.name);
            ensure!(!allow.why.trim().is_empty(), "{place} gives no reason");
            let marks = [&allow.unexercised, &allow.lab, &allow.sometimes];
            ensure!(marks.iter().filter(|mark| mark.is_some()).count() <= 1, "{place} has two marks");
            ensure!(
                marks.into_iter().flatten().all(|why| !why.trim().is_empty()),
                "the mark of {place} gives no reason"
            );
            for condition in &allow.when {
                ensure!(condition.arg < 6, "{place} has a condition on argument {}; the last is 5", condition.arg);
                ensure!(!condition.means.trim().is_empty(), "a condition of {place} does not say what its value means");
            }
            let always = allow.when.is_empty();
            // seccompiler would take the conditional rules alone; and two unconditional ones say the same twice.
            if let Some(other) = unconditional.insert(&allow.syscall, always) {
                ensure!(!other && !always, "{place} is allowed twice, once always");
            }
        }
    }
    Ok(policy)
}

/// Writes the rules of a thread down as a constant expression of `rules::ThreadPolicy`.
fn describe(thread: &Thread, process: &str, rules: &mut String) -> Result<()> {
    writeln!(rules, "ThreadPolicy {{ process: Process::{process}, thread: {:?}, rules: &[", thread.name)?;
    for allow in &thread.allow {
        let mark = match (&allow.unexercised, &allow.lab, &allow.sometimes) {
            (Some(why), _, _) => format!("Mark::Unexercised({why:?})"),
            (_, Some(why), _) => format!("Mark::Lab({why:?})"),
            (_, _, Some(why)) => format!("Mark::Sometimes({why:?})"),
            _ => "Mark::None".to_owned(),
        };
        write!(rules, "    Rule {{ syscall: {:?}, why: {:?}, mark: {mark}, when: &[", allow.syscall, allow.why)?;
        for condition in &allow.when {
            let (test, value) = match (condition.is, condition.without) {
                (Some(value), None) => ("Is", value),
                (None, Some(mask)) => ("Without", mask),
                _ => bail!("a condition of {} must have either `is` or `without`", allow.syscall),
            };
            let Condition { arg, means, .. } = condition;
            write!(rules, "Condition {{ arg: {arg}, test: Test::{test}({value}), means: {means:?} }}, ")?;
        }
        writeln!(rules, "] }},")?;
    }
    writeln!(rules, "] }},")?;
    Ok(())
}

fn compile(policy: &Policy, process: &str, arch: &str, tables: &mut String) -> Result<()> {
    for thread in &policy.thread {
        let name = format!("{process}_{}", thread.name).to_uppercase().replace('-', "_");
        for (suffix, default) in [("KILL", "kill_process"), ("AUDIT", "log")] {
            let rules: Vec<_> = thread.allow.iter().map(rule).collect::<Result<_>>()?;
            let filter = json!({ "thread": { "mismatch_action": default, "match_action": "allow", "filter": rules } });
            let arch = seccompiler::TargetArch::try_from(arch)?;
            let mut programs = seccompiler::compile_from_json(filter.to_string().as_bytes(), arch)?;
            let program = programs.remove("thread").context("the compiler gave no program")?;
            writeln!(tables, "const {name}_{suffix}: &[Instruction] = &[")?;
            for instruction in program {
                let mut k = instruction.k;
                if instruction.code == BPF_RET_K && k == RET_LOG {
                    k = RET_USER_NOTIF;
                }
                let (code, jt, jf) = (instruction.code, instruction.jt, instruction.jf);
                writeln!(tables, "    Instruction {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},")?;
            }
            writeln!(tables, "];")?;
        }
    }
    Ok(())
}

fn rule(allow: &Allow) -> Result<serde_json::Value> {
    if allow.when.is_empty() {
        return Ok(json!({ "syscall": allow.syscall }));
    }
    let mut conditions = Vec::new();
    for condition in &allow.when {
        let (op, value) = match (condition.is, condition.without) {
            (Some(value), None) => (json!("eq"), value),
            (None, Some(mask)) => (json!({ "masked_eq": mask }), 0),
            _ => bail!("a condition of {} must have either `is` or `without`", allow.syscall),
        };
        conditions.push(json!({ "index": condition.arg, "type": "dword", "op": op, "val": value }));
    }
    Ok(json!({ "syscall": allow.syscall, "args": conditions }))
}
