//! The flattened device tree: all that the guest is told of its machine (Devicetree specification 0.4; the bindings are
//! Linux's, Documentation/devicetree/bindings).

use super::layout::{
    GIC_DISTRIBUTOR_START, GIC_V2_CPU_BYTES, GIC_V2_CPU_START, GIC_V2_DISTRIBUTOR_BYTES, GIC_V3_DISTRIBUTOR_BYTES,
    GIC_V3_REDISTRIBUTOR_BYTES, GIC_V3_REDISTRIBUTOR_START, RAM_START, SERIAL_CLOCK_HZ, SERIAL_GSI, SERIAL_START,
    SERIAL_WINDOW_BYTES, TIMER_PPIS, VIRTIO_WINDOW_BYTES, mpidr, virtio_gsi, virtio_window,
};
use crate::loader::{Machine, Placed};
use vm_fdt::{Error, FdtWriter};
use wire::VcpuCount;
use wire::message::GicVersion;

/// The interrupt controller's phandle.
const GIC: u32 = 1;
/// arm,gic.yaml: a shared peripheral interrupt.
const SPI: u32 = 0;
/// arm,gic.yaml: a private peripheral interrupt.
const PPI: u32 = 1;
/// `IRQ_TYPE_EDGE_RISING`.
const EDGE_RISING: u32 = 1;
/// `IRQ_TYPE_LEVEL_HIGH`.
const LEVEL_HIGH: u32 = 4;

/// The device tree of a machine with an initrd at `initrd`.
///
/// # Errors
/// Never for a [`Machine`]: its command line has no NUL.
pub fn build(machine: &Machine, initrd: Option<Placed>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    chosen(&mut fdt, machine, initrd)?;
    cpus(&mut fdt, machine.vcpus)?;
    memory(&mut fdt, machine)?;
    psci(&mut fdt)?;
    gic(&mut fdt, machine)?;
    timer(&mut fdt, machine)?;
    serial(&mut fdt)?;
    for n in 0..machine.disks.get() {
        virtio(&mut fdt, n)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, machine: &Machine, initrd: Option<Placed>) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", machine.cmdline.as_str())?;
    fdt.property_string("stdout-path", &format!("/serial@{SERIAL_START:x}"))?;
    if let Some(Placed { start, bytes }) = initrd {
        fdt.property_u64("linux,initrd-start", start.into())?;
        fdt.property_u64("linux,initrd-end", u64::from(start).saturating_add(bytes.into()))?;
    }
    fdt.property_u64("kaslr-seed", machine.entropy.kaslr_seed)?;
    fdt.property("rng-seed", &machine.entropy.rng_seed)?;
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, vcpus: VcpuCount) -> Result<(), Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for mpidr in (0..vcpus.get()).map(mpidr) {
        let cpu = fdt.begin_node(&format!("cpu@{mpidr:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", mpidr)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)
}

fn memory(fdt: &mut FdtWriter, machine: &Machine) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("memory@{RAM_START:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM_START, machine.memory.get()])?;
    fdt.end_node(node)
}

/// arm/psci.yaml. KVM's PSCI is called by HVC.
fn psci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".to_owned(), "arm,psci-0.2".to_owned()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

/// interrupt-controller/arm,gic.yaml and arm,gic-v3.yaml.
fn gic(fdt: &mut FdtWriter, machine: &Machine) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("interrupt-controller@{GIC_DISTRIBUTOR_START:x}"))?;
    let (compatible, reg) = match machine.gic {
        GicVersion::V2 => (
            "arm,cortex-a15-gic",
            [GIC_DISTRIBUTOR_START, GIC_V2_DISTRIBUTOR_BYTES, GIC_V2_CPU_START, GIC_V2_CPU_BYTES],
        ),
        GicVersion::V3 => {
            let redistributors = GIC_V3_REDISTRIBUTOR_BYTES.saturating_mul(machine.vcpus.get().into());
            let reg = [GIC_DISTRIBUTOR_START, GIC_V3_DISTRIBUTOR_BYTES, GIC_V3_REDISTRIBUTOR_START, redistributors];
            ("arm,gic-v3", reg)
        }
    };
    fdt.property_string("compatible", compatible)?;
    fdt.property_array_u64("reg", &reg)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_phandle(GIC)?;
    fdt.end_node(node)
}

/// timer/arm,arch_timer.yaml.
fn timer(fdt: &mut FdtWriter, machine: &Machine) -> Result<(), Error> {
    // A GICv2 tells in bits 8 to 15 which CPUs a private interrupt goes to.
    let cpus = match machine.gic {
        GicVersion::V2 => ((1_u32 << machine.vcpus.get().min(8)) - 1) << 8,
        GicVersion::V3 => 0,
    };
    let interrupts: Vec<u32> = TIMER_PPIS.iter().flat_map(|ppi| [PPI, *ppi, LEVEL_HIGH | cpus]).collect();
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

/// serial/8250.yaml.
fn serial(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("serial@{SERIAL_START:x}"))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[SERIAL_START, SERIAL_WINDOW_BYTES])?;
    fdt.property_array_u32("interrupts", &[SPI, SERIAL_GSI, EDGE_RISING])?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK_HZ)?;
    fdt.property_u32("reg-shift", 0)?;
    fdt.property_string("status", "okay")?;
    fdt.end_node(node)
}

/// virtio/mmio.yaml.
fn virtio(fdt: &mut FdtWriter, n: u8) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("virtio_mmio@{:x}", virtio_window(n)))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    fdt.property_array_u64("reg", &[virtio_window(n), VIRTIO_WINDOW_BYTES])?;
    fdt.property_array_u32("interrupts", &[SPI, virtio_gsi(n), EDGE_RISING])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

#[cfg(test)]
#[path = "fdt_tests.rs"]
mod tests;
