//! What the kernel would run of a tree, and whether it could (init/main.c: kernel_init).

use super::archive::Archive;
use super::bytes::{find, up_to};
use super::exec::{self, Role};
use super::scene::{Scene, Words};
use super::tree::{File, Found, Kind, Node, NotFound, Tree, lookup, lookup_link, target};
use crate::Report;
use wire::report::Confidence::{Certain, Likely};
use wire::report::Severity;

/// What is tried, in this order, where no init= is given.
const DEFAULTS: [&str; 4] = ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"];
/// The most bytes of a list of modules that are read.
const MODULES_BYTES: usize = 1 << 20;
/// The most versions of modules that are looked at.
const VERSIONS: usize = 4;

/// An initramfs: /init, or what rdinit= says.
pub(crate) fn initramfs(scene: &mut Scene<'_>, archive: &Archive<'_>, cut: bool) {
    let given = scene.parameter("rdinit");
    let init = given.filter(|init| !init.is_empty()).unwrap_or("/init");
    scene.fact("init-order", format_args!("{init} ({})", if given.is_some() { "rdinit=" } else { "of an initramfs" }));
    modules(scene, archive, true);
    match lookup(archive, init.as_bytes()) {
        Found::Node(..) => {
            // One that fails is only said to have failed. A failing init= ends the boot, else the defaults follow, all of them
            // in the initramfs.
            let mut all = vec![init];
            match scene.parameter("init").filter(|init| !init.is_empty()) {
                Some(init) => all.push(init),
                None => all.extend(DEFAULTS),
            }
            candidates(scene, archive, &all, archive.is_partial());
        }
        Found::No(why) if cut && (!matches!(why, NotFound::Unknown(_)) || !archive.has_entry(init.as_bytes())) => {
            let words = Words {
                what: &format_args!("{init} is not in what could be read of the initramfs"),
                why: &"it may be in the rest",
                remedy: &"make or copy the initramfs anew",
            };
            scene.warn("init-not-seen", Likely, &words, &[]);
        }
        Found::No(NotFound::Unknown(trouble)) => scene.trouble(init, &trouble),
        Found::No(why) => no_init(scene, archive, init, &why),
    }
}

/// There is no /init: the kernel goes on to mount root= itself.
fn no_init(scene: &mut Scene<'_>, archive: &Archive<'_>, init: &str, why: &NotFound) {
    if let Some(root) = scene.parameter("root") {
        let words = Words {
            what: &format_args!(
                "the initramfs has no {init} that can be reached: the kernel mounts root={root} itself"
            ),
            why: &"an initramfs without it only adds files, such as firmware or microcode",
            remedy: &"nothing, if that is meant; else put the program there",
        };
        return scene.warn("initramfs-without-init", Certain, &words, &[describe_missing(why)]);
    }
    if archive.has_entry(init.as_bytes()) && matches!(why, NotFound::Missing { through, .. } if through.is_empty()) {
        let words = Words {
            what: &format_args!("the archive has {init}, but not the directory that it is in before it"),
            why: &"the kernel makes no directories by itself, so that the file is not unpacked",
            remedy: &"make the archive with the directories first: find . | sort | cpio -o -H newc",
        };
        return scene.fatal("cpio-parent-missing", Certain, &words, &[describe_missing(why)]);
    }
    exec::missing(scene, init, why, Role::Init, "init-missing");
    // It says no more than that: what people see is a panic about the root file system.
    scene.fact("without-init", "VFS: Unable to mount root fs on unknown-block(0,0)");
}

fn describe_missing(why: &NotFound) -> String {
    match why {
        NotFound::Missing { path, through } if through.is_empty() => format!("{path} is missing"),
        NotFound::Missing { path, through } => format!("{path} is missing ({})", through.join(", ")),
        NotFound::NotDirectory { path } => format!("{path} is no directory"),
        NotFound::Loop { .. } => "more than 40 links".into(),
        NotFound::Unknown(trouble) => trouble.to_string(),
    }
}

/// The facts of an init that was found.
fn describe(scene: &mut Scene<'_>, tree: &dyn Tree, init: &str, path: &str) {
    scene.fact("init", if init == path { init.to_owned() } else { format!("{init}, which is {path}") });
    let Found::Node(node, _) = lookup_link(tree, init.as_bytes()) else { return };
    if let Some(target) = target(tree, &node).ok().filter(|_| node.kind == Kind::Link) {
        scene.fact("init-link", String::from_utf8_lossy(&target));
    }
}

/// A root file system: init=, or the first of the defaults that can be run.
pub(crate) fn filesystem(scene: &mut Scene<'_>, tree: &dyn Tree) {
    modules(scene, tree, false);
    devices(scene, tree);
    if let Some(init) = scene.parameter("init").filter(|init| !init.is_empty()) {
        scene.fact("init-order", format_args!("{init} (init=)"));
        match lookup(tree, init.as_bytes()) {
            Found::Node(node, path) => {
                describe(scene, tree, init, &path);
                exec::check(scene, tree, node, &path);
            }
            Found::No(why) => exec::missing(scene, init, &why, Role::Init, "init-missing"),
        }
        return;
    }
    scene.fact("init-order", DEFAULTS.join(", "));
    candidates(scene, tree, &DEFAULTS, false);
}

/// The kernel tries one after the other, and takes the first that can be run. Behind one of which that cannot be told,
/// nothing ends the boot for certain; nor, from the first on, where what is found is `unsure`.
fn candidates(scene: &mut Scene<'_>, tree: &dyn Tree, all: &[&str], unsure: bool) {
    let mut failed: Vec<Report> = Vec::new();
    let mut absent = Vec::new();
    let mut unknown = unsure;
    for &init in all {
        let mut report = Report::default();
        let mut trial = Scene { guest: scene.guest, work: scene.work, report: &mut report, of: scene.of.clone() };
        let runs = match lookup(tree, init.as_bytes()) {
            Found::Node(node, path) => {
                describe(&mut trial, tree, init, &path);
                exec::check(&mut trial, tree, node, &path)
            }
            Found::No(NotFound::Unknown(trouble)) => {
                trial.trouble(init, &trouble);
                false
            }
            Found::No(NotFound::Missing { through, .. }) if through.is_empty() => {
                absent.push(format!("{init} is missing"));
                continue;
            }
            Found::No(why) => {
                exec::missing(&mut trial, init, &why, Role::Init, "init-missing");
                false
            }
        };
        if runs {
            for before in failed {
                merge(scene.report, before, true);
            }
            merge(scene.report, report, unknown);
            return;
        }
        unknown |= report.worst() != Some(Severity::Fatal);
        failed.push(report);
    }
    if failed.is_empty() {
        no_default(scene, tree, &absent);
    }
    for report in failed {
        merge(scene.report, report, unknown);
    }
}

/// Takes over what was found; of an init that another one stands in for, nothing ends the boot.
fn merge(report: &mut Report, from: Report, milder: bool) {
    for fact in from.facts {
        if report.facts.len() < Report::MAX_FACTS {
            report.facts.push(fact);
        }
    }
    for mut finding in from.findings {
        if milder {
            finding.severity = finding.severity.min(Severity::Warning);
        }
        if !report.findings.contains(&finding) {
            report.finding(finding);
        }
    }
}

/// None of the programs that the kernel tries is there.
fn no_default(scene: &mut Scene<'_>, tree: &dyn Tree, absent: &[String]) {
    let container = [b"/.dockerenv".as_slice(), b"/etc/os-release", b"/usr/lib/os-release", b"/etc/alpine-release"];
    let looks_like = container.iter().any(|path| matches!(lookup(tree, path), Found::Node(..)));
    let words = Words {
        what: &"there is no init: none of the programs that the kernel tries is in the image",
        why: &if looks_like {
            "the image of a container has only what its one program needs; the kernel will say `No working init found`"
        } else {
            "the kernel will say `No working init found`"
        },
        remedy: &"put an init into it, or name the program to run with init=",
    };
    scene.fatal("init-missing", Certain, &words, absent);
}

/// /dev, on which the kernel mounts the devices.
fn devices(scene: &mut Scene<'_>, tree: &dyn Tree) {
    let evidence = match lookup(tree, b"/dev") {
        Found::Node(Node { kind: Kind::Directory, .. }, _) => return console(scene, tree),
        Found::Node(..) => "/dev is no directory".to_owned(),
        Found::No(NotFound::Unknown(_)) => return,
        Found::No(why) => describe_missing(&why),
    };
    let words = Words {
        what: &"there is no directory /dev on which the kernel could mount the devices",
        why: &"devtmpfs is not mounted: programs have neither /dev/console nor /dev/null, and most an init fails",
        remedy: &"mkdir /dev in the image",
    };
    scene.warn("dev-missing", Certain, &words, &[evidence]);
}

fn console(scene: &mut Scene<'_>, tree: &dyn Tree) {
    if matches!(lookup(tree, b"/dev/console"), Found::No(NotFound::Missing { .. })) {
        scene.fact("dev-console", "none; the kernel must have CONFIG_DEVTMPFS_MOUNT, as nearly all have");
    }
}

/// What the modules in a tree tell of the kernel that they are for. Those of an initramfs are `needed` to find the disk.
fn modules(scene: &mut Scene<'_>, tree: &dyn Tree, needed: bool) {
    for folder in ["/lib/modules", "/usr/lib/modules"] {
        let Found::Node(node, real) = lookup(tree, folder.as_bytes()) else { continue };
        if real != folder || node.kind != Kind::Directory {
            continue;
        }
        let Ok(versions) = tree.names(&node) else { continue };
        for version in versions.iter().take(VERSIONS) {
            of_version(scene, tree, &format!("{folder}/{}", String::from_utf8_lossy(version)), needed);
        }
    }
}

/// The drivers that a guest needs, with the places of their modules.
const DRIVERS: [(&str, &str); 4] = [
    ("virtio_mmio", "kernel/drivers/virtio"),
    ("virtio_blk", "kernel/drivers/block"),
    ("ext4", "kernel/fs/ext4"),
    ("8250", "kernel/drivers/tty/serial/8250"),
];

fn of_version(scene: &mut Scene<'_>, tree: &dyn Tree, folder: &str, needed: bool) {
    let read = |path: String| match lookup(tree, path.as_bytes()) {
        Found::Node(node, _) if node.kind == Kind::File => up_to(&File { tree, node }, 0, MODULES_BYTES).ok(),
        _ => None,
    };
    let Some(built_in) = read(format!("{folder}/modules.builtin")) else { return };
    let mut said = Vec::new();
    let mut absent = Vec::new();
    for (driver, place) in DRIVERS {
        let file = format!("{place}/{driver}.ko");
        let is_module = ["", ".xz", ".zst", ".gz"]
            .iter()
            .any(|packed| matches!(lookup(tree, format!("{folder}/{file}{packed}").as_bytes()), Found::Node(..)));
        let state = if find(&built_in, format!("{file}\n").as_bytes()).is_some() {
            "built in"
        } else if is_module {
            "module"
        } else {
            absent.push(driver);
            "not here"
        };
        said.push(format!("{driver} {state}"));
    }
    scene.fact("drivers", format_args!("{folder}: {}", said.join(", ")));
    // Without modules at all the folder says nothing of a kernel whose drivers are elsewhere.
    if needed && absent.contains(&"virtio_mmio") && !built_in.is_empty() {
        let words = Words {
            what: &format_args!(
                "the driver virtio_mmio is neither built into the kernel of {folder} nor there as a module"
            ),
            why: &"without it the guest finds no disk",
            remedy: &"add the modules virtio_mmio and virtio_blk (initramfs-tools: MODULES=most, or /etc/initramfs-tools/modules)",
        };
        scene.warn("virtio-mmio-not-here", Likely, &words, &[said.join(", ")]);
    }
}
