//! virtio-blk by a driver that breaks every rule that we know (virtio 1.2 §2.7, §5.2.6).

use crate::block::{
    Disk, IN, NOWHERE, OK, OUT, data_address, good_table, header, status, status_address, table, table_address,
};
use crate::virtio::{Descriptor, Device, INDIRECT, NEXT, SIZE, STATUS, WRITE};
use crate::{Outcome, console};

/// How long an answer is waited for that may not come.
const SILENCE_MS: u64 = 300;

/// Ways to break a request. Each ends with a status that is not OK, or with a device that waits for its reset; either
/// way nothing else happens, and after the reset the disk is as before.
pub(crate) fn run(n: u8, wanted: u64) -> Outcome {
    for case in 0..22 {
        let mut disk = Disk::start(n, wanted)?;
        break_rules(&mut disk.device, case);
        disk.device.notify();
        let answered = disk.device.wait(1, SILENCE_MS);
        let result = status(0);
        console::text("case ");
        console::hex(case);
        console::text(if answered { " answered " } else { " silent " });
        console::hex(u64::from(result));
        console::text(" device ");
        console::hex(u64::from(disk.device.read(STATUS)));
        console::text("\n");
        if answered && result == OK {
            return Err("a malformed request got status 0");
        }
        Disk::start(n, wanted)?.check(2)?;
    }
    Ok(())
}

fn break_rules(device: &mut Device, case: u64) {
    let head = header(0, IN, 1);
    let write = || header(0, OUT, 1);
    let (data, state) = (data_address(0), status_address(0));
    let good_head = (head, 16, 0);
    let good_data = (data, 512, WRITE);
    let good_status = (state, 1, WRITE);
    good_table();
    header(0, IN, 1);
    match case {
        0 => device.chain(0, &[(NOWHERE, 16, 0), good_data, good_status]),
        1 => device.chain(0, &[(head, 8, 0), good_data, good_status]),
        2 => device.chain(0, &[good_head]),
        3 => device.chain(0, &[good_head, good_data, (state, 1, 0)]),
        4 => device.chain(0, &[good_head, (data, 512, 0), good_status]),
        5 => device.chain(0, &[(write(), 16, 0), good_data, good_status]),
        6 => device.chain(0, &[good_head, (NOWHERE, 512, WRITE), good_status]),
        7 => device.chain(0, &[good_head, good_data, (NOWHERE, 1, WRITE)]),
        8 => device.chain(0, &[good_head, good_data, (state, 0, WRITE)]),
        9 => device.chain(0, &[good_head, (data, u32::MAX, WRITE), good_status]),
        10 => device.chain(0, &[good_head, (u64::MAX - 100, 512, WRITE), good_status]),
        11 => device.describe(0, Descriptor { address: head, length: 16, flags: NEXT, next: 0 }),
        12 => device.describe(0, Descriptor { address: head, length: 16, flags: NEXT, next: 999 }),
        13 => device.describe(0, Descriptor { address: head, length: 16, flags: NEXT, next: u16::MAX }),
        14 => device.chain(0, &[(table_address(), 47, INDIRECT)]),
        15 => device.chain(0, &[(table_address(), 0, INDIRECT)]),
        16 => device.chain(0, &[(NOWHERE, 48, INDIRECT)]),
        17 => {
            table(1, Descriptor { address: data, length: 512, flags: NEXT | WRITE, next: 700 });
            device.chain(0, &[(table_address(), 48, INDIRECT)]);
        }
        18 => {
            table(0, Descriptor { address: table_address(), length: 48, flags: INDIRECT, next: 0 });
            device.chain(0, &[(table_address(), 48, INDIRECT)]);
        }
        19 => device.describe(0, Descriptor { address: head, length: 16, flags: WRITE, next: 0 }),
        20 => {
            device.offer(SIZE + 5);
            return;
        }
        _ => {
            device.jump(SIZE + 9);
            return;
        }
    }
    device.offer(0);
}
