//! Attempts that are one system call each: the list of what no process of Bulkhead may do.

use crate::arch;
use crate::attempt::{Act, Arg, Attempt, Done};
use crate::held::{Held, Kind};
use crate::raw;
use Arg::{Fd, FdPath, Number as N, Scratch, Text, Words};
use std::ffi::{CStr, c_long};

/// `AT_FDCWD` (linux/fcntl.h).
pub(crate) const CWD: Arg = N((libc::AT_FDCWD as isize).cast_unsigned());
const EMPTY: &CStr = c"";
const PASSWD: &CStr = c"/etc/passwd";
/// The name of the abstract socket that the tests listen on.
pub const LISTENER: &str = "bulkhead-hostile-listener";
/// `struct sockaddr_un` of an abstract name: the family 1, a NUL, the name; here as words.
const LISTENER_BYTES: usize = 2 + 1 + LISTENER.len();
/// `struct clone_args` with SIGCHLD as exit signal.
const CLONE_ARGS: &[u64] = &[0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0];
/// `struct open_how` for reading.
const OPEN_HOW: &[u64] = &[0, 0, 0];
const NO_LIMIT: &[u64] = &[u64::MAX, u64::MAX];
const SIGKILL: Arg = N(9);
const ALL: Arg = N(usize::MAX);
const READ_WRITE: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;
const RWX: usize = READ_WRITE | libc::PROT_EXEC as usize;
const PRIVATE: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
/// Address families that have no number beyond: `AF_MAX` (linux/socket.h of Linux 6.12).
const FAMILIES: usize = 46;

/// The bytes of the listener's address.
pub fn listener() -> Vec<u8> {
    let mut bytes = 1_u16.to_ne_bytes().to_vec();
    bytes.push(0);
    bytes.extend(LISTENER.as_bytes());
    bytes
}

struct List(Vec<Attempt>, &'static str);

impl List {
    fn add(&mut self, name: &str, number: impl Into<Option<c_long>>, arguments: &[Arg]) {
        self.0.push(Attempt::new(self.1, name, name, Act::Call(number.into(), arguments.to_vec())));
    }

    fn act(&mut self, name: &str, act: fn(&Held) -> Done) {
        self.0.push(Attempt::new(self.1, name, name, Act::Do(act)));
    }
}

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = List(Vec::new(), "");
    paths(&mut all);
    sockets(&mut all);
    processes(&mut all);
    others(&mut all);
    mounts(&mut all);
    kernel(&mut all);
    rights(&mut all);
    descriptors(&mut all);
    console(&mut all);
    all.0
}

fn paths(all: &mut List) {
    all.1 = "open a path";
    all.add("open absolute", arch::OPEN, &[Text(PASSWD), N(0)]);
    all.add("creat", arch::CREAT, &[Text(c"/new"), N(0o600)]);
    all.add("openat absolute", libc::SYS_openat, &[CWD, Text(PASSWD), N(0)]);
    all.add("openat relative", libc::SYS_openat, &[CWD, Text(c"../../etc/passwd"), N(0)]);
    all.add("openat of /proc", libc::SYS_openat, &[CWD, Text(c"/proc/self/mem"), N(2)]);
    all.add("openat through a descriptor", libc::SYS_openat, &[N(0), Text(c"../etc/passwd"), N(0)]);
    let tmpfile = N((libc::O_TMPFILE | libc::O_RDWR) as usize);
    all.add("openat of an unnamed file", libc::SYS_openat, &[CWD, Text(c"/"), tmpfile, N(0o600)]);
    all.add("openat2", libc::SYS_openat2, &[CWD, Text(PASSWD), Words(OPEN_HOW), N(24)]);
    let handle = [CWD, Text(PASSWD), Scratch, Scratch, N(0)];
    all.add("name_to_handle_at", libc::SYS_name_to_handle_at, &handle);
    all.add("open_by_handle_at", libc::SYS_open_by_handle_at, &[N(0), Scratch, N(0)]);
    all.add("stat", arch::STAT, &[Text(PASSWD), Scratch]);
    all.add("newfstatat of a path", libc::SYS_newfstatat, &[CWD, Text(PASSWD), Scratch, N(0)]);
    all.add("newfstatat of a path, AT_EMPTY_PATH", libc::SYS_newfstatat, &[CWD, Text(PASSWD), Scratch, N(0x1000)]);
    all.add("newfstatat of /proc, AT_EMPTY_PATH", libc::SYS_newfstatat, &[CWD, Text(c"/proc/1"), Scratch, N(0x1000)]);
    all.add("statx", libc::SYS_statx, &[CWD, Text(PASSWD), N(0), N(0xfff), Scratch]);
    all.add("access", arch::ACCESS, &[Text(PASSWD), N(4)]);
    all.add("faccessat", libc::SYS_faccessat, &[CWD, Text(PASSWD), N(4)]);
    all.add("readlink", arch::READLINK, &[Text(c"/proc/self/exe"), Scratch, N(4096)]);
    all.add("readlinkat", libc::SYS_readlinkat, &[CWD, Text(c"/proc/self/exe"), Scratch, N(4096)]);
    all.add("getdents64", libc::SYS_getdents64, &[N(0), Scratch, N(4096)]);
    all.add("mkdir", arch::MKDIR, &[Text(c"/new"), N(0o700)]);
    all.add("mkdirat", libc::SYS_mkdirat, &[CWD, Text(c"/new"), N(0o700)]);
    all.add("mknodat", libc::SYS_mknodat, &[CWD, Text(c"/new"), N(0o20_600), N(0x103)]);
    all.add("unlink", arch::UNLINK, &[Text(PASSWD)]);
    all.add("unlinkat", libc::SYS_unlinkat, &[CWD, Text(PASSWD), N(0)]);
    all.add("rename", arch::RENAME, &[Text(PASSWD), Text(c"/new")]);
    all.add("renameat2", libc::SYS_renameat2, &[CWD, Text(PASSWD), CWD, Text(c"/new"), N(0)]);
    all.add("linkat of a descriptor", libc::SYS_linkat, &[N(0), Text(EMPTY), CWD, Text(c"/new"), N(0x1000)]);
    all.add("symlinkat", libc::SYS_symlinkat, &[Text(PASSWD), CWD, Text(c"/new")]);
    all.add("truncate", libc::SYS_truncate, &[Text(PASSWD), N(0)]);
    all.add("fchmodat", libc::SYS_fchmodat, &[CWD, Text(PASSWD), N(0o777)]);
    all.add("chdir", libc::SYS_chdir, &[Text(c"/")]);
    all.add("fchdir", libc::SYS_fchdir, &[N(0)]);
    all.add("inotify_add_watch", libc::SYS_inotify_add_watch, &[N(0), Text(c"/"), N(0xfff)]);
    all.add("fanotify_init", libc::SYS_fanotify_init, &[N(0), N(0)]);
    all.add("uselib", arch::USELIB, &[Text(PASSWD)]);
}

fn sockets(all: &mut List) {
    all.1 = "reach the network or a socket";
    for family in 0..FAMILIES {
        let row = format!("socket of each of {FAMILIES} families");
        let act = Act::Call(Some(libc::SYS_socket), vec![N(family), N(1), N(0)]);
        all.0.push(Attempt::new(all.1, &format!("socket of family {family}"), &row, act));
    }
    all.add("socketpair", libc::SYS_socketpair, &[N(1), N(1), N(0), Scratch]);
    all.act("connect to an abstract socket of the host", |held| to_listener(held, libc::SYS_connect));
    all.act("bind to an abstract name", |held| to_listener(held, libc::SYS_bind));
    all.act("sendto an abstract socket of the host", |held| {
        let address = listener().leak();
        let words = [held.number(Kind::Stream), raw::address(address), 1, 0, raw::address(address), LISTENER_BYTES];
        raw::call(libc::SYS_sendto, words).into()
    });
    all.add("listen", libc::SYS_listen, &[N(0), N(1)]);
    all.add("accept4", libc::SYS_accept4, &[N(0), N(0), N(0), N(0)]);
    all.add("setsockopt", libc::SYS_setsockopt, &[N(0), N(1), N(7), Words(NO_LIMIT), N(4)]);
    all.add("getpeername", libc::SYS_getpeername, &[N(0), Scratch, Scratch]);
}

/// `connect` or `bind` of a socket that the process holds.
fn to_listener(held: &Held, number: c_long) -> Done {
    let socket = held.first(Kind::Stream).unwrap_or(0);
    raw::call(number, [socket, raw::address(listener().leak()), LISTENER_BYTES, 0, 0, 0]).into()
}

fn processes(all: &mut List) {
    all.1 = "make a process, execute a program";
    all.act("fork", |_| split(arch::FORK, [0; 6]));
    all.act("vfork", |_| split(arch::VFORK, [0; 6]));
    all.act("clone", |_| split(Some(libc::SYS_clone), [17, 0, 0, 0, 0, 0]));
    all.act("clone of new namespaces", |_| split(Some(libc::SYS_clone), [0x1002_0011, 0, 0, 0, 0, 0]));
    all.act("clone3", |_| split(Some(libc::SYS_clone3), [raw::address(CLONE_ARGS), 88, 0, 0, 0, 0]));
    all.add("execve", libc::SYS_execve, &[Text(c"/bin/sh"), N(0), N(0)]);
    all.add("execveat of a descriptor", libc::SYS_execveat, &[N(0), Text(EMPTY), N(0), N(0), N(0x1000)]);
    all.add("memfd_create, for execveat", libc::SYS_memfd_create, &[Text(c"program"), N(0)]);
    all.add("memfd_secret", libc::SYS_memfd_secret, &[N(0)]);
}

/// A call that would return twice: the child ends at once.
fn split(number: Option<c_long>, arguments: [usize; 6]) -> Done {
    let Some(number) = number else { return Done::NotThere };
    match raw::call(number, arguments) {
        Ok(0) => raw::call(libc::SYS_exit_group, [0; 6]).into(),
        other => other.into(),
    }
}

fn others(all: &mut List) {
    all.1 = "reach another process";
    let attach = N(16);
    all.add("ptrace the parent", libc::SYS_ptrace, &[attach, N(1), N(0), N(0)]);
    all.add("process_vm_readv", libc::SYS_process_vm_readv, &[N(2), Scratch, N(1), Scratch, N(1), N(0)]);
    all.add("process_vm_writev", libc::SYS_process_vm_writev, &[N(2), Scratch, N(1), Scratch, N(1), N(0)]);
    all.add("pidfd_open", libc::SYS_pidfd_open, &[N(1), N(0)]);
    all.add("pidfd_getfd", libc::SYS_pidfd_getfd, &[N(0), N(0), N(0)]);
    all.add("pidfd_send_signal", libc::SYS_pidfd_send_signal, &[N(0), SIGKILL, N(0), N(0)]);
    all.add("kill every process", libc::SYS_kill, &[ALL, SIGKILL]);
    all.add("tkill", libc::SYS_tkill, &[N(2), SIGKILL]);
    all.add("tgkill with SIGKILL", libc::SYS_tgkill, &[N(2), N(2), SIGKILL]);
    all.act("tgkill every id with the signal of a kick", signal_all);
    all.add("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, &[N(1), N(10), Scratch]);
    all.add("rt_sigaction", libc::SYS_rt_sigaction, &[N(10), Scratch, N(0), N(8)]);
    all.add("kcmp", libc::SYS_kcmp, &[N(1), N(2), N(0), N(0), N(0)]);
    all.add("process_madvise", libc::SYS_process_madvise, &[N(0), Scratch, N(1), N(4), N(0)]);
    all.add("getppid", libc::SYS_getppid, &[]);
    all.add("getpgrp", arch::GETPGRP, &[]);
    all.add("sched_setaffinity of another", libc::SYS_sched_setaffinity, &[N(2), N(8), Words(NO_LIMIT)]);
    all.add("setpriority", libc::SYS_setpriority, &[N(0), N(0), N(0)]);
    all.add("shmget", libc::SYS_shmget, &[N(7), N(4096), N(0o1600)]);
    all.add("msgget", libc::SYS_msgget, &[N(7), N(0o1600)]);
    all.add("semget", libc::SYS_semget, &[N(7), N(1), N(0o1600)]);
    all.add("mq_open", libc::SYS_mq_open, &[Text(c"queue"), N(0o102), N(0o600), N(0)]);
}

/// Every process id that a small system uses, except this process's own: it is the first of its namespace.
fn signal_all(_held: &Held) -> Done {
    let mut last = Done::NotThere;
    for id in 2..65_536 {
        last = raw::call(libc::SYS_tgkill, [id, id, 10, 0, 0, 0]).into();
        if matches!(last, Done::Succeeded(_)) {
            break;
        }
    }
    last
}

fn mounts(all: &mut List) {
    all.1 = "mounts and namespaces";
    all.add("mount", libc::SYS_mount, &[Text(c"none"), Text(c"/"), Text(c"proc"), N(0), N(0)]);
    all.add("umount2", libc::SYS_umount2, &[Text(c"/"), N(2)]);
    all.add("pivot_root", libc::SYS_pivot_root, &[Text(c"."), Text(c".")]);
    all.add("chroot", libc::SYS_chroot, &[Text(c"/")]);
    all.add("fsopen", libc::SYS_fsopen, &[Text(c"proc"), N(0)]);
    all.add("open_tree", libc::SYS_open_tree, &[CWD, Text(c"/"), N(1)]);
    all.add("move_mount", libc::SYS_move_mount, &[N(0), Text(EMPTY), CWD, Text(c"/"), N(4)]);
    all.add("mount_setattr", libc::SYS_mount_setattr, &[CWD, Text(c"/"), N(0), Scratch, N(32)]);
    all.add("unshare of a user namespace", libc::SYS_unshare, &[N(0x1000_0000)]);
    all.add("unshare of mounts", libc::SYS_unshare, &[N(0x2_0000)]);
    all.add("setns", libc::SYS_setns, &[N(0), N(0)]);
    all.add("sethostname", libc::SYS_sethostname, &[Text(c"captured"), N(8)]);
}

fn kernel(all: &mut List) {
    all.1 = "parts of the kernel";
    all.add("io_uring_setup", libc::SYS_io_uring_setup, &[N(8), Scratch]);
    all.add("io_uring_enter", libc::SYS_io_uring_enter, &[N(0), N(1), N(0), N(0), N(0)]);
    all.add("io_setup", libc::SYS_io_setup, &[N(8), Scratch]);
    all.add("userfaultfd", libc::SYS_userfaultfd, &[N(1)]);
    all.add("bpf", libc::SYS_bpf, &[N(5), Scratch, N(120)]);
    all.add("perf_event_open", libc::SYS_perf_event_open, &[Scratch, N(0), ALL, ALL, N(0)]);
    all.add("keyctl", libc::SYS_keyctl, &[N(0), N(0xffff_fffc), N(1)]);
    all.add("add_key", libc::SYS_add_key, &[Text(c"user"), Text(c"key"), Text(c"value"), N(5), N(0xffff_fffd)]);
    all.add("request_key", libc::SYS_request_key, &[Text(c"user"), Text(c"key"), N(0), N(0)]);
    all.add("kexec_load", libc::SYS_kexec_load, &[N(0), N(0), N(0), N(0)]);
    all.add("kexec_file_load", libc::SYS_kexec_file_load, &[N(0), N(0), N(0), N(0), N(0)]);
    all.add("init_module", libc::SYS_init_module, &[Scratch, N(4096), Text(EMPTY)]);
    all.add("finit_module", libc::SYS_finit_module, &[N(0), Text(EMPTY), N(0)]);
    all.add("delete_module", libc::SYS_delete_module, &[Text(c"kvm"), N(0)]);
    all.add("syslog", libc::SYS_syslog, &[N(3), Scratch, N(4096)]);
    all.add("reboot", libc::SYS_reboot, &[N(0), N(0), N(0), N(0)]);
    all.add("swapon", libc::SYS_swapon, &[Text(c"/swap"), N(0)]);
    all.add("acct", libc::SYS_acct, &[N(0)]);
    all.add("quotactl", libc::SYS_quotactl, &[N(0), N(0), N(0), N(0)]);
    all.add("settimeofday", libc::SYS_settimeofday, &[Scratch, N(0)]);
    all.add("clock_settime", libc::SYS_clock_settime, &[N(0), Scratch]);
    all.add("iopl", arch::IOPL, &[N(3)]);
    all.add("ioperm", arch::IOPERM, &[N(0), N(1024), N(1)]);
    all.add("modify_ldt", arch::MODIFY_LDT, &[N(1), Scratch, N(16)]);
    all.add("alarm", arch::ALARM, &[N(1)]);
    all.add("a number that no call has", 4095, &[]);
    all.add("getpid of x32", arch::X32_GETPID, &[]);
    all.act("getpid of the 32-bit way", |_| arch::foreign_call().map_or(Done::NotThere, Done::from));
}

fn rights(all: &mut List) {
    all.1 = "rights and limits";
    all.add("setuid", libc::SYS_setuid, &[N(0)]);
    all.add("setresuid", libc::SYS_setresuid, &[N(0), N(0), N(0)]);
    all.add("setgroups", libc::SYS_setgroups, &[N(0), N(0)]);
    all.add("capset", libc::SYS_capset, &[Scratch, Scratch]);
    all.add("prctl to be dumpable", libc::SYS_prctl, &[N(4), N(1), N(0), N(0), N(0)]);
    all.add("prctl to outlive the broker", libc::SYS_prctl, &[N(1), N(0), N(0), N(0), N(0)]);
    all.add("seccomp", libc::SYS_seccomp, &[N(1), N(0), Scratch]);
    all.add("landlock_restrict_self", libc::SYS_landlock_restrict_self, &[N(0), N(0)]);
    all.add("personality", libc::SYS_personality, &[N(0x40_0000)]);
    all.add("prlimit64 of more descriptors", libc::SYS_prlimit64, &[N(0), N(7), Words(NO_LIMIT), N(0)]);
    all.add("prlimit64 of more memory", libc::SYS_prlimit64, &[N(0), N(9), Words(NO_LIMIT), N(0)]);
    all.add("setrlimit of larger files", libc::SYS_setrlimit, &[N(1), Words(NO_LIMIT)]);
    all.add("setsid", libc::SYS_setsid, &[]);
    all.add("sched_setscheduler", libc::SYS_sched_setscheduler, &[N(0), N(1), Scratch]);
    all.add("mlockall", libc::SYS_mlockall, &[N(3)]);
}

fn descriptors(all: &mut List) {
    all.1 = "make or change descriptors";
    all.add("dup", libc::SYS_dup, &[N(0)]);
    all.add("dup2", arch::DUP2, &[N(0), N(200)]);
    all.add("dup3", libc::SYS_dup3, &[N(0), N(200), N(0)]);
    all.add("fcntl F_DUPFD", libc::SYS_fcntl, &[N(0), N(0), N(0)]);
    all.add("fcntl F_SETFL", libc::SYS_fcntl, &[N(0), N(4), N(0)]);
    all.add("pipe", arch::PIPE, &[Scratch]);
    all.add("pipe2", libc::SYS_pipe2, &[Scratch, N(0)]);
    all.add("eventfd2", libc::SYS_eventfd2, &[N(0), N(0)]);
    all.add("epoll_create1", libc::SYS_epoll_create1, &[N(0)]);
    all.add("timerfd_create", libc::SYS_timerfd_create, &[N(1), N(0)]);
    all.add("signalfd4", libc::SYS_signalfd4, &[ALL, Scratch, N(8), N(0)]);
    all.add("splice", libc::SYS_splice, &[N(0), N(0), N(2), N(0), N(4096), N(0)]);
    all.add("vmsplice", libc::SYS_vmsplice, &[N(2), Scratch, N(1), N(0)]);
    all.add("mmap, writable and executable", libc::SYS_mmap, &[N(0), N(4096), N(RWX), N(PRIVATE), ALL, N(0)]);
    let executable = N((libc::PROT_READ | libc::PROT_EXEC) as usize);
    all.add("mmap of a descriptor, executable", libc::SYS_mmap, &[N(0), N(4096), executable, N(2), N(3), N(0)]);
    all.add("mprotect, writable and executable", libc::SYS_mprotect, &[Scratch, N(4096), N(RWX)]);
    all.add("mprotect of what was written, executable", libc::SYS_mprotect, &[Scratch, N(4096), executable]);
    all.add("pkey_mprotect", libc::SYS_pkey_mprotect, &[Scratch, N(4096), N(RWX), ALL]);
    all.add("mremap", libc::SYS_mremap, &[Scratch, N(4096), N(8192), N(1), N(0)]);
    all.add("remap_file_pages", libc::SYS_remap_file_pages, &[Scratch, N(4096), N(0), N(0), N(0)]);
    all.add("shmat, executable", libc::SYS_shmat, &[N(0), N(0), N(0o100_000)]);
    for attempt in all.0.iter_mut().filter(|attempt| attempt.row.contains("executable") || attempt.row.contains("map"))
    {
        attempt.group = "executable memory";
    }
}

fn console(all: &mut List) {
    all.1 = "the console";
    let requests = [
        ("TIOCSTI", 0x5412),
        ("TIOCSCTTY", 0x540e),
        ("TIOCNOTTY", 0x5422),
        ("TIOCLINUX", 0x541c),
        ("TIOCSWINSZ", 0x5414),
        ("TCSETS", 0x5402),
        ("TIOCSETD", 0x5423),
        ("TIOCSPGRP", 0x5410),
        ("KDSKBENT", 0x4b47),
        ("FIONBIO", 0x5421),
    ];
    for (name, request) in requests {
        for (kind, on) in [(Kind::ConsoleIn, "input"), (Kind::ConsoleOut, "output")] {
            let act = Act::Call(Some(libc::SYS_ioctl), vec![Fd(kind), N(request), Scratch]);
            let row = format!("each of {} requests of terminals, on its input and output", requests.len());
            let attempt = Attempt::new(all.1, &format!("{name} on the {on}"), &row, act);
            all.0.push(attempt.by(&[crate::Seat::Serial]));
        }
    }
    let open = Act::Call(Some(libc::SYS_openat), vec![CWD, FdPath(Kind::ConsoleIn), N(2)]);
    let name = "open the console's input for writing";
    all.0.push(Attempt::new(all.1, name, name, open).by(&[crate::Seat::Serial]));
}
