//! A console log as lines: cut, without escape sequences, each with its time and with who said it.
//!
//! Where the kernel stamps its lines with the time, a line without a stamp is a program's. A program can still forge a
//! stamp, which is why nothing that stands in a log alone is certain.

use std::collections::VecDeque;

/// How much of a log is read in bytes; what is beyond is not looked at.
pub const MAX_LOG_BYTES: usize = (16 << 20) + 4096;
/// How much of a line is read in bytes.
pub const MAX_LINE_BYTES: usize = 4096;

/// How long the time in the brackets may be in bytes.
const MAX_CLOCK_BYTES: usize = 24;

/// Who said a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The kernel: the line has a time.
    Kernel,
    /// A program, or firmware: it has none, and others have.
    Program,
    /// Nobody can tell: no line had a time so far.
    Unknown,
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its number in the log, from 1 on.
    pub(crate) number: usize,
    /// Who said it.
    pub(crate) speaker: Speaker,
    /// The kernel's clock in microseconds.
    pub(crate) time_us: Option<u64>,
    /// What was said, without time and caller.
    pub(crate) text: String,
}

/// The lines of a log, empty ones left out.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
    /// Whether the kernel stamps its lines, once that is known; its first line, or the first with a stamp, tells.
    stamped: Option<bool>,
    ready: VecDeque<Line>,
}

impl<'a> Lines<'a> {
    /// Those of `log`.
    pub(crate) fn new(log: &'a [u8]) -> Self {
        let rest = log.get(..MAX_LOG_BYTES).unwrap_or(log);
        Self { rest, number: 0, stamped: None, ready: VecDeque::new() }
    }

    /// Takes one line of bytes apart: what stands before a time is a line of its own, of a program that was interrupted.
    fn read(&mut self, bytes: &[u8]) {
        let bytes = bytes.get(..MAX_LINE_BYTES).unwrap_or(bytes);
        for part in bytes.split(|byte| *byte == b'\r') {
            let text = plain(part);
            match stamp(&text) {
                Some((start, time_us, end)) => {
                    self.stamped.get_or_insert(true);
                    let (before, after) = (text.get(..start), text.get(end..));
                    // A journal puts the date, the host and "kernel:" before each line of the kernel.
                    let said = |before: &&str| !before.is_empty() && !before.ends_with("kernel:");
                    if let Some(before) = before.map(str::trim_end).filter(said) {
                        self.push(Speaker::Program, None, before);
                    }
                    self.push(Speaker::Kernel, Some(time_us), without_caller(after.unwrap_or_default()));
                }
                None => {
                    if text.starts_with("Linux version ") {
                        self.stamped.get_or_insert(false);
                    }
                    let speaker = if self.stamped == Some(true) { Speaker::Program } else { Speaker::Unknown };
                    self.push(speaker, None, &text);
                }
            }
        }
    }

    fn push(&mut self, speaker: Speaker, time_us: Option<u64>, text: &str) {
        let text = text.trim_end();
        if !text.is_empty() {
            self.ready.push_back(Line { number: self.number, speaker, time_us, text: text.to_owned() });
        }
    }
}

impl Iterator for Lines<'_> {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.rest.is_empty() {
                return None;
            }
            let end = self.rest.iter().position(|byte| *byte == b'\n').unwrap_or(self.rest.len());
            let (line, rest) = self.rest.split_at_checked(end)?;
            self.rest = rest.get(1..).unwrap_or_default();
            self.number = self.number.saturating_add(1);
            self.read(line);
        }
    }
}

/// The text of a line without what drives a terminal ("ECMA-48": CSI, OSC and two-byte sequences).
fn plain(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied();
    while let Some(byte) = rest.next() {
        match byte {
            0x1b => match rest.next() {
                Some(b'[') => drop(rest.by_ref().find(|byte| (0x40..=0x7e).contains(byte))),
                // Ended by BEL, or by ESC and a backslash, of which the backslash is what is taken here.
                Some(b']') => drop(rest.by_ref().find(|byte| matches!(byte, 0x07 | b'\\'))),
                Some(b'(' | b')' | b'#') => drop(rest.next()),
                _ => {}
            },
            b'\t' => text.push(b' '),
            0..0x20 | 0x7f => {}
            _ => text.push(byte),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The first time in a line, as printk writes it, `[%5lu.%06lu] `: where it begins, the microseconds, where the text begins.
fn stamp(text: &str) -> Option<(usize, u64, usize)> {
    let mut from = 0usize;
    while let Some(at) = text.get(from..)?.find('[') {
        let start = from.checked_add(at)?;
        let inside = text.get(start.checked_add(1)?..)?;
        if let Some((time_us, length)) = time(inside) {
            let end = start.checked_add(1)?.checked_add(length)?;
            // The level of a message stands before the time where the console was asked for it.
            let level = text.get(..start).is_some_and(|before| before.starts_with('<') && before.ends_with('>'));
            return Some((if level { 0 } else { start }, time_us, end));
        }
        from = start.checked_add(1)?;
    }
    None
}

/// What is inside the brackets, in microseconds, and its length with the bracket and the space that end it.
fn time(inside: &str) -> Option<(u64, usize)> {
    let end = inside.bytes().take(MAX_CLOCK_BYTES).position(|byte| byte == b']')?;
    let clock = inside.get(..end)?;
    let (seconds, fraction) = clock.trim_start().split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if clock.len() < 12 || fraction.len() != 6 || !digits(seconds) || !digits(fraction) {
        return None;
    }
    let time_us = seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(fraction.parse().ok()?)?;
    let length = clock.len().checked_add(1)?;
    let space = usize::from(inside.get(length..)?.starts_with(' '));
    Some((time_us, length.checked_add(space)?))
}

/// What follows the caller, `[    T1] ` or `[ C0] `, if there is one (CONFIG_PRINTK_CALLER).
fn without_caller(text: &str) -> &str {
    let caller = |text: &str| {
        let (inside, rest) = text.strip_prefix('[')?.split_once(']')?;
        let digits = inside.trim_start().strip_prefix(['T', 'C'])?;
        let numbered = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        numbered.then_some(rest.len())
    };
    match caller(text).and_then(|length| text.len().checked_sub(length)).and_then(|at| text.get(at..)) {
        Some(rest) => rest.strip_prefix(' ').unwrap_or(rest),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(log: &str) -> Vec<(Speaker, String)> {
        Lines::new(log.as_bytes()).map(|line| (line.speaker, line.text)).collect()
    }

    #[test]
    fn time_caller_level_and_escapes_are_stripped() {
        let log = "<6>[    0.000000] [    T0] Linux version 6.1\r\n\x1b[1;31m[  1.234567] red\x1b[0m\r\n[   12.345678][    T1] x\n";
        let said = read(log);
        assert_eq!(said[0], (Speaker::Kernel, "Linux version 6.1".to_owned()));
        assert_eq!(said[2], (Speaker::Kernel, "x".to_owned()));
        assert_eq!(said[1].1, "[  1.234567] red", "a time has a width of its own");
        assert_eq!(Lines::new(b"[   12.345678] a").next().unwrap().time_us, Some(12_345_678));
    }

    #[test]
    fn program_that_is_interrupted_by_the_kernel_gives_two_lines() {
        let said = read("[    0.100000] a\nsh: press Enter [    0.200000] b\nc\n");
        assert_eq!(said[1], (Speaker::Program, "sh: press Enter".to_owned()));
        assert_eq!(said[2], (Speaker::Kernel, "b".to_owned()));
        assert_eq!(said[3].0, Speaker::Program);
    }

    #[test]
    fn kernel_without_times_is_not_told_from_programs() {
        assert!(read("Linux version 5.10\nhello\n").iter().all(|(speaker, _)| *speaker == Speaker::Unknown));
    }

    #[test]
    fn long_line_is_cut_and_the_next_one_is_whole() {
        let log = format!("{}\nnext\n", "x".repeat(MAX_LINE_BYTES * 3));
        let said = read(&log);
        assert_eq!(said[0].1.len(), MAX_LINE_BYTES);
        assert_eq!(said[1].1, "next");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(Lines::new(b"a\xff\x00b\x1b]0;title\x07c\n").next().unwrap().text, "a\u{fffd}bc");
    }
}
