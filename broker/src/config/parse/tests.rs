//! Every refusal of a config that is not well-formed, with its place.

use super::*;

fn problems(text: &str) -> Vec<String> {
    let (_, problems) = parse(Path::new("dir/config.toml"), text);
    problems.iter().map(ToString::to_string).collect()
}

fn only(text: &str) -> String {
    let mut all = problems(text);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

const BOOT: &str = "[boot]\nkernel = \"k\"\n";

#[test]
fn whole_config_is_read() {
    let (draft, problems) = parse(
        Path::new("dir/config.toml"),
        "[machine]\nvcpus = 2\nmemory = \"512MiB\"\nhuge_pages = \"2MiB\"\n[boot]\nkernel = \"k\"\ninitrd = \"/i\"\n\
         cmdline = \"a b\"\nacpi = false\n[[disk]]\npath = \"d\"\nmode = \"ephemeral\"\nid = \"x\"\n[[disk]]\npath = \"e\"\n\
         [console]\noutput = [\"stdio\", { file = \"c\" }]\nlimit = \"1MiB\"\n",
    );
    assert_eq!(problems, []);
    assert_eq!(draft.vcpus.unwrap().value, 2);
    assert_eq!(draft.memory.unwrap().value, 512 << 20);
    assert_eq!(draft.kernel.unwrap().value, Path::new("dir/k"));
    assert_eq!(draft.initrd.unwrap().value, Path::new("/i"));
    assert_eq!(draft.acpi, Some(false));
    assert_eq!(draft.disks[0].mode, DiskMode::Ephemeral);
    assert_eq!(draft.disks[1].mode, DiskMode::ReadOnly);
    assert_eq!(draft.disks[1].path.origin.to_string(), "dir/config.toml:15: disk[1].path");
    let outputs: Vec<_> = draft.console.unwrap().into_iter().map(|given| given.value).collect();
    assert_eq!(outputs, [Output::Stdio, Output::File("dir/c".into())]);
    assert_eq!(draft.limit.unwrap().value, 1 << 20);
}

#[test]
fn memory_as_a_plain_number_is_mib() {
    let (draft, problems) = parse(Path::new("c"), &format!("{BOOT}[machine]\nmemory = 64\n"));
    assert_eq!(problems, []);
    assert_eq!(draft.memory.unwrap().value, 64 << 20);
}

#[test]
fn unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
    assert_eq!(
        only(&format!("{BOOT}[machine]\nvcpu = 2\n")),
        "dir/config.toml:4: machine.vcpu: is no known key; did you mean `vcpus`?"
    );
    assert_eq!(
        only(&format!("{BOOT}[machine]\nhuge-pages = \"2MiB\"\n")),
        "dir/config.toml:4: machine.huge-pages: is no known key; did you mean `huge_pages`?"
    );
    assert_eq!(
        only(&format!("{BOOT}[network]\n")),
        "dir/config.toml:3: network: is no known key; known keys here: machine, boot, disk, console, limits"
    );
    assert!(
        only(&format!("{BOOT}[[disk]]\npath = \"d\"\nreadonly = true\n")).contains("disk[0].readonly: is no known key")
    );
}

#[test]
fn wrong_types_are_all_refused_at_once() {
    let all = problems(
        "disk = 3\n[machine]\nvcpus = \"2\"\nmemory = true\nhuge_pages = 2\n[boot]\nkernel = 1\ninitrd = []\ncmdline = 4\n\
         acpi = \"yes\"\n[console]\noutput = 5\nlimit = 1.5\n",
    );
    assert_eq!(all.len(), 10, "{all:#?}");
    assert!(all.contains(
        &"dir/config.toml:3: machine.vcpus: is a value of type string; write a whole number, 1 to 32".to_owned()
    ));
}

#[test]
fn section_that_is_no_table_is_refused() {
    assert!(
        only(&format!("machine = 1\n{BOOT}"))
            .contains("machine: is a value of type integer; write a section [machine]")
    );
}

#[test]
fn missing_kernel_is_refused_at_the_boot_section() {
    assert!(
        only("[machine]\n[boot]\n").starts_with("dir/config.toml:2: boot.kernel: is missing; name the kernel image")
    );
    assert!(only("").starts_with("dir/config.toml:1: boot.kernel: is missing"));
}

#[test]
fn disk_without_a_path_is_refused() {
    assert!(only(&format!("{BOOT}[[disk]]\nmode = \"read-only\"\n")).contains("disk[0].path: is missing"));
    assert!(only(&format!("{BOOT}[[disk]]\npath = \"\"\n")).contains("disk[0].path: is empty"));
}

#[test]
fn unknown_disk_engine_is_refused() {
    let disk = format!("{BOOT}[[disk]]\npath = \"d\"\n");
    let unknown = only(&format!("{disk}engine = \"aio\"\n"));
    assert!(unknown.ends_with("disk[0].engine: is \"aio\"; write \"sync\" or \"io-uring\""), "{unknown}");
    assert!(only(&format!("{disk}engine = true\n")).contains("disk[0].engine"));
}

#[test]
fn unknown_disk_mode_is_refused() {
    assert!(only(&format!("{BOOT}[[disk]]\npath = \"d\"\nmode = \"rw\"\n")).contains("write \"read-only\""));
}

#[test]
fn unknown_console_output_is_refused() {
    assert!(only(&format!("{BOOT}[console]\noutput = \"tty\"\n")).contains("console.output: is \"tty\""));
    assert!(only(&format!("{BOOT}[console]\noutput = {{}}\n")).contains("names no file"));
}

#[test]
fn huge_pages_of_another_size_are_refused() {
    assert!(only(&format!("{BOOT}[machine]\nhuge_pages = \"4MiB\"\n")).contains("write \"2MiB\" or \"1GiB\""));
}

#[test]
fn sizes_in_decimal_units_are_refused() {
    assert!(only(&format!("{BOOT}[machine]\nmemory = \"512MB\"\n")).contains("MiB, GiB"));
    assert!(only(&format!("{BOOT}[machine]\nmemory = -5\n")).contains("machine.memory: is -5"));
}

#[test]
fn broken_toml_is_refused_with_its_line() {
    let all = problems("[boot]\nkernel = \"k\"\nbroken = = 1\n");
    assert!(all.iter().any(|problem| problem.starts_with("dir/config.toml:3: syntax: ")), "{all:?}");
    assert!(
        problems("[boot]\nkernel = \"k\"\nkernel = \"l\"\n").iter().any(|p| p.contains(":3: syntax: duplicate key"))
    );
}

#[test]
fn unknown_controller_and_cpus_that_are_no_list_are_refused() {
    assert_eq!(
        only(&format!("{BOOT}[machine]\ngic = \"v4\"\n")),
        "dir/config.toml:4: machine.gic: is \"v4\"; write \"v2\" or \"v3\", or leave it out"
    );
    assert!(only(&format!("{BOOT}[machine]\ncpus = 4\n")).contains("machine.cpus: is a value of type integer"));
    assert!(only(&format!("{BOOT}[machine]\ncpus = [\"a\"]\n")).contains("machine.cpus: is a value of type string"));
}
