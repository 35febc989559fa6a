//! Wall-clock time as people write it: RFC 3339 for points, `10m` and `30d` for spans.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use peerage_model::UnixTime;

/// What the system's clock says.
#[must_use]
pub fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

const DAY: u64 = 24 * 3600;
/// A hundred years.
const LONGEST: u64 = 36_525 * DAY;

/// `2026-11-21T03:07:15Z`.
#[must_use]
pub fn rfc3339(time: UnixTime) -> String {
    let (year, month, day) = civil_from_days(time.0 / DAY);
    let rest = time.0 % DAY;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Text that is not a point in time as [`rfc3339`] writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a time is written like 2026-11-21T03:07:15Z")]
pub struct InvalidTime;

/// Reads what [`rfc3339`] wrote (UTC, whole seconds).
///
/// # Errors
/// [`InvalidTime`] for anything else.
pub fn parse_rfc3339(text: &str) -> Result<UnixTime, InvalidTime> {
    let bytes = text.as_bytes();
    let shape = b"dddd-dd-ddTdd:dd:ddZ";
    let fits = |(byte, want): (&u8, &u8)| {
        if *want == b'd' { byte.is_ascii_digit() } else { byte == want }
    };
    if bytes.len() != shape.len() || !bytes.iter().zip(shape).all(fits) {
        return Err(InvalidTime);
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u64>().map_err(|_| InvalidTime);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err(InvalidTime);
    }
    let time = UnixTime(
        days_from_civil(year, month, day) * DAY + number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?,
    );
    // 31 February and 25 o'clock compute to some other moment: only what reads back is a time.
    if rfc3339(time) == text { Ok(time) } else { Err(InvalidTime) }
}

/// Year, month and day of a day since 1970-01-01, counted in eras of 400 years that begin on 1 March, so that the
/// leap day comes last.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Text that is not a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpan {
    /// It is written otherwise.
    #[error("a duration is a number with s, m, h, d or w behind it, like 10m or 30d")]
    Malformed,
    /// It is over as it begins.
    #[error("a duration is a second at least")]
    Zero,
    /// Nobody sees its end.
    #[error("a duration is 100 years at most")]
    TooLong,
}

/// Reads `90s`, `10m`, `12h`, `30d`, `2w`. Zero is not a span.
///
/// # Errors
/// [`InvalidSpan`] for anything else, also for nothing and for more than a hundred years.
pub fn parse_span(text: &str) -> Result<Duration, InvalidSpan> {
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or(InvalidSpan::Malformed)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => DAY,
        "w" => 7 * DAY,
        _ => return Err(InvalidSpan::Malformed),
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidSpan::Malformed);
    }
    // Digits alone fail where they are too many.
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)) {
        Some(0) => Err(InvalidSpan::Zero),
        Some(total @ ..=LONGEST) => Ok(Duration::from_secs(total)),
        Some(_) | None => Err(InvalidSpan::TooLong),
    }
}

/// A span in its two largest units: `2d 3h`, `10m`, `45s`.
#[must_use]
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [(seconds / DAY, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let from = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown: Vec<String> = parts[from..]
        .iter()
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    if shown.is_empty() { "0s".into() } else { shown.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_written_and_read() {
        // From `date -u -d @N`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_230_435, "2026-11-21T03:07:15Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UnixTime(seconds)), text);
            assert_eq!(parse_rfc3339(text), Ok(UnixTime(seconds)));
        }
    }

    #[test]
    fn moments_that_never_were_are_refused() {
        for text in ["", "2026-02-30T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01 00:00:00Z", "+026-01-01T00:00:00Z"]
        {
            assert_eq!(parse_rfc3339(text), Err(InvalidTime), "{text}");
        }
    }

    #[test]
    fn spans_read_as_people_write_them() {
        assert_eq!(parse_span("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_span("30d"), Ok(Duration::from_secs(30 * DAY)));
        for text in ["", "m", "10", "-1m", "+1m", "1.5h", "10é"] {
            assert_eq!(parse_span(text), Err(InvalidSpan::Malformed), "{text}");
        }
    }

    #[test]
    fn a_span_of_nothing_and_one_without_an_end_are_not_called_malformed() {
        assert_eq!(parse_span("0h"), Err(InvalidSpan::Zero));
        assert_eq!(parse_span("36525d"), Ok(Duration::from_secs(LONGEST)));
        for text in ["36526d", "99999999999999w", "99999999999999999999999s"] {
            assert_eq!(parse_span(text), Err(InvalidSpan::TooLong), "{text}");
        }
    }

    #[test]
    fn spans_are_shown_in_two_units() {
        assert_eq!(span(Duration::from_secs(2 * DAY + 3 * 3600 + 59)), "2d 3h");
        assert_eq!(span(Duration::from_secs(600)), "10m");
        assert_eq!(span(Duration::ZERO), "0s");
    }
}
