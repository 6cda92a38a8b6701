//! The second half of a jail, which a process builds itself before it reads the first untrusted byte. The first half,
//! namespaces and an empty root, stands before the process is exec'ed: see [`crate::spawn`].

use crate::seccomp::{Filter, SeccompError, install};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetError,
    Scope,
};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use wire::clock::now_ns;
use wire::message::{Lockdown, Times};

/// The exit status of a process that panicked.
pub const PANIC_STATUS: i32 = 101;

/// The Landlock ABI whose rights are denied, as far as the kernel knows them: the newest one whose rights were reviewed.
const LANDLOCK_ABI: ABI = ABI::V7;

/// All the heap that a jailed process of a machine has, in bytes: many times what the busiest of them uses, a loader with the
/// longest list of program headers that an ELF file can have. Memory that nobody touches costs nothing.
const HEAP_BYTES: usize = 16 << 20;

/// All the heap of an inspector, in bytes: a log of 16 MiB and what is made of it, or the window of a decompressor and what
/// is kept of an archive. Beyond it, the kernel kills the process for the call by which it asks for more.
pub const INSPECTOR_HEAP_BYTES: usize = 192 << 20;

/// Why a process could not lock itself down.
#[derive(Debug, thiserror::Error)]
pub enum LockdownError {
    /// The process could not be made undumpable.
    #[error("the process could not be made undumpable")]
    Dumpable(#[source] Errno),
    /// The signal handlers of the runtime could not be removed.
    #[error("the runtime's signal handlers could not be removed")]
    Faults(#[source] Errno),
    /// The Landlock ruleset was refused.
    #[error("the Landlock ruleset was refused")]
    Landlock(#[from] RulesetError),
    /// The seccomp filter was refused.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// A finished jail: what to send with `Ready`.
#[derive(Debug)]
pub struct Jailed {
    /// What was enforced.
    pub report: Lockdown,
    listeners: Vec<OwnedFd>,
}

impl Jailed {
    /// The descriptors to send along with the report (none unless auditing).
    #[must_use]
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.listeners.iter().map(AsFd::as_fd).collect()
    }

    /// Adds the listener of another thread's filter.
    pub fn add_listener(&mut self, listener: Option<OwnedFd>) {
        self.listeners.extend(listener);
        self.report.listeners = u8::try_from(self.listeners.len()).unwrap_or(u8::MAX);
    }
}

/// When the process began, for `--timings`.
static BEGUN_NS: AtomicU64 = AtomicU64::new(0);

/// What the `main` of every jailed process does first: notes the time, and makes a panic end it as [`install_panic_hook`] says.
pub fn begin_process() {
    BEGUN_NS.store(now_ns(), Ordering::Relaxed);
    install_panic_hook();
}

/// Makes a panic say one line on standard error and end the process with [`PANIC_STATUS`] at once, by no other system
/// calls than `write` and `exit_group`: aborting by a signal does not work in the first process of a pid namespace.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        say(format_args!("{panic}"));
        exit_now(PANIC_STATUS);
    }));
}

/// Writes a line to standard error, by one `write`. Unlike `eprintln!`, it does not panic when that is gone or full: a
/// process that says more than the broker reads loses its words, not its life.
pub fn say(line: std::fmt::Arguments<'_>) {
    say_to(&mut std::io::stderr(), line);
}

fn say_to(to: &mut impl std::io::Write, line: std::fmt::Arguments<'_>) {
    to.write_all(format!("{line}\n").as_bytes()).unwrap_or(());
}

/// Ends the process at once: no exit handlers, so that a policy needs none of the system calls that they would make.
#[allow(unsafe_code, reason = "std::process::exit runs exit handlers")]
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(status) }
}

/// Everything but seccomp: not dumpable, no writable-executable memory, Landlock deny-all. For a process with several
/// threads, to be called before the second one starts; each thread then calls [`install`] itself.
///
/// # Errors
/// When the kernel refuses a step that it supports. A kernel without Landlock (before 5.13) or `PR_SET_MDWE` (before 6.3)
/// is no error: the report says so.
pub fn begin() -> Result<Jailed, LockdownError> {
    begin_with_heap(HEAP_BYTES)
}

fn begin_with_heap(heap_bytes: usize) -> Result<Jailed, LockdownError> {
    let times = Times { begun_ns: BEGUN_NS.load(Ordering::Relaxed), prepared_ns: now_ns() };
    nix::sys::prctl::set_dumpable(false).map_err(LockdownError::Dumpable)?;
    die_of_faults().map_err(LockdownError::Faults)?;
    reserve_heap(heap_bytes);
    let (landlock_abi, mdwe) = (deny_all()?, refuse_writable_executable_memory());
    let report = Lockdown { landlock_abi, mdwe, listeners: 0, times };
    Ok(Jailed { report, listeners: Vec::new() })
}

/// The whole of it, for a process with one thread.
///
/// # Errors
/// As [`begin`] and [`install`].
pub fn enter(filter: Filter, audit: bool) -> Result<Jailed, LockdownError> {
    enter_with_heap(filter, audit, HEAP_BYTES)
}

/// As [`enter`], with another heap than a process of a machine has.
///
/// # Errors
/// As there.
pub fn enter_with_heap(filter: Filter, audit: bool, heap_bytes: usize) -> Result<Jailed, LockdownError> {
    let mut jailed = begin_with_heap(heap_bytes)?;
    jailed.add_listener(install(filter, audit)?);
    Ok(jailed)
}

/// Makes the allocator take `heap_bytes` now, for all threads, and ask the kernel for nothing afterwards (mallopt(3)): no
/// policy needs to allow it more memory, and a captured process can take no more.
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
fn reserve_heap(heap_bytes: usize) {
    let settings = [
        // One heap for all threads: those of other arenas grow by mprotect.
        (libc::M_ARENA_MAX, 1),
        // No block is mapped by itself, however large.
        (libc::M_MMAP_MAX, 0),
        // Nothing is given back.
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
    ];
    for (parameter, value) in settings {
        // SAFETY: mallopt takes two numbers and may be called at any time. One that it does not like changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
    drop(std::hint::black_box(Vec::<u8>::with_capacity(heap_bytes)));
}

/// Takes the Rust runtime's handlers of SIGSEGV and SIGBUS away: they make system calls that no policy allows, so that a
/// process which dies of a fault would seem to die of its filter.
#[allow(unsafe_code, reason = "sigaction is unsafe for the handlers that it can install")]
fn die_of_faults() -> Result<(), Errno> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default action runs no code of this process.
        unsafe { sigaction(signal, &default) }?;
    }
    Ok(())
}

/// A Landlock domain without a single rule: no path, no TCP port, no abstract socket and no process outside of it.
/// Returns the ABI that was enforced, 0 for none.
fn deny_all() -> Result<u8, LockdownError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
        .scope(Scope::from_all(LANDLOCK_ABI))?
        .create()?
        .restrict_self()?;
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => {
            let abi = std::cmp::min(effective_abi, LANDLOCK_ABI);
            Ok(u8::try_from(abi as i32).unwrap_or(0))
        }
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => Ok(0),
    }
}

/// `PR_SET_MDWE` with `PR_MDWE_REFUSE_EXEC_GAIN` (linux/prctl.h, Linux 6.3); whether the kernel has it.
#[allow(unsafe_code, reason = "nix does not wrap PR_SET_MDWE")]
fn refuse_writable_executable_memory() -> bool {
    const PR_MDWE_REFUSE_EXEC_GAIN: libc::c_ulong = 1;
    let none: libc::c_ulong = 0;
    // SAFETY: this prctl takes integers only and changes nothing but what later mmap and mprotect calls may ask for.
    unsafe { libc::prctl(libc::PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, none, none, none) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    #[test]
    fn line_for_a_full_pipe_is_lost_and_nothing_else() {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let (mut read, mut write) = (File::from(read), File::from(write));
        while write.write(&[b'x'; 4096]).is_ok() {}
        say_to(&mut write, format_args!("lost"));
        let mut all = vec![0; 1 << 21];
        let full = read.read(&mut all).unwrap();
        assert!(all[..full].iter().all(|&byte| byte == b'x'));
        say_to(&mut write, format_args!("{} of {}", 1, 2));
        let length = read.read(&mut all).unwrap();
        assert_eq!(&all[..length], b"1 of 2\n");
        drop(read);
        say_to(&mut write, format_args!("nobody reads"));
    }
}
