//! `broker doctor`: whether this host can run Bulkhead; a sentence for each thing that is needed.

use crate::cli::{Cli, DoctorArgs};
use crate::host::{self, Finding, Verdict, finding};
use crate::process::{Role, Spawner};
use crate::timings::Timings;
use kvm_ioctls::{Cap, Kvm};
use policies::Process;
use policies::spawn::Limits;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use wire::MemoryBytes;
use wire::message::{FromSerial, StartSerial};

/// `broker doctor`.
pub(crate) fn main(cli: &Cli, args: &DoctorArgs) -> ExitCode {
    let mut findings = vec![kvm(), linux_guests(), jail(cli)];
    findings.extend(host::features());
    findings.push(huge_pages());
    host::tell(&findings, args.json)
}

fn kvm() -> Finding {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let errno = nix::errno::Errno::from_raw(error.errno());
            let error = crate::launch::LaunchError::Kvm(errno);
            return finding("kvm", Verdict::Bad, format!("{error}."));
        }
    };
    if kvm.get_api_version() != 12 {
        let text = format!("/dev/kvm speaks API version {}, not 12.", kvm.get_api_version());
        return finding("kvm", Verdict::Bad, text);
    }
    let needed = [
        (Cap::UserMemory, "user memory"),
        (Cap::Irqfd, "irqfd"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::ImmediateExit, "immediate exit"),
    ];
    let missing: Vec<_> = needed.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        return finding("kvm", Verdict::Bad, format!("/dev/kvm lacks {}.", missing.join(", ")));
    }
    let text = format!("/dev/kvm can be used and offers up to {} vCPUs.", kvm.get_max_vcpus());
    finding("kvm", Verdict::Good, text)
}

fn linux_guests() -> Finding {
    let module = |name: &str| Path::new("/sys/module").join(name).exists();
    if module("kvm_pvm") && !module("kvm_intel") && !module("kvm_amd") {
        let text = "this KVM is PVM (module kvm_pvm), without hardware virtualization: stock Linux guests do not boot on it, \
                    only small bare-metal guests run.";
        return finding("linux guests", Verdict::Bad, text);
    }
    if !Path::new("/dev/kvm").exists() {
        return finding("linux guests", Verdict::Bad, "there is no /dev/kvm, so no guest can run.");
    }
    finding("linux guests", Verdict::Good, "this KVM uses hardware virtualization, so stock Linux guests can boot.")
}

/// Builds a real jail around a real process, and looks at it.
fn jail(cli: &Cli) -> Finding {
    match build_jail(cli) {
        Ok(()) => finding("jail", Verdict::Good, "a process was jailed, and the jail is tight."),
        Err(error) => finding("jail", Verdict::Bad, format!("{error:#}.")),
    }
}

fn build_jail(cli: &Cli) -> anyhow::Result<()> {
    let memory = MemoryBytes::try_from(MemoryBytes::GRANULE)?;
    let ring = crate::memory::posted_write_ring()?;
    let event = || nix::sys::eventfd::EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_CLOEXEC);
    let (doorbell, irq) = (event()?, event()?);
    let (ours, theirs) = wire::Channel::pair()?;
    let start = StartSerial {
        audit: false,
        has_input: false,
        escapes: false,
        outputs: Vec::new(),
        limit_bytes: None,
        has_recording: false,
    };
    let fds = [theirs.as_fd(), ring.as_fd(), doorbell.as_fd(), irq.as_fd()];
    let limits = Limits::for_process(Process::Serial, memory, Some(0));
    let serial = Spawner::new(cli.bin_dir.as_deref(), Timings::default()).start(Role::Serial, limits, &start, &fds)?;
    drop(ours);
    let control = serial.control.as_ref().ok_or_else(|| anyhow::anyhow!("no control channel"))?;
    let ready = match control.recv_timeout::<FromSerial>(std::time::Duration::from_secs(10)) {
        Ok(received) => received.message,
        Err(error) => match serial.child.setup_error() {
            Some(setup) => return Err(setup.into()),
            None => return Err(error.into()),
        },
    };
    match ready {
        FromSerial::Ready(_) => Ok(policies::inspect::verify(
            serial.child.pid,
            Process::Serial,
            serial.child.ids,
            serial.child.net,
            &serial.given,
        )?),
        FromSerial::Failed(why) => anyhow::bail!("the process could not lock itself in: {why}"),
        _ => anyhow::bail!("the process did not say that it is ready"),
    }
}

fn huge_pages() -> Finding {
    let free = |kib: u32| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    let text = match (free(2048), free(1 << 20)) {
        (None, None) => return finding("huge pages", Verdict::Weaker, "this kernel has no huge pages."),
        (two, one) => format!(
            "{} pages of 2 MiB and {} of 1 GiB are free for machine.huge_pages.",
            two.unwrap_or(0),
            one.unwrap_or(0)
        ),
    };
    finding("huge pages", Verdict::Good, text)
}
