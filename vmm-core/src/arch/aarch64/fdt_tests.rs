//! The device tree, read back by a few lines of our own.

use super::*;
use crate::arch::aarch64::boot::tests::machine;
use std::collections::BTreeMap;
use wire::DiskCount;

/// The properties of all nodes, by path and name.
fn parse(fdt: &[u8]) -> BTreeMap<String, Vec<u8>> {
    const BEGIN: u32 = 1;
    const END: u32 = 2;
    const PROPERTY: u32 = 3;
    let cell = |at: usize| u32::from_be_bytes(fdt[at..at + 4].try_into().unwrap());
    let word = |at: usize| {
        let end = at + fdt[at..].iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(fdt[at..end].to_vec()).unwrap()
    };
    assert_eq!(cell(0), 0xD00D_FEED);
    assert_eq!(usize::try_from(cell(4)).unwrap(), fdt.len());
    let strings = usize::try_from(cell(12)).unwrap();
    let mut at = usize::try_from(cell(8)).unwrap();
    let mut path = Vec::new();
    let mut properties = BTreeMap::new();
    loop {
        let token = cell(at);
        at += 4;
        match token {
            BEGIN => {
                path.push(word(at));
                at = (at + path.last().unwrap().len() + 1).next_multiple_of(4);
            }
            END => {
                path.pop().unwrap();
            }
            PROPERTY => {
                let bytes = usize::try_from(cell(at)).unwrap();
                let name = word(strings + usize::try_from(cell(at + 4)).unwrap());
                properties.insert(format!("{}/{name}", path.join("/")), fdt[at + 8..at + 8 + bytes].to_vec());
                at = (at + 8 + bytes).next_multiple_of(4);
            }
            _ => break,
        }
    }
    assert!(path.is_empty());
    properties
}

fn tree(gic: GicVersion, vcpus: u8) -> BTreeMap<String, Vec<u8>> {
    let machine = Machine { gic, vcpus: VcpuCount::try_from(vcpus).unwrap(), ..machine(6 << 10) };
    parse(&build(&machine, None).unwrap())
}

fn cells(property: &[u8]) -> Vec<u32> {
    property.chunks_exact(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
}

#[test]
fn every_vcpu_has_a_node_with_its_mpidr() {
    let tree = tree(GicVersion::V3, 32);
    let nodes = tree.keys().filter(|key| key.ends_with("/enable-method"));
    assert_eq!(nodes.count(), 32);
    assert_eq!(cells(&tree["/cpus/cpu@0/reg"]), [0, 0]);
    assert_eq!(cells(&tree["/cpus/cpu@f/reg"]), [0, 15]);
    assert_eq!(cells(&tree["/cpus/cpu@10f/reg"]), [0, 0x10F]);
    assert_eq!(tree["/cpus/cpu@10f/enable-method"], b"psci\0");
}

#[test]
fn memory_above_4_gib_is_one_stretch() {
    assert_eq!(cells(&tree(GicVersion::V3, 1)["/memory@40000000/reg"]), [0, 0x4000_0000, 1, 0x8000_0000]);
}

#[test]
fn gic_v3_has_a_redistributor_for_each_vcpu() {
    let tree = tree(GicVersion::V3, 6);
    assert_eq!(tree["/interrupt-controller@8000000/compatible"], b"arm,gic-v3\0");
    let reg = cells(&tree["/interrupt-controller@8000000/reg"]);
    assert_eq!(reg, [0, 0x0800_0000, 0, 0x1_0000, 0, 0x080A_0000, 0, 6 * 0x2_0000]);
    assert_eq!(cells(&tree["/timer/interrupts"]), [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
}

#[test]
fn gic_v2_names_the_cpus_of_the_timer() {
    let tree = tree(GicVersion::V2, 6);
    assert_eq!(tree["/interrupt-controller@8000000/compatible"], b"arm,cortex-a15-gic\0");
    let reg = cells(&tree["/interrupt-controller@8000000/reg"]);
    assert_eq!(reg, [0, 0x0800_0000, 0, 0x1000, 0, 0x0801_0000, 0, 0x2000]);
    assert_eq!(cells(&tree["/timer/interrupts"])[..3], [1, 13, 0x3F04]);
}

#[test]
fn serial_port_is_where_the_chosen_node_points() {
    let tree = tree(GicVersion::V3, 1);
    assert_eq!(tree["/chosen/stdout-path"], b"/serial@9000000\0");
    assert_eq!(tree["/serial@9000000/compatible"], b"ns16550a\0");
    assert_eq!(cells(&tree["/serial@9000000/interrupts"]), [0, 0, 1]);
    assert_eq!(tree["/chosen/bootargs"], b"console=ttyS0\0");
    assert_eq!(tree["/chosen/rng-seed"], [0x5A; 64]);
    assert_eq!(cells(&tree["/chosen/kaslr-seed"]), [0x0123_4567, 0x89AB_CDEF]);
    assert!(!tree.contains_key("/chosen/linux,initrd-start"));
}

#[test]
fn each_disk_has_a_node_in_order() {
    let tree = tree(GicVersion::V3, 1);
    assert_eq!(cells(&tree["/virtio_mmio@a000000/interrupts"]), [0, 1, 1]);
    assert_eq!(cells(&tree["/virtio_mmio@a001000/reg"]), [0, 0x0A00_1000, 0, 0x1000]);
    assert_eq!(cells(&tree["/virtio_mmio@a001000/interrupts"]), [0, 2, 1]);
    assert!(!tree.contains_key("/virtio_mmio@a002000/reg"));
}

#[test]
fn largest_device_tree_fits_its_room() {
    let machine = Machine {
        vcpus: VcpuCount::try_from(32).unwrap(),
        disks: DiskCount::try_from(16).unwrap(),
        cmdline: "x".repeat(2047).try_into().unwrap(),
        ..machine(64)
    };
    let bytes = build(&machine, Some(Placed { start: 0x5000_0000, bytes: 1 })).unwrap();
    assert!(bytes.len() < 64 << 10, "{} bytes", bytes.len());
}
