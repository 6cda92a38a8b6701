//! Durations as people write them: `90s`, `10m`.

use std::time::Duration;

/// Why a duration could not be read; says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a whole number from 1 on with a unit of ms, s, m, h or d, such as \"90s\"")]
pub(crate) struct DurationError;

/// The units and their milliseconds, the longest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Reads a duration.
///
/// # Errors
/// When `text` is no whole number with a known unit, is 0, or does not fit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(split).ok_or(DurationError)?;
    let number: u64 = digits.parse().map_err(|_no_number| DurationError)?;
    let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit.trim_start()).ok_or(DurationError)?;
    let ms = number.checked_mul(factor).filter(|&ms| ms > 0).ok_or(DurationError)?;
    Ok(Duration::from_millis(ms))
}

/// A duration for people: in the longest unit that divides it.
pub(crate) fn show_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let unit = UNITS.into_iter().find(|(_, factor)| ms.is_multiple_of(*factor));
    let (name, factor) = unit.unwrap_or(("ms", 1));
    format!("{} {name}", ms / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_with_units_are_read_and_shown() {
        for (text, ms, shown) in [
            ("250ms", 250, "250 ms"),
            ("90s", 90_000, "90 s"),
            (" 10 m", 600_000, "10 m"),
            ("120m", 7_200_000, "2 h"),
            ("1h", 3_600_000, "1 h"),
            ("2d", 172_800_000, "2 d"),
        ] {
            let duration = parse_duration(text).unwrap();
            assert_eq!((duration.as_millis(), show_duration(duration).as_str()), (ms, shown));
        }
    }

    #[test]
    fn durations_without_sense_are_refused() {
        for text in ["", "s", "90", "0s", "-1s", "1.5s", "90 sec", "1y", "99999999999999999999s", "999999999999999999d"]
        {
            assert_eq!(parse_duration(text), Err(DurationError), "{text}");
        }
    }
}
