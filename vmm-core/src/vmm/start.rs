//! From the broker's first message to a machine that is built and locked down, ready for its device processes and the
//! guest. Nothing untrusted is read here.

use super::control::{Control, ControlError};
use super::crew::{Crew, CrewError, Shared};
use super::devices::Devices;
use super::ending::Ending;
use super::serial::SerialProxy;
use super::virtio::mmio::{INTERRUPT_ACK, INTERRUPT_USED, QUEUE_NOTIFY};
use super::virtio::request::{Requester, Requests, Watch};
use super::virtio::vhost::{BackEnd, Events};
use super::virtio::view::View;
use super::{fds, kick};
use crate::arch::layout::{SERIAL_GSI, virtio_gsi, virtio_window};
use crate::arch::machine::{self, MachineError, Platform};
use crate::arch::vcpu::Vcpu;
use crate::memory::{self, MemoryError};
use kvm_ioctls::IoEventAddress;
use nix::errno::Errno;
use nix::libc::{EFD_CLOEXEC, EFD_NONBLOCK};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use policies::lockdown::{self, LockdownError};
use policies::seccomp::{Filter, SeccompError, install};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;
use wire::message::{FromVmm, StartVmm};
use wire::ring::RingError;
use wire::{Channel, ChannelError, CpuList};

/// The descriptors that come before those of the disks.
const FIXED_FDS: usize = 6;
/// The descriptors of each disk.
const DISK_FDS: usize = 3;

/// Why the vmm could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The broker did not say what to do.
    #[error("the first message did not come")]
    Channel(#[from] ChannelError),
    /// Guest memory is not to be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The ring to serial is not to be had.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The machine could not be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// An eventfd or a socket could not be made.
    #[error("an eventfd or a socket could not be made")]
    Descriptor(#[source] io::Error),
    /// The handler of the kick could not be installed.
    #[error("the signal for vCPU threads could not be prepared")]
    Signal(#[source] Errno),
    /// The process cannot be kept to the CPUs named.
    #[error("the vCPUs cannot be kept to the host CPUs of machine.cpus")]
    Cpus(#[source] Errno),
    /// The vCPU threads could not be started.
    #[error(transparent)]
    Crew(#[from] CrewError),
    /// The jail could not be finished.
    #[error(transparent)]
    Lockdown(#[from] LockdownError),
    /// The control thread's filter could not be installed.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

impl StartError {
    /// Whether the host or its KVM refused the machine, rather than a jail or a message failed.
    #[must_use]
    pub fn is_about_the_machine(&self) -> bool {
        matches!(self, Self::Machine(_) | Self::Memory(_) | Self::Cpus(_))
    }
}

impl From<StartError> for ControlError {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

/// A disk's descriptors.
struct Disk {
    socket: UnixStream,
    kick: EventFd,
    call: EventFd,
}

/// All descriptors of the process, in the order of [`StartVmm`].
struct Fds {
    kvm: OwnedFd,
    memory: OwnedFd,
    serial: OwnedFd,
    ring: OwnedFd,
    doorbell: EventFd,
    serial_irq: EventFd,
    disks: Vec<Disk>,
}

/// A machine that is built but not locked down.
#[derive(Debug)]
pub struct Prepared {
    audit: bool,
    vcpus: Vec<Vcpu>,
    shared: Shared,
    control: Parts,
}

/// What the control thread is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) wake: EventFd,
    pub(super) ending: Arc<Ending>,
    pub(super) devices: Arc<Devices>,
    pub(super) memory: GuestMemoryMmap,
    pub(super) disks: Vec<DiskParts>,
    pub(super) requests: Arc<Requests>,
    // Irqfds and ioeventfds live as long as their virtual machine.
    pub(super) _platform: Arc<Platform>,
}

/// What the control thread has of a disk.
#[derive(Debug)]
pub(super) struct DiskParts {
    pub(super) back_end: BackEnd,
    /// Watched for the end of the device process.
    pub(super) socket: UnixStream,
    /// Interrupts the guest.
    pub(super) call: EventFd,
    /// Says that the device has stopped because of an error.
    pub(super) error: EventFd,
    /// The vCPU threads' end, until it is plugged in.
    pub(super) requester: Option<Requester>,
    /// Where the guest reads its registers, until it is plugged in.
    pub(super) view: Option<View>,
}

/// Receives the first message and builds the machine.
///
/// # Errors
/// When the message is not the expected one, or the host refuses something.
pub fn prepare(channel: &Channel) -> Result<Prepared, ControlError> {
    Ok(build(channel)?)
}

fn build(control: &Channel) -> Result<Prepared, StartError> {
    let received = control.recv::<StartVmm>()?;
    let start = received.message;
    let fds = take(received.fds, start.disks.get().into())?;
    kick::install_handler().map_err(StartError::Signal)?;
    pin(&start.cpus)?;
    let memory = memory::map(fds.memory, start.memory)?;
    let (platform, vcpus) = machine::build(&fds::kvm(fds.kvm), &memory, &start)?;
    connect(&platform, &fds.serial_irq, &fds.disks)?;
    let wake = eventfd()?;
    let ending = Arc::new(Ending::new(clone(&wake)?));
    let devices = Arc::new(Devices::new(SerialProxy::new(fds.serial, fds.ring, fds.doorbell)?));
    let sockets: io::Result<Vec<_>> = fds.disks.iter().map(|disk| disk.socket.try_clone()).collect();
    let watch = Arc::new(Watch::new(sockets.map_err(StartError::Descriptor)?));
    let requests = Arc::new(Requests::default());
    let disks = (0..).zip(fds.disks).map(|(index, disk)| {
        let (asked, watch, ending) = (Arc::clone(&requests), Arc::clone(&watch), Arc::clone(&ending));
        let requester = Requester::new(index, asked, clone(&wake)?, Arc::clone(&watch), ending);
        disk_parts(index, disk, watch, &memory, requester)
    });
    let mut disks = disks.collect::<Result<Vec<_>, _>>()?;
    for (disk, index) in disks.iter_mut().zip(0..) {
        disk.view = platform.views().map(|views| views.of(index));
    }
    let shared = Shared::new(Arc::clone(&ending), Arc::clone(&devices), watch, start.debug);
    let control = Parts { wake, ending, devices, memory, disks, requests, _platform: platform };
    Ok(Prepared { audit: start.audit, vcpus, shared, control })
}

impl Prepared {
    /// Locks every thread down and tells the broker.
    ///
    /// # Errors
    /// When a step of the jail fails.
    pub fn lock_down(self, channel: &Channel) -> Result<Control, ControlError> {
        Ok(self.jail(channel)?)
    }

    fn jail(self, channel: &Channel) -> Result<Control, StartError> {
        #[cfg(feature = "hostile")]
        hostile::look();
        let mut jailed = lockdown::begin()?;
        let (crew, listeners) = Crew::start(self.vcpus, self.shared, self.audit)?;
        jailed.add_listener(install(Filter::VmmControl, self.audit)?);
        for listener in listeners {
            jailed.add_listener(Some(listener));
        }
        channel.send(&FromVmm::Ready(jailed.report), &jailed.fds())?;
        #[cfg(feature = "hostile")]
        hostile::enter(hostile::Seat::VmmControl);
        Ok(Control::new(self.control, crew))
    }
}

fn take(fds: Vec<OwnedFd>, disks: usize) -> Result<Fds, StartError> {
    let expected = disks.saturating_mul(DISK_FDS).saturating_add(FIXED_FDS);
    let got = fds.len();
    let wrong = || StartError::Channel(ChannelError::Fds { got, expected });
    if got != expected {
        return Err(wrong());
    }
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(wrong);
    let (kvm, memory, serial, ring) = (next()?, next()?, next()?, next()?);
    let (doorbell, serial_irq) = (fds::event(next()?), fds::event(next()?));
    let disks = (0..disks).map(|_| {
        let socket = UnixStream::from(next()?);
        Ok::<_, StartError>(Disk { socket, kick: fds::event(next()?), call: fds::event(next()?) })
    });
    let disks = disks.collect::<Result<Vec<_>, _>>()?;
    Ok(Fds { kvm, memory, serial, ring, doorbell, serial_irq, disks })
}

/// Wires eventfds to KVM: interrupts in, queue notifications out, and acknowledgements of used buffers to nobody.
fn connect(platform: &Platform, serial_irq: &EventFd, disks: &[Disk]) -> Result<(), StartError> {
    let vm = platform.vm();
    let irq = |event, gsi| {
        let registered = vm.register_irqfd(event, gsi);
        registered.map_err(|error| MachineError::Kvm("connect an interrupt", error))
    };
    // Each of 32 bits, and of one value: all others leave the guest as without.
    let register = |event, index, offset, value: u32| {
        let address = IoEventAddress::Mmio(virtio_window(index).saturating_add(offset));
        let registered = vm.register_ioevent(event, &address, value);
        registered.map_err(|error| MachineError::Kvm("connect a register of a disk", error))
    };
    irq(serial_irq, SERIAL_GSI)?;
    // KVM keeps it; nobody listens, and a counter that is full stays so.
    let nobody = eventfd()?;
    for (index, disk) in (0..).zip(disks) {
        irq(&disk.call, virtio_gsi(index))?;
        // The value is the queue's index (virtio 1.2 §4.2.2, QueueNotify).
        register(&disk.kick, index, QUEUE_NOTIFY, 0)?;
        register(&nobody, index, INTERRUPT_ACK, INTERRUPT_USED)?;
    }
    Ok(())
}

fn disk_parts(
    index: usize,
    disk: Disk,
    watch: Arc<Watch>,
    memory: &GuestMemoryMmap,
    requester: Requester,
) -> Result<DiskParts, StartError> {
    let error = eventfd()?;
    let events = Events { kick: disk.kick, call: clone(&disk.call)?, error: clone(&error)? };
    let socket = disk.socket.try_clone().map_err(StartError::Descriptor)?;
    let back_end = BackEnd::new(index, disk.socket, watch, memory.clone(), events);
    Ok(DiskParts { back_end, socket, call: disk.call, error, requester: Some(requester), view: None })
}

/// Keeps this process to some of the host's CPUs, so that KVM sets the vCPUs up on, and runs them on, cores of one kind.
/// The threads inherit it.
fn pin(cpus: &CpuList) -> Result<(), StartError> {
    if cpus.get().is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus.get() {
        set.set(cpu.into()).map_err(StartError::Cpus)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).map_err(StartError::Cpus)
}

fn eventfd() -> Result<EventFd, StartError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(StartError::Descriptor)
}

fn clone(event: &EventFd) -> Result<EventFd, StartError> {
    event.try_clone().map_err(StartError::Descriptor)
}
