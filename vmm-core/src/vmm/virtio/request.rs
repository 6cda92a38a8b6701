//! How a vCPU thread has the control thread start or stop a device, and the deadline on the device process's answers.
//!
//! vCPU threads hold no vhost-user socket. The `vhost` crate retries a receive for as long as nothing comes, so a device
//! process that says nothing would hold the control thread for ever: whoever waits for the control thread therefore
//! watches the clock for it, and shuts the socket down when the time is up, which ends the receive.

use super::{Backend, Queue};
use crate::vmm::ending::Ending;
use crate::vmm::sync::{lock, wait_while_until};
use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;
use wire::message::StopReason;

/// How often a waiting thread looks at the clock.
const LOOK: Duration = Duration::from_millis(200);

/// What a device is to do.
#[derive(Debug)]
pub enum Action {
    /// Start these queues with these features.
    Activate {
        /// The features that the driver chose.
        features: u64,
        /// All queues.
        queues: Vec<Queue>,
    },
    /// Stop all queues.
    Reset,
}

/// A vCPU thread's request to the control thread.
#[derive(Debug)]
pub struct Request {
    /// The disk, from 0.
    pub disk: usize,
    /// What it is to do.
    pub action: Action,
    answer: Arc<Answer>,
}

impl Request {
    /// Lets the vCPU thread go on.
    pub fn answer(self, result: Result<(), StopReason>) {
        *lock(&self.answer.result) = Some(result);
        self.answer.given.notify_all();
    }
}

/// Where a vCPU thread waits. The channels of the standard library would do, but for the system call by which they spin.
#[derive(Debug, Default)]
struct Answer {
    result: Mutex<Option<Result<(), StopReason>>>,
    given: Condvar,
}

impl Answer {
    /// The answer, if it comes within `limit`.
    fn wait(&self, limit: Duration) -> Option<Result<(), StopReason>> {
        let until = Instant::now().checked_add(limit).unwrap_or_else(Instant::now);
        wait_while_until(&self.given, lock(&self.result), until, |result| result.is_none()).take()
    }
}

/// The requests that the control thread has not taken yet: at most one of each vCPU thread, which waits for its answer.
#[derive(Debug, Default)]
pub struct Requests(Mutex<VecDeque<Request>>);

impl Requests {
    /// The next one.
    #[must_use]
    pub fn take(&self) -> Option<Request> {
        lock(&self.0).pop_front()
    }

    fn put(&self, request: Request) {
        lock(&self.0).push_back(request);
    }
}

/// What the control thread says to whom.
#[derive(Debug, Default)]
struct Talk {
    /// The disk, and when its process must have answered.
    current: Option<(usize, Instant)>,
    /// Nobody watches the clock any more.
    cut: bool,
}

/// The clock on the device process that the control thread talks to.
#[derive(Debug)]
pub struct Watch {
    talk: Mutex<Talk>,
    sockets: Vec<UnixStream>,
}

impl Watch {
    /// Watches the conversations on `sockets`, one for each disk.
    #[must_use]
    pub fn new(sockets: Vec<UnixStream>) -> Self {
        Self { talk: Mutex::default(), sockets }
    }

    /// Runs a conversation with a disk's process that must be over within `limit`.
    pub fn within<T>(&self, disk: usize, limit: Duration, talk: impl FnOnce() -> T) -> T {
        let mut state = lock(&self.talk);
        state.current = Instant::now().checked_add(limit).map(|until| (disk, until));
        if state.cut {
            self.shut_down(disk);
        }
        drop(state);
        let result = talk();
        lock(&self.talk).current = None;
        result
    }

    /// Ends the conversation if its time is up.
    pub fn look(&self) {
        let talk = lock(&self.talk);
        if let Some((disk, until)) = talk.current
            && Instant::now() >= until
        {
            self.shut_down(disk);
        }
    }

    /// Ends the conversation now, and each later one as it begins: the run is over, and nobody looks any more.
    pub fn cut(&self) {
        let mut talk = lock(&self.talk);
        talk.cut = true;
        if let Some((disk, _)) = talk.current {
            self.shut_down(disk);
        }
    }

    fn shut_down(&self, disk: usize) {
        if let Some(socket) = self.sockets.get(disk) {
            // It can only fail if the other end is gone already, which ends the conversation as well.
            socket.shutdown(Shutdown::Both).unwrap_or(());
        }
    }

    /// How long to wait before the next look.
    #[must_use]
    pub fn interval(&self) -> Duration {
        LOOK
    }
}

/// The vCPU threads' end of a disk.
#[derive(Debug)]
pub struct Requester {
    disk: usize,
    requests: Arc<Requests>,
    wake: EventFd,
    watch: Arc<Watch>,
    ending: Arc<Ending>,
}

impl Requester {
    /// Sends requests for `disk` and wakes the control thread with `wake`.
    #[must_use]
    pub fn new(disk: usize, requests: Arc<Requests>, wake: EventFd, watch: Arc<Watch>, ending: Arc<Ending>) -> Self {
        Self { disk, requests, wake, watch, ending }
    }

    fn ask(&self, action: Action) -> Result<(), StopReason> {
        let answer = Arc::new(Answer::default());
        self.requests.put(Request { disk: self.disk, action, answer: Arc::clone(&answer) });
        if self.wake.write(1).is_err() {
            return Err(self.over());
        }
        loop {
            match answer.wait(self.watch.interval()) {
                Some(result) => return result,
                None if self.ending.is_over() => {
                    // Whoever leaves does not keep the clock any more, and the control thread must get away to end the run.
                    self.watch.cut();
                    return Err(self.over());
                }
                None => self.watch.look(),
            }
        }
    }

    // The control thread stops answering only when the run has ended, so this reason is never the first.
    fn over(&self) -> StopReason {
        self.ending.reason().unwrap_or(StopReason::PowerOff)
    }
}

impl Backend for Requester {
    fn activate(&mut self, features: u64, queues: &[Queue]) -> Result<(), StopReason> {
        self.ask(Action::Activate { features, queues: queues.to_vec() })
    }

    fn reset(&mut self) -> Result<(), StopReason> {
        self.ask(Action::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn request_waits_for_the_answer() {
        let wake = EventFd::new(0).unwrap();
        let ending = Arc::new(Ending::new(wake.try_clone().unwrap()));
        let requests = Arc::new(Requests::default());
        let watch = Arc::new(Watch::new(Vec::new()));
        let received = Arc::clone(&requests);
        let mut requester = Requester::new(3, requests, wake.try_clone().unwrap(), watch, ending);
        let vcpu = std::thread::spawn(move || requester.activate(5, &[]));
        wake.read().unwrap();
        let request = received.take().unwrap();
        assert!(matches!(request.action, Action::Activate { features: 5, .. }));
        assert_eq!(request.disk, 3);
        request.answer(Err(StopReason::Reset));
        assert_eq!(vcpu.join().unwrap(), Err(StopReason::Reset));
    }

    #[test]
    fn request_at_the_end_of_the_run_does_not_wait() {
        let wake = EventFd::new(0).unwrap();
        let ending = Arc::new(Ending::new(wake.try_clone().unwrap()));
        let requests = Arc::new(Requests::default());
        let watch = Arc::new(Watch::new(Vec::new()));
        let mut requester = Requester::new(0, requests, wake, watch, Arc::clone(&ending));
        ending.end(StopReason::TripleFault);
        assert_eq!(requester.reset(), Err(StopReason::TripleFault));
    }

    #[test]
    fn silent_device_process_is_cut_off_when_its_time_is_up() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let watch = Arc::new(Watch::new(vec![ours.try_clone().unwrap()]));
        let looker = Arc::clone(&watch);
        let over = Arc::new(Mutex::new(false));
        let seen = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !*lock(&seen) {
                looker.look();
                std::thread::yield_now();
            }
        });
        let read = watch.within(0, Duration::from_millis(5), || ours.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 0, "the receive must end");
        *lock(&over) = true;
        thread.join().unwrap();
    }

    #[test]
    fn silent_device_process_is_cut_off_when_the_run_ends_during_its_talk() {
        let wake = EventFd::new(0).unwrap();
        let ending = Arc::new(Ending::new(wake.try_clone().unwrap()));
        let requests = Arc::new(Requests::default());
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let watch = Arc::new(Watch::new(vec![ours.try_clone().unwrap()]));
        let received = Arc::clone(&requests);
        let mut requester =
            Requester::new(0, requests, wake.try_clone().unwrap(), Arc::clone(&watch), Arc::clone(&ending));
        let vcpu = std::thread::spawn(move || requester.reset());
        wake.read().unwrap();
        let request = received.take().unwrap();
        let read = watch.within(0, Duration::from_secs(3600), || {
            ending.end(StopReason::PowerOff);
            ours.read(&mut [0; 1])
        });
        assert_eq!(read.unwrap(), 0, "the receive must end");
        assert_eq!(vcpu.join().unwrap(), Err(StopReason::PowerOff));
        request.answer(Err(StopReason::PowerOff));
    }

    #[test]
    fn talk_that_begins_after_the_cut_ends_at_once() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let watch = Watch::new(vec![ours.try_clone().unwrap()]);
        watch.cut();
        let read = watch.within(0, Duration::from_secs(3600), || ours.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 0, "the receive must end");
    }
}
