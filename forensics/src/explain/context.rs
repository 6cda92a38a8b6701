//! What a log says beside its failures: the kernel, how far it came, the faults of programs, registers and call traces.

use super::decode::fault;
use super::decode::instruction::Instruction;
use super::lines::{Line, Speaker};
use super::names::Names;
use super::pattern::Pattern;
use super::trace::{Trace, module, symbol};
use std::sync::OnceLock;

/// The most faults, traces and places that are kept of one log; later ones are left out.
const MAX_KEPT: usize = 64;
/// How many lines after a failure its registers and its trace may begin.
const MAX_DISTANCE: usize = 100;
/// How many lines after a fault its program counter may stand.
const MAX_REGISTERS: usize = 8;
/// How long after the last word of a stall other words show that it is over; a stall that lasts is told of again before, in
/// microseconds.
const STALL_OVER_US: u64 = 130_000_000;

/// A fault of a program, as the kernel tells of it.
#[derive(Debug, Clone, Default)]
struct Fault {
    line: usize,
    pid: Option<String>,
    names: Names,
}

/// What was collected.
#[derive(Debug, Default)]
pub(crate) struct Context {
    /// Names that hold for the whole log.
    names: Names,
    stage: Stage,
    end: Option<&'static str>,
    panic: Option<&'static str>,
    /// The kernel told of a stall, the last time at this time.
    stall: Option<Option<u64>>,
    /// Something was said after it that a machine that stands still would not say.
    stall_overcome: bool,
    lines: usize,
    said_after_init: bool,
    last_kernel: String,
    last_program: String,
    faults: Vec<Fault>,
    instructions: Vec<(usize, Instruction)>,
    functions: Vec<(usize, String, Option<String>)>,
    traces: Vec<Trace>,
    in_trace: bool,
}

/// How far the boot came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Firmware,
    Kernel,
    Initramfs,
    Root,
    Init,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Root => "root",
            Self::Init => "init",
        }
    }
}

/// What a line of the kernel can be, beside a failure.
#[derive(Debug, Clone, Copy)]
enum Event {
    Stage(Stage),
    Architecture(&'static str),
    End(&'static str),
    Panic(&'static str),
    Stall,
    Fault,
    Code,
    Place,
    Trace,
    Names,
}

const EVENTS: &[(&str, Event)] = &[
    ("Linux version {kernel:word} ", Event::Stage(Stage::Kernel)),
    ("Kernel command line: {command-line:rest}", Event::Names),
    ("Trying to unpack rootfs image as initramfs", Event::Stage(Stage::Initramfs)),
    ("Unpacking initramfs", Event::Stage(Stage::Initramfs)),
    ("VFS: Mounted root (", Event::Stage(Stage::Root)),
    ("Run {init-path:word} as init process", Event::Stage(Stage::Init)),
    ("Booting Linux on physical CPU", Event::Architecture("arm64")),
    ("BIOS-provided physical RAM map:", Event::Architecture("x86_64")),
    ("x86/fpu:", Event::Architecture("x86_64")),
    ("Kernel panic - not syncing: softlockup", Event::Panic("stall")),
    ("Kernel panic - not syncing: RCU Stall", Event::Panic("stall")),
    ("Kernel panic - not syncing: hung_task", Event::Panic("stall")),
    ("Kernel panic - not syncing", Event::Panic("other")),
    ("watchdog: BUG: soft lockup - CPU#", Event::Stall),
    ("rcu: INFO: {kind:word} self-detected stall on CPU", Event::Stall),
    ("rcu: INFO: {kind:word} detected stalls on CPUs/tasks:", Event::Stall),
    ("rcu: INFO: {kind:word} detected expedited stalls on CPUs/tasks:", Event::Stall),
    ("INFO: {kind:word} self-detected stall on CPU", Event::Stall),
    ("INFO: task {task:word} blocked for more than ", Event::Stall),
    ("reboot: Power down", Event::End("power-down")),
    ("reboot: Restarting system", Event::End("restart")),
    ("reboot: System halted", Event::End("halt")),
    ("traps: {program:word}[{pid:int}] trap {exception:any} ip:{ip:hex} ", Event::Fault),
    ("traps: {program:word}[{pid:int}] {exception:any} ip:{ip:hex} ", Event::Fault),
    ("*[{pid:int}]: segfault at {address:hex} ip {ip:hex} sp {sp:hex} error {bits:hex} in {object:word}", Event::Fault),
    ("*[{pid:int}]: segfault at {address:hex} ip {ip:hex} sp {sp:hex} error {bits:hex}", Event::Fault),
    (
        "*[{pid:int}]: unhandled exception: {exception:any}, ESR {syndrome:hex}, {state:any} in {object:word}",
        Event::Fault,
    ),
    ("*[{pid:int}]: unhandled exception: {exception:any}, ESR {syndrome:hex}", Event::Fault),
    ("*[{pid:int}]: unhandled exception: {exception:any} in {object:word}", Event::Fault),
    ("*[{pid:int}]: undefined instruction: pc={ip:hex}", Event::Fault),
    ("Code: {code:rest}", Event::Code),
    ("RIP: {segment:int}:{place:word}", Event::Place),
    ("pc : {place:rest}", Event::Place),
    ("Call Trace:", Event::Trace),
    ("Call trace:", Event::Trace),
];

fn events() -> &'static [(Pattern, Event)] {
    static COMPILED: OnceLock<Vec<(Pattern, Event)>> = OnceLock::new();
    // The tests refuse a pattern that is none.
    COMPILED.get_or_init(|| {
        EVENTS.iter().filter_map(|(pattern, event)| Some((Pattern::parse(pattern).ok()?, *event))).collect()
    })
}

impl Context {
    /// Takes a line.
    pub(crate) fn see(&mut self, line: &Line) {
        self.lines = self.lines.saturating_add(1);
        self.stall_overcome |= self.end.is_none() && self.is_past_stall(line);
        if line.speaker == Speaker::Program {
            self.said_after_init |= self.stage == Stage::Init;
            self.last_program.clone_from(&line.text);
            return;
        }
        self.last_kernel.clone_from(&line.text);
        if self.in_trace {
            self.in_trace = self.traces.last_mut().is_some_and(|trace| trace.add(&line.text));
            if self.in_trace {
                return;
            }
        }
        let text = line.text.trim_start();
        let found = events().iter().find_map(|(pattern, event)| Some((*event, pattern.matches(text)?)));
        let Some((event, filled)) = found else {
            // Where nothing tells the kernel from a program, words after the start of init are taken for its own.
            self.said_after_init |= self.stage == Stage::Init && line.speaker == Speaker::Unknown;
            return;
        };
        let value = |name: &str| filled.iter().find(|hole| hole.name == name).map(|hole| hole.text);
        match event {
            Event::Names => self.names.bind_filled(&filled),
            Event::Architecture(name) => self.names.bind("architecture", name),
            Event::Stage(stage) => {
                self.names.bind_filled(&filled);
                self.stage = self.stage.max(stage);
            }
            // A machine that panics may restart after that.
            Event::End(end) => self.end = self.end.or(Some(end)),
            Event::Panic(kind) => {
                self.end = self.end.or(Some("panic"));
                self.panic = self.panic.or(Some(kind));
            }
            Event::Stall => {
                self.stall = Some(line.time_us);
                self.stall_overcome = false;
            }
            Event::Fault => {
                let mut names = Names::default();
                let number = |name: &str| u64::from_str_radix(value(name)?.trim_start_matches("0x"), 16).ok();
                if let Some(address) = number("address") {
                    fault::bind_address(address, &mut names);
                }
                if let Some(bits) = number("bits") {
                    fault::bind_page_fault(bits, &mut names);
                }
                if let Some(syndrome) = number("syndrome") {
                    fault::bind_syndrome(syndrome, &mut names);
                }
                names.bind_some("fault-ip", number("ip").map(|ip| format!("{ip:#x}")));
                names.bind_some("exception", value("exception"));
                names.bind_some("fault-object", value("object"));
                names.bind("fault-line", line.text.trim());
                keep(&mut self.faults, Fault { line: line.number, pid: value("pid").map(str::to_owned), names });
            }
            Event::Code => {
                if let Some(instruction) = value("code").and_then(Instruction::of_code_line) {
                    keep(&mut self.instructions, (line.number, instruction));
                }
            }
            Event::Place => {
                let place = value("place").unwrap_or_default();
                if let Some((function, _)) = symbol(place) {
                    keep(&mut self.functions, (line.number, function.to_owned(), module(text).map(str::to_owned)));
                } else if let Ok(ip) = u64::from_str_radix(place.trim_start_matches("0x"), 16)
                    && let Some(fault) = self.faults.last_mut()
                    && line.number.saturating_sub(fault.line) < MAX_REGISTERS
                {
                    // arm64 tells of the fault first and of the registers below it.
                    fault.names.bind("fault-ip", format!("{ip:#x}"));
                }
            }
            Event::Trace => {
                self.in_trace = self.traces.len() < MAX_KEPT;
                keep(&mut self.traces, Trace { line: line.number, frames: Vec::new() });
            }
        }
    }

    /// Whether a line shows that the last stall is over: a program speaks, or the kernel much later.
    fn is_past_stall(&self, line: &Line) -> bool {
        let Some(stalled) = self.stall else { return false };
        match line.speaker {
            Speaker::Program => true,
            Speaker::Kernel => {
                line.time_us.zip(stalled).is_some_and(|(now, then)| now.saturating_sub(then) > STALL_OVER_US)
            }
            Speaker::Unknown => line.text.contains("login:"),
        }
    }

    /// The call trace that belongs to a failure in this line.
    pub(crate) fn trace_at(&self, line: usize) -> Option<&Trace> {
        near(&self.traces, line, |trace| trace.line)
    }

    /// The names that hold for the whole log.
    pub(crate) fn global(&self) -> Names {
        let mut names = self.names.clone();
        names.bind("stage", self.stage.name());
        names.bind("end", self.end.unwrap_or("open"));
        names.bind_some("panic", self.panic);
        // What the kernel stopped for was not overcome, whatever was said while it told of it.
        names.bind_some("stall-overcome", (self.stall_overcome && self.panic != Some("stall")).then_some("yes"));
        names.bind("output", if self.lines == 0 { "none" } else { "some" });
        names.bind("init-said", if self.said_after_init { "yes" } else { "no" });
        if self.lines > 0 && !self.last_kernel.is_empty() {
            names.bind("last-line", self.last_kernel.trim());
        }
        if !self.last_program.is_empty() {
            names.bind("program-said", self.last_program.trim());
        }
        let line = names.get("command-line").unwrap_or_default().to_owned();
        for (name, key) in [("root", "root="), ("root-type", "rootfstype="), ("console", "console="), ("init", "init=")]
        {
            names.bind_some(name, line.split_whitespace().rev().find_map(|word| word.strip_prefix(key)));
        }
        names
    }

    /// The names that hold for a failure in this line: the fault of init before it, registers and trace after it.
    pub(crate) fn near(&self, line: usize) -> Names {
        let mut names = Names::default();
        let fault = self.faults.iter().rev().find(|fault| fault.line <= line && fault.pid.as_deref() == Some("1"));
        if let Some(fault) = fault {
            names = fault.names.clone();
        }
        let instruction = |from| near(&self.instructions, from, |(line, _)| *line);
        if let Some((_, instruction)) = fault.and_then(|fault| instruction(fault.line)).or_else(|| instruction(line)) {
            instruction.bind(&mut names);
        }
        if let Some((_, function, module)) = near(&self.functions, line, |(line, _, _)| *line) {
            names.bind("function", function.as_str());
            names.bind_some("module", module.as_deref());
        }
        if let Some(trace) = self.trace_at(line) {
            names.bind_some("trap", trace.trap());
            names.bind_some("path", trace.path());
            if let Some(frame) = trace.culprit() {
                names.bind("function", frame.function.as_str());
                names.bind_some("module", frame.module.as_deref());
                names.bind_some("layer", frame.layer());
            }
        }
        names
    }
}

/// Adds to a list that has room.
fn keep<T>(list: &mut Vec<T>, value: T) {
    if list.len() < MAX_KEPT {
        list.push(value);
    }
}

/// The first of a list in its order that stands in this line or not far behind it.
fn near<T>(list: &[T], line: usize, number: impl Fn(&T) -> usize) -> Option<&T> {
    list.iter().find(|one| (line..line.saturating_add(MAX_DISTANCE)).contains(&number(one)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::lines::Lines;

    #[test]
    fn all_patterns_of_events_are_patterns() {
        assert_eq!(events().len(), EVENTS.len());
    }

    #[test]
    fn fault_of_another_process_is_not_that_of_init() {
        let log = "[    1.000000] sh[7]: segfault at 10 ip 000000 sp 000000 error 4 in sh[1+1]\n\
                   [    2.000000] Kernel panic - not syncing: x\n";
        let mut context = Context::default();
        Lines::new(log.as_bytes()).for_each(|line| context.see(&line));
        assert_eq!(context.near(2).get("fault-address"), None);
        assert_eq!(context.global().get("end"), Some("panic"));
    }

    #[test]
    fn number_of_faults_and_traces_is_bounded() {
        let log = "[    1.000000] a[1]: segfault at 10 ip 00 sp 00 error 4\n[    1.000000] Call Trace:\n".repeat(1000);
        let mut context = Context::default();
        Lines::new(log.as_bytes()).for_each(|line| context.see(&line));
        assert_eq!((context.faults.len(), context.traces.len()), (MAX_KEPT, MAX_KEPT));
    }
}
