//! What a ring does with the requests that the driver made available: one run after the other, or many in flight.
//!
//! Distrusts the driver. Promises that what was done before the driver broke the ring is told to it nevertheless.

use super::{BrokenChain, Progress, QUEUE_SIZE, Ring, RingError, signal};
use crate::block::disk::Disk;
use crate::block::flight::Flight;
use crate::block::request::{Limits, Memory, parse};
use crate::block::run::{Answered, Run};
use nix::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// The most requests done before the sockets are looked at again.
const BATCH: usize = QUEUE_SIZE as usize;
/// The most bytes moved before that, but for the last request: some tens of milliseconds on a slow disk.
const BATCH_BYTES: u64 = 16 << 20;

impl Ring {
    /// Waits for what is in flight and answers it. Nothing of the ring or its memory may change before.
    ///
    /// # Errors
    /// When the kernel does not tell what is done: something is in flight still, and the process cannot go on.
    pub fn drain(&mut self, disk: &mut Disk) -> Result<(), Errno> {
        let Some(mut flight) = self.flight.take() else { return Ok(()) };
        let drained = self.answer_all(&mut flight, disk);
        self.flight = Some(flight);
        drained
    }

    fn answer_all(&mut self, flight: &mut Flight, disk: &mut Disk) -> Result<(), Errno> {
        let Some(memory) = flight.memory() else { return Ok(()) };
        // What is available waits for what is done here.
        self.pending |= flight.is_full();
        let mut failed = false;
        while !flight.is_empty() {
            while let Some(answered) = flight.next(disk) {
                // A ring that is broken is not touched; what is in flight is awaited all the same.
                if self.is_running() && !self.broken && !failed {
                    failed = self.put(&memory, answered).is_err();
                }
            }
            if !flight.is_empty() {
                flight.wait()?;
            }
        }
        if self.is_running() && !self.broken && (failed || self.notify(&memory).is_err()) {
            self.set_broken();
        }
        Ok(())
    }

    /// Does up to a batch of requests and notifies the driver if it wants to know.
    ///
    /// # Errors
    /// When the driver broke the ring, which is not processed again until it was stopped; or [`RingError::Engine`], after
    /// which the process cannot go on.
    pub fn process(&mut self, memory: &Arc<Memory>, disk: &mut Disk) -> Result<Progress, RingError> {
        if !self.has_work() {
            return Ok(Progress::Idle);
        }
        let done = if self.enabled { self.process_batch(memory, disk) } else { self.answer_done(memory, disk) };
        match done {
            Ok(progress) => {
                self.pending = progress == Progress::More;
                Ok(progress)
            }
            Err(error) => {
                let drained = self.drain(disk);
                self.set_broken();
                drained.map_err(RingError::Engine)?;
                Err(error)
            }
        }
    }

    fn process_batch(&mut self, memory: &Arc<Memory>, disk: &mut Disk) -> Result<Progress, RingError> {
        let mut left = Left { requests: BATCH, bytes: BATCH_BYTES };
        // Only this batch counts.
        disk.take_work_bytes();
        loop {
            self.queue.disable_notification(&**memory).map_err(RingError::Queue)?;
            let done = match self.flight.take() {
                None => self.process_available(memory, disk, &mut left),
                Some(mut flight) => {
                    let done = self.start_available(memory, disk, &mut left, &mut flight);
                    self.flight = Some(flight);
                    done
                }
            };
            // What was done before a broken chain is told to the driver nevertheless.
            self.notify(memory)?;
            done?;
            if left.is_used_up() {
                return Ok(Progress::More);
            }
            // What is available waits until something is done, of which the kernel tells.
            if self.flight.as_ref().is_some_and(Flight::is_full) {
                return Ok(Progress::Idle);
            }
            // Only now, so that a driver that goes on at once needs no notification for what it makes available.
            if !self.queue.enable_notification(&**memory).map_err(RingError::Queue)? {
                return Ok(Progress::Idle);
            }
        }
    }

    /// Answers what is done, and begins nothing.
    fn answer_done(&mut self, memory: &Arc<Memory>, disk: &mut Disk) -> Result<Progress, RingError> {
        let Some(mut flight) = self.flight.take() else { return Ok(Progress::Idle) };
        let done = self.start_available(memory, disk, &mut Left { requests: 0, bytes: 0 }, &mut flight);
        self.flight = Some(flight);
        self.notify(memory)?;
        done.map(|()| Progress::Idle)
    }

    /// Does what is available, as much as is `left`.
    fn process_available(&mut self, memory: &Memory, disk: &mut Disk, left: &mut Left) -> Result<(), RingError> {
        let limits = Limits { capacity: disk.capacity(), read_only: disk.is_read_only() };
        let mut run: Option<Run<'_>> = None;
        let stopped = loop {
            if left.is_used_up() {
                break Ok(());
            }
            let chain = match self.queue.iter(memory).map(|mut chains| chains.next()) {
                Ok(Some(chain)) => chain,
                Ok(None) => break Ok(()),
                Err(error) => break Err(RingError::Queue(error)),
            };
            let head = chain.head_index();
            if run.as_ref().is_some_and(|run| run.has(head)) {
                break Err(RingError::InFlight(head));
            }
            let next = match parse(memory, chain, limits) {
                Ok(parsed) => Run::new(head, parsed, disk),
                Err(broken) => break Err(broken.into()),
            };
            left.requests = left.requests.saturating_sub(1);
            let rest = match run.take() {
                None => Some(next),
                Some(mut open) => {
                    let rest = open.join(next);
                    if rest.is_some() {
                        self.finish(memory, disk, left, open)?;
                    } else {
                        run = Some(open);
                    }
                    rest
                }
            };
            match rest {
                Some(rest) if !rest.is_open() => self.finish(memory, disk, left, rest)?,
                Some(rest) => run = Some(rest),
                None => {}
            }
        };
        if let Some(run) = run {
            self.finish(memory, disk, left, run)?;
        }
        stopped
    }

    fn finish(&mut self, memory: &Memory, disk: &mut Disk, left: &mut Left, run: Run<'_>) -> Result<(), RingError> {
        run.execute(disk, |answered| self.put(memory, answered))?;
        left.bytes = left.bytes.saturating_sub(disk.take_work_bytes());
        Ok(())
    }

    /// Gives a chain back to the driver.
    fn put(&mut self, memory: &Memory, answered: Answered) -> Result<(), RingError> {
        let written = answered.written.ok_or(BrokenChain::StatusOutsideMemory)?;
        self.queue.add_used(memory, answered.head, written).map_err(RingError::Queue)?;
        self.untold = true;
        Ok(())
    }

    /// Answers what is done, and begins what is available, as much as is `left` and may be in flight.
    fn start_available(
        &mut self,
        memory: &Arc<Memory>,
        disk: &mut Disk,
        left: &mut Left,
        flight: &mut Flight,
    ) -> Result<(), RingError> {
        let limits = Limits { capacity: disk.capacity(), read_only: disk.is_read_only() };
        while let Some(answered) = flight.next(disk) {
            self.put(memory, answered)?;
        }
        while !left.is_used_up() && !flight.is_full() {
            let next = self.queue.iter(&**memory).map_err(RingError::Queue)?.next();
            let Some(chain) = next else { break };
            let head = chain.head_index();
            if flight.has(head) {
                return Err(RingError::InFlight(head));
            }
            let parsed = parse(memory, chain, limits)?;
            left.requests = left.requests.saturating_sub(1);
            if let Some(answered) = flight.start(head, memory, parsed, disk) {
                self.put(memory, answered)?;
            }
            left.bytes = left.bytes.saturating_sub(disk.take_work_bytes());
        }
        flight.submit().map_err(RingError::Engine)?;
        // What needed no waiting is done by now; what was done in part is handed over with the next batch, at once.
        while let Some(answered) = flight.next(disk) {
            self.put(memory, answered)?;
        }
        Ok(())
    }

    /// Tells the driver of what was done since it was told last, if it wants to know.
    fn notify(&mut self, memory: &Memory) -> Result<(), RingError> {
        if std::mem::take(&mut self.untold) && self.wants_call(memory)? {
            signal(self.call.as_ref());
        }
        Ok(())
    }

    /// Whether the driver wants to be interrupted (virtio 1.2 §2.7.7).
    fn wants_call(&mut self, memory: &Memory) -> Result<bool, RingError> {
        // Orders the used index before the driver's flag or event index, which it reads next.
        let needed = self.queue.needs_notification(memory).map_err(RingError::Queue)?;
        if self.queue.event_idx_enabled() {
            return Ok(needed);
        }
        let address = GuestAddress(self.queue.avail_ring());
        let flags = memory.load(address, Ordering::Relaxed).map(u16::from_le);
        let flags = flags.map_err(|error| RingError::Queue(virtio_queue::Error::GuestMemory(error)))?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

/// What is left of a batch.
#[derive(Debug, Clone, Copy)]
struct Left {
    requests: usize,
    bytes: u64,
}

impl Left {
    fn is_used_up(self) -> bool {
        self.requests == 0 || self.bytes == 0
    }
}
