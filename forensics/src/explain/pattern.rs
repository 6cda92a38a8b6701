//! The pattern language of the knowledge: literal text with holes.
//!
//! A pattern matches from the beginning of a line's text (after time and caller) and leaves the rest of the line alone; one
//! that begins with `*` matches anywhere. A hole is `{name:kind}`; its text is bound to its name. `{{` is a brace. There is no
//! choice and no way back: each part takes what it takes, so that matching costs time in the length of the line.

/// The kinds of holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A decimal number, which may be negative.
    Int,
    /// A hexadecimal number, with or without `0x`.
    Hex,
    /// Anything but spaces, up to what follows the hole in the pattern.
    Word,
    /// Anything, up to what follows the hole in the pattern.
    Any,
    /// All that is left.
    Rest,
    /// A hexadecimal wait status, which binds more names: see `decode::wait_status`.
    Wait,
    /// A negative error number, which binds more names: see `decode::errno`.
    Errno,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "int" => Self::Int,
            "hex" => Self::Hex,
            "word" => Self::Word,
            "any" => Self::Any,
            "rest" => Self::Rest,
            "wait" => Self::Wait,
            "errno" => Self::Errno,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Hole { name: String, kind: Kind },
}

/// A pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    anywhere: bool,
    parts: Vec<Part>,
}

/// What a hole was filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled<'p, 't> {
    /// The hole's name.
    pub name: &'p str,
    /// Its kind.
    pub kind: Kind,
    /// The text.
    pub text: &'t str,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it is none; the sentence says what would be right.
    pub fn parse(pattern: &str) -> Result<Self, String> {
        let (anywhere, mut rest) = match pattern.strip_prefix('*') {
            Some(rest) => (true, rest),
            None => (false, pattern),
        };
        let mut parts = Vec::new();
        let mut literal = String::new();
        while let Some(first) = rest.chars().next() {
            if first != '{' || rest.starts_with("{{") {
                literal.push(first);
                let taken = if first == '{' { 2 } else { first.len_utf8() };
                rest = rest.get(taken..).unwrap_or_default();
                continue;
            }
            let (hole, after) =
                rest.split_once('}').ok_or_else(|| format!("a hole of {pattern:?} has no closing brace"))?;
            let named = hole.get(1..).and_then(|hole| hole.split_once(':'));
            let (name, kind) = named.ok_or_else(|| format!("a hole of {pattern:?} must be {{name:kind}}"))?;
            let kind = Kind::of(kind).ok_or_else(|| {
                format!("{pattern:?} has a hole of the kind {kind:?}, must be int, hex, word, any, rest, wait or errno")
            })?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            if matches!(parts.last(), None | Some(Part::Hole { .. })) {
                return Err(format!("text must stand before each hole of {pattern:?}"));
            }
            parts.push(Part::Hole { name: name.to_owned(), kind });
            rest = after;
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        if parts.is_empty() {
            return Err("a pattern must not be empty".to_owned());
        }
        Ok(Self { anywhere, parts })
    }

    /// The names that it binds.
    pub fn names(&self) -> impl Iterator<Item = (&str, Kind)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Hole { name, kind } => Some((name.as_str(), *kind)),
            Part::Literal(_) => None,
        })
    }

    /// The byte with which every line that matches begins, if there is one.
    pub(crate) fn first_byte(&self) -> Option<u8> {
        match self.parts.first() {
            Some(Part::Literal(literal)) if !self.anywhere => literal.bytes().next(),
            _ => None,
        }
    }

    /// What the holes are filled with if `text` matches.
    #[must_use]
    pub fn matches<'p, 't>(&'p self, text: &'t str) -> Option<Vec<Filled<'p, 't>>> {
        let mut rest = text;
        let mut filled = Vec::new();
        let mut parts = self.parts.iter().peekable();
        if let (true, Some(Part::Literal(first))) = (self.anywhere, parts.peek()) {
            rest = rest.get(rest.find(first.as_str())?..)?;
        }
        while let Some(part) = parts.next() {
            match part {
                Part::Literal(literal) => rest = rest.strip_prefix(literal.as_str())?,
                Part::Hole { name, kind } => {
                    let next = match parts.peek() {
                        Some(Part::Literal(literal)) => Some(literal.as_str()),
                        _ => None,
                    };
                    let (text, after) = rest.split_at_checked(taken(*kind, rest, next)?)?;
                    filled.push(Filled { name, kind: *kind, text });
                    rest = after;
                }
            }
        }
        Some(filled)
    }
}

/// How many bytes of `rest` a hole takes before the literal `next`.
fn taken(kind: Kind, rest: &str, next: Option<&str>) -> Option<usize> {
    let length = match kind {
        Kind::Int | Kind::Errno => {
            let sign = usize::from(rest.starts_with('-'));
            let digits = rest.bytes().skip(sign).take_while(u8::is_ascii_digit).count();
            if digits == 0 { 0 } else { digits.checked_add(sign)? }
        }
        Kind::Hex | Kind::Wait => {
            let prefix = if rest.starts_with("0x") { 2 } else { 0 };
            let digits = rest.bytes().skip(prefix).take_while(u8::is_ascii_hexdigit).count();
            if digits == 0 { 0 } else { digits.checked_add(prefix)? }
        }
        Kind::Word => {
            let word = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let end = next.and_then(|next| rest.find(next)).unwrap_or(rest.len());
            word.min(end)
        }
        Kind::Any => match next {
            Some(next) => rest.find(next)?,
            None => rest.len(),
        },
        Kind::Rest => return Some(rest.len()),
    };
    (length > 0).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pattern: &str, text: &str) -> Option<Vec<String>> {
        let pattern = Pattern::parse(pattern).unwrap();
        Some(pattern.matches(text)?.iter().map(|hole| format!("{}={}", hole.name, hole.text)).collect())
    }

    #[test]
    fn holes_take_what_their_kind_says() {
        let exec = "Failed to execute {path:word} (error {error:errno})";
        assert_eq!(filled(exec, "Failed to execute /init (error -2)").unwrap(), ["path=/init", "error=-2"]);
        assert_eq!(filled(exec, "Failed to execute /init (error x)"), None);
        assert_eq!(filled("exitcode={code:wait}", "exitcode=0x0000000b").unwrap(), ["code=0x0000000b"]);
        assert_eq!(filled("open \"{name:any}\" or", "open \"a b\" or c").unwrap(), ["name=a b"]);
        assert_eq!(filled("x {rest:rest}", "x a b").unwrap(), ["rest=a b"]);
        assert_eq!(filled("(sd{letter:word}): bad", "(sda): bad").unwrap(), ["letter=a"]);
    }

    #[test]
    fn pattern_is_anchored_unless_it_says_otherwise() {
        assert_eq!(filled("panic", "a panic"), None);
        assert!(filled("*panic - {why:rest}", "Kernel panic - not syncing").is_some());
        assert!(filled("{{a}", "{a}").is_some());
    }

    #[test]
    fn wrong_patterns_are_refused() {
        for bad in ["", "{a:int}", "a {b}", "a {b:what}", "a {b:int", "a {b:int}{c:int}"] {
            assert!(Pattern::parse(bad).is_err(), "{bad:?}");
        }
    }
}
