//! A disk image in memory that counts what is done to it, keeps apart what was made durable, and dies when it is told to.

use device_procs::block::{Action, Buffers, Completion, Kernel, Operation, Store};
use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a file would hold.
#[derive(Debug, Default)]
pub struct State {
    /// What a reader finds, also after the process that wrote it is gone.
    pub content: Vec<u8>,
    /// What a reader finds after the host has lost its power, at the least.
    pub durable: Vec<u8>,
    /// Calls that changed the content, or would have.
    pub changes: usize,
    /// Calls left before the process dies; what is asked for afterwards is not done.
    pub left: Option<usize>,
    /// Whether `fallocate` is not to be had.
    pub no_allocate: bool,
    /// Whether calls do half of what they are asked for.
    pub short: bool,
}

/// A disk image in memory, shared with whoever looks at it.
#[derive(Debug, Clone, Default)]
pub struct Image(Arc<Mutex<State>>);

impl Image {
    /// An image with this content, all of it durable.
    #[must_use]
    pub fn new(content: &[u8]) -> Self {
        let state = State { content: content.to_vec(), durable: content.to_vec(), ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Its state.
    ///
    /// # Panics
    /// When a thread died while it looked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("one thread")
    }

    /// Whether the process is gone.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().left == Some(0)
    }

    /// Begins a call of `bytes` bytes at `offset`: the state, and how many of them are done.
    fn begin(&self, offset: u64, bytes: usize) -> Result<(MutexGuard<'_, State>, usize, usize), Errno> {
        let mut state = self.state();
        if let Some(left) = state.left {
            state.left = Some(left.saturating_sub(1));
            if left <= 1 {
                return Err(Errno::EIO);
            }
        }
        let start = usize::try_from(offset).expect("an offset");
        assert!(start + bytes <= state.content.len(), "{bytes} bytes at {offset} are beyond the disk");
        let now = if state.short { bytes.div_ceil(2) } else { bytes };
        Ok((state, start, now))
    }
}

impl Store for Image {
    fn read_at(&self, into: &Buffers<'_>, offset: u64) -> Result<usize, Errno> {
        let (state, start, now) = self.begin(offset, into.len())?;
        Ok(into.copy_from(&state.content[start..start + now]))
    }

    fn write_at(&self, from: &Buffers<'_>, offset: u64) -> Result<usize, Errno> {
        let (mut state, start, now) = self.begin(offset, from.len())?;
        state.changes += 1;
        Ok(from.copy_to(&mut state.content[start..start + now]))
    }

    fn sync_data(&self) -> Result<(), Errno> {
        let (mut state, _, _) = self.begin(0, 0)?;
        state.durable = state.content.clone();
        Ok(())
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
        let len = usize::try_from(len).expect("a length");
        let (mut state, start, _) = self.begin(offset, len)?;
        state.changes += 1;
        if state.no_allocate {
            return Err(Errno::EOPNOTSUPP);
        }
        let zeroes = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_ZERO_RANGE;
        assert!(flags.intersects(zeroes) && flags.contains(FallocateFlags::FALLOC_FL_KEEP_SIZE), "{flags:?}");
        state.content[start..start + len].fill(0);
        Ok(())
    }
}

/// What stands for an io_uring over an image: it does what it was handed over the last one first, and is interrupted before
/// every third.
#[derive(Debug)]
pub struct LazyKernel {
    image: Image,
    queued: Vec<(u16, Operation)>,
    done: Vec<Completion>,
    count: usize,
}

impl LazyKernel {
    /// One with nothing to do.
    #[must_use]
    pub fn new(image: &Image) -> Self {
        Self { image: image.clone(), queued: Vec::new(), done: Vec::new(), count: 0 }
    }
}

impl Kernel for LazyKernel {
    fn push(&mut self, tag: u16, operation: Operation) {
        let is_there = |(other, _): &(u16, Operation)| *other == tag;
        assert!(!self.queued.iter().any(is_there), "a tag is in flight twice");
        self.queued.push((tag, operation));
    }

    fn enter(&mut self, wait: bool) -> Result<(), Errno> {
        assert!(!wait || !self.queued.is_empty() || !self.done.is_empty(), "nothing is waited for");
        while let Some((tag, operation)) = self.queued.pop() {
            self.count += 1;
            let (buffers, offset) = (operation.held.buffers(), operation.offset);
            let result = match operation.action {
                _ if self.count.is_multiple_of(3) => Err(Errno::EINTR),
                Action::Read => self.image.read_at(buffers, offset),
                Action::Write => self.image.write_at(buffers, offset),
                Action::Sync => self.image.sync_data().map(|()| 0),
            };
            self.done.push(Completion { tag, result, operation });
        }
        Ok(())
    }

    fn pop(&mut self) -> Option<Completion> {
        self.done.pop()
    }

    fn is_behind(&self) -> bool {
        !self.queued.is_empty()
    }
}
