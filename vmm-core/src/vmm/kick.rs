//! Getting a vCPU thread out of `KVM_RUN`, without a window in which the kick is lost.
//!
//! KVM API, `struct kvm_run`, `immediate_exit`: the kicker sets the byte and then sends a signal. A vCPU that has not
//! entered yet sees the byte, one that has is interrupted by the signal. The vCPU clears the byte before it looks for
//! the reason of the kick, so that a kick after the look stays visible to the next `KVM_RUN`.

#![allow(unsafe_code, reason = "a signal handler, and a byte that is shared with another thread and the kernel")]

use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use nix::sys::pthread::{Pthread, pthread_kill};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU8, Ordering};

/// The signal of a kick. Its only effect is that a system call returns.
const KICK: Signal = Signal::SIGUSR1;

extern "C" fn do_nothing(_signal: nix::libc::c_int) {}

/// Makes kicks harmless to the process. To be called before the first vCPU thread starts.
///
/// # Errors
/// When the handler cannot be installed.
pub fn install_handler() -> Result<(), Errno> {
    // Without SA_RESTART: the interrupted call must return.
    let action = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, which is async-signal-safe, and no other code of this process uses the signal.
    unsafe { sigaction(KICK, &action) }.map(|_previous| ())
}

/// Lets kicks through to the calling thread, whatever signal mask the process has inherited.
///
/// # Errors
/// When the mask cannot be changed.
pub fn accept_kicks() -> Result<(), Errno> {
    let mut kicks = SigSet::empty();
    kicks.add(KICK);
    kicks.thread_unblock()
}

/// The byte that makes the next `KVM_RUN` of a vCPU return at once.
#[derive(Debug, Clone, Copy)]
pub struct ImmediateExit(&'static AtomicU8);

impl ImmediateExit {
    /// The byte of `vcpu`, which is never dropped: its mapping of `kvm_run` lasts as long as the process.
    pub fn of(vcpu: &mut ManuallyDrop<VcpuFd>) -> Self {
        let byte = &raw mut vcpu.get_kvm_run().immediate_exit;
        // SAFETY: the byte lies in the mapping of `kvm_run`, which only dropping the `VcpuFd` would unmap, and a
        // `ManuallyDrop` that nobody drops is never dropped; from here on all of this process access it atomically.
        Self(unsafe { AtomicU8::from_ptr(byte) })
    }

    /// Undoes a kick; to be called before looking for its reason.
    pub fn clear(self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// Kicks one vCPU thread.
#[derive(Debug)]
pub struct Kicker {
    exit: ImmediateExit,
    thread: Pthread,
}

impl Kicker {
    /// The kicker of `thread`, which runs the vCPU of `exit` and lives as long as the process.
    #[must_use]
    pub fn new(exit: ImmediateExit, thread: Pthread) -> Self {
        Self { exit, thread }
    }

    /// Makes the vCPU thread leave `KVM_RUN`, or not enter it, and look around.
    pub fn kick(&self) {
        self.exit.0.store(1, Ordering::SeqCst);
        // The thread never ends before the process, so that this cannot fail.
        pthread_kill(self.thread, KICK).unwrap_or(());
    }
}
