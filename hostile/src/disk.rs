//! What the holder of a read-only file tries to change it, and the holder of a writable disk to grow it.

use crate::Seat;
use crate::attempt::{Act, Arg, Attempt, DiskMode, Done};
use crate::calls::CWD;
use crate::held::{Held, Kind};
use crate::raw;
use Arg::{Fd, FdPath, Number as N, Scratch};
use std::ffi::c_long;

const READ_ONLY: &str = "a read-only file";
const GROW: &str = "a disk that is writable";
/// Who holds files of the host: the loader its kernel, virtio-blk its image, the inspector what it looks at.
const HOLDERS: &[Seat] = &[Seat::Loader, Seat::VirtioBlk, Seat::Inspector];
const BLOCK: &[Seat] = &[Seat::VirtioBlk];
const FILE: Arg = Fd(Kind::ReadOnlyFile);
/// Far beyond the end of any image of a test.
const FAR: usize = 1 << 32;
/// `MAP_SHARED`, readable and writable.
const SHARED: [Arg; 2] = [N((libc::PROT_READ | libc::PROT_WRITE) as usize), N(libc::MAP_SHARED as usize)];
/// The bytes of one vector.
const VECTOR: usize = 512;

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let calls: [(&str, c_long, &[Arg]); 21] = [
        ("write", libc::SYS_write, &[FILE, Scratch, N(512)]),
        ("pwrite64", libc::SYS_pwrite64, &[FILE, Scratch, N(512), N(0)]),
        ("writev", libc::SYS_writev, &[FILE, Scratch, N(1)]),
        ("pwritev2", libc::SYS_pwritev2, &[FILE, Scratch, N(1), N(0), N(0), N(0)]),
        ("ftruncate", libc::SYS_ftruncate, &[FILE, N(0)]),
        ("fallocate", libc::SYS_fallocate, &[FILE, N(0), N(0), N(4096)]),
        ("fallocate, punch a hole", libc::SYS_fallocate, &[FILE, N(3), N(0), N(4096)]),
        ("fallocate, zero a range", libc::SYS_fallocate, &[FILE, N(0x11), N(0), N(4096)]),
        ("fallocate, collapse a range", libc::SYS_fallocate, &[FILE, N(8), N(0), N(4096)]),
        ("mmap, shared and writable", libc::SYS_mmap, &[N(0), N(4096), SHARED[0], SHARED[1], FILE, N(0)]),
        ("openat /proc/self/fd, for writing", libc::SYS_openat, &[CWD, FdPath(Kind::ReadOnlyFile), N(2)]),
        ("openat by its descriptor, for writing", libc::SYS_openat, &[FILE, Arg::Text(c""), N(2 | 0x1000)]),
        ("fcntl F_SETFL O_RDWR", libc::SYS_fcntl, &[FILE, N(4), N(2)]),
        ("sendfile to it", libc::SYS_sendfile, &[FILE, N(3), N(0), N(4096)]),
        ("copy_file_range to it", libc::SYS_copy_file_range, &[N(3), N(0), FILE, N(0), N(4096), N(0)]),
        ("ioctl FICLONE", libc::SYS_ioctl, &[FILE, N(0x4004_9409), N(3)]),
        ("ioctl FS_IOC_SETFLAGS", libc::SYS_ioctl, &[FILE, N(0x4008_6602), Scratch]),
        ("fchmod", libc::SYS_fchmod, &[FILE, N(0o777)]),
        ("fchown", libc::SYS_fchown, &[FILE, N(0), N(0)]),
        ("fsetxattr", libc::SYS_fsetxattr, &[FILE, Arg::Text(c"user.x"), Scratch, N(1), N(0)]),
        ("flock, to give up the broker's lock", libc::SYS_flock, &[FILE, N(8)]),
    ];
    let mut all: Vec<_> = calls
        .into_iter()
        .map(|(name, number, arguments)| {
            let act = Act::Call(Some(number), arguments.to_vec());
            Attempt::new(READ_ONLY, &format!("read-only: {name}"), name, act).by(HOLDERS)
        })
        .collect();
    let vectored = Act::Do(|held: &Held| write_at(held, Kind::ReadOnlyFile, 0));
    all.push(Attempt::new(READ_ONLY, "read-only: pwritev", "pwritev", vectored).by(HOLDERS));
    let grow = |name: &str, act| Attempt {
        disk: DiskMode::ReadWrite,
        ..Attempt::new(GROW, &format!("grow: {name}"), name, act).by(BLOCK)
    };
    let call = |number, arguments: &[Arg]| Act::Call(Some(number), arguments.to_vec());
    let file = Fd(Kind::WritableFile);
    let beyond = Act::Do(|held: &Held| write_at(held, Kind::WritableFile, FAR));
    all.push(grow("pwritev beyond its end", beyond));
    all.push(grow("fallocate beyond its end", call(libc::SYS_fallocate, &[file, N(0), N(FAR), N(1 << 20)])));
    let keep = call(libc::SYS_fallocate, &[file, N(1), N(FAR), N(1 << 20)]);
    all.push(grow("fallocate beyond its end, unseen (KEEP_SIZE)", keep));
    let zero = call(libc::SYS_fallocate, &[file, N(0x11), N(FAR), N(1 << 20)]);
    all.push(grow("zero a range beyond its end, unseen (KEEP_SIZE)", zero));
    all.push(grow("ftruncate to more", call(libc::SYS_ftruncate, &[file, N(FAR)])));
    all
}

/// `pwritev` of one vector, which virtio-blk's row has.
fn write_at(held: &Held, kind: Kind, offset: usize) -> Done {
    let bytes: &'static [u8] = Vec::leak(vec![0xee; VECTOR]);
    let vector = [raw::address(bytes), VECTOR];
    raw::call(libc::SYS_pwritev, [held.number(kind), raw::address(&vector), 1, offset, 0, 0]).into()
}
