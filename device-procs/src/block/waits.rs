//! What the loop waits for: one epoll instance, made before the jail is shut.
//!
//! A kick is waited for by its edge: each notification of the driver wakes the loop, and nobody reads the eventfd's counter.
//! Distrusts the front end: what cannot be waited for is refused.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::fd::AsFd;

/// The most events taken at once; what is left comes with the next call.
const EVENTS: usize = 8;

/// What woke the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The broker.
    Control,
    /// The front end.
    FrontEnd,
    /// The kernel, which did what was handed over to it.
    Done,
    /// The driver, on the ring with this index.
    Kick(usize),
}

impl Source {
    /// Kicks come after the others.
    const KICKS: u64 = 3;

    fn to_data(self) -> u64 {
        match self {
            Self::Control => 0,
            Self::FrontEnd => 1,
            Self::Done => 2,
            Self::Kick(index) => Self::KICKS.saturating_add(index as u64),
        }
    }

    fn from_data(data: u64) -> Self {
        match data {
            0 => Self::Control,
            1 => Self::FrontEnd,
            2 => Self::Done,
            other => Self::Kick(usize::try_from(other.saturating_sub(Self::KICKS)).unwrap_or(usize::MAX)),
        }
    }
}

/// The epoll instance.
#[derive(Debug)]
pub(super) struct Waits(Epoll);

impl Waits {
    /// One that waits for nothing yet.
    ///
    /// # Errors
    /// When the host has no more descriptors.
    pub(super) fn new() -> Result<Self, Errno> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(Self)
    }

    /// Waits for `fd` from now on.
    ///
    /// # Errors
    /// When it cannot be waited for: it is a file of a disk, say.
    pub(super) fn add(&self, source: Source, fd: impl AsFd) -> Result<(), Errno> {
        let edge = if matches!(source, Source::Kick(_)) { EpollFlags::EPOLLET } else { EpollFlags::empty() };
        self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | edge, source.to_data()))
    }

    /// Waits for `fd` no more. To be called before it is closed: it stays waited for as long as another process has it open.
    pub(super) fn remove(&self, fd: impl AsFd) {
        // What was never added needs not be removed.
        self.0.delete(fd).unwrap_or(());
    }

    /// What there is to do; with `look`, now, else as soon as there is something. Errors and hang-ups count as well: whoever
    /// reads next is told.
    ///
    /// # Errors
    /// Those of `epoll_wait`, but for a signal that interrupts it.
    pub(super) fn wait(&self, look: bool) -> Result<impl Iterator<Item = Source> + use<>, Errno> {
        let timeout = if look { EpollTimeout::ZERO } else { EpollTimeout::NONE };
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = loop {
            match self.0.wait(&mut events, timeout) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        Ok(events.into_iter().take(count).map(|event| Source::from_data(event.data())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};

    fn eventfd() -> EventFd {
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()
    }

    fn look(waits: &Waits) -> Vec<Source> {
        waits.wait(true).unwrap().collect()
    }

    #[test]
    fn each_kick_wakes_once_and_is_never_read() {
        let (waits, kick) = (Waits::new().unwrap(), eventfd());
        waits.add(Source::Kick(3), &kick).unwrap();
        assert_eq!(look(&waits), []);
        for _ in 0..2 {
            kick.write(1).unwrap();
            assert_eq!(look(&waits), [Source::Kick(3)]);
            assert_eq!(look(&waits), []);
        }
    }

    #[test]
    fn kick_from_before_it_was_waited_for_is_not_lost() {
        let (waits, kick) = (Waits::new().unwrap(), eventfd());
        kick.write(1).unwrap();
        waits.add(Source::Kick(0), &kick).unwrap();
        assert_eq!(look(&waits), [Source::Kick(0)]);
    }

    #[test]
    fn socket_is_told_of_until_it_is_read() {
        let (waits, control) = (Waits::new().unwrap(), eventfd());
        waits.add(Source::Control, &control).unwrap();
        control.write(1).unwrap();
        assert_eq!((look(&waits), look(&waits)), (vec![Source::Control], vec![Source::Control]));
    }

    #[test]
    fn removed_kick_wakes_nobody_although_another_has_it_open() {
        let (waits, kick) = (Waits::new().unwrap(), eventfd());
        let ours = kick.as_fd().try_clone_to_owned().unwrap();
        waits.add(Source::Kick(0), &ours).unwrap();
        waits.remove(&ours);
        drop(ours);
        kick.write(1).unwrap();
        assert_eq!(look(&waits), []);
    }

    #[test]
    fn file_that_cannot_be_waited_for_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Waits::new().unwrap().add(Source::Kick(0), &file), Err(Errno::EPERM));
    }
}
