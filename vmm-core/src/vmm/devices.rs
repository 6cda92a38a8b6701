//! The devices that vCPUs reach by memory or ports, whatever the architecture: serial and the virtio transports.
//!
//! The guest is distrusted: an access that hits no device reads all ones and writes nothing, one that runs over the end
//! of a window is none of that window's.

use super::serial::SerialProxy;
use super::sync::lock;
use super::virtio::mmio::MmioTransport;
use super::virtio::request::Requester;
use crate::arch::layout;
use std::sync::{Mutex, OnceLock};
use wire::message::StopReason;

/// All devices of a machine. The virtio transports appear once their processes have said what they offer, before the
/// first guest instruction.
#[derive(Debug)]
pub struct Devices {
    /// The serial port.
    pub serial: SerialProxy,
    disks: OnceLock<Vec<Mutex<MmioTransport<Requester>>>>,
}

impl Devices {
    /// A machine without disks so far.
    #[must_use]
    pub fn new(serial: SerialProxy) -> Self {
        Self { serial, disks: OnceLock::new() }
    }

    /// Plugs the disks in; only the first call does.
    pub fn plug(&self, disks: Vec<MmioTransport<Requester>>) {
        self.disks.get_or_init(|| disks.into_iter().map(Mutex::new).collect());
    }

    /// A guest reads memory that is no RAM.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((disk, offset)) = self.virtio_at(address, data.len()) {
            lock(disk).read(offset, data);
        }
    }

    /// A guest writes memory that is no RAM.
    ///
    /// # Errors
    /// When a device process fails.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> Result<(), StopReason> {
        match self.virtio_at(address, data.len()) {
            Some((disk, offset)) => lock(disk).write(offset, data),
            None => Ok(()),
        }
    }

    fn virtio_at(&self, address: u64, bytes: usize) -> Option<(&Mutex<MmioTransport<Requester>>, u64)> {
        let from_first = address.checked_sub(layout::VIRTIO_START)?;
        let index = usize::try_from(from_first / layout::VIRTIO_WINDOW_BYTES).ok()?;
        let offset = from_first % layout::VIRTIO_WINDOW_BYTES;
        if offset.checked_add(u64::try_from(bytes).ok()?)? > layout::VIRTIO_WINDOW_BYTES {
            return None;
        }
        Some((self.disks.get()?.get(index)?, offset))
    }
}
