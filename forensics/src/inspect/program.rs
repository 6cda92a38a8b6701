//! An ELF program as the kernel loads it: its machine, its segments, its interpreter, its first code.

use super::bytes::size;
use super::elf::{self, Elf, code, dynamic};
use super::exec::{self, Role};
use super::libraries::{self, Program};
use super::scene::{Scene, Words};
use super::tree::{File, Found, Kind, Node, Tree, lookup};
use super::trouble::Trouble;
use wire::report::Confidence::{Certain, Likely, Possible};

/// Checks a program; whether the kernel would start it.
pub(crate) fn check(
    scene: &mut Scene<'_>,
    tree: &dyn Tree,
    file: &File<'_>,
    elf: &Elf,
    path: &str,
    role: Role,
) -> bool {
    let bits = if elf.is_64 { "64-bit" } else { "32-bit" };
    let name = if role == Role::Init { "init-elf" } else { "interpreter-elf" };
    scene.fact(name, format_args!("{path}: {bits}, {}", elf::machine_name(elf.machine)));
    if !exec::machine(scene, elf, path) {
        return false;
    }
    let sound = segments(scene, elf, file, path);
    entry(scene, elf, path);
    if let Err(trouble) = first_code(scene, elf, file, path) {
        scene.trouble(path, &trouble);
    }
    if let Err(trouble) = level(scene, elf, file, path) {
        scene.trouble(path, &trouble);
    }
    let interpreter = match elf.interpreter(file) {
        Ok(interpreter) => interpreter,
        Err(fault) => {
            exec::unreadable_part(scene, path, &fault, file, role);
            return false;
        }
    };
    match interpreter {
        Some(interpreter) => dynamic_program(scene, tree, file, elf, path, &interpreter) && sound,
        None => {
            scene.fact("elf-interpreter", format_args!("{path}: none (static)"));
            sound
        }
    }
}

/// Checks the dynamic loader and the libraries of a program.
fn dynamic_program(
    scene: &mut Scene<'_>,
    tree: &dyn Tree,
    file: &File<'_>,
    elf: &Elf,
    path: &str,
    interpreter: &[u8],
) -> bool {
    let shown = String::from_utf8_lossy(interpreter).into_owned();
    scene.fact("elf-interpreter", format_args!("{path}: {shown}"));
    match lookup(tree, interpreter) {
        Found::Node(node, real) => {
            let program = Program { file, elf, path };
            let fine = loader(scene, tree, node, &real, &program);
            libraries::check(scene, tree, &program, &shown, &real);
            fine
        }
        Found::No(super::tree::NotFound::Unknown(trouble)) => {
            scene.trouble(&shown, &trouble);
            false
        }
        Found::No(why) => {
            let evidence = match &why {
                super::tree::NotFound::Missing { through, .. } | super::tree::NotFound::Loop { through } => {
                    through.clone()
                }
                _ => Vec::new(),
            };
            let words = Words {
                what: &format_args!("{path} needs the ELF interpreter {shown}, which is not in the image"),
                why: &"the kernel says error -2 for the program, although the program is there",
                remedy: &"put the dynamic loader and its libraries into the image, or use a static program",
            };
            scene.fatal("elf-interpreter-missing", Certain, &words, &evidence);
            false
        }
    }
}

/// Checks the dynamic loader.
fn loader(scene: &mut Scene<'_>, tree: &dyn Tree, node: Node, path: &str, program: &Program<'_>) -> bool {
    let file = File { tree, node };
    if node.kind != Kind::File || node.mode & 0o111 == 0 {
        let words = Words {
            what: &format_args!("the ELF interpreter {path} is no executable file"),
            why: &"the kernel opens it as a program: error -13",
            remedy: &format_args!("chmod 755 {path}, or put the file there"),
        };
        scene.fatal("interpreter-not-executable", Certain, &words, &[format!("its mode is {:o}", node.mode)]);
        return false;
    }
    match Elf::read(&file) {
        Ok(elf) => {
            if !exec::part_machine(scene, &elf, path, program.elf, program.path) {
                return false;
            }
            entry(scene, &elf, path);
            if let Err(trouble) = first_code(scene, &elf, &file, path) {
                scene.trouble(path, &trouble);
            }
            segments(scene, &elf, &file, path)
        }
        Err(fault) => {
            exec::unreadable_part(scene, path, &fault, &file, Role::Interpreter);
            false
        }
    }
}

/// Checks the segments as mmap will; whether the kernel would take them. What dies once it runs is started all the same.
pub(crate) fn segments(scene: &mut Scene<'_>, elf: &Elf, file: &File<'_>, path: &str) -> bool {
    let page = 4096_u64;
    let length = file.node.size;
    let mut fine = true;
    let remedy = "build or copy it anew, and compare checksums";
    for segment in elf.segments.iter().filter(|segment| segment.kind == elf::PT_LOAD) {
        let place = format!(
            "{path}: a segment of {} at {} of the file, address {:#x}",
            size(segment.file_bytes),
            segment.offset,
            segment.address
        );
        if segment.offset.saturating_add(segment.file_bytes) > length && segment.file_bytes > 0 {
            let words = Words {
                what: &format_args!("{path} is truncated: it ends within a segment"),
                why: &"what is missing is zeros up to the end of its page, and SIGBUS behind it (exitcode=0x00000007)",
                remedy: &remedy,
            };
            scene.fatal("elf-truncated", Certain, &words, &[place.clone(), format!("the file has {}", size(length))]);
        }
        let congruent = segment.address.wrapping_sub(segment.offset) & page.saturating_sub(1) == 0;
        let grows = segment.file_bytes <= segment.memory_bytes;
        if (!congruent && segment.file_bytes > 0) || !grows {
            let words = Words {
                what: &format_args!("{path} has a segment that cannot be mapped"),
                why: &if grows {
                    "its place in the file and its address differ within a page: error -22"
                } else {
                    "it is larger in the file than in memory: error -22"
                },
                remedy: &remedy,
            };
            scene.fatal("elf-segment-impossible", Certain, &words, std::slice::from_ref(&place));
            fine = false;
        }
    }
    fine
}

/// Checks that the first instruction is in code.
fn entry(scene: &mut Scene<'_>, elf: &Elf, path: &str) {
    let entered = elf.segments.iter().any(|segment| segment.is_code() && segment.holds(elf.entry));
    if !entered {
        let words = Words {
            what: &format_args!("{path} is entered outside of its code"),
            why: &"its header is damaged; it dies of SIGSEGV at once (exitcode=0x0000000b)",
            remedy: &"build or copy it anew, and compare checksums",
        };
        scene.fatal("elf-entry-outside-code", Certain, &words, &[format!("the entry is {:#x}", elf.entry)]);
    }
}

/// Looks at the code: pages of zeros, the first instruction, and what needs a newer CPU.
pub(crate) fn first_code(scene: &mut Scene<'_>, elf: &Elf, file: &File<'_>, path: &str) -> Result<(), Trouble> {
    let signal = if scene.is_arm64() { "SIGILL, exitcode=0x00000004" } else { "SIGSEGV, exitcode=0x0000000b" };
    if let code::First::Illegal(bytes) = code::first(elf, file)? {
        let words = Words {
            what: &format_args!("the first instruction of {path} is none"),
            why: &format_args!("its code was overwritten or lost; it dies at once (SIGILL, or {signal})"),
            remedy: &"build or copy it anew, and compare checksums",
        };
        let evidence = [format!("at the entry {:#x} stands {bytes}", elf.entry)];
        scene.fatal("code-destroyed-at-entry", Likely, &words, &evidence);
    }
    let (runs, all) = code::zeros(elf, file)?;
    if !runs.is_empty() {
        let words = Words {
            what: &format_args!("the code of {path} has pages of zeros"),
            why: &format_args!(
                "data was lost, as by a copy that was cut or a block that was never written; whatever runs there dies ({signal})"
            ),
            remedy: &"build or copy it anew, and compare checksums",
        };
        let shown = runs.iter().map(|run| format!("{path}: {} pages of zeros at {:#x}", run.pages, run.offset));
        scene.warn("code-pages-of-zeros", Likely, &words, &shown.collect::<Vec<_>>());
    } else if !all {
        scene.fact("code-looked-at", format_args!("{path}: the first 64 MiB"));
    }
    let beyond = code::beyond_baseline(elf, file)?;
    if !beyond.is_empty() {
        let words = Words {
            what: &format_args!("{path} was built for a newer CPU than the oldest of its architecture"),
            why: &"code near its entry has instructions that not every CPU has; on one without them it dies of SIGILL (exitcode=0x00000004)",
            remedy: &"if it does, build it for the baseline (-march=x86-64, -march=armv8-a)",
        };
        scene.warn("code-needs-newer-cpu", Possible, &words, &beyond);
    }
    Ok(())
}

/// The level of x86-64 that the file says it needs.
fn level(scene: &mut Scene<'_>, elf: &Elf, file: &File<'_>, path: &str) -> Result<(), Trouble> {
    if elf.machine != elf::X86_64 {
        return Ok(());
    }
    let levels = dynamic::x86_levels(elf, file)?;
    let name = match levels {
        0 | 1 => return Ok(()),
        2 | 3 => "x86-64-v2",
        4..=7 => "x86-64-v3",
        _ => "x86-64-v4",
    };
    let words = Words {
        what: &format_args!("{path} says that it needs a CPU of level {name}"),
        why: &"on an older CPU it dies of SIGILL (exitcode=0x00000004), or its dynamic loader says `CPU ISA level is lower than required`",
        remedy: &"see that the host's CPU has that level, or use an image built for x86-64",
    };
    scene.warn("x86-level-above-baseline", Likely, &words, &[format!("the note 0xc0008002 has {levels:#x}")]);
    Ok(())
}
