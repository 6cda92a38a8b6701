//! Disk processes for the tests, which speak just enough vhost-user (QEMU's vhost-user protocol), and a driver.

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use vmm_sys_util::eventfd::EventFd;

/// What the disk offers: FLUSH and VERSION_1.
pub(crate) const FEATURES: u64 = (1 << 32) | (1 << 9);
/// VHOST_USER_F_PROTOCOL_FEATURES.
const PROTOCOL: u64 = 1 << 30;
/// VIRTIO_BLK_F_MQ, which the vmm must not pass on.
const SOMETHING_ELSE: u64 = 1 << 12;
/// MQ, REPLY_ACK, CONFIG.
const PROTOCOL_FEATURES: u64 = 1 | (1 << 3) | (1 << 9);
/// Requests, by the names of the protocol.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_VRING_NUM: u32 = 8;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ERR: u32 = 14;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;

/// What a disk process was told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) features: u64,
    pub(crate) queue_size: u32,
    pub(crate) kicked: bool,
    pub(crate) stopped: bool,
}

/// A virtio driver as machine code: starts disk 0 step by step, tells the status on COM1 after FEATURES_OK and after
/// DRIVER_OK, notifies queue 0, resets the device and powers off.
pub(crate) fn driver() -> Vec<u8> {
    let mut code = start();
    tell(&mut code, 0x70);
    store(&mut code, 0x50, 0);
    store(&mut code, 0x70, 0);
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
    code
}

/// Starts disk 0, waits until its status says that it needs a reset, tells the interrupt status and powers off.
pub(crate) fn driver_that_waits_for_needs_reset() -> Vec<u8> {
    let mut code = start();
    // mov ebx, status; test byte [rbx], 64; jz to the test
    code.push(0xbb);
    code.extend(0xd000_0070_u32.to_le_bytes());
    code.extend([0x8b, 0x03, 0xa8, 64, 0x74, 0xfa]);
    tell(&mut code, 0x60);
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
    code
}

/// Takes 100 interrupts of disk 0 as drivers do, without any: reads the interrupt status and acknowledges it; tells the last
/// one and the first letter of the magic value, and powers off.
pub(crate) fn driver_that_acknowledges() -> Vec<u8> {
    // mov ecx, 100; mov ebx, interrupt status; mov eax, [rbx]; mov [rbx + 4], eax; dec ecx; jnz to the read
    let mut code = vec![0xb9, 100, 0, 0, 0, 0xbb];
    code.extend(0xd000_0060_u32.to_le_bytes());
    code.extend([0x8b, 0x03, 0x89, 0x43, 0x04, 0xff, 0xc9, 0x75, 0xf7]);
    tell(&mut code, 0x60);
    tell(&mut code, 0x00);
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
    code
}

/// Writes all ones to each word of disk 0's window, tells the magic value and the status, and powers off.
pub(crate) fn driver_that_writes_everywhere() -> Vec<u8> {
    let mut code = Vec::new();
    (0..0x1000).step_by(4).for_each(|offset| store(&mut code, offset, u32::MAX));
    tell(&mut code, 0x00);
    tell(&mut code, 0x70);
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
    code
}

fn start() -> Vec<u8> {
    let mut code = Vec::new();
    for status in [0, 1, 3] {
        store(&mut code, 0x70, status);
    }
    for (select, half) in [(0, FEATURES & 0xffff_ffff), (1, FEATURES >> 32)] {
        store(&mut code, 0x24, select);
        store(&mut code, 0x20, u32::try_from(half).unwrap());
    }
    store(&mut code, 0x70, 11);
    tell(&mut code, 0x70);
    let queue =
        [(0x30, 0), (0x38, 8), (0x80, 0x1_0000), (0x84, 0), (0x90, 0x1_1000), (0x94, 0), (0xa0, 0x1_2000), (0xa4, 0)];
    for (offset, value) in queue {
        store(&mut code, offset, value);
    }
    store(&mut code, 0x44, 1);
    store(&mut code, 0x70, 15);
    code
}

fn store(code: &mut Vec<u8>, offset: u32, value: u32) {
    super::code::store(code, 0xd000_0000 + offset, value);
}

/// mov ebx, window + offset; mov eax, [rbx]; mov dx, 0x3f8; out dx, al
fn tell(code: &mut Vec<u8>, offset: u32) {
    code.push(0xbb);
    code.extend((0xd000_0000 + offset).to_le_bytes());
    code.extend([0x8b, 0x03, 0x66, 0xba, 0xf8, 0x03, 0xee]);
}

/// A disk process that does everything right, until the vmm is gone.
pub(crate) fn serve(mut socket: UnixStream, kick: EventFd) -> Served {
    let mut served = Served::default();
    while let Some((request, body, _)) = receive(&mut socket) {
        let value = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        match request {
            SET_FEATURES => served.features = value(0) & !PROTOCOL,
            SET_VRING_NUM => served.queue_size = u32::try_from(value(0) >> 32).unwrap(),
            GET_VRING_BASE => {
                served.kicked = kick.read().unwrap() == 1;
                served.stopped = true;
            }
            _ => {}
        }
        answer(&mut socket, request, &body, FEATURES | PROTOCOL | SOMETHING_ELSE);
    }
    served
}

/// A disk process that says what it offers and goes away when the driver notifies it.
pub(crate) fn leave_when_kicked(mut socket: UnixStream, kick: EventFd) -> Served {
    while let Some((request, body, _)) = receive(&mut socket) {
        answer(&mut socket, request, &body, FEATURES | PROTOCOL | SOMETHING_ELSE);
        if request == GET_CONFIG {
            kick.read().unwrap();
            break;
        }
    }
    Served::default()
}

/// A disk process that stops its queue as soon as it is started, and says so by the error eventfd.
pub(crate) fn break_at_once(mut socket: UnixStream, _kick: EventFd) -> Served {
    let mut error = None;
    while let Some((request, body, fds)) = receive(&mut socket) {
        if request == SET_VRING_ERR {
            error = fds.into_iter().next();
        }
        answer(&mut socket, request, &body, FEATURES | PROTOCOL);
        if request == SET_VRING_ENABLE {
            nix::unistd::write(error.as_ref().unwrap(), &1_u64.to_ne_bytes()).unwrap();
        }
    }
    Served::default()
}

/// A disk process of the legacy interface.
pub(crate) fn offer_no_version_1(mut socket: UnixStream, _kick: EventFd) -> Served {
    while let Some((request, body, _)) = receive(&mut socket) {
        answer(&mut socket, request, &body, PROTOCOL);
    }
    Served::default()
}

/// A disk process that keeps its socket open and never answers.
pub(crate) fn say_nothing(mut socket: UnixStream, _kick: EventFd) -> Served {
    while receive(&mut socket).is_some() {}
    Served::default()
}

/// A request: 12 bytes of header (request, flags, size of the body), the body, and its descriptors.
fn receive(socket: &mut UnixStream) -> Option<(u32, Vec<u8>, Vec<OwnedFd>)> {
    let mut header = [0; 12];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 8]);
    let mut slices = [IoSliceMut::new(&mut header)];
    let received =
        recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_WAITALL).ok()?;
    let mut fds = Vec::new();
    for message in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(raw) = message {
            fds.extend(raw.into_iter().map(own));
        }
    }
    if received.bytes < header.len() {
        return None;
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; word(8) as usize];
    socket.read_exact(&mut body).ok()?;
    Some((word(0), body, fds))
}

/// Answers a request as a disk with these features does.
fn answer(socket: &mut UnixStream, request: u32, body: &[u8], features: u64) {
    let number = |value: u64| value.to_le_bytes().to_vec();
    let reply = match request {
        GET_FEATURES => number(features),
        GET_PROTOCOL_FEATURES => number(PROTOCOL_FEATURES),
        GET_QUEUE_NUM => number(1),
        GET_VRING_BASE => vec![0; 8],
        GET_CONFIG => body.to_vec(),
        // SET_OWNER and SET_PROTOCOL_FEATURES come before REPLY_ACK is agreed on; everything later is acknowledged.
        3 | 16 => return,
        _ => number(0),
    };
    let mut message = Vec::new();
    for word in [request, 5, u32::try_from(reply.len()).unwrap()] {
        message.extend(word.to_le_bytes());
    }
    message.extend(reply);
    // The vmm may be gone.
    socket.write_all(&message).unwrap_or(());
}

#[allow(unsafe_code, reason = "nix hands received descriptors over as integers")]
fn own(raw: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed the descriptor for this process, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
