//! An attempt: what is tried, by whom, with which disk, and what may follow.

use crate::Seat;
use crate::held::{Held, Kind};
use crate::raw;
use nix::errno::Errno;
use std::ffi::{CStr, c_long};

/// An argument of a system call.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A number.
    Number(usize),
    /// A path or a name.
    Text(&'static CStr),
    /// Words in memory, for a struct of the kernel's.
    Words(&'static [u64]),
    /// Zeroed memory of [`SCRATCH_BYTES`] that may be written.
    Scratch,
    /// A descriptor of a kind; one that is not open, where there is none.
    Fd(Kind),
    /// The descriptor with this index among all that are held, begun anew after the last.
    Nth(usize),
    /// `/proc/self/fd/N` for a descriptor of a kind.
    FdPath(Kind),
}

/// The bytes of [`Arg::Scratch`].
pub const SCRATCH_BYTES: usize = 1 << 16;

/// What a payload has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The kernel refused.
    Refused(Errno),
    /// This architecture, or this process, has no such thing.
    NotThere,
    /// What it should not do worked; with the result.
    Succeeded(usize),
    /// It was sent; who receives it decides.
    Sent,
}

impl From<Result<usize, Errno>> for Done {
    fn from(result: Result<usize, Errno>) -> Self {
        match result {
            Ok(value) => Self::Succeeded(value),
            Err(errno) => Self::Refused(errno),
        }
    }
}

/// How an attempt is made.
#[derive(Debug, Clone)]
pub enum Act {
    /// A system call; not there where it has no number.
    Call(Option<c_long>, Vec<Arg>),
    /// Anything else.
    Do(fn(&Held) -> Done),
}

/// What must follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The filter kills the process, or the kernel refuses the call and everything goes on in order.
    KillOrRefusal,
    /// Whoever receives it gives the sender up: the broker says so, with these words.
    CutOff(&'static str),
    /// As [`Expect::CutOff`], or nobody looks at it before the guest has ended.
    CutOffOrUnread(&'static str),
    /// It does nothing any more: after its deadline the broker ends the run, with this exit code and these words.
    Deadline(i32, &'static str),
    /// It does nothing any more; the broker, told to end, ends it.
    Terminated,
}

/// The disk that the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskMode {
    /// Read-only.
    ReadOnly,
    /// Writes go to the image.
    ReadWrite,
}

/// An attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What it is about.
    pub group: &'static str,
    /// Its row in the matrix; several attempts can share one.
    pub row: String,
    /// Its name.
    pub name: String,
    /// Who makes it.
    pub seats: &'static [Seat],
    /// The machine's disk.
    pub disk: DiskMode,
    /// What must follow.
    pub expect: Expect,
    /// How.
    pub act: Act,
}

impl Attempt {
    /// An attempt of all, of something that must be killed or refused.
    #[must_use]
    pub fn new(group: &'static str, name: &str, row: &str, act: Act) -> Self {
        Self {
            group,
            row: row.to_owned(),
            name: name.to_owned(),
            seats: &Seat::ALL,
            disk: DiskMode::ReadOnly,
            expect: Expect::KillOrRefusal,
            act,
        }
    }

    /// Of these only.
    #[must_use]
    pub fn by(self, seats: &'static [Seat]) -> Self {
        Self { seats, ..self }
    }

    /// With another expectation.
    #[must_use]
    pub fn expect(self, expect: Expect) -> Self {
        Self { expect, ..self }
    }

    /// Makes it.
    #[must_use]
    pub fn make(&self, held: &Held) -> Done {
        let (number, arguments) = match &self.act {
            Act::Do(act) => return act(held),
            Act::Call(None, _) => return Done::NotThere,
            Act::Call(Some(number), arguments) => (*number, arguments),
        };
        // Never freed: the kernel may be told to keep it.
        let scratch: &'static [u64] = Vec::leak(vec![0; SCRATCH_BYTES / 8]);
        let mut values = [0; 6];
        for (value, argument) in values.iter_mut().zip(arguments) {
            *value = match *argument {
                Arg::Number(number) => number,
                Arg::Text(text) => raw::address(text),
                Arg::Words(words) => raw::address(words),
                Arg::Scratch => raw::address(scratch),
                Arg::Fd(kind) => held.number(kind),
                Arg::Nth(index) => held.nth(index),
                Arg::FdPath(kind) => {
                    raw::address::<str>(String::leak(format!("/proc/self/fd/{}\0", held.number(kind))))
                }
            };
        }
        raw::call(number, values).into()
    }
}
