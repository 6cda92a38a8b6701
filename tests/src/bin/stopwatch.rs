//! Runs a program and says when it printed a text and when it was gone, by the monotonic clock:
//! `stopwatch LABEL TEXT SECONDS -- program arguments…`.
//!
//! Each line that it prints begins with `bench LABEL`, and so do those lines of the program's that begin with `bench:`. The
//! processor's time is that of the whole machine, so that nothing else should run.

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [label, text, seconds, dashes, program, rest @ ..] = arguments.as_slice() else {
        bail!("stopwatch LABEL TEXT SECONDS -- program arguments…");
    };
    let limit = Duration::from_secs(seconds.parse().context("no number of seconds")?);
    if dashes != "--" {
        bail!("no -- before the program");
    }
    let before = Times::now()?;
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("the program does not start")?;
    let mut output = child.stdout.take().context("no output")?;
    let mut seen = Vec::new();
    let mut found = None;
    loop {
        let left = limit.saturating_sub(start.elapsed());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        if left.is_zero() || poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            let pid = Pid::from_raw(i32::try_from(child.id()).context("no process id")?);
            kill(pid, Signal::SIGKILL)?;
            bail!("{label}: not over after {seconds} s, it printed:\n{}", String::from_utf8_lossy(&seen));
        }
        let mut buffer = [0; 4096];
        let length = output.read(&mut buffer).context("the output cannot be read")?;
        if length == 0 {
            break;
        }
        seen.extend_from_slice(buffer.get(..length).unwrap_or_default());
        if found.is_none() && contains(&seen, text.as_bytes()) {
            found = Some((start.elapsed(), Times::now()?));
        }
    }
    let status = child.wait().context("the program cannot be waited for")?;
    let end = start.elapsed();
    let printed = String::from_utf8_lossy(&seen);
    let Some((at, after)) = found else { bail!("{label}: it ended ({status}) and never printed {text:?}:\n{printed}") };
    let spent = after.since(&before);
    println!("bench {label} user space = {:.1}", at.as_secs_f64() * 1e3);
    println!("bench {label} outside of the guest = {:.1}", spent.outside_percent());
    println!("bench {label} programs = {:.1}", spent.programs_percent());
    println!("bench {label} gone = {:.1}", end.as_secs_f64() * 1e3);
    for line in printed.lines().filter_map(|line| line.strip_prefix("bench: ")) {
        println!("bench {label} {}", line.trim_end());
    }
    Ok(())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The first line of /proc/stat (proc_stat(5)), in ticks.
#[derive(Debug, Default)]
struct Times(Vec<u64>);

/// Where a value stands in it.
const USER: usize = 0;
const SYSTEM: usize = 2;
const IRQ: usize = 5;
const SOFTIRQ: usize = 6;
const GUEST: usize = 8;

impl Times {
    fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("no /proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        Ok(Self(line.split_whitespace().skip(1).filter_map(|number| number.parse().ok()).collect()))
    }

    fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().zip(&before.0).map(|(now, before)| now.saturating_sub(*before)).collect())
    }

    fn at(&self, place: usize) -> u64 {
        self.0.get(place).copied().unwrap_or(0)
    }

    /// The time of programs, without that of guests, which is in it.
    fn programs(&self) -> u64 {
        self.at(USER).saturating_sub(self.at(GUEST))
    }

    fn busy(&self) -> u64 {
        [USER, SYSTEM, IRQ, SOFTIRQ].into_iter().map(|place| self.at(place)).sum()
    }

    /// The part of the busy time that programs took, in percent.
    fn programs_percent(&self) -> f64 {
        percent(self.programs(), self.busy())
    }

    /// The part of the busy time that was not the guest's, in percent.
    fn outside_percent(&self) -> f64 {
        percent(self.busy().saturating_sub(self.at(GUEST)), self.busy())
    }
}

#[allow(clippy::cast_precision_loss, reason = "ticks of a few seconds")]
fn percent(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 * 100.0 / of as f64 }
}
