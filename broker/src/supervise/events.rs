//! What the supervisor makes of what a child says, and of what a child's filter missed.

use super::{Phase, Supervisor, TURN};
use crate::ends::{Cause, Limit};
use crate::messages::Event;
use crate::process::Role;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use policies::audit::Listener;
use policies::inspect::{self, JailViolation};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use wire::Text;
use wire::clock::now_ns;
use wire::message::{BootFile, Lockdown, StopReason, ToVmm};

/// Warnings of one child that are shown.
const WARNINGS: u32 = 10;
/// Warnings of one child that it may send: as many as a virtio-blk process sends in its life.
const WARNINGS_MAX: u32 = 16;
/// Words for a halted system that may come sooner than [`HALT_INTERVAL`]: a broker that was stopped finds many at once.
const HURRIED_MAX: u32 = 10_000;
/// The least time between two looks whether the guest has halted; shorter than the interval at which serial tells.
const HALT_INTERVAL: Duration = Duration::from_millis(90);
/// Missed syscalls that are told apart.
const MISSED: usize = 1000;

impl Supervisor {
    pub(super) fn on_event(&mut self, index: usize, event: Event, now: Instant) {
        // Without a vmm, the front end is somebody else's, and may have begun at any time.
        let alone = !self.processes.iter().any(|process| process.role == Role::Vmm);
        let Some(process) = self.processes.get_mut(index) else { return };
        let name = process.name.clone();
        let (ready, running) = (process.lockdown.is_some(), matches!(self.phase, Phase::Running | Phase::Ending));
        if let (Phase::Ending, false, Event::Ready(lockdown, _)) = (self.phase, ready, &event) {
            // Said before it was killed. It is not looked at any more, and what it says next is no fault of its own.
            process.lockdown = Some(*lockdown);
            return;
        }
        if !ready && !matches!(event, Event::Ready(..) | Event::Failed(_) | Event::NotBuilt(_)) {
            let why = format!("it broke the protocol: {} came before it was in its jail", kind(&event));
            self.fault(index, why).into_iter().for_each(|cause| self.cause(cause));
            return;
        }
        match event {
            Event::Ready(lockdown, listeners) if !ready => self.on_ready(index, lockdown, listeners, now),
            Event::Failed(why) => {
                process.said_why = true;
                self.on_failed(index, &why);
            }
            Event::NotBuilt(why) if !ready => {
                process.said_why = true;
                self.cause(Cause::Kvm(why));
            }
            Event::Refused(file, why) => {
                process.said_why = true;
                let (kernel, initrd) = &self.boot_files;
                let path = match file {
                    BootFile::Kernel => kernel,
                    BootFile::Initrd => initrd,
                };
                let path = path.clone();
                self.cause(Cause::Refused { file, path, why });
            }
            Event::Loaded(entry) if self.entry.is_none() => {
                self.timings.until_now(&name, "load the boot files", self.told_ns);
                self.entry = Some(entry);
            }
            Event::Running if running && !self.said_running => {
                self.timings.until_now(&name, "start the vCPUs", self.told_ns);
                self.said_running = true;
                // There is nothing left to do but to wait, for which little of the program is needed.
                policies::code::give_back();
                self.deadline = None;
            }
            Event::Registers(vcpu, lines) if running && self.dumps.keep(vcpu, lines.clone()) => {}
            Event::Seen(seen) if self.inspectors.saw(seen.clone()) => self.dumps.answered(),
            // Before the guest runs, a vmm can find a device broken.
            Event::Stopped(reason)
                if !self.stopped && (running || matches!(reason, StopReason::DeviceFailed { .. })) =>
            {
                self.stopped = true;
                self.stopped_ns = now_ns();
                self.timings.note(&name, "run the guest", self.told_ns, self.stopped_ns);
                self.deadline = None;
                // A device that is gone is told by the kernel as well, and there with its reason.
                tracing::info!(?reason, "the vmm has stopped");
                match reason {
                    StopReason::DeviceFailed { .. } => {
                        // It says more than what was suspected so far.
                        self.suspicion = None;
                        self.suspect(Cause::Stopped(reason), now);
                    }
                    _ => self.cause(Cause::Stopped(reason)),
                }
            }
            Event::FirstByte(at_ns) if running && self.console.first_byte_ns.is_none() => {
                self.timings.note(&name, "first byte of the guest", at_ns, at_ns);
                self.console.first_byte_ns = Some(at_ns);
            }
            Event::Panic(line) if running && self.evidence.panic.is_none() => self.evidence.panic = Some(line),
            Event::Halted if running && self.hurried <= HURRIED_MAX => self.ask_whether_halted(now),
            Event::Leave => self.cause(Cause::UserQuit),
            Event::LimitReached if running => self.on_limit(index),
            Event::ConsoleFinished { received_bytes, dropped_bytes } if self.phase == Phase::Ending => {
                process.finished = true;
                self.console.received_bytes = received_bytes;
                self.console.is_counted = true;
                self.console.dropped_bytes = dropped_bytes;
            }
            Event::BlockFinished => {
                process.finished = true;
                // Its front end is the vmm, of whose end we hear in a moment; or it runs alone.
                self.suspect(Cause::Failed { name, why: "it ended its service".to_owned() }, now);
                if alone {
                    self.cause(Cause::Finished);
                }
            }
            Event::Broken(why) if (running || alone) && process.warnings < WARNINGS_MAX => {
                process.warnings = process.warnings.saturating_add(1);
                if process.warnings <= WARNINGS {
                    tracing::warn!(process = name, "the guest broke the virtio protocol, the device stopped: {why}");
                }
            }
            other => {
                // Nothing more of it is of interest, and it may go on for ever.
                process.control = None;
                process.kill();
                let why = format!("it broke the protocol: {} came at the wrong time", kind(&other));
                self.cause(Cause::Failed { name, why });
            }
        }
    }

    /// A child says that it is in its jail: look from outside.
    fn on_ready(&mut self, index: usize, lockdown: Lockdown, listeners: Vec<OwnedFd>, now: Instant) {
        let Some(process) = self.processes.get_mut(index) else { return };
        let (name, pid) = (process.name.clone(), process.child.pid);
        if !self.audit && !listeners.is_empty() {
            let why = "it asks to be audited, which nobody wants".to_owned();
            self.cause(Cause::Jail { name, why });
            return;
        }
        process.listeners = listeners.into_iter().map(Listener::new).collect();
        if let Err(violation) = process.verify(lockdown) {
            let ending = matches!(violation, JailViolation::Unreadable { .. } | JailViolation::Dying { .. });
            let cause = Cause::Jail { name, why: format!("{:#}", anyhow::Error::from(violation)) };
            // A process that is ending cannot be looked at; why it ends is known in a moment.
            if ending {
                self.suspect(cause, now)
            } else {
                self.cause(cause)
            }
            return;
        }
        if let Err(why) = self.check_confinement(pid) {
            // A process that is ending is in no cgroup any more either.
            self.suspect(Cause::Jail { name, why: why.to_owned() }, now);
            return;
        }
        let Some(process) = self.processes.get_mut(index) else { return };
        process.checked = true;
        let landlock = match lockdown.landlock_abi {
            0 => "none (this kernel has no Landlock)".to_owned(),
            abi => format!("ABI {abi}"),
        };
        tracing::info!(
            process = name,
            pid = pid.as_raw(),
            host_ids = %process.child.ids,
            namespaces = inspect::NAMESPACES.join(","),
            seccomp = if process.listeners.is_empty() { "kill" } else { "audit" },
            landlock,
            mdwe = lockdown.mdwe,
            "jail built and checked"
        );
    }

    /// A process says that the guest wants more than it may have. Nobody can say so of a limit that there is not.
    fn on_limit(&mut self, index: usize) {
        let Some(process) = self.processes.get(index) else { return };
        let limit = match process.role {
            Role::Serial => self.limits.console_bytes.map(Limit::Console),
            Role::Block(_) => self.limits.disk_write_bytes.map(Limit::DiskWrites),
            Role::Loader | Role::Vmm | Role::Inspector => None,
        };
        let unasked = || Cause::Failed {
            name: process.name.clone(),
            why: "it broke the protocol: it told of a limit that there is not".to_owned(),
        };
        let cause = limit.map_or_else(unasked, Cause::Limit);
        // What the guest does while it is ended tells nothing new.
        if self.phase == Phase::Running || matches!(cause, Cause::Failed { .. }) {
            self.cause(cause);
        }
    }

    /// What of a process that is ready is seen in its cgroup and its core scheduling.
    fn check_confinement(&self, pid: Pid) -> Result<(), &'static str> {
        if self.confinement.cgroup().is_some_and(|cgroup| !cgroup.holds(pid)) {
            return Err("it is not in the machine's cgroup");
        }
        match self.cookie {
            Some(cookie) if !cookie.is_of(pid) => Err("it has not the core scheduling cookie of the machine"),
            _ => Ok(()),
        }
    }

    fn on_failed(&mut self, index: usize, why: &Text) {
        let Some(process) = self.processes.get(index) else { return };
        let name = process.name.clone();
        // With the word that the guest runs, the last deadline went.
        let runs = self.phase == Phase::Running && self.deadline.is_none();
        let cause = match (process.role, process.lockdown.is_some()) {
            (_, false) => Cause::Jail { name, why: why.to_string() },
            (Role::Vmm, true) if !runs => Cause::Kvm(why.clone()),
            (Role::Loader, true) => Cause::Host(format!("the boot files could not be loaded: {why}")),
            (_, true) => Cause::Failed { name, why: why.to_string() },
        };
        self.cause(cause);
    }

    /// Every vCPU stands still while the vmm looks, so a serial process may not ask for it as often as it likes.
    fn ask_whether_halted(&mut self, now: Instant) {
        if self.halt_asked.is_some_and(|asked| now.saturating_duration_since(asked) < HALT_INTERVAL) {
            self.hurried = self.hurried.saturating_add(1);
            return;
        }
        self.halt_asked = Some(now);
        let control = self.find(Role::Vmm).and_then(|vmm| vmm.control.as_ref());
        if let Some(Err(error)) = control.map(|control| control.try_send(&ToVmm::CheckHalted, &[])) {
            tracing::debug!("the vmm could not be asked whether it has halted: {error}");
        }
    }

    pub(super) fn on_listener(&mut self, index: usize, number: usize) {
        for _ in 0..TURN {
            let Some(process) = self.processes.get_mut(index) else { return };
            let Some(listener) = process.listeners.get(number) else { return };
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::ZERO).is_err() {
                return;
            }
            let found = fds.first().and_then(PollFd::revents).unwrap_or(PollFlags::empty());
            if !found.contains(PollFlags::POLLIN) {
                if !found.is_empty() {
                    // All threads with this filter are gone.
                    process.listeners.remove(number);
                }
                return;
            }
            match listener.next() {
                Ok(None) => {}
                Ok(Some(missed)) => {
                    let name = process.name.clone();
                    let key = (name.clone(), missed.syscall.clone());
                    if let Some(count) = self.missed.get_mut(&key) {
                        *count = count.saturating_add(1);
                    } else if self.missed.len() < MISSED {
                        tracing::warn!(process = name, "audit: its policy lacks {missed}");
                        self.missed.insert(key, 1);
                    }
                }
                Err(errno) => {
                    tracing::debug!(process = process.name, "a seccomp listener failed: {errno}");
                    process.listeners.remove(number);
                    return;
                }
            }
        }
    }
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::Ready(..) => "Ready",
        Event::Loaded(_) => "Loaded",
        Event::Refused(..) => "Refused",
        Event::Running => "Running",
        Event::Registers(..) => "Registers",
        Event::Stopped(_) => "Stopped",
        Event::FirstByte(_) => "FirstByte",
        Event::Panic(_) => "Panic",
        Event::Halted => "Halted",
        Event::Broken(_) => "Broken",
        Event::Seen(_) => "Seen",
        Event::ConsoleFinished { .. } => "Finished",
        _ => "a message",
    }
}
