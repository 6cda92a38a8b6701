//! What `KVM_EXIT_INTERNAL_ERROR` says, which kvm-ioctls does not tell.

#![allow(unsafe_code, reason = "kvm_run is a union")]

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::VcpuFd;

/// The internal error with which `vcpu` has just left the guest, as a clause.
pub fn internal_error(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return "KVM met an internal error".to_owned();
    }
    // SAFETY: the exit reason says that this is the member of the union that KVM wrote; it holds integers only.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let what = match internal.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "could not emulate an instruction",
        KVM_INTERNAL_ERROR_SIMUL_EX => "met two exceptions at once",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "failed to deliver an event",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "met an exit that it does not know",
        _ => "met an internal error",
    };
    format!("KVM {what} (suberror {})", internal.suberror)
}
