//! What a vCPU did last, and how it looks, for a person who debugs a guest.
//!
//! Addresses and values are the guest's; they are shown as numbers only.

use std::collections::VecDeque;
use std::fmt;
use wire::Text;
use wire::message::Exits;

/// The exits that are remembered.
const EXITS: usize = 8;
/// The registers in a line.
const COLUMNS: usize = 4;

/// How a vCPU left the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It reads memory that is no RAM.
    MmioRead,
    /// It writes memory that is no RAM.
    MmioWrite,
    /// It reads a port.
    PortRead,
    /// It writes a port.
    PortWrite,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MmioRead => "mmio read",
            Self::MmioWrite => "mmio write",
            Self::PortRead => "port read",
            Self::PortWrite => "port write",
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Event {
    exit: Exit,
    address: u64,
    bytes: usize,
    value: u64,
    times: u64,
}

/// The last exits of a vCPU, of which those at one address in a row are one, and the numbers of all.
#[derive(Debug, Default)]
pub struct Trace {
    events: VecDeque<Event>,
    exits: Exits,
}

impl Trace {
    /// Nothing yet, with the room for all that it will remember.
    #[must_use]
    pub fn new() -> Self {
        Self { events: VecDeque::with_capacity(EXITS), exits: Exits::default() }
    }

    /// How many exits there were.
    #[must_use]
    pub fn exits(&self) -> Exits {
        self.exits
    }

    /// Remembers an exit with the data that it ended with.
    pub fn add(&mut self, exit: Exit, address: u64, data: &[u8]) {
        let count = match exit {
            Exit::MmioRead => &mut self.exits.mmio_reads,
            Exit::MmioWrite => &mut self.exits.mmio_writes,
            Exit::PortRead => &mut self.exits.port_reads,
            Exit::PortWrite => &mut self.exits.port_writes,
        };
        *count = count.saturating_add(1);
        let mut value = [0; 8];
        for (byte, &from) in value.iter_mut().zip(data) {
            *byte = from;
        }
        let (value, bytes) = (u64::from_le_bytes(value), data.len());
        if let Some(last) = self.events.back_mut()
            && (last.exit, last.address, last.bytes) == (exit, address, bytes)
        {
            (last.value, last.times) = (value, last.times.saturating_add(1));
            return;
        }
        if self.events.len() >= EXITS {
            self.events.pop_front();
        }
        self.events.push_back(Event { exit, address, bytes, value, times: 1 });
    }

    /// A line for each exit, the oldest first.
    pub fn lines(&self) -> impl Iterator<Item = Text> {
        self.events.iter().map(|&Event { exit, address, bytes, value, times }| {
            let often = if times > 1 { format!(", the last of {times} in a row") } else { String::new() };
            Text::truncated(format_args!("{exit} at {address:#x}: {value:#x} ({bytes} bytes){often}"))
        })
    }
}

/// Lines of named registers.
#[must_use]
pub fn register_lines(registers: &[(String, u64)]) -> Vec<Text> {
    let line = |registers: &[(String, u64)]| {
        let columns = registers.iter().map(|(name, value)| format!("{name:>7} {value:016x}"));
        Text::truncated(columns.collect::<Vec<_>>().join(" "))
    };
    registers.chunks(COLUMNS).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(trace: &Trace) -> Vec<String> {
        trace.lines().map(|line| line.to_string()).collect()
    }

    #[test]
    fn exits_at_one_address_are_one_line() {
        let mut trace = Trace::new();
        trace.add(Exit::MmioRead, 0x900_0005, &[0x60]);
        trace.add(Exit::MmioWrite, 0x900_0000, b"a");
        trace.add(Exit::MmioWrite, 0x900_0000, b"b");
        let expected = [
            "mmio read at 0x9000005: 0x60 (1 bytes)",
            "mmio write at 0x9000000: 0x62 (1 bytes), the last of 2 in a row",
        ];
        assert_eq!(lines(&trace), expected);
        assert_eq!(trace.exits(), Exits { mmio_reads: 1, mmio_writes: 2, ..Exits::default() });
    }

    #[test]
    fn oldest_exit_is_forgotten() {
        let mut trace = Trace::new();
        for port in 0..9 {
            trace.add(Exit::PortRead, port, &[0, 1, 0, 0]);
        }
        assert_eq!(lines(&trace).len(), 8);
        assert_eq!(lines(&trace)[0], "port read at 0x1: 0x100 (4 bytes)");
    }

    #[test]
    fn registers_are_four_to_a_line() {
        let registers: Vec<_> = (0..5).map(|n| (format!("x{n}"), n)).collect();
        let lines = register_lines(&registers);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].to_string(), "     x4 0000000000000004");
    }
}
