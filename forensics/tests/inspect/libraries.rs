//! Shared libraries, where the dynamic loader looks for them.

use crate::linked::{ARM, I386, Linked};
use crate::make::{AARCH64, Cpio, EXIT, X86_64, clean, expect, guest, program};
use forensics::inspect::{Architecture, Guest, image};
use wire::report::Confidence::{Certain, Likely};
use wire::report::Severity::{Fatal, Warning};

const GLIBC: &str = "/lib64/ld-linux-x86-64.so.2";
const MUSL: &str = "/lib/ld-musl-x86_64.so.1";

/// An image with a loader, an init and further files, each with the folders that it is in.
fn with(loader: &str, machine: u16, init: &Linked, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let init = init.clone().loader(loader).end();
    let own = [(loader, Linked::new(machine).end()), ("/init", init)];
    let mut archive = Cpio::default();
    let mut folders = std::collections::BTreeSet::new();
    for (path, body) in own.iter().chain(files) {
        for (at, _) in path.match_indices('/').skip(1) {
            if folders.insert(&path[1..at]) {
                archive = archive.folder(&path[1..at]);
            }
        }
        archive = archive.file(&path[1..], body);
    }
    archive.end()
}

fn library(machine: u16) -> Vec<u8> {
    Linked::new(machine).end()
}

fn glibc(init: &Linked, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    with(GLIBC, X86_64, init, files)
}

fn musl(init: &Linked, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    with(MUSL, X86_64, init, files)
}

#[test]
fn library_of_another_machine_is_passed_over_where_a_right_one_follows() {
    let init = Linked::new(X86_64).needs("libm.so.6");
    let [old, right] = [("/lib/libm.so.6", library(I386)), ("/usr/lib64/libm.so.6", library(X86_64))];
    clean(&glibc(&init, &[old.clone(), right.clone()]), &guest(""));
    expect(&glibc(&init, std::slice::from_ref(&old)), &guest(""), "elf-wrong-machine", Fatal);
    // The cache names it twice as well.
    let cache = b"libm.so.6\0/opt/32/libm.so.6\0/opt/64/libm.so.6\0".to_vec();
    let files = [("/opt/32/libm.so.6", old.1), ("/opt/64/libm.so.6", right.1), ("/etc/ld.so.cache", cache)];
    clean(&glibc(&init, &files), &guest(""));
    expect(&glibc(&init, &files[..1]), &guest(""), "library-missing", Fatal);
}

#[test]
fn program_of_32_bits_wants_libraries_of_its_own_machine() {
    let arm = Guest { architecture: Architecture::Aarch64, cmdline: String::new(), memory_bytes: None };
    let cases = [
        (guest(""), I386, X86_64, "/lib/ld-linux.so.2", ["/lib/i386-linux-gnu", "/usr/lib32"]),
        (arm, ARM, AARCH64, "/lib/ld-linux-armhf.so.3", ["/lib/arm-linux-gnueabihf", "/usr/lib/arm-linux-gnueabi"]),
    ];
    for (guest, own, other, loader, folders) in cases {
        let init = Linked::new(own).needs("libc.so.6");
        for folder in folders {
            let report =
                image(&with(loader, own, &init, &[(&format!("{folder}/libc.so.6"), library(own))]).as_slice(), &guest);
            assert_eq!(report.worst(), Some(Warning), "{report:#?}");
            assert!(report.findings.iter().all(|finding| finding.id.as_str() == "elf-32-bit"), "{report:#?}");
        }
        let files = [("/usr/lib/libc.so.6", library(other))];
        expect(&with(loader, own, &init, &files), &guest, "elf-wrong-machine", Fatal);
        expect(&with(loader, other, &init, &[]), &guest, "elf-wrong-machine", Fatal);
        expect(&with(loader, own, &init, &[]), &guest, "library-missing", Fatal);
    }
}

#[test]
fn loader_is_no_missing_library() {
    clean(&glibc(&Linked::new(X86_64).needs("ld-linux-x86-64.so.2"), &[]), &guest(""));
    let moved = Linked::new(X86_64).needs("ld-linux-x86-64.so.2");
    clean(&with("/opt/lib/ld-linux-x86-64.so.2", X86_64, &moved, &[]), &guest(""));
    for name in ["libc.musl-x86_64.so.1", "libc.so", "libc.so.6", "libpthread.so.0", "ld-musl-x86_64.so.1"] {
        clean(&musl(&Linked::new(X86_64).needs(name), &[]), &guest(""));
    }
    let linked = Linked::new(X86_64).needs("libc.so").loader("/lib/ld.so").end();
    let link = |to: &str| {
        let archive = Cpio::default().folder("lib").link("lib/ld.so", to).file("init", &linked);
        archive.file(&format!("lib/{to}"), &program(X86_64, EXIT)).end()
    };
    clean(&link("ld-musl-x86_64.so.1"), &guest(""));
    expect(&link("ld-2.31.so"), &guest(""), "library-missing", Fatal);
    expect(&musl(&Linked::new(X86_64).needs("libcrypto.so.3"), &[]), &guest(""), "library-missing", Fatal);
    expect(&musl(&Linked::new(X86_64).needs("libmissing.so.3"), &[]), &guest(""), "library-missing", Fatal);
}

#[test]
fn folders_of_musl_are_its_own_three_or_those_of_its_file() {
    let init = Linked::new(X86_64).needs("libz.so.1");
    let path = |text: &str| ("/etc/ld-musl-x86_64.path", text.as_bytes().to_vec());
    for folder in ["/lib", "/usr/local/lib", "/usr/lib"] {
        let library = (&*format!("{folder}/libz.so.1"), library(X86_64));
        clean(&musl(&init, std::slice::from_ref(&library)), &guest(""));
        expect(&musl(&init, &[library, path("/opt\n")]), &guest(""), "library-missing", Fatal);
    }
    let library = ("/opt/lib/libz.so.1", library(X86_64));
    expect(&musl(&init, std::slice::from_ref(&library)), &guest(""), "library-missing", Fatal);
    clean(&musl(&init, &[library.clone(), path("/lib:/opt/lib")]), &guest(""));
    clean(&musl(&init, &[library, path("/lib\n/opt/lib\n")]), &guest(""));
}

#[test]
fn long_runpath_is_read_or_nothing_is_said_of_what_it_may_hide() {
    let init = |folders: usize| {
        let named = (1..folders).map(|number| format!("/opt/{number:060}:")).collect::<String>();
        Linked::new(X86_64).needs("libz.so.1").runpath(&format!("{named}/opt/last"))
    };
    let files = [("/opt/last/libz.so.1", library(X86_64))];
    clean(&glibc(&init(40), &files), &guest(""));
    expect(&glibc(&init(40), &[]), &guest(""), "library-missing", Fatal);
    for many in [100, 1000] {
        let report = image(&glibc(&init(many), &files).as_slice(), &guest(""));
        assert_eq!(report.worst(), Some(Warning), "{report:#?}");
        expect(&glibc(&init(many), &files), &guest(""), "cannot-look-inside", Warning);
    }
    // Only the loader knows what stands for these, or where it looks if it is of no C library that is known here.
    expect(
        &with("/system/bin/linker64", X86_64, &Linked::new(X86_64).needs("libz.so"), &[]),
        &guest(""),
        "cannot-look-inside",
        Warning,
    );
    expect(
        &glibc(&Linked::new(X86_64).needs("libz.so.1").runpath("/opt/$PLATFORM"), &[]),
        &guest(""),
        "cannot-look-inside",
        Warning,
    );
}

#[test]
fn rpath_is_handed_on_to_libraries_and_runpath_is_not() {
    let files = |first: Linked| [("/opt/lib/libfirst.so", first.end()), ("/opt/lib/libsecond.so", library(X86_64))];
    let first = || Linked::new(X86_64).needs("libsecond.so");
    let init = Linked::new(X86_64).needs("libfirst.so");
    clean(&glibc(&init.clone().rpath("/opt/lib"), &files(first())), &guest(""));
    expect(&glibc(&init.clone().runpath("/opt/lib"), &files(first())), &guest(""), "library-missing", Fatal);
    // What has a RUNPATH of its own takes no RPATH of others.
    let own = first().runpath("/none");
    expect(&glibc(&init.clone().rpath("/opt/lib"), &files(own)), &guest(""), "library-missing", Fatal);
    clean(&glibc(&init.clone().runpath("/opt/lib"), &files(first().runpath("$ORIGIN"))), &guest(""));
    // For musl both are one.
    clean(&musl(&init.runpath("/opt/lib"), &files(first())), &guest(""));
}

#[test]
fn library_that_was_loaded_by_its_path_is_found_by_its_name() {
    let init = Linked::new(X86_64).needs("/opt/libfirst.so").needs("libfirst.so.1");
    let first = Linked::new(X86_64).soname("libfirst.so.1").end();
    clean(&glibc(&init, &[("/opt/libfirst.so", first)]), &guest(""));
}

#[test]
fn folders_of_the_environment_are_looked_into() {
    let init = Linked::new(X86_64).needs("libz.so.1");
    let image = glibc(&init, &[("/opt/lib/libz.so.1", library(X86_64))]);
    clean(&image, &guest("LD_LIBRARY_PATH=/none:/opt/lib"));
    expect(&image, &guest(""), "library-missing", Fatal);
}

#[test]
fn library_without_code_is_no_fault() {
    let init = Linked::new(X86_64).needs("libicudata.so.72");
    clean(&glibc(&init, &[("/lib64/libicudata.so.72", Linked::new(X86_64).data_only().end())]), &guest(""));
}

#[test]
fn folder_that_cannot_be_told_may_hold_the_right_library() {
    let init = Linked::new(X86_64).needs("libz.so.1");
    let unsure = init.clone().runpath("/opt/app/$LIB");
    for bad in [library(I386), Vec::new(), b"GROUP ( libz.so )\n".to_vec(), library(X86_64)[..200].to_vec()] {
        let files = [("/opt/app/lib64/libz.so.1", library(X86_64)), ("/lib/libz.so.1", bad)];
        let report = image(&glibc(&unsure, &files).as_slice(), &guest(""));
        assert_eq!(report.worst(), Some(Warning), "{report:#?}");
        expect(&glibc(&unsure, &files), &guest(""), "cannot-look-inside", Warning);
        let report = image(&glibc(&init, &files).as_slice(), &guest(""));
        let worst = report.findings.iter().find(|finding| finding.severity == Fatal).unwrap();
        assert_eq!(worst.confidence, Likely, "{report:#?}");
    }
    let by_path = Linked::new(X86_64).needs("/lib/libz.so.1");
    let wrong = [("/lib/libz.so.1", library(I386))];
    assert_eq!(expect(&glibc(&by_path, &wrong), &guest(""), "elf-wrong-machine", Fatal).confidence, Certain);
}

#[test]
fn broken_file_hides_no_library_that_is_whole() {
    let init = Linked::new(X86_64).needs("libz.so.1");
    let script = b"/* GNU ld script */\nGROUP ( /lib64/libz.so.1 )\n".to_vec();
    let truncated = library(X86_64)[..200].to_vec();
    for (path, bad, id) in [
        ("/lib/libz.so.1", Vec::new(), "library-empty"),
        ("/usr/lib/libz.so.1", script, "library-not-a-program"),
        ("/lib/libz.so.1", truncated, "elf-truncated"),
    ] {
        let bad = (path, bad);
        clean(&glibc(&init, &[bad.clone(), ("/lib64/libz.so.1", library(X86_64))]), &guest(""));
        // It says more than one for another machine, which every loader passes over.
        let files = [("/lib/x86_64-linux-gnu/libz.so.1", library(I386)), bad];
        assert_eq!(expect(&glibc(&init, &files), &guest(""), id, Fatal).confidence, Likely);
    }
}

#[test]
fn loader_is_known_by_its_own_name_as_well() {
    let init = Linked::new(X86_64).needs("ld-linux-x86-64.so.2").loader("/lib/ld.so").end();
    let of = |own: &Linked| {
        let archive = Cpio::default().folder("lib").link("lib/ld.so", "ld-2.31.so").file("init", &init);
        archive.file("lib/ld-2.31.so", &own.end()).end()
    };
    clean(&of(&Linked::new(X86_64).soname("ld-linux-x86-64.so.2")), &guest(""));
    expect(&of(&Linked::new(X86_64).soname("ld-other.so.2")), &guest(""), "library-missing", Fatal);
}

#[test]
fn origin_in_the_name_of_a_library_is_the_folder_of_who_needs_it() {
    for name in ["$ORIGIN/lib/libz.so.1", "${ORIGIN}/lib/libz.so.1"] {
        let init = Linked::new(X86_64).needs(name);
        let files = [("/lib/libz.so.1", Linked::new(X86_64).needs("$ORIGIN/../opt/libx.so").end())];
        expect(&glibc(&init, &files), &guest(""), "library-missing", Fatal);
        clean(&glibc(&init, &[files[0].clone(), ("/opt/libx.so", library(X86_64))]), &guest(""));
    }
    for name in ["/usr/$LIB/libz.so.1", "libz-$PLATFORM.so.1"] {
        let image_of = glibc(&Linked::new(X86_64).needs(name), &[]);
        let report = image(&image_of.as_slice(), &guest(""));
        assert_eq!(report.worst(), Some(Warning), "{report:#?}");
        expect(&image_of, &guest(""), "cannot-look-inside", Warning);
    }
}

#[test]
fn folder_that_is_named_often_counts_once() {
    let often = |folder: &str| format!("{folder}:").repeat(100);
    let init = Linked::new(X86_64).needs("libz.so.1").runpath(&format!("{}/opt/last", often("/opt/first")));
    clean(&glibc(&init, &[("/opt/last/libz.so.1", library(X86_64))]), &guest(""));
    expect(&glibc(&init, &[]), &guest(""), "library-missing", Fatal);
}
