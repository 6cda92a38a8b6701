//! Whether the shared libraries that a program needs are in the image, where the dynamic loader looks.

use super::elf::{Elf, Fault, dynamic};
use super::exec::{self, Role};
use super::limits::LIBRARIES;
use super::loader::{Library, Loader, Paths, base};
use super::program;
use super::scene::{Scene, Words};
use super::tree::{File, Found, Kind, Tree, lookup};
use super::trouble::Trouble;
use crate::Report;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use wire::report::Confidence::Likely;

/// A program that needs libraries.
pub(crate) struct Program<'a> {
    pub(crate) file: &'a File<'a>,
    pub(crate) elf: &'a Elf,
    pub(crate) path: &'a str,
}

/// Looks for all libraries that `program` needs, and those that they need. Its loader was asked for by the path `asked`,
/// and is `real`.
pub(crate) fn check(scene: &mut Scene<'_>, tree: &dyn Tree, program: &Program<'_>, asked: &str, real: &str) {
    let loader = Loader::new(scene, tree, program.elf, asked, real);
    let mut loaded = BTreeSet::from([asked, real].map(|path| base(path).as_bytes().to_vec()));
    match soname(tree, real) {
        Ok(own) => loaded.extend(own),
        Err(trouble) => return scene.trouble(real, &trouble),
    }
    let mut search = Search { program, loader, loaded, asked_for: BTreeSet::new(), todo: VecDeque::new() };
    if let Err(trouble) = search.add(program.elf, program.file, [program.path; 2], &Paths::default()) {
        return scene.trouble(program.path, &trouble);
    }
    // In the order of the loader: the first who wants a library says where it is looked for.
    while let Some(wanted) = search.todo.pop_front() {
        if let Err(trouble) = search.library(scene, tree, &wanted) {
            return scene.trouble(&String::from_utf8_lossy(&wanted.name), &trouble);
        }
    }
}

/// What the dynamic loader calls itself.
fn soname(tree: &dyn Tree, path: &str) -> Result<Option<Vec<u8>>, Trouble> {
    let Found::Node(node, _) = lookup(tree, path.as_bytes()) else { return Ok(None) };
    let file = File { tree, node };
    match Elf::read(&file) {
        Ok(elf) if node.kind == Kind::File => Ok(dynamic::read(&elf, &file)?.and_then(|dynamic| dynamic.soname)),
        Err(Fault::Trouble(trouble)) => Err(trouble),
        _ => Ok(None),
    }
}

/// Nothing that fits is in the folders that are known, and there are others.
fn untold(scene: &mut Scene<'_>, wanted: &Wanted) {
    let name = String::from_utf8_lossy(&wanted.name);
    let trouble = Trouble::Unsupported(format!(
        "the library {name} may be in a folder that cannot be told (RUNPATH, or the files of the dynamic loader)"
    ));
    scene.trouble(&wanted.by, &trouble);
}

fn not_found(scene: &mut Scene<'_>, wanted: &Wanted) {
    if wanted.unsure() {
        return untold(scene, wanted);
    }
    let name = String::from_utf8_lossy(&wanted.name);
    let words = Words {
        what: &format_args!("{} needs the library {name}, which is not in the image", wanted.by),
        why: &"the dynamic loader ends with 127 (exitcode=0x00007f00): `error while loading shared libraries`",
        remedy: &"put the library into the image, or use a static program",
    };
    let evidence = ["it is in none of the folders in which loaders look, nor in /etc/ld.so.cache".into()];
    scene.fatal("library-missing", Likely, &words, &evidence);
}

/// A library that is looked for.
struct Wanted {
    name: Vec<u8>,
    /// Who wants it.
    by: String,
    paths: Rc<Paths>,
}

impl Wanted {
    /// It may be where it is not looked for.
    fn unsure(&self) -> bool {
        self.paths.unsure || self.name.contains(&b'$')
    }
}

/// The search.
struct Search<'a> {
    program: &'a Program<'a>,
    loader: Loader<'a>,
    /// Names of what is loaded, for which no file is looked for.
    loaded: BTreeSet<Vec<u8>>,
    asked_for: BTreeSet<Vec<u8>>,
    todo: VecDeque<Wanted>,
}

impl Search<'_> {
    /// Adds what a file needs that was found at `path`, and is `real`.
    fn add(&mut self, elf: &Elf, file: &File<'_>, [path, real]: [&str; 2], parent: &Paths) -> Result<(), Trouble> {
        let Some(dynamic) = dynamic::read(elf, file)? else { return Ok(()) };
        let paths = Rc::new(self.loader.paths(&dynamic, path, parent));
        self.loaded.extend(dynamic.soname);
        for name in dynamic.needed {
            let name = self.loader.needed(name, path);
            if self.asked_for.len() < LIBRARIES && !name.is_empty() && self.asked_for.insert(name.clone()) {
                self.todo.push_back(Wanted { name, by: real.to_owned(), paths: paths.clone() });
            }
        }
        Ok(())
    }

    /// Looks for one library, and checks it.
    fn library(&mut self, scene: &mut Scene<'_>, tree: &dyn Tree, wanted: &Wanted) -> Result<(), Trouble> {
        if self.loaded.contains(&wanted.name) || self.loader.is_itself(&wanted.name) {
            return Ok(());
        }
        let found = self.loader.find(&wanted.name, &wanted.paths, |library| self.faults(scene, tree, library))?;
        let Some((library, faults)) = found else {
            not_found(scene, wanted);
            return Ok(());
        };
        if wanted.unsure() && !faults.findings.is_empty() {
            untold(scene, wanted);
            return Ok(());
        }
        for mut fault in faults.findings {
            // Where the loader of this image looks, and whether it takes another one, is never certain.
            if !wanted.name.contains(&b'/') {
                fault.confidence = fault.confidence.min(Likely);
            }
            if !scene.report.findings.contains(&fault) {
                scene.report.finding(fault);
            }
        }
        match &library.elf {
            Ok(elf) if self.loader.fits(elf) => {
                self.add(elf, &File { tree, node: library.node }, [&library.path, &library.real], &wanted.paths)
            }
            _ => Ok(()),
        }
    }

    /// What is wrong with a library; nothing if the loader takes it.
    fn faults(&self, scene: &Scene<'_>, tree: &dyn Tree, library: &Library) -> Report {
        let mut report = Report::default();
        let mut scene = Scene { guest: scene.guest, work: scene.work, report: &mut report, of: scene.of.clone() };
        let file = File { tree, node: library.node };
        let real = library.real.as_str();
        match &library.elf {
            Ok(elf) => {
                if exec::part_machine(&mut scene, elf, real, self.program.elf, self.program.path) {
                    program::segments(&mut scene, elf, &file, real);
                }
            }
            Err(fault) => exec::unreadable_part(&mut scene, real, fault, &file, Role::Library),
        }
        report
    }
}
