//! What the figures were measured on.

use crate::command::capture_text;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// The machine and the yardstick.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The processor's name, and how many of it there are.
    pub(crate) cpu: String,
    /// QEMU's version.
    pub(crate) qemu: String,
    /// The KVM module.
    pub(crate) kvm: String,
}

impl Host {
    /// This one.
    pub(crate) fn probe(qemu: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let models: Vec<_> =
            info.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": ")).collect();
        let cpu = models.first().map_or_else(String::new, |(_, name)| format!("{} × {name}", models.len()));
        let version = capture_text(Command::new(qemu).arg("--version")).unwrap_or_default();
        let modules = ["kvm_intel", "kvm_amd", "kvm_pvm"].into_iter();
        let kvm = modules.filter(|name| Path::new("/sys/module").join(name).exists()).collect::<Vec<_>>().join(", ");
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim_end().to_owned(),
            cpu,
            qemu: version.lines().next().unwrap_or_default().replace("QEMU emulator version ", ""),
            kvm,
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "kernel": self.kernel, "cpu": self.cpu, "qemu": self.qemu, "kvm": self.kvm })
    }

    /// Back from [`Host::json`]; what is missing is empty.
    pub(crate) fn read(value: &Value) -> Self {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self { kernel: text("kernel"), cpu: text("cpu"), qemu: text("qemu"), kvm: text("kvm") }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, Linux {}, KVM by {}, QEMU {}", self.cpu, self.kernel, self.kvm, self.qemu)
    }
}
