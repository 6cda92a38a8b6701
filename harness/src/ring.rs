//! The posted-write ring, with one side captured: what it publishes may be anything, at any time.
//!
//! An honest pair hands every write over in order; a side that meets an impossible index says so and does nothing else.

use crate::packets::memory_file;
use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use wire::ring::{Consumer, Posted, PostedWrite, Producer, RING_BYTES, SLOTS};

/// Where the indices are, see `wire::ring`.
const PRODUCED: i64 = 0;
const CONSUMED: i64 = 64;

/// Steps of both sides and of a captured one.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let file = memory_file(RING_BYTES as u64);
    let mut producer = Producer::map(file.try_clone().expect("a descriptor")).expect("a ring");
    let mut consumer = Consumer::map(file.try_clone().expect("a descriptor")).expect("a ring");
    let mut waiting: VecDeque<PostedWrite> = VecDeque::new();
    let mut honest = true;
    let mut taken = 0_usize;
    while !input.is_empty() {
        match input.int_in_range(0..=6_u8)? {
            0 | 1 => {
                let write = PostedWrite { offset: input.arbitrary::<u8>()? & 7, value: input.arbitrary()? };
                match producer.post(write) {
                    Ok(Posted::Dropped) => assert!(!honest || waiting.len() + taken == SLOTS as usize),
                    Ok(Posted::Quiet | Posted::RingDoorbell) => waiting.push_back(write),
                    Err(_impossible) => assert!(!honest),
                }
            }
            2 => match consumer.take() {
                Ok(got) => {
                    assert!(got.is_none_or(|write| write.offset < 8), "an offset of no register");
                    if honest {
                        taken += usize::from(got.is_some());
                        assert_eq!(got, waiting.pop_front(), "a write was lost, changed or made up");
                    }
                }
                Err(_impossible) => assert!(!honest),
            },
            3 => {
                consumer.release();
                taken = 0;
            }
            4 => {
                let value = input.arbitrary::<u8>()?;
                consumer.publish_line_status(value);
                assert_eq!(producer.line_status(), value);
            }
            5 => {
                let sleeps = consumer.sleep();
                assert!(!honest || sleeps == waiting.is_empty(), "it would sleep over a write, or not at all");
            }
            _ => {
                // A captured side writes where it likes.
                honest = false;
                let at = [PRODUCED, CONSUMED, i64::from(input.arbitrary::<u16>()?)][input.choose_index(3)?];
                scribble(&file, at, input.arbitrary()?);
            }
        }
        assert!(producer.space().is_ok_and(|space| space <= SLOTS) || !honest);
    }
    Ok(())
}

fn scribble(file: &OwnedFd, at: i64, value: u32) {
    nix::sys::uio::pwrite(file, &value.to_le_bytes(), at.min(RING_BYTES as i64 - 4)).expect("a write to a memfd");
}

/// A handful of writes, and a captured side.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let write = |seed: Seed, value: u8| seed.u8(0).u8(1).u8(value);
    vec![
        ("in_order", write(write(Seed::new().u8(5), b'a').u8(2), b'b').u8(2).u8(3).u8(4).u8(0x60).done()),
        ("captured", write(Seed::new(), b'a').u8(6).u16(0).u8(0).u32(9000).u8(2).done()),
    ]
}
