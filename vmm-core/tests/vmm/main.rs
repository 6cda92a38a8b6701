//! The vmm process on the real /dev/kvm: these tests play the broker, serial and the disks, and the guests are a few
//! bytes of machine code. Where there is no /dev/kvm they fail: nothing here can be tested without.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking"
)]

mod broker;
mod code;
mod disk;

use broker::{Vm, deadline};
use wire::message::{Entry, FromVmm, StopReason, ToVmm};

#[test]
fn guest_that_writes_the_sleep_register_powers_off() {
    // mov dx, 0x600; mov al, 0x34; out dx, al
    let vm = Vm::start(1, &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
    assert_eq!(vm.run_to_the_end(), StopReason::PowerOff);
}

#[test]
fn guest_output_is_in_the_ring_when_the_vmm_has_stopped() {
    // mov dx, 0x3f8; mov al, 'A'; out dx, al; inc al; out dx, al; mov dx, 0x602; mov al, 1; out dx, al
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'A', 0xee, 0xfe, 0xc0, 0xee, 0x66, 0xba, 0x02, 0x06, 0xb0, 0x01, 0xee];
    let mut vm = Vm::start(1, &code);
    assert_eq!(vm.run_to_the_end(), StopReason::Reset);
    assert_eq!(vm.output(), b"AB");
}

#[test]
fn guest_that_resets_by_the_keyboard_controller_ends_with_reset() {
    let vm = Vm::start(2, &[0xb0, 0xfe, 0xe6, 0x64]);
    assert_eq!(vm.run_to_the_end(), StopReason::Reset);
}

#[test]
fn guest_without_an_exception_handler_triple_faults() {
    // ud2
    let vm = Vm::start(2, &[0x0f, 0x0b]);
    assert_eq!(vm.run_to_the_end(), StopReason::TripleFault);
}

#[test]
fn guest_that_halts_with_interrupts_off_is_noticed_when_asked() {
    // mov dx, 0x3f8; mov al, '.'; out dx, al; cli; hlt
    let vm = Vm::start(2, &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xfa, 0xf4]);
    vm.run();
    vm.wait_for_output();
    vm.control.send(&ToVmm::CheckHalted, &[]).unwrap();
    assert_eq!(vm.end(), StopReason::Halted);
}

#[test]
fn guest_that_halts_is_noticed_without_being_asked() {
    let vm = Vm::start(1, &[0xfa, 0xf4]);
    assert_eq!(vm.run_to_the_end(), StopReason::Halted);
}

#[test]
fn guest_that_spins_is_not_halted_and_ends_with_its_broker() {
    // jmp $
    let vm = Vm::start(2, &[0xeb, 0xfe]);
    vm.run();
    vm.control.send(&ToVmm::CheckHalted, &[]).unwrap();
    assert!(vm.control.recv_timeout::<FromVmm>(std::time::Duration::from_millis(1500)).is_err());
    let status = vm.hang_up();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn registers_and_last_exits_are_told_when_asked_and_before_the_end() {
    // mov dx, 0x3f8; mov al, '.'; out dx, al; mov ecx, 0x1234567; jmp $
    let vm = Vm::start(2, &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xb9, 0x67, 0x45, 0x23, 0x01, 0xeb, 0xfe]);
    vm.run();
    vm.wait_for_output();
    vm.control.send(&ToVmm::Dump, &[]).unwrap();
    let (vcpu, first) = vm.registers();
    assert_eq!(vcpu, 0);
    assert!(first.contains("rdx 00000000000003f8"), "{first}");
    assert!(first.contains("port write at 0x3f8: 0x2e (1 bytes)"), "{first}");
    assert_eq!(vm.registers().0, 1);
    let seen = vm.seen();
    let [first, second] = seen.vcpus[..] else { panic!("{seen:?}") };
    assert_eq!((first.vcpu, first.started, first.exits.port_writes, first.exits.total()), (0, true, 1, 1));
    // At the jump to itself, 12 bytes into the code.
    let stands = Some(code::START + 12);
    assert_eq!((first.earlier_counter, first.program_counter), (stands, stands));
    assert_eq!((second.vcpu, second.started, second.exits.total()), (1, false, 0));

    // mov al, 0xfe; out 0x64, al
    let vm = Vm::start(2, &[0xb0, 0xfe, 0xe6, 0x64]);
    vm.run();
    let (vcpu, first) = vm.registers();
    assert_eq!(vcpu, 0);
    assert!(first.contains("port write at 0x64: 0xfe (1 bytes)"), "{first}");
    assert_eq!(vm.registers().0, 1);
    assert_eq!(vm.seen().vcpus.len(), 2);
    assert_eq!(vm.end(), StopReason::Reset);
}

#[test]
fn entry_outside_of_memory_is_refused() {
    let vm = Vm::start(1, &[0xf4]);
    let entry = Entry::X86Long { entry: 1 << 40, boot_params: 0x7000, page_table: 0x9000, gdt: 0x500 };
    vm.control.send(&ToVmm::Run(entry), &[]).unwrap();
    let answer = vm.control.recv_timeout::<FromVmm>(deadline()).unwrap().without_fds().unwrap();
    assert!(matches!(&answer, FromVmm::Failed(why) if why.to_string().contains("entry point")), "{answer:?}");
}

#[test]
fn register_read_is_answered_by_serial() {
    // mov dx, 0x3f9; in al, dx; dec dx; out dx, al; then power off.
    let mut code = vec![0x66, 0xba, 0xf9, 0x03, 0xec, 0x66, 0xff, 0xca, 0xee];
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
    let mut vm = Vm::start(1, &code);
    vm.run();
    vm.answer_register_read(1, b'!');
    assert_eq!(vm.end(), StopReason::PowerOff);
    assert_eq!(vm.output(), b"!");
}

#[test]
fn serial_interrupt_reaches_the_guest_through_the_ioapic() {
    let mut vm = Vm::start(1, &code::wait_for_serial_interrupt());
    vm.run();
    vm.wait_for_output();
    vm.serial_irq.write(1).unwrap();
    assert_eq!(vm.end(), StopReason::PowerOff);
    assert_eq!(vm.output(), b".I");
}

#[test]
fn second_vcpu_starts_by_init_and_sipi() {
    let mut vm = Vm::start(2, &code::start_second_vcpu());
    assert_eq!(vm.run_to_the_end(), StopReason::PowerOff);
    assert_eq!(vm.output(), b"2");
}

#[test]
fn second_vcpu_that_runs_is_not_halted_with_the_first() {
    // The first waits with interrupts off, the second spins: only the broker's end ends that.
    let vm = Vm::start(2, &code::start_spinning_second_vcpu_and_halt());
    vm.run();
    vm.wait_for_output();
    vm.control.send(&ToVmm::CheckHalted, &[]).unwrap();
    assert!(vm.control.recv_timeout::<FromVmm>(std::time::Duration::from_millis(1500)).is_err());
    vm.hang_up();
}

#[test]
fn serial_that_does_not_answer_fails_the_device() {
    let vm = Vm::start(1, &[0x66, 0xba, 0xf9, 0x03, 0xec]);
    vm.run();
    assert!(matches!(vm.end(), StopReason::DeviceFailed { device: 0, .. }));
}

#[test]
fn driver_starts_a_disk_and_notifies_its_queue() {
    let mut vm = Vm::with_disk(1, &disk::driver(), disk::serve);
    assert_eq!(vm.run_to_the_end(), StopReason::PowerOff);
    assert_eq!(vm.output(), [11, 15], "the status after FEATURES_OK and after DRIVER_OK");
    assert_eq!(vm.join_disk(), disk::Served { features: disk::FEATURES, queue_size: 8, kicked: true, stopped: true });
}

#[test]
fn interrupt_of_a_disk_is_looked_at_and_acknowledged_without_leaving_the_guest() {
    let mut vm = Vm::with_disk(1, &disk::driver_that_acknowledges(), disk::serve);
    vm.run();
    vm.registers();
    let exits = vm.seen().vcpus[0].exits;
    // Two letters, and the end.
    assert_eq!((exits.mmio_reads, exits.mmio_writes, exits.port_writes), (0, 0, 3));
    assert_eq!(vm.end(), StopReason::PowerOff);
    assert_eq!(vm.output(), [1, b'v']);
}

#[test]
fn guest_cannot_change_what_it_reads_of_a_disk() {
    let mut vm = Vm::with_disk(1, &disk::driver_that_writes_everywhere(), disk::serve);
    vm.run();
    vm.registers();
    let exits = vm.seen().vcpus[0].exits;
    assert_eq!((exits.mmio_reads, exits.mmio_writes), (0, 0x400));
    assert_eq!(vm.end(), StopReason::PowerOff);
    // A status with all bits leaves out no step, but chooses no feature.
    assert_eq!(vm.output(), [b'v', 1 | 2 | 128]);
}

#[test]
fn disk_process_that_goes_away_ends_the_run() {
    // Notify queue 0; jmp $
    let mut guest = Vec::new();
    code::store(&mut guest, 0xd000_0050, 0);
    guest.extend([0xeb, 0xfe]);
    let vm = Vm::with_disk(1, &guest, disk::leave_when_kicked);
    vm.run();
    assert!(matches!(vm.end(), StopReason::DeviceFailed { device: 1, .. }));
}

#[test]
fn disk_process_that_says_nothing_ends_the_run_before_it_began() {
    let vm = Vm::with_disk(1, &[0xeb, 0xfe], disk::say_nothing);
    assert!(matches!(vm.end(), StopReason::DeviceFailed { device: 1, .. }));
}

#[test]
fn disk_that_stops_needs_a_reset() {
    let mut vm = Vm::with_disk(1, &disk::driver_that_waits_for_needs_reset(), disk::break_at_once);
    assert_eq!(vm.run_to_the_end(), StopReason::PowerOff);
    assert_eq!(vm.output(), [11, 3], "the status after FEATURES_OK, the interrupt status at the end");
}

#[test]
fn disk_process_without_version_1_is_refused() {
    let vm = Vm::with_disk(1, &[0xeb, 0xfe], disk::offer_no_version_1);
    let reason = vm.end();
    let StopReason::DeviceFailed { device: 1, why } = &reason else { panic!("{reason:?}") };
    assert!(why.to_string().contains("VIRTIO_F_VERSION_1"), "{why}");
}
