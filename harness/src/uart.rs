//! Any sequence of register accesses to the 16550A, of typed bytes and of a busy transmitter, against a model.
//!
//! What the guest sends goes out in order, what is typed comes in in order, a register that is kept reads back, and no
//! interrupt comes that is not enabled.

use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use device_procs::serial::uart::Uart;
use std::collections::VecDeque;
use wire::ring::PostedWrite;

const FIFO: usize = 64;
const DATA: u8 = 0;
const IER: u8 = 1;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const SCRATCH: u8 = 7;
const DIVISOR_LATCH: u8 = 0x80;
const LOOPBACK: u8 = 0x10;
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 0x60;

/// What the registers are for, without interrupts (16550A data sheet).
#[derive(Debug, Default)]
struct Model {
    divisor: [Option<u8>; 2],
    enabled: u8,
    line_control: Option<u8>,
    modem_control: Option<u8>,
    scratch: u8,
    received: VecDeque<u8>,
    sent: Vec<u8>,
    busy: bool,
}

impl Model {
    fn latch(&self) -> bool {
        self.line_control.is_some_and(|value| value & DIVISOR_LATCH != 0)
    }

    fn loopback(&self) -> bool {
        self.modem_control.is_some_and(|value| value & LOOPBACK != 0)
    }

    fn write(&mut self, offset: u8, value: u8) {
        match offset {
            DATA | IER if self.latch() => self.divisor[usize::from(offset)] = Some(value),
            DATA if self.loopback() && self.received.len() == FIFO => {}
            DATA if self.loopback() => self.received.push_back(value),
            DATA => self.sent.push(value),
            IER => self.enabled = value & 0x0f,
            LCR => self.line_control = Some(value),
            MCR => self.modem_control = Some(value),
            SCRATCH => self.scratch = value,
            _ => {}
        }
    }

    /// The value, where the model knows it.
    fn read(&mut self, offset: u8) -> Option<u8> {
        match offset {
            DATA | IER if self.latch() => self.divisor[usize::from(offset)],
            DATA => Some(self.received.pop_front().unwrap_or(0)),
            IER => Some(self.enabled),
            LCR => self.line_control,
            MCR => self.modem_control,
            LSR => Some(self.line_status()),
            SCRATCH => Some(self.scratch),
            _ => None,
        }
    }

    fn line_status(&self) -> u8 {
        let ready = if self.received.is_empty() { 0 } else { DATA_READY };
        if self.busy { ready } else { ready | TRANSMITTER_EMPTY }
    }
}

/// Accesses, typed bytes, and a transmitter that is busy or free.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let (mut uart, mut model) = (Uart::new(16), Model::default());
    while !input.is_empty() {
        let mut enabled = model.enabled;
        match input.int_in_range(0..=3_u8)? {
            0 => {
                let (offset, value) = (input.arbitrary::<u8>()? & 7, input.arbitrary()?);
                uart.write(PostedWrite { offset, value });
                model.write(offset, value);
                enabled |= model.enabled;
            }
            1 => {
                let offset = input.arbitrary::<u8>()?;
                let got = uart.read(offset);
                let known = model.read(offset & 7);
                assert!(known.is_none_or(|known| known == got), "register {offset}: {got:#x} instead of {known:x?}");
            }
            2 => {
                let bytes = crate::packets::short(input)?;
                let room = if model.loopback() { 0 } else { FIFO - model.received.len() };
                assert_eq!(uart.receive_room(), room);
                let taken = uart.receive(bytes);
                assert_eq!(taken, room.min(bytes.len()), "typed bytes were lost");
                model.received.extend(&bytes[..taken]);
            }
            _ => {
                model.busy = input.arbitrary::<u8>()? & 1 != 0;
                uart.set_busy(model.busy);
            }
        }
        assert_eq!(uart.line_status(), model.line_status(), "the line status");
        assert_eq!(*uart.transmitted(), model.sent, "what the guest sent");
        assert!(!uart.take_interrupt() || enabled & 3 != 0, "an interrupt that the guest did not enable");
    }
    Ok(())
}

/// A driver's start, typed bytes, and loopback.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let write = |seed: Seed, offset: u8, value: u8| seed.u8(0).u8(offset).u8(value);
    let driver = [(3, 0x83), (0, 1), (1, 0), (3, 3), (2, 7), (4, 11), (1, 3), (0, b'h'), (0, b'i')];
    let driver = driver.into_iter().fold(Seed::new(), |seed, (offset, value)| write(seed, offset, value));
    let typed = driver.clone().u8(2).u8(3).bytes(b"abc").u8(1).u8(5).u8(1).u8(0).u8(1).u8(2);
    let busy = driver.clone().u8(3).u8(1).u8(1).u8(5).u8(3).u8(0);
    let looped = write(write(driver.clone(), 4, 0x10), 0, b'l').u8(1).u8(0).u8(1).u8(6);
    vec![("driver", driver.done()), ("typed", typed.done()), ("busy", busy.done()), ("loopback", looped.done())]
}
