//! What descriptors a process holds, looked at before its jail is complete: afterwards it could not.

#![allow(clippy::cast_sign_loss, reason = "the flags of system calls are positive numbers")]

use crate::raw;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};
use std::os::fd::BorrowedFd;

/// A kind of descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The control channel.
    Control,
    /// The log.
    Log,
    /// A vhost-user socket.
    Stream,
    /// The socket between the vmm and serial.
    Packets,
    /// A file or memory that is open for reading only.
    ReadOnlyFile,
    /// A file that may be written.
    WritableFile,
    /// Guest memory.
    GuestMemory,
    /// The ring between the vmm and serial.
    Ring,
    /// The virtual machine.
    Vm,
    /// A vCPU.
    Vcpu,
    /// The console's input.
    ConsoleIn,
    /// The console's output.
    ConsoleOut,
    /// An eventfd, or anything else without a name.
    Anonymous,
}

/// A number that no open descriptor has.
const NONE: usize = 4000;
/// One more than the largest descriptor that is looked at.
const END: i32 = 256;
/// The bytes of the ring's memory (`wire::ring::RING_BYTES`).
const RING_BYTES: i64 = 4096 + 2 * 8192;
/// The same, to be mapped.
const RING_MAPPED: usize = 4096 + 2 * 8192;
/// `MFD_…` memory of a guest is never smaller (`wire::MemoryBytes`), and no other memory as large.
const LEAST_MEMORY_BYTES: i64 = 2 << 20;
/// `KVM_CHECK_EXTENSION`, which the system and a virtual machine know.
const KVM_CHECK_EXTENSION: usize = 0xae03;
/// `KVM_GET_MP_STATE`, which a vCPU knows.
const KVM_GET_MP_STATE: usize = 0x8004_ae98;

/// The descriptors of this process, and the ring, which the jail lets nobody map.
#[derive(Debug, Default)]
pub struct Held {
    all: Vec<(i32, Kind)>,
    ring: Option<usize>,
}

impl Held {
    /// Looks at them.
    #[must_use]
    pub fn look() -> Self {
        let all = (0..END).filter_map(|fd| Some((fd, kind(fd, raw::open_descriptor(fd)?)?)));
        let mut held = Self { all: all.collect(), ring: None };
        let (writable, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        held.ring = held.first(Kind::Ring).and_then(|ring| {
            raw::call(libc::SYS_mmap, [0, RING_MAPPED, writable as usize, shared as usize, ring, 0]).ok()
        });
        held
    }

    /// The address and the size in bytes of the ring, if it holds that.
    #[must_use]
    pub fn ring(&self) -> Option<(usize, usize)> {
        self.ring.map(|address| (address, RING_MAPPED))
    }

    /// The first of a kind, as an argument.
    #[must_use]
    pub fn number(&self, kind: Kind) -> usize {
        self.first(kind).unwrap_or(NONE)
    }

    /// The first of a kind.
    #[must_use]
    pub fn first(&self, kind: Kind) -> Option<usize> {
        self.all.iter().find(|(_, is)| *is == kind).and_then(|(fd, _)| usize::try_from(*fd).ok())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The descriptor with this index among all, begun anew after the last.
    #[must_use]
    pub fn nth(&self, index: usize) -> usize {
        let at = index.checked_rem(self.all.len()).and_then(|at| self.all.get(at));
        at.and_then(|(fd, _)| usize::try_from(*fd).ok()).unwrap_or(NONE)
    }
}

fn kind(number: i32, fd: BorrowedFd<'_>) -> Option<Kind> {
    match number {
        0 => return Some(Kind::Control),
        1 | 2 => return Some(Kind::Log),
        _ => {}
    }
    let stat = fstat(fd).ok()?;
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).ok()?);
    let access = flags & OFlag::O_ACCMODE;
    Some(match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFSOCK => match getsockopt(&fd, sockopt::SockType) {
            Ok(SockType::Stream) => Kind::Stream,
            _ => Kind::Packets,
        },
        SFlag::S_IFREG | SFlag::S_IFBLK if access == OFlag::O_RDONLY => Kind::ReadOnlyFile,
        SFlag::S_IFREG if stat.st_size == RING_BYTES => Kind::Ring,
        // Without a name: a memfd or an overlay.
        SFlag::S_IFREG if stat.st_nlink == 0 && stat.st_size >= LEAST_MEMORY_BYTES => Kind::GuestMemory,
        SFlag::S_IFREG | SFlag::S_IFBLK => Kind::WritableFile,
        _ if access == OFlag::O_RDONLY => Kind::ConsoleIn,
        _ if access == OFlag::O_WRONLY => Kind::ConsoleOut,
        _ => {
            let number = usize::try_from(number).ok()?;
            let scratch = [0u64; 2];
            if raw::call(libc::SYS_ioctl, [number, KVM_CHECK_EXTENSION, 0, 0, 0, 0]).is_ok() {
                Kind::Vm
            } else if raw::call(libc::SYS_ioctl, [number, KVM_GET_MP_STATE, raw::address(&scratch), 0, 0, 0]).is_ok() {
                Kind::Vcpu
            } else {
                Kind::Anonymous
            }
        }
    })
}
