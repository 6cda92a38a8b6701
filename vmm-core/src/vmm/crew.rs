//! The vCPU threads: their start, their pauses, and their end.
//!
//! The threads exist before the process is locked down and end with it; each installs its own filter and then waits for
//! the word to go. When the run is over a thread stops for good but stays, so that ending one needs no system call.

use super::devices::Devices;
use super::ending::Ending;
use super::kick::{Kicker, accept_kicks};
use super::sync::{lock, wait_while, wait_while_until};
use super::virtio::request::Watch;
use crate::arch::vcpu::{Step, Vcpu};
use nix::errno::Errno;
use policies::seccomp::{Filter, SeccompError, install};
use std::os::fd::OwnedFd;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use wire::Text;
use wire::message::{Entry, StopReason, VcpuSeen};

/// How long all threads may take to meet: each comes out of the guest within microseconds.
const MEETING_DEADLINE: Duration = Duration::from_millis(500);
/// How often a stubborn thread is kicked again.
const KICK_AGAIN: Duration = Duration::from_millis(100);

/// Why the threads could not be started.
#[derive(Debug, thiserror::Error)]
pub enum CrewError {
    /// There is no thread to be had.
    #[error("a vCPU thread could not be started")]
    Spawn(#[source] std::io::Error),
    /// Kicks do not get through.
    #[error("a vCPU thread cannot be signalled")]
    Signal(#[source] Errno),
    /// A thread could not lock itself down.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// What the threads wait for and have done.
#[derive(Debug, Default)]
struct Board {
    /// What each thread that is locked down, or could not be, has to say.
    locked: Vec<Result<Option<OwnedFd>, CrewError>>,
    /// How the first vCPU starts; set once, by the word to go.
    entry: Option<Entry>,
    /// The threads that have stopped for good.
    stopped: usize,
    /// The current meeting.
    round: u64,
    phase: Phase,
    purpose: Purpose,
    arrived: usize,
    looked: usize,
    busy: usize,
    idle: usize,
    stuck: usize,
    /// What the threads found, by vCPU.
    dumps: Vec<Dump>,
}

impl Board {
    /// Begins a meeting. What outlives a meeting stays: the entry, and what threads that have stopped for good left.
    fn call_meeting(&mut self, round: u64, purpose: Purpose) {
        let (entry, stopped, dumps) = (self.entry, self.stopped, std::mem::take(&mut self.dumps));
        *self = Self { round, phase: Phase::Gather, purpose, entry, stopped, dumps, ..Self::default() };
    }
}

/// What a thread tells of its vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// What was seen of it.
    pub seen: VcpuSeen,
    /// Its registers and last exits, where they are wanted.
    pub lines: Option<Vec<Text>>,
}

/// How a vCPU stands between two runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// It may do something.
    Busy,
    /// It does nothing until an interrupt or another vCPU wakes it, as far as KVM shows.
    Idle,
    /// It was never started, or has switched itself off.
    Off,
    /// Nothing gets it going again.
    Stuck,
}

/// What a meeting is for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    #[default]
    Rest,
    Dump,
}

/// A meeting: all threads come out of the guest, then each looks at its vCPU while all others stand still.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    None,
    Gather,
    Look,
}

/// What the threads share.
#[derive(Debug)]
pub struct Shared {
    /// Why and whether the run is over.
    pub ending: Arc<Ending>,
    /// What the guest can reach.
    pub devices: Arc<Devices>,
    /// The clock on the control thread's conversations, which the first vCPU thread keeps before the guest runs.
    pub watch: Arc<Watch>,
    board: Mutex<Board>,
    changed: Condvar,
    /// Whether each thread tells the registers of its vCPU as well.
    debug: bool,
    meeting: AtomicBool,
    exits: AtomicU64,
    /// Whether the control thread wants to be woken by the next exit.
    awaited: AtomicBool,
}

impl Shared {
    /// For threads that have not started.
    #[must_use]
    pub fn new(ending: Arc<Ending>, devices: Arc<Devices>, watch: Arc<Watch>, debug: bool) -> Self {
        let (meeting, exits, awaited) = (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(false));
        Self {
            ending,
            devices,
            watch,
            board: Mutex::default(),
            changed: Condvar::new(),
            debug,
            meeting,
            exits,
            awaited,
        }
    }

    /// Counts an exit, and wakes the control thread if it waits for one.
    fn count_exit(&self) {
        // In the order of this and `Crew::tells_of_next_exit`, one of the two sees what the other has stored.
        self.exits.fetch_add(1, Ordering::SeqCst);
        if self.awaited.load(Ordering::SeqCst) && self.awaited.swap(false, Ordering::SeqCst) {
            self.ending.wake();
        }
    }
}

/// The vCPU threads.
#[derive(Debug)]
pub struct Crew {
    shared: Arc<Shared>,
    kickers: Vec<Kicker>,
}

impl Crew {
    /// Starts a thread for each vCPU, and waits until each is locked down. Returns their seccomp listeners as well.
    ///
    /// # Errors
    /// When a thread cannot be started or locked down.
    pub fn start(vcpus: Vec<Vcpu>, shared: Shared, audit: bool) -> Result<(Self, Vec<OwnedFd>), CrewError> {
        let shared = Arc::new(shared);
        let count = vcpus.len();
        let mut kickers = Vec::with_capacity(count);
        for vcpu in vcpus {
            let exit = vcpu.immediate_exit();
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{}", vcpu.index()))
                .spawn(move || work(vcpu, &shared, audit))
                .map_err(CrewError::Spawn)?;
            kickers.push(Kicker::new(exit, thread.as_pthread_t()));
        }
        let board = lock(&shared.board);
        let mut board = wait_while(&shared.changed, board, |board| board.locked.len() < count);
        let listeners: Result<Vec<_>, _> = std::mem::take(&mut board.locked).into_iter().collect();
        drop(board);
        Ok((Self { shared, kickers }, listeners?.into_iter().flatten().collect()))
    }

    /// Gives the word to go.
    pub fn go(&self, entry: Entry) {
        lock(&self.shared.board).entry = Some(entry);
        self.shared.changed.notify_all();
    }

    /// The number of exits that vCPUs have made so far.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.shared.exits.load(Ordering::SeqCst)
    }

    /// Has the next exit wake the control thread; false if there were other than `seen` exits already.
    #[must_use]
    pub fn tells_of_next_exit(&self, seen: u64) -> bool {
        self.shared.awaited.store(true, Ordering::SeqCst);
        self.exits() == seen
    }

    /// Whether every vCPU has stopped for good, with nothing left that could wake it. Holds the guest up meanwhile.
    /// None when the threads do not all come in time.
    #[must_use]
    pub fn all_halted(&self) -> Option<bool> {
        let found = self.meet(Purpose::Rest);
        // An idle vCPU may only look so, see `Rest`: it takes one that is stuck to tell. All off is stopped as well.
        let halted = found.busy == 0 && (found.stuck > 0 || found.idle == 0);
        (found.looked == self.kickers.len()).then_some(halted)
    }

    /// What there is to tell of each vCPU whose thread comes in time. Holds the guest up meanwhile.
    #[must_use]
    pub fn dump(&self) -> Vec<Dump> {
        self.meet(Purpose::Dump).dumps
    }

    /// What each thread left when the run was over; to be called after [`Crew::stop`].
    #[must_use]
    pub fn last_dumps(&self) -> Vec<Dump> {
        sorted(std::mem::take(&mut lock(&self.shared.board).dumps))
    }

    /// Brings all threads together and lets each look at its vCPU. Returns what they found.
    fn meet(&self, purpose: Purpose) -> Found {
        let count = self.kickers.len();
        let deadline = Instant::now().checked_add(MEETING_DEADLINE).unwrap_or_else(Instant::now);
        let mut board = lock(&self.shared.board);
        let round = board.round.wrapping_add(1);
        board.call_meeting(round, purpose);
        self.shared.meeting.store(true, Ordering::SeqCst);
        drop(board);
        self.kick();
        let mut board = lock(&self.shared.board);
        board = wait_while_until(&self.shared.changed, board, deadline, |board| board.arrived < count);
        // A dump of some is better than none.
        if board.arrived == count || purpose == Purpose::Dump {
            board.phase = Phase::Look;
            self.shared.changed.notify_all();
            let deadline = Instant::now().checked_add(MEETING_DEADLINE).unwrap_or(deadline);
            board = wait_while_until(&self.shared.changed, board, deadline, |board| board.looked < board.arrived);
        }
        // Without a dump to be taken, what is there was left by threads that have stopped.
        let dumps = if purpose == Purpose::Dump { sorted(std::mem::take(&mut board.dumps)) } else { Vec::new() };
        let found = Found { looked: board.looked, busy: board.busy, idle: board.idle, stuck: board.stuck, dumps };
        board.phase = Phase::None;
        self.shared.meeting.store(false, Ordering::SeqCst);
        self.shared.changed.notify_all();
        found
    }

    /// Waits until every thread has stopped; the run must be over. False when one did not by `deadline`.
    #[must_use]
    pub fn stop(&self, deadline: Instant) -> bool {
        let count = self.kickers.len();
        self.shared.changed.notify_all();
        loop {
            self.kick();
            let again = Instant::now().checked_add(KICK_AGAIN).unwrap_or(deadline);
            let board = lock(&self.shared.board);
            let board = wait_while_until(&self.shared.changed, board, again, |board| board.stopped < count);
            if board.stopped == count {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
    }

    fn kick(&self) {
        for kicker in &self.kickers {
            kicker.kick();
        }
    }
}

/// What a meeting found.
struct Found {
    looked: usize,
    busy: usize,
    idle: usize,
    stuck: usize,
    dumps: Vec<Dump>,
}

fn sorted(mut dumps: Vec<Dump>) -> Vec<Dump> {
    dumps.sort_by_key(|dump| dump.seen.vcpu);
    dumps
}

fn work(mut vcpu: Vcpu, shared: &Shared, audit: bool) {
    let listener = accept_kicks()
        .map_err(CrewError::Signal)
        .and_then(|()| install(Filter::VmmVcpu, audit).map_err(CrewError::Seccomp));
    lock(&shared.board).locked.push(listener);
    shared.changed.notify_all();
    if let Some(entry) = wait_to_go(shared, vcpu.index() == 0) {
        #[cfg(feature = "hostile")]
        hostile::enter(hostile::Seat::VmmVcpu);
        if let Err(reason) = vcpu.enter_at(&entry) {
            shared.ending.end(reason);
        }
        run(&mut vcpu, shared);
    }
    let dump = dump(&mut vcpu, shared);
    let mut board = lock(&shared.board);
    board.dumps.push(dump);
    board.stopped = board.stopped.saturating_add(1);
    shared.changed.notify_all();
    drop(board);
    loop {
        std::thread::park();
    }
}

/// What there is to tell of a vCPU.
fn dump(vcpu: &mut Vcpu, shared: &Shared) -> Dump {
    let started = vcpu.rest() != Rest::Off;
    let seen = VcpuSeen {
        vcpu: vcpu.index(),
        started: started || vcpu.exits().total() > 0,
        exits: vcpu.exits(),
        earlier_counter: None,
        program_counter: vcpu.program_counter(),
    };
    Dump { seen, lines: shared.debug.then(|| vcpu.dump()) }
}

/// Waits for the word to go; `None` when the run is over before it began.
fn wait_to_go(shared: &Shared, keeps_the_watch: bool) -> Option<Entry> {
    loop {
        let until = Instant::now().checked_add(shared.watch.interval()).unwrap_or_else(Instant::now);
        let board = lock(&shared.board);
        let board =
            wait_while_until(&shared.changed, board, until, |board| board.entry.is_none() && !shared.ending.is_over());
        if shared.ending.is_over() {
            return None;
        }
        if board.entry.is_some() {
            return board.entry;
        }
        drop(board);
        if keeps_the_watch {
            shared.watch.look();
        }
    }
}

fn run(vcpu: &mut Vcpu, shared: &Shared) {
    let mut attended = 0;
    loop {
        // First forget the kick, then look for its reason: see `kick`.
        vcpu.immediate_exit().clear();
        if shared.ending.is_over() {
            return;
        }
        if shared.meeting.load(Ordering::SeqCst) {
            attended = attend(vcpu, shared, attended);
        }
        match vcpu.run(&shared.devices) {
            Ok(Step::Handled) => {
                shared.count_exit();
            }
            Ok(Step::Kicked) => {}
            Err(reason) => shared.ending.end(reason),
        }
    }
}

/// Takes part in the current meeting, unless it is over or was attended already. Returns the meeting attended last.
fn attend(vcpu: &mut Vcpu, shared: &Shared, attended: u64) -> u64 {
    let mut board = lock(&shared.board);
    let round = board.round;
    if board.phase != Phase::Gather || round == attended {
        return attended;
    }
    board.arrived = board.arrived.saturating_add(1);
    shared.changed.notify_all();
    board = wait_while(&shared.changed, board, |board| board.round == round && board.phase == Phase::Gather);
    if board.round != round || board.phase != Phase::Look {
        return round;
    }
    let purpose = board.purpose;
    drop(board);
    let (rest, dump) = match purpose {
        Purpose::Rest => (vcpu.rest(), None),
        Purpose::Dump => (Rest::Busy, Some(dump(vcpu, shared))),
    };
    board = lock(&shared.board);
    board.looked = board.looked.saturating_add(1);
    board.busy = board.busy.saturating_add(usize::from(rest == Rest::Busy));
    board.idle = board.idle.saturating_add(usize::from(rest == Rest::Idle));
    board.stuck = board.stuck.saturating_add(usize::from(rest == Rest::Stuck));
    board.dumps.extend(dump);
    shared.changed.notify_all();
    drop(wait_while(&shared.changed, board, |board| board.round == round && board.phase == Phase::Look));
    round
}

/// A KVM error as the end of the run.
pub(crate) fn kvm_error(what: impl std::fmt::Display) -> StopReason {
    StopReason::KvmError(wire::Text::truncated(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meeting_keeps_what_stopped_threads_left() {
        let (earlier_counter, program_counter) = (None, None);
        let seen = VcpuSeen { vcpu: 3, started: true, exits: Default::default(), earlier_counter, program_counter };
        let dumps = vec![Dump { seen, lines: None }];
        let mut board = Board { stopped: 1, arrived: 2, busy: 1, dumps: dumps.clone(), ..Board::default() };
        board.call_meeting(7, Purpose::Rest);
        assert_eq!((board.round, board.phase, board.arrived, board.busy), (7, Phase::Gather, 0, 0));
        assert_eq!((board.stopped, board.dumps), (1, dumps));
    }
}
