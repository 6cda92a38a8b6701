//! A captured front end: any vhost-user messages with any descriptors to the block process, with rings that run among
//! them. The process ends the connection or goes on; the image changes only if the disk is writable, and never its size.

use crate::disk::Image;
use crate::packets::{memory_file, send};
use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use device_procs::block::{Disk, serve};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use wire::message::DiskMode;
use wire::{Channel, DiskId, SectorCount};

const SECTORS: u64 = 8;
const MEMORY_BYTES: u64 = 0x8000;
/// More messages than these and their answers would fill the socket up.
const MAX_MESSAGES: usize = 64;

/// Numbers of messages ("vhost-user protocol", front-end message types).
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A mode, the content of guest memory, and messages.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

/// What a front end has to give.
struct Fds {
    memory: OwnedFd,
    kick: EventFd,
    call: EventFd,
    null: OwnedFd,
}

impl Fds {
    fn choose(&self, input: &mut Unstructured<'_>) -> Result<Vec<BorrowedFd<'_>>> {
        let count = input.int_in_range(0..=9_u8)?;
        (0..count)
            .map(|_| {
                let fds = [self.memory.as_fd(), self.kick.as_fd(), self.call.as_fd(), self.null.as_fd()];
                Ok(fds[input.choose_index(4)?])
            })
            .collect()
    }
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let mode = [DiskMode::ReadWrite, DiskMode::ReadOnly][input.choose_index(2)?];
    let content = vec![7; (SECTORS * 512) as usize];
    let image = Image::new(&content);
    let capacity = SectorCount::try_from(SECTORS).expect("a size");
    let id = DiskId::try_from("fuzz".to_owned()).expect("an id");
    let disk = Disk::new(mode, capacity, id, Box::new(image.clone()), None).expect("a disk");
    let fds = Fds {
        memory: memory_file(MEMORY_BYTES),
        kick: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).expect("an eventfd"),
        call: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).expect("an eventfd"),
        null: std::fs::File::options().read(true).write(true).open("/dev/null").expect("/dev/null").into(),
    };
    let (_broker, control) = Channel::pair().expect("a channel");
    let (front_end, socket) = UnixStream::pair().expect("a socket");
    talk(input, &front_end, &fds).unwrap_or(());
    // Nothing comes after it, so that the process finds its end.
    front_end.shutdown(Shutdown::Write).expect("an open socket");
    if let Err(error) = serve(&control, socket, disk) {
        assert!(!error.to_string().is_empty());
    }
    let state = image.state();
    assert_eq!(state.content.len(), content.len(), "the disk has another size");
    assert!(mode == DiskMode::ReadWrite || state.changes == 0, "a read-only image was written to");
    Ok(())
}

fn talk(input: &mut Unstructured<'_>, front_end: &UnixStream, fds: &Fds) -> Result<()> {
    for _ in 0..MAX_MESSAGES {
        match input.int_in_range(0..=5_u8)? {
            // A message with any body, but with a header that fits it.
            0 | 1 => {
                let code = input.int_in_range(0..=44_u8)?;
                let body = crate::packets::short(input)?.to_vec();
                let with = fds.choose(input)?;
                send(front_end.as_fd(), &message(code.into(), &body), &with);
            }
            // Any bytes.
            2 => {
                let bytes = crate::packets::short(input)?.to_vec();
                let with = fds.choose(input)?;
                send(front_end.as_fd(), &bytes, &with);
            }
            // The beginning that every front end makes.
            3 => set_up(front_end, fds, input.arbitrary()?),
            4 => {
                let at = input.arbitrary::<u16>()?;
                let bytes = crate::packets::short(input)?;
                nix::sys::uio::pwrite(&fds.memory, bytes, i64::from(at) % (MEMORY_BYTES as i64 - 256)).unwrap_or(0);
            }
            _ => {
                fds.kick.write(1).unwrap_or(0);
            }
        }
    }
    Ok(())
}

/// A message of version 1.
fn message(code: u32, body: &[u8]) -> Vec<u8> {
    let header = [code, 1, body.len() as u32].map(u32::to_le_bytes).concat();
    [&header, body].concat()
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn set_up(front_end: &UnixStream, fds: &Fds, addresses: u8) {
    let put = |code, body: Vec<u8>, with: &[BorrowedFd<'_>]| send(front_end.as_fd(), &message(code, &body), with);
    // A variation of where the rings are, some of it beyond guest memory.
    let at = |ring: u64| u64::from(addresses & 0xf0) * 0x80 + ring * 0x1000;
    put(SET_OWNER, Vec::new(), &[]);
    put(GET_FEATURES, Vec::new(), &[]);
    put(SET_FEATURES, words(&[PROTOCOL_FEATURES | 1 << 32 | u64::from(addresses & 1) << 29]), &[]);
    put(GET_PROTOCOL_FEATURES, Vec::new(), &[]);
    put(SET_PROTOCOL_FEATURES, words(&[1 << 9 | 1 << 3]), &[]);
    put(SET_MEM_TABLE, [words(&[1]), words(&[0, MEMORY_BYTES, 0, 0])].concat(), &[fds.memory.as_fd()]);
    put(SET_VRING_NUM, [0_u32, 16].map(u32::to_le_bytes).concat(), &[]);
    put(SET_VRING_BASE, [0_u32, 0].map(u32::to_le_bytes).concat(), &[]);
    put(SET_VRING_ADDR, [words(&[0]), words(&[at(0), at(2), at(1), 0])].concat(), &[]);
    put(SET_VRING_CALL, words(&[0]), &[fds.call.as_fd()]);
    put(SET_VRING_KICK, words(&[0]), &[fds.kick.as_fd()]);
    put(SET_VRING_ENABLE, [0_u32, 1].map(u32::to_le_bytes).concat(), &[]);
}

/// A front end that does everything right, with a read that waits, and some that do not.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let memory = |seed: Seed, at: u16, bytes: &[u8]| seed.u8(4).u16(at).u8(bytes.len() as u8).bytes(bytes);
    let descriptor = |address: u64, bytes: u32, flags: u16, next: u16| {
        [&address.to_le_bytes()[..], &bytes.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    let chain = [descriptor(0x4000, 16, 1, 1), descriptor(0x5000, 512, 3, 2), descriptor(0x6000, 1, 2, 0)].concat();
    let request = memory(memory(Seed::new().u8(0), 0, &chain), 0x1000, &[0, 0, 1, 0, 0, 0]);
    let any = |seed: Seed, code: u32, body: &[u8]| seed.u8(0).u8(code as u8).u8(body.len() as u8).bytes(body).u8(0);
    vec![
        ("read", request.clone().u8(3).u8(0).u8(5).done()),
        ("set_up_twice", request.u8(3).u8(1).u8(3).u8(1).u8(5).done()),
        ("outside_memory", Seed::new().u8(1).u8(3).u8(0xf0).done()),
        (
            "config",
            any(
                Seed::new().u8(1).u8(3).u8(0),
                GET_CONFIG,
                &[0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9],
            )
            .done(),
        ),
        ("get_base", any(Seed::new().u8(0).u8(3).u8(0), 11, &[0; 8]).u8(3).u8(0).done()),
        ("nonsense", Seed::new().u8(0).u8(2).u8(12).bytes(&[0xff; 12]).u8(1).u8(0).done()),
    ]
}
