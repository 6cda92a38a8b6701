//! A vCPU: how it enters a guest, what its exits mean, and whether it has stopped for good.
//!
//! The guest is distrusted: every exit is answered, and the ones that KVM cannot go on from end the run with a sentence.

use super::machine::{MachineError, Platform};
use super::{ports, regs};
use crate::vmm::crew::{Rest, kvm_error};
use crate::vmm::devices::Devices;
use crate::vmm::exit::internal_error;
use crate::vmm::kick::ImmediateExit;
use crate::vmm::trace::{Exit, Trace, register_lines};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::errno::Errno;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use wire::Text;
use wire::message::{Entry, Exits, StopReason};

/// rflags: interrupts are on.
const INTERRUPT_FLAG: u64 = 1 << 9;

/// What a vCPU did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It left the guest for something, which is done.
    Handled,
    /// It left because of a kick, or for nothing.
    Kicked,
}

/// A vCPU. It is never dropped, see [`ImmediateExit`].
#[derive(Debug)]
pub struct Vcpu {
    index: u8,
    fd: ManuallyDrop<VcpuFd>,
    exit: ImmediateExit,
    reset: kvm_sregs,
    trace: Trace,
    platform: Arc<Platform>,
}

impl Vcpu {
    /// Vcpu `index` of a machine.
    ///
    /// # Errors
    /// When KVM refuses to tell its registers.
    pub fn new(index: u8, fd: VcpuFd, platform: Arc<Platform>) -> Result<Self, MachineError> {
        let reset = fd.get_sregs().map_err(|error| MachineError::Kvm("read a vCPU's registers", error))?;
        let mut fd = ManuallyDrop::new(fd);
        let exit = ImmediateExit::of(&mut fd);
        Ok(Self { index, fd, exit, reset, trace: Trace::new(), platform })
    }

    /// Its number; 0 starts the guest.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Its way out of the guest.
    #[must_use]
    pub fn immediate_exit(&self) -> ImmediateExit {
        self.exit
    }

    /// Sets the registers with which the guest begins. All but the first vCPU wait for INIT and SIPI in KVM instead.
    ///
    /// # Errors
    /// When KVM refuses them.
    pub fn enter_at(&mut self, entry: &Entry) -> Result<(), StopReason> {
        if self.index != 0 {
            return Ok(());
        }
        let (regs, sregs) = regs::registers(entry, &self.reset).map_err(kvm_error)?;
        let refused = |error| kvm_error(format_args!("KVM refused the registers of the entry state: {error}"));
        self.fd.set_sregs(&sregs).map_err(refused)?;
        self.fd.set_regs(&regs).map_err(refused)
    }

    /// Runs the guest until it leaves for something, and does that.
    ///
    /// # Errors
    /// The end of the run.
    pub fn run(&mut self, devices: &Devices) -> Result<Step, StopReason> {
        let platform = &self.platform;
        let refused = match self.fd.run() {
            Ok(exit) => match exit {
                VcpuExit::IoIn(port, data) => {
                    ports::read(&devices.serial, port, data)?;
                    self.trace.add(Exit::PortRead, port.into(), data);
                    return Ok(Step::Handled);
                }
                VcpuExit::IoOut(port, data) => {
                    self.trace.add(Exit::PortWrite, port.into(), data);
                    return ports::write(&devices.serial, port, data).map(|()| Step::Handled);
                }
                VcpuExit::MmioRead(address, data) => {
                    if !platform.mmio_read(address, data) {
                        devices.mmio_read(address, data);
                    }
                    self.trace.add(Exit::MmioRead, address, data);
                    return Ok(Step::Handled);
                }
                VcpuExit::MmioWrite(address, data) => {
                    self.trace.add(Exit::MmioWrite, address, data);
                    let is_platform = platform.mmio_write(address, data);
                    if !is_platform.map_err(|error| kvm_error(crate::vmm::chain(&error)))? {
                        devices.mmio_write(address, data)?;
                    }
                    return Ok(Step::Handled);
                }
                // Level-triggered entries are delivered as edges, so that there is nothing to end.
                VcpuExit::IoapicEoi(_) => return Ok(Step::Handled),
                VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => return Ok(Step::Kicked),
                VcpuExit::Shutdown => return Err(StopReason::TripleFault),
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return Err(StopReason::PowerOff),
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return Err(StopReason::Reset),
                VcpuExit::FailEntry(reason, cpu) => {
                    format!("the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})")
                }
                VcpuExit::InternalError => internal_error(&mut self.fd),
                VcpuExit::MemoryFault { gpa, size, .. } => {
                    format!("KVM could not reach {size} bytes of guest memory at {gpa:#x}")
                }
                other => format!("the guest was left for an unexpected reason ({other:?})"),
            },
            Err(error) => match Errno::from_raw(error.errno()) {
                Errno::EINTR | Errno::EAGAIN => return Ok(Step::Kicked),
                errno => format!("KVM_RUN failed: {errno}"),
            },
        };
        Err(kvm_error(format_args!("vCPU {}: {refused}{}", self.index, self.place())))
    }

    /// The exits that it has made.
    #[must_use]
    pub fn exits(&self) -> Exits {
        self.trace.exits()
    }

    /// Where the guest is, if KVM tells it.
    #[must_use]
    pub fn program_counter(&self) -> Option<u64> {
        self.fd.get_regs().ok().map(|regs| regs.rip)
    }

    /// Where the guest is, for a sentence.
    fn place(&self) -> String {
        self.program_counter().map_or_else(String::new, |rip| format!(", at rip {rip:#x}"))
    }

    /// How it stands between two [`Vcpu::run`]; what KVM does not tell counts as busy. A vCPU that waits with interrupts
    /// off and nothing pending is stuck.
    #[must_use]
    pub fn rest(&mut self) -> Rest {
        let Ok(state) = self.fd.get_mp_state() else { return Rest::Busy };
        match state.mp_state {
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Rest::Off,
            KVM_MP_STATE_HALTED => {
                let (Ok(regs), Ok(events)) = (self.fd.get_regs(), self.fd.get_vcpu_events()) else {
                    return Rest::Busy;
                };
                let pending = [events.nmi.pending, events.nmi.injected, events.smi.pending, events.exception.injected];
                if regs.rflags & INTERRUPT_FLAG == 0 && pending == [0; 4] { Rest::Stuck } else { Rest::Busy }
            }
            _ => Rest::Busy,
        }
    }

    /// Its registers and last exits, for a person.
    #[must_use]
    pub fn dump(&self) -> Vec<Text> {
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return vec![Text::truncated("KVM does not tell its registers")];
        };
        let mut lines = register_lines(&regs::named(&regs, &sregs));
        lines.extend(self.trace.lines());
        lines
    }
}
