//! Names and what they are bound to, and texts with such names.

use super::decode::{errno, wait_status};
use super::pattern::{Filled, Kind};

/// The longest value that is bound, in bytes; what is longer is cut.
const MAX_VALUE_BYTES: usize = 400;

/// Names with their values; a later one does not replace an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(Vec<(String, String)>);

impl Names {
    /// Binds `name`, unless it is.
    pub(crate) fn bind(&mut self, name: &str, value: impl Into<String>) {
        if self.get(name).is_none() {
            let mut value = value.into();
            if value.len() > MAX_VALUE_BYTES {
                let end = (0..=MAX_VALUE_BYTES).rev().find(|&end| value.is_char_boundary(end)).unwrap_or(0);
                value.truncate(end);
                value.push('…');
            }
            self.0.push((name.to_owned(), value));
        }
    }

    /// Binds `name` if there is a value.
    pub(crate) fn bind_some(&mut self, name: &str, value: Option<impl Into<String>>) {
        if let Some(value) = value {
            self.bind(name, value);
        }
    }

    /// Binds what the holes of a pattern were filled with, and what follows from numbers.
    pub(crate) fn bind_filled(&mut self, filled: &[Filled<'_, '_>]) {
        for hole in filled {
            self.bind(hole.name, hole.text.trim());
            match hole.kind {
                Kind::Wait => wait_status::bind(hole.text, self),
                Kind::Errno => errno::bind(hole.text, self),
                _ => {}
            }
        }
    }

    /// The value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(bound, _)| bound == name).map(|(_, value)| value.as_str())
    }

    /// Those of `self`, then those of `others`.
    pub(crate) fn with(&self, others: &Self) -> Self {
        let mut all = self.clone();
        for (name, value) in &others.0 {
            all.bind(name, value.as_str());
        }
        all
    }

    /// The text with its names filled in. What stands in square brackets is left out if a name in it has no value; a name
    /// outside of brackets that has none is shown as `?`.
    pub(crate) fn fill(&self, template: &str) -> String {
        let mut text = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('[') {
            text.push_str(&self.fill_plain(before).0);
            let (inside, outside) = after.split_once(']').unwrap_or((after, ""));
            if let (filled, true) = self.fill_plain(inside) {
                text.push_str(&filled);
            }
            rest = outside;
        }
        text.push_str(&self.fill_plain(rest).0);
        text
    }

    /// A text without brackets, and whether each name had a value.
    fn fill_plain(&self, template: &str) -> (String, bool) {
        let (mut text, mut whole) = (String::new(), true);
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (name, outside) = after.split_once('}').unwrap_or((after, ""));
            match self.get(name) {
                Some(value) => text.push_str(value),
                None => {
                    whole = false;
                    text.push('?');
                }
            }
            rest = outside;
        }
        text.push_str(rest);
        (text, whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_filled_and_parts_without_values_are_left_out() {
        let mut names = Names::default();
        names.bind("a", "1");
        names.bind("a", "2");
        assert_eq!(names.fill("x {a}[, y {b}][, z {a}]."), "x 1, z 1.");
        assert_eq!(names.fill("{b} {a"), "? 1");
    }

    #[test]
    fn long_value_is_cut() {
        let mut names = Names::default();
        names.bind("a", "é".repeat(1000));
        assert!(names.get("a").unwrap().len() <= MAX_VALUE_BYTES + 3);
    }
}
