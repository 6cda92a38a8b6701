//! Whether the shared libraries that a program needs are in the image, where the dynamic loader looks.

use super::bytes::{Bytes, find, up_to};
use super::elf::{Elf, dynamic};
use super::exec::{self, Role};
use super::limits::LIBRARIES;
use super::scene::{Scene, Words};
use super::tree::{File, Found, Kind, Node, NotFound, Tree, lookup};
use super::trouble::Trouble;
use super::{Architecture, program};
use std::collections::BTreeSet;
use wire::report::Confidence::Likely;

/// The most bytes of the loader's cache or configuration that are read.
const CACHE_BYTES: usize = 1 << 20;

/// Where loaders look without being told: those of glibc, with Debian's folders of an architecture, and of musl.
fn folders(architecture: Architecture) -> Vec<String> {
    let triple = match architecture {
        Architecture::X86_64 => "x86_64-linux-gnu",
        Architecture::Aarch64 => "aarch64-linux-gnu",
    };
    let plain = ["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"].map(str::to_owned);
    let own = ["/lib", "/usr/lib", "/usr/local/lib"].map(|folder| format!("{folder}/{triple}"));
    own.into_iter().chain(plain).collect()
}

/// Looks for all libraries that `program` needs, and those that they need.
pub(crate) fn check(scene: &mut Scene<'_>, tree: &dyn Tree, program: &dyn Bytes, elf: &Elf, path: &str) {
    let cache = match lookup(tree, b"/etc/ld.so.cache") {
        Found::Node(node, _) if node.kind == Kind::File => {
            up_to(&File { tree, node }, 0, CACHE_BYTES).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let mut search = Search { tree, cache, seen: BTreeSet::new(), todo: Vec::new() };
    if let Err(trouble) = search.add(elf, program, path) {
        return scene.trouble(path, &trouble);
    }
    while let Some((name, wanted_by, run_path)) = search.todo.pop() {
        match search.find(scene, &name, &run_path) {
            Ok(Some((node, real))) => {
                if let Err(trouble) = library(scene, &mut search, node, &real) {
                    return scene.trouble(&real, &trouble);
                }
            }
            Ok(None) => not_found(scene, &name, &wanted_by),
            Err(trouble) => return scene.trouble(&String::from_utf8_lossy(&name), &trouble),
        }
    }
}

fn not_found(scene: &mut Scene<'_>, name: &[u8], wanted_by: &str) {
    let name = String::from_utf8_lossy(name);
    let words = Words {
        what: &format_args!("{wanted_by} needs the library {name}, which is not in the image"),
        why: &"the dynamic loader ends with 127 (exitcode=0x00007f00): `error while loading shared libraries`",
        remedy: &"put the library into the image, or use a static program",
    };
    let evidence = ["it is in none of the folders in which loaders look, nor in /etc/ld.so.cache".into()];
    scene.fatal("library-missing", Likely, &words, &evidence);
}

/// Checks a library that was found.
fn library(scene: &mut Scene<'_>, search: &mut Search<'_>, node: Node, path: &str) -> Result<(), Trouble> {
    let file = File { tree: search.tree, node };
    match Elf::read(&file) {
        Ok(elf) => {
            if exec::machine(scene, &elf, path, Role::Library) {
                library_segments(scene, &elf, &file, path);
                search.add(&elf, &file, path)?;
            }
        }
        Err(super::elf::Fault::Trouble(trouble)) => return Err(trouble),
        // glibc has linker scripts under such names, but no loader asks for them.
        Err(fault) => exec::unreadable_part(scene, path, &fault, &file, Role::Library),
    }
    Ok(())
}

/// Of a library, that it is whole: it has no entry that matters.
fn library_segments(scene: &mut Scene<'_>, elf: &Elf, file: &File<'_>, path: &str) {
    let entry = elf.segments.iter().find(|segment| segment.is_code()).map_or(0, |segment| segment.address);
    let mut elf = elf.clone();
    elf.entry = entry;
    program::segments(scene, &elf, file, path);
}

/// A library that is looked for: its name, who wants it, and where that one says to look.
type Wanted = (Vec<u8>, String, Vec<u8>);

/// The search.
struct Search<'a> {
    tree: &'a dyn Tree,
    cache: Vec<u8>,
    seen: BTreeSet<Vec<u8>>,
    todo: Vec<Wanted>,
}

impl Search<'_> {
    /// Adds what a file needs.
    fn add(&mut self, elf: &Elf, file: &dyn Bytes, path: &str) -> Result<(), Trouble> {
        let Some(dynamic) = dynamic::read(elf, file)? else { return Ok(()) };
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let run_path =
            String::from_utf8_lossy(&dynamic.run_path).replace("${ORIGIN}", folder).replace("$ORIGIN", folder);
        for name in dynamic.needed {
            if self.seen.len() < LIBRARIES && !name.is_empty() && self.seen.insert(name.clone()) {
                self.todo.push((name, path.to_owned(), run_path.clone().into_bytes()));
            }
        }
        Ok(())
    }

    /// The file of a name.
    fn find(&self, scene: &Scene<'_>, name: &[u8], run_path: &[u8]) -> Result<Option<(Node, String)>, Trouble> {
        let shown = String::from_utf8_lossy(name);
        if name.contains(&b'/') {
            return self.file(name);
        }
        let said = String::from_utf8_lossy(run_path).into_owned();
        let said = said.split(':').filter(|folder| !folder.is_empty()).take(16).map(str::to_owned);
        for folder in said.chain(folders(scene.guest.architecture)) {
            if let Some(found) = self.file(format!("{folder}/{shown}").as_bytes())? {
                return Ok(Some(found));
            }
        }
        match self.cached(name) {
            Some(path) => self.file(&path),
            None => Ok(None),
        }
    }

    fn file(&self, path: &[u8]) -> Result<Option<(Node, String)>, Trouble> {
        match lookup(self.tree, path) {
            Found::Node(node, real) if node.kind == Kind::File => Ok(Some((node, real))),
            Found::No(NotFound::Unknown(trouble)) => Err(trouble),
            _ => Ok(None),
        }
    }

    /// The path that the loader's cache has for a name: its strings are the names and the paths, each with a NUL.
    fn cached(&self, name: &[u8]) -> Option<Vec<u8>> {
        let end = [b"/", name, b"\0"].concat();
        let at = find(&self.cache, &end)?;
        let before = self.cache.get(..at)?;
        let start = before.iter().rposition(|byte| *byte == 0).map_or(0, |nul| nul.saturating_add(1));
        self.cache.get(start..at.saturating_add(end.len()).saturating_sub(1)).map(<[u8]>::to_vec)
    }
}
