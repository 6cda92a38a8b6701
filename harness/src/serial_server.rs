//! A captured vmm, a user who types, and a broker, to the serial process with its real event loop.
//!
//! What the guest sends reaches the output whole and in order; a vmm that breaks the protocol loses its socket, one that
//! breaks the ring ends the process, and nothing else does.

use crate::packets::{memory_file, send};
use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use device_procs::serial::server::{ServeError, Server};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use wire::Channel;
use wire::message::{ConsoleOutput, FromSerial, SerialRead, StartSerial, ToDevice};
use wire::ring::{Posted, PostedWrite, Producer, RING_BYTES};

/// The registers whose writes decide where a byte goes.
const DATA: u8 = 0;
const LCR: u8 = 3;
const MCR: u8 = 4;
/// The limit of the file beside the stream.
const LIMIT_BYTES: u64 = 40;

/// Steps of all three.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let escapes = input.arbitrary::<u8>()? & 1 != 0;
    let (broker, control) = Channel::pair().expect("a channel");
    let (vmm, to_vmm) = Channel::pair().expect("a channel");
    let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let (doorbell, irq) = (eventfd(), eventfd());
    let ring = memory_file(RING_BYTES as u64);
    let (typed, keyboard) = nix::unistd::pipe().expect("a pipe");
    let outputs = [memory_file(0), memory_file(0)];
    let mut fds: Vec<OwnedFd> = vec![to_vmm.into(), ring.try_clone().expect("a descriptor")];
    fds.extend([&doorbell, &irq].map(|event| event.as_fd().try_clone_to_owned().expect("a descriptor")));
    fds.push(typed);
    fds.extend(outputs.iter().map(|output| output.try_clone().expect("a descriptor")));
    let start = StartSerial {
        audit: false,
        has_input: true,
        escapes,
        outputs: vec![ConsoleOutput::Stream, ConsoleOutput::File { limit_bytes: LIMIT_BYTES }],
        limit_bytes: None,
        has_recording: false,
    };
    let mut server = Server::new(&control, &start, fds).expect("a server");
    let mut producer = Producer::map(ring.try_clone().expect("a descriptor")).expect("a ring");
    let mut sent = Vec::new();
    let (mut line_control, mut modem_control, mut honest, mut broker_is_honest) = (0, 0, true, true);
    while !input.is_empty() {
        match input.int_in_range(0..=7_u8)? {
            0..=2 => {
                let write = PostedWrite { offset: input.arbitrary::<u8>()? & 7, value: input.arbitrary()? };
                let posted = producer.post(write).expect("serial publishes what it should");
                assert_ne!(posted, Posted::Dropped, "the ring is full though serial had its turn");
                match write.offset {
                    DATA if line_control & 0x80 == 0 && modem_control & 0x10 == 0 => sent.push(write.value),
                    LCR => line_control = write.value,
                    MCR => modem_control = write.value,
                    _ => {}
                }
            }
            3 => {
                let offset = input.arbitrary()?;
                drop(vmm.try_send(&SerialRead { offset }, &[]));
            }
            4 => {
                let with = [irq.as_fd()];
                let stray = usize::from(input.arbitrary::<u8>()? & 1);
                send(vmm.as_fd(), crate::packets::short(input)?, &with[..stray]);
            }
            5 => {
                nix::unistd::write(&keyboard, crate::packets::short(input)?).unwrap_or(0);
            }
            6 => {
                honest = false;
                let at = i64::from(input.arbitrary::<u16>()?) % 256;
                nix::sys::uio::pwrite(&ring, &input.arbitrary::<u32>()?.to_le_bytes(), at).unwrap_or(0);
                producer = Producer::map(ring.try_clone().expect("a descriptor")).expect("a ring");
                // A producer that begins anew has lost its place.
                break;
            }
            _ => {
                broker_is_honest = false;
                send(broker.as_fd(), crate::packets::short(input)?, &[]);
            }
        }
        if !turn(&mut server, &doorbell, &broker, honest, broker_is_honest) {
            return Ok(());
        }
    }
    drop(producer);
    if broker.send(&ToDevice::Shutdown, &[]).is_ok() {
        while turn(&mut server, &doorbell, &broker, honest, broker_is_honest) {}
    }
    if honest && broker_is_honest {
        assert_eq!(content(&outputs[0]), sent, "what the guest sent did not reach the stream");
        let file = content(&outputs[1]);
        assert!(file.len() as u64 <= LIMIT_BYTES && sent.starts_with(&file), "the file is beyond its limit, or wrong");
    }
    Ok(())
}

/// Lets the server do what there is to do; false when that was the last.
fn turn(server: &mut Server<'_>, doorbell: &EventFd, broker: &Channel, honest: bool, broker_is_honest: bool) -> bool {
    // So that it never waits.
    doorbell.write(1).unwrap_or(0);
    let goes_on = match server.turn() {
        Ok(goes_on) => goes_on,
        Err(ServeError::Ring(_)) => {
            assert!(!honest, "an honest vmm broke the ring");
            false
        }
        Err(ServeError::Control(_)) => {
            assert!(!broker_is_honest, "an honest broker broke its protocol");
            false
        }
        Err(ServeError::Poll(errno)) => panic!("{errno}"),
    };
    // It waits for nobody but the broker, who reads.
    while let Ok(told) = broker.try_recv::<FromSerial>() {
        let told = told.without_fds().expect("no descriptors");
        assert!(!matches!(told, FromSerial::Ready(_) | FromSerial::Failed(_)), "{told:?}");
    }
    goes_on
}

fn content(fd: &OwnedFd) -> Vec<u8> {
    let file = File::from(fd.try_clone().expect("a descriptor"));
    let mut bytes = vec![0; file.metadata().expect("a memfd").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("a read of a memfd");
    bytes
}

/// A console with a panic, typed bytes with the escape, and captured peers.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let print = |seed: Seed, text: &[u8]| text.iter().fold(seed, |seed, byte| seed.u8(0).u8(0).u8(*byte));
    let panic = print(Seed::new().u8(1), b"Kernel panic - not syncing: x\nreboot: System halted\n");
    vec![
        ("panic", panic.clone().u8(3).u8(5).done()),
        ("typed", Seed::new().u8(1).u8(0).u8(1).u8(1).u8(5).u8(5).bytes(b"ls\x01x\x01").u8(3).u8(0).u8(3).u8(2).done()),
        ("bad_vmm", panic.clone().u8(4).u8(0).u8(9).bytes(&[0xff; 9]).u8(3).u8(0).done()),
        ("bad_ring", print(Seed::new().u8(0), b"a").u8(6).u16(0).u32(1 << 20).done()),
        ("bad_broker", Seed::new().u8(0).u8(7).u8(4).bytes(&[9; 4]).done()),
    ]
}
