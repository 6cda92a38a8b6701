//! Code followed from an entry along direct jumps and calls, as far as it can be told without running it.

use super::code::Code;
use crate::inspect::bytes::u32_at;
use crate::inspect::limits::INSTRUCTIONS;
use iced_x86::{CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::collections::{BTreeMap, BTreeSet};

/// The most findings.
const FOUND: usize = 4;
/// The most instructions that are followed from the entry.
const FOLLOWED: usize = 20_000;
/// The most instructions of a function that are looked at to see whether it returns.
const FUNCTION_INSTRUCTIONS: usize = 4000;
/// What is looked at of the start code.
const START_BYTES: usize = 128;
const START_INSTRUCTIONS: usize = 24;
/// How deep calls are followed for that.
const CALLS_DEEP: u32 = 12;

/// One instruction.
pub(super) struct Step {
    /// Where it goes on, if it does.
    next: Option<u64>,
    /// Where it jumps to or calls.
    target: Option<u64>,
    /// It calls the target, and goes on when that returns.
    calls: bool,
    /// It leaves the function.
    leaves: bool,
    /// Which extension it needs, in words.
    needs: Option<String>,
}

/// How to decode an instruction at an address.
type Decode = fn(&Code<'_>, u64) -> Option<Step>;

/// A walk along code.
struct Walk<'a> {
    code: &'a Code<'a>,
    decode: Decode,
    /// Of functions, whether they return, as far as it was found out.
    returns: BTreeMap<u64, bool>,
    /// Instructions that may still be decoded for that.
    left: usize,
}

impl Walk<'_> {
    /// Whether a function ever returns: behind the call of one that does not stands something else, such as the next
    /// function, which may be for another CPU.
    fn returns(&mut self, entry: u64, depth: u32) -> bool {
        if let Some(known) = self.returns.get(&entry) {
            return *known;
        }
        if depth == 0 {
            return true;
        }
        // One that calls itself is taken to return while it is looked at.
        self.returns.insert(entry, true);
        let mut seen = BTreeSet::new();
        let mut todo = vec![entry];
        while let Some(mut address) = todo.pop() {
            while seen.insert(address) {
                self.left = self.left.saturating_sub(1);
                let step = (self.decode)(self.code, address).filter(|_| self.left > 0);
                let Some(step) = step else { break };
                if step.leaves || seen.len() > FUNCTION_INSTRUCTIONS {
                    return true;
                }
                let goes_on =
                    !step.calls || step.target.is_none_or(|target| self.returns(target, depth.saturating_sub(1)));
                todo.extend(step.target.filter(|_| !step.calls));
                let Some(next) = step.next.filter(|_| goes_on) else { break };
                address = next;
            }
        }
        self.returns.insert(entry, false);
        false
    }
}

/// The main function that the start code of a C library on x86-64 hands on as its first argument.
pub(super) fn main_of_x86(code: &Code<'_>, entry: u64) -> Option<u64> {
    let bytes = code.at(entry);
    let bytes = bytes.get(..bytes.len().min(START_BYTES))?;
    let instructions = Decoder::with_ip(64, bytes, entry, DecoderOptions::NONE).into_iter();
    let argument = |instruction: &Instruction| matches!(instruction.op0_register(), Register::RDI | Register::EDI);
    let set =
        instructions.take(START_INSTRUCTIONS).filter(argument).find_map(|instruction| match instruction.mnemonic() {
            Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => Some(instruction.ip_rel_memory_address()),
            Mnemonic::Mov if is_immediate(instruction.op1_kind()) => Some(instruction.immediate(1)),
            _ => None,
        });
    set.filter(|address| !code.at(*address).is_empty())
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(kind, OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64)
}

/// The same on arm64, where ADRP and ADD make the address in x0.
pub(super) fn main_of_arm64(code: &Code<'_>, entry: u64) -> Option<u64> {
    let words: Vec<u32> = code.at(entry).chunks_exact(4).take(START_INSTRUCTIONS).map(|word| u32_at(word, 0)).collect();
    let (index, pair) = words.windows(2).enumerate().find(|(_, pair)| {
        let (page, add) = (pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0));
        page & 0x9f00_001f == 0x9000_0000 && add & 0xffc0_03ff == 0x9100_0000
    })?;
    let (page, add) = (pair.first().copied()?, pair.get(1).copied()?);
    let at = entry.saturating_add(u64::try_from(index).ok()?.saturating_mul(4));
    let pages = (((page >> 5) & 0x7_ffff) << 2) | ((page >> 29) & 3);
    let pages = i64::from((pages << 11).cast_signed() >> 11).saturating_mul(4096).cast_unsigned();
    let main = (at & !0xfff).wrapping_add(pages).wrapping_add(u64::from((add >> 10) & 0xfff));
    (!code.at(main).is_empty()).then_some(main)
}

/// Follows code from some places; what of it needs an extension.
pub(super) fn walk(code: &Code<'_>, from: Vec<u64>, decode: Decode) -> Vec<String> {
    let mut walk = Walk { code, decode, returns: BTreeMap::new(), left: INSTRUCTIONS };
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut todo = from;
    while let Some(mut address) = todo.pop() {
        while seen.len() < FOLLOWED && seen.insert(address) {
            let Some(step) = decode(code, address) else { break };
            found.extend(step.needs);
            if found.len() >= FOUND {
                return found;
            }
            todo.extend(step.target.filter(|target| !seen.contains(target)));
            let goes_on = !step.calls || step.target.is_none_or(|target| walk.returns(target, CALLS_DEEP));
            let Some(next) = step.next.filter(|_| goes_on) else { break };
            address = next;
        }
    }
    found
}

/// The features of every x86-64 CPU, and those that are only told or saved where the CPU has them.
fn is_baseline(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    let old = matches!(feature, F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64);
    let plain = matches!(
        feature,
        F::CX8 | F::CMOV | F::CPUID | F::CLFSH | F::FPU | F::FPU287 | F::FPU387 | F::FXSR | F::MMX | F::MULTIBYTENOP
    );
    let rest = matches!(
        feature,
        F::MSR | F::PAUSE | F::PREFETCHW | F::RDPMC | F::SEP | F::SSE | F::SSE2 | F::SYSCALL | F::TSC
    );
    let guarded = matches!(
        feature,
        F::CET_IBT | F::CET_SS | F::FSGSBASE | F::RDTSCP | F::RTM | F::XSAVE | F::XSAVEC | F::XSAVEOPT | F::XSAVES
    );
    old || plain || rest || guarded
}

/// An instruction of x86-64; nothing for what is none.
pub(super) fn x86(code: &Code<'_>, address: u64) -> Option<Step> {
    let bytes = code.at(address);
    let bytes = bytes.get(..bytes.len().min(16))?;
    let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        return None;
    }
    let target = instruction.near_branch_target();
    let flow = instruction.flow_control();
    let is_system_call = instruction.mnemonic() == Mnemonic::Syscall;
    let (goes_on, jumps) = match flow {
        FlowControl::Next | FlowControl::IndirectCall | FlowControl::Interrupt => (true, false),
        FlowControl::ConditionalBranch | FlowControl::Call => (true, !is_system_call),
        FlowControl::UnconditionalBranch => (false, true),
        _ => (false, false),
    };
    // Older CPUs run these two as BSF and BSR: no fault.
    let never_faults = matches!(instruction.mnemonic(), Mnemonic::Tzcnt | Mnemonic::Lzcnt);
    let feature = instruction.cpuid_features().iter().find(|feature| !is_baseline(**feature) && !never_faults);
    let needs = |feature| format!("{:?} at {address:#x} needs {feature:?}", instruction.mnemonic());
    Some(Step {
        next: (goes_on && instruction.mnemonic() != Mnemonic::Hlt).then(|| instruction.next_ip()),
        target: (jumps && target != 0).then_some(target),
        calls: flow == FlowControl::Call && !is_system_call,
        leaves: matches!(flow, FlowControl::Return | FlowControl::IndirectBranch),
        needs: feature.map(needs),
    })
}

/// A signed field of a word, as a distance in bytes.
fn distance(word: u32, low: u32, bits: u32) -> u64 {
    let top = 32_u32.saturating_sub(low).saturating_sub(bits);
    let value = i64::from((word << top).cast_signed() >> (top.saturating_add(low)));
    value.saturating_mul(4).cast_unsigned()
}

/// An instruction of arm64; nothing for what is none (Arm ARM, C4.1).
pub(super) fn arm64(code: &Code<'_>, address: u64) -> Option<Step> {
    let bytes = code.at(address);
    if bytes.len() < 4 {
        return None;
    }
    let word = u32_at(bytes, 0);
    if word <= 0xffff {
        return None;
    }
    let next = Some(address.saturating_add(4));
    let to = |low, bits| Some(address.wrapping_add(distance(word, low, bits)));
    let (next, target) = match word {
        // B, BL.
        _ if word & 0xfc00_0000 == 0x1400_0000 => (None, to(0, 26)),
        _ if word & 0xfc00_0000 == 0x9400_0000 => (next, to(0, 26)),
        // B.cond, CBZ and CBNZ, TBZ and TBNZ.
        _ if word & 0xff00_0000 == 0x5400_0000 => (next, to(5, 19)),
        _ if word & 0x7e00_0000 == 0x3400_0000 => (next, to(5, 19)),
        _ if word & 0x7e00_0000 == 0x3600_0000 => (next, to(5, 14)),
        // BLR goes on; BR, RET and the like do not.
        _ if word & 0xfe00_0000 == 0xd600_0000 => (next.filter(|_| word & 0x0060_0000 == 0x0020_0000), None),
        _ => (next, None),
    };
    let calls = word & 0xfc00_0000 == 0x9400_0000;
    // BR and RET, with pointer authentication or without.
    let leaves = word & 0xfe00_0000 == 0xd600_0000 && next.is_none();
    Some(Step { next, target, calls, leaves, needs: lse(code, address, word) })
}

/// Whether a word is of the Large System Extensions, which ARMv8.0 lacks (Arm ARM C4.1.94: atomic memory operations, CAS).
fn lse(code: &Code<'_>, address: u64, word: u32) -> Option<String> {
    // LDAPR has nearly the same pattern, but is of another extension.
    let atomic = word & 0x3b20_0c00 == 0x3820_0000 && word & 0x0000_f000 <= 0x0000_8000;
    let swap = word & 0x3fa0_7c00 == 0x08a0_7c00;
    if !(atomic || swap) || is_outline(code, address) {
        return None;
    }
    let name = if swap { "a compare and swap (CAS)" } else { "an atomic operation (LDADD, SWP, ...)" };
    Some(format!("{name}, {word:08x} at {address:#x}, needs LSE (ARMv8.1)"))
}

/// Whether a test of w16 comes just before, as in the `__aarch64_*` helpers, which choose by the CPU's features.
fn is_outline(code: &Code<'_>, address: u64) -> bool {
    let before = (1..=4_u64).filter_map(|words| address.checked_sub(words.saturating_mul(4)));
    before.map(|address| u32_at(code.at(address), 0)).any(|word| word & 0xff00_001f == 0x3400_0010)
}
