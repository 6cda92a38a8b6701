//! Makes archives, programs and disks, and asks the inspector about them.

use forensics::Report;
use forensics::inspect::{Architecture, Guest, image};
use wire::report::{Finding, Severity};

/// A file of the fixtures.
macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../../fixtures/", $name)).as_slice()
    };
}
pub(crate) use fixture;

pub(crate) fn guest(cmdline: &str) -> Guest {
    Guest { architecture: Architecture::X86_64, cmdline: cmdline.into(), memory_bytes: Some(512 << 20) }
}

/// An archive in the format newc.
#[derive(Debug, Default, Clone)]
pub(crate) struct Cpio(pub(crate) Vec<u8>);

impl Cpio {
    pub(crate) fn entry(mut self, name: &str, mode: u32, body: &[u8]) -> Self {
        let header = [1, mode, 0, 0, 1, 0, body.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.0.extend_from_slice(b"070701");
        for field in header {
            self.0.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn folder(self, name: &str) -> Self {
        self.entry(name, 0o040_755, &[])
    }

    pub(crate) fn file(self, name: &str, body: &[u8]) -> Self {
        self.entry(name, 0o100_755, body)
    }

    pub(crate) fn link(self, name: &str, to: &str) -> Self {
        self.entry(name, 0o120_777, to.as_bytes())
    }

    pub(crate) fn end(self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]).0
    }
}

/// A program of one segment, whose code is `code`.
pub(crate) fn program(machine: u16, code: &[u8]) -> Vec<u8> {
    let mut elf = vec![0; 120];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let length = (120 + code.len()) as u64;
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2_u16.to_le_bytes());
    put(18, &machine.to_le_bytes());
    put(20, &1_u32.to_le_bytes());
    put(24, &0x40_0078_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    put(64, &1_u32.to_le_bytes());
    put(68, &5_u32.to_le_bytes());
    put(80, &0x40_0000_u64.to_le_bytes());
    put(96, &length.to_le_bytes());
    put(104, &length.to_le_bytes());
    put(112, &4096_u64.to_le_bytes());
    elf.extend_from_slice(code);
    elf
}

pub(crate) const X86_64: u16 = 62;
pub(crate) const AARCH64: u16 = 183;
/// `mov $60, %eax; xor %edi, %edi; syscall`, with something behind it.
pub(crate) const EXIT: &[u8] =
    &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05, 0xf4, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90];

/// The report of an image, with the finding of an id, which must be there.
pub(crate) fn found(bytes: &[u8], guest: &Guest, id: &str) -> (Report, Finding) {
    let report = image(&bytes, guest);
    let finding = report.findings.iter().find(|finding| finding.id.as_str() == id).cloned();
    let finding = finding.unwrap_or_else(|| panic!("no {id} in {report:#?}"));
    (report, finding)
}

/// An image of which this finding must be made, with this severity.
pub(crate) fn expect(bytes: &[u8], guest: &Guest, id: &str, severity: Severity) -> Finding {
    let (report, finding) = found(bytes, guest, id);
    assert_eq!(finding.severity, severity, "{report:#?}");
    finding
}

/// An image with which all is well.
pub(crate) fn clean(bytes: &[u8], guest: &Guest) -> Report {
    let report = image(&bytes, guest);
    assert_eq!(report.findings, [], "{report:#?}");
    report
}

/// The value of a fact.
pub(crate) fn fact(report: &Report, name: &str) -> String {
    let fact = report.facts.iter().find(|fact| fact.name.as_str() == name);
    fact.unwrap_or_else(|| panic!("no {name} in {report:#?}")).value.to_string()
}
