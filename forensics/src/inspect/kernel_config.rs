//! The configuration that a kernel carries in itself (CONFIG_IKCONFIG), and what is missing in it.

use super::scene::{Scene, Words};
use std::io::Read;
use wire::report::Confidence::{Certain, Likely};
use wire::report::Severity;

/// What stands before the configuration, which is packed by gzip.
pub(crate) const MAGIC: &[u8] = b"IKCFG_ST\x1f\x8b";
/// The most packed bytes that are read.
pub(crate) const PACKED_BYTES: usize = 512 << 10;
/// The most bytes that it may unpack to.
const CONFIG_BYTES: u64 = 4 << 20;

/// An option that a boot needs.
struct Need {
    option: &'static str,
    what_for: &'static str,
    /// A module does as well, if an initramfs has it.
    module_does: bool,
    severity: Severity,
}

const fn need(option: &'static str, what_for: &'static str, module_does: bool, severity: Severity) -> Need {
    Need { option, what_for, module_does, severity }
}

const NEEDS: [Need; 6] = [
    need("CONFIG_VIRTIO_MMIO", "the guest finds no disk without it", true, Severity::Warning),
    need("CONFIG_VIRTIO_BLK", "the guest has no /dev/vda without it", true, Severity::Warning),
    need("CONFIG_EXT4_FS", "an ext4 root is not mounted without it", true, Severity::Note),
    need("CONFIG_SERIAL_8250_CONSOLE", "nothing is printed without it", false, Severity::Warning),
    need("CONFIG_DEVTMPFS", "/dev is empty without it", false, Severity::Warning),
    need("CONFIG_BLK_DEV_INITRD", "an initramfs is ignored without it", false, Severity::Warning),
];
/// Options that are told, without a judgement.
const TOLD: [&str; 8] = [
    "CONFIG_DEVTMPFS_MOUNT",
    "CONFIG_RD_GZIP",
    "CONFIG_RD_XZ",
    "CONFIG_RD_ZSTD",
    "CONFIG_RD_LZ4",
    "CONFIG_RD_LZMA",
    "CONFIG_RD_BZIP2",
    "CONFIG_SQUASHFS",
];

/// The value of an option: `y`, `m`, another one, or `n`.
fn value<'a>(config: &'a str, option: &str) -> &'a str {
    let of_line = |line: &'a str| line.strip_prefix(option)?.strip_prefix('=');
    config.lines().find_map(of_line).unwrap_or("n")
}

/// Says what the configuration says; nothing is known without one.
pub(crate) fn check(scene: &mut Scene<'_>, packed: Option<&[u8]>) {
    let Some(packed) = packed.and_then(|packed| packed.get(8..)) else {
        scene.fact("config", "not in the kernel (CONFIG_IKCONFIG): what is built in cannot be told");
        return;
    };
    let mut config = Vec::new();
    let reader = flate2::bufread::GzDecoder::new(packed);
    let whole = reader.take(CONFIG_BYTES).read_to_end(&mut config).is_ok();
    let config = String::from_utf8_lossy(&config);
    if !whole || !config.contains("CONFIG_") {
        scene.fact("config", "in the kernel, but it cannot be read");
        return;
    }
    let said = NEEDS.iter().map(|need| need.option).chain(TOLD);
    let said: Vec<_> =
        said.map(|option| format!("{}={}", &option.replace("CONFIG_", ""), value(&config, option))).collect();
    scene.fact("config", said.join(" "));
    for need in &NEEDS {
        of_need(scene, need, value(&config, need.option));
    }
}

fn of_need(scene: &mut Scene<'_>, need: &Need, value: &str) {
    let evidence = [format!("{}={value}", need.option)];
    if value == "y" {
        return;
    }
    if value == "m" && need.module_does {
        let words = Words {
            what: &format_args!("{} is a module of this kernel", need.option),
            why: &format_args!("{}, and a module must come from an initramfs", need.what_for),
            remedy: &"boot with an initramfs that has the module",
        };
        return scene.find(("kernel-driver-is-module", Severity::Note, Certain), &words, &evidence);
    }
    let words = Words {
        what: &format_args!("{} is not built into this kernel", need.option),
        why: &need.what_for,
        remedy: &format_args!("use a kernel with {}=y", need.option),
    };
    scene.find(("kernel-lacks-option", need.severity, Likely), &words, &evidence);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_options_are_those_of_whole_names() {
        let config = "CONFIG_VIRTIO_BLK_X=y\nCONFIG_VIRTIO_BLK=m\n# CONFIG_EXT4_FS is not set\n";
        assert_eq!(value(config, "CONFIG_VIRTIO_BLK"), "m");
        assert_eq!(value(config, "CONFIG_EXT4_FS"), "n");
    }
}
