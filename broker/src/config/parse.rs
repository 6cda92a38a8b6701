//! From TOML text to a draft, with the line of every value, collecting everything that is wrong.

use super::limits;
use super::size::parse_size;
use super::{Draft, DraftDisk, Given, HugePages, Origin, Output, Place, Problem};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use wire::message::{DiskEngine, DiskMode, GicVersion};

/// The keys of the section [boot].
const BOOT_KEYS: [&str; 6] = ["kernel", "initrd", "cmdline", "acpi", "preflight", "explain"];

/// Reads `text`, the content of `file`. Relative paths in it are relative to the folder of `file`.
pub(crate) fn parse(file: &Path, text: &str) -> (Draft, Vec<Problem>) {
    let mut reader =
        Reader { file: file.display().to_string().into(), folder: folder_of(file), text, problems: Vec::new() };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map_or(1, |span| reader.line(span.start));
        let origin = Origin { place: Place::Line { file: Rc::clone(&reader.file), line }, key: "syntax".to_owned() };
        reader.problems.push(Problem::new(&origin, error.message(), "write valid TOML (https://toml.io)"));
    }
    let mut draft = reader.document(document.get_ref());
    draft.config_file = Some(file.to_owned());
    (draft, reader.problems)
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) => folder.to_owned(),
        None => PathBuf::new(),
    }
}

/// What reads a document, and collects what is wrong with it.
pub(super) struct Reader<'t> {
    file: Rc<str>,
    folder: PathBuf,
    text: &'t str,
    problems: Vec<Problem>,
}

pub(super) type Value<'a, 'i> = &'a Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count().saturating_add(1)
    }

    pub(super) fn origin(&self, span: Range<usize>, key: &str) -> Origin {
        Origin { place: Place::Line { file: Rc::clone(&self.file), line: self.line(span.start) }, key: key.to_owned() }
    }

    pub(super) fn problem(
        &mut self,
        value: Value<'_, '_>,
        key: &str,
        what: impl Into<String>,
        right: impl Into<String>,
    ) {
        let origin = self.origin(value.span(), key);
        self.problems.push(Problem::new(&origin, what, right));
    }

    pub(super) fn wrong_type(&mut self, value: Value<'_, '_>, key: &str, right: &str) {
        let what = format!("is a value of type {}", value.get_ref().type_str());
        self.problem(value, key, what, right);
    }

    /// Reports keys of `table` that are not in `known`.
    fn unknown_keys(&mut self, table: &DeTable<'_>, prefix: &str, known: &[&str]) {
        for name in table.keys() {
            let text: &str = name.get_ref();
            if known.contains(&text) {
                continue;
            }
            let key = format!("{prefix}{}", wire::Text::truncated(text));
            let right = match nearest(text, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known keys here: {}", known.join(", ")),
            };
            let origin = self.origin(name.span(), &key);
            self.problems.push(Problem::new(&origin, "is no known key", right));
        }
    }

    fn table<'a, 'i>(&mut self, document: &'a DeTable<'i>, name: &str, known: &[&str]) -> Option<&'a DeTable<'i>> {
        let value = document.get(name)?;
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(value, name, &format!("write a section [{name}]"));
            return None;
        };
        self.unknown_keys(table, &format!("{name}."), known);
        Some(table)
    }

    pub(super) fn string(&mut self, value: Value<'_, '_>, key: &str, right: &str) -> Option<Given<String>> {
        match value.get_ref().as_str() {
            Some(text) => Some(Given { value: text.to_owned(), origin: self.origin(value.span(), key) }),
            None => {
                self.wrong_type(value, key, right);
                None
            }
        }
    }

    fn path(&mut self, value: Value<'_, '_>, key: &str) -> Option<Given<PathBuf>> {
        let given = self.string(value, key, "write a path in quotes")?;
        if given.value.is_empty() {
            self.problem(value, key, "is empty", "name a file");
            return None;
        }
        Some(Given { value: self.folder.join(given.value), origin: given.origin })
    }

    fn boolean(&mut self, value: Value<'_, '_>, key: &str) -> Option<bool> {
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.wrong_type(value, key, "write true or false");
        }
        boolean
    }

    fn integer(&mut self, value: Value<'_, '_>, key: &str, right: &str) -> Option<Given<i128>> {
        let number = value.get_ref().as_integer().and_then(|i| i128::from_str_radix(i.as_str(), i.radix()).ok());
        match number {
            Some(number) => Some(Given { value: number, origin: self.origin(value.span(), key) }),
            None => {
                self.wrong_type(value, key, right);
                None
            }
        }
    }

    pub(super) fn size(&mut self, value: Value<'_, '_>, key: &str) -> Option<Given<u64>> {
        let right = "write a size in quotes, such as \"512MiB\", or a whole number of MiB";
        let bytes = match value.get_ref() {
            DeValue::String(text) => {
                parse_size(text, None).map_err(|error| (format!("is {text:?}"), error.to_string()))
            }
            DeValue::Integer(number) => parse_size(&number.to_string(), Some(1 << 20))
                .map_err(|_no_size| (format!("is {number}"), right.to_owned())),
            _ => {
                self.wrong_type(value, key, right);
                return None;
            }
        };
        match bytes {
            Ok(bytes) => Some(Given { value: bytes, origin: self.origin(value.span(), key) }),
            Err((what, right)) => {
                self.problem(value, key, what, right);
                None
            }
        }
    }

    fn document(&mut self, document: &DeTable<'_>) -> Draft {
        let mut draft = Draft::default();
        self.unknown_keys(document, "", &["machine", "boot", "disk", "console", "limits"]);
        if let Some(machine) = self.table(document, "machine", &["vcpus", "cpus", "gic", "memory", "huge_pages"]) {
            draft.vcpus =
                machine.get("vcpus").and_then(|v| self.integer(v, "machine.vcpus", "write a whole number, 1 to 32"));
            draft.cpus = machine.get("cpus").and_then(|v| self.cpus(v));
            draft.gic = machine.get("gic").and_then(|v| self.gic(v));
            draft.memory = machine.get("memory").and_then(|v| self.size(v, "machine.memory"));
            draft.huge_pages = machine.get("huge_pages").and_then(|v| self.huge_pages(v));
        }
        if let Some(boot) = self.table(document, "boot", &BOOT_KEYS) {
            draft.kernel_named = boot.contains_key("kernel");
            draft.kernel = boot.get("kernel").and_then(|v| self.path(v, "boot.kernel"));
            draft.initrd = boot.get("initrd").and_then(|v| self.path(v, "boot.initrd"));
            draft.cmdline =
                boot.get("cmdline").and_then(|v| self.string(v, "boot.cmdline", "write the kernel's words in quotes"));
            draft.acpi = boot.get("acpi").and_then(|v| self.boolean(v, "boot.acpi"));
            draft.preflight = boot.get("preflight").and_then(|v| self.boolean(v, "boot.preflight"));
            draft.explain = boot.get("explain").and_then(|v| self.boolean(v, "boot.explain"));
        }
        if !draft.kernel_named {
            let at = document.get_key_value("boot").map_or(0..0, |(key, _)| key.span());
            let origin = self.origin(at, "boot.kernel");
            let right = "name the kernel image: kernel = \"vmlinuz\" in the section [boot]";
            self.problems.push(Problem::new(&origin, "is missing", right));
            draft.kernel_named = true;
        }
        if let Some(disks) = document.get("disk") {
            draft.disks = self.disks(disks);
        }
        if let Some(console) = self.table(document, "console", &["output", "limit"]) {
            draft.console = console.get("output").map(|v| self.outputs(v));
            draft.limit = console.get("limit").and_then(|v| self.size(v, "console.limit"));
        }
        if let Some(limits) = self.table(document, "limits", &limits::KEYS) {
            draft.limits = self.limits(limits);
        }
        draft
    }

    fn gic(&mut self, value: Value<'_, '_>) -> Option<Given<GicVersion>> {
        let (key, right) = ("machine.gic", "write \"v2\" or \"v3\", or leave it out");
        let given = self.string(value, key, right)?;
        let version = match given.value.as_str() {
            "v2" => GicVersion::V2,
            "v3" => GicVersion::V3,
            _ => {
                self.problem(value, key, format!("is {:?}", given.value), right);
                return None;
            }
        };
        Some(Given { value: version, origin: given.origin })
    }

    fn cpus(&mut self, value: Value<'_, '_>) -> Option<Given<Vec<i128>>> {
        let (key, right) = ("machine.cpus", "write the numbers of host CPUs in a list, such as [4, 5, 6, 7]");
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(value, key, right);
            return None;
        };
        let numbers = list.iter().map(|v| self.integer(v, key, right).map(|given| given.value));
        let numbers = numbers.collect::<Option<Vec<_>>>()?;
        Some(Given { value: numbers, origin: self.origin(value.span(), key) })
    }

    fn huge_pages(&mut self, value: Value<'_, '_>) -> Option<Given<HugePages>> {
        let key = "machine.huge_pages";
        let right = "write \"2MiB\" or \"1GiB\", or leave it out";
        let given = self.string(value, key, right)?;
        let size = match parse_size(&given.value, None) {
            Ok(0x20_0000) => HugePages::TwoMiB,
            Ok(0x4000_0000) => HugePages::OneGiB,
            _ => {
                self.problem(value, key, format!("is {:?}", given.value), right);
                return None;
            }
        };
        Some(Given { value: size, origin: given.origin })
    }

    fn disks(&mut self, value: Value<'_, '_>) -> Vec<DraftDisk> {
        let right = "write each disk as a section [[disk]]";
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(value, "disk", right);
            return Vec::new();
        };
        let mut disks = Vec::new();
        for (index, item) in list.iter().enumerate() {
            let prefix = format!("disk[{index}].");
            let Some(table) = item.get_ref().as_table() else {
                self.wrong_type(item, "disk", right);
                continue;
            };
            self.unknown_keys(table, &prefix, &["path", "mode", "engine", "id"]);
            let mode = table.get("mode").map_or(Some(DiskMode::ReadOnly), |v| self.mode(v, &format!("{prefix}mode")));
            let engine = table.get("engine").and_then(|v| self.engine(v, &format!("{prefix}engine")));
            let id = table
                .get("id")
                .and_then(|v| self.string(v, &format!("{prefix}id"), "write up to 20 printable characters in quotes"));
            let Some(path) = table.get("path") else {
                self.problem(item, &format!("{prefix}path"), "is missing", "name the image: path = \"rootfs.ext4\"");
                continue;
            };
            if let Some(path) = self.path(path, &format!("{prefix}path")) {
                // A mode that is wrong is refused already; the image is still looked at.
                let mode = mode.unwrap_or(DiskMode::ReadOnly);
                disks.push(DraftDisk { path, mode, engine, id });
            }
        }
        disks
    }

    fn mode(&mut self, value: Value<'_, '_>, key: &str) -> Option<DiskMode> {
        let right = "write \"read-only\", \"ephemeral\" or \"read-write\"";
        match self.string(value, key, right)?.value.as_str() {
            "read-only" => Some(DiskMode::ReadOnly),
            "ephemeral" => Some(DiskMode::Ephemeral),
            "read-write" => Some(DiskMode::ReadWrite),
            other => {
                let what = format!("is {other:?}");
                self.problem(value, key, what, right);
                None
            }
        }
    }

    fn engine(&mut self, value: Value<'_, '_>, key: &str) -> Option<Given<DiskEngine>> {
        let right = "write \"sync\" or \"io-uring\"";
        let Given { value: text, origin } = self.string(value, key, right)?;
        let engine = match text.as_str() {
            "sync" => DiskEngine::Sync,
            "io-uring" => DiskEngine::IoUring,
            other => {
                let what = format!("is {other:?}");
                self.problem(value, key, what, right);
                return None;
            }
        };
        Some(Given { value: engine, origin })
    }

    fn outputs(&mut self, value: Value<'_, '_>) -> Vec<Given<Output>> {
        match value.get_ref().as_array() {
            Some(list) => list.iter().filter_map(|item| self.output(item)).collect(),
            None => self.output(value).into_iter().collect(),
        }
    }

    fn output(&mut self, value: Value<'_, '_>) -> Option<Given<Output>> {
        let key = "console.output";
        let right = "write \"stdio\", \"none\" or { file = \"console.log\" }, or a list of them";
        let output = match value.get_ref() {
            DeValue::String(text) if text == "stdio" => Output::Stdio,
            DeValue::String(text) if text == "none" => Output::None,
            DeValue::String(text) => {
                self.problem(value, key, format!("is {text:?}"), right);
                return None;
            }
            DeValue::Table(table) => {
                self.unknown_keys(table, "console.output.", &["file"]);
                let Some(file) = table.get("file") else {
                    self.problem(value, key, "names no file", right);
                    return None;
                };
                Output::File(self.path(file, "console.output.file")?.value)
            }
            _ => {
                self.wrong_type(value, key, right);
                return None;
            }
        };
        Some(Given { value: output, origin: self.origin(value.span(), key) })
    }
}

/// The known key that `name` is most like, if it is like one at all.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let name: String = name.chars().take(64).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect();
    known
        .iter()
        .map(|&key| (distance(&name, key), key))
        .filter(|&(distance, key)| distance <= key.len().div_ceil(3) || key.starts_with(name.as_str()))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, key)| key)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i.saturating_add(1);
        for (slot, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let above = *slot;
            let cost = diagonal.saturating_add(usize::from(from != to));
            left = cost.min(above.saturating_add(1)).min(left.saturating_add(1));
            diagonal = above;
            *slot = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i.saturating_add(1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;
