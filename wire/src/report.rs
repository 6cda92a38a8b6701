//! What the inspector says of the thing that it looks at: facts, and findings with their evidence and remedy.
//!
//! All of it quotes untrusted bytes, so that every text is a [`Text`]: bounded, and shown without driving a terminal.

use crate::value::Text;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The most facts of one report: an image can have as many partitions and members as it likes.
pub const MAX_FACTS: usize = 256;
/// The most findings of one report.
pub const MAX_FINDINGS: usize = 64;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Severity {
    /// Worth knowing; nothing fails for it.
    Note,
    /// It may fail, or fail under conditions that are named.
    Warning,
    /// The machine does not boot, or did not boot for it.
    Fatal,
}

impl Severity {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Fatal => "fatal",
        }
    }
}

/// How sure a finding is. What a guest printed can be forged by it, so that a log alone is never [`Confidence::Certain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Confidence {
    /// One explanation among others.
    Possible,
    /// What nearly always lies behind this evidence.
    Likely,
    /// Follows from what was read or from what the host itself saw.
    Certain,
}

impl Confidence {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}

/// The stable name of a kind of finding, as `init-missing`: up to 48 lower-case letters, digits and hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FindingId(String);

impl FindingId {
    /// The longest name in bytes.
    pub const MAX_BYTES: usize = 48;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A name that is no [`FindingId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the name of a finding is {0:?}, must be up to 48 lower-case letters, digits and hyphens")]
pub struct InvalidId(String);

impl TryFrom<String> for FindingId {
    type Error = InvalidId;
    fn try_from(name: String) -> Result<Self, InvalidId> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=Self::MAX_BYTES).contains(&name.len()) && name.bytes().all(plain) {
            Ok(Self(name))
        } else {
            Err(InvalidId(name))
        }
    }
}

impl TryFrom<&str> for FindingId {
    type Error = InvalidId;
    fn try_from(name: &str) -> Result<Self, InvalidId> {
        name.to_owned().try_into()
    }
}

impl From<FindingId> for String {
    fn from(id: FindingId) -> String {
        id.0
    }
}

impl fmt::Display for FindingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lines that show where a finding comes from: at most 32, of at most 3072 bytes together, so that a finding fits into a
/// message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Text>", into = "Vec<Text>")]
pub struct EvidenceLines(Vec<Text>);

impl EvidenceLines {
    /// The most lines.
    pub const MAX_LINES: usize = 32;
    /// The most bytes of all lines together.
    pub const MAX_BYTES: usize = 3072;

    /// The lines.
    #[must_use]
    pub fn get(&self) -> &[Text] {
        &self.0
    }

    /// Takes what fits of `lines`, from the first on.
    pub fn truncated<T: fmt::Display>(lines: impl IntoIterator<Item = T>) -> Self {
        let mut left = Self::MAX_BYTES;
        let fits = |text: &Text| match left.checked_sub(text.len()) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        };
        Self(lines.into_iter().map(Text::truncated).take(Self::MAX_LINES).take_while(fits).collect())
    }
}

/// More lines or bytes than [`EvidenceLines`] can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the evidence has {lines} lines of {bytes} bytes, must be at most 32 of 3072")]
pub struct TooMuchEvidence {
    lines: usize,
    bytes: usize,
}

impl TryFrom<Vec<Text>> for EvidenceLines {
    type Error = TooMuchEvidence;
    fn try_from(lines: Vec<Text>) -> Result<Self, TooMuchEvidence> {
        let bytes = lines.iter().map(Text::len).sum();
        if lines.len() <= Self::MAX_LINES && bytes <= Self::MAX_BYTES {
            Ok(Self(lines))
        } else {
            Err(TooMuchEvidence { lines: lines.len(), bytes })
        }
    }
}

impl From<EvidenceLines> for Vec<Text> {
    fn from(lines: EvidenceLines) -> Vec<Text> {
        lines.0
    }
}

/// Something that is wrong, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What kind of finding it is.
    pub id: FindingId,
    /// How much it weighs.
    pub severity: Severity,
    /// How sure it is.
    pub confidence: Confidence,
    /// What happened or will happen, in one sentence.
    pub what: Text,
    /// Why, as far as the evidence tells.
    pub why: Text,
    /// What it is concluded from: lines of a log, paths, fields of a header.
    pub evidence: EvidenceLines,
    /// What to do.
    pub remedy: Text,
}

/// Something that is so: the size of an image, the init that the kernel would run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The name, in the manner of a JSON key: `format`, `label`, `init`.
    pub name: FindingId,
    /// What it belongs to, where there are several: `partition 2`, `part 1`; empty for the whole.
    pub of: Text,
    /// The value, for a person to read.
    pub value: Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_ids_are_lower_case_words() {
        assert!(FindingId::try_from("init-missing").is_ok());
        for bad in ["", "Init", "a b", "a\n", &"x".repeat(49)] {
            assert!(FindingId::try_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn evidence_that_does_not_fit_is_cut_by_us_and_refused_from_others() {
        let long = vec!["x".repeat(1024); 40];
        assert_eq!(EvidenceLines::truncated(&long).get().len(), 3);
        assert_eq!(EvidenceLines::truncated(vec!["y"; 40]).get().len(), 32);
        let texts: Vec<_> = long.iter().map(Text::truncated).collect();
        assert!(EvidenceLines::try_from(texts).is_err());
    }
}
