//! Why something could not be looked at.

/// Why something could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// The file cannot be read.
    #[error("the image cannot be read: {0}")]
    Io(String),
    /// It contradicts its own format.
    #[error("{0}")]
    Corrupt(String),
    /// It is in a variant that this program does not read.
    #[error("{0}")]
    Unsupported(String),
    /// A bound of ours was reached.
    #[error("{0}")]
    Bound(&'static str),
}

impl Trouble {
    /// A contradiction, in words.
    pub(crate) fn corrupt(text: impl ToString) -> Self {
        Self::Corrupt(text.to_string())
    }
}
