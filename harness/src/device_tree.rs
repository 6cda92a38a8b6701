//! The device tree of any machine, read back (Devicetree specification 0.4 §5) and compared with the machine.

use crate::loader::machine;
use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use std::collections::BTreeMap;
use vmm_core::arch::aarch64::{fdt, layout};
use vmm_core::loader::{Machine, Placed};
use wire::message::GicVersion;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;

/// A machine, and an initrd or none.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let machine = machine(input)?;
    let initrd = if input.arbitrary::<u8>()? & 1 == 0 {
        None
    } else {
        Some(Placed { start: input.arbitrary()?, bytes: input.arbitrary()? })
    };
    let blob = fdt::build(&machine, initrd).expect("a device tree for every machine");
    let tree = Tree::read(&blob);
    check(&tree, &machine, initrd);
    Ok(())
}

fn check(tree: &Tree<'_>, machine: &Machine, initrd: Option<Placed>) {
    let line = tree.get("/chosen", "bootargs");
    assert_eq!(line, [machine.cmdline.as_str().as_bytes(), b"\0"].concat());
    let start = initrd.map(|initrd| u64::from(initrd.start).to_be_bytes().to_vec());
    assert_eq!(tree.find("/chosen", "linux,initrd-start").map(<[u8]>::to_vec), start);
    if let Some(Placed { start, bytes }) = initrd {
        assert_eq!(tree.get("/chosen", "linux,initrd-end"), (u64::from(start) + u64::from(bytes)).to_be_bytes());
    }
    let memory = tree.get(&format!("/memory@{:x}", layout::RAM_START), "reg");
    assert_eq!(memory, [layout::RAM_START.to_be_bytes(), machine.memory.get().to_be_bytes()].concat());
    assert_eq!(tree.count("/cpus/cpu@"), usize::from(machine.vcpus.get()));
    for n in 0..machine.vcpus.get() {
        let mpidr = layout::mpidr(n);
        assert_eq!(tree.get(&format!("/cpus/cpu@{mpidr:x}"), "reg"), mpidr.to_be_bytes());
    }
    assert_eq!(tree.count("/virtio_mmio@"), usize::from(machine.disks.get()));
    for n in 0..machine.disks.get() {
        let window = layout::virtio_window(n);
        let node = format!("/virtio_mmio@{window:x}");
        assert_eq!(tree.get(&node, "reg"), [window, layout::VIRTIO_WINDOW_BYTES].map(u64::to_be_bytes).concat());
        assert_eq!(tree.get(&node, "interrupts"), [0, layout::virtio_gsi(n), 1].map(u32::to_be_bytes).concat());
    }
    let gic = tree.get(&format!("/interrupt-controller@{:x}", layout::GIC_DISTRIBUTOR_START), "compatible");
    let expected: &[u8] = if machine.gic == GicVersion::V2 { b"arm,cortex-a15-gic\0" } else { b"arm,gic-v3\0" };
    assert_eq!(gic, expected);
    let console = tree.get("/chosen", "stdout-path");
    let console = std::str::from_utf8(&console[..console.len() - 1]).expect("a path");
    assert_eq!(tree.get(console, "compatible"), b"ns16550a\0", "stdout-path names no node");
}

/// The properties of each node by its path.
struct Tree<'a>(BTreeMap<String, BTreeMap<&'a str, &'a [u8]>>);

impl<'a> Tree<'a> {
    /// Reads a whole tree; it has exactly the form of the specification.
    fn read(blob: &'a [u8]) -> Self {
        let cell = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().expect("four bytes"));
        let field = |index: usize| cell(4 * index);
        assert_eq!((field(0), field(1) as usize), (0xD00D_FEED, blob.len()));
        assert!(field(5) >= 17 && field(6) <= 17, "version");
        let (structure, strings) = (field(2) as usize, field(3) as usize);
        let structure_end = structure + field(9) as usize;
        assert!(structure.is_multiple_of(4) && structure_end <= blob.len());
        assert!(strings + field(8) as usize <= blob.len());
        let text = |at: usize| {
            let end = at + blob[at..].iter().position(|byte| *byte == 0).expect("a NUL");
            std::str::from_utf8(&blob[at..end]).expect("a name")
        };
        let (mut at, mut path, mut nodes) = (structure, Vec::new(), BTreeMap::new());
        loop {
            let token = cell(at);
            at += 4;
            match token {
                BEGIN_NODE => {
                    let name = text(at);
                    at = (at + name.len() + 1).next_multiple_of(4);
                    path.push(name);
                    let node: &mut BTreeMap<_, _> = nodes.entry(path.join("/")).or_default();
                    assert!(node.is_empty(), "two nodes of the name {path:?}");
                }
                END_NODE => assert!(path.pop().is_some(), "an end without a beginning"),
                PROPERTY => {
                    let (length, name) = (cell(at) as usize, text(strings + cell(at + 4) as usize));
                    let value = &blob[at + 8..at + 8 + length];
                    at = (at + 8 + length).next_multiple_of(4);
                    let node = nodes.get_mut(&path.join("/")).expect("a node");
                    assert!(node.insert(name, value).is_none(), "{name} twice in {path:?}");
                }
                END => break,
                other => assert_eq!(other, 4, "a token of no meaning"),
            }
        }
        assert!(path.is_empty() && at == structure_end, "the tree ends in its middle");
        Self(nodes)
    }

    fn find(&self, node: &str, property: &str) -> Option<&'a [u8]> {
        self.0.get(node)?.get(property).copied()
    }

    fn get(&self, node: &str, property: &str) -> &'a [u8] {
        self.find(node, property).unwrap_or_else(|| panic!("no {property} in {node}: {:?}", self.0.keys()))
    }

    fn count(&self, prefix: &str) -> usize {
        self.0.keys().filter(|path| path.starts_with(prefix)).count()
    }
}

/// A small and a full machine.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("small", Seed::new().u8(0).u8(0).u8(0).u8(2).u8(0).u8(0).done()),
        ("full", Seed::new().u8(63).u8(31).u8(16).u8(0).u8(5).bytes(b"quiet").u8(1).u32(0x4800_0000).u32(77).done()),
    ]
}
