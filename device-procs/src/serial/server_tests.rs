//! The whole server over real sockets, a real ring and real eventfds; the test is its broker, its vmm and its guest.

use super::server::{NAP, Server};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wire::message::{ConsoleOutput, FromSerial, SerialRead, SerialValue, StartSerial, ToDevice};
use wire::recording::{self, RECORDING_BYTES};
use wire::ring::{Posted, PostedWrite, Producer, RING_BYTES, SLOTS};
use wire::{Channel, ChannelError};

const LIMIT: Duration = Duration::from_secs(20);
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 0x60;

struct Guest {
    broker: Option<Channel>,
    vmm: Option<Channel>,
    ring: Producer,
    doorbell: EventFd,
    irq: EventFd,
    keyboard: Option<File>,
    screen: File,
    recording: File,
    thread: JoinHandle<Result<(), String>>,
}

fn guest() -> Guest {
    guest_with(true)
}

fn guest_with(escapes: bool) -> Guest {
    guest_of(escapes, None)
}

fn guest_of(escapes: bool, limit_bytes: Option<u64>) -> Guest {
    let (broker, control) = Channel::pair().unwrap();
    let (vmm, to_vmm) = Channel::pair().unwrap();
    let memfd = memfd_create(c"ring", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&memfd, i64::try_from(RING_BYTES).unwrap()).unwrap();
    let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
    let (doorbell, irq) = (eventfd(), eventfd());
    let clone = |fd: &EventFd| fd.as_fd().try_clone_to_owned().unwrap();
    let (input, keyboard) = nix::unistd::pipe().unwrap();
    let (screen, output) = nix::unistd::pipe().unwrap();
    let recording = File::from(memfd_create(c"recording", MFdFlags::MFD_CLOEXEC).unwrap());
    recording.set_len(RECORDING_BYTES as u64).unwrap();
    let to_recording = recording.try_clone().unwrap();
    let fds: Vec<OwnedFd> = vec![
        to_vmm.into(),
        memfd.try_clone().unwrap(),
        clone(&doorbell),
        clone(&irq),
        input,
        output,
        to_recording.into(),
    ];
    let outputs = vec![ConsoleOutput::Stream];
    let start = StartSerial { audit: false, has_input: true, escapes, outputs, limit_bytes, has_recording: true };
    let thread = std::thread::spawn(move || {
        let mut server = Server::new(&control, &start, fds).map_err(|error| error.to_string())?;
        server.run().map_err(|error| error.to_string())
    });
    let ring = Producer::map(memfd).unwrap();
    let (broker, vmm, keyboard) = (Some(broker), Some(vmm), Some(keyboard.into()));
    let guest = Guest { broker, vmm, ring, doorbell, irq, keyboard, screen: screen.into(), recording, thread };
    guest.await_line_status(TRANSMITTER_EMPTY);
    guest
}

impl Guest {
    fn write(&mut self, offset: u8, value: u8) -> Posted {
        let posted = self.ring.post(PostedWrite { offset, value }).unwrap();
        if posted == Posted::RingDoorbell {
            self.doorbell.write(1).unwrap();
        }
        posted
    }

    fn print(&mut self, text: &[u8]) {
        for &byte in text {
            assert_ne!(self.write(0, byte), Posted::Dropped);
        }
    }

    fn read(&self, offset: u8) -> u8 {
        let vmm = self.vmm.as_ref().unwrap();
        vmm.send(&SerialRead { offset }, &[]).unwrap();
        vmm.recv_timeout::<SerialValue>(LIMIT).unwrap().message.value
    }

    fn await_irq(&self) {
        let mut fds = [PollFd::new(self.irq.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(20_000_u16)), Ok(1), "no interrupt");
        self.irq.read().unwrap();
    }

    fn await_line_status(&self, wanted: u8) {
        let end = Instant::now() + LIMIT;
        while self.ring.line_status() != wanted {
            assert!(Instant::now() < end, "line status {:#x}", self.ring.line_status());
            std::thread::yield_now();
        }
    }

    fn screen(&mut self, length: usize) -> Vec<u8> {
        let mut text = vec![0; length];
        self.screen.read_exact(&mut text).unwrap();
        text
    }

    fn told(&self) -> FromSerial {
        self.broker.as_ref().unwrap().recv_timeout(LIMIT).unwrap().without_fds().unwrap()
    }

    fn shut_down(&self) {
        self.broker.as_ref().unwrap().send(&ToDevice::Shutdown, &[]).unwrap();
    }
}

#[test]
fn output_arrives_in_order_and_the_first_byte_is_told() {
    let mut guest = guest();
    guest.print(b"hello");
    assert_eq!(guest.screen(5), b"hello");
    assert!(matches!(guest.told(), FromSerial::FirstByte { at_ns: 1.. }));
    guest.print(b" world");
    assert_eq!(guest.screen(6), b" world");
    guest.shut_down();
    assert!(matches!(guest.told(), FromSerial::Finished { received_bytes: 11, dropped_bytes } if dropped_bytes == [0]));
    assert_eq!(guest.thread.join().unwrap(), Ok(()));
}

#[test]
fn what_the_guest_prints_is_recorded() {
    let mut guest = guest();
    guest.print(b"Kernel panic\n");
    guest.screen(13);
    guest.shut_down();
    guest.thread.join().unwrap().unwrap();
    let text = recording::text(|offset, buffer| guest.recording.read_exact_at(buffer, offset));
    assert_eq!(text.unwrap(), b"Kernel panic\n");
}

#[test]
fn read_sees_every_write_before_it() {
    let mut guest = guest();
    for value in 0..=255 {
        guest.write(7, value);
        assert_eq!(guest.read(7), value);
    }
}

#[test]
fn typed_byte_interrupts_after_the_line_status_shows_it() {
    let mut guest = guest();
    guest.write(1, 1);
    assert_eq!(guest.read(1), 1);
    guest.keyboard.as_mut().unwrap().write_all(b"k").unwrap();
    guest.await_irq();
    assert_eq!(guest.ring.line_status(), TRANSMITTER_EMPTY | DATA_READY);
    assert_eq!(guest.read(0), b'k');
    assert_eq!(guest.ring.line_status(), TRANSMITTER_EMPTY);
}

#[test]
fn more_input_than_the_fifo_holds_arrives_whole() {
    let mut guest = guest_with(false);
    let text: Vec<u8> = (b'a'..=b'z').cycle().take(10_000).collect();
    let mut keyboard = guest.keyboard.take().unwrap();
    let typist = text.clone();
    let typist = std::thread::spawn(move || keyboard.write_all(&typist));
    let mut got = Vec::new();
    while got.len() < text.len() {
        guest.await_line_status(TRANSMITTER_EMPTY | DATA_READY);
        got.push(guest.read(0));
    }
    assert_eq!(got, text);
    typist.join().unwrap().unwrap();
    guest.print(b"after the end of input");
    assert_eq!(guest.screen(22), b"after the end of input");
}

#[test]
fn ctrl_a_x_is_told_even_when_the_guest_does_not_read() {
    let mut guest = guest();
    let keyboard = guest.keyboard.as_mut().unwrap();
    keyboard.write_all(&[b'z'; 1000]).unwrap();
    keyboard.write_all(b"\x01x").unwrap();
    assert!(matches!(guest.told(), FromSerial::Leave));
}

#[test]
fn ctrl_a_x_is_told_however_much_was_typed_before() {
    let mut guest = guest();
    let keyboard = guest.keyboard.as_mut().unwrap();
    // More than may wait and more than a pipe holds: the terminal answers whatever a hostile guest asks it.
    keyboard.write_all(&[b'z'; 300_000]).unwrap();
    keyboard.write_all(b"\x01x").unwrap();
    assert!(matches!(guest.told(), FromSerial::Leave));
    assert_eq!(guest.read(0), b'z');
}

#[test]
fn stuck_stream_shows_a_busy_transmitter_until_it_is_read() {
    let mut guest = guest();
    guest.write(1, 2);
    guest.read(2);
    guest.irq.read().unwrap();
    let mut sent = 0_usize;
    let end = Instant::now() + LIMIT;
    while guest.ring.line_status() & TRANSMITTER_EMPTY != 0 {
        assert!(Instant::now() < end, "the stream never got stuck");
        if guest.ring.space().unwrap() > SLOTS / 2 {
            guest.print(&[b'x'; 64]);
            sent += 64;
        }
    }
    assert_eq!(guest.read(2) & 0x0f, 0x02);
    guest.irq.read().unwrap();
    assert!(matches!(guest.told(), FromSerial::FirstByte { .. }));
    assert_eq!(guest.screen(sent), vec![b'x'; sent]);
    guest.await_irq();
    assert_eq!(guest.ring.line_status(), TRANSMITTER_EMPTY);
}

#[test]
fn panic_and_halt_are_told() {
    let mut guest = guest();
    guest.print(b"[    1.0] Kernel panic - not syncing: Attempted to kill init!\r\n");
    assert!(matches!(guest.told(), FromSerial::FirstByte { .. }));
    let FromSerial::Panic(text) = guest.told() else { panic!("no panic") };
    assert_eq!(text.to_string(), "Kernel panic - not syncing: Attempted to kill init!");
    for _ in 0..3 {
        guest.print(b"reboot: System halted\r\n");
        assert!(matches!(guest.told(), FromSerial::Halted));
    }
}

#[test]
fn shutdown_writes_out_what_is_still_in_the_ring() {
    let mut guest = guest();
    let text = vec![b'y'; 8000];
    guest.print(&text);
    guest.vmm = None;
    guest.shut_down();
    assert_eq!(guest.screen(text.len()), text);
    assert!(matches!(guest.told(), FromSerial::FirstByte { .. }));
    assert!(matches!(guest.told(), FromSerial::Finished { received_bytes: 8000, .. }));
    assert_eq!(guest.thread.join().unwrap(), Ok(()));
}

#[test]
fn shutdown_with_a_stuck_stream_ends_in_time_and_counts() {
    let mut guest = guest();
    let mut sent = 0;
    while guest.ring.line_status() & TRANSMITTER_EMPTY != 0 {
        if guest.ring.space().unwrap() > 64 {
            guest.print(&[b'x'; 64]);
            sent += 64;
        }
    }
    guest.shut_down();
    assert!(matches!(guest.told(), FromSerial::FirstByte { .. }));
    let FromSerial::Finished { received_bytes, dropped_bytes } = guest.told() else { panic!("not finished") };
    assert_eq!(received_bytes, sent);
    assert_eq!(guest.thread.join().unwrap(), Ok(()));
    let mut rest = Vec::new();
    guest.screen.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len() as u64 + dropped_bytes[0], sent);
}

#[test]
fn vmm_that_breaks_the_protocol_loses_its_socket_and_nothing_else() {
    let mut guest = guest();
    let vmm = guest.vmm.take().unwrap();
    vmm.send(&0x1234_5678_u64, &[]).unwrap();
    assert!(matches!(vmm.recv_timeout::<SerialValue>(LIMIT), Err(ChannelError::Closed)));
    guest.print(b"still here");
    assert_eq!(guest.screen(10), b"still here");
}

#[test]
fn broker_that_is_gone_ends_the_process() {
    let mut guest = guest();
    guest.broker = None;
    assert_eq!(guest.thread.join().unwrap(), Ok(()));
}

#[test]
fn what_is_printed_beyond_the_limit_is_lost_and_said_once() {
    let mut guest = guest_of(true, Some(5));
    guest.print(b"abc");
    assert!(matches!(guest.told(), FromSerial::FirstByte { .. }));
    guest.print(b"defgh");
    assert!(matches!(guest.told(), FromSerial::LimitReached));
    guest.print(b"Kernel panic - not syncing: lost\n");
    guest.shut_down();
    assert!(matches!(guest.told(), FromSerial::Finished { received_bytes: 5, dropped_bytes } if dropped_bytes == [0]));
    assert_eq!(guest.thread.join().unwrap(), Ok(()));
    let mut shown = Vec::new();
    guest.screen.read_to_end(&mut shown).unwrap();
    assert_eq!(shown, b"abcde");
}

#[test]
fn bytes_that_follow_others_are_handed_on_together_and_without_the_doorbell() {
    let (_broker, control) = Channel::pair().unwrap();
    let (_vmm, to_vmm) = Channel::pair().unwrap();
    let memfd = memfd_create(c"ring", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&memfd, i64::try_from(RING_BYTES).unwrap()).unwrap();
    let eventfd = || OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap());
    let (screen, output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    let mut screen = File::from(screen);
    let fds = vec![to_vmm.into(), memfd.try_clone().unwrap(), eventfd(), eventfd(), output];
    let outputs = vec![ConsoleOutput::Stream];
    let start = StartSerial {
        audit: false,
        has_input: false,
        escapes: false,
        outputs,
        limit_bytes: None,
        has_recording: false,
    };
    let mut server = Server::new(&control, &start, fds).unwrap();
    let mut ring = Producer::map(memfd).unwrap();
    let mut print = |text: &[u8]| {
        let posted: Vec<_> = text.iter().map(|&value| ring.post(PostedWrite { offset: 0, value }).unwrap()).collect();
        posted.contains(&Posted::RingDoorbell)
    };
    let mut shown = |expected: &[u8]| {
        let mut buffer = [0; 16];
        let length = screen.read(&mut buffer).unwrap_or(0);
        assert_eq!(&buffer[..length], expected);
    };
    let begin = Instant::now();
    print(b"a");
    assert!(server.turn_at(begin).unwrap());
    shown(b"a");
    for byte in [b"b", b"c"] {
        assert!(!print(byte), "it is woken for each byte");
        assert!(server.turn_at(begin).unwrap());
        shown(b"");
    }
    assert!(server.turn_at(begin + NAP).unwrap());
    shown(b"bc");
    // With the interrupt for an empty transmitter, the guest waits for it after each burst.
    ring.post(PostedWrite { offset: 1, value: 2 }).unwrap();
    for byte in *b"de" {
        ring.post(PostedWrite { offset: 0, value: byte }).unwrap();
        assert!(server.turn_at(begin + 2 * NAP).unwrap());
        shown(&[byte]);
    }
}
