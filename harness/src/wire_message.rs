//! Any packet, decoded as any type of message. What is decoded is valid, is shown without driving a terminal, and is
//! encoded as the same bytes again: there is one encoding of each message.

use crate::packets::send;
use crate::seeds::Seed;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use std::os::fd::AsFd;
use wire::channel::MAX_MESSAGE_BYTES;
use wire::message::{
    Architecture, DiskSeen, Entry, Exits, FromBlock, FromInspector, FromLoader, FromSerial, FromVmm, HostSeen,
    InspectedGuest, InspectorTask, Lockdown, LogForm, MachineSeen, SerialRead, SerialValue, StartBlock, StartInspector,
    StartLoader, StartSerial, StartVmm, StopReason, Times, ToDevice, ToInspector, ToLoader, ToVmm, VcpuSeen,
};
use wire::report::{Confidence, EvidenceLines, Fact, Finding, FindingId, Severity};
use wire::{Channel, ChannelError, CommandLine, CpuList, Text};

/// The first byte says which type, the rest is the packet.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    let Some((kind, packet)) = bytes.split_first() else { return };
    match kind % 18 {
        0 => decode::<StartLoader>(packet),
        1 => decode::<ToLoader>(packet),
        2 => decode::<FromLoader>(packet),
        3 => decode::<StartVmm>(packet),
        4 => decode::<ToVmm>(packet),
        5 => decode::<FromVmm>(packet),
        6 => decode::<StartSerial>(packet),
        7 => decode::<ToDevice>(packet),
        8 => decode::<FromSerial>(packet),
        9 => decode::<SerialRead>(packet),
        10 => decode::<SerialValue>(packet),
        11 => decode::<StartBlock>(packet),
        12 => decode::<FromBlock>(packet),
        13 => decode::<CpuList>(packet),
        15 => decode::<StartInspector>(packet),
        16 => decode::<ToInspector>(packet),
        17 => decode::<FromInspector>(packet),
        _ => text(packet),
    }
}

fn receive<T: DeserializeOwned>(packet: &[u8]) -> Option<T> {
    let (ours, theirs) = Channel::pair().expect("a channel");
    send(theirs.as_fd(), packet, &[]);
    match ours.try_recv::<T>() {
        Ok(received) => {
            assert!(packet.len() <= MAX_MESSAGE_BYTES, "a packet of {} bytes was taken", packet.len());
            Some(received.without_fds().expect("no descriptors came"))
        }
        Err(ChannelError::WouldBlock) => panic!("the packet did not arrive"),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fn decode<T: DeserializeOwned + Serialize + Debug>(packet: &[u8]) {
    let Some(message) = receive::<T>(packet) else { return };
    let (ours, theirs) = Channel::pair().expect("a channel");
    theirs.send(&message, &[]).expect("what was decoded can be encoded");
    let mut again = vec![0; MAX_MESSAGE_BYTES + 1];
    let length = nix::unistd::read(&ours, &mut again).expect("the encoded message");
    assert_eq!(&again[..length], packet, "{message:?} has two encodings");
}

fn text(packet: &[u8]) {
    decode::<Text>(packet);
    if let Some(text) = receive::<Text>(packet) {
        let shown = text.to_string();
        assert!(!shown.chars().any(char::is_control), "{shown:?} drives the terminal");
    }
}

/// One message of each type.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let words = || Text::truncated("why \u{1b}[2J");
    let lockdown = Lockdown { landlock_abi: 3, mdwe: true, listeners: 1, times: Times { begun_ns: 5, prepared_ns: 7 } };
    let cmdline = CommandLine::try_from("console=ttyS0 root=/dev/vda".to_owned()).expect("a line");
    let seen = MachineSeen {
        vcpus: vec![VcpuSeen {
            vcpu: 0,
            started: true,
            exits: Exits { port_writes: 7, ..Exits::default() },
            earlier_counter: None,
            program_counter: Some(0x10_0000),
        }],
        disks: vec![DiskSeen { status: 15, refusals: 0 }],
    };
    let host = HostSeen { reason: Some(words()), console_bytes: Some(9), machine: Some(seen.clone()) };
    let guest = InspectedGuest { architecture: Architecture::Aarch64, cmdline: cmdline.clone(), memory: None };
    let inspect = InspectorTask::Inspect { guest, has_image: true, has_kernel: true, may_be_kernel: false };
    let explain = InspectorTask::Explain { architecture: None, form: LogForm::Recording };
    let id = || FindingId::try_from("init-missing").expect("a name");
    let fact = Fact { name: id(), of: words(), value: words() };
    let finding = Finding {
        id: id(),
        severity: Severity::Fatal,
        confidence: Confidence::Certain,
        what: words(),
        why: words(),
        evidence: EvidenceLines::truncated([words(), words()]),
        remedy: words(),
    };
    let long = Entry::X86Long { entry: 0x10_0000, boot_params: 0x7000, page_table: 0x9000, gdt: 0x500 };
    vec![
        (
            "start_loader",
            encoded(
                0,
                &StartLoader {
                    audit: false,
                    memory: (512 << 20).try_into().expect("a size"),
                    vcpus: 2.try_into().expect("a count"),
                    disks: 1.try_into().expect("a count"),
                    gic: wire::message::GicVersion::V3,
                    has_initrd: true,
                    acpi: true,
                    cmdline: cmdline.clone(),
                },
            ),
        ),
        ("to_loader", encoded(1, &ToLoader::Load)),
        ("from_loader", encoded(2, &FromLoader::Refused { file: wire::message::BootFile::Initrd, why: words() })),
        (
            "start_vmm",
            encoded(
                3,
                &StartVmm {
                    audit: true,
                    memory: (2 << 20).try_into().expect("a size"),
                    vcpus: 32.try_into().expect("a count"),
                    disks: 16.try_into().expect("a count"),
                    gic: wire::message::GicVersion::V2,
                    cpus: vec![0, 5].try_into().expect("a list"),
                    debug: true,
                },
            ),
        ),
        ("to_vmm", encoded(4, &ToVmm::Run(long))),
        ("from_vmm", encoded(5, &FromVmm::Stopped(StopReason::DeviceFailed { device: 1, why: words() }))),
        ("registers", encoded(5, &FromVmm::Registers { vcpu: 1, lines: vec![words(), words()] })),
        (
            "start_serial",
            encoded(
                6,
                &StartSerial {
                    audit: false,
                    has_input: true,
                    escapes: true,
                    outputs: vec![
                        wire::message::ConsoleOutput::Stream,
                        wire::message::ConsoleOutput::File { limit_bytes: 9 },
                    ],
                    limit_bytes: Some(99),
                    has_recording: true,
                },
            ),
        ),
        ("to_device", encoded(7, &ToDevice::Shutdown)),
        ("from_serial", encoded(8, &FromSerial::Finished { received_bytes: 7, dropped_bytes: vec![1, 2] })),
        ("serial_read", encoded(9, &SerialRead { offset: 5 })),
        ("serial_value", encoded(10, &SerialValue { value: 0x60 })),
        (
            "start_block",
            encoded(
                11,
                &StartBlock {
                    audit: false,
                    mode: wire::message::DiskMode::Ephemeral,
                    engine: wire::message::DiskEngine::Sync,
                    capacity: 8.try_into().expect("a size"),
                    id: "disk0".to_owned().try_into().expect("an id"),
                    write_limit_bytes: None,
                },
            ),
        ),
        ("from_block", encoded(12, &FromBlock::Ready(lockdown))),
        ("cpu_list", encoded(13, &CpuList::try_from(vec![1, 2, 3]).expect("a list"))),
        ("text", encoded(14, &words())),
        ("seen", encoded(5, &FromVmm::Seen(seen.clone()))),
        ("start_inspector", encoded(15, &StartInspector { audit: false, task: inspect })),
        ("start_explainer", encoded(15, &StartInspector { audit: true, task: explain })),
        ("to_inspector", encoded(16, &ToInspector::Begin(host))),
        ("fact", encoded(17, &FromInspector::Fact(fact))),
        ("finding", encoded(17, &FromInspector::Finding(finding))),
    ]
}

/// A message as a packet, after the number of its type here.
pub(crate) fn encoded<T: Serialize>(kind: u8, message: &T) -> Vec<u8> {
    Seed::new().u8(kind).bytes(&packet(message)).done()
}

/// A message as a packet.
pub(crate) fn packet<T: Serialize>(message: &T) -> Vec<u8> {
    let (ours, theirs) = Channel::pair().expect("a channel");
    theirs.send(message, &[]).expect("a message that can be encoded");
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let length = nix::unistd::read(&ours, &mut bytes).expect("the encoded message");
    bytes.truncate(length);
    bytes
}
