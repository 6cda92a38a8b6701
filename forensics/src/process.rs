//! The life of the inspector process, from its first message to its last.
//!
//! It distrusts every byte of what it looks at. Before its jail is shut it learns sizes and nothing else; afterwards it can
//! read at offsets, tell the broker facts and findings, and end.

use crate::explain::{self, HostEvidence};
use crate::inspect::{self, Architecture, Guest};
use crate::{Report, Source};
use policies::lockdown::{self, INSPECTOR_HEAP_BYTES, LockdownError};
use policies::seccomp::Filter;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use wire::message::{
    DiskSeen, FromInspector, HostSeen, InspectedGuest, InspectorTask, LogForm, MachineSeen, StartInspector, ToInspector,
};
use wire::report::Fact;
use wire::{Channel, ChannelError, Received, Text, recording};

/// The most bytes of a log that are read: as many as the broker ever hands on, with the line for what it left out.
const LOG_BYTES: u64 = (16 << 20) + 4096;

/// The finding that an image is a kernel. Where nothing else is to boot it, it is looked at as one.
const IMAGE_IS_A_KERNEL: &str = "image-is-a-kernel";

/// Why the inspector could not do its work; the host or the broker is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The control channel failed.
    #[error("the inspector's control channel failed")]
    Channel(#[from] ChannelError),
    /// The size of a file is not to be had.
    #[error("the size of what is to be looked at cannot be found")]
    Size(#[source] io::Error),
    /// The log cannot be read.
    #[error("the log cannot be read")]
    Log(#[source] io::Error),
    /// The jail could not be finished.
    #[error(transparent)]
    Lockdown(#[from] LockdownError),
}

/// A file of known size that is read at offsets.
#[derive(Debug)]
struct Image {
    file: File,
    bytes: u64,
}

impl Image {
    fn new(fd: OwnedFd) -> Result<Self, ProcessError> {
        let mut file = File::from(fd);
        let bytes = file.seek(SeekFrom::End(0)).map_err(ProcessError::Size)?;
        Ok(Self { file, bytes })
    }
}

impl Source for Image {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        // Offsets come out of headers, and the kernel refuses those beyond 63 bits instead of finding nothing there.
        if offset >= self.bytes {
            return Ok(0);
        }
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(bytes) => done = done.saturating_add(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

/// What is to be done, with what for.
#[derive(Debug)]
enum Work {
    Inspect { guest: Guest, image: Option<Image>, kernel: Option<Image>, may_be_kernel: bool },
    Explain { architecture: Option<Architecture>, form: LogForm, log: Image },
}

/// Looks at what the broker says, and tells it. The result says whether that worked.
#[must_use]
pub fn run(channel: &Channel) -> bool {
    match inspect(channel) {
        Ok(()) => true,
        Err(error) => {
            // Without a broker there is nobody to tell.
            channel.send(&FromInspector::Failed(Text::truncated(chain(&error))), &[]).unwrap_or(());
            false
        }
    }
}

fn inspect(channel: &Channel) -> Result<(), ProcessError> {
    let (audit, work) = start(channel.recv()?)?;
    // The standard library asks the kernel for the keys of its hash tables once; now it may.
    std::hint::black_box(RandomState::new().hash_one(0));
    #[cfg(feature = "hostile")]
    hostile::look();
    let jailed = lockdown::enter_with_heap(Filter::Inspector, audit, INSPECTOR_HEAP_BYTES)?;
    channel.send(&FromInspector::Ready(jailed.report), &jailed.fds())?;
    drop(jailed);
    // No byte of anything is read before the broker has looked at the jail from outside.
    let ToInspector::Begin(seen) = channel.recv().and_then(Received::without_fds)?;
    #[cfg(feature = "hostile")]
    hostile::enter(hostile::Seat::Inspector);
    tell(channel, work.done(seen)?)
}

fn start(received: Received<StartInspector>) -> Result<(bool, Work), ProcessError> {
    let audit = received.message.audit;
    let got = received.fds.len();
    let mut fds = received.fds.into_iter();
    let (work, expected) = match received.message.task {
        InspectorTask::Inspect { guest, has_image, has_kernel, may_be_kernel } => {
            let image = fds.next_if(has_image).map(Image::new).transpose()?;
            let kernel = fds.next_if(has_kernel).map(Image::new).transpose()?;
            let expected = usize::from(has_image).saturating_add(usize::from(has_kernel));
            (Work::Inspect { guest: guest_of(guest), image, kernel, may_be_kernel }, expected)
        }
        InspectorTask::Explain { architecture, form } => {
            let log = fds.next().ok_or(ChannelError::Fds { got, expected: 1 })?;
            (Work::Explain { architecture: architecture.map(Into::into), form, log: Image::new(log)? }, 1)
        }
    };
    if got == expected { Ok((audit, work)) } else { Err(ChannelError::Fds { got, expected }.into()) }
}

trait NextIf: Iterator {
    /// The next one, if there is to be one.
    fn next_if(&mut self, wanted: bool) -> Option<Self::Item> {
        if wanted { self.next() } else { None }
    }
}

impl<I: Iterator> NextIf for I {}

impl From<wire::message::Architecture> for Architecture {
    fn from(architecture: wire::message::Architecture) -> Self {
        match architecture {
            wire::message::Architecture::X86_64 => Self::X86_64,
            wire::message::Architecture::Aarch64 => Self::Aarch64,
        }
    }
}

fn guest_of(guest: InspectedGuest) -> Guest {
    Guest {
        architecture: guest.architecture.into(),
        cmdline: guest.cmdline.into(),
        memory_bytes: guest.memory.map(wire::MemoryBytes::get),
    }
}

impl Work {
    fn done(&self, seen: HostSeen) -> Result<Report, ProcessError> {
        match self {
            Self::Inspect { guest, image, kernel, may_be_kernel } => {
                let mut report = image.as_ref().map(|image| inspect::image(image, guest)).unwrap_or_default();
                if let Some(image) = image.as_ref().filter(|_| *may_be_kernel && is_kernel(&report)) {
                    report = inspect::kernel(image, guest);
                }
                let of_kernel = kernel.as_ref().map(|kernel| inspect::kernel(kernel, guest)).unwrap_or_default();
                let named = |fact| if image.is_some() { of_the_kernel(fact) } else { fact };
                report.facts.extend(of_kernel.facts.into_iter().map(named));
                report.findings.extend(of_kernel.findings);
                Ok(report)
            }
            Self::Explain { architecture, form, log } => {
                let text = read_log(log, *form).map_err(ProcessError::Log)?;
                Ok(explain::console(&text, &evidence_of(seen, *architecture)))
            }
        }
    }
}

/// Whether what was given as an image is a kernel.
fn is_kernel(report: &Report) -> bool {
    report.findings.iter().any(|finding| finding.id.as_str() == IMAGE_IS_A_KERNEL)
}

/// What the host saw, as the explanation takes it.
fn evidence_of(seen: HostSeen, architecture: Option<Architecture>) -> HostEvidence {
    let HostSeen { reason, console_bytes, machine } = seen;
    let exits = machine
        .as_ref()
        .map(|machine| machine.vcpus.iter().map(|vcpu| vcpu.exits.total()).fold(0, u64::saturating_add));
    let MachineSeen { vcpus, disks } = machine.unwrap_or_default();
    let started = vcpus.iter().filter(|vcpu| vcpu.started);
    HostEvidence {
        reason: reason.map(Into::into),
        architecture,
        console_bytes,
        disks_ready: disks.iter().map(DiskSeen::was_driven).collect(),
        exits,
        program_counters: started.flat_map(|vcpu| [vcpu.earlier_counter, vcpu.program_counter]).flatten().collect(),
    }
}

/// A fact of the kernel among those of an image.
fn of_the_kernel(fact: Fact) -> Fact {
    let of = if fact.of.is_empty() { "kernel".to_owned() } else { format!("kernel, {}", String::from(fact.of)) };
    Fact { of: Text::truncated(of), ..fact }
}

fn read_log(log: &Image, form: LogForm) -> io::Result<Vec<u8>> {
    let read = |offset, buffer: &mut [u8]| match log.read_at(offset, buffer)? {
        bytes if bytes == buffer.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    };
    match form {
        LogForm::Recording => recording::text(read),
        LogForm::Plain => {
            let mut text = vec![0; usize::try_from(log.bytes.min(LOG_BYTES)).unwrap_or(0)];
            read(0, &mut text)?;
            Ok(text)
        }
    }
}

/// Tells the broker all of it, but no more than it will listen to.
fn tell(channel: &Channel, report: Report) -> Result<(), ProcessError> {
    for fact in report.facts.into_iter().take(Report::MAX_FACTS) {
        channel.send(&FromInspector::Fact(fact), &[])?;
    }
    for finding in report.findings.into_iter().take(Report::MAX_FINDINGS) {
        channel.send(&FromInspector::Finding(finding), &[])?;
    }
    Ok(channel.send(&FromInspector::Finished, &[])?)
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use wire::message::{Exits, VcpuSeen};

    fn started(task: InspectorTask, files: usize) -> Result<(bool, Work), ProcessError> {
        let file = File::open("Cargo.toml").unwrap();
        let fds = (0..files).map(|_| file.as_fd().try_clone_to_owned().unwrap()).collect();
        start(Received { message: StartInspector { audit: false, task }, fds })
    }

    fn guest() -> InspectedGuest {
        let architecture = wire::message::Architecture::Aarch64;
        InspectedGuest { architecture, cmdline: "root=/dev/vda".to_owned().try_into().unwrap(), memory: None }
    }

    #[test]
    fn descriptors_that_do_not_go_with_the_task_are_refused() {
        let both = InspectorTask::Inspect { guest: guest(), has_image: true, has_kernel: true, may_be_kernel: false };
        let log = InspectorTask::Explain { architecture: None, form: LogForm::Plain };
        for (task, files) in [(both.clone(), 1), (both.clone(), 3), (log.clone(), 0), (log.clone(), 2)] {
            assert!(matches!(started(task, files), Err(ProcessError::Channel(ChannelError::Fds { .. }))), "{files}");
        }
        assert!(started(both, 2).is_ok() && started(log, 1).is_ok());
    }

    #[test]
    fn kernel_alone_is_no_image() {
        let task = InspectorTask::Inspect { guest: guest(), has_image: false, has_kernel: true, may_be_kernel: false };
        let (_, work) = started(task, 1).unwrap();
        assert!(matches!(work, Work::Inspect { image: None, kernel: Some(_), .. }), "{work:?}");
    }

    #[test]
    fn what_the_host_saw_is_summed_up_over_the_vcpus_that_ran() {
        let vcpu = |vcpu, started, port_writes| VcpuSeen {
            vcpu,
            started,
            exits: Exits { port_writes, mmio_reads: 1, ..Exits::default() },
            earlier_counter: (vcpu > 0).then_some(9),
            program_counter: Some(u64::from(vcpu)),
        };
        let disks = vec![DiskSeen { status: 15, refusals: 0 }, DiskSeen { status: 11, refusals: 9 }];
        let machine = MachineSeen { vcpus: vec![vcpu(0, true, 5), vcpu(1, false, 0), vcpu(2, true, 2)], disks };
        let seen = HostSeen { reason: None, console_bytes: Some(7), machine: Some(machine) };
        let evidence = evidence_of(seen, Some(Architecture::X86_64));
        assert_eq!((evidence.exits, evidence.console_bytes), (Some(10), Some(7)));
        assert_eq!((evidence.disks_ready, evidence.program_counters), (vec![true, false], vec![0, 9, 2]));
        assert_eq!(evidence_of(HostSeen::default(), None), HostEvidence::default());
    }

    #[test]
    fn file_is_read_at_offsets_up_to_its_end() {
        let image = Image::new(File::open("Cargo.toml").unwrap().into()).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(image.read_at(0, &mut buffer).unwrap(), 16);
        assert!(buffer.starts_with(b"[package]"));
        assert_eq!(image.read_at(image.len() - 3, &mut buffer).unwrap(), 3);
        assert_eq!(image.read_at(u64::MAX, &mut buffer).unwrap(), 0);
    }
}
