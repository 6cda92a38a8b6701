//! Any console log, and anything that the host may have seen, to the explanation: a report of bounded size, the same each
//! time, which is certain of nothing that a guest alone said.

use crate::seeds::Seed;
use forensics::Report;
use forensics::explain::{HostEvidence, console};
use forensics::inspect::Architecture;
use wire::Text;
use wire::report::{Confidence, EvidenceLines, Severity};

/// What the host saw, by the bits of the first byte; the rest is the log.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    let Some((bits, log)) = bytes.split_first() else { return };
    let host = evidence(*bits);
    let report = console(log, &host);
    assert!(report.findings.len() <= Report::MAX_FINDINGS && report.facts.len() <= Report::MAX_FACTS);
    let knows_nothing = host == HostEvidence::default();
    let mut ids = Vec::new();
    for finding in &report.findings {
        assert!(!ids.contains(&&finding.id), "{} is told twice", finding.id);
        ids.push(&finding.id);
        assert!(!knows_nothing || finding.confidence < Confidence::Certain, "{} is certain of a log", finding.id);
        for text in [&finding.what, &finding.why, &finding.remedy] {
            assert!(!text.is_empty() && text.len() <= Text::MAX_BYTES);
            assert!(!text.to_string().contains(char::is_control), "a text drives a terminal");
        }
        let bytes: usize = finding.evidence.get().iter().map(Text::len).sum();
        assert!(bytes <= EvidenceLines::MAX_BYTES && finding.evidence.get().len() <= EvidenceLines::MAX_LINES);
    }
    // A note never comes before what failed.
    let notes = report.findings.iter().skip_while(|finding| finding.severity > Severity::Note);
    assert!(notes.clone().all(|finding| finding.severity == Severity::Note), "a note comes before a failure");
    assert_eq!(console(log, &host), report, "the same log is explained in two ways");
}

fn evidence(bits: u8) -> HostEvidence {
    let reasons = [None, Some("guest-panic"), Some("triple-fault"), Some("kvm-error")];
    HostEvidence {
        reason: reasons[usize::from(bits & 3)].map(str::to_owned),
        architecture: (bits & 8 != 0).then_some(Architecture::X86_64),
        console_bytes: (bits & 4 != 0).then_some(0),
        disks_ready: vec![bits & 16 != 0; usize::from(bits >> 3 & 1)],
        exits: (bits & 32 != 0).then_some(u64::from(bits & 64) * 1000),
        program_counters: vec![0x8_0000; usize::from(bits >> 7) * 2],
    }
}

/// A killed init, an oops, a root that is not there, words that are cut, and silence.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let log = |bits: u8, text: &str| Seed::new().u8(bits).bytes(text.as_bytes()).done();
    let killed = "[    0.000000] Linux version 6.1.0 (debian) #1\n[    1.000000] Run /init as init process\r\nhello[    \
        1.193257] init[1]: segfault at 10 ip 0000000000400078 sp 00007fffd94453f0 error 4 in init[400000+1000]\n\
        [    1.193878] Code: 00 00 <48> 8b 04 25 10 00 00 00\n\
        [    1.195488] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\n\
        [    1.195600] Call Trace:\n[    1.195700]  <TASK>\n[    1.195800]  panic+0x114/0x2f1\n\
        [    1.195900]  ? do_exit+0x10/0x20 [mod]\n[    1.196000]  asm_exc_page_fault+0x1e/0x30\n";
    let arm = "[    1.000000][    T1] init[1]: undefined instruction: pc=0000000000400078\n\
        [    1.000001][    T1] Code: d503201f d503201f d503201f d503201f (f82003e1)\n\
        [    1.000002][    T1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000004\n\
        [    1.000003][    T1] Call trace:\n[    1.000004][    T1]  do_notify_resume+0x280/0x930\n\
        [    1.000005][    T1]  work_pending+0xc/0x618\n[    1.000006][    T1]  el0_sync+0x180/0x1c0\n";
    let root = "[    0.000000] Kernel command line: console=ttyS0 root=/dev/vda\n\
        [    1.000000] VFS: Cannot open root device \"/dev/vda\" or unknown-block(0,0): error -19\n\
        [    1.000001] fe00           16384 vda \n[    1.000002]  driver: virtio_blk\n\
        [    1.000003] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n";
    let oops = "BUG: kernel NULL pointer dereference, address: 0000000000000000\nRIP: 0010:f+0x1/0x2 [m]\n\
        Call Trace:\n f+0x1/0x2 [m 0123]\n do_one_initcall+0x1/0x2 (P)\n---[ end trace 0 ]---\n";
    vec![
        ("killed", log(0, killed)),
        ("arm64", log(1, arm)),
        ("root", log(0x18, root)),
        ("oops", log(1, oops)),
        ("exec", log(0, "[    1.000000] Failed to execute /init (error -26)\n\x1b[1mx\x1b]0;t\x07\n")),
        ("initramfs", log(0, "[    1.000000] Initramfs unpacking failed: write error\n")),
        ("silence", log(0xff, "")),
        ("stuck", log(0xa4, "")),
        ("cut", log(0, "[    1.000000] Initramfs unpack")),
    ]
}
