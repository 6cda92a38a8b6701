//! Runs `broker run` with a small guest and waits for what it prints and how it ends, always with a deadline.

use crate::binaries::binary;
use crate::guest::Guest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The longest wait for anything: many times what the slowest machine needs.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A machine to be run.
#[derive(Debug)]
pub struct Machine {
    folder: TempDir,
    command: Command,
    memory: &'static str,
    vcpus: &'static str,
    kernel: Option<PathBuf>,
}

impl Machine {
    /// A guest with one vCPU and 64 MiB whose command line is `words`.
    #[must_use]
    pub fn new(words: &str) -> Self {
        Self::of(Guest::Long, words)
    }

    /// As [`Machine::new`], of a chosen guest.
    #[must_use]
    pub fn of(guest: Guest, words: &str) -> Self {
        let mut machine = Self::bare();
        machine.command.args(["run", "--json", "-p", words]);
        let kernel = guest.write(machine.folder());
        machine.kernel(kernel)
    }

    /// A broker without arguments.
    #[must_use]
    pub fn bare() -> Self {
        Self::bare_at(&binary("broker"))
    }

    /// As [`Machine::bare`], of a broker elsewhere.
    #[must_use]
    pub fn bare_at(broker: &Path) -> Self {
        let folder = tempfile::tempdir().expect("no folder for the test");
        Self { folder, command: Command::new(broker), memory: "64", vcpus: "1", kernel: None }
    }

    /// The test's own folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &Path) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it by another program: `program arguments… broker its arguments…`.
    #[must_use]
    pub fn by(mut self, program: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).arg(self.command.get_program()).args(self.command.get_args());
        command.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.command = command;
        self
    }

    /// Boots another kernel.
    #[must_use]
    pub fn kernel(self, path: PathBuf) -> Self {
        Self { kernel: Some(path), ..self }
    }

    /// Gives it other memory than 64 MiB.
    #[must_use]
    pub fn memory(self, memory: &'static str) -> Self {
        Self { memory, ..self }
    }

    /// Gives it other vCPUs than one.
    #[must_use]
    pub fn vcpus(self, vcpus: &'static str) -> Self {
        Self { vcpus, ..self }
    }

    /// Adds a disk.
    #[must_use]
    pub fn disk(self, image: &Path, mode: &str) -> Self {
        let disk = format!("{}:{mode}", image.display());
        self.args(["-d", disk.as_str()])
    }

    /// Starts the broker.
    #[must_use]
    pub fn start(mut self) -> Running {
        if let Some(kernel) = &self.kernel {
            self.command.arg("-k").arg(kernel).args(["-m", self.memory, "-c", self.vcpus]);
        }
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let forks = no_program_is_written();
        let mut child = self.command.spawn().expect("the broker does not start");
        drop(forks);
        let input = child.stdin.take();
        let output = Capture::start(child.stdout.take().expect("no output"));
        let log = Capture::start(child.stderr.take().expect("no log"));
        Running { child, input, output, log, folder: self.folder }
    }

    /// Runs the machine to its end.
    #[must_use]
    pub fn run(self) -> Ended {
        self.start().wait()
    }
}

/// Keeps other threads from writing a program, or from starting one, while the result is held: between fork and exec, a
/// child holds what is open for writing elsewhere, and a program that is open for writing cannot be executed.
pub fn no_program_is_written() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a pipe brought so far.
#[derive(Debug, Clone, Default)]
struct Capture(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Captured>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Captured {
    bytes: Vec<u8>,
    closed: bool,
}

impl Capture {
    fn start(mut pipe: impl Read + Send + 'static) -> Self {
        let capture = Self::default();
        let shared = Arc::clone(&capture.0);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let length = pipe.read(&mut buffer).unwrap_or(0);
                let mut state = shared.state.lock().unwrap();
                state.bytes.extend(&buffer[..length]);
                state.closed = length == 0;
                shared.changed.notify_all();
                if length == 0 {
                    break;
                }
            }
        });
        capture
    }

    /// The text, once `done` likes it or the pipe is closed.
    fn wait(&self, done: impl Fn(&str) -> bool) -> Option<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let state = self.0.state.lock().unwrap();
        let more = |state: &mut Captured| !state.closed && !done(&text(&state.bytes));
        let (state, result) = self.0.changed.wait_timeout_while(state, LIMIT, more).unwrap();
        (!result.timed_out()).then(|| text(&state.bytes))
    }

    fn now(&self) -> String {
        String::from_utf8_lossy(&self.0.state.lock().unwrap().bytes).into_owned()
    }
}

/// A broker that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: Capture,
    log: Capture,
    folder: TempDir,
}

impl Running {
    /// The broker's process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id is positive"))
    }

    /// Waits until the console shows `text`.
    pub fn await_text(&self, text: &str) {
        let found = self.output.wait(|output| output.contains(text)).is_some_and(|output| output.contains(text));
        assert!(found, "{text:?} did not come\n--- output\n{}\n--- log\n{}", self.output.now(), self.log.now());
    }

    /// Waits until the broker has logged `text`.
    pub fn await_log(&self, text: &str) {
        let found = self.log.wait(|log| log.contains(text)).is_some_and(|log| log.contains(text));
        assert!(found, "{text:?} was not logged\n--- output\n{}\n--- log\n{}", self.output.now(), self.log.now());
    }

    /// Types on the console.
    pub fn write_input(&mut self, bytes: &[u8]) {
        self.input.as_mut().expect("the input is closed").write_all(bytes).expect("the input is not taken");
    }

    /// Sends the broker a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the broker cannot be signalled");
    }

    /// Waits for the broker's end, with no more input.
    #[must_use]
    pub fn wait(mut self) -> Ended {
        self.end()
    }

    /// As [`Running::wait`]; the test's own folder stays until its value is dropped.
    #[must_use]
    pub fn wait_and_keep(mut self) -> (Ended, Self) {
        (self.end(), self)
    }

    fn end(&mut self) -> Ended {
        self.input = None;
        let end = Instant::now() + LIMIT;
        let closed = self.output.wait(|_| false).is_some() && self.log.wait(|_| false).is_some();
        let status = loop {
            match self.child.try_wait().expect("the broker cannot be waited for") {
                Some(status) => break status,
                None if closed && Instant::now() < end => std::thread::yield_now(),
                None => {
                    let (output, log) = (self.output.now(), self.log.now());
                    panic!("the broker did not end\n--- output\n{output}\n--- log\n{log}");
                }
            }
        };
        let output = self.output.now();
        let (console, last) = output.trim_end().rsplit_once('\n').unwrap_or(("", output.trim_end()));
        let (console, report) = match serde_json::from_str(last) {
            Ok(report) => (console.to_owned(), report),
            Err(_) => (output.clone(), Value::Null),
        };
        Ended { status, console, report, log: self.log.now() }
    }

    /// The test's own folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a failed test comes here with a broker that runs.
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}

/// How a broker ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What the guest printed.
    pub console: String,
    /// The report of `--json`; null when the last line of the output is none.
    pub report: Value,
    /// What the broker logged.
    pub log: String,
}

impl Ended {
    /// Asserts the exit code, and that the report says the same.
    pub fn expect(&self, code: i32, reason: &str) -> &Self {
        let said = (self.status.code(), self.report["exit_code"].as_i64(), self.report["reason"].as_str());
        assert_eq!(said, (Some(code), Some(i64::from(code)), Some(reason)), "{}", self.story());
        self
    }

    /// Asserts that the scenarios passed and nothing failed.
    pub fn passed(&self, scenarios: &[&str]) -> &Self {
        assert!(!self.console.contains("FAIL"), "{}", self.story());
        for name in scenarios {
            let line = format!("PASS {name}");
            assert!(self.console.lines().any(|text| text.trim_end() == line), "no {line:?}\n{}", self.story());
        }
        self
    }

    /// Everything that is known, for the message of a failed assertion.
    #[must_use]
    pub fn story(&self) -> String {
        let status = (self.status.code(), self.status.signal());
        let mut console = self.console.clone();
        console.truncate(console.floor_char_boundary(4000));
        format!("--- status {status:?}\n--- report {}\n--- console\n{console}\n--- log\n{}", self.report, self.log)
    }
}
