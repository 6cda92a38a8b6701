//! Where the console's bytes go: terminals and pipes that may take none for a while, and files with a limit.
//!
//! Distrusts the guest, which may send without end, and the reader of a stream, which may stop: memory is bounded, a
//! file stays within its limit, a stuck stream holds the guest up and nothing else, and what was dropped is counted.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::unistd::write;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use wire::message::ConsoleOutput;

/// The most waiting bytes of a stream before the guest has to wait.
const STREAM_BYTES: usize = 64 << 10;
/// What may come in on top while the guest waits, because a register read drains the ring: two rings full.
const OVERRUN_BYTES: usize = 2 * wire::ring::SLOTS as usize;
/// The most bytes of one write to a stream: `PIPE_BUF`, which does not block after `POLLOUT` (pipe(7)).
const WRITE_BYTES: usize = 4096;

/// One output.
#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    /// How many more bytes a file may take; none for a stream.
    file_left: Option<u64>,
    waiting: VecDeque<u8>,
    dropped: u64,
    /// The reader is gone, or the disk is full: everything is dropped.
    broken: bool,
}

impl Output {
    fn drop_bytes(&mut self, bytes: usize) {
        self.dropped = self.dropped.saturating_add(bytes as u64);
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = if self.broken {
            0
        } else if let Some(left) = self.file_left {
            usize::try_from(left).unwrap_or(usize::MAX)
        } else {
            (STREAM_BYTES + OVERRUN_BYTES).saturating_sub(self.waiting.len())
        };
        let (taken, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        self.waiting.extend(taken);
        self.drop_bytes(rest.len());
        if let Some(left) = &mut self.file_left {
            *left = left.saturating_sub(taken.len() as u64);
        }
    }

    /// Writes once; false when nothing more can be written now.
    fn write(&mut self, limit: usize) -> bool {
        let (first, _) = self.waiting.as_slices();
        let bytes = first.get(..limit).unwrap_or(first);
        if bytes.is_empty() {
            return false;
        }
        match write(&self.fd, bytes) {
            Ok(written) => {
                self.waiting.drain(..written.min(self.waiting.len()));
                written > 0
            }
            Err(Errno::EINTR) => true,
            Err(Errno::EAGAIN) => false,
            Err(errno) => {
                policies::lockdown::say(format_args!("a console output failed and is given up: {errno}"));
                self.broken = true;
                self.drop_waiting();
                false
            }
        }
    }

    fn drop_waiting(&mut self) {
        self.drop_bytes(self.waiting.len());
        self.waiting.clear();
    }
}

/// All outputs; each gets every byte.
#[derive(Debug)]
pub(super) struct Outputs(Vec<Output>);

impl Outputs {
    /// Writes to `fds`, each as `kinds` says. Reserves all the memory that it will use.
    pub(super) fn new(kinds: &[ConsoleOutput], fds: impl IntoIterator<Item = OwnedFd>) -> Self {
        let output = |(kind, fd): (&ConsoleOutput, _)| Output {
            fd,
            file_left: match kind {
                ConsoleOutput::Stream => None,
                ConsoleOutput::File { limit_bytes } => Some(*limit_bytes),
            },
            waiting: VecDeque::with_capacity(STREAM_BYTES + OVERRUN_BYTES),
            dropped: 0,
            broken: false,
        };
        Self(kinds.iter().zip(fds).map(output).collect())
    }

    /// Takes bytes; files are written at once.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for output in &mut self.0 {
            output.push(bytes);
            if output.file_left.is_some() {
                while output.write(usize::MAX) {}
                output.drop_waiting();
            }
        }
    }

    /// How many bytes may come before the guest has to wait.
    pub(super) fn room(&self) -> usize {
        let waiting = self.0.iter().filter(|output| output.file_left.is_none()).map(|output| output.waiting.len());
        STREAM_BYTES.saturating_sub(waiting.max().unwrap_or(0))
    }

    /// Whether all bytes are written or dropped.
    pub(super) fn is_idle(&self) -> bool {
        self.0.iter().all(|output| output.waiting.is_empty())
    }

    /// What to wait for: one entry for each output that has bytes waiting.
    pub(super) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let waiting = self.0.iter().filter(|output| !output.waiting.is_empty());
        waiting.map(|output| PollFd::new(output.fd.as_fd(), PollFlags::POLLOUT))
    }

    /// Writes to the outputs that are ready, given in the order of [`Outputs::poll_fds`].
    pub(super) fn write_ready(&mut self, ready: &[bool]) {
        let waiting = self.0.iter_mut().filter(|output| !output.waiting.is_empty());
        for (output, _) in waiting.zip(ready).filter(|(_, ready)| **ready) {
            output.write(WRITE_BYTES);
        }
    }

    /// Gives up on what waits.
    pub(super) fn drop_waiting(&mut self) {
        self.0.iter_mut().for_each(Output::drop_waiting);
    }

    /// Bytes dropped at each output.
    pub(super) fn dropped_bytes(&self) -> Vec<u64> {
        self.0.iter().map(|output| output.dropped).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollTimeout, poll};
    use std::fs::File;
    use std::io::{Read, Seek};

    fn flush(outputs: &mut Outputs) {
        loop {
            let mut fds: Vec<_> = outputs.poll_fds().collect();
            if poll(&mut fds, PollTimeout::ZERO).unwrap() == 0 {
                break;
            }
            let ready: Vec<_> = fds.iter().map(|fd| fd.any().unwrap()).collect();
            outputs.write_ready(&ready);
        }
    }

    fn memfd() -> File {
        nix::sys::memfd::memfd_create(c"output", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap().into()
    }

    #[test]
    fn file_takes_no_byte_beyond_its_limit() {
        let mut file = memfd();
        let kinds = [ConsoleOutput::File { limit_bytes: 5 }];
        let mut outputs = Outputs::new(&kinds, [file.try_clone().unwrap().into()]);
        for _ in 0..3 {
            outputs.push(b"abc");
        }
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), outputs.dropped_bytes()), ("abcab", vec![4]));
        assert!(outputs.room() > 0);
    }

    #[test]
    fn stuck_stream_leaves_no_room_and_overruns_within_bounds() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut outputs = Outputs::new(&[ConsoleOutput::Stream], [writer]);
        let chunk = [b'x'; 4096];
        let mut pushed = 0_u64;
        while outputs.room() > 0 {
            outputs.push(&chunk);
            pushed += chunk.len() as u64;
            flush(&mut outputs);
        }
        for _ in 0..100 {
            outputs.push(&chunk);
            pushed += chunk.len() as u64;
        }
        assert_eq!(outputs.0[0].waiting.len(), STREAM_BYTES + OVERRUN_BYTES);
        let mut read = 0_u64;
        let mut buffer = [0; 65536];
        while !outputs.is_idle() {
            read += nix::unistd::read(&reader, &mut buffer).unwrap() as u64;
            flush(&mut outputs);
        }
        let dropped = outputs.dropped_bytes()[0];
        drop(outputs);
        while let Ok(bytes @ 1..) = nix::unistd::read(&reader, &mut buffer) {
            read += bytes as u64;
        }
        assert_eq!(read + dropped, pushed);
    }

    #[test]
    fn stream_without_a_reader_is_given_up_and_counted() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let file = memfd();
        let kinds = [ConsoleOutput::Stream, ConsoleOutput::File { limit_bytes: 100 }];
        let mut outputs = Outputs::new(&kinds, [writer, file.into()]);
        outputs.push(b"hello");
        flush(&mut outputs);
        outputs.push(b"!");
        assert_eq!(outputs.dropped_bytes(), [6, 0]);
        assert!(outputs.is_idle());
    }
}
