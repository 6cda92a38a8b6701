//! Every `unsafe` of the repository with its invariant, read from the sources; and the rules that all of it keeps.

use crate::tidy::sources;
use anyhow::Result;
use std::fmt;
use std::path::{Path, PathBuf};

/// How far above an `unsafe` its comment may end: the beginning of the statement that it is in.
const REACH_LINES: usize = 4;

/// One `unsafe`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unsafe {
    file: PathBuf,
    line: usize,
    /// The text of its SAFETY comment; nothing when there is none.
    invariant: String,
}

impl fmt::Display for Unsafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.invariant)
    }
}

/// All of it, by place.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn list() -> Result<Vec<Unsafe>> {
    let mut all = Vec::new();
    for (name, text) in sources()? {
        all.extend(of_file(&name, &text));
    }
    Ok(all)
}

/// The `unsafe` of a file.
fn of_file(name: &Path, text: &str) -> Vec<Unsafe> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let found = lines.iter().enumerate().filter(|(_, line)| is_unsafe(line));
    let invariant = |at: usize| lines.get(..at).map(invariant).unwrap_or_default();
    found.map(|(at, _)| Unsafe { file: name.to_owned(), line: at + 1, invariant: invariant(at) }).collect()
}

/// Whether a line of code has the word, outside of comments, strings, attributes and names of lints.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let quoted = code.split('"').step_by(2).collect::<String>();
    let mut words = quoted.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.any(|word| word == concat!("un", "safe")) && !line.starts_with("#[") && !line.starts_with("#![")
}

/// What the nearest comment above says of its invariant.
fn invariant(above: &[&str]) -> String {
    let is_comment = |line: &&&str| line.starts_with("//");
    let skipped = above.iter().rev().take(REACH_LINES).take_while(|line| !line.starts_with("//")).count();
    let comment: Vec<_> = above.iter().rev().skip(skipped).take_while(is_comment).collect();
    let words: Vec<_> = comment.iter().rev().map(|line| line.trim_start_matches(['/', '!']).trim()).collect();
    let text = words.join(" ");
    // A block says why it may, a function what its caller has to see to.
    let after = ["SAFETY:", "# Safety"].iter().find_map(|mark| text.split_once(mark));
    after.map(|(_, text)| text.trim().to_owned()).unwrap_or_default()
}

/// What a file breaks: it has the word without saying at its head, or at the function, that it may and why; or without an
/// invariant.
pub(crate) fn problems(name: &Path, text: &str) -> Vec<String> {
    let all = of_file(name, text);
    let allowed = concat!("allow(\nun", "safe_code,").replace('\n', "");
    let flat: String = text.split_whitespace().collect();
    let mut problems = Vec::new();
    if let Some(first) = all.first().filter(|_first| !flat.contains(&allowed)) {
        let place = format!("{}:{}", name.display(), first.line);
        problems.push(format!("{place}: is unsafe in a module that does not allow it with a reason"));
    }
    let silent = all.iter().filter(|one| one.invariant.is_empty());
    problems.extend(silent.map(|one| format!("{}:{}: is unsafe without a SAFETY comment", name.display(), one.line)));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> String {
        text.replace("DANGER", concat!("un", "safe"))
    }

    #[test]
    fn block_is_listed_with_its_whole_comment() {
        let text =
            word("#![allow(DANGER_code, reason = \"x\")]\n// SAFETY: it is\n// so.\nlet a =\n    DANGER { f() };\n");
        let expected = Unsafe { file: "a.rs".into(), line: 5, invariant: "it is so.".to_owned() };
        assert_eq!(of_file(Path::new("a.rs"), &text), [expected]);
        assert!(problems(Path::new("a.rs"), &text).is_empty());
    }

    #[test]
    fn block_without_a_comment_or_a_permission_is_reported() {
        let text = word("let a = DANGER { f() };\n");
        assert_eq!(problems(Path::new("a.rs"), &text).len(), 2);
    }

    #[test]
    fn word_in_a_comment_a_string_or_a_lint_is_none() {
        for line in ["// DANGER", "#![allow(DANGER_code)]", "let a = \"DANGER\";", "DANGER_code = 1"] {
            assert!(!is_unsafe(&word(line)), "{line}");
        }
        assert!(is_unsafe(&word("DANGER fn f() {}")));
    }
}
