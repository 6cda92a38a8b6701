//! The whole server over a real vhost-user connection, with the `vhost` crate's front end.

use super::super::backend::Backend;
use super::super::server::{End, ServeError, serve};
use super::super::uring::Uring;
use super::*;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wire::Channel;
use wire::message::{DiskEngine, FromBlock, ToDevice};

const LIMIT: Duration = Duration::from_secs(10);
const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = SEAM - 512;

pub(super) struct Machine {
    pub(super) driver: Driver,
    pub(super) front_end: Frontend,
    kick: EventFd,
    call: EventFd,
    error: EventFd,
    broker: Channel,
    server: JoinHandle<Result<End, ServeError>>,
}

/// Guest memory in a memfd, the second region before the first one in the file.
fn shared_memory() -> Arc<Memory> {
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(MEMORY_END).unwrap();
    let second = usize::try_from(MEMORY_END - SEAM).unwrap();
    let memory = Memory::from_ranges_with_files([
        (
            GuestAddress(0),
            usize::try_from(SEAM).unwrap(),
            Some(FileOffset::new(file.try_clone().unwrap(), MEMORY_END - SEAM)),
        ),
        (GuestAddress(SEAM), second, Some(FileOffset::new(file, 0))),
    ]);
    Arc::new(memory.unwrap())
}

pub(super) fn regions(memory: &Memory) -> Vec<VhostUserMemoryRegionInfo> {
    memory.iter().map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()).collect()
}

impl Machine {
    fn new(mode: DiskMode, image: &Spy) -> Self {
        Self::with_engine(mode, image, DiskEngine::Sync)
    }

    pub(super) fn with_engine(mode: DiskMode, image: &Spy, engine: DiskEngine) -> Self {
        let file = image.clone();
        Self::with_backend(mode, image, move |disk| {
            let uring = (engine == DiskEngine::IoUring).then(|| Uring::new(file.0.file.as_fd()).unwrap());
            crate::block::backend(disk, uring).unwrap()
        })
    }

    pub(super) fn with_backend(
        mode: DiskMode,
        image: &Spy,
        backend: impl FnOnce(Disk) -> Backend + Send + 'static,
    ) -> Self {
        let overlay = (mode == DiskMode::Ephemeral).then(|| Box::new(Spy::new(&[])) as Box<dyn Store>);
        let capacity = SectorCount::from_bytes(image.content().len() as u64).unwrap();
        let id = DiskId::try_from("disk0".to_owned()).unwrap();
        let disk = Disk::new(mode, capacity, id, Box::new(image.clone()), overlay).unwrap();
        let (broker, control) = Channel::pair().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        // A ring belongs to the thread that made it.
        let server = std::thread::spawn(move || serve(&control, theirs, backend(disk)));
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            driver: Driver { memory: shared_memory(), index: 0 },
            front_end: Frontend::from_stream(ours, 1),
            kick: event(),
            call: event(),
            error: event(),
            broker,
            server,
        }
    }

    /// As a front end does up to DRIVER_OK.
    pub(super) fn activate(&mut self) {
        let features = self.front_end.get_features().unwrap();
        self.front_end.set_features(features).unwrap();
        let protocol = self.front_end.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ));
        self.front_end.set_protocol_features(protocol).unwrap();
        self.front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(self.front_end.get_queue_num().unwrap(), 1);
        self.front_end.set_owner().unwrap();
        self.start();
    }

    fn ring_addresses(&self) -> VringConfigData {
        let user = |address| self.driver.memory.get_host_address(GuestAddress(address)).unwrap() as u64;
        VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: user(DESCRIPTORS),
            used_ring_addr: user(USED),
            avail_ring_addr: user(AVAILABLE),
            log_addr: None,
        }
    }

    pub(super) fn start(&mut self) {
        self.front_end.set_mem_table(&regions(&self.driver.memory)).unwrap();
        self.front_end.set_vring_num(0, QUEUE_SIZE).unwrap();
        self.front_end.set_vring_base(0, 0).unwrap();
        self.front_end.set_vring_addr(0, &self.ring_addresses()).unwrap();
        self.front_end.set_vring_call(0, &self.call).unwrap();
        self.front_end.set_vring_err(0, &self.error).unwrap();
        self.front_end.set_vring_kick(0, &self.kick).unwrap();
        self.front_end.set_vring_enable(0, true).unwrap();
    }

    /// Makes a request available, and kicks; gives the used index that its answer will have.
    pub(super) fn publish(&mut self, kind: u32, sector: u64, out: &[u8], in_bytes: u32) -> u16 {
        let len = in_bytes.max(u32::try_from(out.len()).unwrap());
        let flags = if in_bytes > 0 { WRITE } else { 0 };
        self.driver.put(HEADER, &header(kind, sector));
        self.driver.put(DATA, out);
        self.driver.link(DESCRIPTORS, &[(HEADER, 16, 0), (DATA, len, flags), (STATUS, 1, WRITE)]);
        // used_event: interrupt for the next entry.
        let next = self.driver.used_index();
        self.driver.put(AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE), &next.to_le_bytes());
        self.driver.publish(0);
        self.kick.write(1).unwrap();
        next
    }

    pub(super) fn request(&mut self, kind: u32, sector: u64, out: &[u8], in_bytes: u32) -> (u8, Vec<u8>) {
        let next = self.publish(kind, sector, out, in_bytes);
        self.wait();
        assert_eq!(self.driver.used_index(), next.wrapping_add(1));
        (self.driver.get(STATUS, 1)[0], self.driver.get(DATA, usize::try_from(in_bytes).unwrap()))
    }

    fn wait(&self) {
        await_event(self.call.as_fd_here());
        self.call.read().unwrap();
    }

    pub(super) fn kick_and_wait(&self) {
        self.kick.write(1).unwrap();
        self.wait();
    }

    pub(super) fn join(self) -> Result<End, ServeError> {
        drop(self.front_end);
        self.server.join().unwrap()
    }
}

trait AsFdHere {
    fn as_fd_here(&self) -> BorrowedFd<'_>;
}

impl AsFdHere for EventFd {
    #[allow(unsafe_code, reason = "vmm-sys-util's EventFd gives a number only")]
    fn as_fd_here(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsRawFd;
        // SAFETY: the number is that of the descriptor that `self` owns, and the result borrows `self`.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}

fn await_event(event: BorrowedFd<'_>) {
    let mut fds = [PollFd::new(event, PollFlags::POLLIN)];
    let limit = u16::try_from(LIMIT.as_millis()).unwrap();
    assert_eq!(poll(&mut fds, limit), Ok(1), "no event within {LIMIT:?}");
}

#[test]
fn front_end_reads_and_writes_by_kick_and_call() {
    let image = Spy::new(&[7; 64 * 512]);
    let mut machine = Machine::new(DiskMode::ReadWrite, &image);
    machine.activate();
    assert_eq!(machine.request(IN, 0, &[], 1024), (0, vec![7; 1024]));
    assert_eq!(machine.request(OUT, 1, &[9; 1024], 0).0, 0);
    assert_eq!(image.content()[512..1536], [9; 1024]);
    assert_eq!(machine.request(IN, 63, &[], 1024).0, 1);
    assert_eq!(machine.join().unwrap(), End::Disconnected);
}

#[test]
fn config_space_is_read() {
    let mut machine = Machine::new(DiskMode::ReadOnly, &Spy::new(&[7; 64 * 512]));
    machine.activate();
    let flags = VhostUserConfigFlags::empty();
    let (_header, capacity) = machine.front_end.get_config(0, 8, flags, &[0; 8]).unwrap();
    assert_eq!(capacity, 64u64.to_le_bytes());
    let (_header, beyond) = machine.front_end.get_config(4000, 8, flags, &[0; 8]).unwrap();
    assert_eq!(beyond, [0; 8]);
    assert_eq!(machine.request(IN, 0, &[], 512), (0, vec![7; 512]), "the connection goes on");
}

#[test]
fn ring_is_stopped_and_started_again() {
    let mut machine = Machine::new(DiskMode::Ephemeral, &Spy::new(&[7; 64 * 512]));
    machine.activate();
    machine.request(OUT, 0, &[9; 512], 0);
    assert_eq!(machine.front_end.get_vring_base(0).unwrap(), 1);
    machine.driver.put(AVAILABLE, &[0; 0x1000]);
    machine.driver.put(USED, &[0; 0x1000]);
    machine.driver.index = 0;
    machine.start();
    assert_eq!(machine.request(IN, 0, &[], 512), (0, vec![9; 512]));
}

#[test]
fn memory_is_mapped_anew_while_the_ring_runs() {
    let mut machine = Machine::new(DiskMode::ReadOnly, &Spy::new(&[7; 64 * 512]));
    machine.activate();
    let table = regions(&machine.driver.memory);
    machine.front_end.set_mem_table(&table).unwrap();
    assert_eq!(machine.request(IN, 0, &[], 512), (0, vec![7; 512]));
}

#[test]
fn disabled_ring_is_left_alone_until_it_is_enabled() {
    let mut machine = Machine::new(DiskMode::ReadOnly, &Spy::new(&[7; 64 * 512]));
    machine.activate();
    machine.front_end.set_vring_enable(0, false).unwrap();
    machine.driver.put(HEADER, &header(IN, 0));
    machine.driver.link(DESCRIPTORS, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    machine.driver.publish(0);
    machine.kick.write(1).unwrap();
    machine.front_end.get_features().unwrap();
    assert_eq!(machine.driver.used_index(), 0);
    machine.front_end.set_vring_enable(0, true).unwrap();
    await_event(machine.call.as_fd_here());
    assert_eq!(machine.driver.used_index(), 1);
}

#[test]
fn broken_ring_is_reported_once_and_mended_by_a_stop() {
    let mut machine = Machine::new(DiskMode::ReadOnly, &Spy::new(&[7; 64 * 512]));
    machine.activate();
    machine.driver.set_index(1000);
    machine.kick.write(1).unwrap();
    await_event(machine.error.as_fd_here());
    let report = machine.broker.recv_timeout::<FromBlock>(LIMIT).unwrap().message;
    assert!(matches!(report, FromBlock::Broken(text) if text.to_string().contains("available ring")));
    machine.kick.write(1).unwrap();
    machine.front_end.get_features().unwrap();
    assert!(matches!(machine.broker.try_recv::<FromBlock>(), Err(wire::ChannelError::WouldBlock)));
    machine.front_end.get_vring_base(0).unwrap();
    machine.driver.set_index(0);
    machine.start();
    assert_eq!(machine.request(IN, 0, &[], 512), (0, vec![7; 512]));
}

#[test]
fn broker_ends_the_loop() {
    let machine = Machine::new(DiskMode::ReadOnly, &Spy::new(&[7; 512]));
    machine.broker.send(&ToDevice::Shutdown, &[]).unwrap();
    assert_eq!(machine.server.join().unwrap().unwrap(), End::Shutdown);
    let machine = Machine::new(DiskMode::ReadOnly, &Spy::new(&[7; 512]));
    drop(machine.broker);
    assert_eq!(machine.server.join().unwrap().unwrap(), End::BrokerGone);
}

/// The front end's fault ends the connection with an error.
fn assert_fault(fault: impl FnOnce(&mut Machine)) {
    let mut machine = Machine::new(DiskMode::ReadOnly, &Spy::new(&[7; 64 * 512]));
    machine.activate();
    fault(&mut machine);
    assert!(matches!(machine.server.join().unwrap(), Err(ServeError::FrontEnd(_))));
}

#[test]
fn feature_that_was_not_offered_ends_the_connection() {
    assert_fault(|machine| machine.front_end.set_features(1 << 50).unwrap_err_or_closed());
}

#[test]
fn memory_beyond_its_file_ends_the_connection() {
    assert_fault(|machine| {
        let mut table = regions(&machine.driver.memory);
        table[0].memory_size += 0x1_0000_0000;
        machine.front_end.set_mem_table(&table).unwrap_err_or_closed();
    });
}

#[test]
fn overlapping_memory_ends_the_connection() {
    assert_fault(|machine| {
        let table = regions(&machine.driver.memory);
        machine.front_end.set_mem_table(&[table[0], table[0]]).unwrap_err_or_closed();
    });
}

#[test]
fn ring_address_outside_memory_ends_the_connection() {
    assert_fault(|machine| {
        machine.front_end.get_vring_base(0).unwrap();
        let addresses = VringConfigData { desc_table_addr: 0x1000, ..machine.ring_addresses() };
        machine.front_end.set_vring_addr(0, &addresses).unwrap_err_or_closed();
    });
}

#[test]
fn change_of_a_running_ring_ends_the_connection() {
    assert_fault(|machine| machine.front_end.set_vring_num(0, 16).unwrap_err_or_closed());
}

#[test]
fn kick_that_cannot_be_waited_for_ends_the_connection() {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let file = tempfile::tempfile().unwrap();
    assert_fault(|machine| {
        #[allow(unsafe_code, reason = "the front end takes vmm-sys-util's EventFd alone")]
        // SAFETY: the number is that of a descriptor that nobody else owns.
        let file = unsafe { EventFd::from_raw_fd(file.into_raw_fd()) };
        machine.front_end.set_vring_kick(0, &file).unwrap_err_or_closed();
    });
}

#[test]
fn kick_of_a_stopped_ring_wakes_nobody() {
    let mut machine = Machine::new(DiskMode::ReadOnly, &Spy::new(&[7; 64 * 512]));
    machine.activate();
    machine.front_end.get_vring_base(0).unwrap();
    machine.kick.write(1).unwrap();
    machine.front_end.get_features().unwrap();
    machine.driver.put(AVAILABLE, &[0; 0x1000]);
    machine.driver.put(USED, &[0; 0x1000]);
    machine.driver.index = 0;
    machine.start();
    assert_eq!(machine.request(IN, 0, &[], 512), (0, vec![7; 512]), "and the new kick does");
}

trait UnwrapErrOrClosed {
    fn unwrap_err_or_closed(self);
}

impl<T> UnwrapErrOrClosed for vhost::Result<T> {
    fn unwrap_err_or_closed(self) {
        assert!(self.is_err());
    }
}
