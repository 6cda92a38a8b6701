//! Boots a stock Linux guest with the real `broker` and talks to it through its console.
//!
//! The guest's files are made by `cargo xtask` (kernel, initramfs and root file system in `$BULKHEAD_GUEST_DIR`), the
//! binaries are in `$BULKHEAD_BIN_DIR`. Every wait has a deadline, and every failure shows the console.

use crate::outside::Seen;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long one wait may take. A guest boots in 5 s in the lab, which emulates its processor; a busy host may need
/// several times that.
pub const DEADLINE: Duration = Duration::from_secs(150);

/// The folder that an environment variable names.
#[must_use]
pub fn folder(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{variable} is not set; `cargo xtask test` sets it and runs this test"))
}

/// A guest that is to be booted.
#[derive(Debug)]
pub struct Guest {
    folder: tempfile::TempDir,
    cmdline: Vec<String>,
    vcpus: u8,
    memory_mib: u32,
    disks: Vec<String>,
    flags: Vec<&'static str>,
    compressed: bool,
    initrd: Option<PathBuf>,
    ordinary_user: bool,
}

impl Guest {
    /// A guest with the test kernel and initramfs, one vCPU and no disk.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("bulkhead-").tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("the folder's mode");
        Self {
            folder,
            cmdline: vec!["quiet".to_owned()],
            vcpus: 1,
            memory_mib: 256,
            disks: Vec::new(),
            flags: Vec::new(),
            compressed: false,
            initrd: None,
            ordinary_user: false,
        }
    }

    /// Has the guest run one of the scripts in `tests/lab/guest-tests`.
    #[must_use]
    pub fn test(self, name: &str) -> Self {
        self.word(&format!("bulkhead.test={name}"))
    }

    /// Adds a word to the kernel's command line.
    #[must_use]
    pub fn word(mut self, word: &str) -> Self {
        self.cmdline.push(word.to_owned());
        self
    }

    /// Gives the guest several vCPUs.
    #[must_use]
    pub fn vcpus(mut self, count: u8) -> Self {
        self.vcpus = count;
        self
    }

    /// Gives the guest another amount of memory.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Adds a disk; `mode` is `ro`, `ephemeral` or `rw`.
    #[must_use]
    pub fn disk(mut self, image: &Path, mode: &str) -> Self {
        self.disks.push(format!("{}:{mode}", image.display()));
        self
    }

    /// Adds a flag of `broker run`.
    #[must_use]
    pub fn flag(mut self, flag: &'static str) -> Self {
        self.flags.push(flag);
        self
    }

    /// Boots the kernel from a file compressed by gzip, as boards have it.
    #[must_use]
    pub fn compressed(mut self) -> Self {
        self.compressed = true;
        self
    }

    /// Boots another initramfs than the test guest's.
    #[must_use]
    pub fn initrd(mut self, path: PathBuf) -> Self {
        self.initrd = Some(path);
        self
    }

    /// A copy of the test guest's initramfs in which the program of a file was overwritten with zeros from its entry on.
    #[must_use]
    pub fn damaged_initrd(&self, name: &str) -> PathBuf {
        let mut archive = fs::read(folder("BULKHEAD_GUEST_DIR").join("initrd.cpio")).expect("the initramfs");
        let named = [name.as_bytes(), b"\0"].concat();
        let header = archive.windows(named.len()).position(|bytes| bytes == named).expect("the file's name");
        // The name stands behind a header of 110 bytes, and the file behind it at the next multiple of 4 (cpio newc).
        let file = (header + named.len()).next_multiple_of(4);
        let number = |at: usize| u64::from_le_bytes(archive[file + at..file + at + 8].try_into().expect("8 bytes"));
        assert!(archive[file..].starts_with(b"\x7fELF"), "{name} is no program");
        // Where the segment with the entry is (ELF-64: e_entry, e_phoff; p_offset, p_vaddr, p_filesz).
        let (entry, headers) = (number(24), number(32));
        let offset = (0..16).map(|n| usize::try_from(headers + n * 56).expect("an offset")).find_map(|at| {
            let (offset, address, bytes) = (number(at + 8), number(at + 16), number(at + 32));
            (address..address + bytes).contains(&entry).then(|| entry - address + offset)
        });
        let start = file + usize::try_from(offset.expect("the entry's segment")).expect("an offset");
        archive[start..start + 16 * 4096].fill(0);
        let to = self.path("damaged.cpio");
        fs::write(&to, archive).expect("a damaged initramfs");
        to
    }

    /// Runs the broker as an ordinary user whose only right is the group of /dev/kvm.
    #[must_use]
    pub fn as_ordinary_user(mut self) -> Self {
        self.ordinary_user = true;
        self
    }

    /// A path in the guest's own temporary folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A copy of the test guest's root file system in the temporary folder.
    #[must_use]
    pub fn root_image(&self) -> PathBuf {
        let to = self.path("root.ext4");
        fs::copy(folder("BULKHEAD_GUEST_DIR").join("root.ext4"), &to).expect("a copy of the root file system");
        to
    }

    /// A disk image of `mib` MiB with a pattern that is different in every sector and every `seed`.
    #[must_use]
    pub fn pattern_image(&self, name: &str, mib: u64, seed: u64) -> PathBuf {
        let path = self.path(name);
        let mut file = std::io::BufWriter::new(File::create(&path).expect("an image"));
        for sector in 0..mib * 2048 {
            let mut line = format!("image {seed} sector {sector}\n").into_bytes();
            line.resize(512, b'.');
            file.write_all(&line).expect("a sector");
        }
        file.into_inner().expect("the rest of the image").sync_all().expect("the image on disk");
        path
    }

    /// A copy of a file, compressed, in the temporary folder.
    fn gzip(&self, file: &Path) -> PathBuf {
        let to = self.path("compressed.gz");
        let output = File::create(&to).expect("a file for what gzip writes");
        let status = Command::new("gzip").args(["-1", "-c"]).arg(file).stdout(output).status();
        assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "gzip: {status:?}");
        to
    }

    /// Starts the broker.
    #[must_use]
    pub fn boot(self) -> Running {
        let files = folder("BULKHEAD_GUEST_DIR");
        let mut command = Command::new(folder("BULKHEAD_BIN_DIR").join("broker"));
        let kernel = if self.compressed { self.gzip(&files.join("vmlinuz")) } else { files.join("vmlinuz") };
        let initrd = self.initrd.unwrap_or_else(|| files.join("initrd.cpio"));
        command.args(["run", "--json", "-v", "-k"]).arg(kernel).arg("-i").arg(initrd);
        command.args(["-c", &self.vcpus.to_string(), "-m", &self.memory_mib.to_string()]);
        command.args(["-p", &self.cmdline.join(" ")]);
        for disk in &self.disks {
            command.args(["-d", disk]);
        }
        command.args(&self.flags);
        if self.ordinary_user && nix::unistd::geteuid().is_root() {
            let group = fs::metadata("/dev/kvm").expect("/dev/kvm").gid();
            command.uid(1000).gid(group);
        }
        Running::start(command.current_dir("/"), self.folder)
    }
}

/// Starts `broker run` with arguments as a person types them, in a folder where the test guest's files have the names
/// `Image`, `rootfs.cpio` and `rootfs.ext4`.
#[must_use]
pub fn typed(arguments: &[&str]) -> Running {
    let guest = Guest::new();
    for (file, name) in [("vmlinuz", "Image"), ("initrd.cpio", "rootfs.cpio"), ("root.ext4", "rootfs.ext4")] {
        fs::copy(folder("BULKHEAD_GUEST_DIR").join(file), guest.path(name)).expect("a copy of a guest's file");
    }
    let mut command = Command::new(folder("BULKHEAD_BIN_DIR").join("broker"));
    command.args(["run", "--json"]).args(arguments).current_dir(guest.folder.path());
    Running::start(&mut command, guest.folder)
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

/// A guest that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    seen: Vec<u8>,
    searched: usize,
    log: PathBuf,
    other_log: Option<PathBuf>,
    folder: Option<tempfile::TempDir>,
}

/// How a guest ended.
#[derive(Debug)]
pub struct Ended {
    /// The broker's exit code; `None` when a signal killed it.
    pub code: Option<i32>,
    /// The JSON object that it printed last.
    pub report: serde_json::Value,
    /// Everything on its standard output: the console, then the report.
    pub console: String,
    /// What it logged.
    pub log: String,
    /// The guest's disk images are in here.
    _folder: Option<tempfile::TempDir>,
}

impl Ended {
    /// The rest of the console's line that begins with `start`.
    #[must_use]
    pub fn line(&self, start: &str) -> &str {
        self.console
            .lines()
            .find_map(|line| line.trim_end().strip_prefix(start))
            .unwrap_or_else(|| panic!("the console has no line {start:?}\n{self}"))
    }

    /// What the guest printed: everything before the report.
    #[must_use]
    pub fn printed(&self) -> &str {
        // The broker begins a line for the report.
        self.console.trim_end().rsplit_once('\n').map_or("", |(printed, _report)| printed)
    }

    /// Checks the exit code and the reason.
    pub fn expect(&self, code: i32, reason: &str) {
        assert_eq!(self.code, Some(code), "exit code; {self}");
        assert_eq!(self.report.get("reason").and_then(|reason| reason.as_str()), Some(reason), "reason; {self}");
        assert_eq!(self.report.get("exit_code").and_then(serde_json::Value::as_i64), Some(i64::from(code)), "{self}");
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "console:\n{}\nlog:\n{}", indented(&self.console), indented(&self.log))
    }
}

fn indented(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(60)..];
    tail.iter().map(|line| format!("    | {}\n", line.trim_end())).collect()
}

impl Running {
    /// Starts a program whose standard input and output are a guest's console; `folder` stays until the end.
    #[must_use]
    pub fn start(command: &mut Command, folder: tempfile::TempDir) -> Self {
        let log = folder.path().join("stderr.log");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log file"))
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", command.get_program().display()));
        let input = child.stdin.take();
        let output = child.stdout.take().expect("the program's output");
        Self { child, input, output, seen: Vec::new(), searched: 0, log, other_log: None, folder: Some(folder) }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id is positive"))
    }

    /// Has the log of another program shown as well when this one fails.
    pub fn blame(&mut self, other: &Self) {
        self.other_log = Some(other.log.clone());
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the program can be signalled");
    }

    /// Waits until the program listens on a Unix socket.
    pub fn await_listener(&mut self, socket: &Path) {
        let end = Instant::now() + DEADLINE;
        loop {
            // "Num RefCount Protocol Flags Type St Inode Path"; flag 0x10000 is __SO_ACCEPTCON: it listens.
            let sockets = fs::read_to_string("/proc/net/unix").expect("the list of sockets");
            let listens = sockets.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.nth(3) == Some("00010000") && words.next_back().map(Path::new) == Some(socket)
            });
            if listens {
                return;
            }
            if Instant::now() > end {
                self.fail(&format!("nobody listens on {} within {DEADLINE:?}", socket.display()));
            }
            // Nothing tells when a socket begins to listen; but the end of the program ends this wait at once.
            if self.read(Instant::now() + Duration::from_millis(5)) == Some(false) {
                self.fail("the program ended before it listened");
            }
        }
    }

    /// Waits until the console shows a text that was not waited for before.
    pub fn await_text(&mut self, text: &str) {
        let end = Instant::now() + DEADLINE;
        loop {
            let rest = &self.seen[self.searched..];
            if let Some(at) = rest.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.searched += at + text.len();
                return;
            }
            match self.read(end) {
                Some(true) => {}
                Some(false) => self.fail(&format!("the program ended before {text:?} came")),
                None => self.fail(&format!("{text:?} did not come within {DEADLINE:?}")),
            }
        }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        let input = self.input.as_mut().expect("an open input");
        input.write_all(line.as_bytes()).and_then(|()| input.write_all(b"\n")).expect("the broker reads its input");
    }

    /// Waits for the end.
    #[must_use]
    pub fn end(mut self) -> Ended {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.read(end) {
                Some(true) => {}
                Some(false) => break,
                None => self.fail(&format!("the program did not end within {DEADLINE:?}")),
            }
        }
        let status = self.child.wait().expect("the broker's status");
        let console = String::from_utf8_lossy(&self.seen).into_owned();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = console.lines().last().unwrap_or_default();
        // A guest that is cut off in the middle of a line leaves the report behind it.
        let json = last.find("{\"").and_then(|at| last.get(at..)).unwrap_or(last);
        let report = serde_json::from_str(json).unwrap_or(serde_json::Value::Null);
        Ended { code: status.code(), report, console, log, _folder: self.folder.take() }
    }

    /// Reads something: `Some(true)` when there was something, `Some(false)` at the end, `None` at the deadline.
    fn read(&mut self, end: Instant) -> Option<bool> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let timeout = PollTimeout::try_from(left.as_millis() + 1).expect("a deadline that poll takes");
            match poll(&mut [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => {
                    let mut buffer = [0; 8192];
                    let length = self.output.read(&mut buffer).expect("the broker's output");
                    self.seen.extend_from_slice(&buffer[..length]);
                    return Some(length > 0);
                }
                Err(error) => panic!("poll: {error}"),
            }
        }
    }

    fn fail(&self, why: &str) -> ! {
        let console = String::from_utf8_lossy(&self.seen).into_owned();
        let mut logs = String::new();
        for path in [Some(&self.log), self.other_log.as_ref()].into_iter().flatten() {
            logs.push_str(&fs::read_to_string(path).unwrap_or_default());
        }
        panic!("{why}\nconsole:\n{}\nlog:\n{}", indented(&console), indented(&logs));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when the broker is gone already; it takes its children with it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The SHA-256 of a file, by the program that every system has.
#[must_use]
pub fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum runs");
    let text = String::from_utf8(output.stdout).expect("sha256sum prints text");
    text.split_whitespace().next().expect("sha256sum prints a sum").to_owned()
}

/// Asserts what the kernel says of every thread of jailed processes.
pub fn assert_jailed(processes: &[Seen]) {
    for process in processes {
        process.assert_unprivileged();
        process.assert_keeps_its_memory();
        assert_eq!(process.root(), Vec::<PathBuf>::new(), "the root of {process:?}");
    }
}
