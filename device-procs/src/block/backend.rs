//! The vhost-user back end: what the front end asks for, message by message.
//!
//! Distrusts the front end: the `vhost` crate checks each message's form, this module its meaning. Whatever is wrong ends
//! the connection. Promises that guest memory is what the front end's descriptors really hold, and that rings are only
//! translated through it.

use super::config::{EVENT_IDX, FLUSH, PROTOCOL_FEATURES, features, read as read_config};
use super::disk::Disk;
use super::flight::Kernel;
use super::queue::{Progress, Ring, RingError, SetupError};
use super::request::Memory;
use super::waits::{Source, Waits};
use nix::errno::Errno;
use std::fs::File;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};
use wire::Text;

/// How many broken rings are reported in a process's life; the guest can break and reset them at will.
const MAX_REPORTS: u8 = 16;

/// A part of guest memory as the front end sees it.
#[derive(Debug, Clone, Copy)]
struct Window {
    user: u64,
    guest: u64,
    len: u64,
}

/// Guest memory and how the front end's addresses map to it.
#[derive(Debug)]
struct Mapped {
    memory: Arc<Memory>,
    windows: Vec<Window>,
}

impl Mapped {
    /// A ring address: the front end names it in its own address space ("vhost-user protocol", memory access).
    fn translate(&self, user: u64) -> Option<GuestAddress> {
        self.windows.iter().find_map(|window| {
            let offset = user.checked_sub(window.user).filter(|offset| *offset < window.len)?;
            window.guest.checked_add(offset).map(GuestAddress)
        })
    }
}

/// The back end.
#[derive(Debug)]
pub(super) struct Backend {
    disk: Disk,
    rings: Vec<Ring>,
    waits: Waits,
    mapped: Option<Mapped>,
    acked: u64,
    report: Option<Text>,
    reports_left: u8,
    limit_told: bool,
    /// The kernel does not tell any more what is done.
    failure: Option<Errno>,
}

impl Backend {
    /// A back end with `queues` stopped rings.
    pub(super) fn new(disk: Disk, queues: u16, waits: Waits) -> std::result::Result<Self, virtio_queue::Error> {
        let rings = (0..queues).map(|_index| Ring::new()).collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            disk,
            rings,
            waits,
            mapped: None,
            acked: 0,
            report: None,
            reports_left: MAX_REPORTS,
            limit_told: false,
            failure: None,
        })
    }

    /// Has the requests of the first ring done by `kernel`, many at once.
    pub(super) fn set_kernel(&mut self, kernel: Box<dyn Kernel>) {
        if let Some(ring) = self.rings.first_mut() {
            ring.set_kernel(kernel);
        }
    }

    /// What the loop waits for; the kicks come and go with the rings.
    pub(super) fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Whether there is something to do without waiting.
    pub(super) fn is_pending(&self) -> bool {
        self.rings.iter().any(Ring::is_pending)
    }

    /// Takes a notification of ring `index`.
    pub(super) fn kicked(&mut self, index: usize) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.kicked();
        }
    }

    /// Looks at every ring, as something in flight is done.
    pub(super) fn kicked_all(&mut self) {
        self.rings.iter_mut().for_each(Ring::kicked);
    }

    /// Does what is to be done, a batch of each ring.
    pub(super) fn process(&mut self) {
        let Some(mapped) = &self.mapped else { return };
        let mut broken = None;
        for ring in self.rings.iter_mut().filter(|ring| ring.is_pending()) {
            match ring.process(&mapped.memory, &mut self.disk) {
                Ok(Progress::Idle | Progress::More) => {}
                Err(RingError::Engine(errno)) => self.failure = Some(errno),
                Err(error) => broken = Some(error),
            }
        }
        self.note(broken);
    }

    /// Why nothing can go on: something is in flight, and nobody tells when it is done.
    pub(super) fn failure(&self) -> Option<Errno> {
        self.failure
    }

    /// What the guest did wrong, to be reported once.
    pub(super) fn take_report(&mut self) -> Option<Text> {
        self.report.take()
    }

    /// Whether the guest wanted to write more than it may, said once.
    pub(super) fn take_limit_report(&mut self) -> bool {
        self.disk.take_over_budget() && !std::mem::replace(&mut self.limit_told, true)
    }

    fn note(&mut self, broken: Option<RingError>) {
        if let (Some(error), Some(left)) = (broken, self.reports_left.checked_sub(1)) {
            self.reports_left = left;
            self.report = Some(Text::truncated(super::chain_of(&error)));
        }
    }

    fn queues(&self) -> u16 {
        u16::try_from(self.rings.len()).unwrap_or(u16::MAX)
    }

    fn offered(&self) -> u64 {
        features(self.disk.is_read_only(), self.queues())
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        let index = usize::try_from(index).map_err(|_too_large| Error::InvalidParam)?;
        self.rings.get_mut(index).ok_or(Error::InvalidOperation("there is no such ring"))
    }

    fn stop_all(&mut self) -> Result<()> {
        for ring in &mut self.rings {
            stop(ring, &mut self.disk, &self.waits).map_err(|errno| fail(&mut self.failure, errno))?;
            ring.set_enabled(false);
        }
        Ok(())
    }
}

/// Stops a ring when nothing of it is in flight any more; its kick is closed with it.
fn stop(ring: &mut Ring, disk: &mut Disk, waits: &Waits) -> std::result::Result<u16, Errno> {
    ring.drain(disk)?;
    if let Some(kick) = ring.kick() {
        waits.remove(kick);
    }
    Ok(ring.stop())
}

/// The end of the connection, and of the process: what the front end asked for is not done.
fn fail(failure: &mut Option<Errno>, errno: Errno) -> Error {
    *failure = Some(errno);
    Error::ReqHandlerError(errno.into())
}

impl From<SetupError> for Error {
    fn from(error: SetupError) -> Self {
        Self::ReqHandlerError(std::io::Error::other(error))
    }
}

/// Maps one region, which must be inside its file.
fn map(region: &VhostUserMemoryRegion, file: File) -> Result<GuestRegionMmap<()>> {
    let end = region.mmap_offset.checked_add(region.memory_size).ok_or(Error::InvalidParam)?;
    let size = nix::sys::stat::fstat(&file).map_err(|errno| Error::ReqHandlerError(errno.into()))?.st_size;
    if u64::try_from(size).map_or(true, |size| end > size) {
        return Err(Error::InvalidOperation("a memory region ends beyond its file"));
    }
    let len = usize::try_from(region.memory_size).map_err(|_too_large| Error::InvalidParam)?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, region.mmap_offset), len)
        .map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))?;
    GuestRegionMmap::new(mapping, GuestAddress(region.guest_phys_addr)).ok_or(Error::InvalidParam)
}

/// The refusal of what was never offered.
fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation("the message belongs to a feature that was not offered"))
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.stop_all()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_all()
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered() != 0 {
            return Err(Error::InvalidOperation("a feature was acknowledged that was not offered"));
        }
        if features != self.acked && self.rings.iter().any(Ring::is_running) {
            return Err(SetupError::Running.into());
        }
        self.acked = features;
        self.disk.set_write_through(features & FLUSH == 0);
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mut pairs: Vec<_> = regions.iter().zip(files).collect();
        pairs.sort_by_key(|(region, _file)| region.guest_phys_addr);
        let windows = pairs
            .iter()
            .map(|(region, _file)| Window {
                user: region.user_addr,
                guest: region.guest_phys_addr,
                len: region.memory_size,
            })
            .collect();
        let mapped = pairs.into_iter().map(|(region, file)| map(region, file)).collect::<Result<Vec<_>>>()?;
        let memory =
            Memory::from_regions(mapped).map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))?;
        let mut broken = None;
        for ring in &mut self.rings {
            ring.drain(&mut self.disk).map_err(|errno| fail(&mut self.failure, errno))?;
            broken = ring.remapped(&memory).err().or(broken);
        }
        self.mapped = Some(Mapped { memory: Arc::new(memory), windows });
        self.note(broken);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Ok(self.ring(index)?.set_size(num)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return not_offered();
        }
        let mapped = self.mapped.as_ref().ok_or(Error::InvalidOperation("there is no guest memory yet"))?;
        let translate =
            |user| mapped.translate(user).ok_or(Error::InvalidOperation("a ring address is in no memory region"));
        let (descriptor, available, used) = (translate(descriptor)?, translate(available)?, translate(used)?);
        Ok(self.ring(index)?.set_addresses(descriptor, available, used)?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Ok(self.ring(index)?.set_base(base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let index_of_ring = usize::try_from(index).map_err(|_too_large| Error::InvalidParam)?;
        let ring = self.rings.get_mut(index_of_ring).ok_or(Error::InvalidOperation("there is no such ring"))?;
        let stopped = stop(ring, &mut self.disk, &self.waits);
        let base = stopped.map_err(|errno| fail(&mut self.failure, errno))?;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = fd.ok_or(Error::InvalidOperation("a ring without a kick descriptor is not supported"))?;
        let mapped = self.mapped.as_ref().ok_or(Error::InvalidOperation("there is no guest memory yet"))?;
        let ring = self.rings.get_mut(usize::from(index)).ok_or(Error::InvalidParam)?;
        // Without the protocol features there is no SET_VRING_ENABLE ("vhost-user protocol", ring states).
        let enabled = self.acked & PROTOCOL_FEATURES == 0;
        if let Some(replaced) = ring.kick() {
            self.waits.remove(replaced);
        }
        self.waits.add(Source::Kick(index.into()), &kick).map_err(|_errno| SetupError::Kick)?;
        let started = ring.start(kick, &mapped.memory, self.acked & EVENT_IDX != 0, enabled)?;
        self.note(started.err());
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.set_call(fd);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.set_error(fd);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_protocol_features()?.bits() != 0 {
            return Err(Error::InvalidOperation("a protocol feature was acknowledged that was not offered"));
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues().into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.set_enabled(enable);
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let disk = &self.disk;
        read_config(disk.capacity(), disk.is_read_only(), self.queues(), offset, size).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("the configuration space has no writable field"))
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        not_offered()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        not_offered()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        not_offered()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered()
    }
}
