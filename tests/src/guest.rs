//! The bare-metal guests, which the build made: ELF files on x86_64, on aarch64 an Image that powers off.

use std::path::{Path, PathBuf};

/// Which guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// Entered in long mode by the 64-bit boot protocol.
    Long,
    /// Entered in 32-bit mode by PVH, for which it has a note.
    Pvh,
    /// As [`Guest::Pvh`]; prints one byte at once and ends as `end=` says, for the benchmarks.
    Quick,
}

impl Guest {
    /// The file.
    #[must_use]
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Self::Long => include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf")),
            Self::Pvh => include_bytes!(concat!(env!("OUT_DIR"), "/guest-pvh.elf")),
            Self::Quick => include_bytes!(concat!(env!("OUT_DIR"), "/guest-quick.elf")),
        }
    }

    /// Whether it does nothing but power off: on other architectures than x86_64.
    #[must_use]
    pub fn is_mute(self) -> bool {
        !self.bytes().starts_with(b"\x7fELF")
    }

    /// Writes the file into `folder`.
    #[must_use]
    pub fn write(self, folder: &Path) -> PathBuf {
        let path = folder.join("guest.elf");
        std::fs::write(&path, self.bytes()).expect("the guest cannot be written");
        path
    }
}
