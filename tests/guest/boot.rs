//! From the machine's entry states to `guest_main`: 64-bit boot protocol, PVH, and the start of a second vCPU.
//!
//! Trusts the machine to be what the boot protocols say; that is what is being tested.

use core::arch::global_asm;

/// Where the second vCPU starts in real mode: page 8, which the machine layout leaves free.
pub const TRAMPOLINE: usize = 0x8000;

// Identity mapping of the first 8 GiB in 2 MiB pages, made by the assembler so that no code has to run for it.
global_asm!(
    r#"
.section .data.tables, "aw"
.balign 4096
.global pml4
pml4:
    .quad pdpt + 3
    .fill 511, 8, 0
pdpt:
    .set i, 0
    .rept 8
    .quad directories + i * 4096 + 3
    .set i, i + 1
    .endr
    .fill 504, 8, 0
directories:
    .set i, 0
    .rept 4096
    .quad (i << 21) + 0x83
    .set i, i + 1
    .endr

.balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
gdt_end:

.section .bss.stacks, "aw", @nobits
.balign 4096
    .skip 32768
stack_top:
ap_stacks:
    .skip 4096 * 33
"#
);

global_asm!(
    r#"
.section .text.boot, "ax"
.code64
.global _start
_start:
    cli
    cld
    lea rsp, [rip + stack_top]
    lea rax, [rip + pml4]
    mov cr3, rax
    xor edi, edi
    call guest_main

.code32
.global pvh_start
pvh_start:
    cli
    cld
    mov esi, ebx
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    lgdt [gdt_pointer]
    mov eax, cr0
    or eax, 0x80000001
    mov cr0, eax
    .byte 0xea
    .long pvh_long
    .word 8
.code64
pvh_long:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    lea rsp, [rip + stack_top]
    mov edi, 1
    call guest_main

gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

.code16
.global ap_start
ap_start:
    cli
    cld
    xor ax, ax
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16
    .word 0x8000 + ap_gdt_pointer - ap_start
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long 0x8000 + ap_protected - ap_start
    .word 0x18
.code32
ap_protected:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xea
    .long ap_long
    .word 8
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
.global ap_end
ap_end:
.code64
ap_long:
    mov edi, 0xfee00020
    mov edi, [rdi]
    shr edi, 24
    mov eax, edi
    and eax, 31
    inc eax
    shl eax, 12
    lea rsp, [rip + ap_stacks]
    add rsp, rax
    call ap_main
"#
);

// One stub of 16 bytes for each vector; exceptions without an error code get a 0 in its place.
global_asm!(
    r#"
.section .text.boot, "ax"
.balign 16
.global isr_stubs
isr_stubs:
    .set i, 0
    .rept 80
    .balign 16
    .if (i == 8) || ((i >= 10) && (i <= 14)) || (i == 17) || (i == 21) || (i == 29) || (i == 30)
    .else
    push 0
    .endif
    push i
    jmp isr_common
    .set i, i + 1
    .endr

isr_common:
    push rbp
    mov rbp, rsp
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    mov rdi, [rbp + 8]
    mov rsi, [rbp + 16]
    mov rdx, [rbp + 24]
    and rsp, -16
    cld
    call isr_handler
    lea rsp, [rbp - 72]
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    pop rbp
    add rsp, 16
    iretq

.section .text.memory, "ax"
// The compiled core library names it; with panic=abort nothing calls it.
.global rust_eh_personality
rust_eh_personality:
    ud2
.global memcpy
.global memmove
.global memset
.global memcmp
.global bcmp
memmove:
    mov rcx, rdi
    sub rcx, rsi
    cmp rcx, rdx
    jb 2f
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret
2:
    mov rax, rdi
    mov rcx, rdx
    lea rdi, [rdi + rdx - 1]
    lea rsi, [rsi + rdx - 1]
    std
    rep movsb
    cld
    ret
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret
bcmp:
memcmp:
    xor eax, eax
3:
    test rdx, rdx
    je 4f
    movzx eax, byte ptr [rdi]
    movzx ecx, byte ptr [rsi]
    inc rdi
    inc rsi
    dec rdx
    sub eax, ecx
    je 3b
4:
    ret
"#
);

/// What the boot protocol passed.
#[derive(Clone, Copy)]
pub struct BootInfo {
    pvh: bool,
    address: u64,
}

/// A stretch of the memory map.
#[derive(Clone, Copy)]
pub struct Region {
    pub start: u64,
    pub bytes: u64,
    pub kind: u32,
}

/// The start of a PVH `hvm_start_info`.
const PVH_MAGIC: u32 = 0x336e_c578;

fn read<T: Copy>(address: u64) -> T {
    // SAFETY: the boot protocol puts its structures into identity-mapped RAM.
    unsafe { (address as *const T).read_unaligned() }
}

impl BootInfo {
    pub fn new(pvh: bool, address: u64) -> Self {
        Self { pvh, address }
    }

    pub fn is_pvh(self) -> bool {
        self.pvh
    }

    /// Whether the structure carries the mark of its protocol.
    pub fn is_valid(self) -> bool {
        if self.pvh {
            read::<u32>(self.address) == PVH_MAGIC
        } else {
            read::<u32>(self.address + 0x202) == u32::from_le_bytes(*b"HdrS") || read::<u8>(self.address + 0x1e8) > 0
        }
    }

    pub fn command_line(self) -> &'static [u8] {
        let start: u64 = if self.pvh {
            read(self.address + 24)
        } else {
            u64::from(read::<u32>(self.address + 0x228)) | u64::from(read::<u32>(self.address + 0xc8)) << 32
        };
        let mut length = 0;
        while start != 0 && length < 2048 && read::<u8>(start + length) != 0 {
            length += 1;
        }
        // SAFETY: the bytes up to the NUL were just read, and nothing writes to them.
        unsafe { core::slice::from_raw_parts(start as *const u8, length as usize) }
    }

    pub fn region(self, n: u64) -> Option<Region> {
        if self.pvh {
            let entry = read::<u64>(self.address + 40) + 24 * n;
            let there = n < u64::from(read::<u32>(self.address + 48));
            there.then(|| Region { start: read(entry), bytes: read(entry + 8), kind: read(entry + 16) })
        } else {
            let entry = self.address + 0x2d0 + 20 * n;
            let there = n < u64::from(read::<u8>(self.address + 0x1e8));
            there.then(|| Region { start: read(entry), bytes: read(entry + 8), kind: read(entry + 16) })
        }
    }
}
