//! Turns the knowledge, `knowledge/*.toml`, into tables of the library, so that the jail holds no TOML parser.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// A file of entries.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    entry: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    id: String,
    severity: String,
    confidence: String,
    #[serde(default = "kernel")]
    from: String,
    #[serde(default)]
    patterns: Vec<String>,
    #[serde(default)]
    evidence: Vec<String>,
    #[serde(default)]
    following: usize,
    #[serde(default)]
    unless: Vec<String>,
    #[serde(default)]
    unless_found: Vec<String>,
    #[serde(default)]
    when: BTreeMap<String, Values>,
    #[serde(default)]
    consequence_of: Vec<String>,
    what: String,
    why: String,
    remedy: String,
    sample: String,
    #[serde(default)]
    sample_host: BTreeMap<String, Values>,
}

/// One value or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

impl Values {
    fn list(&self) -> Vec<String> {
        match self {
            Self::One(value) => vec![value.clone()],
            Self::Many(values) => values.clone(),
        }
    }
}

fn kernel() -> String {
    "kernel".to_owned()
}

/// The layers of the kernel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layers {
    layer: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    name: String,
    functions: Vec<String>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("knowledge");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let mut code = "/// All entries, in the order of their files.\npub static ENTRIES: &[Entry] = &[\n".to_owned();
    let mut groups =
        "/// The files of entries, with what each is about.\npub static GROUPS: &[(&str, &str)] = &[\n".to_owned();
    let mut layers = String::new();
    for path in &files {
        println!("cargo::rerun-if-changed={}", path.display());
        let text = fs::read_to_string(path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        if name == "layers" {
            layers = layer_table(&toml::from_str(&text).map_err(|error| wrong(&error))?)?;
            continue;
        }
        let file: File = toml::from_str(&text).map_err(|error| wrong(&error))?;
        writeln!(groups, "    ({name:?}, {:?}),", file.about)?;
        for entry in &file.entry {
            write_entry(&mut code, &name, entry).map_err(|error| wrong(&format!("{}: {error}", entry.id)))?;
        }
    }
    let code = format!("{code}];\n{groups}];\n{layers}");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("knowledge.rs"), code)?;
    Ok(())
}

fn write_entry(code: &mut String, group: &str, entry: &Entry) -> Result<(), Box<dyn std::error::Error>> {
    let severity = match entry.severity.as_str() {
        "fatal" => "Fatal",
        "warning" => "Warning",
        "note" => "Note",
        other => return Err(format!("severity is {other:?}, must be fatal, warning or note").into()),
    };
    let confidence = match entry.confidence.as_str() {
        "certain" if entry.when.keys().any(|key| key.starts_with("host-")) => "Certain",
        "certain" => return Err("a log alone is never certain; name what the host saw in `when`".into()),
        "likely" => "Likely",
        "possible" => "Possible",
        other => return Err(format!("confidence is {other:?}, must be likely or possible").into()),
    };
    let from = match entry.from.as_str() {
        "kernel" => "Kernel",
        "program" => "Program",
        "anyone" => "Unknown",
        other => return Err(format!("from is {other:?}, must be kernel, program or anyone").into()),
    };
    if entry.patterns.is_empty() && entry.when.is_empty() {
        return Err("an entry needs patterns or `when`".into());
    }
    let when = |values: &BTreeMap<String, Values>| {
        values.iter().map(|(key, values)| format!("({key:?}, &{:?})", values.list())).collect::<Vec<_>>().join(", ")
    };
    writeln!(
        code,
        "    Entry {{ id: {:?}, group: {group:?}, severity: Severity::{severity}, confidence: Confidence::{confidence}, \
         from: Speaker::{from}, patterns: &{:?}, evidence: &{:?}, following: {}, unless: &{:?}, unless_found: &{:?}, when: &[{}], consequence_of: &{:?}, \
         what: {:?}, why: {:?}, remedy: {:?}, sample: {:?}, sample_host: &[{}] }},",
        entry.id,
        entry.patterns,
        entry.evidence,
        entry.following,
        entry.unless,
        entry.unless_found,
        when(&entry.when),
        entry.consequence_of,
        entry.what.trim(),
        entry.why.trim(),
        entry.remedy.trim(),
        entry.sample,
        when(&entry.sample_host),
    )?;
    Ok(())
}

fn layer_table(layers: &Layers) -> Result<String, std::fmt::Error> {
    let mut code = "/// The layers of the kernel and the functions of each; `*` at the end stands for any rest.\n\
        pub static LAYERS: &[(&str, &[&str])] = &[\n"
        .to_owned();
    for layer in &layers.layer {
        writeln!(code, "    ({:?}, &{:?}),", layer.name, layer.functions)?;
    }
    code.push_str("];\n");
    Ok(code)
}
