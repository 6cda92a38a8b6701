//! Programs as the kernel runs them.

use crate::make::{AARCH64, Cpio, EXIT, X86_64, clean, expect, found, guest, program};
use forensics::inspect::{Architecture, Guest};
use wire::report::Severity::{Fatal, Warning};

fn with_init(init: &[u8]) -> Vec<u8> {
    Cpio::default().file("init", init).end()
}

fn arm() -> Guest {
    Guest { architecture: Architecture::Aarch64, cmdline: String::new(), memory_bytes: None }
}

#[test]
fn scripts_are_followed_to_their_interpreter() {
    let base = || Cpio::default().folder("bin").file("bin/dash", &program(X86_64, EXIT));
    clean(&base().file("init", b"#!/bin/dash -e\necho\n").end(), &guest(""));
    let script = |line: &[u8]| base().file("init", line).end();
    let finding = expect(&script(b"#! /bin/bash\n"), &guest(""), "script-interpreter-missing", Fatal);
    assert!(finding.what.to_string().contains("/bin/bash"), "{finding:?}");
    expect(&script(b"#!/bin/dash\r\necho\r\n"), &guest(""), "script-carriage-return", Fatal);
    expect(&script(b"#!\n"), &guest(""), "script-without-interpreter", Fatal);
    expect(&script(b"\xef\xbb\xbf#!/bin/dash\n"), &guest(""), "elf-not-a-program", Fatal);
    expect(&script(b"echo hello\n"), &guest(""), "elf-not-a-program", Fatal);
    expect(&script(b""), &guest(""), "elf-empty", Fatal);
    let chain = |length: usize| {
        let scripts = (1..length).fold(base(), |archive, number| {
            let next = if number + 1 == length { "/bin/dash".into() } else { format!("/bin/{}", number + 1) };
            archive.file(&format!("bin/{number}"), format!("#!{next}\n").as_bytes())
        });
        scripts.file("init", if length > 1 { b"#!/bin/1\n" } else { b"#!/bin/dash\n" }).end()
    };
    clean(&chain(5), &guest(""));
    expect(&chain(6), &guest(""), "script-nested-too-deep", Fatal);
}

#[test]
fn program_of_another_machine_is_told() {
    expect(&with_init(&program(AARCH64, &[0; 64])), &guest(""), "elf-wrong-machine", Fatal);
    expect(&with_init(&program(X86_64, EXIT)), &arm(), "elf-wrong-machine", Fatal);
    let mut narrow = program(X86_64, EXIT);
    narrow[4] = 1;
    expect(&with_init(&narrow), &guest(""), "elf-header-broken", Fatal);
}

#[test]
fn program_that_was_cut_or_damaged_is_told() {
    let whole = program(X86_64, &EXIT.repeat(600));
    clean(&with_init(&whole), &guest(""));
    expect(&with_init(&whole[..5000]), &guest(""), "elf-truncated", Fatal);
    expect(&with_init(&whole[..100]), &guest(""), "elf-header-broken", Fatal);
    expect(&with_init(&whole[..40]), &guest(""), "elf-header-broken", Fatal);
    let broken = |at: usize, value: u64| {
        let mut elf = whole.clone();
        elf[at..at + 8].copy_from_slice(&value.to_le_bytes());
        with_init(&elf)
    };
    expect(&broken(24, 0x50_0000), &guest(""), "elf-entry-outside-code", Fatal);
    expect(&broken(80, 0x40_0123), &guest(""), "elf-segment-impossible", Fatal);
    expect(&broken(104, 1), &guest(""), "elf-segment-impossible", Fatal);
    expect(&broken(32, u64::MAX - 8), &guest(""), "elf-header-broken", Fatal);
}

#[test]
fn code_that_was_overwritten_is_told() {
    let mut code = EXIT.repeat(1200);
    code[8192..16384].fill(0);
    let finding = expect(&with_init(&program(X86_64, &code)), &guest(""), "code-pages-of-zeros", Warning);
    assert!(finding.evidence.get()[0].to_string().contains("pages of zeros at 0x"), "{finding:?}");
    code.fill(0);
    let finding = expect(&with_init(&program(AARCH64, &code)), &arm(), "code-destroyed-at-entry", Fatal);
    assert!(finding.why.to_string().contains("0x00000004"), "{finding:?}");
    expect(&with_init(&program(X86_64, &code)), &guest(""), "code-destroyed-at-entry", Fatal);
    expect(
        &with_init(&program(X86_64, &[&[0x0f, 0x0b][..], EXIT].concat())),
        &guest(""),
        "code-destroyed-at-entry",
        Fatal,
    );
}

#[test]
fn code_for_a_newer_cpu_is_told_where_it_is_reached() {
    // vpxor %ymm0, %ymm0, %ymm0
    let avx2 = [0xc5, 0xfd, 0xef, 0xc0];
    let (_, finding) =
        found(&with_init(&program(X86_64, &[&avx2[..], EXIT].concat())), &guest(""), "code-needs-newer-cpu");
    assert!(finding.evidence.get()[0].to_string().ends_with("needs AVX2"), "{finding:?}");
    assert_eq!(finding.severity, Warning);
    // Behind the end of the program nothing runs.
    clean(&with_init(&program(X86_64, &[EXIT, &avx2].concat())), &guest(""));
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    // ldaddal w0, w0, [x1]; ret
    let lse = [0xb8e0_0020, 0xd65f_03c0];
    expect(&with_init(&program(AARCH64, &words(&lse))), &arm(), "code-needs-newer-cpu", Warning);
    // The same behind a test of w16, as in a helper that chooses by the CPU.
    let helper = [0x3940_0210, 0x3400_0070, 0xb8e0_0020, 0xd65f_03c0, 0xd65f_03c0];
    clean(&with_init(&program(AARCH64, &words(&helper))), &arm());
}

/// A program with an interpreter and a note in segments of their own.
fn with_segment(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut elf = program(X86_64, EXIT);
    let code = elf.split_off(120);
    elf[56] = 2;
    let at = 120 + 56 + code.len();
    let mut header = [0; 56];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..16].copy_from_slice(&(at as u64).to_le_bytes());
    header[32..40].copy_from_slice(&(body.len() as u64).to_le_bytes());
    elf.extend_from_slice(&header);
    elf.extend_from_slice(&code);
    elf.extend_from_slice(body);
    let (length, entry) = (elf.len() as u64, 0x40_0078_u64 + 56);
    elf[24..32].copy_from_slice(&entry.to_le_bytes());
    elf[96..104].copy_from_slice(&length.to_le_bytes());
    elf[104..112].copy_from_slice(&length.to_le_bytes());
    elf
}

#[test]
fn missing_dynamic_loader_is_told() {
    let init = with_segment(3, b"/lib/ld-none.so.1\0");
    let finding = expect(&with_init(&init), &guest(""), "elf-interpreter-missing", Fatal);
    assert!(finding.what.to_string().contains("/lib/ld-none.so.1"), "{finding:?}");
    let base = |mode: u32, loader: &[u8]| {
        Cpio::default().folder("lib").entry("lib/ld-none.so.1", mode, loader).file("init", &init).end()
    };
    clean(&base(0o100_755, &program(X86_64, EXIT)), &guest(""));
    expect(&base(0o100_644, &program(X86_64, EXIT)), &guest(""), "interpreter-not-executable", Fatal);
    expect(&base(0o100_755, &program(AARCH64, EXIT)), &guest(""), "elf-wrong-machine", Fatal);
    expect(&base(0o100_755, b"not a loader"), &guest(""), "elf-not-a-program", Fatal);
}

#[test]
fn level_of_the_cpu_that_a_note_asks_for_is_told() {
    let property = |levels: u32| {
        let words = [4_u32, 16, 5, u32::from_le_bytes(*b"GNU\0"), 0xc000_8002, 4, levels, 0];
        with_segment(4, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
    };
    let finding = expect(&with_init(&property(0b111)), &guest(""), "x86-level-above-baseline", Warning);
    assert!(finding.what.to_string().contains("x86-64-v3"), "{finding:?}");
    clean(&with_init(&property(1)), &guest(""));
}

#[test]
fn missing_shared_library_is_told() {
    // The dynamic section: a needed name, and where the names are.
    let strings = b"\0libmissing.so.1\0";
    let at = 0x40_0000 + 120 + 56 + EXIT.len() as u64 + 48;
    let entries = [1_u64, 1, 5, at, 0, 0];
    let body: Vec<u8> = entries.iter().flat_map(|word| word.to_le_bytes()).chain(*strings).collect();
    let mut init = with_segment(2, &body);
    // The loader's name in a third header would move all: the loader is asked for by the second program.
    let loader = with_segment(3, b"/lib/ld.so\0");
    let archive = Cpio::default().folder("lib").file("lib/ld.so", &program(X86_64, EXIT));
    let first = archive.clone().file("init", &loader).end();
    clean(&first, &guest(""));
    init[56] = 3;
    let moved = init.split_off(176);
    let mut header = [0; 56];
    header[..4].copy_from_slice(&3_u32.to_le_bytes());
    let name_at = (176 + 56 + moved.len()) as u64;
    header[8..16].copy_from_slice(&name_at.to_le_bytes());
    header[32..40].copy_from_slice(&11_u64.to_le_bytes());
    init.extend_from_slice(&header);
    init.extend_from_slice(&moved);
    init.extend_from_slice(b"/lib/ld.so\0");
    // What was behind the headers is 56 bytes further on.
    for (at, value) in [(24, 0x40_0078 + 112), (96, init.len() as u64), (104, init.len() as u64)] {
        init[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let dynamic = u64::from_le_bytes(init[128..136].try_into().unwrap()) + 56;
    init[128..136].copy_from_slice(&dynamic.to_le_bytes());
    let table = dynamic as usize;
    init[table + 24..table + 32].copy_from_slice(&(at + 56).to_le_bytes());
    let finding = expect(&archive.clone().file("init", &init).end(), &guest(""), "library-missing", Fatal);
    assert!(finding.what.to_string().contains("libmissing.so.1"), "{finding:?}");
    clean(&archive.file("lib/libmissing.so.1", &program(X86_64, EXIT)).file("init", &init).end(), &guest(""));
}
