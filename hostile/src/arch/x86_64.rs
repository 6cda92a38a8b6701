//! x86_64: its old system calls, its ways into the kernel that are not of 64 bits, and KVM's requests.
#![allow(unsafe_code, reason = "the 32-bit way into the kernel is an instruction")]

use nix::errno::Errno;
use std::ffi::c_long;

/// open(2).
pub const OPEN: Option<c_long> = Some(libc::SYS_open);
/// creat(2).
pub const CREAT: Option<c_long> = Some(libc::SYS_creat);
/// stat(2).
pub const STAT: Option<c_long> = Some(libc::SYS_stat);
/// access(2).
pub const ACCESS: Option<c_long> = Some(libc::SYS_access);
/// readlink(2).
pub const READLINK: Option<c_long> = Some(libc::SYS_readlink);
/// mkdir(2).
pub const MKDIR: Option<c_long> = Some(libc::SYS_mkdir);
/// unlink(2).
pub const UNLINK: Option<c_long> = Some(libc::SYS_unlink);
/// rename(2).
pub const RENAME: Option<c_long> = Some(libc::SYS_rename);
/// fork(2).
pub const FORK: Option<c_long> = Some(libc::SYS_fork);
/// vfork(2).
pub const VFORK: Option<c_long> = Some(libc::SYS_vfork);
/// pipe(2).
pub const PIPE: Option<c_long> = Some(libc::SYS_pipe);
/// dup2(2).
pub const DUP2: Option<c_long> = Some(libc::SYS_dup2);
/// iopl(2).
pub const IOPL: Option<c_long> = Some(libc::SYS_iopl);
/// ioperm(2).
pub const IOPERM: Option<c_long> = Some(libc::SYS_ioperm);
/// `modify_ldt(2)`.
pub const MODIFY_LDT: Option<c_long> = Some(libc::SYS_modify_ldt);
/// uselib(2).
pub const USELIB: Option<c_long> = Some(libc::SYS_uselib);
/// getpgrp(2).
pub const GETPGRP: Option<c_long> = Some(libc::SYS_getpgrp);
/// alarm(2).
pub const ALARM: Option<c_long> = Some(libc::SYS_alarm);
/// The number of getpid(2) in the x32 ABI (asm/unistd.h, `__X32_SYSCALL_BIT`).
pub const X32_GETPID: Option<c_long> = Some(0x4000_0000 | libc::SYS_getpid);
/// The variant of `Entry` (of `wire::message`) that is this architecture's, and its number of words.
pub const ENTRY: (u32, usize) = (0, 4);

/// A system call by the 32-bit way: getpid of i386.
///
/// # Errors
/// The kernel's; that it has no such way is a fault, which ends the process.
pub fn foreign_call() -> Option<Result<usize, Errno>> {
    const GETPID_OF_I386: usize = 20;
    let result: usize;
    // SAFETY: getpid takes no argument and changes no memory; the kernel preserves all registers but rax, and r8 to r11,
    // which are named.
    unsafe {
        std::arch::asm!(
            "int 0x80", inlateout("rax") GETPID_OF_I386 => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    Some(Ok(result))
}

/// The requests that the vCPU threads' row needs.
pub const ROW: [&str; 8] = [
    "KVM_RUN",
    "KVM_SET_SREGS",
    "KVM_SET_REGS",
    "KVM_GET_REGS",
    "KVM_GET_SREGS",
    "KVM_GET_MP_STATE",
    "KVM_GET_VCPU_EVENTS",
    "KVM_SET_GSI_ROUTING",
];

/// KVM's requests (linux/kvm.h of Linux 6.1, and the newer ones up to 6.12 that change memory).
pub const KVM: &[(&str, u32)] = &[
    ("KVM_GET_API_VERSION", 0x0000_ae00),
    ("KVM_CREATE_VM", 0x0000_ae01),
    ("KVM_GET_MSR_INDEX_LIST", 0xc004_ae02),
    ("KVM_CHECK_EXTENSION", 0x0000_ae03),
    ("KVM_GET_VCPU_MMAP_SIZE", 0x0000_ae04),
    ("KVM_GET_SUPPORTED_CPUID", 0xc008_ae05),
    ("KVM_S390_ENABLE_SIE", 0x0000_ae06),
    ("KVM_GET_EMULATED_CPUID", 0xc008_ae09),
    ("KVM_GET_MSR_FEATURE_INDEX_LIST", 0xc004_ae0a),
    ("KVM_SET_MEMORY_REGION", 0x4018_ae40),
    ("KVM_CREATE_VCPU", 0x0000_ae41),
    ("KVM_GET_DIRTY_LOG", 0x4010_ae42),
    ("KVM_SET_MEMORY_ALIAS", 0x4020_ae43),
    ("KVM_SET_NR_MMU_PAGES", 0x0000_ae44),
    ("KVM_GET_NR_MMU_PAGES", 0x0000_ae45),
    ("KVM_SET_USER_MEMORY_REGION", 0x4020_ae46),
    ("KVM_SET_TSS_ADDR", 0x0000_ae47),
    ("KVM_SET_IDENTITY_MAP_ADDR", 0x4008_ae48),
    ("KVM_S390_UCAS_MAP", 0x4018_ae50),
    ("KVM_S390_UCAS_UNMAP", 0x4018_ae51),
    ("KVM_S390_VCPU_FAULT", 0x4008_ae52),
    ("KVM_CREATE_IRQCHIP", 0x0000_ae60),
    ("KVM_IRQ_LINE", 0x4008_ae61),
    ("KVM_GET_IRQCHIP", 0xc208_ae62),
    ("KVM_SET_IRQCHIP", 0x8208_ae63),
    ("KVM_CREATE_PIT", 0x0000_ae64),
    ("KVM_GET_PIT", 0xc048_ae65),
    ("KVM_SET_PIT", 0x8048_ae66),
    ("KVM_IRQ_LINE_STATUS", 0xc008_ae67),
    ("KVM_ASSIGN_PCI_DEVICE", 0x8040_ae69),
    ("KVM_SET_GSI_ROUTING", 0x4008_ae6a),
    ("KVM_ASSIGN_DEV_IRQ", 0x4040_ae70),
    ("KVM_REINJECT_CONTROL", 0x0000_ae71),
    ("KVM_DEASSIGN_PCI_DEVICE", 0x4040_ae72),
    ("KVM_ASSIGN_SET_MSIX_NR", 0x4008_ae73),
    ("KVM_ASSIGN_SET_MSIX_ENTRY", 0x4010_ae74),
    ("KVM_DEASSIGN_DEV_IRQ", 0x4040_ae75),
    ("KVM_IRQFD", 0x4020_ae76),
    ("KVM_CREATE_PIT2", 0x4040_ae77),
    ("KVM_SET_BOOT_CPU_ID", 0x0000_ae78),
    ("KVM_IOEVENTFD", 0x4040_ae79),
    ("KVM_XEN_HVM_CONFIG", 0x4038_ae7a),
    ("KVM_SET_CLOCK", 0x4030_ae7b),
    ("KVM_GET_CLOCK", 0x8030_ae7c),
    ("KVM_RUN", 0x0000_ae80),
    ("KVM_GET_REGS", 0x8090_ae81),
    ("KVM_SET_REGS", 0x4090_ae82),
    ("KVM_GET_SREGS", 0x8138_ae83),
    ("KVM_SET_SREGS", 0x4138_ae84),
    ("KVM_TRANSLATE", 0xc018_ae85),
    ("KVM_INTERRUPT", 0x4004_ae86),
    ("KVM_GET_MSRS", 0xc008_ae88),
    ("KVM_SET_MSRS", 0x4008_ae89),
    ("KVM_SET_CPUID", 0x4008_ae8a),
    ("KVM_SET_SIGNAL_MASK", 0x4004_ae8b),
    ("KVM_GET_FPU", 0x81a0_ae8c),
    ("KVM_SET_FPU", 0x41a0_ae8d),
    ("KVM_GET_LAPIC", 0x8400_ae8e),
    ("KVM_SET_LAPIC", 0x4400_ae8f),
    ("KVM_SET_CPUID2", 0x4008_ae90),
    ("KVM_GET_CPUID2", 0xc008_ae91),
    ("KVM_TPR_ACCESS_REPORTING", 0xc028_ae92),
    ("KVM_SET_VAPIC_ADDR", 0x4008_ae93),
    ("KVM_S390_INTERRUPT", 0x4010_ae94),
    ("KVM_S390_STORE_STATUS", 0x4008_ae95),
    ("KVM_S390_SET_INITIAL_PSW", 0x4010_ae96),
    ("KVM_S390_INITIAL_RESET", 0x0000_ae97),
    ("KVM_GET_MP_STATE", 0x8004_ae98),
    ("KVM_SET_MP_STATE", 0x4004_ae99),
    ("KVM_NMI", 0x0000_ae9a),
    ("KVM_SET_GUEST_DEBUG", 0x4048_ae9b),
    ("KVM_X86_SETUP_MCE", 0x4008_ae9c),
    ("KVM_X86_GET_MCE_CAP_SUPPORTED", 0x8008_ae9d),
    ("KVM_X86_SET_MCE", 0x4040_ae9e),
    ("KVM_GET_VCPU_EVENTS", 0x8040_ae9f),
    ("KVM_GET_PIT2", 0x8070_ae9f),
    ("KVM_SET_VCPU_EVENTS", 0x4040_aea0),
    ("KVM_SET_PIT2", 0x4070_aea0),
    ("KVM_PPC_GET_PVINFO", 0x4080_aea1),
    ("KVM_GET_DEBUGREGS", 0x8080_aea1),
    ("KVM_SET_TSC_KHZ", 0x0000_aea2),
    ("KVM_SET_DEBUGREGS", 0x4080_aea2),
    ("KVM_GET_TSC_KHZ", 0x0000_aea3),
    ("KVM_ENABLE_CAP", 0x4068_aea3),
    ("KVM_ASSIGN_SET_INTX_MASK", 0x4040_aea4),
    ("KVM_GET_XSAVE", 0x9000_aea4),
    ("KVM_SIGNAL_MSI", 0x4020_aea5),
    ("KVM_SET_XSAVE", 0x5000_aea5),
    ("KVM_GET_XCRS", 0x8188_aea6),
    ("KVM_PPC_GET_SMMU_INFO", 0x8250_aea6),
    ("KVM_SET_XCRS", 0x4188_aea7),
    ("KVM_PPC_ALLOCATE_HTAB", 0xc004_aea7),
    ("KVM_DIRTY_TLB", 0x4010_aeaa),
    ("KVM_ARM_SET_DEVICE_ADDR", 0x4010_aeab),
    ("KVM_SET_ONE_REG", 0x4010_aeac),
    ("KVM_KVMCLOCK_CTRL", 0x0000_aead),
    ("KVM_PPC_RESIZE_HPT_PREPARE", 0x8010_aead),
    ("KVM_PPC_RESIZE_HPT_COMMIT", 0x8010_aeae),
    ("KVM_GET_REG_LIST", 0xc008_aeb0),
    ("KVM_S390_MEM_OP", 0x4040_aeb1),
    ("KVM_SET_PMU_EVENT_FILTER", 0x4020_aeb2),
    ("KVM_S390_GET_SKEYS", 0x4040_aeb2),
    ("KVM_PPC_SVM_OFF", 0x0000_aeb3),
    ("KVM_S390_SET_SKEYS", 0x4040_aeb3),
    ("KVM_S390_IRQ", 0x4048_aeb4),
    ("KVM_S390_SET_IRQ_STATE", 0x4020_aeb5),
    ("KVM_S390_GET_IRQ_STATE", 0x4020_aeb6),
    ("KVM_SMI", 0x0000_aeb7),
    ("KVM_S390_GET_CMMA_BITS", 0xc020_aeb8),
    ("KVM_S390_SET_CMMA_BITS", 0x4020_aeb9),
    ("KVM_MEMORY_ENCRYPT_OP", 0xc008_aeba),
    ("KVM_MEMORY_ENCRYPT_REG_REGION", 0x8010_aebb),
    ("KVM_MEMORY_ENCRYPT_UNREG_REGION", 0x8010_aebc),
    ("KVM_HYPERV_EVENTFD", 0x4018_aebd),
    ("KVM_GET_NESTED_STATE", 0xc080_aebe),
    ("KVM_SET_NESTED_STATE", 0x4080_aebf),
    ("KVM_CLEAR_DIRTY_LOG", 0xc018_aec0),
    ("KVM_GET_SUPPORTED_HV_CPUID", 0xc008_aec1),
    ("KVM_ARM_VCPU_FINALIZE", 0x4004_aec2),
    ("KVM_S390_NORMAL_RESET", 0x0000_aec3),
    ("KVM_S390_CLEAR_RESET", 0x0000_aec4),
    ("KVM_S390_PV_COMMAND", 0xc020_aec5),
    ("KVM_X86_SET_MSR_FILTER", 0x4188_aec6),
    ("KVM_RESET_DIRTY_RINGS", 0x0000_aec7),
    ("KVM_XEN_HVM_GET_ATTR", 0xc048_aec8),
    ("KVM_XEN_HVM_SET_ATTR", 0x4048_aec9),
    ("KVM_XEN_VCPU_GET_ATTR", 0xc048_aeca),
    ("KVM_XEN_VCPU_SET_ATTR", 0x4048_aecb),
    ("KVM_GET_SREGS2", 0x8140_aecc),
    ("KVM_SET_SREGS2", 0x4140_aecd),
    ("KVM_GET_STATS_FD", 0x0000_aece),
    ("KVM_GET_XSAVE2", 0x9000_aecf),
    ("KVM_XEN_HVM_EVTCHN_SEND", 0x400c_aed0),
    ("KVM_S390_PV_CPU_COMMAND", 0xc020_aed0),
    ("KVM_S390_ZPCI_OP", 0x4048_aed1),
    ("KVM_CREATE_DEVICE", 0xc00c_aee0),
    ("KVM_SET_DEVICE_ATTR", 0x4018_aee1),
    ("KVM_GET_DEVICE_ATTR", 0x4018_aee2),
    ("KVM_HAS_DEVICE_ATTR", 0x4018_aee3),
    ("KVM_SET_USER_MEMORY_REGION2", 0x40a0_ae49),
    ("KVM_SET_MEMORY_ATTRIBUTES", 0x4020_aed2),
    ("KVM_CREATE_GUEST_MEMFD", 0xc040_aed4),
    ("KVM_PRE_FAULT_MEMORY", 0xc040_aed5),
];
