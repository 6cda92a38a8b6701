//! The first process of the guest that the lab's benchmark boots: says that user space is there, and with `bench=disk` on
//! the kernel's command line how fast /dev/vda is; then it powers the machine off.

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::time::{ClockId, clock_gettime};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

const DISK: &str = "/dev/vda";
/// As many bytes of the disk are used.
const SPAN: u64 = 64 << 20;
/// Blocks that are written and made durable one by one.
const FSYNCS: u64 = 100;
/// Where a transfer past the page cache must begin and end, in memory and on the disk.
const ALIGNMENT: usize = 4096;

fn main() {
    println!("bench: user space");
    // The clock starts when the kernel does, after its decompression.
    if let Ok(time) = clock_gettime(ClockId::CLOCK_MONOTONIC) {
        say("kernel's own clock", Duration::from(time).as_secs_f64() * 1e3);
    }
    if let Err(error) = run() {
        println!("bench-init: {error:#}");
    }
    // It comes back with an error alone.
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    println!("bench-init: the machine stays on: {errno}");
}

fn run() -> Result<()> {
    let none: Option<&str> = None;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("no /proc")?;
    let words = fs::read_to_string("/proc/cmdline").context("no command line")?;
    if !words.split_whitespace().any(|word| word == "bench=disk") {
        return Ok(());
    }
    mount(Some("dev"), "/dev", Some("devtmpfs"), MsFlags::empty(), none).context("no /dev")?;
    for name in fs::read_to_string("/modules/order").context("no list of modules")?.lines() {
        let file = File::open(format!("/modules/{name}")).with_context(|| format!("no module {name}"))?;
        finit_module(&file, c"", ModuleInitFlags::empty()).with_context(|| format!("{name} is refused"))?;
    }
    direct()?;
    cached()
}

/// Past the page cache, one request at a time.
fn direct() -> Result<()> {
    let disk = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(DISK).context(DISK)?;
    for (size, name, requests) in [(4096, "4 KiB", 600), (1 << 20, "1 MiB", 80)] {
        let mut memory = vec![0; size + ALIGNMENT];
        let from = memory.as_ptr().align_offset(ALIGNMENT);
        let buffer = memory.get_mut(from..from + size).context("no aligned memory")?;
        for (order, random) in [("sequential", false), ("random", true)] {
            rate(&format!("{name} {order} read"), size, requests, random, |at| disk.read_exact_at(buffer, at))?;
            rate(&format!("{name} {order} write"), size, requests, random, |at| disk.write_all_at(buffer, at))?;
        }
    }
    Ok(())
}

/// Through the page cache, and what must be on the disk.
fn cached() -> Result<()> {
    let disk = File::options().read(true).write(true).open(DISK).context(DISK)?;
    let mut buffer = vec![0; 1 << 20];
    let blocks = usize::try_from(SPAN >> 20)?;
    fs::write("/proc/sys/vm/drop_caches", "3").context("the page cache is not dropped")?;
    rate("cached sequential read", buffer.len(), blocks, false, |at| disk.read_exact_at(&mut buffer, at))?;
    let start = Instant::now();
    for at in 0..blocks {
        disk.write_all_at(&buffer, (at as u64) << 20)?;
    }
    disk.sync_data().context("fsync")?;
    say("cached sequential write", per_second(SPAN, start) / 1e6);
    let block = [7; 4096];
    let start = Instant::now();
    for at in 0..FSYNCS {
        disk.write_all_at(&block, at * 4096).and_then(|()| disk.sync_all()).context("fsync")?;
    }
    say("fsync", per_second(FSYNCS, start));
    Ok(())
}

/// Times requests of one size: requests a second of small ones, MB a second of large ones.
fn rate(
    name: &str,
    bytes: usize,
    requests: usize,
    random: bool,
    mut request: impl FnMut(u64) -> std::io::Result<()>,
) -> Result<()> {
    let places = SPAN / bytes as u64;
    let mut state = 1_u64;
    let start = Instant::now();
    for number in 0..requests as u64 {
        // Numerical recipes' generator; its upper bits are the better ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = if random { (state >> 33) % places } else { number % places };
        request(place * bytes as u64).with_context(|| name.to_owned())?;
    }
    let requests = requests as u64;
    if bytes <= ALIGNMENT {
        say(name, per_second(requests, start));
    } else {
        say(name, per_second(requests * bytes as u64, start) / 1e6);
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "numbers of a benchmark")]
fn per_second(number: u64, since: Instant) -> f64 {
    number as f64 / since.elapsed().as_secs_f64()
}

fn say(name: &str, value: f64) {
    println!("bench: {name} = {value:.1}");
}
