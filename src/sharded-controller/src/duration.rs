//! Durations as flags and requests have them: one whole number and one unit.

use std::time::Duration;

/// Reads `500ms`, `6s`, `10m` or `1h`. `None`: the text has another form, or the number is too large.
///
/// ```
/// use sharded_controller::duration::parse;
/// use std::time::Duration;
///
/// assert_eq!(parse("10m"), Some(Duration::from_secs(600)));
/// assert_eq!(parse("10"), None);
/// ```
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_and_unit_are_both_required() {
        for (text, ms) in [
            ("500ms", 500),
            ("6s", 6000),
            ("010m", 600_000),
            ("1h", 3_600_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "6",
            "s",
            "-1m",
            "+6s",
            "1.5s",
            "6 s",
            "6S",
            "1d",
            "1h30m",
            "６s",
            "18446744073709551615h",
            "99999999999999999999s",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
