//! Advice to the kernel for a mapping of guest memory, given by the processes that map it before they shut their jails.
//!
//! virtio-blk maps it later, when its filter allows no advice: there, as everywhere, the process is not dumpable, dumps
//! nothing (`coredump_filter`, `RLIMIT_CORE`) and cannot fork.
#![allow(unsafe_code, reason = "madvise is unsafe for advice that drops memory")]

use nix::errno::Errno;

/// Keeps `bytes` bytes from `start` on out of core dumps and out of any child, and has huge pages taken for them, but for the
/// first `small_bytes`, where the file gives them to those that ask (tmpfs(5), `huge=advise`).
///
/// # Errors
/// When the range is not mapped, or does not begin with a page.
pub fn keep_private(start: *mut u8, bytes: usize, small_bytes: usize) -> Result<(), Errno> {
    advise(start, bytes, libc::MADV_DONTDUMP)?;
    advise(start, bytes, libc::MADV_DONTFORK)?;
    let small = bytes.min(small_bytes);
    match advise(start.wrapping_add(small), bytes.saturating_sub(small), libc::MADV_HUGEPAGE) {
        // A kernel without transparent huge pages, or memory that is in huge pages already.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn advise(start: *mut u8, bytes: usize, advice: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the advice given above changes neither content nor mappings of this process, whatever the range is.
    Errno::result(unsafe { libc::madvise(start.cast(), bytes, advice) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::ptr::null_mut;

    const BYTES: usize = 1 << 21;

    /// A mapping of a file, or of nothing.
    fn map(file: Option<&std::os::fd::OwnedFd>) -> *mut u8 {
        let (flags, fd) = match file {
            Some(fd) => (libc::MAP_SHARED, fd.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        // SAFETY: a new mapping, of which nothing else knows.
        let start = unsafe { libc::mmap(null_mut(), BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        start.cast()
    }

    fn memfd() -> std::os::fd::OwnedFd {
        let fd = nix::sys::memfd::memfd_create(c"guest", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, BYTES.try_into().unwrap()).unwrap();
        fd
    }

    /// The flags of the mapping that begins at `start` (proc_pid_smaps(5), VmFlags).
    fn flags(start: *mut u8) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let begin = format!("{:x}-", start.addr());
        let rest = smaps.lines().skip_while(|line| !line.starts_with(&begin));
        let line = rest.into_iter().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn mapping_is_kept_out_of_dumps_and_children() {
        let fd = memfd();
        let start = map(Some(&fd));
        assert!(!flags(start).iter().any(|flag| flag == "dd" || flag == "dc"));
        keep_private(start, BYTES, 0).unwrap();
        let flags = flags(start);
        assert!(["dd", "dc"].iter().all(|wanted| flags.iter().any(|flag| flag == wanted)), "{flags:?}");
        assert_eq!(keep_private(null_mut(), BYTES, 0), Err(Errno::ENOMEM));
    }

    /// How it is known that KSM takes no page of guest memory, whoever would ask it to.
    #[test]
    fn shared_memory_is_not_merged_even_if_asked_for() {
        let fd = memfd();
        let (shared, own) = (map(Some(&fd)), map(None));
        if advise(own, BYTES, libc::MADV_MERGEABLE) == Err(Errno::EINVAL) {
            eprintln!("skipped: this kernel has no KSM");
            return;
        }
        advise(shared, BYTES, libc::MADV_MERGEABLE).unwrap();
        assert!(flags(own).iter().any(|flag| flag == "mg"));
        assert!(!flags(shared).iter().any(|flag| flag == "mg"));
    }
}
