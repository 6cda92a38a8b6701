//! What holds for one request after the other holds for many in flight; and what is particular to them.

use super::super::buffers::Buffers;
use super::super::disk::Plan;
use super::super::request::{Extent, Request};
use super::{BenchOf, *};

type Bench = BenchOf<true>;

#[allow(clippy::duplicate_mod, reason = "the same cases hold for both engines, see in_flight.rs")]
#[path = "malformed.rs"]
mod malformed;
#[allow(clippy::duplicate_mod, reason = "the same cases hold for both engines, see in_flight.rs")]
#[path = "requests.rs"]
mod requests;

use super::super::server::ServeError;
use super::server::Machine;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT};

/// What a kernel that holds everything does next.
#[derive(Debug, Default)]
struct Plans {
    /// How many things are let go.
    let_go: AtomicUsize,
    /// What the calls that wait fail with, the last one first.
    failures: Mutex<Vec<Errno>>,
}

/// A kernel that holds everything until it is told how many to let go, or somebody waits.
#[derive(Debug)]
struct Held {
    inner: Lazy,
    plans: Arc<Plans>,
}

impl Held {
    fn new(image: &Spy, plans: &Arc<Plans>) -> Box<Self> {
        let inner = Lazy { store: image.clone(), queued: Vec::new(), done: Vec::new(), count: 0 };
        Box::new(Self { inner, plans: Arc::clone(plans) })
    }
}

impl Kernel for Held {
    fn push(&mut self, tag: u16, operation: Operation) {
        self.inner.push(tag, operation);
    }

    fn enter(&mut self, wait: bool) -> Result<(), Errno> {
        if wait {
            if let Some(errno) = self.plans.failures.lock().unwrap().pop() {
                return Err(errno);
            }
            self.plans.let_go.store(usize::MAX, SeqCst);
        }
        self.inner.enter(wait)
    }

    fn pop(&mut self) -> Option<Completion> {
        self.plans.let_go.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).ok().and_then(|_| self.inner.pop())
    }

    fn is_behind(&self) -> bool {
        self.inner.is_behind()
    }
}

/// A disk whose kernel holds `published` requests.
fn holding(mode: DiskMode, requests: &[(u32, u64)]) -> (Bench, Spy, Arc<Plans>) {
    let image = Spy::new(&(0..64u8).flat_map(|sector| [sector; 512]).collect::<Vec<_>>());
    let mut bench = Bench::new(mode, &image);
    let plans = Arc::new(Plans::default());
    bench.ring.set_kernel(Held::new(&image, &plans));
    for (n, &(kind, sector)) in (0..).zip(requests) {
        let at = BUFFERS + 0x1000 * n;
        bench.driver.put(at, &header(kind, sector));
        bench.driver.put(at + 16, &[0xee]);
        let table = TABLE + 64 * n;
        let data = (at + 512, 512, if kind == IN { WRITE } else { 0 });
        let chain = [(at, 16, 0), data, (at + 16, 1, WRITE)];
        let chain = if kind == FLUSH { &[chain[0], chain[2]][..] } else { &chain[..] };
        bench.driver.link(table, chain);
        let len = u32::try_from(16 * chain.len()).unwrap();
        Desc(table, len, INDIRECT, 0).store(&bench.driver.memory, DESCRIPTORS, usize::try_from(n).unwrap());
        bench.driver.publish(u16::try_from(n).unwrap());
    }
    assert_eq!(bench.process().unwrap(), Progress::Idle);
    (bench, image, plans)
}

fn status(bench: &Bench, n: u64) -> u8 {
    bench.driver.get(BUFFERS + 0x1000 * n + 16, 1)[0]
}

#[test]
fn head_in_flight_is_refused_and_everything_else_is_answered_first() {
    let (mut bench, _image, _plans) = holding(DiskMode::ReadOnly, &[(IN, 1), (IN, 2)]);
    assert_eq!(bench.driver.used_index(), 0, "nothing is done yet");
    bench.driver.publish(1);
    assert!(matches!(bench.process(), Err(RingError::InFlight(1))));
    assert_eq!((bench.driver.used_index(), signals(&bench.error)), (2, 1));
    assert_eq!((status(&bench, 0), status(&bench, 1)), (0, 0));
}

#[test]
fn stop_waits_for_what_is_in_flight() {
    let (mut bench, image, _plans) = holding(DiskMode::ReadWrite, &[(OUT, 1), (IN, 2), (FLUSH, 0)]);
    bench.ring.drain(&mut bench.disk).unwrap();
    assert_eq!((bench.driver.used_index(), signals(&bench.call)), (3, 1));
    assert_eq!(image.0.syncs.load(SeqCst), 1);
    assert_eq!(bench.ring.stop(), 3);
}

#[test]
fn memory_lives_as_long_as_something_is_in_flight() {
    let (mut bench, _image, _plans) = holding(DiskMode::ReadOnly, &[(IN, 7)]);
    let weak = Arc::downgrade(&bench.driver.memory);
    bench.driver.memory = guest_memory();
    assert!(weak.upgrade().is_some());
    bench.ring.drain(&mut bench.disk).unwrap();
    assert!(weak.upgrade().is_none());
}

#[test]
fn answers_come_as_they_are_done_and_not_as_they_were_asked_for() {
    let (mut bench, _image, plans) = holding(DiskMode::ReadOnly, &[(IN, 1), (IN, 2)]);
    plans.let_go.store(1, SeqCst);
    bench.process().unwrap();
    assert_eq!((bench.driver.last_used().0, status(&bench, 0), status(&bench, 1)), (0, 0, 0xee));
    plans.let_go.store(1, SeqCst);
    bench.process().unwrap();
    assert_eq!((bench.driver.last_used().0, bench.driver.used_index()), (1, 2));
}

#[test]
fn flush_is_handed_over_after_the_writes_that_were_answered() {
    let (mut bench, image, _plans) = holding(DiskMode::ReadWrite, &[(OUT, 1)]);
    bench.ring.drain(&mut bench.disk).unwrap();
    let writes = image.0.writes.load(SeqCst);
    assert_eq!((writes, image.0.syncs.load(SeqCst)), (1, 0));
    bench.driver.put(BUFFERS, &header(FLUSH, 0));
    bench.driver.link(DESCRIPTORS, &[(BUFFERS, 16, 0), (BUFFERS + 16, 1, WRITE)]);
    bench.driver.publish(0);
    bench.process().unwrap();
    bench.ring.drain(&mut bench.disk).unwrap();
    assert_eq!((bench.driver.used_index(), image.0.syncs.load(SeqCst)), (2, 1));
}

#[test]
fn nothing_is_flushed_but_by_the_kernel() {
    let image = Spy::new(&[1; 64 * 512]);
    image.0.no_allocate.store(true, SeqCst);
    let mut disk = Bench::new(DiskMode::ReadWrite, &image).disk;
    let capacity = SectorCount::from_bytes(64 * 512).unwrap();
    let extent = |bytes| Extent::new(1, bytes, capacity).unwrap();
    for write_through in [true, false] {
        disk.set_write_through(write_through);
        for (request, syncs) in [
            (Request::Flush, true),
            (Request::Write { extent: extent(0), from: Buffers::default() }, write_through),
            (Request::Discard(vec![extent(512)]), write_through),
            (Request::Discard(vec![]), write_through),
            (Request::WriteZeroes(vec![(extent(512), false)]), write_through),
            (Request::Read { extent: extent(0), into: Buffers::default() }, false),
            (Request::GetId { into: Buffers::default() }, false),
        ] {
            let name = format!("{request:?}, write-through {write_through}");
            match disk.plan(request) {
                Plan::Sync => assert!(syncs, "{name}"),
                Plan::Done(status) => assert!(!syncs && status.byte() == 0, "{name}"),
                Plan::Transfer { .. } => panic!("{name}: there are no bytes"),
            }
            assert_eq!(disk.is_write_through(), write_through, "{name}");
            assert_eq!(image.0.syncs.load(SeqCst), 0, "{name}");
        }
    }
}

#[test]
fn kernel_that_is_short_of_something_is_asked_again() {
    let (mut bench, _image, plans) = holding(DiskMode::ReadOnly, &[(IN, 1), (IN, 2)]);
    *plans.failures.lock().unwrap() = vec![Errno::EBUSY, Errno::EINTR, Errno::EAGAIN];
    bench.ring.drain(&mut bench.disk).unwrap();
    assert_eq!((bench.driver.used_index(), status(&bench, 0), status(&bench, 1)), (2, 0, 0));
    assert!(plans.failures.lock().unwrap().is_empty() && bench.ring.is_active());
}

#[test]
fn ring_that_cannot_be_drained_is_an_error_and_not_a_broken_ring() {
    let (mut bench, _image, plans) = holding(DiskMode::ReadOnly, &[(IN, 1)]);
    *plans.failures.lock().unwrap() = vec![Errno::EBADF, Errno::EIO];
    assert_eq!(bench.ring.drain(&mut bench.disk), Err(Errno::EIO));
    assert_eq!((bench.driver.used_index(), signals(&bench.error)), (0, 0));
    // The driver's fault, but what is in flight is worse.
    bench.driver.publish(0);
    assert!(matches!(bench.process(), Err(RingError::Engine(Errno::EBADF))));
}

#[test]
fn stop_is_not_acknowledged_while_something_is_in_flight() {
    let image = Spy::new(&[7; 64 * 512]);
    let plans = Arc::new(Plans { let_go: AtomicUsize::new(0), failures: Mutex::new(vec![Errno::EIO]) });
    let store = image.clone();
    let mut machine = Machine::with_backend(DiskMode::ReadOnly, &image, move |disk| {
        let mut backend = crate::block::backend(disk, None).unwrap();
        backend.set_kernel(Held::new(&store, &plans));
        backend
    });
    machine.activate();
    machine.publish(IN, 0, &[], 512);
    // The kick is processed before the next message but one.
    machine.front_end.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).unwrap();
    machine.front_end.get_vring_base(0).unwrap_err();
    assert!(matches!(machine.join(), Err(ServeError::Engine(Errno::EIO))));
}

#[test]
fn request_waits_when_many_bytes_are_in_flight() {
    let image = Spy::new(&[]);
    image.0.file.set_len(LARGE.into()).unwrap();
    let mut bench = Bench::new(DiskMode::ReadOnly, &image);
    let plans = Arc::new(Plans::default());
    bench.ring.set_kernel(Held::new(&image, &plans));
    publish_large(&mut bench.driver, 4);
    let process_all = |bench: &mut Bench| while bench.process().unwrap() == Progress::More {};
    process_all(&mut bench);
    assert_eq!(bench.driver.used_index(), 0);
    assert!(!bench.ring.is_pending(), "nothing is done without the kernel");
    plans.let_go.store(1, SeqCst);
    process_all(&mut bench);
    assert_eq!(bench.driver.used_index(), 1);
    bench.ring.drain(&mut bench.disk).unwrap();
    assert_eq!(bench.driver.used_index(), 3, "two were begun, and a third when one of them was done");
    assert!(bench.ring.is_pending(), "nobody kicks for the fourth");
    process_all(&mut bench);
    assert_eq!(bench.driver.used_index(), 4);
    assert!(!bench.ring.is_pending());
}

#[test]
fn disabled_ring_answers_what_is_in_flight_and_begins_nothing() {
    let (mut bench, _image, plans) = holding(DiskMode::ReadOnly, &[(IN, 1), (IN, 2)]);
    bench.ring.set_enabled(false);
    bench.driver.publish(2);
    bench.ring.kicked();
    assert!(bench.ring.is_pending() && !bench.ring.is_active());
    assert_eq!(bench.process().unwrap(), Progress::Idle);
    assert!(!bench.ring.is_pending(), "nothing is done yet");
    plans.let_go.store(usize::MAX, SeqCst);
    bench.ring.kicked();
    bench.process().unwrap();
    assert_eq!((bench.driver.used_index(), signals(&bench.call)), (2, 1));
    assert_eq!((status(&bench, 0), status(&bench, 1)), (0, 0));
    bench.ring.kicked();
    assert!(!bench.ring.is_pending(), "a disabled ring with nothing in flight is left alone");
    // What was made available meanwhile is looked at without a kick.
    bench.ring.set_enabled(true);
    assert!(bench.ring.is_pending());
}

#[test]
fn disabled_ring_hands_over_again_what_was_interrupted() {
    let (mut bench, _image, plans) = holding(DiskMode::ReadOnly, &[(IN, 1), (IN, 2), (IN, 3)]);
    bench.ring.set_enabled(false);
    // The kernel interrupts the third operation.
    plans.let_go.store(usize::MAX, SeqCst);
    bench.ring.kicked();
    bench.process().unwrap();
    assert_eq!((bench.driver.used_index(), bench.ring.is_pending()), (3, false));
}
