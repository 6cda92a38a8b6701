//! A captured serial process: any answers, and any index in the ring, to the vmm. Every access of the guest is answered
//! or ends the run with the name of the culprit.

use crate::packets::{memory_file, send};
use crate::seeds::Seed;
use crate::wire_message::packet;
use arbitrary::{Result, Unstructured};
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::{AsFd, AsRawFd};
use vmm_core::vmm::serial::SerialProxy;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wire::Channel;
use wire::message::{SerialValue, StopReason};
use wire::ring::RING_BYTES;

/// What serial has answered beforehand, then accesses of the guest.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let ring = memory_file(RING_BYTES as u64);
    let (ours, theirs) = Channel::pair().expect("a channel");
    let doorbell = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let proxy = SerialProxy::new(ours.into(), ring.try_clone().expect("a descriptor"), doorbell).expect("a ring");
    for _ in 0..input.int_in_range(0..=15_u8)? {
        match input.int_in_range(0..=2_u8)? {
            0 | 1 => send(theirs.as_fd(), &packet(&SerialValue { value: input.arbitrary()? }), &[]),
            _ => {
                let stray = [ring.as_fd()];
                let count = usize::from(input.arbitrary::<u8>()? & 1);
                send(theirs.as_fd(), crate::packets::short(input)?, &stray[..count]);
            }
        }
    }
    // Nothing comes after it, so that nobody waits for the deadline.
    shutdown(theirs.as_fd().as_raw_fd(), Shutdown::Write).expect("an open socket");
    while !input.is_empty() {
        let ended = match input.int_in_range(0..=2_u8)? {
            0 => proxy.read(input.arbitrary()?).err(),
            1 => proxy.write(input.arbitrary()?, input.arbitrary()?).err(),
            _ => {
                let at = i64::from(input.arbitrary::<u8>()?);
                nix::sys::uio::pwrite(&ring, &input.arbitrary::<u32>()?.to_le_bytes(), at).unwrap_or(0);
                None
            }
        };
        if let Some(reason) = ended {
            assert!(matches!(reason, StopReason::DeviceFailed { device: 0, .. }), "{reason:?}");
            return Ok(());
        }
    }
    Ok(())
}

/// Answers and accesses.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (
            "answers",
            Seed::new().u8(2).u8(0).u8(1).u8(0).u8(2).u8(0).u8(0).u8(0).u8(1).u8(0).u8(5).u8(1).u8(0).u8(b'x').done(),
        ),
        ("nonsense", Seed::new().u8(1).u8(2).u8(1).u8(3).bytes(b"abc").u8(0).u8(0).done()),
        ("bad_index", Seed::new().u8(0).u8(2).u8(64).u32(77).u8(1).u8(0).u8(1).u8(0).u8(5).done()),
    ]
}
