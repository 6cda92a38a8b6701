//! The steps of a run up to the guest's start: jails, boot files, guest.

use super::{Phase, Supervisor};
use crate::cgroup::Cgroup;
use crate::ends::Cause;
use crate::privileges;
use crate::process::{Role, Supervised};
use crate::terminal::RawTerminal;
use std::time::{Duration, Instant};
use wire::clock::now_ns;
use wire::message::{ToLoader, ToVmm};

/// How long the loader may take: a hostile image must not hold us up for good.
const LOAD_LIMIT: Duration = Duration::from_secs(60);
/// How long the vmm may take to start its vCPUs.
const RUN_LIMIT: Duration = Duration::from_secs(30);

impl Supervisor {
    /// Takes the next step, if everything for it is there.
    pub(super) fn advance(&mut self, now: Instant) {
        if self.phase == Phase::Starting && self.evidence.causes.is_empty() && self.is_machine_jailed() {
            self.let_load();
            if self.evidence.causes.is_empty() && self.inspectors.entered(now) {
                self.inspectors.step_back();
                self.phase = Phase::Loading;
                if self.give_up_privileges() {
                    self.set_deadline(LOAD_LIMIT, "the boot files were not loaded");
                    self.inspectors.begin();
                }
            }
        }
        if self.phase == Phase::Loading && self.evidence.causes.is_empty() && self.is_loaded() {
            self.deadline = None;
            if self.inspectors.have_looked(now) {
                self.start_guest();
            }
        }
        if self.phase != Phase::Ending && !self.evidence.causes.is_empty() {
            self.begin_ending(now);
        }
        if self.phase == Phase::Ending {
            self.end_step(now);
        }
    }

    /// Whether every process of the machine is in its jail, and was looked at.
    fn is_machine_jailed(&self) -> bool {
        self.processes.iter().all(|process| process.checked)
    }

    /// Whether guest memory is prepared and the loader is gone; true as well where there is none.
    fn is_loaded(&mut self) -> bool {
        let entry = self.entry.is_some();
        self.find(Role::Loader).is_none_or(|loader| entry && loader.ended.is_some())
    }

    /// Lets the loader load. To look at the jails of the inspectors takes privileges still: until they are given up, nothing
    /// of what the loader says or does is taken notice of, see [`Supervisor::is_heard`].
    fn let_load(&mut self) {
        if self.deaf_to_loader || self.told_ns != 0 {
            return;
        }
        // The machine did its part in time, however long an inspector takes.
        self.deadline = None;
        if let Err(error) = self.confinement.cgroup().map_or(Ok(()), Cgroup::limit_memory) {
            self.cause(Cause::Host(format!("the memory cannot be limited: {:#}", anyhow::Error::from(error))));
            return;
        }
        self.deaf_to_loader = true;
        let control = self.find(Role::Loader).and_then(|loader| loader.control.as_ref());
        if let Some(Err(error)) = control.map(|control| control.send(&ToLoader::Load, &[])) {
            // It is dying; its end is about to be seen.
            tracing::debug!("the loader could not be told to load: {error}");
        }
        self.told_ns = now_ns();
    }

    /// Whether what this process says or does is to be taken notice of now: once it has been told to read what nobody
    /// trusts, not before the broker has given up its privileges.
    pub(super) fn is_heard(&self, process: &Supervised) -> bool {
        !(self.deaf_to_loader && process.role == Role::Loader)
    }

    /// Nothing but supervising is left to do for the broker. If it cannot give up its privileges, the run ends, and what the
    /// loader has to say is not listened to; false then.
    pub(super) fn give_up_privileges(&mut self) -> bool {
        self.deaf_to_loader = false;
        let Err(errno) = privileges::give_up() else { return true };
        self.cause(Cause::Host(format!("the broker could not give up its privileges: {}", errno.desc())));
        if let Some(loader) = self.find(Role::Loader) {
            loader.kill();
            loader.control = None;
            loader.listeners.clear();
            loader.log.close_unread();
        }
        false
    }

    /// Every jail was checked and guest memory is prepared.
    fn start_guest(&mut self) {
        self.inspectors.guest_starts();
        if let Some(terminal) = self.terminal.take() {
            match RawTerminal::enter(terminal) {
                Ok(raw) => self.raw = Some(raw),
                Err(error) => {
                    self.cause(Cause::Host(format!("{:#}", anyhow::Error::from(error))));
                    return;
                }
            }
        }
        if let Some(entry) = self.entry {
            self.told_ns = now_ns();
            let control = self.find(Role::Vmm).and_then(|vmm| vmm.control.as_ref());
            if let Some(Err(error)) = control.map(|control| control.send(&ToVmm::Run(entry), &[])) {
                // It is dying; its end is about to be seen.
                tracing::debug!("the vmm could not be told to run: {error}");
            }
            self.set_deadline(RUN_LIMIT, "the guest was not started");
        }
        self.phase = Phase::Running;
    }
}
