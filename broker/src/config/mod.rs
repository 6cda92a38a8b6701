//! The machine that the user wants, from a TOML file, from flags, or both.
//!
//! The config is trusted, its author is not infallible: everything that is wrong is found before anything is created,
//! and said all at once, each with its place, its key, what is wrong and what would be right.

mod check;
mod cmdline;
mod duration;
mod flags;
mod hardware;
mod image;
mod limits;
mod parse;
pub(crate) mod rehearsal;
mod size;

pub(crate) use check::{Console, EPHEMERAL_URING, Plan, check};
pub(crate) use duration::show_duration;
pub(crate) use flags::override_with_flags;
pub(crate) use hardware::Host;
pub(crate) use image::open_disk;
pub(crate) use limits::RunLimits;
pub(crate) use parse::parse;
pub(crate) use size::{parse_size, show_size};

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use wire::message::{DiskEngine, DiskMode, GicVersion};

/// Where a value was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a line of a file.
    Line {
        /// The file as the user named it.
        file: Rc<str>,
        /// The line, from 1.
        line: usize,
    },
    /// On the command line.
    CommandLine,
}

/// Where a value was said, and by which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The place.
    pub(crate) place: Place,
    /// The key or the flag.
    pub(crate) key: String,
}

impl Origin {
    /// A flag.
    pub(crate) fn flag(name: &str) -> Self {
        Self { place: Place::CommandLine, key: name.to_owned() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Place::Line { file, line } = &self.place {
            write!(f, "{file}:{line}: ")?;
        }
        f.write_str(&self.key)
    }
}

/// A value and where it was said.
#[derive(Debug, Clone)]
pub(crate) struct Given<T> {
    /// The value.
    pub(crate) value: T,
    /// Its origin.
    pub(crate) origin: Origin,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Where.
    pub(crate) origin: Origin,
    /// What is wrong.
    pub(crate) what: String,
    /// What would be right.
    pub(crate) right: String,
}

impl Problem {
    /// What is wrong at `origin`, and what would be right.
    pub(crate) fn new(origin: &Origin, what: impl Into<String>, right: impl Into<String>) -> Self {
        Self { origin: origin.clone(), what: what.into(), right: right.into() }
    }

    /// As JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        let (file, line) = match &self.origin.place {
            Place::Line { file, line } => (Some(file.to_string()), Some(*line)),
            Place::CommandLine => (None, None),
        };
        serde_json::json!({ "file": file, "line": line, "key": self.origin.key, "what": self.what, "right": self.right })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.origin, self.what, self.right)
    }
}

/// The size of a huge page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HugePages {
    /// 2 MiB.
    TwoMiB,
    /// 1 GiB.
    OneGiB,
}

impl HugePages {
    /// The size in bytes.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::TwoMiB => 2 << 20,
            Self::OneGiB => 1 << 30,
        }
    }
}

/// A console output as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Standard input and output.
    Stdio,
    /// Nowhere.
    None,
    /// A file.
    File(PathBuf),
}

/// A disk as it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct DraftDisk {
    /// The image.
    pub(crate) path: Given<PathBuf>,
    /// How it is written to.
    pub(crate) mode: DiskMode,
    /// How its bytes are moved.
    pub(crate) engine: Option<Given<DiskEngine>>,
    /// The serial number.
    pub(crate) id: Option<Given<String>>,
}

/// What was asked for, well-formed but not yet checked against the host and against itself.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// The number of virtual CPUs.
    pub(crate) vcpus: Option<Given<i128>>,
    /// The interrupt controller.
    pub(crate) gic: Option<Given<GicVersion>>,
    /// The host CPUs that may run vCPUs.
    pub(crate) cpus: Option<Given<Vec<i128>>>,
    /// Guest memory in bytes.
    pub(crate) memory: Option<Given<u64>>,
    /// Huge pages.
    pub(crate) huge_pages: Option<Given<HugePages>>,
    /// The kernel image.
    pub(crate) kernel: Option<Given<PathBuf>>,
    /// Whether a kernel was named at all, perhaps wrongly.
    pub(crate) kernel_named: bool,
    /// The initial RAM disk.
    pub(crate) initrd: Option<Given<PathBuf>>,
    /// The kernel command line.
    pub(crate) cmdline: Option<Given<String>>,
    /// Whether the guest gets ACPI tables.
    pub(crate) acpi: Option<bool>,
    /// Whether the boot files are looked at beside the launch.
    pub(crate) preflight: Option<bool>,
    /// Whether the console of a run that ends badly is explained.
    pub(crate) explain: Option<bool>,
    /// Verbose guest.
    pub(crate) debug: bool,
    /// The disks.
    pub(crate) disks: Vec<DraftDisk>,
    /// The console outputs.
    pub(crate) console: Option<Vec<Given<Output>>>,
    /// The most bytes in a console file.
    pub(crate) limit: Option<Given<u64>>,
    /// What it may use of the host.
    pub(crate) limits: limits::DraftLimits,
    /// The config file itself.
    pub(crate) config_file: Option<PathBuf>,
}
