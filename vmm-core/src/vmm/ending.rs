//! The one reason for which the run ends: the first that any thread names wins.

use super::sync::lock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::eventfd::EventFd;
use wire::message::StopReason;

/// Where threads name the reason and the control thread hears of it.
#[derive(Debug)]
pub struct Ending {
    reason: Mutex<Option<StopReason>>,
    over: AtomicBool,
    wake: EventFd,
}

impl Ending {
    /// Nothing has ended; `wake` is what the control thread waits for.
    #[must_use]
    pub fn new(wake: EventFd) -> Self {
        Self { reason: Mutex::new(None), over: AtomicBool::new(false), wake }
    }

    /// Ends the run for `reason`, unless it has ended already.
    pub fn end(&self, reason: StopReason) {
        lock(&self.reason).get_or_insert(reason);
        self.over.store(true, Ordering::SeqCst);
        // The counter of an eventfd does not fill up with ones; a lost wake-up would only delay the end to the next poll.
        self.wake();
    }

    /// Wakes the control thread, for it to look.
    pub fn wake(&self) {
        self.wake.write(1).unwrap_or(());
    }

    /// Whether the run has ended and vCPUs must stop.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn reason(&self) -> Option<StopReason> {
        lock(&self.reason).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_reason_is_not_heard() {
        let ending = Ending::new(EventFd::new(0).unwrap());
        assert!(!ending.is_over());
        ending.end(StopReason::Reset);
        ending.end(StopReason::PowerOff);
        assert!(ending.is_over());
        assert_eq!(ending.reason(), Some(StopReason::Reset));
    }
}
