//! The register model: vm-superio's 16550A, with its transmitter and its interrupt line as plain values.
//!
//! Distrusts the guest, which writes and reads any register in any order. Nothing here waits, fails or panics; the
//! interrupt is only noted, so that the caller can publish the line status before the guest hears of it.

use std::cell::Cell;
use std::convert::Infallible;
use vm_superio::{Serial, Trigger, serial::NoEvents};
use wire::ring::PostedWrite;

/// Register offsets (16550A data sheet, "Registers").
const IER: u8 = 1;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;

const IER_TRANSMITTER_EMPTY: u8 = 0x02;
const LCR_DIVISOR_LATCH: u8 = 0x80;
const MCR_LOOPBACK: u8 = 0x10;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;

#[derive(Debug, Default)]
struct InterruptLine(Cell<bool>);

impl Trigger for InterruptLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// The 16550A.
#[derive(Debug)]
pub struct Uart {
    serial: Serial<InterruptLine, NoEvents, Vec<u8>>,
    busy: bool,
}

impl Uart {
    /// A UART after reset, with room for `transmit_bytes` before its transmit buffer has to grow.
    pub fn new(transmit_bytes: usize) -> Self {
        Self { serial: Serial::new(InterruptLine::default(), Vec::with_capacity(transmit_bytes)), busy: false }
    }

    /// Does a register write.
    pub fn write(&mut self, write: PostedWrite) {
        // Neither the interrupt line nor the transmit buffer can fail.
        self.serial.write(write.offset, write.value).unwrap_or(());
    }

    /// Does a register read.
    pub fn read(&mut self, offset: u8) -> u8 {
        match offset & 7 {
            LSR => self.line_status(),
            offset => self.serial.read(offset),
        }
    }

    /// The line status register; reading it changes nothing.
    pub fn line_status(&mut self) -> u8 {
        let status = self.serial.read(LSR);
        if self.busy { status & !LSR_TRANSMITTER_EMPTY } else { status }
    }

    /// How many bytes the receiver takes now: none in loopback, where the line is cut off.
    pub fn receive_room(&mut self) -> usize {
        if self.serial.read(MCR) & MCR_LOOPBACK == 0 { self.serial.fifo_capacity() } else { 0 }
    }

    /// Puts bytes into the receiver; returns how many went in.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        if self.receive_room() == 0 { 0 } else { self.serial.enqueue_raw_bytes(bytes).unwrap_or(0) }
    }

    /// What the guest has sent; the caller empties it.
    pub fn transmitted(&mut self) -> &mut Vec<u8> {
        self.serial.writer_mut()
    }

    /// Shows the guest a busy transmitter, or one that has become free, which interrupts.
    pub fn set_busy(&mut self, busy: bool) {
        let was_busy = std::mem::replace(&mut self.busy, busy);
        if was_busy && !busy {
            // The model interrupts when the interrupt is enabled and the transmitter is empty, so it is enabled again.
            let line_control = self.serial.read(LCR);
            self.write(PostedWrite { offset: LCR, value: line_control & !LCR_DIVISOR_LATCH });
            let enabled = self.serial.read(IER);
            if enabled & IER_TRANSMITTER_EMPTY != 0 {
                self.write(PostedWrite { offset: IER, value: enabled });
            }
            self.write(PostedWrite { offset: LCR, value: line_control });
        }
    }

    /// Whether the guest is interrupted each time that the transmitter becomes empty.
    pub fn interrupts_when_empty(&mut self) -> bool {
        // With the divisor latch, another register is in this place.
        let is_there = self.serial.read(LCR) & LCR_DIVISOR_LATCH == 0;
        is_there && self.serial.read(IER) & IER_TRANSMITTER_EMPTY != 0
    }

    /// Whether an interrupt is due since the last call.
    pub fn take_interrupt(&self) -> bool {
        self.serial.interrupt_evt().0.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(uart: &mut Uart, offset: u8, value: u8) {
        uart.write(PostedWrite { offset, value });
    }

    #[test]
    fn byte_that_arrives_interrupts_and_shows_in_the_line_status() {
        let mut uart = Uart::new(0);
        write(&mut uart, IER, 0x01);
        assert!(!uart.take_interrupt());
        assert_eq!(uart.receive(b"a"), 1);
        assert!(uart.take_interrupt());
        assert_eq!(uart.line_status(), 0x61);
        assert_eq!(uart.read(0), b'a');
        assert_eq!(uart.line_status(), 0x60);
    }

    #[test]
    fn transmitter_that_becomes_free_interrupts_even_behind_the_divisor_latch() {
        let mut uart = Uart::new(0);
        write(&mut uart, IER, IER_TRANSMITTER_EMPTY);
        uart.read(2);
        assert!(uart.take_interrupt());
        write(&mut uart, LCR, LCR_DIVISOR_LATCH | 3);
        write(&mut uart, 1, 0x55);
        uart.set_busy(true);
        assert_eq!(uart.read(LSR), 0);
        assert!(!uart.take_interrupt());
        uart.set_busy(false);
        assert!(uart.take_interrupt());
        assert_eq!(uart.read(LCR), LCR_DIVISOR_LATCH | 3);
        assert_eq!(uart.read(1), 0x55, "the divisor must be left alone");
    }

    #[test]
    fn receiver_in_loopback_takes_nothing_from_outside() {
        let mut uart = Uart::new(0);
        write(&mut uart, MCR, MCR_LOOPBACK);
        assert_eq!(uart.receive(b"a"), 0);
        write(&mut uart, 0, b'l');
        assert!(uart.transmitted().is_empty());
        write(&mut uart, MCR, 0);
        assert_eq!(uart.read(0), b'l');
    }

    #[test]
    fn every_register_takes_every_value() {
        let mut uart = Uart::new(0);
        for round in 0..=u8::MAX {
            for offset in 0..=u8::MAX {
                write(&mut uart, offset, round ^ offset);
                uart.read(offset);
                uart.receive(&[round]);
                uart.set_busy(round & 1 == 0);
                uart.transmitted().clear();
            }
        }
    }
}
