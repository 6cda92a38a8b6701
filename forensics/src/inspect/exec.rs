//! Would the kernel run this program? The steps of execve, with a finding for each that fails.

use super::bytes::{size, up_to};
use super::elf::{self, Elf, Fault};
use super::scene::{Scene, Words};
use super::tree::{File, Found, Kind, Node, NotFound, Tree, lookup};
use super::{Architecture, program};
use wire::report::Confidence::{Certain, Likely};

/// Scripts that may be the interpreter of one another (fs/exec.c: search_binary_handler).
const SCRIPTS: usize = 5;
/// What the kernel reads of a file to tell what it is (BINPRM_BUF_SIZE).
const HEAD: usize = 256;

/// What a program is to the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The program that becomes process 1.
    Init,
    /// What runs it: the target of `#!`, or the dynamic loader.
    Interpreter,
    /// A shared library that it needs.
    Library,
}

/// Says why a path leads nowhere.
pub(crate) fn missing(scene: &mut Scene<'_>, path: &str, why: &NotFound, role: Role, id: &str) {
    let name = match role {
        Role::Init => "init",
        Role::Interpreter => "the interpreter",
        Role::Library => "the library",
    };
    let (what, why, evidence, id) = match why {
        NotFound::Missing { path: missing, through } if through.is_empty() => {
            (format!("{name} {path} is not there"), format!("{missing} is missing"), Vec::new(), id.to_owned())
        }
        NotFound::Missing { path: missing, through } => (
            format!("{name} {path} is a symbolic link that leads nowhere"),
            format!("{missing} is missing; links are followed inside the image, and absolute ones begin at its root"),
            through.clone(),
            if role == Role::Init { "init-dangling".to_owned() } else { id.to_owned() },
        ),
        NotFound::NotDirectory { path: place } => {
            (format!("{name} {path} is not there"), format!("{place} is no directory"), Vec::new(), id.to_owned())
        }
        NotFound::Loop { through } => (
            format!("{name} {path} is a symbolic link that leads to itself"),
            "more than 40 links were followed (ELOOP)".into(),
            through.clone(),
            if role == Role::Init { "init-link-loop".to_owned() } else { id.to_owned() },
        ),
        NotFound::Unknown(trouble) => return scene.trouble(path, trouble),
    };
    let remedy = format!("put {path} into the image, or name another one");
    scene.fatal(&id, Certain, &Words { what: &what, why: &why, remedy: &remedy }, &evidence);
}

/// Looks whether the kernel could run the program at `path`, which is there. Whether it could.
pub(crate) fn check(scene: &mut Scene<'_>, tree: &dyn Tree, node: Node, path: &str) -> bool {
    let mut current = (node, path.to_owned());
    for depth in 0..=SCRIPTS {
        let role = if depth == 0 { Role::Init } else { Role::Interpreter };
        let Some(next) = step(scene, tree, &current, role) else { return false };
        let Some(interpreter) = next else { return true };
        let shown = String::from_utf8_lossy(&interpreter).into_owned();
        match lookup(tree, &interpreter) {
            Found::Node(node, path) => {
                scene.fact("script-interpreter", format_args!("{shown}, of {}", current.1));
                current = (node, path);
            }
            Found::No(NotFound::Unknown(trouble)) => {
                scene.trouble(&shown, &trouble);
                return false;
            }
            Found::No(why) => {
                script_missing(scene, &current.1, &shown, &why);
                return false;
            }
        }
    }
    let words = Words {
        what: &format_args!("init {path} is a script whose interpreters are scripts themselves, more than five deep"),
        why: &"the kernel gives up with error -40 (ELOOP)",
        remedy: &"let the script name a program as its interpreter",
    };
    scene.fatal("script-nested-too-deep", Certain, &words, &[format!("the last one looked at is {}", current.1)]);
    false
}

/// `#!` names what is not there.
fn script_missing(scene: &mut Scene<'_>, script: &str, interpreter: &str, why: &NotFound) {
    if interpreter.ends_with('\r') {
        let words = Words {
            what: &format_args!("the script {script} has lines that end with a carriage return"),
            why: &"it was written on Windows: the kernel takes the return as part of the interpreter's name, which is missing (error -2)",
            remedy: &"convert it with dos2unix or sed -i 's/\\r$//'",
        };
        return scene.fatal("script-carriage-return", Certain, &words, &[format!("#!{interpreter}")]);
    }
    if let NotFound::Missing { through, .. } | NotFound::Loop { through } = why {
        let words = Words {
            what: &format_args!("the script {script} names the interpreter {interpreter}, which is not in the image"),
            why: &"the kernel says error -2 for the script, although the script is there",
            remedy: &format_args!("put {interpreter} into the image, or change the first line of {script}"),
        };
        let mut evidence = vec![format!("the first line of {script} is #!{interpreter}")];
        evidence.extend(through.iter().cloned());
        return scene.fatal("script-interpreter-missing", Certain, &words, &evidence);
    }
    missing(scene, interpreter, why, Role::Interpreter, "script-interpreter-missing");
}

/// One file: nothing if it cannot run, the interpreter if it is a script, `Some(None)` for a program.
#[allow(clippy::option_option, reason = "the three outcomes of a step, used once")]
fn step(scene: &mut Scene<'_>, tree: &dyn Tree, (node, path): &(Node, String), role: Role) -> Option<Option<Vec<u8>>> {
    let name = if role == Role::Init { "init" } else { "interpreter" };
    if node.kind != Kind::File {
        let kind = if node.kind == Kind::Directory { "a directory" } else { "no regular file" };
        let words = Words {
            what: &format_args!("{name} {path} is {kind}"),
            why: &"the kernel cannot run it: error -13",
            remedy: &"put a program there",
        };
        scene.fatal(&format!("{name}-not-a-file"), Certain, &words, &[format!("its mode is {:o}", node.mode)]);
        return None;
    }
    if node.mode & 0o111 == 0 {
        let words = Words {
            what: &format_args!("{name} {path} is not executable"),
            why: &"nobody may execute it, not even root: error -13",
            remedy: &format_args!("chmod 755 {path}"),
        };
        scene.fatal(&format!("{name}-not-executable"), Certain, &words, &[format!("its mode is {:o}", node.mode)]);
        return None;
    }
    let file = File { tree, node: *node };
    let head = match up_to(&file, 0, HEAD) {
        Ok(head) => head,
        Err(trouble) => {
            scene.trouble(path, &trouble);
            return None;
        }
    };
    if let Some(line) = head.strip_prefix(b"#!") {
        return script(scene, path, line).map(Some);
    }
    match Elf::read(&file) {
        Ok(elf) => program::check(scene, tree, &file, &elf, path, role).then_some(None),
        Err(fault) => {
            unreadable(scene, path, &fault, &head, node.size, role);
            None
        }
    }
}

/// The interpreter in the rest of the first line of a script (fs/binfmt_script.c).
fn script(scene: &mut Scene<'_>, path: &str, line: &[u8]) -> Option<Vec<u8>> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let end = line.iter().position(|byte| matches!(byte, b'\n' | 0));
    let line = line.get(..end.unwrap_or(line.len())).unwrap_or_default();
    let start = line.iter().position(|byte| !blank(byte)).unwrap_or(line.len());
    let rest = line.get(start..).unwrap_or_default();
    let interpreter = rest.split(blank).next().unwrap_or_default();
    let cut = end.is_none() && interpreter.len() == rest.len() && line.len().saturating_add(2) >= HEAD;
    if interpreter.is_empty() || cut {
        let words = Words {
            what: &format_args!("the first line of the script {path} names no interpreter that can be read"),
            why: &"the kernel reads 256 bytes of it: error -8",
            remedy: &"write #!/bin/sh, or what is meant, as the first line",
        };
        let shown = String::from_utf8_lossy(line);
        scene.fatal("script-without-interpreter", Certain, &words, &[format!("the first line is #!{shown}")]);
        return None;
    }
    Some(interpreter.to_vec())
}

/// A file that is no ELF file that can be run.
fn unreadable(scene: &mut Scene<'_>, path: &str, fault: &Fault, head: &[u8], bytes: u64, role: Role) {
    let id = |init: &str| if role == Role::Library { format!("library-{init}") } else { format!("elf-{init}") };
    let error = if role == Role::Init { "error -8" } else { "error -80 or -8" };
    let evidence = [format!("{path} has {}", size(bytes)), format!("it begins with {}", shown(head))];
    let text = String::from_utf8_lossy(head);
    let words = match fault {
        Fault::Trouble(trouble) => return scene.trouble(path, trouble),
        Fault::NotElf if bytes == 0 => Words {
            what: &format_args!("{path} is empty"),
            why: &format_args!("the kernel has nothing to run: {error}"),
            remedy: &"put the file into the image again",
        },
        Fault::NotElf if head.iter().all(|byte| *byte == 0) => Words {
            what: &format_args!("{path} begins with zeros"),
            why: &format_args!("its contents are lost, most likely by a copy that was cut: {error}"),
            remedy: &"make or copy the image anew, and compare checksums",
        },
        Fault::NotElf if text.trim_start_matches('\u{feff}').trim_start().starts_with("#!") => Words {
            what: &format_args!("{path} is a script, but something stands before its #!"),
            why: &format_args!("the kernel wants #! as the first two bytes: {error}"),
            remedy: &"remove the byte order mark, or the empty lines, at its beginning",
        },
        Fault::NotElf => Words {
            what: &format_args!("{path} is neither an ELF program nor a script with #!"),
            why: &format_args!("the kernel does not know how to run it: {error}"),
            remedy: &"for a shell script, write #!/bin/sh as the first line",
        },
        other => {
            let words = Words {
                what: &format_args!("{path} is a truncated or damaged ELF file"),
                why: &format_args!("{other}: {error}"),
                remedy: &"build or copy it anew, and compare checksums",
            };
            return scene.fatal(&id("header-broken"), Certain, &words, &evidence);
        }
    };
    let kind = if bytes == 0 { "empty" } else { "not-a-program" };
    scene.fatal(&id(kind), Certain, &words, &evidence);
}

/// Says what is wrong with a library or a loader that is not even ELF.
pub(crate) fn unreadable_part(scene: &mut Scene<'_>, path: &str, fault: &Fault, file: &File<'_>, role: Role) {
    let head = up_to(file, 0, HEAD).unwrap_or_default();
    unreadable(scene, path, fault, &head, file.node.size, role);
}

fn shown(head: &[u8]) -> String {
    let head = head.get(..head.len().min(16)).unwrap_or_default();
    let printable = !head.is_empty() && head.iter().all(|byte| byte.is_ascii_graphic() || b" \t\r\n".contains(byte));
    if printable {
        format!("{:?}", String::from_utf8_lossy(head))
    } else {
        head.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
    }
}

/// Whether a program is for the guest; says so if not.
pub(crate) fn machine(scene: &mut Scene<'_>, elf: &Elf, path: &str) -> bool {
    let (right, old) = match scene.guest.architecture {
        Architecture::X86_64 => (elf::X86_64, elf::I386),
        Architecture::Aarch64 => (elf::AARCH64, elf::ARM),
    };
    if elf.machine == right && elf.is_64 {
        return true;
    }
    let own = elf::machine_name(elf.machine);
    let bits = if elf.is_64 { "64-bit" } else { "32-bit" };
    let evidence = [format!("{path} is a {bits} ELF file for {own}; the guest is {}", elf::machine_name(right))];
    if elf.machine == old && !elf.is_64 {
        let words = Words {
            what: &format_args!("{path} is a 32-bit program"),
            why: &"a 64-bit kernel runs it only if it was built to (CONFIG_IA32_EMULATION, CONFIG_COMPAT), and arm64 only on a CPU with AArch32; else error -8",
            remedy: &"use a 64-bit root file system where there is one",
        };
        scene.warn("elf-32-bit", Likely, &words, &evidence);
        return true;
    }
    let words = Words {
        what: &format_args!("{path} is for another architecture, {own}"),
        why: &"the kernel says error -8 (exec format error)",
        remedy: &"use an image of the guest's architecture",
    };
    scene.fatal("elf-wrong-machine", Certain, &words, &evidence);
    false
}

/// Whether the dynamic loader or a library is for the machine of the program; says so if not.
pub(crate) fn part_machine(scene: &mut Scene<'_>, elf: &Elf, path: &str, program: &Elf, program_path: &str) -> bool {
    if (elf.machine, elf.is_64) == (program.machine, program.is_64) {
        return true;
    }
    let shown =
        |elf: &Elf| format!("{}, {}", if elf.is_64 { "64-bit" } else { "32-bit" }, elf::machine_name(elf.machine));
    let words = Words {
        what: &format_args!("{path} is for another machine than {program_path}, which needs it"),
        why: &"the kernel says error -80, the dynamic loader `wrong ELF class` or that it cannot open the file",
        remedy: &"use an image of the guest's architecture, with the libraries of its programs",
    };
    let evidence = [format!("{path}: {}", shown(elf)), format!("{program_path}: {}", shown(program))];
    scene.fatal("elf-wrong-machine", Certain, &words, &evidence);
    false
}
