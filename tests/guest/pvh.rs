//! The ELF note by which a loader finds `pvh_start` (Xen "x86/HVM direct boot ABI", XEN_ELFNOTE_PHYS32_ENTRY).

use core::arch::global_asm;

global_asm!(
    r#"
.section .note.Xen, "a", @note
.balign 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad pvh_start
"#
);
