//! Stands in for one of the jailed processes and does one thing that the real one must not do.
//!
//! The jail leaves it no argument, environment or file that could tell it what: the words stand in the program itself,
//! where `tests::probe` changes them in a copy. Which process it is, it learns from its name.
#![allow(clippy::indexing_slicing, clippy::panic, reason = "what the broker must survive")]

use hostile::task::{self, TASK_BYTES};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use policies::lockdown::{self, exit_now, say};
use policies::seccomp::Filter;
use std::error::Error;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use wire::message::{
    FromBlock, FromInspector, FromLoader, FromSerial, FromVmm, Lockdown, SerialRead, SerialValue, StartBlock,
    StartInspector, StartLoader, StartSerial, StartVmm, StopReason, Times, ToDevice,
};
use wire::report::Fact;
use wire::ring::Consumer;
use wire::{Channel, ChannelError, Text};

static TASK: [u8; TASK_BYTES] = task::task();

type Done = Result<(), Box<dyn Error>>;

struct Probe {
    control: Channel,
    filter: Filter,
    audit: bool,
    fds: Vec<OwnedFd>,
}

fn main() {
    lockdown::begin_process();
    let words = task::read(std::hint::black_box(&TASK));
    if let Err(error) = work(&words) {
        say(format_args!("the probe failed: {error}"));
    }
    exit_now(9);
}

fn work(words: &str) -> Done {
    let name = std::env::args().next().unwrap_or_default();
    let mut probe = Probe::start(&name)?;
    match words {
        "no-lockdown" => {
            let report = Lockdown { landlock_abi: 7, mdwe: true, listeners: 0, times: Times::default() };
            probe.ready(report, &[])?;
        }
        "extra-fd" => {
            probe.fds.push(nix::sys::memfd::memfd_create(c"extra", nix::sys::memfd::MFdFlags::empty())?);
            probe.lock()?;
        }
        "unfiltered-thread" => {
            std::thread::spawn(|| std::thread::sleep(std::time::Duration::MAX));
            probe.lock()?;
        }
        "silent" => {}
        "not-built" => probe.control.send(&FromVmm::NotBuilt(Text::truncated("the probe says so")), &[])?,
        "exit" => exit_now(7),
        "panic" => panic!("as the test wants it"),
        "signal" => nix::sys::signal::raise(nix::sys::signal::Signal::SIGSEGV)?,
        "flood" => loop {
            probe.chatter()?;
        },
        "garbage" => probe.raw(&[0xff; 32], 0)?,
        "oversized" => probe.raw(&[0; 8192 + 1], 0)?,
        "leftover" => probe.raw(&[&READY[..], &[9; 9]].concat(), 0)?,
        "stray-fd" => probe.raw(&READY, 1)?,
        "many-fds" => probe.raw(&READY, 100)?,
        "two-ready" => {
            probe.lock()?;
            probe.ready(Lockdown { landlock_abi: 0, mdwe: true, listeners: 0, times: Times::default() }, &[])?;
        }
        "impossible-ring" => {
            let ring = std::fs::File::from(probe.fds[1].try_clone()?);
            // The consumer's index, of a ring that nothing was put into (wire::ring).
            std::os::unix::fs::FileExt::write_all_at(&ring, &7_u32.to_le_bytes(), 64)?;
            drop(ring);
            probe.lock()?;
        }
        "violate" if probe.filter == Filter::Serial => {
            // As the real one does, whose policy lets it map nothing afterwards.
            let ring = Consumer::map(probe.fds.remove(1))?;
            probe.lock()?;
            nix::unistd::getppid();
            probe.serve_console(ring)?;
        }
        _ => {
            probe.lock()?;
            probe.jailed(words)?;
        }
    }
    // Until the broker makes an end of it.
    loop {
        if let Err(ChannelError::Closed) = probe.control.recv::<ToDevice>() {
            exit_now(9);
        }
    }
}

/// `Ready` as it is encoded: the variant (32 bits), a Landlock ABI, the refusal of writable-executable memory, no listeners, and
/// two times of 64 bits.
const READY: [u8; 23] = [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

impl Probe {
    fn start(name: &str) -> Result<Self, Box<dyn Error>> {
        let control = Channel::from_stdin();
        let (filter, audit, fds) = match name {
            "bulkhead-loader" => control.recv::<StartLoader>().map(|got| (Filter::Loader, got.message.audit, got.fds)),
            "bulkhead-vmm" => control.recv::<StartVmm>().map(|got| (Filter::VmmControl, got.message.audit, got.fds)),
            // Without the recording, which it does not make.
            "bulkhead-serial" => control.recv::<StartSerial>().map(|mut got| {
                got.fds.truncate(got.fds.len() - usize::from(got.message.has_recording));
                (Filter::Serial, got.message.audit, got.fds)
            }),
            "bulkhead-inspector" => {
                control.recv::<StartInspector>().map(|got| (Filter::Inspector, got.message.audit, got.fds))
            }
            _ => control.recv::<StartBlock>().map(|got| (Filter::VirtioBlk, got.message.audit, got.fds)),
        }?;
        Ok(Self { control, filter, audit, fds })
    }

    fn lock(&self) -> Done {
        let jailed = lockdown::enter(self.filter, self.audit)?;
        self.ready(jailed.report, &jailed.fds())
    }

    fn ready(&self, report: Lockdown, fds: &[std::os::fd::BorrowedFd<'_>]) -> Done {
        match self.filter {
            Filter::Loader => self.control.send(&FromLoader::Ready(report), fds)?,
            Filter::VmmControl | Filter::VmmVcpu => self.control.send(&FromVmm::Ready(report), fds)?,
            Filter::Serial => self.control.send(&FromSerial::Ready(report), fds)?,
            Filter::VirtioBlk | Filter::VirtioBlkUring => self.control.send(&FromBlock::Ready(report), fds)?,
            Filter::Inspector => self.control.send(&FromInspector::Ready(report), fds)?,
        }
        Ok(())
    }

    /// A message that the process may send, at another time.
    fn chatter(&self) -> Done {
        match self.filter {
            Filter::Loader => self.control.send(&FromLoader::Failed(Text::truncated("x")), &[])?,
            Filter::VmmControl | Filter::VmmVcpu => self.control.send(&FromVmm::Running, &[])?,
            Filter::Serial => self.control.send(&FromSerial::Halted, &[])?,
            Filter::VirtioBlk | Filter::VirtioBlkUring => {
                self.control.send(&FromBlock::Broken(Text::truncated("x")), &[])?
            }
            Filter::Inspector => {
                let (of, value) = (Text::truncated("x"), Text::truncated("y"));
                self.control.send(&FromInspector::Fact(Fact { name: "z".try_into()?, of, value }), &[])?;
            }
        }
        Ok(())
    }

    /// Bytes on the control channel, with as many descriptors.
    fn raw(&self, bytes: &[u8], fds: usize) -> Done {
        let fds = vec![self.control.as_fd().as_raw_fd(); fds];
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        send(self.control.as_fd(), bytes, rights)
    }

    fn jailed(&mut self, words: &str) -> Done {
        match words {
            "violate" => {
                nix::unistd::getppid();
            }
            "flood-later" => loop {
                self.chatter()?;
            },
            "garbage-later" => self.raw(&[0xff; 32], 0)?,
            "failed-later" => self.control.send(&FromVmm::Failed(Text::truncated("the probe says so")), &[])?,
            "garbage-to-vmm" => send(self.fds[0].as_fd(), &[0xff; 100], &[])?,
            "kvm-error" => {
                self.await_word()?;
                self.control.send(&FromVmm::Running, &[])?;
                let why = Text::truncated("the probe says so");
                self.control.send(&FromVmm::Stopped(StopReason::KvmError(why)), &[])?;
                exit_now(0);
            }
            "log-flood" | "log-flood-panic" => {
                for number in 0..20_000 {
                    say(format_args!("line {number} of a flood, which is longer than the pipe to the broker takes"));
                }
                assert_eq!(words, "log-flood", "as the test wants it");
                self.control.send(&FromSerial::Leave, &[])?;
            }
            "hang-up" => exit_now(0),
            "mute" => {}
            other => say(format_args!("the probe does not know {other:?}")),
        }
        Ok(())
    }

    /// Waits until the broker says something, and leaves it unread.
    fn await_word(&self) -> Done {
        poll(&mut [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        Ok(())
    }

    /// A console of the simplest kind: always ready, each register 0.
    fn serve_console(&mut self, mut ring: Consumer) -> Done {
        let output = self.fds.pop().ok_or("no output")?;
        let mut fds = std::mem::take(&mut self.fds).into_iter();
        let (Some(vmm), Some(doorbell)) = (fds.next(), fds.next()) else {
            return Err("too few descriptors".into());
        };
        let vmm = Channel::from(vmm);
        ring.publish_line_status(0x60);
        // Asleep for good, so that every write rings.
        while !ring.sleep() {
            while ring.take()?.is_some() {}
        }
        let mut received_bytes = 0;
        loop {
            let mut fds =
                [vmm.as_fd(), doorbell.as_fd(), self.control.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            poll(&mut fds, PollTimeout::NONE)?;
            let [from_vmm, rung, told] = fds.map(|fd| fd.any().unwrap_or(false));
            if rung {
                nix::unistd::read(&doorbell, &mut [0; 8])?;
            }
            while let Some(write) = ring.take()? {
                if write.offset == 0 {
                    received_bytes += 1;
                    nix::unistd::write(&output, &[write.value])?;
                }
            }
            ring.release();
            if told {
                self.control.recv::<ToDevice>()?;
                self.control.send(&FromSerial::Finished { received_bytes, dropped_bytes: vec![0] }, &[])?;
                exit_now(0);
            }
            if from_vmm && vmm.recv::<SerialRead>().is_ok() {
                vmm.send(&SerialValue { value: 0 }, &[])?;
            }
        }
    }
}

fn send(to: std::os::fd::BorrowedFd<'_>, bytes: &[u8], rights: &[ControlMessage<'_>]) -> Done {
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}
