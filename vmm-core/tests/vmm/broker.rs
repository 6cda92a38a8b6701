//! The broker's part: descriptors, the first message, and a guest of a few bytes in long mode.

use super::code::START;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::pwrite;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;
use wire::message::{Entry, FromVmm, GicVersion, MachineSeen, SerialRead, SerialValue, StartVmm, StopReason, ToVmm};
use wire::ring::{Consumer, RING_BYTES};
use wire::{Channel, CpuList, DiskCount, MemoryBytes, VcpuCount};

const MEMORY_BYTES: u64 = 4 << 20;

const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
/// Four page directories, one for each GiB.
const DIRECTORIES: u64 = 0xb000;
const GDT: u64 = 0x500;

/// Long enough for a busy machine; no test waits for it unless it fails.
pub(crate) fn deadline() -> Duration {
    Duration::from_secs(30)
}

/// A vmm with its guest, and what it is connected to.
pub(crate) struct Vm {
    pub(crate) control: Channel,
    pub(crate) serial_irq: EventFd,
    process: Child,
    serial: Channel,
    ring: Consumer,
    ring_file: OwnedFd,
    disk: Option<JoinHandle<super::disk::Served>>,
}

type Serve = fn(UnixStream, EventFd) -> super::disk::Served;

impl Vm {
    /// A vmm that is ready to run `code`, without disks.
    pub(crate) fn start(vcpus: u8, code: &[u8]) -> Self {
        Self::launch(vcpus, code, None)
    }

    /// The same with a disk, whose process is `serve`. The vmm is ready; the disk may not have been asked yet.
    pub(crate) fn with_disk(vcpus: u8, code: &[u8], serve: Serve) -> Self {
        Self::launch(vcpus, code, Some(serve))
    }

    fn launch(vcpus: u8, code: &[u8], serve: Option<Serve>) -> Self {
        // The jail does this for a real vmm; without it, only root can install a seccomp filter.
        nix::sys::prctl::set_no_new_privs().unwrap();
        let (control, child) = Channel::pair().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
            .stdin(Stdio::from(OwnedFd::from(child)))
            .spawn()
            .expect("the vmm starts");
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").expect("/dev/kvm can be opened");
        let memory = memory(code);
        let (serial, serial_of_vmm) = Channel::pair().unwrap();
        let ring = memfd(RING_BYTES as i64);
        let (doorbell, irq) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
        let mut fds = vec![kvm.into(), memory, serial_of_vmm.into(), ring.try_clone().unwrap()];
        fds.extend([owned(&doorbell), owned(&irq)]);
        let disk = serve.map(|serve| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
            fds.extend([theirs.into(), owned(&kick), owned(&call)]);
            std::thread::spawn(move || serve(ours, kick))
        });
        let start = StartVmm {
            audit: false,
            memory: MemoryBytes::try_from(MEMORY_BYTES).unwrap(),
            vcpus: VcpuCount::try_from(vcpus).unwrap(),
            disks: DiskCount::try_from(u8::from(disk.is_some())).unwrap(),
            cpus: CpuList::default(),
            debug: true,
            gic: GicVersion::V3,
        };
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        control.send(&start, &borrowed).unwrap();
        let ready = control.recv_timeout::<FromVmm>(deadline()).unwrap().without_fds().unwrap();
        assert!(matches!(ready, FromVmm::Ready(_)), "{ready:?}");
        let consumer = Consumer::map(ring.try_clone().unwrap()).unwrap();
        Self { control, serial_irq: irq, process, serial, ring: consumer, ring_file: ring, disk }
    }

    pub(crate) fn run(&self) {
        let entry = Entry::X86Long { entry: START, boot_params: 0x7000, page_table: PML4, gdt: GDT };
        self.control.send(&ToVmm::Run(entry), &[]).unwrap();
        let running = self.control.recv_timeout::<FromVmm>(deadline()).unwrap().without_fds().unwrap();
        assert!(matches!(running, FromVmm::Running), "{running:?}");
    }

    pub(crate) fn end(&self) -> StopReason {
        loop {
            match self.hear() {
                FromVmm::Registers { .. } | FromVmm::Seen(_) => {}
                FromVmm::Stopped(reason) => return reason,
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next message.
    pub(crate) fn hear(&self) -> FromVmm {
        self.control.recv_timeout::<FromVmm>(deadline()).unwrap().without_fds().unwrap()
    }

    /// The registers of the next vCPU, as one text.
    pub(crate) fn registers(&self) -> (u8, String) {
        let message = self.hear();
        let FromVmm::Registers { vcpu, lines } = message else { panic!("{message:?}") };
        (vcpu, lines.iter().map(|line| format!("{line}\n")).collect())
    }

    /// What was seen of the guest, which must come next.
    pub(crate) fn seen(&self) -> MachineSeen {
        let message = self.hear();
        let FromVmm::Seen(seen) = message else { panic!("{message:?}") };
        seen
    }

    pub(crate) fn run_to_the_end(&self) -> StopReason {
        self.run();
        self.end()
    }

    /// What the guest has written to the transmitter.
    pub(crate) fn output(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        while let Some(write) = self.ring.take().unwrap() {
            if write.offset == 0 {
                output.push(write.value);
            }
        }
        output
    }

    /// Waits for the guest's first byte, without taking it.
    pub(crate) fn wait_for_output(&self) {
        let end = Instant::now() + deadline();
        let mut onlooker = Consumer::map(self.ring_file.try_clone().unwrap()).unwrap();
        while onlooker.take().unwrap().is_none() {
            assert!(Instant::now() < end, "no output");
            std::thread::yield_now();
        }
    }

    pub(crate) fn answer_register_read(&self, offset: u8, value: u8) {
        let read = self.serial.recv_timeout::<SerialRead>(deadline()).unwrap().without_fds().unwrap();
        assert_eq!(read.offset, offset);
        self.serial.send(&SerialValue { value }, &[]).unwrap();
    }

    pub(crate) fn join_disk(&mut self) -> super::disk::Served {
        self.disk.take().unwrap().join().unwrap()
    }

    /// Closes the control channel and waits for the vmm.
    pub(crate) fn hang_up(mut self) -> ExitStatus {
        let (closed, _) = Channel::pair().unwrap();
        drop(std::mem::replace(&mut self.control, closed));
        self.process.wait().unwrap()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Already gone in most tests.
        self.process.kill().unwrap_or(());
        let status = self.process.wait().unwrap();
        if !std::thread::panicking() {
            use std::os::unix::process::ExitStatusExt;
            assert_ne!(status.signal(), Some(nix::libc::SIGSYS), "the vmm broke its seccomp policy");
        }
    }
}

/// Guest memory with identity-mapped page tables for 4 GiB, a descriptor table, and `code`.
fn memory(code: &[u8]) -> OwnedFd {
    let memory = memfd(MEMORY_BYTES as i64);
    let put = |at: u64, values: &[u64]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(pwrite(&memory, &bytes, at as i64).unwrap(), bytes.len());
    };
    // Present, writable.
    put(PML4, &[PDPT | 3]);
    let directories: Vec<u64> = (0..4).map(|gib| (DIRECTORIES + gib * 0x1000) | 3).collect();
    put(PDPT, &directories);
    // Present, writable, 2 MiB each.
    let pages: Vec<u64> = (0..4 * 512).map(|page| (page << 21) | 0x83).collect();
    put(DIRECTORIES, &pages);
    put(GDT, &[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    assert_eq!(pwrite(&memory, code, START as i64).unwrap(), code.len());
    memory
}

fn memfd(bytes: i64) -> OwnedFd {
    let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, bytes).unwrap();
    fd
}

fn owned(event: &EventFd) -> OwnedFd {
    vmm_core::vmm::fds::borrow(event).try_clone_to_owned().unwrap()
}
