//! Reads along on the console for the two lines that tell how a kernel ended.
//!
//! Distrusts the guest, which prints what it likes: memory is bounded, time is linear, and a forged line can only make
//! the broker say that the console showed a panic, or look whether the vCPUs have halted.

use wire::Text;

/// Linux `kernel/panic.c`, `panic()`.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// Linux `kernel/reboot.c`, `kernel_halt()`.
const HALTED: &[u8] = b"reboot: System halted";

/// How much of a line is kept. Of a longer one the second half is kept, so a mark is found wherever it stands.
const LINE_BYTES: usize = 512;

/// What a line told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sighting {
    /// A kernel panic; the line from its first word, without time stamp and line end.
    Panic(Text),
    /// The kernel halted the system.
    Halted,
}

/// The current line.
#[derive(Debug)]
pub(super) struct Scanner {
    line: Vec<u8>,
    panicked: bool,
}

impl Scanner {
    /// A scanner at the start of a line.
    pub(super) fn new() -> Self {
        Self { line: Vec::with_capacity(LINE_BYTES), panicked: false }
    }

    /// Looks at the next bytes; calls `see` for each line that tells something. A panic is told once.
    pub(super) fn scan(&mut self, bytes: &[u8], mut see: impl FnMut(Sighting)) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line(&mut see);
                continue;
            }
            if self.line.len() == LINE_BYTES && !self.look(&mut see) {
                self.line.drain(..LINE_BYTES / 2);
            }
            self.line.push(byte);
        }
    }

    /// Looks at a last line that has no end.
    pub(super) fn end_line(&mut self, mut see: impl FnMut(Sighting)) {
        self.look(&mut see);
        self.line.clear();
    }

    /// Looks at the line; clears it when it told something.
    fn look(&mut self, see: &mut impl FnMut(Sighting)) -> bool {
        let sighting = if let Some(at) = find(&self.line, PANIC).filter(|_| !self.panicked) {
            self.panicked = true;
            let words = String::from_utf8_lossy(self.line.get(at..).unwrap_or_default());
            Sighting::Panic(Text::truncated(words.trim_end()))
        } else if find(&self.line, HALTED).is_some() {
            Sighting::Halted
        } else {
            return false;
        };
        self.line.clear();
        see(sighting);
        true
    }
}

fn find(line: &[u8], mark: &[u8]) -> Option<usize> {
    line.windows(mark.len()).position(|window| window == mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(scanner: &mut Scanner, bytes: &[u8]) -> Vec<Sighting> {
        let mut seen = Vec::new();
        scanner.scan(bytes, |sighting| seen.push(sighting));
        seen
    }

    fn panic(text: &str) -> Vec<Sighting> {
        vec![Sighting::Panic(Text::truncated(text))]
    }

    #[test]
    fn panic_across_writes_is_told_once_with_its_line() {
        let mut scanner = Scanner::new();
        assert_eq!(scan(&mut scanner, b"[    1.5] Kernel panic - not sy"), []);
        let seen = scan(&mut scanner, b"ncing: VFS: Unable to mount root fs\r\n---[ end");
        assert_eq!(seen, panic("Kernel panic - not syncing: VFS: Unable to mount root fs"));
        assert_eq!(scan(&mut scanner, b" Kernel panic - not syncing: VFS ]---\r\n"), []);
    }

    #[test]
    fn halt_is_told_every_time() {
        let mut scanner = Scanner::new();
        let line = b"[    2.0] reboot: System halted\r\n";
        assert_eq!(scan(&mut scanner, line), [Sighting::Halted]);
        assert_eq!(scan(&mut scanner, line), [Sighting::Halted]);
    }

    #[test]
    fn mark_in_a_line_without_end_is_found_in_bounded_memory() {
        for shift in 0..LINE_BYTES {
            let mut scanner = Scanner::new();
            let mut seen = scan(&mut scanner, &vec![b'.'; 4 * LINE_BYTES + shift]);
            seen.extend(scan(&mut scanner, PANIC));
            seen.extend(scan(&mut scanner, &[b'!'; 2 * LINE_BYTES]));
            assert!(matches!(seen.as_slice(), [Sighting::Panic(_)]), "{shift}");
            assert!(scanner.line.capacity() <= 2 * LINE_BYTES);
        }
    }

    #[test]
    fn panic_in_a_last_line_without_end_is_told_at_the_end() {
        let mut scanner = Scanner::new();
        assert_eq!(scan(&mut scanner, b"Kernel panic - not syncing: x"), []);
        let mut seen = Vec::new();
        scanner.end_line(|sighting| seen.push(sighting));
        assert_eq!(seen, panic("Kernel panic - not syncing: x"));
    }
}
