//! A vCPU: how it enters a guest, what its exits mean, and whether it has stopped for good.
//!
//! The guest is distrusted: every exit is answered, and the ones that KVM cannot go on from end the run with a sentence.

use super::layout::{SERIAL_PORTS, SERIAL_START};
use super::machine::{MachineError, Platform};
use super::regs::{self, Look, Stillness};
use crate::vmm::crew::{Rest, kvm_error};
use crate::vmm::devices::Devices;
use crate::vmm::exit::internal_error;
use crate::vmm::kick::ImmediateExit;
use crate::vmm::trace::{Exit, Trace, register_lines};
use kvm_bindings::{KVM_MP_STATE_STOPPED, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::Text;
use wire::message::{Entry, Exits, StopReason};

/// A vCPU that never sleeps takes at least this part of the time between two looks, however busy the host is.
const SPINNING_PART: u32 = 10;

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
    trace: Trace,
    last_look: Option<TimedLook>,
    _platform: Arc<Platform>,
}

/// A look at a vCPU with masked interrupts.
#[derive(Debug)]
struct TimedLook {
    look: Look,
    at: Instant,
    cpu_time: Duration,
}

impl Vcpu {
    /// Vcpu `index` of a machine, set up.
    ///
    /// # Errors
    /// Never; other architectures have reasons.
    pub fn new(index: u8, fd: VcpuFd, platform: Arc<Platform>) -> Result<Self, MachineError> {
        let mut fd = ManuallyDrop::new(fd);
        let exit = ImmediateExit::of(&mut fd);
        Ok(Self { index, fd, exit, trace: Trace::new(), last_look: None, _platform: platform })
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

    /// Sets the registers with which the guest begins. All but the first vCPU wait for PSCI CPU_ON in KVM instead.
    ///
    /// # Errors
    /// When KVM refuses them.
    pub fn enter_at(&mut self, entry: &Entry) -> Result<(), StopReason> {
        if self.index != 0 {
            return Ok(());
        }
        for (register, value) in regs::registers(entry).map_err(kvm_error)? {
            let set = self.fd.set_one_reg(register, &value.to_le_bytes());
            set.map_err(|error| kvm_error(format_args!("KVM refused the registers of the entry state: {error}")))?;
        }
        Ok(())
    }

    /// Runs the guest until it leaves for something, and does that.
    ///
    /// # Errors
    /// The end of the run.
    pub fn run(&mut self, devices: &Devices) -> Result<Step, StopReason> {
        let refused = match self.fd.run() {
            Ok(exit) => match exit {
                VcpuExit::MmioRead(address, data) => {
                    read(devices, address, data)?;
                    self.trace.add(Exit::MmioRead, address, data);
                    return Ok(Step::Handled);
                }
                VcpuExit::MmioWrite(address, data) => {
                    self.trace.add(Exit::MmioWrite, address, data);
                    return write(devices, address, data).map(|()| Step::Handled);
                }
                VcpuExit::Intr => return Ok(Step::Kicked),
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return Err(StopReason::PowerOff),
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return Err(StopReason::Reset),
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => "the guest reported its crash".to_owned(),
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
                // KVM API KVM_CAP_ARM_NISV_TO_USER: what KVM_RUN says without it.
                Errno::ENOSYS => "the guest used an instruction on a device that KVM cannot emulate".to_owned(),
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
        self.register(regs::PC)
    }

    /// Where the guest is, for a sentence.
    fn place(&self) -> String {
        self.program_counter().map_or_else(String::new, |pc| format!(", at pc {pc:#x}"))
    }

    fn register(&self, id: u64) -> Option<u64> {
        let mut value = [0; 8];
        self.fd.get_one_reg(id, &mut value).ok()?;
        Some(u64::from_le_bytes(value))
    }

    /// How it stands between two [`Vcpu::run`]; what KVM does not tell counts as busy.
    ///
    /// KVM does not show a `wfi`, and Linux idles in one with interrupts masked as well. So a vCPU is stuck only when it
    /// has its interrupts masked, has not changed anything since the last look and yet took processor time: the `b .` in
    /// which the kernel leaves the vCPU that halted the system. All others may then be idle for all that it matters.
    #[must_use]
    pub fn rest(&mut self) -> Rest {
        let Ok(state) = self.fd.get_mp_state() else { return Rest::Busy };
        if state.mp_state == KVM_MP_STATE_STOPPED {
            self.last_look = None;
            return Rest::Off;
        }
        let Some(now) = self.look() else {
            self.last_look = None;
            return Rest::Busy;
        };
        let rest = self.last_look.as_ref().map_or(Rest::Busy, |before| match now.look.since(&before.look) {
            Stillness::Moves => Rest::Busy,
            Stillness::Waits => Rest::Idle,
            Stillness::Stands => {
                let time = now.at.saturating_duration_since(before.at);
                let worked = now.cpu_time.saturating_sub(before.cpu_time);
                if worked > time / SPINNING_PART { Rest::Stuck } else { Rest::Idle }
            }
        });
        self.last_look = Some(now);
        rest
    }

    /// Its registers, if interrupts are masked and KVM tells them.
    fn look(&self) -> Option<TimedLook> {
        let pstate = self.register(regs::PSTATE).filter(|&pstate| Look::is_masked(pstate))?;
        let pc = self.register(regs::PC)?;
        let others = (0..regs::GENERAL).map(regs::general).chain([regs::SP_EL1]);
        let others = others.map(|id| self.register(id)).collect::<Option<Vec<_>>>()?;
        let cpu_time = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok()?);
        Some(TimedLook { look: Look { pc, pstate, others }, at: Instant::now(), cpu_time })
    }

    /// Its registers and last exits, for a person.
    #[must_use]
    pub fn dump(&self) -> Vec<Text> {
        let registers = regs::dumped().filter_map(|(name, id)| Some((name, self.register(id)?)));
        let mut lines = register_lines(&registers.collect::<Vec<_>>());
        if self.fd.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_STOPPED) {
            lines.insert(0, Text::truncated("switched off, by itself or with the machine"));
        }
        lines.extend(self.trace.lines());
        lines
    }
}

/// The guest reads memory that is no RAM.
fn read(devices: &Devices, address: u64, data: &mut [u8]) -> Result<(), StopReason> {
    match (serial_register(address), data) {
        (Some(offset), [byte, rest @ ..]) => {
            rest.fill(0);
            *byte = devices.serial.read(offset)?;
        }
        (_, data) => devices.mmio_read(address, data),
    }
    Ok(())
}

/// The guest writes memory that is no RAM.
fn write(devices: &Devices, address: u64, data: &[u8]) -> Result<(), StopReason> {
    match (serial_register(address), data) {
        (Some(offset), [byte, ..]) => devices.serial.write(offset, *byte),
        (_, data) => devices.mmio_write(address, data),
    }
}

/// The register of serial at an address. Whatever the width of an access, it is one to the first register.
fn serial_register(address: u64) -> Option<u8> {
    let offset = address.checked_sub(SERIAL_START).filter(|&offset| offset < SERIAL_PORTS)?;
    u8::try_from(offset).ok()
}
