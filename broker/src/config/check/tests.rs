//! Every refusal of a config that is well-formed but cannot be.

use super::super::{override_with_flags, parse};
use super::*;
use tempfile::TempDir;

const HOST: Host = Host { max_vcpus: Some(64), gics: None, count_cpus: || Some(8) };

/// A folder with a kernel of 8 KiB, an initrd of 8 KiB, and images `a` and `b`.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [("k", 8192), ("i", 8192), ("a", 1024), ("b", 1024), ("odd", 1000), ("empty", 0)] {
        std::fs::write(dir.path().join(name), vec![1; bytes]).unwrap();
    }
    dir
}

fn check_text(dir: &TempDir, text: &str, host: Host) -> Result<Plan, Vec<String>> {
    let file = dir.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    let (draft, problems) = parse(&file, text);
    assert_eq!(problems, []);
    check(draft, host).map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn only(text: &str) -> String {
    let dir = folder();
    let mut all = check_text(&dir, &format!("[boot]\nkernel = \"k\"\n{text}"), HOST).unwrap_err();
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0).replace(dir.path().to_str().unwrap(), "DIR")
}

#[test]
fn good_config_becomes_a_plan() {
    let dir = folder();
    let plan = check_text(
        &dir,
        "[machine]\nvcpus = 2\nmemory = \"64MiB\"\n[boot]\nkernel = \"k\"\ninitrd = \"i\"\ncmdline = \"root=/dev/vda\"\n\
         [[disk]]\npath = \"a\"\nmode = \"read-write\"\n[[disk]]\npath = \"b\"\n[console]\noutput = { file = \"c.log\" }\n",
        HOST,
    )
    .unwrap();
    assert_eq!(plan.vcpus.get(), 2);
    assert!(plan.cmdline.as_str().ends_with(" root=/dev/vda"), "{:?}", plan.cmdline);
    assert_eq!(plan.disks[0].capacity.get(), 2);
    assert_eq!(plan.disks[1].id.as_str(), "disk1");
    assert!(!plan.console.stdio && plan.acpi);
    assert!(!dir.path().join("c.log").exists(), "checking creates nothing");
}

#[test]
fn disk_has_the_engine_that_it_asks_for_and_an_ephemeral_one_no_io_uring() {
    let dir = folder();
    let disks = "[boot]\nkernel = \"k\"\n[[disk]]\npath = \"a\"\nengine = \"io-uring\"\n[[disk]]\npath = \"b\"\n";
    let plan = check_text(&dir, disks, HOST).unwrap();
    assert_eq!([plan.disks[0].engine, plan.disks[1].engine], [DiskEngine::IoUring, DiskEngine::Sync]);
    let refused = only("[[disk]]\npath = \"a\"\nmode = \"ephemeral\"\nengine = \"io-uring\"\n");
    assert!(refused.contains("config.toml:6: disk[0].engine: is \"io-uring\" for an ephemeral disk"), "{refused}");
    assert!(refused.ends_with("use engine \"sync\", or another mode"), "{refused}");
}

#[test]
fn vcpus_beyond_what_kvm_offers_are_refused() {
    assert!(only("[machine]\nvcpus = 0\n").ends_with("config.toml:4: machine.vcpus: is 0; write 1 to 32"));
    assert!(only("[machine]\nvcpus = 33\n").ends_with("is 33; write 1 to 32"));
    assert!(only("[machine]\nvcpus = -1\n").ends_with("is -1; write 1 to 32"));
    let dir = folder();
    let few = Host { max_vcpus: Some(4), ..HOST };
    let all = check_text(&dir, "[machine]\nvcpus = 5\n[boot]\nkernel = \"k\"\n", few).unwrap_err();
    assert!(all[0].ends_with("machine.vcpus: is 5; this host's KVM offers 1 to 4"), "{all:?}");
    let old = Host { max_vcpus: Some(8), gics: Some(crate::arch::Gics { v2: true, v3: false }), ..HOST };
    let all = check_text(&dir, "[machine]\nvcpus = 9\n[boot]\nkernel = \"k\"\n", old).unwrap_err();
    assert!(all[0].ends_with("is 9; this host's KVM offers 1 to 8, as many as its GICv2 serves"), "{all:?}");
}

#[test]
fn memory_of_an_odd_size_is_refused() {
    assert!(
        only("[machine]\nmemory = 63\n").contains("guest memory is 63 MiB; write a multiple of 2 MiB, such as 64 MiB")
    );
    assert!(only("[machine]\nmemory = 0\n").contains("guest memory is 0 bytes"));
    assert!(only("[machine]\nmemory = \"2TiB\"\n").contains("write 1 TiB or less"));
    assert!(only("[machine]\nmemory = 64\nhuge_pages = \"1GiB\"\n").contains("multiple of 1 GiB, such as 1 GiB"));
}

#[test]
fn memory_below_what_kernel_and_initrd_need_is_refused() {
    let dir = folder();
    std::fs::write(dir.path().join("big"), vec![1; 20 << 20]).unwrap();
    let text = "[machine]\nmemory = 16\n[boot]\nkernel = \"k\"\ninitrd = \"big\"\n";
    let all = check_text(&dir, text, HOST).unwrap_err();
    assert!(all[0].contains(":2: machine.memory: guest memory is 16 MiB"), "{all:?}");
    assert!(all[0].ends_with("need at least 22 MiB"), "{all:?}");
    check_text(&dir, "[machine]\nmemory = 2\n[boot]\nkernel = \"k\"\n", HOST).unwrap();
}

#[test]
fn missing_files_are_all_refused_at_once() {
    let dir = folder();
    let text = "[boot]\nkernel = \"nokernel\"\ninitrd = \"noinitrd\"\n[[disk]]\npath = \"nodisk\"\n[console]\noutput = { file = \"no/c\" }\n";
    let all = check_text(&dir, text, HOST).unwrap_err();
    assert_eq!(all.len(), 4, "{all:#?}");
    assert!(all[0].contains(":2: boot.kernel: ") && all[0].contains("No such file or directory"), "{all:?}");
}

#[test]
fn boot_file_that_is_a_directory_or_empty_is_refused() {
    let dir = folder();
    let all = check_text(&dir, "[boot]\nkernel = \".\"\ninitrd = \"empty\"\n", HOST).unwrap_err();
    assert!(all[0].contains("is a directory, not a regular file"), "{all:?}");
    assert!(all[1].contains("boot.initrd") && all[1].contains("is empty"), "{all:?}");
}

#[test]
fn disk_of_a_size_that_is_no_multiple_of_a_sector_is_refused() {
    let odd = only("[[disk]]\npath = \"odd\"\n");
    assert!(odd.contains("has 1000 bytes") && odd.contains("truncate -s 1024 DIR/odd"), "{odd}");
    assert!(only("[[disk]]\npath = \"empty\"\n").contains("is empty"));
}

#[test]
fn image_used_twice_where_one_writes_is_refused() {
    let twice = only("[[disk]]\npath = \"a\"\n[[disk]]\npath = \"./a\"\nmode = \"read-write\"\n");
    assert!(twice.contains("config.toml:6: disk[1].path") && twice.contains("same image as in"), "{twice}");
    let dir = folder();
    let text = "[boot]\nkernel = \"k\"\n[[disk]]\npath = \"a\"\n[[disk]]\npath = \"a\"\nmode = \"ephemeral\"\n";
    assert_eq!(check_text(&dir, text, HOST).unwrap().disks.len(), 2);
}

#[test]
fn disk_that_would_overwrite_the_kernel_is_refused() {
    assert!(only("[[disk]]\npath = \"k\"\nmode = \"read-write\"\n").contains("also an input of this machine"));
}

#[test]
fn disk_ids_that_are_bad_or_double_are_refused() {
    assert!(only("[[disk]]\npath = \"a\"\nid = \"with space\"\n").contains("disk[0].id"));
    assert!(only("[[disk]]\npath = \"a\"\nid = \"x\"\n[[disk]]\npath = \"b\"\nid = \"x\"\n").contains("also that of"));
}

#[test]
fn seventeenth_disk_is_refused() {
    let all = only(&"[[disk]]\npath = \"a\"\n".repeat(17));
    assert!(all.contains("disk[16].path: there are 17 disks; a machine has at most 16"), "{all}");
}

#[test]
fn console_file_that_is_an_input_is_refused() {
    assert!(only("[console]\noutput = { file = \"k\" }\n").contains("is an input of this machine"));
    assert!(only("[[disk]]\npath = \"a\"\n[console]\noutput = { file = \"a\" }\n").contains("is an input"));
    assert!(only("[console]\noutput = { file = \"config.toml\" }\n").contains("is an input"));
    assert!(only("[console]\noutput = { file = \".\" }\n").contains("is no regular file"));
}

#[test]
fn console_outputs_that_contradict_are_refused() {
    assert!(only("[console]\noutput = [\"none\", \"stdio\"]\n").contains("beside other outputs"));
    assert!(only("[console]\nlimit = 0\n").contains("console.limit: is 0"));
    let files = r#"[{file="1"}, {file="2"}, {file="3"}, {file="4"}]"#;
    assert!(only(&format!("[console]\noutput = {files}\n")).contains("too many files"));
    assert!(only("[console]\noutput = [{file=\"1\"}, {file=\"1\"}]\n").contains("named twice"));
}

#[test]
fn command_line_that_is_too_long_is_refused() {
    let long = "x".repeat(2040);
    assert!(only(&format!("cmdline = \"{long}\"\n")).contains("boot.cmdline: the length of the kernel command line"));
    assert!(only("cmdline = \"a\\nb\"\n").contains("one line without a NUL"));
}

#[test]
fn missing_kernel_without_a_config_is_refused() {
    let mut draft = Draft::default();
    assert_eq!(override_with_flags(&mut draft, &crate::cli::MachineArgs::default()), []);
    let problems = check(draft, HOST).unwrap_err();
    assert!(problems[0].to_string().starts_with("--kernel: is missing"), "{problems:?}");
}

#[test]
fn controller_and_cpus_are_in_the_plan() {
    let dir = folder();
    let plan = check_text(&dir, "[machine]\ncpus = [1, 3]\n[boot]\nkernel = \"k\"\n", HOST).unwrap();
    assert_eq!(plan.cpus.get(), [1, 3]);
    let gic = check_text(&dir, "[machine]\ngic = \"v2\"\n[boot]\nkernel = \"k\"\n", HOST);
    match crate::arch::HAS_GIC {
        true => assert_eq!(gic.unwrap().gic, GicVersion::V2),
        false => assert!(gic.unwrap_err()[0].contains("only an arm64 machine has a GIC")),
    }
    assert!(only("[machine]\ncpus = [8]\n").ends_with("machine.cpus: names 8; the CPUs here are 0 to 7"));
}
