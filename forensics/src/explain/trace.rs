//! Call traces: the frames, the layer of the kernel that each is in, and the path from the trap to the panic.

use super::knowledge::LAYERS;

/// The most frames of a trace that are kept.
pub(crate) const MAX_FRAMES: usize = 64;
/// The longest name of a module in bytes (MODULE_NAME_LEN).
const MAX_MODULE_BYTES: usize = 64;
/// The layer of the frames that only print the trace.
const REPORT: &str = "report";
/// How layers begin by which the kernel is entered.
const TRAP: &str = "trap entry: ";

/// A frame of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The function.
    pub(crate) function: String,
    /// The module that it is in, if not the kernel itself.
    pub(crate) module: Option<String>,
    /// Whether the kernel found it on the stack without knowing that it belongs there (a `?` before it).
    pub(crate) uncertain: bool,
}

impl Frame {
    /// Reads `? function+0x12/0x34 [module] (P)`.
    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        let (uncertain, text) = text.strip_prefix("? ").map_or((false, text), |rest| (true, rest));
        let (function, rest) = symbol(text)?;
        let module = module(rest);
        Some(Self { function: function.to_owned(), module: module.map(str::to_owned), uncertain })
    }

    /// The layer that it is in.
    pub(crate) fn layer(&self) -> Option<&'static str> {
        // The padding before a function, in which a return address can lie.
        let name = self.function.strip_prefix("__pfx_").unwrap_or(&self.function);
        let layer = LAYERS.iter().find(|(_, functions)| {
            functions.iter().any(|known| match known.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                // The compiler splits functions into parts with endings of their own.
                None => name.split('.').next() == Some(known),
            })
        });
        layer.map(|(name, _)| *name)
    }

    /// The function and the layer.
    pub(crate) fn shown(&self) -> String {
        let layer = self.layer().map(|layer| format!(" ({layer})"));
        let module = self.module.as_ref().map(|module| format!(" of the module {module}"));
        format!("{}{}{}", self.function, module.unwrap_or_default(), layer.unwrap_or_default())
    }
}

/// The module in what follows a function: `[module]`, or with the hash of its build, `[module 0123abcd]`.
pub(crate) fn module(text: &str) -> Option<&str> {
    let name = text.split_once('[')?.1.split([']', ' ']).next()?;
    (!name.is_empty() && name.len() <= MAX_MODULE_BYTES).then_some(name)
}

/// `function+0x12/0x34` and what follows it.
pub(crate) fn symbol(text: &str) -> Option<(&str, &str)> {
    let (function, rest) = text.split_once("+0x")?;
    let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$');
    (!function.is_empty() && function.len() <= 128 && function.bytes().all(name)).then_some((function, rest))
}

/// A call trace, the innermost frame first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    /// The number of the line with which it begins.
    pub(crate) line: usize,
    /// Its frames.
    pub(crate) frames: Vec<Frame>,
}

impl Trace {
    /// Takes a line of it; `false` when the line does not belong to it.
    pub(crate) fn add(&mut self, text: &str) -> bool {
        let text = text.trim();
        if matches!(text, "<TASK>" | "</TASK>" | "<IRQ>" | "</IRQ>" | "<NMI>" | "</NMI>" | "<SOFTIRQ>" | "</SOFTIRQ>") {
            return true;
        }
        // A place that has no name.
        if text.trim_start_matches("? ").starts_with("0x") {
            return true;
        }
        let Some(frame) = Frame::read(text) else { return false };
        if self.frames.len() < MAX_FRAMES {
            self.frames.push(frame);
        }
        true
    }

    /// The frames that are certain and did not only print the trace, the outermost first.
    fn path_frames(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().rev().filter(|frame| !frame.uncertain && frame.layer() != Some(REPORT))
    }

    /// The path from the outermost frame to the innermost, with the layers.
    pub(crate) fn path(&self) -> Option<String> {
        let frames: Vec<_> = self.path_frames().map(Frame::shown).collect();
        (!frames.is_empty()).then(|| frames.join(" → "))
    }

    /// What the kernel was entered by: the kind of the trap.
    pub(crate) fn trap(&self) -> Option<&'static str> {
        self.frames.iter().find_map(|frame| frame.layer()?.strip_prefix(TRAP))
    }

    /// The innermost function that neither prints nor panics, waits, or only catches the fault.
    pub(crate) fn culprit(&self) -> Option<&Frame> {
        self.frames.iter().find(|frame| {
            let layer = frame.layer();
            !frame.uncertain
                && !matches!(
                    layer,
                    Some(REPORT | "panic" | "oops" | "lockup detector" | "interrupts" | "scheduler" | "locks")
                )
                && layer.is_none_or(|layer| !layer.starts_with(TRAP))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(lines: &[&str]) -> Trace {
        let mut trace = Trace::default();
        assert!(lines.iter().all(|line| trace.add(line)));
        trace
    }

    #[test]
    fn path_of_a_killed_init_on_arm64_5_10_is_named_layer_by_layer() {
        let trace = trace(&[
            " dump_backtrace+0x0/0x1e4",
            " show_stack+0x24/0x30",
            " dump_stack+0xd0/0x12c",
            " panic+0x16c/0x334",
            " do_exit+0xa44/0xa50",
            " do_group_exit+0x44/0xb0",
            " get_signal+0x180/0x8c0",
            " do_notify_resume+0x1a4/0x420",
            " work_pending+0xc/0x4a0",
            " el0_sync+0x180/0x1c0",
        ]);
        let path = trace.path().unwrap();
        let mut rest = path.as_str();
        for function in
            ["el0_sync", "work_pending", "do_notify_resume", "get_signal", "do_group_exit", "do_exit", "panic"]
        {
            let (_, after) =
                rest.split_once(&format!("{function} (")).unwrap_or_else(|| panic!("{function} in {path}"));
            rest = after;
        }
        assert!(!path.contains("dump_stack"));
    }

    #[test]
    fn frames_of_all_shapes_are_read() {
        let trace =
            trace(&["<TASK>", " ? virtio_blk_init+0x5/0xff0 [virtio_blk 1234abcd]", " do_one_initcall+0x60/0x2e8 (P)"]);
        assert_eq!(trace.frames[0].module.as_deref(), Some("virtio_blk"));
        assert!(trace.frames[0].uncertain);
        assert_eq!(trace.frames[1].function, "do_one_initcall");
        assert!(!Trace::default().add("RIP: 0033:0x400078"));
    }

    #[test]
    fn trace_without_end_is_bounded() {
        let mut trace = Trace::default();
        assert!((0..10_000).all(|_| trace.add(" f+0x1/0x2")));
        assert_eq!(trace.frames.len(), MAX_FRAMES);
    }
}
