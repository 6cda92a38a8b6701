//! The control thread: talks to the broker and to the device processes, and notices the end.
//!
//! The broker's messages are trusted but for the entry state, which is the loader's and is checked against guest memory.
//! A device process that goes away, speaks unasked or breaks the protocol ends the run.

use super::crew::{Crew, Dump};
use super::fds::borrow;
use super::start::{Parts, StartError};
use super::virtio::device::{Health, VirtioDevice};
use super::virtio::mmio::{Alarm, MmioTransport};
use super::virtio::vhost::failed;
use crate::arch::regs::{self, EntryError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::message::{Entry, FromVmm, MachineSeen, StopReason, ToVmm, VcpuSeen};
use wire::{Channel, ChannelError, Text};

/// How long no vCPU may have left the guest before it is looked whether all of them have halted; and how long after that it is
/// looked again, since one may have been about to. Then no time is kept until a vCPU leaves the guest again: an idle
/// guest is not woken.
const LOOKS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// The time between two looks at where the vCPUs are.
const PAUSE: u16 = 20;
/// How long the vCPU threads may take to stop: longer than a register read of serial.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Why the vmm gives up; not for ends of the guest.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The machine could not be built or locked down.
    #[error(transparent)]
    Start(StartError),
    /// The broker is gone or says something else than it should.
    #[error("the control channel failed")]
    Channel(#[from] ChannelError),
    /// The entry state is wrong.
    #[error("the guest cannot be entered")]
    Entry(#[from] EntryError),
    /// Waiting failed.
    #[error("the control thread cannot wait")]
    Poll(#[source] Errno),
    /// The broker asked for something out of turn.
    #[error("the broker sent a message out of turn")]
    OutOfTurn,
}

/// What woke the control thread.
#[derive(Debug, Default)]
struct Woken {
    broker: bool,
    disks: Vec<usize>,
    errors: Vec<usize>,
}

/// The control thread's state.
#[derive(Debug)]
pub struct Control {
    parts: Parts,
    crew: Crew,
    alarms: Vec<Alarm>,
}

impl Control {
    pub(super) fn new(parts: Parts, crew: Crew) -> Self {
        Self { parts, crew, alarms: Vec::new() }
    }

    /// Runs the guest, from what the device processes offer to its end.
    ///
    /// # Errors
    /// When the broker is gone or at fault. Ends of the guest are told to the broker instead.
    pub fn run(&mut self, channel: &Channel) -> Result<(), ControlError> {
        if let Err(reason) = self.plug_disks() {
            self.parts.ending.end(reason);
            return self.stop(channel);
        }
        let entry = self.wait_for_run(channel)?;
        if let Some(entry) = entry {
            regs::check(&entry, &self.parts.memory)?;
            self.crew.go(entry);
            channel.send(&FromVmm::Running, &[])?;
            self.watch(channel)?;
        }
        self.stop(channel)
    }

    /// Asks each device process what it offers, and gives the guest its transport.
    fn plug_disks(&mut self) -> Result<(), StopReason> {
        let mut transports = Vec::with_capacity(self.parts.disks.len());
        for (index, disk) in self.parts.disks.iter_mut().enumerate() {
            let offer = disk.back_end.offer()?;
            let Some(requester) = disk.requester.take() else { continue };
            let name = format!("disk {}", index.saturating_add(1));
            let memory = self.parts.memory.clone();
            let device = VirtioDevice::new(name, offer, memory, requester, Arc::new(Health::default()));
            let transport = MmioTransport::new(device, disk.view.take());
            self.alarms.push(transport.alarm());
            transports.push(transport);
        }
        self.parts.devices.plug(transports);
        Ok(())
    }

    /// Waits for the broker's word; `None` when the run ends before it begins.
    fn wait_for_run(&self, channel: &Channel) -> Result<Option<Entry>, ControlError> {
        loop {
            let woken = self.wait(channel, None)?;
            if let Some(&disk) = woken.disks.first() {
                self.gone(disk);
            }
            if self.parts.ending.is_over() {
                return Ok(None);
            }
            if woken.broker {
                return match channel.recv::<ToVmm>()?.without_fds()? {
                    ToVmm::Run(entry) => Ok(Some(entry)),
                    ToVmm::CheckHalted | ToVmm::Dump => Err(ControlError::OutOfTurn),
                };
            }
        }
    }

    /// Serves until the run is over.
    fn watch(&mut self, channel: &Channel) -> Result<(), ControlError> {
        let mut looks = LOOKS.iter();
        let mut exits = self.crew.exits();
        let mut next = looks.next();
        while !self.parts.ending.is_over() {
            let until = next.and_then(|pause| Instant::now().checked_add(*pause));
            // Without a time to keep, the next exit says that there is one again.
            let until = until.or_else(|| (!self.crew.tells_of_next_exit(exits)).then(Instant::now));
            let woken = self.wait(channel, until)?;
            let now = self.crew.exits();
            if now != exits && (next.is_none() || until.is_none_or(|until| Instant::now() >= until)) {
                (exits, looks) = (now, LOOKS.iter());
                next = looks.next();
            } else if until.is_some_and(|until| Instant::now() >= until) {
                // Where the vCPUs did not all come in time, that was no look.
                if self.look_for_halt() {
                    next = looks.next();
                }
            }
            self.serve_requests();
            for disk in woken.errors {
                self.device_stopped(disk);
            }
            if let Some(&disk) = woken.disks.first() {
                self.gone(disk);
            }
            if woken.broker {
                match channel.recv::<ToVmm>()?.without_fds()? {
                    // A vCPU that is about to halt may not have done so yet: look again soon.
                    ToVmm::CheckHalted => {
                        let _looked: bool = self.look_for_halt();
                        (exits, looks) = (self.crew.exits(), LOOKS.iter());
                        next = looks.next();
                    }
                    // What the threads leave at the end is told at the end.
                    ToVmm::Dump if self.parts.ending.is_over() => {}
                    ToVmm::Dump => self.tell(channel, self.look_twice())?,
                    ToVmm::Run(_) => return Err(ControlError::OutOfTurn),
                }
            }
        }
        Ok(())
    }

    /// Ends the run if every vCPU has stopped for good. False when they did not all come in time to be looked at.
    fn look_for_halt(&self) -> bool {
        let found = if self.parts.ending.is_over() { Some(false) } else { self.crew.all_halted() };
        if found == Some(true) {
            self.parts.ending.end(StopReason::Halted);
        }
        found.is_some()
    }

    fn serve_requests(&mut self) {
        while let Some(request) = self.parts.requests.take() {
            let Some(disk) = self.parts.disks.get_mut(request.disk) else { continue };
            let result = disk.back_end.act(&request.action);
            if let Err(reason) = &result {
                self.parts.ending.end(reason.clone());
            }
            request.answer(result);
        }
    }

    /// A device process has stopped its device: the driver learns that it needs a reset.
    fn device_stopped(&self, index: usize) {
        let (Some(disk), Some(alarm)) = (self.parts.disks.get(index), self.alarms.get(index)) else { return };
        // A reset that came in between took it back.
        if disk.error.read().is_err() {
            return;
        }
        alarm.raise();
        if let Err(error) = disk.call.write(1) {
            self.parts.ending.end(failed(index, &error));
        }
    }

    fn gone(&self, disk: usize) {
        let device = u8::try_from(disk).unwrap_or(u8::MAX).saturating_add(1);
        let why = Text::truncated("it closed its connection, or spoke unasked");
        self.parts.ending.end(StopReason::DeviceFailed { device, why });
    }

    /// Stops the vCPUs and tells the broker why.
    fn stop(&self, channel: &Channel) -> Result<(), ControlError> {
        let deadline = Instant::now().checked_add(STOP_DEADLINE).unwrap_or_else(Instant::now);
        if !self.crew.stop(deadline) {
            super::log::line(format_args!("a vCPU did not stop in time"));
        }
        let dropped = self.parts.devices.serial.dropped();
        if dropped > 0 {
            super::log::line(format_args!("serial: {dropped} register writes were lost"));
        }
        self.tell(channel, self.crew.last_dumps())?;
        let reason = self.parts.ending.reason().unwrap_or(StopReason::PowerOff);
        channel.send(&FromVmm::Stopped(reason), &[])?;
        Ok(())
    }

    /// What there is to tell of the vCPUs, with where each was a moment before: whether it stands still.
    fn look_twice(&self) -> Vec<Dump> {
        let before: Vec<_> = self.crew.dump().into_iter().map(|dump| dump.seen).collect();
        // There is nothing to wait for but time.
        poll(&mut [], PAUSE).unwrap_or(0);
        let mut dumps = self.crew.dump();
        for Dump { seen, .. } in &mut dumps {
            let earlier = before.iter().find(|before| before.vcpu == seen.vcpu);
            seen.earlier_counter = earlier.and_then(|earlier| earlier.program_counter);
        }
        dumps
    }

    /// Tells the broker the registers of vCPUs, and what was seen of the guest.
    fn tell(&self, channel: &Channel, dumps: Vec<Dump>) -> Result<(), ControlError> {
        let vcpus = dumps.iter().map(|dump| dump.seen).collect();
        for Dump { seen: VcpuSeen { vcpu, .. }, lines } in dumps {
            if let Some(lines) = lines {
                channel.send(&FromVmm::Registers { vcpu, lines }, &[])?;
            }
        }
        let disks = self.alarms.iter().map(|alarm| alarm.health().seen()).collect();
        channel.send(&FromVmm::Seen(MachineSeen { vcpus, disks }), &[])?;
        Ok(())
    }

    /// Waits for something to do, at most until `until`.
    fn wait(&self, channel: &Channel, until: Option<Instant>) -> Result<Woken, ControlError> {
        let disks = self.parts.disks.as_slice();
        let mut polled = vec![
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(borrow(&self.parts.wake), PollFlags::POLLIN),
        ];
        polled.extend(disks.iter().map(|disk| PollFd::new(disk.socket.as_fd(), PollFlags::POLLIN)));
        polled.extend(disks.iter().map(|disk| PollFd::new(borrow(&disk.error), PollFlags::POLLIN)));
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left_ms = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut polled, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Woken::default()),
            Err(errno) => return Err(ControlError::Poll(errno)),
        }
        let mut ready = polled.iter().map(|fd| fd.any().unwrap_or(true));
        let mut woken = Woken { broker: ready.next().unwrap_or(false), ..Woken::default() };
        if ready.next().unwrap_or(false) {
            // What it counted is looked for in any case.
            self.parts.wake.read().unwrap_or(0);
        }
        for (index, _) in disks.iter().enumerate() {
            if ready.next().unwrap_or(false) {
                woken.disks.push(index);
            }
        }
        woken.errors = ready.zip(0..).filter_map(|(is_ready, index)| is_ready.then_some(index)).collect();
        Ok(woken)
    }
}
