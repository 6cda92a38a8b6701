//! Small guests on the real /dev/kvm: every part of the machine that a guest touches, by `broker run`.
//!
//! The other half of each case is the scenario of the same name in `guest/`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

use std::fmt::Write as _;
use tests::disk;
use tests::guest::Guest;
use tests::machine::Machine;

/// Runs `scenarios` on `machine` and expects all to pass and the guest to power off.
fn pass(machine: Machine, scenarios: &[&str]) -> tests::machine::Ended {
    let ended = machine.run();
    ended.passed(scenarios).expect(0, "guest-poweroff");
    ended
}

#[test]
fn guest_in_long_mode_prints_its_banner() {
    let ended = pass(Machine::new("test=banner"), &["banner"]);
    assert!(ended.console.starts_with("hello from long mode"), "{}", ended.story());
    assert!(ended.report["first_console_byte_ms"].is_u64(), "{}", ended.story());
    let received = ended.report["console"]["received_bytes"].as_u64().unwrap();
    assert_eq!(received, "hello from long mode\nPASS banner\n".len() as u64);
}

#[test]
fn guest_by_pvh_prints_its_banner() {
    let ended = pass(Machine::of(Guest::Pvh, "test=banner"), &["banner"]);
    assert!(ended.console.starts_with("hello from PVH"), "{}", ended.story());
}

#[test]
fn guest_of_the_benchmarks_prints_one_byte_and_ends_as_it_is_told() {
    for (end, code, reason) in [("reset", 10, "guest-reboot"), ("triple", 13, "triple-fault")] {
        let ended = Machine::of(Guest::Quick, &format!("end={end}")).run();
        ended.expect(code, reason);
        assert_eq!(ended.report["console"]["received_bytes"], 1, "{}", ended.story());
    }
}

#[test]
fn uart_registers_and_transmit_interrupt_work() {
    pass(Machine::new("test=uart"), &["uart"]);
}

#[test]
fn typed_line_comes_back_by_interrupts() {
    let mut running = Machine::new("test=echo").start();
    running.await_text("READY echo\n");
    let mut line = String::new();
    for n in 0..40 {
        write!(line, "word{n} ").unwrap();
    }
    line.push('\n');
    running.write_input(line.as_bytes());
    running.await_text(&line);
    let ended = running.wait();
    ended.passed(&["echo"]).expect(0, "guest-poweroff");
}

#[test]
fn local_apic_timer_ticks() {
    pass(Machine::new("test=timer"), &["timer"]);
}

#[test]
fn ioapic_routes_and_masks() {
    pass(Machine::new("test=ioapic"), &["ioapic"]);
}

#[test]
fn second_vcpu_starts_by_init_and_sipi() {
    pass(Machine::new("test=smp cpus=2").vcpus("2"), &["smp"]);
}

#[test]
fn acpi_tables_are_found_and_whole() {
    pass(Machine::new("test=acpi"), &["acpi"]);
}

#[test]
fn memory_below_the_hole_has_its_size() {
    pass(Machine::new("test=memory mem_mib=256").memory("256"), &["memory"]);
}

#[test]
fn memory_of_4_gib_goes_on_above_the_hole() {
    pass(Machine::new("test=memory mem_mib=4096").memory("4GiB"), &["memory"]);
}

#[test]
fn memory_map_of_pvh_has_4_gib_too() {
    pass(Machine::of(Guest::Pvh, "test=memory mem_mib=4096").memory("4GiB"), &["memory"]);
}

/// What one machine leaves in the host's memory is nothing that the next one finds in its own.
#[test]
fn memory_of_a_machine_is_zero_after_another_one_has_filled_its_own() {
    pass(Machine::new("test=zero,touch touch_mib=40"), &["zero", "touch"]);
    pass(Machine::new("test=zero touch_mib=40"), &["zero"]);
}

const SECTORS: u64 = 4096;

#[test]
fn read_only_disk_reads_and_refuses_writes() {
    let machine = Machine::new("test=blk-identity,blk-read,blk-readonly,blk-id ro=1 sectors=4096");
    let image = disk::image(machine.folder(), "disk.img", SECTORS);
    let before = std::fs::read(&image).unwrap();
    let running = machine.disk(&image, "ro").start();
    running.await_text("blk-id\n");
    assert!(std::fs::read(&image).unwrap() == before, "a read-only image was written to");
    let ended = running.wait();
    ended.passed(&["blk-identity", "blk-read", "blk-readonly", "blk-id"]).expect(0, "guest-poweroff");
}

/// Runs scenarios on a read-write disk; returns the image after the end.
fn on_disk(scenarios: &[&str], mode: &str) -> Vec<u8> {
    let machine = Machine::new(&format!("test={} sectors={SECTORS}", scenarios.join(",")));
    let folder = tempfile::tempdir().unwrap();
    let image = disk::image(folder.path(), "disk.img", SECTORS);
    pass(machine.disk(&image, mode), scenarios);
    std::fs::read(&image).unwrap()
}

/// The sectors that differ from the image as it was made.
fn changed(image: &[u8]) -> Vec<u64> {
    let sectors = (0_u64..).zip(image.chunks(disk::SECTOR_BYTES));
    sectors.filter(|(number, content)| *content != disk::sector(*number)).map(|(number, _)| number).collect()
}

#[test]
fn write_and_flush_reach_the_image_and_nothing_else() {
    let image = on_disk(&["blk-identity", "blk-write"], "rw");
    assert_eq!(changed(&image), [8, 9, 10]);
    let written: Vec<u8> = (0..192_u64).flat_map(|n| (0xb111_c4ea_d000_0000 + n).to_le_bytes()).collect();
    assert!(image[8 * 512..11 * 512] == written);
}

#[test]
fn discard_and_write_zeroes_change_their_range_only() {
    let image = on_disk(&["blk-discard"], "rw");
    assert!(image[32 * 512..40 * 512].iter().all(|&byte| byte == 0));
    let allowed = |sector: &u64| (16..24).contains(sector) || (32..40).contains(sector);
    assert!(changed(&image).iter().all(allowed), "{:?}", changed(&image));
}

#[test]
fn ephemeral_disk_reads_back_its_writes_and_leaves_the_image_alone() {
    let image = on_disk(&["blk-write", "blk-discard", "blk-range"], "ephemeral");
    assert!(changed(&image).is_empty());
}

#[test]
fn requests_out_of_range_get_an_error_status() {
    let image = on_disk(&["blk-range"], "rw");
    assert!(changed(&image).is_empty());
}

#[test]
fn many_requests_in_flight_and_indirect_ones_come_back_once() {
    let image = on_disk(&["blk-many", "blk-indirect"], "rw");
    assert!(changed(&image).is_empty());
}

#[test]
fn driver_of_the_benchmarks_writes_one_place_after_the_other() {
    let machine = Machine::new("test=bench-blk op=write bytes=512 depth=1 count=5");
    let folder = tempfile::tempdir().unwrap();
    let image = disk::image(folder.path(), "disk.img", SECTORS);
    let ended = pass(machine.disk(&image, "rw"), &["bench-blk"]);
    assert!(ended.console.starts_with("BEGIN\nEND\n"), "{}", ended.story());
    // What it writes is what it read first: the first sector.
    let image = std::fs::read(&image).unwrap();
    assert_eq!(changed(&image), [1, 2, 3, 4, 5]);
    assert!((1..=5).all(|n| image[n * 512..(n + 1) * 512] == image[..512]));
}

#[test]
fn driver_of_the_benchmarks_keeps_two_disks_busy() {
    let machine = Machine::new("test=bench-blk op=read random=1 bytes=4096 depth=32 count=500 disks=2");
    let folder = tempfile::tempdir().unwrap();
    let images = ["first.img", "second.img"].map(|name| disk::image(folder.path(), name, SECTORS));
    pass(machine.disk(&images[0], "rw").disk(&images[1], "rw"), &["bench-blk"]);
    assert!(images.iter().all(|image| changed(&std::fs::read(image).unwrap()).is_empty()));
}

#[test]
fn malformed_requests_get_an_error_status_or_stop_the_device_until_its_reset() {
    let image = on_disk(&["blk-malformed", "blk-read"], "rw");
    assert!(changed(&image).is_empty());
}

#[test]
fn queue_configuration_after_driver_ok_is_refused() {
    let image = on_disk(&["blk-frozen"], "rw");
    assert!(changed(&image).is_empty());
}

#[test]
fn features_that_were_not_offered_are_refused() {
    on_disk(&["blk-features"], "rw");
}

#[test]
fn second_disk_is_another_image() {
    let machine = Machine::new("test=blk-identity,blk-read,blk-write disk=1 sectors=64");
    let folder = tempfile::tempdir().unwrap();
    let first = disk::image(folder.path(), "first.img", SECTORS);
    let second = disk::image(folder.path(), "second.img", 64);
    pass(machine.disk(&first, "ro").disk(&second, "rw"), &["blk-identity", "blk-read", "blk-write"]);
    assert!(changed(&std::fs::read(&first).unwrap()).is_empty());
    assert_eq!(changed(&std::fs::read(&second).unwrap()), [8, 9, 10]);
}

#[test]
fn console_flood_stays_within_the_limit_of_the_file() {
    let machine = Machine::bare();
    let kernel = Guest::Long.write(machine.folder());
    let config = format!(
        "[machine]\nmemory = \"64MiB\"\n[boot]\nkernel = {kernel:?}\ncmdline = \"test=flood flood_kib=192\"\n\
         [console]\noutput = {{ file = \"console.log\" }}\nlimit = \"64KiB\"\n"
    );
    let path = machine.folder().join("config.toml");
    std::fs::write(&path, config).unwrap();
    let running = machine.args(["run", "--json"]).args([&path]).start();
    let log = running.folder().join("console.log");
    // The folder goes with the machine, so the file is held open over its end.
    let end = std::time::Instant::now() + tests::machine::LIMIT;
    let file = loop {
        match std::fs::File::open(&log) {
            Ok(file) => break file,
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
        std::thread::yield_now();
    };
    let ended = running.wait();
    ended.expect(0, "guest-poweroff");
    assert_eq!(file.metadata().unwrap().len(), 64 << 10);
    let received = ended.report["console"]["received_bytes"].as_u64().unwrap();
    assert_eq!(received, (192 << 10) + 1 + "PASS flood\n".len() as u64, "{}", ended.story());
    let dropped = ended.report["console"]["dropped"][0]["bytes"].as_u64();
    assert_eq!(dropped, Some(received - (64 << 10)), "{}", ended.story());
}
