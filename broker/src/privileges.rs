//! Gives up what the broker does not need any more once everything is started and checked.
//!
//! Kept: the user id, by which it may signal its children (it owns their user namespaces, so no capability is needed),
//! and its open descriptors. Given up: every capability, the bounding set, and any privilege by exec.
#![allow(unsafe_code, reason = "capset and PR_CAPBSET_DROP have no safe wrapper")]

use nix::errno::Errno;

/// Gives up what no program that the broker would execute could have: its bounding set. Nothing that is left to do takes it.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
pub(crate) fn empty_bounding_set() -> Result<(), Errno> {
    let none: libc::c_ulong = 0;
    for capability in 0.. {
        let capability: libc::c_ulong = capability;
        // SAFETY: this prctl takes integers only.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, none, none, none) };
        match Errno::result(dropped) {
            Ok(_) => {}
            // EINVAL: past the last one. EPERM: an ordinary user, who has none anyway.
            Err(Errno::EINVAL | Errno::EPERM) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Gives up all capabilities and the way back to them.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
pub(crate) fn give_up() -> Result<(), Errno> {
    nix::sys::prctl::set_no_new_privs()?;
    let none: libc::c_ulong = 0;
    let clear = libc::c_ulong::try_from(libc::PR_CAP_AMBIENT_CLEAR_ALL).unwrap_or(0);
    // SAFETY: this prctl takes integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, none, none, none) })?;
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [LINUX_CAPABILITY_VERSION_3, 0];
    let data = [0u32; 6];
    // SAFETY: version 3 (capset(2)) reads a header of two words and two structs of three words each.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}
