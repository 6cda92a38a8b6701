//! The kernel's command line: the user's words, and those without which a kernel that is booted by hand shows nothing.

use crate::arch;
use wire::message::DiskMode;

/// Adds `console=`, `panic=`, `reboot=` and, for a first disk without an initrd to mount it, `root=`, unless they are there. In
/// front, because what follows ` -- ` belongs to init.
pub(super) fn complete_cmdline(given: &str, debug: bool, acpi: bool, root: Option<DiskMode>) -> String {
    let has = |key: &str| given.split_whitespace().take_while(|word| *word != "--").any(|word| word.starts_with(key));
    let mut words = Vec::new();
    if !has("console=") {
        words.push(arch::CONSOLE);
    }
    if !has("panic=") {
        words.push("panic=-1");
    }
    words.extend(arch::restart(acpi).filter(|_| !has("reboot=")));
    if let Some(mode) = root.filter(|_| !has("root=")) {
        words.push("root=/dev/vda");
        words.push(if mode == DiskMode::ReadOnly { "ro" } else { "rw" });
    }
    if debug {
        words.extend([arch::EARLYCON, "ignore_loglevel"]);
        // A program that dies of a fault says where: arm64 is silent about it otherwise.
        words.extend(["print-fatal-signals=1", "sysctl.debug.exception-trace=1"]);
    }
    if !given.is_empty() {
        words.push(given);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(given: &str, root: Option<DiskMode>) -> String {
        complete_cmdline(given, false, true, root)
    }

    #[test]
    fn missing_words_are_added_in_front_of_the_users() {
        let line = line("quiet", None);
        assert!(line.starts_with(&format!("{} panic=-1 ", arch::CONSOLE)) && line.ends_with(" quiet"), "{line}");
    }

    #[test]
    fn given_words_are_not_added_again() {
        let given = "console=tty0 panic=5 root=/dev/vdb reboot=t";
        assert_eq!(line(given, Some(DiskMode::ReadWrite)), given);
        assert!(line("-- console=x", None).starts_with(arch::CONSOLE), "that word is init's");
    }

    #[test]
    fn debugging_shows_everything() {
        assert!(complete_cmdline("a", true, true, None).contains("ignore_loglevel"));
    }

    #[test]
    fn first_disk_is_the_root_where_no_initrd_mounts_it() {
        assert!(line("", Some(DiskMode::ReadOnly)).ends_with("root=/dev/vda ro"));
        assert!(line("", Some(DiskMode::Ephemeral)).ends_with("root=/dev/vda rw"));
    }
}
