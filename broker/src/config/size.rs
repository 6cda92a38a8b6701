//! Sizes as people write them: `512MiB`, `4G`.

/// Why a size could not be read; says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a whole number with a unit of KiB, MiB, GiB or TiB, such as \"512MiB\"")]
pub(crate) struct SizeError;

/// Reads a size. A number without a unit counts `plain` bytes each, if that is given.
///
/// # Errors
/// When `text` is no whole number with a known unit, or does not fit.
pub(crate) fn parse_size(text: &str, plain: Option<u64>) -> Result<u64, SizeError> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(split).ok_or(SizeError)?;
    let number: u64 = digits.parse().map_err(|_no_number| SizeError)?;
    let factor = match unit.trim_start() {
        "" => plain.ok_or(SizeError)?,
        "B" => 1,
        "KiB" | "K" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        _ => return Err(SizeError),
    };
    number.checked_mul(factor).ok_or(SizeError)
}

/// A size for people: the largest unit that divides it.
pub(crate) fn show_size(bytes: u64) -> String {
    for (unit, name) in [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_units_are_read() {
        assert_eq!(parse_size("512MiB", None), Ok(512 << 20));
        assert_eq!(parse_size(" 4 GiB", None), Ok(4 << 30));
        assert_eq!(parse_size("1G", None), Ok(1 << 30));
        assert_eq!(parse_size("512", Some(1 << 20)), Ok(512 << 20));
    }

    #[test]
    fn sizes_without_sense_are_refused() {
        for text in ["", "MiB", "512", "512MB", "-1MiB", "1.5GiB", "99999999999999999999", "99999999TiB"] {
            assert_eq!(parse_size(text, None), Err(SizeError), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_whole_unit() {
        assert_eq!(show_size(512 << 20), "512 MiB");
        assert_eq!(show_size(1000), "1000 bytes");
    }
}
