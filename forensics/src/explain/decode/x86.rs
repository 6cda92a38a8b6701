//! Instructions of x86_64, by iced-x86.

use super::instruction::{Instruction, Kind};
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions};

/// The longest instruction in bytes (Intel SDM volume 2, 2.3.11).
const MAX_BYTES: usize = 15;

/// Features that every x86_64 processor has, and what every one takes for a no-operation.
const BASELINE: &[&str] = &[
    "INTEL8086",
    "INTEL8086_ONLY",
    "INTEL186",
    "INTEL286",
    "INTEL386",
    "INTEL486",
    "X64",
    "CPUID",
    "FPU",
    "FPU287",
    "FPU387",
    "CMOV",
    "MMX",
    "SSE",
    "SSE2",
    "FXSR",
    "TSC",
    "CX8",
    "MSR",
    "SYSCALL",
    "SEP",
    "CLFSH",
    "PAUSE",
    "MULTIBYTENOP",
    "CET_IBT",
    "CET_SS",
];
/// The levels of the x86-64 psABI with the features that each adds.
const LEVELS: &[(&str, &[&str])] = &[
    ("x86-64-v2", &["CMPXCHG16B", "POPCNT", "SSE3", "SSE4_1", "SSE4_2", "SSSE3"]),
    ("x86-64-v3", &["AVX", "AVX2", "BMI1", "BMI2", "F16C", "FMA", "LZCNT", "MOVBE"]),
    ("x86-64-v4", &["AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512VL"]),
];

/// What the bytes at an instruction pointer are.
pub(crate) fn decode(bytes: &[u8]) -> Instruction {
    let bytes = bytes.get(..MAX_BYTES).unwrap_or(bytes);
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    let decoded = decoder.decode();
    let own = if decoded.is_invalid() {
        bytes.get(..2).unwrap_or(bytes)
    } else {
        bytes.get(..decoded.len()).unwrap_or(bytes)
    };
    let shown = own.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let plain = |kind, name: &str| Instruction {
        kind,
        name: name.to_owned(),
        feature: None,
        level: None,
        bytes: shown.clone(),
    };
    if decoded.is_invalid() {
        return plain(Kind::Invalid, "no known instruction");
    }
    let name = format!("{:?}", decoded.mnemonic()).to_lowercase();
    match decoded.code() {
        _ if bytes.starts_with(&[0, 0]) => plain(Kind::Zeros, "zeros (add [rax], al)"),
        Code::Ud2 | Code::Ud0 | Code::Ud1_r16_rm16 | Code::Ud1_r32_rm32 | Code::Ud1_r64_rm64 => {
            plain(Kind::Undefined, &name)
        }
        Code::Int3 => plain(Kind::Breakpoint, &name),
        Code::Hlt => plain(Kind::Halt, &name),
        _ => {
            let all: Vec<String> = decoded.cpuid_features().iter().map(feature_name).collect();
            let needed: Vec<_> = all.iter().map(String::as_str).filter(|feature| !BASELINE.contains(feature)).collect();
            if needed.is_empty() {
                return plain(Kind::Baseline, &name);
            }
            let level = LEVELS.iter().rev().find(|(_, added)| needed.iter().any(|feature| added.contains(feature)));
            Instruction {
                feature: Some(needed.join(" and ")),
                level: level.map(|(level, _)| *level),
                ..plain(Kind::Feature, &name)
            }
        }
    }
}

fn feature_name(feature: &CpuidFeature) -> String {
    format!("{feature:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_name_the_feature_that_they_need() {
        let feature = |bytes: &[u8]| decode(bytes).feature;
        assert_eq!(feature(&[0xc4, 0xe2, 0xfb, 0xf6, 0xc0]).as_deref(), Some("BMI2"));
        assert_eq!(feature(&[0xf3, 0x0f, 0xb8, 0xc0]).as_deref(), Some("POPCNT"));
        assert_eq!(decode(&[0x62, 0xf1, 0x7d, 0x48, 0xfe, 0xc0]).level, Some("x86-64-v4"));
        assert_eq!(decode(&[0x48, 0x89, 0xd8]).kind, Kind::Baseline);
        assert_eq!(decode(&[0xf3, 0x0f, 0x1e, 0xfa]).kind, Kind::Baseline);
    }

    #[test]
    fn traps_and_zeros_are_told_apart() {
        let kind = |bytes: &[u8]| decode(bytes).kind;
        assert_eq!(kind(&[0x0f, 0x0b]), Kind::Undefined);
        assert_eq!(kind(&[0, 0, 0, 0]), Kind::Zeros);
        assert_eq!(kind(&[0xf4]), Kind::Halt);
        assert_eq!(kind(&[0xcc]), Kind::Breakpoint);
        assert_eq!(kind(&[0x06]), Kind::Invalid);
        assert_eq!(kind(&[]), Kind::Invalid);
    }
}
