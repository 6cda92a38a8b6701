//! A program whose standard input and output are a serial console: read with deadlines, answered, joined to the user's
//! terminal, written to a log file, and ended whatever happens.
//!
//! What comes out of it is only searched and shown, never obeyed.

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, SetArg, Termios};
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The text came.
    Found,
    /// The program closed its output.
    Closed,
}

/// How long a console may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From the start of the wait to its end.
    pub(crate) total: Duration,
    /// Without a byte.
    pub(crate) silence: Duration,
}

/// A running program and everything that it has written.
#[derive(Debug)]
pub(crate) struct Console {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    log: File,
    log_path: PathBuf,
    seen: Vec<u8>,
    /// Where the next wait starts to search.
    searched: usize,
    /// Whether what comes is copied to standard output.
    pub(crate) echo: bool,
}

impl Console {
    /// Starts a program; it is killed when this process dies or the value is dropped.
    ///
    /// # Errors
    /// When it cannot be started, or its log cannot be written.
    pub(crate) fn start(command: &Command, log_path: &Path) -> Result<Self> {
        let name = command.get_program().to_owned();
        crate::paths::directory(log_path.parent().unwrap_or(Path::new(".")))?;
        let log = File::create(log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
        let mut guarded = crate::command::program("setpriv")?;
        guarded.args(["--pdeathsig", "KILL", "--"]).arg(&name).args(command.get_args());
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => guarded.env(variable, value),
                None => guarded.env_remove(variable),
            };
        }
        let mut child = guarded
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", name.display()))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("the program has no output")?;
        Ok(Self {
            child,
            input,
            output,
            log,
            log_path: log_path.to_owned(),
            seen: Vec::new(),
            searched: 0,
            echo: false,
        })
    }

    /// Everything that came so far, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// The last lines that came.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = self.text();
        let all: Vec<_> = text.lines().map(str::trim_end).collect();
        let tail = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
        tail.iter().map(|line| format!("    | {line}\n")).collect()
    }

    /// Types into the console.
    ///
    /// # Errors
    /// When the program does not read any more.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let input = self.input.as_mut().context("the console's input is closed")?;
        input.write_all(bytes).and_then(|()| input.flush()).context("cannot type into the console")
    }

    /// Waits for a text; `line` gets every whole line that comes meanwhile.
    ///
    /// # Errors
    /// When patience ends first; the program is left running.
    pub(crate) fn wait_for(&mut self, text: &str, patience: Patience, mut line: impl FnMut(&str)) -> Result<Waited> {
        let start = Instant::now();
        let mut last = start;
        let mut line_start = self.searched;
        loop {
            while let Some(length) = self.seen.iter().skip(line_start).position(|&byte| byte == b'\n') {
                let end = line_start.saturating_add(length);
                let bytes = self.seen.get(line_start..end).unwrap_or_default();
                line(String::from_utf8_lossy(bytes).trim_end());
                line_start = end.saturating_add(1);
            }
            if let Some(at) = find(self.seen.get(self.searched..).unwrap_or_default(), text.as_bytes()) {
                self.searched = self.searched.saturating_add(at).saturating_add(text.len());
                return Ok(Waited::Found);
            }
            let left = patience.total.saturating_sub(start.elapsed());
            let quiet = patience.silence.saturating_sub(last.elapsed());
            if left.is_zero() {
                bail!("{text:?} did not come within {} s", patience.total.as_secs());
            }
            if quiet.is_zero() {
                bail!("nothing came for {} s while waiting for {text:?}", patience.silence.as_secs());
            }
            match self.read(left.min(quiet))? {
                None => {}
                Some(0) => return Ok(Waited::Closed),
                Some(_) => last = Instant::now(),
            }
        }
    }

    /// The rest of the line in which the last wait found its text.
    ///
    /// # Errors
    /// When the line does not end in time.
    pub(crate) fn rest_of_line(&mut self, patience: Patience) -> Result<String> {
        let start = self.searched;
        if self.wait_for("\n", patience, |_| {})? == Waited::Closed {
            bail!("the last line has no end");
        }
        let bytes = self.seen.get(start..self.searched).unwrap_or_default();
        Ok(String::from_utf8_lossy(bytes).trim_end().to_owned())
    }

    /// Reads what is there, at the latest when `limit` is over; `None` when nothing came, 0 at the end.
    fn read(&mut self, limit: Duration) -> Result<Option<usize>> {
        let timeout = PollTimeout::try_from(limit.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        let ready = match poll(&mut [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other.context("cannot wait for the console")?,
        };
        if ready == 0 {
            return Ok(None);
        }
        self.take().map(Some)
    }

    fn take(&mut self) -> Result<usize> {
        let mut buffer = [0; 16384];
        let length = self.output.read(&mut buffer).context("cannot read the console")?;
        let bytes = buffer.get(..length).unwrap_or_default();
        self.seen.extend_from_slice(bytes);
        self.log.write_all(bytes).with_context(|| format!("cannot write {}", self.log_path.display()))?;
        if self.echo {
            let mut out = io::stdout();
            out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to standard output")?;
        }
        Ok(length)
    }

    /// Joins the console to the user's terminal, in raw mode, until `text` comes or the program ends. Nothing from the
    /// line in which `text` comes is shown.
    ///
    /// # Errors
    /// When the terminal fails.
    pub(crate) fn join_terminal(&mut self, text: &str) -> Result<Waited> {
        let stdin = io::stdin();
        let _raw = RawTerminal::enter()?;
        let mut shown = self.searched;
        let mut user_is_there = true;
        loop {
            let rest = self.seen.get(self.searched..).unwrap_or_default();
            let found = find(rest, text.as_bytes());
            let end = self.searched.saturating_add(found.unwrap_or(rest.len()));
            let mut out = io::stdout();
            out.write_all(self.seen.get(shown..end).unwrap_or_default())
                .and_then(|()| out.flush())
                .context("cannot write to the terminal")?;
            shown = end;
            if found.is_some() {
                self.searched = end.saturating_add(text.len());
                return Ok(Waited::Found);
            }
            let mut fds = vec![PollFd::new(self.output.as_fd(), PollFlags::POLLIN)];
            if user_is_there {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other.context("cannot wait for the terminal")?,
            };
            let ready: Vec<_> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            if ready.get(1) == Some(&true) {
                let mut buffer = [0; 1024];
                let length = nix::unistd::read(stdin.as_fd(), &mut buffer).context("cannot read the terminal")?;
                user_is_there = length > 0;
                self.send(buffer.get(..length).unwrap_or_default())?;
            }
            if ready.first() == Some(&true) && self.take()? == 0 {
                return Ok(Waited::Closed);
            }
        }
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// When it does not end in time; it is killed then.
    pub(crate) fn wait_for_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now().checked_add(limit).context("the limit is too long")?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.read(left)? {
                // The output closes when the program ends, or right before.
                Some(0) => return self.child.wait().context("cannot wait for the program"),
                None if left.is_zero() => bail!("the program did not end within {} s", limit.as_secs()),
                _ => {}
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Both fail only when the program is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The user's terminal in raw mode, until dropped; nothing where standard input is no terminal.
#[derive(Debug)]
struct RawTerminal {
    before: Option<Termios>,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self { before: None });
        }
        let before = termios::tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw).context("cannot put the terminal into raw mode")?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, before)
        {
            crate::command::progress(format_args!("the terminal stays raw, `reset` helps: {error}"));
        }
    }
}

/// Where `needle` starts in `haystack`.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Removes logs of earlier runs beyond the newest `keep`.
pub(crate) fn prune_logs(folder: &Path, keep: usize) -> Result<()> {
    let mut logs: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    logs.sort();
    for (_, path) in logs.iter().take(logs.len().saturating_sub(keep)) {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { total: Duration::from_secs(20), silence: Duration::from_secs(20) };

    fn shell(script: &str, folder: &Path) -> Console {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Console::start(&command, &folder.join("log")).unwrap()
    }

    #[test]
    fn waits_follow_each_other_and_lines_are_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut console = shell("echo one; echo two; read x; echo got $x", folder.path());
        let mut lines = Vec::new();
        assert_eq!(console.wait_for("two", PATIENCE, |line| lines.push(line.to_owned())).unwrap(), Waited::Found);
        console.send(b"three\n").unwrap();
        assert_eq!(console.wait_for("got three", PATIENCE, |_| {}).unwrap(), Waited::Found);
        assert_eq!(console.wait_for("two", PATIENCE, |_| {}).unwrap(), Waited::Closed);
        assert!(console.wait_for_end(PATIENCE.total).unwrap().success());
        assert_eq!(lines.first().map(String::as_str), Some("one"));
        assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "one\ntwo\ngot three\n");
    }

    #[test]
    fn silence_is_an_error_and_the_program_is_killed_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut console = shell("echo $$; exec cat", folder.path());
        let patience = Patience { total: PATIENCE.total, silence: Duration::from_millis(50) };
        assert!(console.wait_for("never", patience, |_| {}).is_err());
        let pid = console.text().trim().to_owned();
        drop(console);
        assert!(!Path::new("/proc").join(pid).exists());
    }
}
