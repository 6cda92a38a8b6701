//! What a child does between clone3 and execveat.
//!
//! It runs in the broker's memory, on a stack of its own, while the broker goes on: copying the broker's memory for it, only to throw the
//! copy away, took the larger part of a spawn. So it makes system calls by itself alone: no function of the C library,
//! whose `errno` is the broker's; no allocation, no lock, nothing that could panic. It reads its [`Plan`], which nobody changes,
//! and writes to its stack. It holds nothing of anybody else's: untrusted bytes come into play only after the execveat.
#![allow(
    unsafe_code,
    reason = "clone3, execveat and pidfd_send_signal have no safe wrapper, and a child must not set errno"
)]

use super::stack::Stack;
use super::{Limits, Step, harden};
use crate::arch::clone_on_stack;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;
use std::ffi::{CStr, CString, c_char, c_int, c_ulong, c_void};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{from_ref, null};
use syscalls::Sysno;

/// Everything that the child needs, prepared before it exists.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) setup: RawFd,
    pub(super) parents_setup: RawFd,
    pub(super) binary: RawFd,
    pub(super) control: RawFd,
    pub(super) log: RawFd,
    pub(super) name: CString,
    pub(super) limits: Limits,
    pub(super) drop_groups: bool,
}

/// What a child that is not executed yet uses of the broker's memory. It may be dropped once the child is executed or has
/// ended, and must be forgotten where that is not known.
#[derive(Debug)]
pub(super) struct Birth {
    plan: Box<Plan>,
    stack: Stack,
}

type Failure = (Step, Errno);

/// Any folder that exists on every Linux system; it is covered for the moment that the new root needs to be attached.
const MOUNT_POINT: &CStr = c"/proc";

/// `CLONE_INTO_CGROUP` of linux/sched.h (Linux 5.7), which does not fit libc's type.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Clones the calling process into `namespaces`, and `cgroup` if there is one, and runs `plan` in the clone; returns the
/// clone's pid and pidfd, and what it needs until it is executed.
pub(super) fn clone_into(
    namespaces: c_int,
    cgroup: Option<BorrowedFd<'_>>,
    plan: Plan,
) -> Result<(Pid, OwnedFd, Birth), Errno> {
    let birth = Birth { plan: Box::new(plan), stack: Stack::new()? };
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is a struct of integers, for all of which 0 is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = namespaces | libc::CLONE_PIDFD | libc::CLONE_VM;
    arguments.flags = u64::from(flags.cast_unsigned());
    arguments.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
    }
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    arguments.stack = birth.stack.lowest() as u64;
    arguments.stack_size = birth.stack.bytes() as u64;
    let plan = from_ref::<Plan>(&birth.plan).cast();
    // SAFETY: `arguments` is valid for its size and `pidfd` outlives the call. The stack is new. `plan` stays where it is,
    // in `birth`, which the caller keeps until the child is executed or has ended, and nobody changes it.
    let result = unsafe { clone_on_stack(&raw const arguments, size_of::<libc::clone_args>(), begin, plan) };
    let pid = Pid::from_raw(i32::try_from(checked(result)?).map_err(|_error| Errno::EOVERFLOW)?);
    // SAFETY: with CLONE_PIDFD, the kernel has stored a new descriptor of this process in `pidfd`.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }, birth))
}

/// The child, from its first instruction on.
extern "C" fn begin(plan: *const c_void) -> ! {
    // SAFETY: `clone_into` passes its plan, which lives and does not change for as long as this process runs this program.
    let plan = unsafe { &*plan.cast::<Plan>() };
    let (step, errno) = run(plan);
    fail(plan.setup, step, errno)
}

/// A system call that reads or writes nothing of memory but what its arguments point to, which lives at least as long.
pub(super) fn call(number: Sysno, arguments: [usize; 6]) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the callers, all in this module and `harden`, pass integers and pointers to what outlives the call.
    let result = unsafe { syscalls::raw::syscall6(number as usize, a, b, c, d, e, f) };
    checked(result as i64)
}

/// A result of the kernel: the highest 4095 numbers are errors.
fn checked(result: i64) -> Result<usize, Errno> {
    match result {
        -4095..=-1 => Err(Errno::from_raw(i32::try_from(-result).unwrap_or(0))),
        result => usize::try_from(result).map_err(|_negative| Errno::EOVERFLOW),
    }
}

fn number(value: c_int) -> usize {
    // As the kernel takes it: sign-extended.
    (value as isize).cast_unsigned()
}

fn address<T: ?Sized>(value: &T) -> usize {
    from_ref(value).expose_provenance()
}

/// Tells the broker at which step this child failed, and ends it.
fn fail(setup: RawFd, step: Step, errno: Errno) -> ! {
    let [a, b, c, d] = (errno as i32).to_le_bytes();
    let report = [step as u8, a, b, c, d];
    // The result does not matter any more.
    let _written = call(Sysno::write, [number(setup), address(&report), report.len(), 0, 0, 0]);
    loop {
        let _never = call(Sysno::exit_group, [1, 0, 0, 0, 0, 0]);
    }
}

/// Builds the jail around the calling process and executes the binary; returns only if a step failed.
fn run(plan: &Plan) -> Failure {
    match build(plan) {
        Ok(()) => (Step::Exec, execute(plan)),
        Err(failure) => failure,
    }
}

fn build(plan: &Plan) -> Result<(), Failure> {
    await_ids(plan).map_err(|errno| (Step::Ids, errno))?;
    call(Sysno::setsid, [0; 6]).map_err(|errno| (Step::Session, errno))?;
    empty_root()?;
    // The order matters: each of these needs a capability that the last one gives up.
    lock_securebits().map_err(|errno| (Step::Securebits, errno))?;
    empty_bounding_set().map_err(|errno| (Step::BoundingSet, errno))?;
    set_ids(plan.drop_groups).map_err(|errno| (Step::SetIds, errno))?;
    drop_capabilities().map_err(|errno| (Step::Capabilities, errno))?;
    // A change of ids clears this signal, so it comes after it.
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong).map_err(|errno| (Step::ParentDeath, errno))?;
    harden::shut_speculation().map_err(|errno| (Step::Speculation, errno))?;
    harden::refuse_merging().map_err(|errno| (Step::Merging, errno))?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(|errno| (Step::NoNewPrivs, errno))?;
    arrange_descriptors(plan).map_err(|errno| (Step::Descriptors, errno))?;
    set_limits(plan.limits).map_err(|errno| (Step::Rlimits, errno))?;
    unblock_signals().map_err(|errno| (Step::Exec, errno))
}

/// Waits until the broker has written the id maps.
fn await_ids(plan: &Plan) -> Result<(), Errno> {
    // This process's copy of the broker's end, so that it sees the broker's end of it close.
    call(Sysno::close, [number(plan.parents_setup), 0, 0, 0, 0, 0])?;
    let mut byte = 0u8;
    let place = (&raw mut byte).expose_provenance();
    loop {
        match call(Sysno::read, [number(plan.setup), place, 1, 0, 0, 0]) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err(Errno::EPIPE),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// mount(2); no source, type or data for none.
fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Result<(), Errno> {
    let text = |text: Option<&CStr>| text.map_or(0, |text| text.as_ptr().expose_provenance());
    let flags = usize::try_from(flags).unwrap_or(0);
    call(Sysno::mount, [text(source), text(Some(target)), text(kind), flags, text(data), 0]).map(drop)
}

fn empty_root() -> Result<(), Failure> {
    let path = |path: &CStr| path.as_ptr().expose_provenance();
    mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None).map_err(|errno| (Step::PrivateMounts, errno))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some(c"none"), MOUNT_POINT, Some(c"tmpfs"), flags, Some(c"size=4k,nr_inodes=1,mode=0555"))
        .map_err(|errno| (Step::EmptyRoot, errno))?;
    call(Sysno::chdir, [path(MOUNT_POINT), 0, 0, 0, 0, 0]).map_err(|errno| (Step::EmptyRoot, errno))?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one and is taken off.
    call(Sysno::pivot_root, [path(c"."), path(c"."), 0, 0, 0, 0]).map_err(|errno| (Step::PivotRoot, errno))?;
    call(Sysno::umount2, [path(c"."), number(libc::MNT_DETACH), 0, 0, 0, 0])
        .map_err(|errno| (Step::PivotRoot, errno))?;
    call(Sysno::chdir, [path(c"/"), 0, 0, 0, 0, 0]).map_err(|errno| (Step::PivotRoot, errno))?;
    mount(None, c"/", None, flags | libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY, None)
        .map_err(|errno| (Step::ReadOnlyRoot, errno))
}

/// prctl(2) with an integer argument.
fn prctl(option: c_int, argument: c_ulong) -> Result<(), Errno> {
    let argument = usize::try_from(argument).unwrap_or(0);
    call(Sysno::prctl, [number(option), argument, 0, 0, 0, 0]).map(drop)
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
    prctl(libc::PR_SET_SECUREBITS, c_ulong::from(bits.cast_unsigned()))
}

fn empty_bounding_set() -> Result<(), Errno> {
    // Capabilities are numbered from 0 without a gap; the first one that the kernel does not know ends the loop.
    for capability in 0.. {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            Err(Errno::EINVAL) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Takes on id 0 of the new user namespace, which is the unprivileged id of the host that the broker mapped.
fn set_ids(drop_groups: bool) -> Result<(), Errno> {
    if drop_groups {
        call(Sysno::setgroups, [0; 6])?;
    }
    call(Sysno::setresgid, [0; 6])?;
    call(Sysno::setresuid, [0; 6]).map(drop)
}

/// capset(2) of version 3 with empty sets.
fn drop_capabilities() -> Result<(), Errno> {
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    // Version 3 reads a header of two words and two structs of three words each.
    let header: [u32; 2] = [LINUX_CAPABILITY_VERSION_3, 0];
    let data = [0u32; 6];
    call(Sysno::capset, [address(&header), address(&data), 0, 0, 0, 0]).map(drop)
}

/// 0 is the control channel, 1 and 2 are the log; everything else closes at execveat.
fn arrange_descriptors(plan: &Plan) -> Result<(), Errno> {
    // The sources may have the numbers 0 to 2 themselves: move them out of the way first.
    let control = duplicate_above(plan.control)?;
    let log = duplicate_above(plan.log)?;
    for (from, to) in [(control, 0), (log, 1), (log, 2)] {
        // Whatever had the number `to` was this process's copy of a descriptor of the broker.
        call(Sysno::dup3, [from, to, 0, 0, 0, 0])?;
    }
    let on_exec = libc::CLOSE_RANGE_CLOEXEC as usize;
    match call(Sysno::close_range, [3, number(c_int::MAX), on_exec, 0, 0, 0]) {
        Ok(_) => Ok(()),
        // Before Linux 5.11: all descriptors of the broker are close-on-exec by themselves; `inspect` checks it.
        Err(Errno::EINVAL | Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn duplicate_above(fd: RawFd) -> Result<usize, Errno> {
    const FIRST: usize = 10;
    call(Sysno::fcntl, [number(fd), number(libc::F_DUPFD_CLOEXEC), FIRST, 0, 0, 0])
}

fn set_limits(limits: Limits) -> Result<(), Errno> {
    let set = |resource: libc::__rlimit_resource_t, value: u64| {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        match call(Sysno::prlimit64, [0, resource as usize, address(&limit), 0, 0, 0]) {
            // An ordinary user's hard limit may be lower already.
            Ok(_) | Err(Errno::EPERM) => Ok(()),
            Err(errno) => Err(errno),
        }
    };
    set(libc::RLIMIT_CORE, 0)?;
    set(libc::RLIMIT_AS, limits.address_space_bytes)?;
    if let Some(bytes) = limits.file_size_bytes {
        set(libc::RLIMIT_FSIZE, bytes)?;
    }
    if let Some(bytes) = limits.data_bytes {
        set(libc::RLIMIT_DATA, bytes)?;
    }
    if let Some(seconds) = limits.cpu_seconds {
        set(libc::RLIMIT_CPU, seconds)?;
    }
    set(libc::RLIMIT_MEMLOCK, limits.locked_bytes)?;
    set(libc::RLIMIT_MSGQUEUE, 0)?;
    set(libc::RLIMIT_NICE, 0)?;
    set(libc::RLIMIT_RTPRIO, 0)?;
    set(libc::RLIMIT_SIGPENDING, 64)?;
    set(libc::RLIMIT_NOFILE, limits.open_files)
}

/// The broker waits for some signals by a descriptor; its children take them as they come.
fn unblock_signals() -> Result<(), Errno> {
    let none = [0u64; 1];
    let how = number(libc::SIG_SETMASK);
    call(Sysno::rt_sigprocmask, [how, address(&none), 0, size_of::<u64>(), 0, 0]).map(drop)
}

/// Executes the binary with its name as only argument and no environment; returns why it could not.
fn execute(plan: &Plan) -> Errno {
    // Both arrays end with a null pointer, and all strings with a NUL.
    let arguments: [*const c_char; 2] = [plan.name.as_ptr(), null()];
    let environment: [*const c_char; 1] = [null()];
    let path = c"".as_ptr().expose_provenance();
    let flags = number(libc::AT_EMPTY_PATH);
    let call = call(Sysno::execveat, [number(plan.binary), path, address(&arguments), address(&environment), flags, 0]);
    call.err().unwrap_or(Errno::UnknownErrno)
}

/// pidfd_send_signal(2) with SIGKILL.
pub(super) fn pidfd_kill(pidfd: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: no siginfo is passed, and the descriptor is valid.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, null::<libc::siginfo_t>(), 0)
    };
    Errno::result(result).map(drop)
}
