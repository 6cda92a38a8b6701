//! A process in a real jail, seen from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use policies::Process;
use policies::audit::Listener;
use policies::inspect::{Given, JailViolation, verify};
use policies::spawn::{Child, EmptyNet, Ids, Limits, SpawnError, SpawnRequest, Step, spawn};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use wire::message::{DiskEngine, DiskMode, FromBlock, StartBlock};
use wire::{Channel, DiskId, MemoryBytes, SectorCount};

const DEADLINE: Duration = Duration::from_secs(20);

struct Jail {
    child: Child,
    control: Channel,
    given: Given,
    log: OwnedFd,
}

impl Drop for Jail {
    fn drop(&mut self) {
        self.child.kill().ok();
        waitpid(self.child.pid, None).ok();
    }
}

fn probe() -> File {
    // target/<triple>/<profile>/deps/jail-… → target/<triple>/<profile>/examples/jail_probe
    let folder = std::env::current_exe().unwrap();
    let folder = folder.ancestors().nth(2).unwrap();
    File::open(folder.join("examples/jail_probe")).expect("cargo builds the example before the test")
}

fn start(what: &str, audit: bool, binary: &File) -> Result<Jail, SpawnError> {
    start_in(None, what, audit, binary)
}

fn start_in(net: Option<&EmptyNet>, what: &str, audit: bool, binary: &File) -> Result<Jail, SpawnError> {
    let (control, childs) = Channel::pair().unwrap();
    let (log, childs_log) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    let memory = MemoryBytes::try_from(2 << 20).unwrap();
    let mut given = Given::of(&[childs.as_fd(), childs_log.as_fd(), childs_log.as_fd()]).unwrap();
    let child = spawn(&SpawnRequest {
        process: Process::VirtioBlk,
        binary: binary.as_fd(),
        control: childs.as_fd(),
        log: childs_log.as_fd(),
        limits: Limits::for_process(Process::VirtioBlk, memory, Some(0)),
        cgroup: None,
        net,
    })?;
    let start = StartBlock {
        audit,
        mode: DiskMode::ReadOnly,
        engine: DiskEngine::Sync,
        capacity: SectorCount::try_from(1).unwrap(),
        id: DiskId::try_from(what.to_owned()).unwrap(),
        write_limit_bytes: None,
    };
    let disk = File::open("/dev/null").unwrap();
    given.add(disk.as_fd()).unwrap();
    // A child that cannot even be executed has closed its end.
    control.send(&start, &[disk.as_fd()]).ok();
    Ok(Jail { child, control, given, log })
}

fn await_ready(jail: &Jail) -> Vec<OwnedFd> {
    let ready = jail.control.recv_timeout::<FromBlock>(DEADLINE).unwrap_or_else(|error| {
        let mut log = [0; 4096];
        let length = nix::unistd::read(&jail.log, &mut log).unwrap_or(0);
        panic!("{error}: {:?}: {}", jail.child.setup_error(), String::from_utf8_lossy(&log[..length]))
    });
    assert!(matches!(ready.message, FromBlock::Ready(_)), "{:?}", ready.message);
    ready.fds
}

#[test]
fn locked_down_process_passes_the_inspection() {
    let jail = start("", false, &probe()).unwrap();
    await_ready(&jail);
    verify(jail.child.pid, Process::VirtioBlk, jail.child.ids, jail.child.net, &jail.given).unwrap();
}

#[test]
fn processes_that_live_at_once_have_different_ids() {
    let jails: Vec<_> = (0..4).map(|_| start("", false, &probe()).unwrap()).collect();
    jails.iter().for_each(|jail| drop(await_ready(jail)));
    let ids: std::collections::BTreeSet<_> = jails.iter().map(|jail| jail.child.ids.uid()).collect();
    let expected = if jails[0].child.ids.privileged() { jails.len() } else { 1 };
    assert_eq!(ids.len(), expected, "{ids:?}");
}

#[test]
fn processes_in_the_empty_network_namespace_of_the_broker_pass_the_inspection() {
    let Some(net) = EmptyNet::enter().unwrap() else {
        eprintln!("skipped: only root may make a network namespace without another user namespace");
        return;
    };
    let jails: Vec<_> = (0..2).map(|_| start_in(Some(&net), "", false, &probe()).unwrap()).collect();
    let number = net.number();
    drop(net);
    for jail in &jails {
        await_ready(jail);
        assert_eq!(jail.child.net, Some(number));
        verify(jail.child.pid, Process::VirtioBlk, jail.child.ids, jail.child.net, &jail.given).unwrap();
        let elsewhere = verify(jail.child.pid, Process::VirtioBlk, jail.child.ids, Some(number + 1), &jail.given);
        assert!(matches!(elsewhere, Err(JailViolation::Net { .. })), "{elsewhere:?}");
    }
}

#[test]
fn process_that_stayed_in_the_network_namespace_of_the_broker_fails_the_inspection() {
    let Some(net) = EmptyNet::enter().unwrap() else {
        eprintln!("skipped: only root may make a network namespace without another user namespace");
        return;
    };
    let jail = start_in(Some(&net), "", false, &probe()).unwrap();
    await_ready(&jail);
    // The broker has not gone back yet.
    let violation = verify(jail.child.pid, Process::VirtioBlk, jail.child.ids, jail.child.net, &jail.given);
    assert!(matches!(violation, Err(JailViolation::Namespace { namespace: "net", .. })), "{violation:?}");
}

#[test]
fn process_without_seccomp_fails_the_inspection() {
    let jail = start("no-lockdown", false, &probe()).unwrap();
    let message = jail.control.recv_timeout::<FromBlock>(DEADLINE).unwrap().message;
    assert!(matches!(message, FromBlock::Finished));
    let violation =
        verify(jail.child.pid, Process::VirtioBlk, jail.child.ids, jail.child.net, &jail.given).unwrap_err();
    assert!(matches!(violation, JailViolation::Status { key: "Seccomp", .. }), "{violation}");
}

#[test]
fn process_with_a_stray_descriptor_fails_the_inspection() {
    let jail = start("extra-fd", false, &probe()).unwrap();
    await_ready(&jail);
    let violation =
        verify(jail.child.pid, Process::VirtioBlk, jail.child.ids, jail.child.net, &jail.given).unwrap_err();
    assert!(matches!(&violation, JailViolation::Descriptor { target, .. } if target.contains("extra")), "{violation}");
}

#[test]
fn the_broker_itself_fails_the_inspection() {
    let violation =
        verify(nix::unistd::Pid::this(), Process::VirtioBlk, Ids::of_broker(), None, &Given::default()).unwrap_err();
    assert!(matches!(violation, JailViolation::Status { .. }), "{violation}");
}

#[test]
fn missing_syscall_kills() {
    let jail = start("violate", false, &probe()).unwrap();
    await_ready(&jail);
    let status = waitpid(jail.child.pid, None).unwrap();
    assert!(matches!(status, WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGSYS, _)), "{status:?}");
}

#[test]
fn process_that_its_filter_killed_is_said_to_be_dying() {
    let jail = start("violate", false, &probe()).unwrap();
    await_ready(&jail);
    // It stays to be looked at until somebody waits for it.
    waitid(Id::Pid(jail.child.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
    let violation =
        verify(jail.child.pid, Process::VirtioBlk, jail.child.ids, jail.child.net, &jail.given).unwrap_err();
    assert!(matches!(violation, JailViolation::Dying { .. }), "{violation}");
}

#[test]
fn missing_syscall_is_named_and_passes_when_auditing() {
    let jail = start("violate", true, &probe()).unwrap();
    let [listener] = <[OwnedFd; 1]>::try_from(await_ready(&jail)).unwrap();
    let missed = Listener::new(listener).next().unwrap().expect("the caller waits");
    assert_eq!(missed.syscall, "getppid");
    let message = jail.control.recv_timeout::<FromBlock>(DEADLINE).unwrap().message;
    assert!(matches!(message, FromBlock::Finished));
}

#[test]
fn binary_that_is_none_is_told_by_its_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no-binary");
    std::fs::write(&path, "nothing").unwrap();
    let jail = start("", false, &File::open(&path).unwrap()).unwrap();
    assert!(jail.control.recv_timeout::<FromBlock>(DEADLINE).is_err());
    let error = jail.child.setup_error().expect("the child has told why");
    assert!(matches!(error, SpawnError::Child { step: Step::Exec, source: nix::errno::Errno::EACCES, .. }), "{error}");
}
