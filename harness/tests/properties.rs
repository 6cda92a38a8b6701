//! Random inputs of fixed seeds: what holds for any bytes holds for these, in a few seconds and without a fuzzer.
//!
//! A failure names its seed; `BULKHEAD_SEED=TARGET:SEED cargo test -p harness --test properties` runs that one alone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

use harness::TARGETS;
use std::time::{Duration, Instant};

/// How long each target takes at the most; the seeds that were run by then were enough.
const LIMIT: Duration = Duration::from_millis(800);
/// The most seeds of a target, and the least, however slow the machine.
const SEEDS: std::ops::RangeInclusive<u64> = 20..=2000;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// The input of a seed: up to 1 KiB, and one in four of them a seed of the tree with some bytes changed.
fn input(target: &harness::Target, seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    random.next();
    let seeds = (target.seeds)();
    if seed.is_multiple_of(4) {
        let mut bytes = seeds[usize::try_from(random.next() % seeds.len() as u64).unwrap()].1.clone();
        for _ in 0..random.next() % 8 {
            let at = usize::try_from(random.next() % bytes.len().max(1) as u64).unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.next().to_le_bytes()[0];
            }
        }
        return bytes;
    }
    let length = random.next() >> 16 & 0x3ff;
    (0..length).map(|_| random.next().to_le_bytes()[3]).collect()
}

/// Says which seed it was, if the harness panics on it.
struct Named(&'static str, u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to run it again: BULKHEAD_SEED={}:{} cargo test -p harness --test properties", self.0, self.1);
        }
    }
}

fn holds(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    if let Ok(only) = std::env::var("BULKHEAD_SEED") {
        if let Some(seed) = only.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')) {
            (target.run)(&input(target, seed.parse().unwrap()));
        }
        return;
    }
    let start = Instant::now();
    for seed in 0..*SEEDS.end() {
        if seed >= *SEEDS.start() && start.elapsed() >= LIMIT {
            break;
        }
        let _named = Named(target.name, seed);
        (target.run)(&input(target, seed));
    }
}

macro_rules! properties {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        #[test]
        fn every_target_has_its_test() {
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), [$(stringify!($name)),*]);
        }
    };
}

properties!(
    acpi,
    block_chains,
    block_front_end,
    block_model,
    broker_events,
    config,
    device_tree,
    entry,
    explain,
    inspect_cpio,
    inspect_elf,
    inspect_filesystem,
    inspect_image,
    inspect_kernel,
    ioapic,
    loader,
    loader_arm64,
    mmio,
    ring,
    serial_server,
    uart,
    vmm_back_end,
    vmm_serial,
    wire_message,
);
