//! Core scheduling: no hardware thread runs a process of a machine while its sibling runs anything else
//! (Linux 5.14, "Core Scheduling"), so that neither can watch the other through the core that they share.
//!
//! A cookie is inherited: the broker takes a new one, starts the processes, and takes another one for itself.
#![allow(unsafe_code, reason = "PR_SCHED_CORE has no safe wrapper")]

use nix::errno::Errno;
use nix::unistd::Pid;

/// Of one thread, and of all threads of a process (linux/prctl.h, `PR_SCHED_CORE_SCOPE_…`).
const THREAD: libc::c_ulong = 0;
const THREAD_GROUP: libc::c_ulong = 1;

/// The cookie of a machine's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie(u64);

/// The broker has the machine's cookie, for the processes that it starts. Dropping it takes another one.
#[derive(Debug)]
pub(crate) struct Shared(Option<Cookie>);

impl Shared {
    /// Takes a new cookie. None where the kernel has no core scheduling, or no core of this host has two threads.
    pub(crate) fn take() -> Self {
        let cookie = create().and_then(|()| get(Pid::from_raw(0)));
        Self(
            cookie
                .inspect_err(|errno| tracing::debug!("no core scheduling: {errno}"))
                .ok()
                .filter(|&got| got != Cookie(0)),
        )
    }

    /// Takes another cookie for the broker; gives that of the processes.
    ///
    /// # Errors
    /// When the kernel has no memory for it: the broker would share the cores of the machine.
    pub(crate) fn leave(mut self) -> Result<Option<Cookie>, Errno> {
        let Some(cookie) = self.0.take() else { return Ok(None) };
        create()?;
        Ok(Some(cookie).filter(|&cookie| get(Pid::from_raw(0)) != Ok(cookie)))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Only where a launch has failed.
        if self.0.is_some()
            && let Err(errno) = create()
        {
            tracing::debug!("the broker keeps the cookie of its processes: {errno}");
        }
    }
}

impl Cookie {
    /// Whether the process `pid` has it.
    pub(crate) fn is_of(self, pid: Pid) -> bool {
        get(pid) == Ok(self)
    }
}

/// Whether the kernel has core scheduling, and a core with two threads to need it.
///
/// # Errors
/// `ENODEV` where no core has two threads, another error where the kernel cannot do it.
pub(crate) fn ask() -> Result<(), Errno> {
    get(Pid::from_raw(0)).map(drop)
}

fn create() -> Result<(), Errno> {
    let (create, own, none): (libc::c_ulong, libc::c_ulong, libc::c_ulong) = (1, 0, 0);
    // SAFETY: PR_SCHED_CORE_CREATE takes integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SCHED_CORE, create, own, THREAD_GROUP, none) }).map(drop)
}

fn get(pid: Pid) -> Result<Cookie, Errno> {
    let get: libc::c_ulong = 0;
    let pid = libc::c_ulong::try_from(pid.as_raw()).map_err(|_negative| Errno::EINVAL)?;
    let mut cookie = 0u64;
    // SAFETY: PR_SCHED_CORE_GET writes a number of 64 bits to `cookie`, and takes integers besides.
    Errno::result(unsafe { libc::prctl(libc::PR_SCHED_CORE, get, pid, THREAD, &raw mut cookie) })?;
    Ok(Cookie(cookie))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_has_another_cookie_than_its_processes() {
        let shared = Shared::take();
        let Some(of_processes) = shared.0 else {
            eprintln!("skipped: no core scheduling here: {:?}", create());
            assert_eq!(shared.leave(), Ok(None));
            return;
        };
        assert_eq!(get(Pid::from_raw(0)), Ok(of_processes));
        assert_eq!(shared.leave(), Ok(Some(of_processes)));
        assert_ne!(get(Pid::from_raw(0)), Ok(of_processes));
    }
}
