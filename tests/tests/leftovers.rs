//! After each kind of end nothing of ours is left: no process, socket, mount, cgroup or file, and no changed terminal.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use policies::Process;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::binaries::binary;
use tests::guest::Guest;
use tests::outside::{self, Seen};
use tests::{disk, probe};

/// The longest wait.
const LIMIT: Duration = Duration::from_secs(60);

/// A broker on a terminal of its own, with all that it uses in one folder.
struct Stage {
    folder: TempDir,
    before: Left,
    settings: Termios,
    terminal: OpenptyResult,
    broker: Child,
    shown: String,
}

/// What a run could leave behind, but for processes.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    files: BTreeMap<PathBuf, u64>,
    mounts: BTreeSet<String>,
    sockets: BTreeSet<String>,
}

impl Left {
    fn look(folder: &Path) -> Self {
        let files = walk(folder, 3).into_iter().map(|path| {
            let bytes = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
            (path, bytes)
        });
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        Self {
            files: files.collect(),
            mounts: mounts.lines().map(str::to_owned).collect(),
            sockets: named_sockets().into_values().filter(|name| name.contains("bulkhead")).collect(),
        }
    }
}

/// The cgroups of the broker with this process id: other tests have theirs meanwhile.
fn cgroups(broker: Pid) -> Vec<PathBuf> {
    let name = format!("bulkhead-{broker}-");
    let all = walk(Path::new("/sys/fs/cgroup"), 4).into_iter();
    all.filter(|path| path.file_name().is_some_and(|found| found.to_string_lossy().starts_with(&name))).collect()
}

fn walk(folder: &Path, depth: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        found.push(entry.path());
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(walk(&entry.path(), depth - 1));
        }
    }
    found
}

/// The sockets with a name, in the file system or abstract, by inode (proc_pid_net(5)).
fn named_sockets() -> BTreeMap<String, String> {
    let text = fs::read_to_string("/proc/net/unix").unwrap();
    let named = text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(6);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    });
    named.collect()
}

impl Stage {
    /// Starts a machine with an ephemeral disk whose guest does as `words` say.
    fn start(words: &str, bin: Option<(Process, &str)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = Guest::Long.write(folder.path());
        let image = disk::image(folder.path(), "disk.img", 64);
        let temporary = folder.path().join("tmp");
        fs::create_dir(&temporary).unwrap();
        let bin = bin.map(|(process, task)| probe::binaries_with(folder.path(), process, task));
        let before = Left::look(folder.path());
        let terminal = openpty(None, None).unwrap();
        let settings = tcgetattr(&terminal.slave).unwrap();
        let slave = || Stdio::from(terminal.slave.try_clone().unwrap());
        let mut command = Command::new(binary("broker"));
        command.args(["run", "-m", "64", "-p", words, "-d"]).arg(format!("{}:ephemeral", image.display()));
        command.arg("-k").arg(kernel).env("TMPDIR", &temporary).current_dir(folder.path());
        if let Some(bin) = bin {
            command.arg("--bin-dir").arg(bin);
        }
        let broker = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        Self { folder, before, settings, terminal, broker, shown: String::new() }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.broker.id().try_into().unwrap())
    }

    /// Reads what the terminal shows for at most a tenth of a second.
    fn read(&mut self) {
        let mut fds = [PollFd::new(self.terminal.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(100_u16)) == Ok(1) {
            let mut buffer = [0; 4096];
            let length = nix::unistd::read(&self.terminal.master, &mut buffer).unwrap_or(0);
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    fn await_text(&mut self, text: &str) {
        let end = Instant::now() + LIMIT;
        while !self.shown.contains(text) {
            assert!(Instant::now() < end, "the terminal shows only {:?}", self.shown);
            self.read();
        }
    }

    /// The processes of a guest that is up, none of which has a socket with a name, on a terminal that is raw.
    fn running(&mut self) -> Vec<Seen> {
        self.await_text("PASS ready");
        let mut seen = outside::jailed(self.pid());
        assert_eq!(seen.len(), 3, "{seen:?}");
        seen.push(outside::explainer(self.pid()));
        let named = named_sockets();
        let broker = Seen { pid: self.pid(), program: "broker".to_owned() };
        for process in seen.iter().chain([&broker]) {
            for target in process.descriptors() {
                let inode = target.trim_start_matches("socket:[").trim_end_matches(']');
                assert_eq!(named.get(inode), None, "{process:?} has a socket with a name");
            }
        }
        assert_ne!(tcgetattr(&self.terminal.slave).unwrap().local_flags, self.settings.local_flags, "not raw");
        seen
    }

    /// Waits for the end, with the exit code or else the signal of the broker, and looks for what is left.
    fn ends_clean(mut self, code: Option<i32>, seen: &[Seen]) {
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.broker.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "the broker does not end: {:?}", self.shown);
            self.read();
        };
        self.read();
        assert_eq!(status.code(), code, "{:?}", self.shown);
        outside::await_gone(seen);
        // What puts the terminal back after a broker that was killed is a process too.
        while tcgetattr(&self.terminal.slave).unwrap() != self.settings {
            assert!(Instant::now() < end, "the terminal stays changed");
            self.read();
        }
        let place = self.folder.path().as_os_str().to_owned();
        while !processes_that_name(&place).is_empty() {
            assert!(Instant::now() < end, "left: {:?}", processes_that_name(&place));
            std::thread::yield_now();
        }
        // The guard of a killed broker's cgroup was one of those processes.
        assert_eq!(cgroups(self.pid()), [""; 0].map(PathBuf::from));
        let after = Left::look(self.folder.path());
        let new: Vec<_> = after.mounts.difference(&self.before.mounts).collect();
        assert!(new.is_empty(), "left: {new:?}");
        assert_eq!(after.files, self.before.files, "files are left or changed");
        assert_eq!(after.sockets, self.before.sockets);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Only a failed test comes here with a broker that runs.
        self.broker.kill().unwrap_or(());
        self.broker.wait().map(drop).unwrap_or(());
    }
}

/// Processes whose command line, working folder or environment name a folder: those that the broker started.
fn processes_that_name(folder: &std::ffi::OsStr) -> Vec<PathBuf> {
    let folder = folder.as_encoded_bytes();
    let has = |bytes: &[u8]| bytes.windows(folder.len()).any(|window| window == folder);
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let named = processes.filter(|path| {
        let file = |name: &str| fs::read(path.join(name)).is_ok_and(|bytes| has(&bytes));
        let link = fs::read_link(path.join("cwd")).is_ok_and(|link| has(link.as_os_str().as_encoded_bytes()));
        link || file("cmdline") || file("environ")
    });
    named.collect()
}

fn ends_by_itself(words: &str, code: i32) {
    let mut stage = Stage::start(words, None);
    stage.await_text("PASS ready");
    stage.ends_clean(Some(code), &[]);
}

#[test]
fn poweroff_leaves_nothing() {
    ends_by_itself("test=blk-write,ready", 0);
}

#[test]
fn panic_leaves_nothing() {
    ends_by_itself("test=ready end=panic", 12);
}

#[test]
fn triple_fault_leaves_nothing() {
    ends_by_itself("test=ready end=triple", 13);
}

#[test]
fn signals_leave_nothing() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 143)] {
        let mut stage = Stage::start("test=ready end=sleep", None);
        let seen = stage.running();
        kill(stage.pid(), signal).unwrap();
        stage.ends_clean(Some(code), &seen);
    }
}

#[test]
fn killed_broker_leaves_nothing() {
    let mut stage = Stage::start("test=ready end=sleep", None);
    let seen = stage.running();
    kill(stage.pid(), Signal::SIGKILL).unwrap();
    stage.ends_clean(None, &seen);
}

#[test]
fn killed_child_leaves_nothing() {
    for program in ["bulkhead-vmm", "bulkhead-serial", "bulkhead-virtio-blk"] {
        let mut stage = Stage::start("test=ready end=sleep", None);
        let seen = stage.running();
        kill(seen.iter().find(|seen| seen.program == program).unwrap().pid, Signal::SIGKILL).unwrap();
        stage.ends_clean(Some(20), &seen);
    }
}

#[test]
fn refused_launch_leaves_nothing() {
    for task in ["no-lockdown", "exit", "garbage"] {
        Stage::start("test=ready", Some((Process::Serial, task))).ends_clean(Some(4), &[]);
    }
}

#[test]
fn forbidden_system_call_leaves_nothing() {
    Stage::start("test=ready", Some((Process::Serial, "violate"))).ends_clean(Some(21), &[]);
}
