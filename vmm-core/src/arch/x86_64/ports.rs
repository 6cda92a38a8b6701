//! The I/O ports: COM1, and the few registers that end a run or that kernels probe.
//!
//! The guest is distrusted: ports that do not exist read all ones and ignore writes; accesses of any width are taken
//! byte by byte, each at the same port (as `rep ins` and `rep outs` mean it).

use super::layout::{
    I8042_PORT, I8042_RESET, RESET_PORT, RESET_VALUE, SERIAL_PORT, SERIAL_PORTS, SLEEP_CONTROL_PORT, SLEEP_S5,
    SLEEP_STATUS_PORT,
};
use crate::vmm::serial::SerialProxy;
use std::ops::RangeInclusive;
use wire::message::StopReason;

/// The interval timer's ports. They read zero, which ends Linux's attempt to calibrate by it at once.
const PIT_PORTS: RangeInclusive<u16> = 0x40..=0x43;
/// The real-time clock's data port. It reads zero: no update in progress, no time.
const RTC_DATA_PORT: u16 = 0x71;

/// A port as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Serial(u8),
    SleepControl,
    Reset,
    I8042,
    ReadsZero,
    None,
}

fn at(port: u16) -> Port {
    match port {
        SLEEP_CONTROL_PORT => Port::SleepControl,
        RESET_PORT => Port::Reset,
        I8042_PORT => Port::I8042,
        SLEEP_STATUS_PORT | RTC_DATA_PORT => Port::ReadsZero,
        port if PIT_PORTS.contains(&port) => Port::ReadsZero,
        port => match port.checked_sub(SERIAL_PORT) {
            Some(offset) if offset < SERIAL_PORTS => Port::Serial(offset.to_le_bytes()[0]),
            _ => Port::None,
        },
    }
}

/// The guest reads from `port` into `data`.
///
/// # Errors
/// When serial fails.
pub fn read(serial: &SerialProxy, port: u16, data: &mut [u8]) -> Result<(), StopReason> {
    match at(port) {
        Port::Serial(offset) => {
            for byte in data {
                *byte = serial.read(offset)?;
            }
        }
        Port::SleepControl | Port::ReadsZero => data.fill(0),
        Port::Reset | Port::I8042 | Port::None => data.fill(0xff),
    }
    Ok(())
}

/// The guest writes `data` to `port`.
///
/// # Errors
/// The end of the run, when that is what the guest asks for, or when serial fails.
pub fn write(serial: &SerialProxy, port: u16, data: &[u8]) -> Result<(), StopReason> {
    for &byte in data {
        match (at(port), byte) {
            (Port::Serial(offset), value) => serial.write(offset, value)?,
            (Port::SleepControl, SLEEP_S5) => return Err(StopReason::PowerOff),
            (Port::Reset, RESET_VALUE) | (Port::I8042, I8042_RESET) => return Err(StopReason::Reset),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vmm_sys_util::eventfd::EventFd;
    use wire::Channel;
    use wire::ring::{Consumer, PostedWrite, RING_BYTES};

    fn serial() -> (SerialProxy, Consumer) {
        let ring = memfd_create(c"ring", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&ring, RING_BYTES as i64).unwrap();
        let (ours, _theirs) = Channel::pair().unwrap();
        let consumer = Consumer::map(ring.try_clone().unwrap()).unwrap();
        (SerialProxy::new(ours.into(), ring, EventFd::new(0).unwrap()).unwrap(), consumer)
    }

    #[test]
    fn string_output_reaches_serial_byte_by_byte() {
        let (serial, mut consumer) = serial();
        write(&serial, 0x3f8, b"hi").unwrap();
        assert_eq!(consumer.take().unwrap(), Some(PostedWrite { offset: 0, value: b'h' }));
        assert_eq!(consumer.take().unwrap(), Some(PostedWrite { offset: 0, value: b'i' }));
        write(&serial, 0x3ff, &[7]).unwrap();
        assert_eq!(consumer.take().unwrap(), Some(PostedWrite { offset: 7, value: 7 }));
        write(&serial, 0x400, &[7]).unwrap();
        assert_eq!(consumer.take().unwrap(), None);
    }

    #[test]
    fn writes_that_end_the_run_do() {
        let (serial, _consumer) = serial();
        assert_eq!(write(&serial, 0x600, &[0x34]), Err(StopReason::PowerOff));
        assert_eq!(write(&serial, 0x602, &[1]), Err(StopReason::Reset));
        assert_eq!(write(&serial, 0x64, &[0xfe]), Err(StopReason::Reset));
    }

    #[test]
    fn other_values_at_the_same_ports_do_not() {
        let (serial, _consumer) = serial();
        for (port, value) in [(0x600, 0x14), (0x600, 0x24), (0x602, 0), (0x602, 6), (0x64, 0xd1)] {
            write(&serial, port, &[value]).unwrap();
        }
    }

    #[test]
    fn ports_that_do_not_exist_read_ones() {
        let (serial, _consumer) = serial();
        for port in [0x20, 0x21, 0xa1, 0x60, 0x64, 0x80, 0x2f8, 0xcf8, 0xcfc, 0x603, 0xffff] {
            let mut data = [0; 4];
            read(&serial, port, &mut data).unwrap();
            assert_eq!(data, [0xff; 4], "port {port:#x}");
            write(&serial, port, &[0x55; 4]).unwrap();
        }
    }

    #[test]
    fn probed_ports_read_zero() {
        let (serial, _consumer) = serial();
        for port in [0x40, 0x43, 0x71, 0x600, 0x601] {
            let mut data = [0xff];
            read(&serial, port, &mut data).unwrap();
            assert_eq!(data, [0], "port {port:#x}");
        }
    }
}
