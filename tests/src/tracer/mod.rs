//! Follows a broker and writes down every system call that its jailed processes make under their filters, in the form
//! that [`policies::usage`] reads.
//!
//! The broker stays the process that it would be without, and the tracer is no child of it: tests that look at process
//! ids, parents, pipes and terminals see no difference. Threads stop at the calls of jailed processes only. Nothing that
//! the traced processes do is trusted to end: the tracer ends when all of them are gone.

mod stop;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use policies::Process;
use policies::rules::{Arch, policies, syscall_name};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use stop::Stop;

/// `PTRACE_EVENT_STOP` of linux/ptrace.h.
const PTRACE_EVENT_STOP: i32 = 128;
/// `SECCOMP_SET_MODE_FILTER` of linux/seccomp.h.
const SET_MODE_FILTER: u64 = 1;

/// Runs `program` with `arguments` in the place of this process, traced by another one; what its jailed processes do is
/// written to a file in `folder` when all of them are gone. Whoever locks `folder/lock` waits for that.
///
/// # Errors
/// When the tracer cannot be started or the program cannot be executed.
pub fn exec_traced(folder: &Path, program: &Path, arguments: &[String]) -> Result<()> {
    let binaries = Binaries::beside(program)?;
    let lock = File::open(folder.join("lock")).context("the folder has no lock")?;
    let lock = Flock::lock(lock, FlockArg::LockShared).map_err(|(_file, errno)| errno).context("the lock is taken")?;
    let (mut go, ready) = std::io::pipe().context("no pipe")?;
    let traced = Pid::this();
    stop::allow_any_tracer();
    // SAFETY: nothing here has started a thread.
    #[allow(unsafe_code, reason = "fork")]
    let middle = unsafe { stop::fork() }.context("cannot fork")?;
    let Some(middle) = middle else {
        // SAFETY: as above. The tracer is no child of the program, which would have to wait for it.
        #[allow(unsafe_code, reason = "fork")]
        let result = unsafe { stop::fork() };
        let status = match result {
            Ok(Some(_)) => 0,
            Ok(None) => {
                let traced = trace(traced, binaries, ready).and_then(|text| write(folder, &text));
                // What cannot be written either is missed by whoever waits for it.
                let failed = traced.or_else(|error| write(folder, &format!("error {error:#}\n")));
                i32::from(failed.is_err())
            }
            Err(_) => 1,
        };
        std::process::exit(status);
    };
    // The tracer has it too, and an unlocked lock would be its loss: this end is only closed, by the exec.
    std::mem::forget(lock);
    drop(ready);
    waitpid(middle, None).context("the tracer did not start")?;
    go.read_exact(&mut [0]).context("the tracer could not attach")?;
    Err(Command::new(program).args(arguments).exec()).context("the program cannot be executed")
}

/// All traces in `folder`, once every tracer that was started for it is done.
///
/// # Errors
/// When the folder has no lock or a trace cannot be read.
pub fn collect(folder: &Path) -> Result<String> {
    let lock = File::open(folder.join("lock")).context("the folder has no lock")?;
    let locked = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_file, errno)| errno);
    let _locked = locked.context("cannot wait for the tracers")?;
    let mut all = String::new();
    for entry in fs::read_dir(folder).context("the folder cannot be listed")?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "trace") {
            all.push_str(&fs::read_to_string(entry.path()).context("a trace cannot be read")?);
        }
    }
    Ok(all)
}

/// The binaries of the jailed processes, by device and inode.
struct Binaries(HashMap<(u64, u64), Process>);

impl Binaries {
    fn beside(program: &Path) -> Result<Self> {
        let folder = program.parent().context("the program is in no folder")?;
        let mut all = HashMap::new();
        for process in crate::probe::ALL {
            let path = folder.join(process.binary());
            let metadata = fs::metadata(&path).with_context(|| format!("{} is missing", path.display()))?;
            all.insert((metadata.dev(), metadata.ino()), process);
        }
        Ok(Self(all))
    }

    fn of(&self, pid: Pid) -> Option<Process> {
        let metadata = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        self.0.get(&(metadata.dev(), metadata.ino())).copied()
    }
}

/// The tracer's process: gives what it saw.
fn trace(traced: Pid, binaries: Binaries, mut ready: impl Write) -> Result<String> {
    // Whoever reads what the program writes waits for everyone who could write.
    let null = memfd_create(c"null", MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    std::env::set_current_dir("/")?;
    nix::unistd::setsid()?;
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC;
    ptrace::seize(traced, options)?;
    ready.write_all(&[1])?;
    drop(ready);
    let mut tracer = Tracer::new(traced, binaries);
    tracer.follow()?;
    Ok(tracer.text())
}

/// Writes a trace, whole or not at all.
fn write(folder: &Path, text: &str) -> Result<()> {
    let mut file = tempfile::Builder::new().prefix("run-").suffix(".tmp").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    let name = format!("{}.trace", file.path().file_stem().unwrap_or_default().display());
    file.persist(folder.join(name))?;
    Ok(())
}

/// What is known of a thread.
#[derive(Debug, Clone, Copy, Default)]
struct Thread {
    /// Set once it is one of a jailed process.
    process: Option<Process>,
    /// Whether it is the one that was executed.
    first: bool,
    /// The policy's name for it, once its filter stands.
    name: Option<&'static str>,
    /// Whether it is about to be given its filter.
    installs: bool,
}

type Call = (&'static str, &'static str, String, [Option<u32>; 6]);

struct Tracer {
    binaries: Binaries,
    threads: HashMap<Pid, Thread>,
    /// Threads that stopped before their makers were known.
    early: HashSet<Pid>,
    calls: BTreeMap<Call, u64>,
    /// The arguments of each call on which a rule has a condition.
    looked_at: HashSet<(&'static str, usize)>,
    names: HashMap<u64, String>,
}

impl Tracer {
    fn new(traced: Pid, binaries: Binaries) -> Self {
        let rules = policies(Arch::native()).iter().flat_map(|policy| policy.rules);
        let looked_at = rules.flat_map(|rule| rule.when.iter().map(|condition| (rule.syscall, condition.arg)));
        Self {
            binaries,
            threads: HashMap::from([(traced, Thread::default())]),
            early: HashSet::new(),
            calls: BTreeMap::new(),
            looked_at: looked_at.collect(),
            names: HashMap::new(),
        }
    }

    /// Follows until nobody is left.
    fn follow(&mut self) -> Result<()> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(status) => status,
                Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => bail!("cannot wait: {errno}"),
            };
            let resumed = self.act(status);
            // A thread may be killed at any time.
            if let Err(errno) = resumed
                && errno != Errno::ESRCH
            {
                bail!("{status:?}: {errno}");
            }
        }
    }

    fn act(&mut self, status: WaitStatus) -> Result<(), Errno> {
        match status {
            WaitStatus::PtraceSyscall(pid) => {
                self.syscall(pid, stop::stop(pid)?);
                self.resume(pid, None)
            }
            WaitStatus::PtraceEvent(pid, signal, PTRACE_EVENT_STOP) => match signal {
                Signal::SIGSTOP | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU => stop::listen(pid),
                _ if self.threads.contains_key(&pid) => self.resume(pid, None),
                _ => {
                    self.early.insert(pid);
                    Ok(())
                }
            },
            WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) => {
                let process = self.binaries.of(pid);
                self.threads.insert(pid, Thread { process, first: true, ..Thread::default() });
                self.resume(pid, None)
            }
            WaitStatus::PtraceEvent(pid, _, _) => {
                let child = i32::try_from(ptrace::getevent(pid)?).map_or(Pid::from_raw(0), Pid::from_raw);
                let process = self.threads.get(&pid).and_then(|thread| thread.process);
                self.threads.insert(child, Thread { process, ..Thread::default() });
                if self.early.remove(&child) {
                    self.resume(child, None).or_else(gone)?;
                }
                self.resume(pid, None)
            }
            WaitStatus::Stopped(pid, signal) => self.resume(pid, Some(signal)),
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => {
                self.threads.remove(&pid);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn resume(&self, pid: Pid, signal: Option<Signal>) -> Result<(), Errno> {
        match self.threads.get(&pid) {
            Some(Thread { process: Some(_), .. }) => ptrace::syscall(pid, signal),
            _ => ptrace::cont(pid, signal),
        }
    }

    fn syscall(&mut self, pid: Pid, stop: Stop) {
        let Some(thread) = self.threads.get_mut(&pid) else { return };
        let Some(process) = thread.process else { return };
        match stop {
            Stop::Entry { number, args } => {
                let name =
                    self.names.entry(number).or_insert_with(|| syscall_name(i64::try_from(number).unwrap_or(-1)));
                if let Some(role) = thread.name {
                    let mut kept = [None; 6];
                    for (index, (kept, value)) in kept.iter_mut().zip(args).enumerate() {
                        if self.looked_at.contains(&(name.as_str(), index)) {
                            // The filters look at the low half as well.
                            *kept = u32::try_from(value & u64::from(u32::MAX)).ok();
                        }
                    }
                    let count = self.calls.entry((process.name(), role, name.clone(), kept)).or_default();
                    *count = count.saturating_add(1);
                }
                thread.installs = name == "seccomp" && args[0] == SET_MODE_FILTER;
            }
            Stop::Exit(succeeded) if std::mem::take(&mut thread.installs) && succeeded => {
                thread.name = Some(role(pid, process, thread.first));
            }
            _ => {}
        }
    }

    fn text(&self) -> String {
        let line = |((process, thread, syscall, args), count): (&Call, &u64)| {
            let args: Vec<_> =
                args.iter().map(|arg| arg.map_or_else(|| "_".to_owned(), |value| format!("{value:#x}"))).collect();
            format!("{process} {thread} {syscall} {} {count}\n", args.join(" "))
        };
        self.calls.iter().map(line).collect()
    }
}

/// The policy's name for a thread: the first one of a process is the first in its file, others say by their names.
fn role(pid: Pid, process: Process, first: bool) -> &'static str {
    let mut threads = policies(Arch::native()).iter().filter(|policy| policy.process == process);
    if first {
        // A disk's process that has an io_uring has a filter of its own.
        if process == Process::VirtioBlk && has_uring(pid) {
            return "uring";
        }
        return threads.next().map_or("unknown", |policy| policy.thread);
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.trim_end().trim_end_matches(|letter: char| letter.is_ascii_digit());
    threads.find(|policy| policy.thread == name).map_or("unknown", |policy| policy.thread)
}

fn has_uring(pid: Pid) -> bool {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:[io_uring]"))
}

fn gone(errno: Errno) -> Result<(), Errno> {
    if errno == Errno::ESRCH { Ok(()) } else { Err(errno) }
}
