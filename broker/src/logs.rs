//! Logs: the broker's own, and the lines that its children write to their log pipes.
//!
//! A child may be captured: its lines are cut, escaped, limited in number, and never more than one pipe's worth of them
//! is read at a time.

use crate::cli::{Cli, LogFormat};
use anyhow::Context;
use nix::errno::Errno;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use wire::Text;

/// Starts logging as the command line says.
///
/// # Errors
/// When the log file cannot be opened.
pub(crate) fn init(cli: &Cli) -> anyhow::Result<()> {
    let level = match cli.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let writer = match &cli.log_file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            BoxMakeWriter::new(file.with_context(|| format!("--log-file {}", path.display()))?)
        }
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(writer).with_target(false);
    match cli.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.with_ansi(false).without_time().init(),
    }
    Ok(())
}

/// Log lines of one child that are shown in a second.
const LINES_PER_SECOND: u32 = 100;
/// Log lines of one child that are shown in all.
const LINES: u32 = 10_000;
/// The longest line that is shown; the rest of it is dropped.
const LINE_BYTES: usize = Text::MAX_BYTES;
/// Bytes read at a time.
const READ_BYTES: usize = 4096;

/// The broker's end of a child's log pipe.
#[derive(Debug)]
pub(crate) struct LogPipe {
    pipe: Option<OwnedFd>,
    lines: Lines,
}

impl LogPipe {
    /// Wraps the non-blocking read end of a pipe.
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Some(pipe), lines: Lines::default() }
    }

    /// What to wait for; none while the child has said too much, or has closed its end.
    pub(crate) fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        if self.lines.paused_until.is_some() { None } else { self.pipe.as_ref().map(AsFd::as_fd) }
    }

    /// When to look again.
    pub(crate) fn resume_at(&self) -> Option<Instant> {
        self.pipe.as_ref().and(self.lines.paused_until)
    }

    /// Reads what is there and passes each whole line to `show`.
    pub(crate) fn read(&mut self, now: Instant, show: impl FnMut(&Text)) {
        let Some(pipe) = &self.pipe else { return };
        if !self.lines.resume(now) {
            return;
        }
        let mut buffer = [0u8; READ_BYTES];
        match nix::unistd::read(pipe, &mut buffer) {
            Ok(0) => self.pipe = None,
            Ok(length) => self.lines.feed(buffer.get(..length).unwrap_or(&[]), now, show),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.pipe = None,
        }
    }

    /// Closes it; what is in it is nobody's.
    pub(crate) fn close_unread(&mut self) {
        self.pipe = None;
        self.lines = Lines::default();
    }

    /// Shows what is left when the child is gone; as much as a full pipe at most.
    pub(crate) fn finish(&mut self, now: Instant, mut show: impl FnMut(&Text)) {
        self.lines.paused_until = None;
        for _ in 0..16 {
            if self.pipe.is_none() {
                break;
            }
            self.read(now, &mut show);
        }
        self.pipe = None;
        self.lines.end(&mut show);
    }
}

/// Cuts bytes into lines, at a limited rate.
#[derive(Debug, Default)]
struct Lines {
    line: Vec<u8>,
    window: Option<Instant>,
    shown: u32,
    total: u32,
    suppressed: u64,
    paused_until: Option<Instant>,
}

impl Lines {
    fn resume(&mut self, now: Instant) -> bool {
        if self.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        self.paused_until = None;
        true
    }

    fn feed(&mut self, bytes: &[u8], now: Instant, mut show: impl FnMut(&Text)) {
        if self.window.is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1)) {
            self.window = Some(now);
            self.shown = 0;
            if self.suppressed > 0 && self.total < LINES {
                show(&Text::truncated(format_args!("({} more lines were not shown)", self.suppressed)));
                self.suppressed = 0;
            }
        }
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() < LINE_BYTES {
                    self.line.push(byte);
                }
                continue;
            }
            if self.total >= LINES {
                self.suppressed = self.suppressed.saturating_add(1);
            } else if self.shown < LINES_PER_SECOND {
                self.shown = self.shown.saturating_add(1);
                self.total = self.total.saturating_add(1);
                show(&Text::truncated(String::from_utf8_lossy(&self.line)));
            } else {
                self.suppressed = self.suppressed.saturating_add(1);
                // Its pipe fills up meanwhile, which costs the child its lines and us nothing.
                self.paused_until = self.window.and_then(|start| start.checked_add(Duration::from_secs(1)));
            }
            self.line.clear();
        }
    }

    fn end(&mut self, mut show: impl FnMut(&Text)) {
        if !self.line.is_empty() {
            show(&Text::truncated(String::from_utf8_lossy(&self.line)));
            self.line.clear();
        }
        if self.suppressed > 0 {
            show(&Text::truncated(format_args!("({} more lines were not shown)", self.suppressed)));
            self.suppressed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: &mut Lines, bytes: &[u8], now: Instant) -> Vec<String> {
        let mut all = Vec::new();
        lines.feed(bytes, now, |text| all.push(text.to_string()));
        all
    }

    #[test]
    fn line_with_escape_sequences_is_shown_harmless() {
        let mut lines = Lines::default();
        let all = shown(&mut lines, b"a\x1b]0;x\x07b\xff\nc", Instant::now());
        assert_eq!(all, ["a\\u{1b}]0;x\\u{7}b\u{fffd}"]);
        let mut rest = Vec::new();
        lines.end(|text| rest.push(text.to_string()));
        assert_eq!(rest, ["c"]);
    }

    #[test]
    fn line_that_is_too_long_is_cut() {
        let all = shown(&mut Lines::default(), &[vec![b'x'; 5000], b"\n".to_vec()].concat(), Instant::now());
        assert_eq!(all[0].len(), LINE_BYTES);
    }

    #[test]
    fn flood_is_limited_and_counted_and_pauses_the_pipe() {
        let mut lines = Lines::default();
        let now = Instant::now();
        assert_eq!(shown(&mut lines, &b"x\n".repeat(150), now).len(), 100);
        assert!(!lines.resume(now));
        let later = now + Duration::from_secs(1);
        assert!(lines.resume(later));
        assert_eq!(shown(&mut lines, b"y\n", later), ["(50 more lines were not shown)", "y"]);
    }

    #[test]
    fn child_that_never_stops_talking_is_shown_up_to_a_total() {
        let (mut lines, mut now, mut all) = (Lines::default(), Instant::now(), 0);
        for _ in 0..150 {
            all += shown(&mut lines, &b"x\n".repeat(100), now).len();
            now += Duration::from_secs(1);
        }
        assert_eq!(all, LINES as usize);
        let mut last = Vec::new();
        lines.end(|text| last.push(text.to_string()));
        assert_eq!(last, ["(5000 more lines were not shown)"]);
    }

    #[test]
    fn child_that_closed_its_end_is_not_waited_for() {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let mut pipe = LogPipe::new(read);
        nix::unistd::write(&write, b"last words").unwrap();
        drop(write);
        let mut all = Vec::new();
        pipe.finish(Instant::now(), |text| all.push(text.to_string()));
        assert_eq!(all, ["last words"]);
        assert!(pipe.poll_fd().is_none());
    }
}
