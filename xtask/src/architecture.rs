//! What the two architectures call things, and which of them this machine has.

use clap::ValueEnum;

/// An architecture that Bulkhead runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    /// PCs and servers.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64")]
    Aarch64,
}

/// The interrupt controller of an aarch64 machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Gic {
    /// That of boards with a GIC-400.
    #[value(name = "v2")]
    V2,
    /// That of servers and newer boards.
    #[value(name = "v3")]
    V3,
}

impl Architecture {
    /// That of this machine.
    pub(crate) fn native() -> Self {
        if std::env::consts::ARCH == "aarch64" { Self::Aarch64 } else { Self::X86_64 }
    }

    /// Its name in Debian.
    pub(crate) const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The console of its QEMU machine, as Linux names it.
    pub(crate) const fn console(self) -> &'static str {
        match self {
            Self::X86_64 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }

    /// A program in ELF that does nothing but execute an instruction which is undefined for ever, so that the kernel
    /// ends it by SIGILL.
    pub(crate) fn undefined_instruction(self) -> Vec<u8> {
        /// The header of the file, then that of its one segment.
        const CODE_AT: u64 = 64 + 56;
        const LOADED_AT: u64 = 0x40_0000;
        // e_machine, and `ud2` or `udf #0`.
        let (machine, code): (u16, [u8; 4]) = match self {
            Self::X86_64 => (62, [0x0f, 0x0b, 0x0f, 0x0b]),
            Self::Aarch64 => (183, [0; 4]),
        };
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
        put(&2u16.to_le_bytes()); // ET_EXEC
        put(&machine.to_le_bytes());
        put(&1u32.to_le_bytes());
        put(&(LOADED_AT + CODE_AT).to_le_bytes()); // the entry
        put(&64u64.to_le_bytes()); // program headers: where
        put(&0u64.to_le_bytes()); // section headers: none
        put(&0u32.to_le_bytes());
        for half in [64u16, 56, 1, 64, 0, 0] {
            put(&half.to_le_bytes());
        }
        put(&1u32.to_le_bytes()); // PT_LOAD
        put(&5u32.to_le_bytes()); // readable and executable
        for word in [0, LOADED_AT, LOADED_AT, CODE_AT + 4, CODE_AT + 4, 0x1_0000] {
            put(&word.to_le_bytes());
        }
        put(&code);
        file
    }
}

#[cfg(test)]
mod tests {
    use super::Architecture;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn undefined_instruction_ends_by_sigill() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("undefined");
        std::fs::write(&path, Architecture::native().undefined_instruction()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let status = std::process::Command::new(&path).status().unwrap();
        assert_eq!(status.signal(), Some(nix::sys::signal::Signal::SIGILL as i32));
    }
}
