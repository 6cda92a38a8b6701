//! The guest of the benchmarks: prints one byte on COM1 with its first instructions, then does what `end=` says.
//!
//! It can be entered by PVH and by the 64-bit boot protocol; the same instructions serve both. It needs no stack, no
//! page tables of its own and no device, so that what is measured is the machine around it.
#![no_std]
#![no_main]

mod pvh;

use core::arch::global_asm;

global_asm!(
    r#"
// esi: the command line, below 4 GiB. Words are looked for without regard to where they begin.
.macro obey
2:  mov eax, [esi]
    cmp eax, 0x3d646e65         // "end="
    je 3f
    inc esi
    test al, al
    jne 2b
3:  mov al, [esi + 4]
    cmp al, 0x72                // r: the reset port of Bulkhead (`layout::RESET_PORT`)
    je 4f
    cmp al, 0x74                // t: an exception without a handler for it, nor for what follows
    je 5f
    cmp al, 0x68                // h: stopped for good
    je 6f
7:  sti                         // else: idle, with nothing that could interrupt it
    hlt
    jmp 7b
4:  mov dx, 0x602
    mov al, 1
    out dx, al
6:  cli
    hlt
    jmp 6b
5:  mov esp, offset nothing
    lidt [esp]
    ud2
.endm

.macro greet
    mov dx, 0x3f8
    mov al, 0x42
    out dx, al
.endm

.section .text.boot, "ax"
.code64
.global _start
_start:
    greet
    mov esi, [rsi + 0x228]      // cmd_line_ptr (Linux x86 boot protocol)
    obey

.code32
.global pvh_start
pvh_start:
    greet
    mov esi, [ebx + 24]         // cmdline_paddr (Xen "x86/HVM direct boot ABI")
    obey

.balign 16
nothing:
    .quad 0, 0
"#
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
