//! Gives back what a process has mapped of its program: the larger part of it is needed at the start alone, and the kernel
//! maps a neighbourhood of 64 KiB with each page that is touched. What is needed again is mapped again, from the page cache.
#![allow(unsafe_code, reason = "dl_iterate_phdr and madvise have no safe wrapper")]

use std::ffi::{c_int, c_void};
use std::ptr::{null_mut, with_exposed_provenance_mut};

/// The largest page of any host; a part of a segment that ends within one stays mapped.
const PAGE_BYTES: usize = 64 << 10;

/// Gives back every page of this program that nothing can have written to. What fails stays mapped.
pub fn give_back() {
    // SAFETY: `segments` is a callback of the type that is asked for, and uses no data.
    unsafe { libc::dl_iterate_phdr(Some(segments), null_mut()) };
}

/// Called for the program, which is static and so the only object.
// SAFETY: only dl_iterate_phdr calls it, with an object that is valid for the time of the call.
unsafe extern "C" fn segments(object: *mut libc::dl_phdr_info, _bytes: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the C library passes a valid object, for the time of the call.
    let object = unsafe { &*object };
    // SAFETY: its program headers are an array of this length, in the program itself.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
        let (Ok(address), Ok(bytes)) = (usize::try_from(header.p_vaddr), usize::try_from(header.p_memsz)) else {
            continue;
        };
        let Ok(base) = usize::try_from(object.dlpi_addr) else { continue };
        let start = base.wrapping_add(address);
        let end = start.saturating_add(bytes) & !(PAGE_BYTES - 1);
        let start = start.next_multiple_of(PAGE_BYTES);
        if let Some(length) = end.checked_sub(start).filter(|&length| length > 0) {
            // SAFETY: whole pages of a segment that is mapped from the program's file and never writable, so that the
            // same bytes come back with the next touch: nobody can write to the file of a program that runs (ETXTBSY).
            unsafe { libc::madvise(with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    #[test]
    fn program_goes_on_without_what_it_gave_back() {
        let resident = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut is_code = false;
            let mut kib = 0;
            for line in smaps.lines() {
                let mut words = line.split_whitespace();
                let first = words.next().unwrap_or_default();
                if !first.ends_with(':') {
                    is_code = words.next() == Some("r-xp") && line.contains("/deps/");
                } else if is_code && first == "Rss:" {
                    kib += words.next().unwrap().parse::<u64>().unwrap();
                }
            }
            kib
        };
        let before = resident();
        super::give_back();
        let after = resident();
        assert!(after < before, "{after} KiB of {before} KiB are mapped");
    }
}
