//! One empty network namespace for all processes of a machine, where the broker may make it: a new one takes the kernel
//! longer than the other six namespaces together.
//!
//! It is made by the broker, so that no process in it has a right over it, not even in its own user namespace: its
//! loopback interface stays down. An ordinary user's broker cannot; there, each process is alone in one.

use super::SpawnError;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, fstat};
use std::os::fd::OwnedFd;

/// The network namespace of the calling thread (namespaces(7)).
const OWN: &str = "/proc/thread-self/ns/net";

/// The calling thread is in an empty network namespace, and so are the processes that it starts. Dropping this goes back.
#[derive(Debug)]
pub struct EmptyNet {
    back: OwnedFd,
    number: u64,
}

impl EmptyNet {
    /// Goes into a new one; none where the broker may not make one, or could not come back.
    ///
    /// # Errors
    /// When the broker's own namespace cannot be seen, or the new one cannot be.
    pub fn enter() -> Result<Option<Self>, SpawnError> {
        let back = own_namespace()?;
        // To where it is already: takes the rights that the way back takes, and changes nothing.
        if setns(&back, CloneFlags::CLONE_NEWNET).and_then(|()| unshare(CloneFlags::CLONE_NEWNET)).is_err() {
            return Ok(None);
        }
        let mut entered = Self { back, number: 0 };
        entered.number = fstat(own_namespace()?).map_err(SpawnError::OwnNet)?.st_ino;
        Ok(Some(entered))
    }

    /// Its inode number, by which /proc shows it.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for EmptyNet {
    fn drop(&mut self) {
        // It was possible before. A broker that stays in it reaches less, and the look at each jail would find it there.
        setns(&self.back, CloneFlags::CLONE_NEWNET).unwrap_or(());
    }
}

fn own_namespace() -> Result<OwnedFd, SpawnError> {
    let open = |path| open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    open(OWN).map_err(|errno: Errno| SpawnError::OwnNet(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number() -> u64 {
        fstat(own_namespace().unwrap()).unwrap().st_ino
    }

    #[test]
    fn thread_comes_back_from_the_empty_namespace() {
        let before = number();
        match EmptyNet::enter().unwrap() {
            Some(entered) => {
                assert_ne!(entered.number(), before);
                assert_eq!(number(), entered.number());
                let interfaces = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
                let names: Vec<_> =
                    interfaces.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
                assert!(names.iter().all(|name| *name == "lo" || name.ends_with('0')), "{names:?}");
                drop(entered);
            }
            None => assert!(!nix::unistd::geteuid().is_root(), "root may make one"),
        }
        assert_eq!(number(), before);
    }
}
