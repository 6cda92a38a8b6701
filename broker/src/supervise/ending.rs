//! The end: the vCPUs first, then the vmm and the devices, each with time to finish, then none.

use super::{Phase, Supervisor};
use crate::process::{Role, Supervised};
use std::time::{Duration, Instant};
use wire::message::ToDevice;

/// How long a vmm may take to end after it said that the guest has.
const VMM_LIMIT: Duration = Duration::from_secs(5);
/// How long the devices may take to write what is in flight.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);

/// How far the end is.
#[derive(Debug, Default)]
pub(super) struct Ending {
    vmm_until: Option<Instant>,
    devices_until: Option<Instant>,
}

impl Ending {
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.vmm_until.into_iter().chain(self.devices_until)
    }
}

impl Supervisor {
    pub(super) fn begin_ending(&mut self, now: Instant) {
        let started = self.phase == Phase::Running;
        if self.deaf_to_loader {
            // It is listened to from here on, or not at all.
            let _is_listened_to: bool = self.give_up_privileges();
        }
        self.phase = Phase::Ending;
        self.deadline = None;
        self.suspicion = None;
        if !started {
            // No guest ran, so nothing is in flight.
            self.processes.iter_mut().for_each(Supervised::kill);
            return;
        }
        if self.stopped {
            self.ending.vmm_until = now.checked_add(VMM_LIMIT);
        } else if !self.ask_for_dumps(now)
            && let Some(vmm) = self.find(Role::Vmm)
        {
            vmm.kill();
        }
    }

    pub(super) fn end_step(&mut self, now: Instant) {
        if self.dumps.over(now) {
            self.dumps.stop_waiting();
            if let Some(vmm) = self.find(Role::Vmm).filter(|vmm| vmm.ended.is_none()) {
                vmm.kill();
            }
        }
        if self.ending.vmm_until.is_some_and(|until| until <= now) {
            self.ending.vmm_until = None;
            if let Some(vmm) = self.find(Role::Vmm) {
                tracing::warn!("the vmm did not end by itself and is killed");
                vmm.kill();
            }
        }
        let vmm_gone = self.find(Role::Vmm).is_none_or(|vmm| vmm.ended.is_some());
        if vmm_gone {
            self.ending.vmm_until = None;
        }
        // A vmm that says that the guest has ended has handed on all that the guest wrote: to end it takes a while.
        if (vmm_gone || self.stopped) && self.ending.devices_until.is_none() {
            self.ending.devices_until = now.checked_add(DEVICE_LIMIT);
            self.shut_devices_down();
        } else if self.ending.devices_until.is_some_and(|until| until <= now) {
            self.ending.devices_until = now.checked_add(DEVICE_LIMIT);
            for process in self.processes.iter_mut().filter(|process| process.ended.is_none()) {
                tracing::warn!(process = process.name, "did not finish in time and is killed");
                process.kill();
            }
        }
    }

    fn shut_devices_down(&mut self) {
        for process in self.processes.iter_mut().filter(|process| process.role.is_device() && process.ended.is_none()) {
            let told = process.control.as_ref().map(|control| control.try_send(&ToDevice::Shutdown, &[]));
            if let Some(Err(error)) = told {
                tracing::debug!(process = process.name, "could not be told to finish: {error}");
            }
        }
    }
}
