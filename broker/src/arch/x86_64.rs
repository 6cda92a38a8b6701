//! x86_64.

use super::Gics;
use kvm_ioctls::Kvm;

/// The kernel's name of the console: the 16550A is COM1.
pub(crate) const CONSOLE: &str = "console=ttyS0";
/// Output before the serial driver is there ("Linux kernel-parameters", earlycon=uart8250).
pub(crate) const EARLYCON: &str = "earlycon=uart8250,io,0x3f8";

/// How the kernel is to restart: by the ACPI reset register, or like a keyboard controller. Left alone, it takes for
/// granted that a machine with hardware-reduced ACPI has EFI, and goes by way of real mode when it has not.
pub(crate) fn restart(acpi: bool) -> Option<&'static str> {
    Some(if acpi { "reboot=acpi" } else { "reboot=kbd" })
}

/// Whether the interrupt controller can be chosen.
pub(crate) const HAS_GIC: bool = false;

/// Which interrupt controllers for guests KVM has; none where there is no choice.
pub(crate) fn gics(_kvm: &Kvm) -> Option<Gics> {
    None
}
