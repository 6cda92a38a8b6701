//! Captured processes: any packets with any descriptors, in any order, and time that passes, to the supervision of the
//! broker. It ends with one sentence that drives no terminal, keeps a bounded number of causes, and stops listening to
//! whoever breaks the protocol.

use crate::packets::send;
use crate::seeds::Seed;
use crate::wire_message::packet;
use arbitrary::{Result, Unstructured};
use broker::rehearsal::{Child, Rehearsal};
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use wire::Text;
use wire::message::{
    Entry, FromBlock, FromLoader, FromSerial, FromVmm, Lockdown, MachineSeen, StopReason, Times, ToLoader, ToVmm,
    VcpuSeen,
};

/// The exit codes of the README.
const CODES: &[u8] = &[0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 20, 21, 22, 23, 30, 31, 32, 33, 34, 130, 143];
/// As the supervisor keeps, and one that a death may add for each child.
const MAX_CAUSES: usize = 64 + 4;

/// Packets, each of one of the children.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let (mut broker, children) = Rehearsal::new().expect("descriptors");
    while !input.is_empty() {
        let index = input.choose_index(Child::ALL.len())?;
        let child = children.get(index).expect("a child");
        match input.int_in_range(0..=5_u8)? {
            0 => {
                let with = [child.as_fd(); 3];
                let count = usize::from(input.arbitrary::<u8>()? & 3);
                send(child.as_fd(), crate::packets::short(input)?, &with[..count]);
                broker.hear(index);
            }
            1..=3 => {
                let honest = honest(Child::ALL[index], input)?;
                send(child.as_fd(), &honest, &[]);
                broker.hear(index);
            }
            4 => broker.pass(Duration::from_millis(input.arbitrary::<u16>()?.into())),
            _ => {
                // Half a shutdown is none: what is closed is closed.
                shutdown(child.as_fd().as_raw_fd(), Shutdown::Write).unwrap_or(());
                broker.hear(index);
                assert!(!broker.listens_to(index), "a channel is closed, and listened to");
            }
        }
        // A process reads what it is told, or the broker would wait for it.
        while child.try_recv::<ToLoader>().is_ok() || child.try_recv::<ToVmm>().is_ok() {}
    }
    let told = broker.judge();
    assert!(!told.message.is_empty() && CODES.contains(&told.code), "{told:?}");
    assert!(told.causes <= MAX_CAUSES, "{} causes are kept", told.causes);
    let lines = told.registers.values().flatten().chain([&told.message]);
    for line in lines {
        assert!(!line.chars().any(char::is_control), "{line:?} drives the terminal");
    }
    assert!(told.registers.keys().all(|vcpu| *vcpu < 2), "registers of a vCPU that there is not");
    Ok(())
}

/// A message that this child may send, though perhaps not now.
fn honest(child: Child, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let text =
        |input: &mut Unstructured<'_>| Ok(Text::truncated(String::from_utf8_lossy(crate::packets::short(input)?)));
    let what = input.int_in_range(0..=7_u8)?;
    let lockdown = Lockdown { landlock_abi: 0, mdwe: true, listeners: 0, times: Times::default() };
    Ok(match (child, what) {
        (Child::Loader, 0) => packet(&FromLoader::Ready(lockdown)),
        (Child::Loader, 1 | 2) => {
            packet(&FromLoader::Refused { file: wire::message::BootFile::Kernel, why: text(input)? })
        }
        (Child::Loader, 3) => packet(&FromLoader::Failed(text(input)?)),
        (Child::Loader, _) => packet(&FromLoader::Loaded(Entry::Arm64 { entry: input.arbitrary()?, fdt: 0 })),
        (Child::Vmm, 0) => packet(&FromVmm::Ready(lockdown)),
        (Child::Vmm, 1 | 2) => packet(&FromVmm::Running),
        (Child::Vmm, 3) => {
            let lines = vec![text(input)?; usize::from(input.arbitrary::<u8>()? % 8)];
            packet(&FromVmm::Registers { vcpu: input.arbitrary()?, lines })
        }
        (Child::Vmm, 4) if input.ratio(1_u8, 2_u8)? => {
            let vcpu = VcpuSeen {
                vcpu: input.arbitrary()?,
                started: true,
                exits: Default::default(),
                earlier_counter: None,
                program_counter: None,
            };
            let vcpus = vec![vcpu; usize::from(input.arbitrary::<u8>()? % 40)];
            packet(&FromVmm::Seen(MachineSeen { vcpus, disks: Vec::new() }))
        }
        (Child::Vmm, 4) => packet(&FromVmm::Failed(text(input)?)),
        (Child::Vmm, 5) => {
            packet(&FromVmm::Stopped(StopReason::DeviceFailed { device: input.arbitrary()?, why: text(input)? }))
        }
        (Child::Vmm, 6) => packet(&FromVmm::Stopped(StopReason::KvmError(text(input)?))),
        (Child::Vmm, _) => {
            let reasons = [StopReason::PowerOff, StopReason::Reset, StopReason::Halted, StopReason::TripleFault];
            packet(&FromVmm::Stopped(reasons[input.choose_index(4)?].clone()))
        }
        (Child::Serial, 0) => packet(&FromSerial::Ready(lockdown)),
        (Child::Serial, 1) => packet(&FromSerial::FirstByte { at_ns: input.arbitrary()? }),
        (Child::Serial, 2) => packet(&FromSerial::Panic(text(input)?)),
        (Child::Serial, 3) => packet(&FromSerial::Halted),
        (Child::Serial, 4) => packet(&FromSerial::Leave),
        (Child::Serial, 5) => packet(&FromSerial::Failed(text(input)?)),
        (Child::Serial, 6) => packet(&FromSerial::LimitReached),
        (Child::Serial, _) => {
            let dropped_bytes = vec![input.arbitrary()?; usize::from(input.arbitrary::<u8>()? % 9)];
            packet(&FromSerial::Finished { received_bytes: input.arbitrary()?, dropped_bytes })
        }
        (Child::Block, 0) => packet(&FromBlock::Ready(lockdown)),
        (Child::Block, 1 | 2) => packet(&FromBlock::Finished),
        (Child::Block, 4) => packet(&FromBlock::LimitReached),
        (Child::Block, 3) => packet(&FromBlock::Failed(text(input)?)),
        (Child::Block, _) => packet(&FromBlock::Broken(text(input)?)),
    })
}

/// A run that ends well, a panic, and captured processes.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let says = |seed: Seed, child: u8, what: u8| seed.u8(child).u8(1).u8(what);
    let running = says(says(Seed::new(), 0, 4).u64(0x4000_0000), 1, 1);
    let stopped = |seed: Seed| says(seed, 1, 7).u8(0);
    let text = |seed: Seed, text: &[u8]| seed.u8(text.len() as u8).bytes(text);
    let panic = text(says(running.clone(), 2, 2), b"Kernel panic - not syncing: \x1b[2J");
    vec![
        ("poweroff", stopped(running.clone()).done()),
        ("panic", stopped(panic).done()),
        ("registers", text(says(running.clone(), 1, 3), b"pc \x1b").u8(2).u8(1).u8(1).u8(4).u16(9999).done()),
        ("closed", running.clone().u8(1).u8(5).u8(1).u8(4).u16(2000).done()),
        ("nonsense", running.u8(3).u8(0).u8(2).u8(3).bytes(b"abc").done()),
    ]
}
