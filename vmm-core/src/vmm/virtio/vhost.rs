//! The control thread's conversation with one device process: vhost-user, as the front end.
//!
//! The device process is distrusted. It learns guest-physical addresses only, never one of ours; what it offers is cut
//! down to what the transport knows, and any error of the protocol, or an answer that comes too late, ends the run.

use super::request::{Action, Watch};
use super::{BLOCK_CONFIG_BYTES, FEATURES, Offer, QUEUES, Queue, VERSION_1};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use wire::Text;
use wire::message::StopReason;

/// How long a device process may take to say what it offers, and to start.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// How long a device process may take to stop: it finishes what is in flight.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Why a device process failed.
#[derive(Debug, thiserror::Error)]
pub enum BackEndError {
    /// A call failed.
    #[error("it failed to {0}")]
    Call(&'static str, #[source] vhost::Error),
    /// It lacks something without which there is no device.
    #[error("it does not offer {0}")]
    Lacks(&'static str),
    /// Guest memory has no file that could be shared.
    #[error("guest memory cannot be shared with it")]
    Memory,
}

/// One device process.
pub struct BackEnd {
    disk: usize,
    frontend: Frontend,
    watch: Arc<Watch>,
    memory: GuestMemoryMmap,
    memory_shared: bool,
    kick: EventFd,
    call: EventFd,
    error: EventFd,
}

impl std::fmt::Debug for BackEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackEnd").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// The eventfds of a disk.
#[derive(Debug)]
pub struct Events {
    /// The driver has made buffers available; KVM signals it.
    pub kick: EventFd,
    /// The device has used buffers; KVM turns it into an interrupt.
    pub call: EventFd,
    /// The device has stopped because of an error.
    pub error: EventFd,
}

impl BackEnd {
    /// The process at the other end of `socket`. Nothing is said yet.
    #[must_use]
    pub fn new(disk: usize, socket: UnixStream, watch: Arc<Watch>, memory: GuestMemoryMmap, events: Events) -> Self {
        let frontend = Frontend::from_stream(socket, QUEUES as u64);
        let Events { kick, call, error } = events;
        Self { disk, frontend, watch, memory, memory_shared: false, kick, call, error }
    }

    /// Asks what the device is. To be called once.
    ///
    /// # Errors
    /// When the device process breaks the protocol, lacks something or does not answer in time.
    pub fn offer(&mut self) -> Result<Offer, StopReason> {
        let (watch, disk) = (Arc::clone(&self.watch), self.disk);
        watch.within(disk, START_DEADLINE, || self.negotiate()).map_err(|error| failed(disk, &error))
    }

    /// Does what a vCPU thread asked for.
    ///
    /// # Errors
    /// When the device process breaks the protocol or does not answer in time.
    pub fn act(&mut self, action: &Action) -> Result<(), StopReason> {
        let (watch, disk) = (Arc::clone(&self.watch), self.disk);
        let result = match action {
            Action::Activate { features, queues } => {
                watch.within(disk, START_DEADLINE, || self.activate(*features, queues))
            }
            Action::Reset => watch.within(disk, STOP_DEADLINE, || self.reset()),
        };
        result.map_err(|error| failed(disk, &error))
    }

    fn negotiate(&mut self) -> Result<Offer, BackEndError> {
        use BackEndError::{Call, Lacks};
        self.frontend.set_owner().map_err(|error| Call("accept its owner", error))?;
        let features = self.frontend.get_features().map_err(|error| Call("say its features", error))?;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(Lacks("protocol features"));
        }
        if features & VERSION_1 == 0 {
            return Err(Lacks("VIRTIO_F_VERSION_1"));
        }
        let needed = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK;
        let offered =
            self.frontend.get_protocol_features().map_err(|error| Call("say its protocol features", error))?;
        if !offered.contains(needed) {
            return Err(Lacks("the protocol features CONFIG and REPLY_ACK"));
        }
        let chosen = (needed | VhostUserProtocolFeatures::MQ) & offered;
        self.frontend.set_protocol_features(chosen).map_err(|error| Call("accept protocol features", error))?;
        // From here on every request is answered, so that a failure is known where it happens.
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if chosen.contains(VhostUserProtocolFeatures::MQ) {
            let queues = self.frontend.get_queue_num().map_err(|error| Call("say its number of queues", error))?;
            if queues < QUEUES as u64 {
                return Err(Lacks("a queue"));
            }
        }
        let empty = [0; BLOCK_CONFIG_BYTES as usize];
        let (_, config) = self
            .frontend
            .get_config(0, BLOCK_CONFIG_BYTES, VhostUserConfigFlags::empty(), &empty)
            .map_err(|error| Call("say its configuration", error))?;
        Ok(Offer { features: features & FEATURES, config })
    }

    fn activate(&mut self, features: u64, queues: &[Queue]) -> Result<(), BackEndError> {
        use BackEndError::Call;
        let features = features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend.set_features(features).map_err(|error| Call("accept the driver's features", error))?;
        if !self.memory_shared {
            let regions = self.regions()?;
            self.frontend.set_mem_table(&regions).map_err(|error| Call("map guest memory", error))?;
            self.memory_shared = true;
        }
        for (index, queue) in queues.iter().enumerate() {
            self.start_queue(index, queue).map_err(|error| Call("start a queue", error))?;
        }
        Ok(())
    }

    fn start_queue(&mut self, index: usize, queue: &Queue) -> Result<(), vhost::Error> {
        self.frontend.set_vring_num(index, queue.size)?;
        let addresses = VringConfigData {
            queue_max_size: queue.size,
            queue_size: queue.size,
            flags: 0,
            desc_table_addr: queue.descriptors,
            used_ring_addr: queue.used,
            avail_ring_addr: queue.avail,
            log_addr: None,
        };
        self.frontend.set_vring_addr(index, &addresses)?;
        self.frontend.set_vring_base(index, 0)?;
        self.frontend.set_vring_err(index, &self.error)?;
        self.frontend.set_vring_call(index, &self.call)?;
        self.frontend.set_vring_kick(index, &self.kick)?;
        self.frontend.set_vring_enable(index, true)
    }

    fn reset(&mut self) -> Result<(), BackEndError> {
        for index in 0..QUEUES {
            // GET_VRING_BASE stops the ring; its answer comes when nothing is in flight any more.
            self.frontend.get_vring_base(index).map_err(|error| BackEndError::Call("stop a queue", error))?;
        }
        // What was wrong with the queues before is over.
        self.error.read().unwrap_or(0);
        Ok(())
    }

    /// Guest memory for the memory table. The "user address" of vhost-user, by which the queues' addresses are given,
    /// is the guest-physical address: the device process learns nothing about our address space.
    fn regions(&self) -> Result<Vec<VhostUserMemoryRegionInfo>, BackEndError> {
        let share = |region: &vm_memory::GuestRegionMmap| {
            let file = region.file_offset().ok_or(BackEndError::Memory)?;
            let guest_phys_addr = region.start_addr().raw_value();
            Ok(VhostUserMemoryRegionInfo {
                guest_phys_addr,
                memory_size: region.len(),
                userspace_addr: guest_phys_addr,
                mmap_offset: file.start(),
                mmap_handle: file.file().as_raw_fd(),
            })
        };
        self.memory.iter().map(share).collect()
    }
}

/// The end of a run by a disk's process.
pub fn failed(disk: usize, why: &dyn std::error::Error) -> StopReason {
    let device = u8::try_from(disk).unwrap_or(u8::MAX).saturating_add(1);
    StopReason::DeviceFailed { device, why: Text::truncated(crate::vmm::chain(why)) }
}
