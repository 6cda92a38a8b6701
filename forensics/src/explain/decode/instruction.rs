//! What is known of an instruction at which a program or the kernel was stopped.

use super::{arm64, x86};
use crate::explain::names::Names;

/// The most bytes of a `Code:` line that are taken.
const MAX_BYTES: usize = 64;

/// What kind of instruction it is, as far as that explains a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only zeros.
    Zeros,
    /// Undefined on purpose: `ud2`, `udf`.
    Undefined,
    /// A breakpoint.
    Breakpoint,
    /// `hlt`, which only the kernel may run; the C library ends an abort with it on x86.
    Halt,
    /// One that not every processor has.
    Feature,
    /// One that every processor has.
    Baseline,
    /// None that is known.
    Invalid,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Zeros => "zeros",
            Self::Undefined => "undefined",
            Self::Breakpoint => "breakpoint",
            Self::Halt => "halt",
            Self::Feature => "feature",
            Self::Baseline => "baseline",
            Self::Invalid => "invalid",
        }
    }
}

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// What kind it is.
    pub(crate) kind: Kind,
    /// Its name.
    pub(crate) name: String,
    /// The feature of processors that it needs.
    pub(crate) feature: Option<String>,
    /// The level of the architecture that has the feature.
    pub(crate) level: Option<&'static str>,
    /// Its bytes.
    pub(crate) bytes: String,
}

impl Instruction {
    /// Binds `instruction`, `instruction-kind`, `instruction-bytes`, `feature` and `level`.
    pub(crate) fn bind(&self, names: &mut Names) {
        names.bind("instruction", self.name.as_str());
        names.bind("instruction-kind", self.kind.name());
        names.bind("instruction-bytes", self.bytes.as_str());
        names.bind_some("feature", self.feature.as_deref());
        names.bind_some("level", self.level);
    }

    /// Reads what follows `Code:`: bytes with the one of the instruction pointer in angle brackets (x86), or words with
    /// that of the program counter in parentheses (arm64).
    pub(crate) fn of_code_line(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split_whitespace().take(MAX_BYTES).collect();
        let at = words.iter().position(|word| word.starts_with(['<', '(']))?;
        let marked = words.get(at..)?;
        if marked.first()?.starts_with('(') {
            let word = marked.first()?.trim_matches(['(', ')']);
            return Some(arm64::decode(u32::from_str_radix(word, 16).ok()?));
        }
        let byte = |word: &&str| u8::from_str_radix(word.trim_matches(['<', '>']), 16).ok();
        let bytes: Vec<u8> = marked.iter().map_while(byte).collect();
        (!bytes.is_empty()).then(|| x86::decode(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_lines_of_both_architectures_are_read() {
        let x86 = Instruction::of_code_line("00 00 00 <0f> 0b 00 00").unwrap();
        assert_eq!((x86.kind, x86.name.as_str()), (Kind::Undefined, "ud2"));
        let avx2 = Instruction::of_code_line("90 <c5> fd fe c0 00").unwrap();
        assert_eq!((avx2.kind, avx2.feature.as_deref(), avx2.level), (Kind::Feature, Some("AVX2"), Some("x86-64-v3")));
        let arm = Instruction::of_code_line("d503201f d503201f (f82003e1)").unwrap();
        assert_eq!((arm.kind, arm.feature.as_deref()), (Kind::Feature, Some("LSE")));
        assert_eq!(Instruction::of_code_line("Unable to access opcode bytes at RIP 0x400050."), None);
        assert_eq!(Instruction::of_code_line("<zz>"), None);
    }
}
