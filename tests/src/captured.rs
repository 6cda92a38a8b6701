//! Runs a machine in which one process is captured: the real binary, which after its jail is complete makes one attempt of
//! the crate `hostile`. Then looks whether that ended as it must and everything else is as it was.

use crate::disk;
use crate::machine::{Ended, Machine};
use crate::outside;
use crate::probe;
use hostile::Seat;
use hostile::attempt::{Attempt, DiskMode, Expect};
use nix::sys::signal::Signal;
use policies::Process;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::OnceLock;

/// The exit code after a call that a filter does not allow.
const VIOLATION: i32 = 21;
/// Sectors of the disk.
const SECTORS: u64 = 64;
/// What stands in a line of the log before a payload's words.
const SAID: &str = "hostile: ";

/// How an attempt ended, in a word or two for the matrix.
pub type Cell = String;

/// The process that a seat belongs to.
#[must_use]
pub fn process(seat: Seat) -> Process {
    match seat {
        Seat::Loader => Process::Loader,
        Seat::VmmControl | Seat::VmmVcpu => Process::Vmm,
        Seat::Serial => Process::Serial,
        Seat::VirtioBlk => Process::VirtioBlk,
        Seat::Inspector => Process::Inspector,
    }
}

/// Makes one attempt. What is not as it must be is an error that tells everything.
///
/// # Errors
/// When the attempt succeeded, or ended otherwise than it must, or something else was harmed.
pub fn run(attempt: &Attempt, seat: Seat) -> Result<Cell, String> {
    if seat == Seat::Inspector { inspector::run(attempt) } else { run_in_machine(attempt, seat) }
}

fn run_in_machine(attempt: &Attempt, seat: Seat) -> Result<Cell, String> {
    let listener = listener();
    let machine = Machine::new("test=banner");
    let image = disk::image(machine.folder(), "disk.img", SECTORS);
    let before = Snapshot::of(&image);
    let words = hostile::task::words(seat, &attempt.name);
    let program = process(seat).binary().replace("bulkhead-", "hostile-");
    let bin = probe::binaries_with_program(machine.folder(), process(seat), &program, &words);
    let mode = match attempt.disk {
        DiskMode::ReadOnly => "ro",
        DiskMode::ReadWrite => "rw",
    };
    let running = machine.disk(&image, mode).args(["--bin-dir".as_ref(), bin.as_os_str()]).start();
    if attempt.expect == Expect::Terminated {
        running.await_log(&format!("{SAID}begin"));
        let seen = outside::jailed(running.pid());
        running.signal(Signal::SIGTERM);
        outside::await_gone(&seen);
    }
    let (ended, _running) = running.wait_and_keep();
    let cell = judge(attempt, seat, &ended).and_then(|cell| {
        untouched(&ended)?;
        before.compare(&Snapshot::of(&image))?;
        unreached(listener).map(|()| cell)
    });
    cell.map_err(|why| format!("{} of {}: {why}\n{}", attempt.name, seat.name(), ended.story()))
}

/// That nobody reached the host's socket.
fn unreached(listener: &UnixListener) -> Result<(), String> {
    match listener.accept() {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        _ => Err("the host's socket was reached".to_owned()),
    }
}

/// What the payload says of its attempt, if it came to say anything.
fn result(ended: &Ended) -> Result<Option<&str>, String> {
    let lines: Vec<_> = ended.log.lines().filter_map(|line| Some(line.split_once(SAID)?.1)).collect();
    let said: Vec<_> = lines.iter().map(|line| line.split(" process=").next().unwrap_or(line).trim()).collect();
    match said[..] {
        ["begin"] => Ok(None),
        ["begin", result] if result.starts_with("succeeded") => Err(format!("it {result}")),
        ["begin", result] => Ok(Some(result)),
        _ => Err(format!("the payload said {said:?}")),
    }
}

/// What is said of an attempt by the payload itself and by the broker.
fn judge(attempt: &Attempt, seat: Seat, ended: &Ended) -> Result<Cell, String> {
    let (result, code) = (result(ended)?, ended.status.code());
    let message = ended.report["message"].as_str().unwrap_or_default();
    let signal = ended.report["processes"].as_array().and_then(|all| {
        let one = all.iter().find(|one| one["name"].as_str().unwrap_or_default().starts_with(process(seat).name()))?;
        one["exit"]["signal"].as_i64()
    });
    let expect = |code: i32, reason: &str, words: &str| {
        let said = (ended.status.code(), ended.report["reason"].as_str().unwrap_or_default());
        if said == (Some(code), reason) && message.contains(words) {
            return Ok(());
        }
        Err(format!("the broker ended with {said:?}, not with {code}, {reason} and {words:?}"))
    };
    // A filter kills whatever else is expected: the call never came to anything.
    if result.is_none() && signal == Some(i64::from(libc::SIGSYS)) {
        expect(VIOLATION, "seccomp-violation", process(seat).name())?;
        return Ok("killed".to_owned());
    }
    match (attempt.expect, result) {
        (Expect::KillOrRefusal, Some(result)) => {
            expect(0, "guest-poweroff", "")?;
            if !crate::guest::Guest::Long.is_mute() {
                ended.passed(&["banner"]);
            }
            Ok(result.strip_prefix("refused ").unwrap_or(result).to_owned())
        }
        (Expect::CutOff(words) | Expect::CutOffOrUnread(words), _) if code == Some(23) => {
            expect(23, "device-failed", words)?;
            Ok("cut off".to_owned())
        }
        (Expect::CutOff(_), _) if code == Some(4) && message.contains("which it was not given") => {
            // A descriptor came to a process whose jail was not looked at yet, from another than the broker.
            expect(4, "jail-failed", "")?;
            Ok("cut off".to_owned())
        }
        (Expect::CutOff(words), _) if code == Some(4) => {
            // The broker had not looked at the jail yet.
            expect(4, "jail-failed", words)?;
            Ok("cut off".to_owned())
        }
        (Expect::CutOff(words), _) if code == Some(20) => {
            // The broker listens no more, and the process ends because of that.
            expect(20, "process-died", words)?;
            Ok("cut off".to_owned())
        }
        (Expect::CutOff(words), _) if code == Some(5) => {
            expect(5, "kvm-error", words)?;
            Ok("cut off".to_owned())
        }
        (Expect::CutOffOrUnread(_), Some("sent")) => {
            expect(0, "guest-poweroff", "")?;
            Ok("cut off".to_owned())
        }
        (Expect::Deadline(code, words), None) => {
            let reason = if code == 0 { "guest-poweroff" } else { "device-failed" };
            expect(code, reason, words)?;
            Ok("ended".to_owned())
        }
        (Expect::Terminated, None) => {
            expect(143, "sigterm", "")?;
            Ok("ended".to_owned())
        }
        (Expect::CutOff(_) | Expect::CutOffOrUnread(_), Some("not there")) => Ok("not there".to_owned()),
        (wanted, result) => Err(format!("{result:?} with code {code:?} and signal {signal:?} is not {wanted:?}")),
    }
}

/// That no process is left, and none died but the captured one.
fn untouched(ended: &Ended) -> Result<(), String> {
    let none = Vec::new();
    let processes = ended.report["processes"].as_array().unwrap_or(&none);
    if processes.len() != 4 {
        return Err(format!("there were {} processes", processes.len()));
    }
    for process in processes {
        let left = process["pid"].as_i64().is_none_or(|pid| Path::new("/proc").join(pid.to_string()).exists());
        if left {
            return Err(format!("{process} is left"));
        }
    }
    let signals: Vec<_> = processes.iter().filter_map(|process| process["exit"]["signal"].as_i64()).collect();
    let strange = signals.iter().filter(|&&signal| signal != i64::from(libc::SIGKILL)).count();
    if strange > 1 { Err(format!("signals {signals:?}")) } else { Ok(()) }
}

/// An inspector is no part of a machine: it is captured in a `broker inspect`.
mod inspector {
    use super::{
        Attempt, Cell, Ended, Expect, Machine, Process, SECTORS, Seat, Snapshot, disk, listener, probe, unreached,
    };
    use std::path::Path;

    /// The exit code of an inspection that came to nothing.
    const CANNOT_TELL: i32 = 3;
    /// What a line of the log has of an inspector whose jail was looked at.
    const JAILED: &str = "jail built and checked process=\"inspector\" pid=";

    /// Makes one attempt.
    pub(super) fn run(attempt: &Attempt) -> Result<Cell, String> {
        let listener = listener();
        let machine = Machine::bare();
        let image = disk::image(machine.folder(), "disk.img", SECTORS);
        let before = Snapshot::of(&image);
        let words = hostile::task::words(Seat::Inspector, &attempt.name);
        let bin = probe::binaries_with_program(machine.folder(), Process::Inspector, "hostile-inspector", &words);
        let machine = machine.args(["inspect", "--json", "-v"]).args([&image]);
        let (ended, _running) = machine.args(["--bin-dir".as_ref(), bin.as_os_str()]).start().wait_and_keep();
        let cell = judge(attempt, &ended).and_then(|cell| {
            gone(&ended)?;
            before.compare(&Snapshot::of(&image))?;
            unreached(listener).map(|()| cell)
        });
        cell.map_err(|why| format!("{} of inspector: {why}\n{}", attempt.name, ended.story()))
    }

    fn judge(attempt: &Attempt, ended: &Ended) -> Result<Cell, String> {
        let result = super::result(ended)?;
        let (code, message) = (ended.status.code(), ended.report["message"].as_str().unwrap_or_default());
        let ended_by_broker = |words: &str| code == Some(CANNOT_TELL) && message.contains(words);
        match (attempt.expect, result) {
            // Whatever else is expected: the call never came to anything.
            (_, None) if ended_by_broker("killed by SIGSYS") => Ok("killed".to_owned()),
            // It went on in order, and found what there is to find.
            (Expect::KillOrRefusal, Some(result)) if !message.contains("the inspector") => {
                Ok(result.strip_prefix("refused ").unwrap_or(result).to_owned())
            }
            (Expect::CutOff(_), _) if ended_by_broker("the inspector broke the protocol") => Ok("cut off".to_owned()),
            // It is listened to no more, and ends because of that.
            (Expect::CutOff(_), _) if ended_by_broker("the inspector ended ") => Ok("cut off".to_owned()),
            (Expect::Deadline(_, words), None) if ended_by_broker(words) => Ok("ended".to_owned()),
            (wanted, result) => Err(format!("{result:?} with code {code:?} and {message:?} is not {wanted:?}")),
        }
    }

    /// That the captured process is not left.
    fn gone(ended: &Ended) -> Result<(), String> {
        let pid = ended.log.lines().find_map(|line| line.split_once(JAILED)).map(|(_, pid)| pid.trim());
        match pid {
            Some(pid) if Path::new("/proc").join(pid).exists() => Err(format!("{pid} is left")),
            Some(_) => Ok(()),
            None => Err("no jail was looked at".to_owned()),
        }
    }
}

/// The disk as the host sees it.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    content: Vec<u8>,
    mode: u32,
    blocks: u64,
}

impl Snapshot {
    fn of(image: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        // What was written a moment ago has its blocks only once it is on the medium.
        let file = fs::File::open(image).expect("the image cannot be opened");
        file.sync_all().expect("the image cannot be flushed");
        let metadata = file.metadata().expect("the image has no metadata");
        let content = fs::read(image).expect("the image cannot be read");
        Self { content, mode: metadata.mode(), blocks: metadata.blocks() }
    }

    fn compare(&self, after: &Self) -> Result<(), String> {
        if self == after {
            return Ok(());
        }
        let facts = |snapshot: &Self| (snapshot.content.len(), snapshot.mode, snapshot.blocks);
        Err(format!("the disk changed: {:?} before, {:?} now", facts(self), facts(after)))
    }
}

/// The abstract socket of the host that a captured process tries to reach; of the whole test program.
fn listener() -> &'static UnixListener {
    static LISTENER: OnceLock<UnixListener> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let address = SocketAddr::from_abstract_name(hostile::calls::LISTENER).expect("the name is too long");
        let listener = UnixListener::bind_addr(&address).expect("the listener cannot be made");
        listener.set_nonblocking(true).expect("the listener cannot be made non-blocking");
        listener
    })
}
