//! Where the dynamic loader of a program looks for a shared library (glibc: ld.so(8); musl: ldso/dynlink.c).

use super::bytes::{find, up_to};
use super::elf::dynamic::Dynamic;
use super::elf::{self, Elf, Fault};
use super::limits::{PATH_BYTES, RUN_PATH_FOLDERS};
use super::scene::Scene;
use super::tree::{File, Found, Kind, Node, NotFound, Tree, lookup};
use super::trouble::Trouble;
use crate::Report;
use std::rc::Rc;

/// The most bytes of the loader's cache that are read.
const CACHE_BYTES: usize = 1 << 20;
/// The most bytes of musl's list of folders that are read.
const LIST_BYTES: usize = 16 << 10;
/// The most paths that the cache may have for one name.
const CACHED: usize = 16;

/// Where musl looks without being told.
const MUSL_FOLDERS: &str = "/lib:/usr/local/lib:/usr/lib";
/// Names that musl itself is behind, each after `lib` and up to the first dot.
const MUSL_NAMES: [&str; 7] = ["c", "pthread", "rt", "m", "dl", "util", "xnet"];
/// What makes musl run programs that were linked with glibc, with a loader under glibc's name.
const GCOMPAT: &[u8] = b"/lib/libgcompat.so.0";

/// The folders that files name in which their libraries are looked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paths {
    folders: Vec<Rc<str>>,
    /// What a library hands on to those that it needs.
    handed_on: Vec<Rc<str>>,
    /// There are folders that cannot be told.
    pub(crate) unsure: bool,
}

/// A library that was found.
pub(crate) struct Library {
    /// Where it was looked for.
    pub(crate) path: String,
    /// The same without links.
    pub(crate) real: String,
    pub(crate) node: Node,
    pub(crate) elf: Result<Elf, Fault>,
}

/// A dynamic loader, at work for a program.
pub(crate) struct Loader<'a> {
    tree: &'a dyn Tree,
    is_musl: bool,
    machine: (u16, bool),
    /// Those of the environment.
    first: Vec<String>,
    cache: Vec<u8>,
    /// Those in which it looks without being told.
    last: Vec<String>,
    /// There are folders that cannot be told.
    unsure: bool,
}

impl<'a> Loader<'a> {
    /// The loader that `program` asks for by the path `asked`, and which is `real`.
    pub(crate) fn new(scene: &Scene<'_>, tree: &'a dyn Tree, program: &Elf, asked: &str, real: &str) -> Self {
        let by_name = base(asked).starts_with("ld-musl-") || base(real).starts_with("ld-musl-");
        let is_musl = by_name || base(real) == "libc.so" || matches!(lookup(tree, GCOMPAT), Found::Node(..));
        let environment = scene.parameter("LD_LIBRARY_PATH").unwrap_or_default();
        let mut loader = Self {
            tree,
            is_musl,
            machine: (program.machine, program.is_64),
            first: split(environment),
            cache: Vec::new(),
            last: Vec::new(),
            // Where loaders of other C libraries look is not known here.
            unsure: !is_musl && !base(asked).starts_with("ld"),
        };
        if is_musl {
            let own = [asked, real].into_iter().find_map(|path| base(path).strip_prefix("ld-musl-"));
            let name = own.and_then(|name| name.strip_suffix(".so.1")).unwrap_or(musl_name(program.machine));
            // The file is beside the folder of the loader: /etc for /lib.
            let above = folder(folder(asked));
            let list = loader.text(&format!("{above}/etc/ld-musl-{name}.path"), LIST_BYTES);
            let list = list.map_or_else(|| MUSL_FOLDERS.into(), |list| String::from_utf8_lossy(&list).into_owned());
            loader.last = split(&list);
        } else {
            loader.cache = loader.text("/etc/ld.so.cache", CACHE_BYTES).unwrap_or_default();
            loader.last = folders(program.machine);
            // Where glibc is not at the root, it looks beside its loader.
            loader.last.extend([folder(asked).to_owned(), folder(real).to_owned()]);
        }
        loader
    }

    /// A file of the loader's own; nothing if it is not there.
    fn text(&mut self, path: &str, most: usize) -> Option<Vec<u8>> {
        let text = match lookup(self.tree, path.as_bytes()) {
            Found::Node(node, _) if node.kind == Kind::File => up_to(&File { tree: self.tree, node }, 0, most),
            Found::No(NotFound::Unknown(trouble)) => Err(trouble),
            _ => return None,
        };
        self.unsure |= text.as_ref().map_or(true, |text| text.len() >= most);
        text.ok()
    }

    /// Whether a name is that of the loader itself, which no file is looked for.
    pub(crate) fn is_itself(&self, name: &[u8]) -> bool {
        let rest = |own: &&str| name.strip_prefix(b"lib").and_then(|name| name.strip_prefix(own.as_bytes()));
        self.is_musl && MUSL_NAMES.iter().filter_map(rest).any(|rest| rest.starts_with(b"."))
    }

    /// Where a file that was found at `path` has its libraries looked for, if one with the paths `parent` asked for it.
    pub(crate) fn paths(&self, dynamic: &Dynamic, path: &str, parent: &Paths) -> Paths {
        let mut paths = Paths { unsure: parent.unsure || self.unsure || dynamic.path_is_cut, ..Paths::default() };
        let named = String::from_utf8_lossy(&dynamic.run_path);
        for own in named.split(':').filter(|_| !named.is_empty()) {
            let own = expand(own, path);
            if paths.folders.iter().any(|folder| **folder == *own) {
                continue;
            }
            if own.contains('$') || own.len() > PATH_BYTES || paths.folders.len() >= RUN_PATH_FOLDERS {
                paths.unsure = true;
            } else {
                paths.folders.push(own.into());
            }
        }
        if dynamic.has_runpath && !self.is_musl {
            paths.handed_on.clone_from(&parent.handed_on);
            return paths;
        }
        for folder in &parent.handed_on {
            if !paths.folders.contains(folder) {
                paths.folders.push(folder.clone());
            }
        }
        paths.unsure |= paths.folders.len() > RUN_PATH_FOLDERS;
        paths.folders.truncate(RUN_PATH_FOLDERS);
        paths.handed_on.clone_from(&paths.folders);
        paths
    }

    /// The name of a library that the file at `path` needs, with its folder in place of `$ORIGIN`; what else glibc puts in
    /// is not known here, and stays. musl takes the name as it is.
    pub(crate) fn needed(&self, name: Vec<u8>, path: &str) -> Vec<u8> {
        match str::from_utf8(&name) {
            Ok(text) if !self.is_musl && text.contains('$') => {
                let whole = expand(text, path);
                if whole.len() > PATH_BYTES { name } else { whole.into_bytes() }
            }
            _ => name,
        }
    }

    /// The library of a name, and what is wrong with it. Those with faults are passed over, as not every loader looks in all
    /// of these folders, but better than none; one for another machine is the last to be taken.
    pub(crate) fn find(
        &self,
        name: &[u8],
        paths: &Paths,
        faults: impl Fn(&Library) -> Report,
    ) -> Result<Option<(Library, Report)>, Trouble> {
        let within = |folder: &str| [folder.as_bytes(), b"/", name].concat();
        let named = paths.folders.iter().map(AsRef::as_ref).chain(self.first.iter().map(String::as_str)).map(within);
        let last = self.last.iter().map(String::as_str).map(within);
        let is_path = name.contains(&b'/');
        let own = is_path.then(|| name.to_vec());
        let searched = named.chain(self.cached(name)).chain(last).filter(|_| !is_path);
        let takes = |library: &Library| library.elf.as_ref().map_or(true, |elf| self.fits(elf));
        let mut other: Option<(Library, Report)> = None;
        for path in own.into_iter().chain(searched) {
            let Some(library) = self.file(&path)? else { continue };
            let faults = faults(&library);
            if faults.findings.is_empty() {
                return Ok(Some((library, faults)));
            }
            if other.as_ref().is_none_or(|(other, _)| !takes(other) && takes(&library)) {
                other = Some((library, faults));
            }
        }
        Ok(other)
    }

    /// Whether a file is for the machine of the program.
    pub(crate) fn fits(&self, elf: &Elf) -> bool {
        (elf.machine, elf.is_64) == self.machine
    }

    fn file(&self, path: &[u8]) -> Result<Option<Library>, Trouble> {
        match lookup(self.tree, path) {
            Found::Node(node, real) if node.kind == Kind::File => {
                let elf = match Elf::read(&File { tree: self.tree, node }) {
                    Err(Fault::Trouble(trouble)) => return Err(trouble),
                    elf => elf,
                };
                Ok(Some(Library { path: String::from_utf8_lossy(path).into_owned(), real, node, elf }))
            }
            Found::No(NotFound::Unknown(trouble)) => Err(trouble),
            _ => Ok(None),
        }
    }

    /// The paths that the cache has for a name: its strings are the names and the paths, each with a NUL.
    fn cached(&self, name: &[u8]) -> Vec<Vec<u8>> {
        let end = [b"/", name, b"\0"].concat();
        let mut paths = Vec::new();
        let mut from = 0_usize;
        while let Some(at) = self.cache.get(from..).filter(|_| paths.len() < CACHED).and_then(|rest| find(rest, &end)) {
            let nul = from.saturating_add(at).saturating_add(end.len()).saturating_sub(1);
            let before = self.cache.get(..nul).unwrap_or_default();
            let start = before.iter().rposition(|byte| *byte == 0).map_or(0, |nul| nul.saturating_add(1));
            paths.push(before.get(start..).unwrap_or_default().to_vec());
            from = nul;
        }
        paths
    }
}

/// Where glibc looks without being told: its own folders, with those of Debian for a machine.
fn folders(machine: u16) -> Vec<String> {
    let triples: &[&str] = match machine {
        elf::X86_64 => &["x86_64-linux-gnu"],
        elf::AARCH64 => &["aarch64-linux-gnu"],
        elf::I386 => &["i386-linux-gnu"],
        elf::ARM => &["arm-linux-gnueabihf", "arm-linux-gnueabi"],
        _ => &[],
    };
    let roots = ["/lib", "/usr/lib", "/usr/local/lib"];
    let own = roots.iter().flat_map(|root| triples.iter().map(move |triple| format!("{root}/{triple}")));
    let plain = ["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/lib32", "/usr/lib32", "/usr/local/lib"];
    own.chain(plain.map(str::to_owned)).collect()
}

/// What musl calls a machine.
fn musl_name(machine: u16) -> &'static str {
    match machine {
        elf::AARCH64 => "aarch64",
        elf::I386 => "i386",
        elf::ARM => "armhf",
        _ => "x86_64",
    }
}

/// The folders of a list, as many as are looked into.
fn split(list: &str) -> Vec<String> {
    let folders = list.split([':', '\n']).filter(|folder| !folder.is_empty());
    folders.take(RUN_PATH_FOLDERS).map(str::to_owned).collect()
}

/// Puts the folder of a file in place of `$ORIGIN`.
fn expand(text: &str, path: &str) -> String {
    text.replace("${ORIGIN}", folder(path)).replace("$ORIGIN", folder(path))
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The name of a file without its folder.
pub(crate) fn base(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}
