//! Disks: a guest keeps the queues of one or two disks full, whose files are in the host's page cache.

use super::Setup;
use super::counts::{Counter, Counts};
use super::figure::{Better, Figures};
use super::run::Vm;
use super::subject::{BULKHEAD, MEMORY_MIB, NO_GUEST, QEMU, Subject};
use crate::command::progress;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

const GROUP: &str = "disk";
const COSTS: &str = "disk costs";
/// Runs of each subject unless told otherwise.
const RUNS: usize = 5;
/// Every so many runs, system calls and exits are counted as well.
const COUNTED: usize = 3;
const MIB: usize = 1 << 20;
/// The size of each disk.
const DISK_MIB: u32 = 256;
const DISKS: [&str; 2] = ["disk0.img", "disk1.img"];

/// What the guest does.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    op: &'static str,
    random: bool,
    bytes: u32,
    depth: u32,
    disks: u32,
    /// Requests, so many that a run takes a few tenths of a second.
    count: u32,
    counted: bool,
}

const fn small(name: &'static str, op: &'static str, bytes: u32, depth: u32) -> Case {
    let count = if depth == 1 { 3000 } else { 8000 };
    Case { name, op, random: true, bytes, depth, disks: 1, count, counted: bytes == 4096 }
}

const fn large(name: &'static str, op: &'static str, bytes: u32, depth: u32) -> Case {
    Case {
        name,
        op,
        random: false,
        bytes,
        depth,
        disks: 1,
        count: if bytes == 1 << 20 { 1024 } else { 4096 },
        counted: false,
    }
}

const fn two(case: Case, name: &'static str) -> Case {
    Case { name, disks: 2, counted: false, ..case }
}

const READ_32: Case = small("4 KiB random read, depth 32", "read", 4096, 32);
const WRITE_32: Case = small("4 KiB random write, depth 32", "write", 4096, 32);
const LARGE_READ_32: Case = large("1 MiB read, depth 32", "read", 1 << 20, 32);

const CASES: [Case; 19] = [
    small("512 B random read, depth 1", "read", 512, 1),
    small("512 B random read, depth 32", "read", 512, 32),
    small("512 B random write, depth 1", "write", 512, 1),
    small("512 B random write, depth 32", "write", 512, 32),
    small("4 KiB random read, depth 1", "read", 4096, 1),
    READ_32,
    small("4 KiB random write, depth 1", "write", 4096, 1),
    WRITE_32,
    large("128 KiB read, depth 1", "read", 128 << 10, 1),
    large("128 KiB read, depth 32", "read", 128 << 10, 32),
    large("128 KiB write, depth 1", "write", 128 << 10, 1),
    large("128 KiB write, depth 32", "write", 128 << 10, 32),
    large("1 MiB read, depth 1", "read", 1 << 20, 1),
    LARGE_READ_32,
    large("1 MiB write, depth 1", "write", 1 << 20, 1),
    large("1 MiB write, depth 32", "write", 1 << 20, 32),
    two(READ_32, "4 KiB random read, depth 32, two disks"),
    two(WRITE_32, "4 KiB random write, depth 32, two disks"),
    two(LARGE_READ_32, "1 MiB read, depth 32, two disks"),
];

/// Who serves the disks.
#[derive(Debug, Clone)]
enum Server {
    /// Bulkhead, with the engine that the config chooses, where it can choose.
    Bulkhead(Option<&'static str>),
    /// QEMU with a way of asynchronous input and output.
    Qemu(&'static str),
}

impl Server {
    fn name(&self) -> String {
        match self {
            Self::Bulkhead(None) => BULKHEAD.to_owned(),
            Self::Bulkhead(Some(engine)) => format!("{BULKHEAD} {engine}"),
            // QEMU's default.
            Self::Qemu("threads") => QEMU.to_owned(),
            Self::Qemu(aio) => format!("{QEMU} {aio}"),
        }
    }

    fn vmm(&self) -> Subject {
        match self {
            Self::Bulkhead(_) => Subject::Bulkhead,
            Self::Qemu(_) => Subject::Qemu,
        }
    }

    /// The command that runs a case with so many requests.
    fn command(&self, setup: &Setup, case: Case, count: u32) -> Result<Command> {
        let Case { op, bytes, depth, disks, .. } = case;
        let random = u8::from(case.random);
        let words = format!(
            "test=bench-blk op={op} random={random} bytes={bytes} depth={depth} disks={disks} count={count} {}",
            self.vmm().end()
        );
        let used = DISKS.iter().take(if disks == 2 { 2 } else { 1 }).map(|name| setup.file(name));
        match self {
            Self::Bulkhead(engine) => {
                let mut command = Command::new(setup.program("broker"));
                command.arg("run").arg(config(setup, &words, used, *engine)?);
                Ok(command)
            }
            Self::Qemu(aio) => {
                let mut command = self.vmm().command(setup, &setup.guests.scenarios(), &words);
                // Without ACPI, it names its devices on the command line. The later -M wins where both say something.
                command.args(["-M", "acpi=off", "-global", "virtio-mmio.force-legacy=false"]);
                for (number, path) in used.enumerate() {
                    let file = path.display();
                    let drive = format!("if=none,id=d{number},format=raw,file={file},aio={aio},cache=writeback");
                    command.args(["-drive", &drive, "-device", &format!("virtio-blk-device,drive=d{number}")]);
                }
                Ok(command)
            }
        }
    }
}

/// Writes a config for the broker.
fn config(setup: &Setup, words: &str, disks: impl Iterator<Item = PathBuf>, engine: Option<&str>) -> Result<PathBuf> {
    let kernel = setup.guests.scenarios();
    let mut text = format!("[machine]\nmemory = {MEMORY_MIB}\n[boot]\nkernel = {kernel:?}\ncmdline = {words:?}\n");
    for disk in disks {
        write!(text, "[[disk]]\npath = {disk:?}\nmode = \"read-write\"\n")?;
        if let Some(engine) = engine {
            writeln!(text, "engine = {engine:?}")?;
        }
    }
    let path = setup.file("config.toml");
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The engines that this broker knows; the only one of a broker that lets nobody choose is none.
fn engines(setup: &Setup) -> Result<Vec<Option<&'static str>>> {
    let mut known = Vec::new();
    for engine in ["sync", "io-uring"] {
        let path = config(setup, "", std::iter::once(setup.file(DISKS[0])), Some(engine))?;
        let mut check = Command::new(setup.program("broker"));
        check.arg("check").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if check.status().context("the broker does not start")?.success() {
            known.push(Some(engine));
        } else {
            progress(format_args!("disk: this broker has no engine {engine:?}"));
        }
    }
    if known.is_empty() {
        known.push(None);
    }
    Ok(known)
}

/// Measures.
///
/// # Errors
/// When a run fails.
pub(crate) fn measure(setup: &Setup, figures: &mut Figures) -> Result<()> {
    for name in DISKS {
        fill(&setup.file(name))?;
    }
    let mut servers: Vec<_> = engines(setup)?.into_iter().map(Server::Bulkhead).collect();
    servers.extend(["threads", "io_uring"].map(Server::Qemu));
    let runs = setup.runs.unwrap_or(RUNS);
    let counter = Counter::new();
    progress(format_args!("disk: {} cases, {runs} runs of each by {} servers", CASES.len(), servers.len()));
    for case in CASES {
        progress(format_args!("disk: {}", case.name));
        for run in 0..runs {
            for server in &servers {
                let seconds = once(setup, server, case)?;
                add(figures, case, &server.name(), seconds);
                if case.counted && run % COUNTED == 0 {
                    cost(setup, &counter, server, case, figures)?;
                }
            }
            if case.bytes == 1 << 20 && case.disks == 1 {
                add(figures, case, NO_GUEST, without_guest(setup, case, 1)?);
                if case.depth > 1 {
                    // The guest's buffers do not stay in the processor's caches, as one of dd does.
                    let subject = format!("{NO_GUEST}, {} buffers", case.depth);
                    add(figures, case, &subject, without_guest(setup, case, case.depth)?);
                }
            }
        }
    }
    Ok(())
}

/// Makes a disk that is in the page cache, with no hole in it.
fn fill(path: &PathBuf) -> Result<()> {
    let block: Vec<u8> = (0..MIB).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect();
    let mut file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    for _ in 0..DISK_MIB {
        file.write_all(&block).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // What is written back later would disturb what is measured then.
    file.sync_all().with_context(|| format!("cannot write {}", path.display()))
}

/// One run: the seconds that the requests took.
fn once(setup: &Setup, server: &Server, case: Case) -> Result<f64> {
    let mut vm = Vm::start(server.command(setup, case, case.count)?, &setup.log())?;
    let from = vm.await_text("BEGIN\n")?;
    let to = vm.await_text("END\n")?;
    vm.await_gone(server.vmm().end_code())?;
    Ok((to - from).as_secs_f64())
}

fn add(figures: &mut Figures, case: Case, subject: &str, seconds: f64) {
    let requests = f64::from(case.count) / seconds;
    if case.random {
        figures.add(GROUP, (case.name, "IOPS", Better::Higher), subject, requests);
    } else {
        figures.add(GROUP, (case.name, "MB/s", Better::Higher), subject, requests * f64::from(case.bytes) / 1e6);
    }
}

/// System calls and exits for each request: what a run has more than one without requests.
fn cost(setup: &Setup, counter: &Counter, server: &Server, case: Case, figures: &mut Figures) -> Result<()> {
    let count = |requests| counter.count(setup, &server.command(setup, case, requests)?, server.vmm().end_code());
    if let (Some(with), Some(without)) = (count(case.count)?, count(0)?) {
        let Counts { syscalls, exits, accesses } = with - without;
        for (what, value) in
            [("system calls", syscalls), ("register accesses", accesses), ("exits to a process", exits)]
        {
            let name = format!("{what}, {}", case.name);
            figures.add(COSTS, (&name, "1/request", Better::Lower), &server.name(), value / f64::from(case.count));
        }
    }
    Ok(())
}

/// What `dd bs=1M` does with the same file and as many bytes, by turns into that many buffers: the seconds.
fn without_guest(setup: &Setup, case: Case, buffers: u32) -> Result<f64> {
    let path = setup.file(DISKS[0]);
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let mut all: Vec<_> = (0..buffers).map(|_| vec![1; MIB]).collect();
    let mut done = 0;
    let from = Instant::now();
    while done < case.count {
        for buffer in &mut all {
            let at = u64::from(done % DISK_MIB) * MIB as u64;
            let result = if case.op == "read" { file.read_exact_at(buffer, at) } else { file.write_all_at(buffer, at) };
            result.with_context(|| format!("cannot {} {}", case.op, path.display()))?;
            done += 1;
        }
    }
    Ok(from.elapsed().as_secs_f64())
}
