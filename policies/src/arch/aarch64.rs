//! clone3(2) with a new stack on aarch64, where no wrapper of the C library switches to it.
#![allow(unsafe_code, reason = "a child on a new stack cannot return into the function that made it")]

use std::arch::asm;
use std::ffi::c_void;

/// clone3 with `arguments`, which name a stack: the child calls `entry` with `argument` there. Returns the child's process id to the parent, or
/// a negative error number.
///
/// # Safety
/// `arguments` points to a `clone_args` of `size` bytes with a stack that nothing else uses; what `entry` and `argument` reach is as
/// the child needs it until it is executed or has ended.
pub(crate) unsafe fn clone_on_stack(
    arguments: *const libc::clone_args,
    size: usize,
    entry: extern "C" fn(*const c_void) -> !,
    argument: *const c_void,
) -> i64 {
    let result: i64;
    // SAFETY: by the caller for the call itself. The parent goes on at label 2 with its stack untouched. The child's stack
    // pointer is the aligned top of its stack, as AAPCS64 wants it; `entry` does not return.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk #1",
            "2:",
            entry = in(reg) entry,
            argument = in(reg) argument,
            in("x8") libc::SYS_clone3,
            inlateout("x0") arguments => result,
            in("x1") size,
            options(nostack),
        );
    }
    result
}
