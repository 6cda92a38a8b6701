//! `cargo xtask diagnoses`: the list of what `broker explain` knows, in docs/DIAGNOSES.md, made of the knowledge itself.

use crate::paths;
use anyhow::{Context, Result, bail};
use forensics::explain::knowledge::{ENTRIES, Entry, GROUPS};
use std::fmt::Write;
use std::fs;

/// The line after which the page is made by this.
const MARK: &str = "<!-- What follows is made by `cargo xtask diagnoses`. -->\n";

/// Writes the list into the page; with `check`, only says whether it is there already.
///
/// # Errors
/// When the page cannot be read or written, has no mark, or with `check` another list.
pub(crate) fn run(check: bool) -> Result<()> {
    let path = paths::repository().join("docs/DIAGNOSES.md");
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let Some((head, _)) = page.split_once(MARK) else { bail!("docs/DIAGNOSES.md must have the line {MARK}") };
    let made = format!("{head}{MARK}{}", list()?);
    if check && made != page {
        bail!("docs/DIAGNOSES.md does not list the knowledge as it is; run `cargo xtask diagnoses`");
    }
    if check { Ok(()) } else { paths::write_atomically(&path, made.as_bytes()) }
}

fn list() -> Result<String> {
    let mut text = String::new();
    for (group, about) in GROUPS {
        write!(text, "\n## {} (`knowledge/{group}.toml`)\n", capitalized(about))?;
        let mut last = "";
        for entry in ENTRIES.iter().filter(|entry| entry.group == *group) {
            if entry.id != last {
                write!(text, "\n### {}\n", entry.id)?;
                last = entry.id;
            }
            one(&mut text, entry)?;
        }
    }
    Ok(text)
}

/// One entry: what it looks for, and what it says.
fn one(text: &mut String, entry: &Entry) -> Result<()> {
    write!(text, "\n*{}, {}.*", capitalized(entry.severity.name()), entry.confidence.name())?;
    for (number, pattern) in entry.patterns.iter().enumerate() {
        write!(text, "{} ``{pattern}``", if number == 0 { " Looks for" } else { " or" })?;
    }
    let conditions: Vec<_> = entry.when.iter().map(condition).collect();
    if !conditions.is_empty() {
        write!(
            text,
            "{} {}",
            if entry.patterns.is_empty() { " Applies when" } else { ", when" },
            conditions.join(" and ")
        )?;
    }
    write!(text, ".\n{} {}\nWhat to do: {}\n", entry.what, entry.why, entry.remedy)?;
    if !entry.consequence_of.is_empty() {
        let causes = entry.consequence_of.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>();
        writeln!(text, "Comes after its causes: {}.", causes.join(", "))?;
    }
    Ok(())
}

fn condition((name, values): &(&str, &[&str])) -> String {
    let shown = values.iter().map(|value| match (*value, value.strip_prefix('!')) {
        ("", _) => "unknown".to_owned(),
        ("*", _) => "known".to_owned(),
        (_, Some(other)) => format!("not `{other}`"),
        (value, None) => format!("`{value}`"),
    });
    let between = if values.iter().any(|value| value.starts_with('!')) { " and " } else { " or " };
    format!("`{name}` is {}", shown.collect::<Vec<_>>().join(between))
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_lists_the_knowledge_as_it_is() {
        run(true).unwrap();
    }

    #[test]
    fn every_finding_has_a_section() {
        let list = list().unwrap();
        assert!(ENTRIES.iter().all(|entry| list.contains(&format!("\n### {}\n", entry.id))));
    }

    #[test]
    fn example_of_the_page_matches_its_sample() {
        let page = fs::read_to_string(paths::repository().join("docs/DIAGNOSES.md")).unwrap();
        let pattern = page.split("\npatterns = [\"").nth(1).unwrap().split("\"]").next().unwrap();
        let sample = page.split("\nsample = \"\"\"\n").nth(1).unwrap().lines().next().unwrap();
        let pattern = forensics::explain::pattern::Pattern::parse(pattern).unwrap();
        let filled = pattern.matches(sample.split_once("] ").unwrap().1).unwrap();
        assert_eq!(filled.iter().map(|hole| hole.text).collect::<Vec<_>>(), ["vda", "7", "-5"]);
    }

    #[test]
    fn conditions_are_told_in_words() {
        assert_eq!(condition(&("end", &["panic", ""])), "`end` is `panic` or unknown");
        assert_eq!(condition(&("end", &["!panic", "!halt"])), "`end` is not `panic` and not `halt`");
    }
}
