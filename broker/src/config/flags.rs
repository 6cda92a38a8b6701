//! The machine by flags: alone, or over a config file.

use super::duration::parse_duration;
use super::size::parse_size;
use super::{Draft, DraftDisk, Given, Origin, Output, Problem};
use crate::cli::MachineArgs;
use std::path::PathBuf;
use wire::message::{DiskEngine, DiskMode};

/// Lets every flag that was given replace what `draft` says. Disks replace disks, all of them.
pub(crate) fn override_with_flags(draft: &mut Draft, args: &MachineArgs) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(kernel) = &args.kernel {
        draft.kernel = Some(given("--kernel", kernel.clone()));
        draft.kernel_named = true;
    }
    if let Some(initrd) = &args.initrd {
        draft.initrd = Some(given("--initrd", initrd.clone()));
    }
    if let Some(params) = &args.params {
        draft.cmdline = Some(given("--params", params.clone()));
    }
    if let Some(vcpus) = &args.vcpus {
        match vcpus.parse() {
            Ok(count) => draft.vcpus = Some(given("--vcpus", count)),
            Err(_) => problems.push(Problem::new(
                &Origin::flag("--vcpus"),
                format!("is {vcpus:?}"),
                "write a whole number, 1 to 32",
            )),
        }
    }
    if let Some(memory) = &args.memory {
        match parse_size(memory, Some(1 << 20)) {
            Ok(bytes) => draft.memory = Some(given("--memory", bytes)),
            Err(error) => {
                problems.push(Problem::new(&Origin::flag("--memory"), format!("is {memory:?}"), error.to_string()));
            }
        }
    }
    let times = [
        ("--wall-time", &args.wall_time, &mut draft.limits.wall_time),
        ("--cpu-time", &args.cpu_time, &mut draft.limits.cpu_time),
    ];
    for (flag, text, limit) in times {
        match text.as_deref().map(|text| (text, parse_duration(text))) {
            Some((_, Ok(time))) => *limit = Some(given(flag, time)),
            Some((text, Err(error))) => {
                problems.push(Problem::new(&Origin::flag(flag), format!("is {text:?}"), error.to_string()));
            }
            None => {}
        }
    }
    if !args.disk.is_empty() {
        draft.disks = args.disk.iter().map(|disk| parse_disk(disk)).collect();
    }
    if !args.console.is_empty() {
        let mut outputs = Vec::new();
        for output in &args.console {
            match parse_output(output) {
                Some(output) => outputs.push(given("--console", output)),
                None => problems.push(Problem::new(
                    &Origin::flag("--console"),
                    format!("is {output:?}"),
                    "write stdio, none or file=FILE",
                )),
            }
        }
        draft.console = Some(outputs);
    }
    if args.no_acpi {
        draft.acpi = Some(false);
    }
    if args.no_preflight {
        draft.preflight = Some(false);
    }
    if args.no_explain {
        draft.explain = Some(false);
    }
    draft.debug |= args.debug;
    problems
}

fn given<T>(flag: &str, value: T) -> Given<T> {
    Given { value, origin: Origin::flag(flag) }
}

/// `FILE[:MODE][:io-uring]`. What follows a colon and is neither belongs to the file's name.
fn parse_disk(text: &str) -> DraftDisk {
    let (text, engine) = match text.strip_suffix(":io-uring") {
        Some(rest) => (rest, Some(given("--disk", DiskEngine::IoUring))),
        None => (text, None),
    };
    let (path, mode) = match text.rsplit_once(':') {
        Some((path, "ro" | "read-only")) => (path, DiskMode::ReadOnly),
        Some((path, "ephemeral")) => (path, DiskMode::Ephemeral),
        Some((path, "rw" | "read-write")) => (path, DiskMode::ReadWrite),
        _ => (text, DiskMode::ReadOnly),
    };
    DraftDisk { path: given("--disk", PathBuf::from(path)), mode, engine, id: None }
}

fn parse_output(text: &str) -> Option<Output> {
    match text {
        "stdio" | "serial" => Some(Output::Stdio),
        "none" => Some(Output::None),
        _ => text.strip_prefix("file=").filter(|path| !path.is_empty()).map(|path| Output::File(path.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_modes_follow_the_last_colon() {
        let read = |text: &str| {
            let disk = parse_disk(text);
            (disk.path.value.display().to_string(), disk.mode)
        };
        assert_eq!(read("a:b:rw"), ("a:b".to_owned(), DiskMode::ReadWrite));
        assert_eq!(read("a.ext4"), ("a.ext4".to_owned(), DiskMode::ReadOnly));
        assert_eq!(read("a:ephemeral"), ("a".to_owned(), DiskMode::Ephemeral));
        assert_eq!(read("a:x"), ("a:x".to_owned(), DiskMode::ReadOnly));
        assert_eq!(read("a:rw:io-uring"), ("a".to_owned(), DiskMode::ReadWrite));
        let engine = |text| parse_disk(text).engine.map(|engine| engine.value);
        assert_eq!((engine("a:io-uring"), engine("a:rw")), (Some(DiskEngine::IoUring), None));
    }

    #[test]
    fn bad_flags_are_all_refused_at_once() {
        let args = MachineArgs {
            vcpus: Some("two".into()),
            memory: Some("lots".into()),
            console: vec!["tty".into(), "file=".into()],
            wall_time: Some("soon".into()),
            cpu_time: Some("10s".into()),
            ..MachineArgs::default()
        };
        let mut draft = Draft::default();
        let problems = override_with_flags(&mut draft, &args);
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert_eq!(draft.limits.cpu_time.unwrap().value.as_secs(), 10);
        assert_eq!(problems[0].to_string(), "--vcpus: is \"two\"; write a whole number, 1 to 32");
    }

    #[test]
    fn flags_replace_what_the_config_says() {
        let (mut draft, _) = super::super::parse(
            std::path::Path::new("c.toml"),
            "[boot]\nkernel = \"k\"\n[[disk]]\npath = \"a\"\n[[disk]]\npath = \"b\"\n",
        );
        let args = MachineArgs {
            kernel: Some("other".into()),
            disk: vec!["c:rw".into()],
            no_acpi: true,
            ..Default::default()
        };
        assert_eq!(override_with_flags(&mut draft, &args), []);
        assert_eq!(draft.kernel.unwrap().value, PathBuf::from("other"));
        assert_eq!(draft.disks.len(), 1);
        assert_eq!(draft.acpi, Some(false));
    }
}
