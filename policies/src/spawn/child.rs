//! What a child does between clone3 and execveat: only async-signal-safe calls, no allocation, nothing that could panic.
#![allow(unsafe_code, reason = "clone3, execveat and pidfd_send_signal have no safe wrapper")]

use super::{Limits, Step, harden};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::Pid;
use std::ffi::{CStr, c_char, c_int, c_long, c_ulong};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;

/// Everything that the child needs, prepared before it exists.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) setup: RawFd,
    pub(super) parents_setup: RawFd,
    pub(super) binary: RawFd,
    pub(super) control: RawFd,
    pub(super) log: RawFd,
    pub(super) name: &'a CStr,
    pub(super) limits: Limits,
    pub(super) drop_groups: bool,
}

type Failure = (Step, Errno);

/// Any folder that exists on every Linux system; it is covered for the moment that the new root needs to be attached.
const MOUNT_POINT: &CStr = c"/proc";

/// `CLONE_INTO_CGROUP` of linux/sched.h (Linux 5.7), which does not fit libc's type.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Clones the calling process into `namespaces`, and `cgroup` if there is one, and runs `plan` in the clone; returns the
/// clone's pid and pidfd.
pub(super) fn clone_into(
    namespaces: c_int,
    cgroup: Option<BorrowedFd<'_>>,
    plan: &Plan<'_>,
) -> Result<(Pid, OwnedFd), Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is a struct of integers, for all of which 0 is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(namespaces.cast_unsigned()) | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    arguments.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
    }
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: without CLONE_VM this is a fork: `arguments` is valid for its size, `pidfd` outlives the call, and the child
    // has its own copy of the stack. The broker has one thread (see `spawn`), so no lock is held by another one.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    let pid = Errno::result(result)?;
    if pid == 0 {
        let (step, errno) = run(plan);
        fail(plan.setup, step, errno);
    }
    let pid = Pid::from_raw(i32::try_from(pid).map_err(|_error| Errno::EOVERFLOW)?);
    // SAFETY: with CLONE_PIDFD, the kernel has stored a new descriptor of this process in `pidfd`.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Tells the broker at which step this child failed, and ends it.
fn fail(setup: RawFd, step: Step, errno: Errno) -> ! {
    let [a, b, c, d] = (errno as i32).to_le_bytes();
    let report = [step as u8, a, b, c, d];
    // SAFETY: `report` is valid for its length, and the result does not matter any more.
    unsafe { libc::write(setup, report.as_ptr().cast(), report.len()) };
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(1) }
}

/// Builds the jail around the calling process and executes the binary; returns only if a step failed.
fn run(plan: &Plan<'_>) -> Failure {
    match build(plan) {
        Ok(()) => (Step::Exec, execute(plan)),
        Err(failure) => failure,
    }
}

fn build(plan: &Plan<'_>) -> Result<(), Failure> {
    await_ids(plan).map_err(|errno| (Step::Ids, errno))?;
    nix::unistd::setsid().map_err(|errno| (Step::Session, errno))?;
    empty_root()?;
    // The order matters: each of these needs a capability that the last one gives up.
    lock_securebits().map_err(|errno| (Step::Securebits, errno))?;
    empty_bounding_set().map_err(|errno| (Step::BoundingSet, errno))?;
    set_ids(plan.drop_groups).map_err(|errno| (Step::SetIds, errno))?;
    drop_capabilities().map_err(|errno| (Step::Capabilities, errno))?;
    // A change of ids clears this signal, so it comes after it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| (Step::ParentDeath, errno))?;
    harden::shut_speculation().map_err(|errno| (Step::Speculation, errno))?;
    harden::refuse_merging().map_err(|errno| (Step::Merging, errno))?;
    nix::sys::prctl::set_no_new_privs().map_err(|errno| (Step::NoNewPrivs, errno))?;
    arrange_descriptors(plan).map_err(|errno| (Step::Descriptors, errno))?;
    set_limits(plan.limits).map_err(|errno| (Step::Rlimits, errno))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(|errno| (Step::Exec, errno))
}

/// Waits until the broker has written the id maps.
fn await_ids(plan: &Plan<'_>) -> Result<(), Errno> {
    // SAFETY: closing this process's copy of the broker's end; nothing in this process uses it.
    unsafe { libc::close(plan.parents_setup) };
    let mut byte = [0u8];
    loop {
        // SAFETY: `byte` is valid for one byte.
        match Errno::result(unsafe { libc::read(plan.setup, byte.as_mut_ptr().cast(), 1) }) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err(Errno::EPIPE),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn empty_root() -> Result<(), Failure> {
    let none: Option<&CStr> = None;
    mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|errno| (Step::PrivateMounts, errno))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(c"none"), MOUNT_POINT, Some(c"tmpfs"), flags, Some(c"size=4k,nr_inodes=1,mode=0555"))
        .map_err(|errno| (Step::EmptyRoot, errno))?;
    nix::unistd::chdir(MOUNT_POINT).map_err(|errno| (Step::EmptyRoot, errno))?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one and is taken off.
    nix::unistd::pivot_root(c".", c".").map_err(|errno| (Step::PivotRoot, errno))?;
    umount2(c".", MntFlags::MNT_DETACH).map_err(|errno| (Step::PivotRoot, errno))?;
    nix::unistd::chdir(c"/").map_err(|errno| (Step::PivotRoot, errno))?;
    mount(none, c"/", none, flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, none)
        .map_err(|errno| (Step::ReadOnlyRoot, errno))
}

/// prctl(2) with integer arguments.
fn prctl(option: c_int, argument: c_ulong) -> Result<c_int, Errno> {
    let none: c_ulong = 0;
    // SAFETY: the options used here take integers only.
    Errno::result(unsafe { libc::prctl(option, argument, none, none, none) })
}

/// No exec as id 0 brings capabilities, and none of this can be changed back (capabilities(7)).
fn lock_securebits() -> Result<(), Errno> {
    let bits = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    prctl(libc::PR_SET_SECUREBITS, c_ulong::from(bits.cast_unsigned())).map(drop)
}

fn empty_bounding_set() -> Result<(), Errno> {
    // Capabilities are numbered from 0 without a gap; the first one that the kernel does not know ends the loop.
    for capability in 0.. {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(_) => {}
            Err(Errno::EINVAL) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Takes on id 0 of the new user namespace, which is the unprivileged id of the host that the broker mapped.
fn set_ids(drop_groups: bool) -> Result<(), Errno> {
    // The raw calls: glibc's wrappers signal the other threads, which are the broker's own.
    if drop_groups {
        // SAFETY: no group is read from the null pointer, as the count is 0.
        Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, 0, null::<libc::gid_t>()) })?;
    }
    // SAFETY: integers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) })?;
    // SAFETY: integers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }).map(drop)
}

/// capset(2) of version 3 with empty sets.
fn drop_capabilities() -> Result<(), Errno> {
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [LINUX_CAPABILITY_VERSION_3, 0];
    let data = [0u32; 6];
    // SAFETY: version 3 reads a header of two words and two structs of three words each.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// 0 is the control channel, 1 and 2 are the log; everything else closes at execveat.
fn arrange_descriptors(plan: &Plan<'_>) -> Result<(), Errno> {
    // The sources may have the numbers 0 to 2 themselves: move them out of the way first.
    let control = duplicate_above(plan.control)?;
    let log = duplicate_above(plan.log)?;
    for (from, to) in [(control, 0), (log, 1), (log, 2)] {
        // SAFETY: integers only; whatever had the number `to` was this process's copy of a descriptor of the broker.
        Errno::result(unsafe { libc::dup3(from, to, 0) })?;
    }
    // SAFETY: integers only.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    match Errno::result(result) {
        Ok(_) => Ok(()),
        // Before Linux 5.11: all descriptors of the broker are close-on-exec by themselves; `inspect` checks it.
        Err(Errno::EINVAL | Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn duplicate_above(fd: RawFd) -> Result<RawFd, Errno> {
    const FIRST: c_int = 10;
    // SAFETY: integers only.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, FIRST) })
}

fn set_limits(limits: Limits) -> Result<(), Errno> {
    let set = |resource, value| match setrlimit(resource, value, value) {
        // An ordinary user's hard limit may be lower already.
        Err(Errno::EPERM) => Ok(()),
        other => other,
    };
    set(Resource::RLIMIT_CORE, 0)?;
    set(Resource::RLIMIT_AS, limits.address_space_bytes)?;
    if let Some(bytes) = limits.file_size_bytes {
        set(Resource::RLIMIT_FSIZE, bytes)?;
    }
    if let Some(bytes) = limits.data_bytes {
        set(Resource::RLIMIT_DATA, bytes)?;
    }
    if let Some(seconds) = limits.cpu_seconds {
        set(Resource::RLIMIT_CPU, seconds)?;
    }
    set(Resource::RLIMIT_MEMLOCK, limits.locked_bytes)?;
    set(Resource::RLIMIT_MSGQUEUE, 0)?;
    set(Resource::RLIMIT_NICE, 0)?;
    set(Resource::RLIMIT_RTPRIO, 0)?;
    set(Resource::RLIMIT_SIGPENDING, 64)?;
    set(Resource::RLIMIT_NOFILE, limits.open_files)
}

/// Executes the binary with its name as only argument and no environment; returns why it could not.
fn execute(plan: &Plan<'_>) -> Errno {
    let arguments: [*const c_char; 2] = [plan.name.as_ptr(), null()];
    let environment: [*const c_char; 1] = [null()];
    // SAFETY: both arrays end with a null pointer, and all strings end with a NUL and outlive the call.
    let result: c_long = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            plan.binary,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(result).err().unwrap_or(Errno::UnknownErrno)
}

/// pidfd_send_signal(2) with SIGKILL.
pub(super) fn pidfd_kill(pidfd: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: no siginfo is passed, and the descriptor is valid.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, null::<libc::siginfo_t>(), 0)
    };
    Errno::result(result).map(drop)
}
