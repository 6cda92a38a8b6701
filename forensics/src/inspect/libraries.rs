//! Whether the shared libraries that a program needs are in the image, where the dynamic loader looks.

use super::elf::{Elf, dynamic};
use super::exec::{self, Role};
use super::limits::LIBRARIES;
use super::loader::{Loader, Paths, base};
use super::program;
use super::scene::{Scene, Words};
use super::tree::{File, Tree};
use super::trouble::Trouble;
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
    let loaded = [asked, real].map(|path| base(path).as_bytes().to_vec());
    let mut search =
        Search { program, loader, loaded: loaded.into(), asked_for: BTreeSet::new(), todo: VecDeque::new() };
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

fn not_found(scene: &mut Scene<'_>, wanted: &Wanted) {
    let name = String::from_utf8_lossy(&wanted.name);
    if wanted.paths.unsure {
        let trouble = Trouble::Unsupported(format!(
            "the library {name} may be in a folder that cannot be told (RUNPATH, or the files of the dynamic loader)"
        ));
        return scene.trouble(&wanted.by, &trouble);
    }
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
        let Some(library) = self.loader.find(&wanted.name, &wanted.paths)? else {
            not_found(scene, wanted);
            return Ok(());
        };
        let file = File { tree, node: library.node };
        let real = library.real.as_str();
        match &library.elf {
            Ok(elf) if exec::part_machine(scene, elf, real, self.program.elf, self.program.path) => {
                program::segments(scene, elf, &file, real);
                self.add(elf, &file, [&library.path, real], &wanted.paths)?;
            }
            Ok(_) => {}
            // glibc has linker scripts under such names, but no loader asks for them.
            Err(fault) => exec::unreadable_part(scene, real, fault, &file, Role::Library),
        }
        Ok(())
    }
}
