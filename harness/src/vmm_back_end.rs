//! A captured disk process: any answers to the vmm, which asks what it offers, starts it and stops it.
//!
//! What it offers is cut down to what the transport knows; whatever else it says ends the run with its name.

use crate::packets::{memory_file, send};
use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vmm_core::vmm::virtio::request::{Action, Watch};
use vmm_core::vmm::virtio::vhost::{BackEnd, Events};
use vmm_core::vmm::virtio::{FEATURES, Queue, VERSION_1};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wire::MemoryBytes;
use wire::message::StopReason;

/// A reply of version 1 ("vhost-user protocol", header).
const REPLY: u32 = 1 | 4;
const CONFIG_BYTES: u32 = 60;

/// What the process answers, all of it beforehand.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let bytes = MemoryBytes::try_from(MemoryBytes::GRANULE).expect("a size");
    let memory = vmm_core::memory::map(memory_file(bytes.get()), bytes).expect("guest memory");
    let (ours, theirs) = UnixStream::pair().expect("a socket");
    let watch = Arc::new(Watch::new(vec![ours.try_clone().expect("a descriptor")]));
    let event = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let events = Events { kick: event(), call: event(), error: event() };
    let mut back_end = BackEnd::new(0, ours, watch, memory, events);
    answers(input, &theirs).unwrap_or(());
    // Nothing comes after it, so that nobody waits for the deadline.
    theirs.shutdown(Shutdown::Write).expect("an open socket");
    let offer = match back_end.offer() {
        Ok(offer) => offer,
        Err(reason) => {
            assert_names_the_disk(&reason);
            return Ok(());
        }
    };
    assert_eq!(offer.features & !FEATURES, 0, "features that the transport does not know");
    assert_ne!(offer.features & VERSION_1, 0);
    assert_eq!(offer.config.len(), CONFIG_BYTES as usize);
    let queues = vec![Queue { size: 16, descriptors: 0x1000, avail: 0x2000, used: 0x3000 }];
    for action in [Action::Activate { features: offer.features, queues }, Action::Reset] {
        if let Err(reason) = back_end.act(&action) {
            assert_names_the_disk(&reason);
            break;
        }
    }
    Ok(())
}

fn assert_names_the_disk(reason: &StopReason) {
    assert!(matches!(reason, StopReason::DeviceFailed { device: 1, .. }), "{reason:?}");
}

fn answers(input: &mut Unstructured<'_>, theirs: &UnixStream) -> Result<()> {
    while !input.is_empty() {
        let answer = match input.int_in_range(0..=4_u8)? {
            // A number.
            0 => reply(input.arbitrary::<u8>()?.into(), &input.arbitrary::<u64>()?.to_le_bytes()),
            // As an honest process answers: features, protocol features, and that something was done.
            1 => reply(1, &(1_u64 << 30 | VERSION_1 | input.arbitrary::<u64>()?).to_le_bytes()),
            2 => reply(input.arbitrary::<u8>()?.into(), &0_u64.to_le_bytes()),
            // The configuration.
            3 => {
                let header = [0, CONFIG_BYTES, 0].map(u32::to_le_bytes).concat();
                reply(24, &[header, vec![input.arbitrary()?; CONFIG_BYTES as usize]].concat())
            }
            _ => crate::packets::short(input)?.to_vec(),
        };
        let stray = [theirs.as_fd()];
        let count = usize::from(input.arbitrary::<u8>()? == 0xff);
        send(theirs.as_fd(), &answer, &stray[..count]);
    }
    Ok(())
}

fn reply(code: u32, body: &[u8]) -> Vec<u8> {
    let header = [code, REPLY, body.len() as u32].map(u32::to_le_bytes).concat();
    [&header, body].concat()
}

/// An honest process, and one that lacks something.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let features = |seed: Seed, bits: u64| seed.u8(1).u64(bits).u8(0);
    let number = |seed: Seed, code: u8, value: u64| seed.u8(0).u8(code).u64(value).u8(0);
    let done = |seed: Seed, code: u8| seed.u8(2).u8(code).u8(0);
    // CONFIG, REPLY_ACK and MQ; then one queue and the configuration.
    let offer = number(number(features(Seed::new(), 1 << 9), 15, 1 << 9 | 1 << 3 | 1), 17, 1).u8(3).u8(7).u8(0);
    let started = [2, 5, 8, 9, 10, 14, 13, 12, 18].into_iter().fold(offer.clone(), done);
    vec![
        ("honest", number(started, 11, 0).done()),
        ("offer", offer.done()),
        ("no_config", number(features(Seed::new(), 0), 15, 1 << 3).done()),
        ("stray_descriptor", Seed::new().u8(1).u64(0).u8(0xff).done()),
    ]
}
