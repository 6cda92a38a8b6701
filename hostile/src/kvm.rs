//! KVM's requests, on whatever a process holds. The vCPU threads have a few of them in their row; everybody else has none.

use crate::Seat;
use crate::arch::{KVM, ROW};
use crate::attempt::{Act, Arg, Attempt, Done};
use crate::held::{Held, Kind};
use crate::raw;

const GROUP: &str = "KVM";
/// Those who hold a virtual machine.
const VMM: &[Seat] = &[Seat::VmmControl, Seat::VmmVcpu];

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    let count = KVM.len();
    for (word, kind, on) in [("vm", Kind::Vm, "the virtual machine"), ("vcpu", Kind::Vcpu, "a vCPU")] {
        for (name, request) in KVM {
            // What the row needs is no attempt where it belongs, but it is one on the other descriptor.
            let belongs = ROW.contains(name) && (*name == "KVM_SET_GSI_ROUTING") == (kind == Kind::Vm);
            let seats = if belongs { &[Seat::VmmControl] } else { VMM };
            let row = match ROW.contains(name) {
                true => format!("each of the {} that the row needs, on {on} where it does not belong", ROW.len()),
                false => format!("each of KVM's {count} requests but those, on {on}"),
            };
            all.push(Attempt::new(GROUP, &format!("{word}-{name}"), &row, call(Arg::Fd(kind), *request)).by(seats));
        }
    }
    for (name, request) in KVM {
        let row = format!("each of KVM's {count} requests, on one of its descriptors after another");
        let seats = &[Seat::Loader, Seat::Serial, Seat::VirtioBlk, Seat::Inspector];
        all.push(Attempt::new(GROUP, name, &row, call(Arg::Nth(*request as usize & 0xff), *request)).by(seats));
    }
    let row = "find an open /dev/kvm among its descriptors";
    all.push(Attempt::new(GROUP, "dev-kvm", row, Act::Do(find_system)));
    all
}

fn call(fd: Arg, request: u32) -> Act {
    Act::Call(Some(libc::SYS_ioctl), vec![fd, Arg::Number(request as usize), Arg::Scratch])
}

/// `KVM_GET_API_VERSION`, which only /dev/kvm itself answers, on one descriptor after another: the first call is fatal.
fn find_system(held: &Held) -> Done {
    let mut last = Done::NotThere;
    for index in 0..held.len() {
        last = raw::call(libc::SYS_ioctl, [held.nth(index), 0xae00, 0, 0, 0, 0]).into();
        if matches!(last, Done::Succeeded(_)) {
            break;
        }
    }
    last
}
