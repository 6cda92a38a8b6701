//! The event loop: posted writes, register reads, console input, console outputs and the broker's word.
//!
//! Distrusts the vmm (a broken message closes its socket, an impossible ring index ends the process) and the guest behind
//! it. One thread, one poll(2); it waits nowhere else, and each turn does a bounded amount of work.

use super::escape::Escapes;
use super::output::Outputs;
use super::scan::{Scanner, Sighting};
use super::uart::Uart;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use policies::lockdown::say;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use wire::clock::now_ns;
use wire::message::{FromSerial, SerialRead, SerialValue, StartSerial, ToDevice};
use wire::recording::Recorder;
use wire::ring::{Consumer, RingError, SLOTS};
use wire::{Channel, ChannelError};

/// The most writes that are taken in one go: a ring, and as much again that came meanwhile.
const DRAIN_MAX: usize = 2 * SLOTS as usize;
/// The most bytes of input that are read in one go, and of a pipe that wait here while the guest does not read.
const TYPED_BYTES: usize = 4096;
/// The most bytes of a terminal that wait here: what is pasted. More is lost, since a guest that does not read must not
/// keep Ctrl-A x from being seen.
const PASTED_BYTES: usize = 1 << 16;
/// How long stuck streams may take at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// How long what the guest goes on to send may wait for more of it, once the first of it has been handed on. A guest that
/// prints without interrupts leaves the machine twice for each byte; to be woken for each byte as well would cost five
/// system calls more. It is less than a byte takes on a line of 9,600 bit/s.
pub(super) const NAP: Duration = Duration::from_millis(1);
/// The least time between two reports of a halted system, which a guest can print without end.
const HALT_INTERVAL: Duration = Duration::from_millis(100);

/// Why the event loop ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The vmm broke the ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The broker's fault.
    #[error("the control channel failed")]
    Control(#[source] ChannelError),
    /// The host's fault.
    #[error("the event loop cannot wait")]
    Poll(#[source] Errno),
}

#[derive(Debug)]
struct Input {
    fd: OwnedFd,
    escapes: Escapes,
    /// At its end it is not read any more. It stays open, because the broker may be looking at the descriptors.
    ended: bool,
}

/// What a wait found.
#[derive(Debug, Default)]
struct Ready {
    control: bool,
    doorbell: bool,
    vmm: bool,
    input: bool,
    outputs: Vec<bool>,
}

/// The serial device and all that it is connected to.
#[derive(Debug)]
pub struct Server<'a> {
    control: &'a Channel,
    vmm: Option<Channel>,
    ring: Consumer,
    doorbell: OwnedFd,
    irq: OwnedFd,
    input: Option<Input>,
    typed: VecDeque<u8>,
    outputs: Outputs,
    recorder: Option<Recorder>,
    uart: Uart,
    scanner: Scanner,
    published: Option<u8>,
    received_bytes: u64,
    /// What the guest may still print; none for no limit.
    left_bytes: Option<u64>,
    limit_told: bool,
    halt_seen: bool,
    halt_told: Option<Instant>,
    /// Until when posted writes are left where they are: some were taken a moment ago.
    nap_until: Option<Instant>,
}

impl<'a> Server<'a> {
    /// Takes the descriptors in the order of [`StartSerial`], whose number the caller has checked.
    ///
    /// # Errors
    /// When there are too few, or the ring or the recording cannot be mapped.
    pub fn new(control: &'a Channel, start: &StartSerial, fds: Vec<OwnedFd>) -> Result<Self, super::SerialError> {
        let got = fds.len();
        let mut fds = fds.into_iter();
        let mut next = || {
            let wrong = ChannelError::Fds { got, expected: got.saturating_add(1) };
            fds.next().ok_or(super::SerialError::Start(wrong))
        };
        let vmm = Some(Channel::from(next()?));
        let ring = Consumer::map(next()?)?;
        let doorbell = next()?;
        let irq = next()?;
        let input = match start.has_input {
            true => Some(Input { fd: next()?, escapes: Escapes::new(start.escapes), ended: false }),
            false => None,
        };
        let outputs = Outputs::new(&start.outputs, fds.by_ref().take(start.outputs.len()));
        let recorder = fds.next().filter(|_| start.has_recording).map(Recorder::map).transpose()?;
        let mut server = Self {
            control,
            vmm,
            ring,
            doorbell,
            irq,
            input,
            typed: VecDeque::with_capacity(2 * TYPED_BYTES),
            outputs,
            recorder,
            uart: Uart::new(DRAIN_MAX),
            scanner: Scanner::new(),
            published: None,
            received_bytes: 0,
            left_bytes: start.limit_bytes,
            limit_told: false,
            halt_seen: false,
            halt_told: None,
            nap_until: None,
        };
        server.publish();
        Ok(server)
    }

    /// Serves until the broker says that it is enough, or is gone.
    ///
    /// # Errors
    /// As [`Server::turn`].
    pub fn run(&mut self) -> Result<(), ServeError> {
        while self.turn()? {}
        Ok(())
    }

    /// Does what there is to do, waits until there is more, and takes that; false when it was the last.
    ///
    /// # Errors
    /// When the vmm broke the ring, the broker its protocol, or the host fails.
    pub fn turn(&mut self) -> Result<bool, ServeError> {
        self.turn_at(Instant::now())
    }

    /// As [`Server::turn`], for a turn that begins at `now`.
    pub(super) fn turn_at(&mut self, now: Instant) -> Result<bool, ServeError> {
        if self.nap_until.is_none_or(|until| until <= now) {
            let taken = self.drain(self.outputs.room().min(DRAIN_MAX))?;
            // A driver that waits for an interrupt after each burst would wait for every nap.
            let naps = taken > 0 && !self.uart.interrupts_when_empty();
            self.nap_until = now.checked_add(NAP).filter(|_| naps);
        }
        self.feed();
        self.tell_halt()?;
        let ready = self.wait()?;
        self.outputs.write_ready(&ready.outputs);
        if ready.doorbell {
            // Only its readiness matters; the ring says what is there.
            nix::unistd::read(&self.doorbell, &mut [0; 8]).unwrap_or(0);
        }
        if ready.vmm {
            self.answer()?;
        }
        if ready.input {
            self.read_input()?;
        }
        if ready.control {
            match self.control.try_recv::<ToDevice>().and_then(wire::Received::without_fds) {
                Ok(ToDevice::Shutdown) => return self.finish().map(|()| false),
                Err(ChannelError::Closed) => return Ok(false),
                Err(ChannelError::WouldBlock) => {}
                Err(error) => return Err(ServeError::Control(error)),
            }
        }
        Ok(true)
    }

    /// Takes up to `limit` posted writes, does them, and hands on what the guest sent.
    fn drain(&mut self, limit: usize) -> Result<usize, ServeError> {
        let mut taken = 0;
        while taken < limit {
            let Some(write) = self.ring.take()? else { break };
            self.uart.write(write);
            taken = taken.saturating_add(1);
        }
        if taken > 0 {
            self.ring.release();
            self.collect()?;
        }
        self.uart.set_busy(self.outputs.room() == 0);
        self.publish();
        Ok(taken)
    }

    /// Moves what the guest sent from the UART to the outputs, reading along.
    fn collect(&mut self) -> Result<(), ServeError> {
        let bytes = self.uart.transmitted();
        if bytes.is_empty() {
            return Ok(());
        }
        let mut reached = false;
        if let Some(left) = &mut self.left_bytes {
            let room = usize::try_from(*left).unwrap_or(usize::MAX);
            reached = bytes.len() > room;
            bytes.truncate(room);
            *left = left.saturating_sub(bytes.len() as u64);
        }
        let first = self.received_bytes == 0;
        self.received_bytes = self.received_bytes.saturating_add(bytes.len() as u64);
        self.outputs.push(bytes);
        if let Some(recorder) = &mut self.recorder {
            recorder.record(bytes);
        }
        let (halt_seen, mut panic) = (&mut self.halt_seen, None);
        self.scanner.scan(bytes, |sighting| match sighting {
            Sighting::Panic(text) => panic = Some(text),
            Sighting::Halted => *halt_seen = true,
        });
        bytes.clear();
        if first && self.received_bytes > 0 {
            self.tell(&FromSerial::FirstByte { at_ns: now_ns() })?;
        }
        panic.map_or(Ok(()), |text| self.tell(&FromSerial::Panic(text)))?;
        if reached && !std::mem::replace(&mut self.limit_told, true) {
            self.tell(&FromSerial::LimitReached)
        } else {
            Ok(())
        }
    }

    /// Shows the guest the line status, then interrupts it: in this order, or its handler could find nothing to do.
    fn publish(&mut self) {
        let status = self.uart.line_status();
        if self.published.replace(status) != Some(status) {
            self.ring.publish_line_status(status);
        }
        if self.uart.take_interrupt() {
            // A full counter means that an interrupt is pending already.
            nix::unistd::write(&self.irq, &1_u64.to_ne_bytes()).unwrap_or(0);
        }
    }

    /// Gives the receiver what was typed.
    fn feed(&mut self) {
        if !self.typed.is_empty() {
            let taken = self.uart.receive(self.typed.make_contiguous());
            self.typed.drain(..taken.min(self.typed.len()));
            self.publish();
        }
    }

    /// Answers a register read, after all writes that came before it.
    fn answer(&mut self) -> Result<(), ServeError> {
        let Some(vmm) = self.vmm.take() else { return Ok(()) };
        match vmm.try_recv::<SerialRead>().and_then(wire::Received::without_fds) {
            Ok(SerialRead { offset }) => {
                self.drain(DRAIN_MAX)?;
                let value = self.uart.read(offset);
                self.publish();
                match vmm.try_send(&SerialValue { value }, &[]) {
                    Ok(()) => self.vmm = Some(vmm),
                    Err(error) => say(format_args!("the vmm does not take answers: {error}")),
                }
            }
            Err(ChannelError::WouldBlock) => self.vmm = Some(vmm),
            Err(ChannelError::Closed) => {}
            Err(error) => say(format_args!("the vmm broke the protocol: {error}")),
        }
        Ok(())
    }

    fn read_input(&mut self) -> Result<(), ServeError> {
        let Some(input) = &mut self.input else { return Ok(()) };
        let mut buffer = [0; TYPED_BYTES];
        let room = if input.escapes.enabled() { TYPED_BYTES } else { TYPED_BYTES.saturating_sub(self.typed.len()) };
        let mut leave = false;
        input.ended = match nix::unistd::read(&input.fd, buffer.get_mut(..room).unwrap_or_default()) {
            Ok(0) => true,
            Ok(length) => {
                leave = input.escapes.pass(buffer.get(..length).unwrap_or_default(), &mut self.typed);
                self.typed.truncate(PASTED_BYTES);
                false
            }
            Err(Errno::EAGAIN | Errno::EINTR) => false,
            // A terminal that hung up.
            Err(_) => true,
        };
        if leave { self.tell(&FromSerial::Leave) } else { Ok(()) }
    }

    fn tell(&self, message: &FromSerial) -> Result<(), ServeError> {
        self.control.send(message, &[]).map_err(ServeError::Control)
    }

    fn tell_halt(&mut self) -> Result<(), ServeError> {
        if self.halt_seen && self.halt_wait().is_zero() {
            self.halt_seen = false;
            self.halt_told = Some(Instant::now());
            self.tell(&FromSerial::Halted)?;
        }
        Ok(())
    }

    /// How long the next report of a halted system has to wait.
    fn halt_wait(&self) -> Duration {
        self.halt_told.map_or(Duration::ZERO, |told| HALT_INTERVAL.saturating_sub(told.elapsed()))
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Result<Ready, ServeError> {
        let stuck = self.outputs.room() == 0;
        let nap = self.nap_until.map(|until| until.saturating_duration_since(Instant::now()));
        let halt = self.halt_seen.then(|| self.halt_wait());
        let timeout = if nap.is_none() && !stuck && !self.ring.sleep() {
            PollTimeout::ZERO
        } else {
            nap.into_iter().chain(halt).min().map_or(PollTimeout::NONE, poll_timeout)
        };
        let vmm = self.vmm.as_ref().map(AsFd::as_fd);
        let takes = |input: &&Input| !input.ended && (input.escapes.enabled() || self.typed.len() < TYPED_BYTES);
        let input = self.input.as_ref().filter(takes);
        let input = input.map(|input| input.fd.as_fd());
        let mut fds = vec![polled(self.control.as_fd()), polled(self.doorbell.as_fd())];
        fds.extend(vmm.into_iter().chain(input).map(polled));
        fds.extend(self.outputs.poll_fds());
        wait_for(&mut fds, timeout)?;
        let mut flags = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let mut flag = |there: bool| there && flags.next().unwrap_or(false);
        let mut ready = Ready {
            control: flag(true),
            doorbell: flag(true),
            vmm: flag(vmm.is_some()),
            input: flag(input.is_some()),
            outputs: Vec::new(),
        };
        ready.outputs = flags.collect();
        self.ring.wake();
        Ok(ready)
    }

    /// Does what is left in the ring, writes it out as far as the streams take it in time, and reports.
    fn finish(&mut self) -> Result<(), ServeError> {
        let end = Instant::now().checked_add(FLUSH_LIMIT).unwrap_or_else(Instant::now);
        // The producer is gone, so that more than a ring cannot be there; if it is not gone, it is not waited for.
        let mut left = DRAIN_MAX;
        loop {
            left = left.saturating_sub(self.drain(self.outputs.room().min(left))?);
            let time = end.saturating_duration_since(Instant::now());
            if self.outputs.is_idle() || time.is_zero() {
                break;
            }
            let mut fds: Vec<_> = self.outputs.poll_fds().collect();
            wait_for(&mut fds, poll_timeout(time))?;
            let ready: Vec<_> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            self.outputs.write_ready(&ready);
        }
        self.outputs.drop_waiting();
        // What a stuck stream held up still goes to the scanner, to the files and into the count.
        self.drain(left)?;
        self.outputs.drop_waiting();
        let mut panic = None;
        self.scanner.end_line(|sighting| match sighting {
            Sighting::Panic(text) => panic = Some(text),
            Sighting::Halted => {}
        });
        if let Some(text) = panic {
            self.tell(&FromSerial::Panic(text))?;
        }
        let dropped_bytes = self.outputs.dropped_bytes();
        self.tell(&FromSerial::Finished { received_bytes: self.received_bytes, dropped_bytes })
    }
}

fn polled(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

/// Rounded up, so that the last wait does not spin through the rest of a millisecond.
fn poll_timeout(wait: Duration) -> PollTimeout {
    PollTimeout::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
}

fn wait_for(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> Result<(), ServeError> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(ServeError::Poll(errno)),
    }
}
