//! RFC 3339 texts as nanoseconds, exactly: our own because ns precision, the range check and a few dozen
//! nanoseconds per record matter here.

use crate::time::{SECOND, Timestamp};

/// Why a text is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Not of the form `2026-01-31T23:59:59.123456789Z`.
    #[error("expected a time like 2026-01-31T23:59:59.123456789Z with an offset and at most 9 fraction digits")]
    Form,
    /// No such date or time of day.
    #[error("there is no such date or time of day")]
    Calendar,
    /// Not between the years 1677 and 2262.
    #[error("the time is outside what 64 bits of nanoseconds hold (1677-09-21 to 2262-04-11)")]
    Range,
}

/// Reads a time with its offset, to the nanosecond. A leap second counts as the second after it.
pub fn parse_rfc3339(text: &str) -> Result<Timestamp, TimeError> {
    let bytes = text.as_bytes();
    let (date, rest) = bytes.split_at_checked(19).ok_or(TimeError::Form)?;
    let &[y1, y2, y3, y4, b'-', o1, o2, b'-', d1, d2, sep, h1, h2, b':', m1, m2, b':', s1, s2] = date else {
        return Err(TimeError::Form);
    };
    if !matches!(sep, b'T' | b't' | b' ') {
        return Err(TimeError::Form);
    }
    let year = number(&[y1, y2, y3, y4])?;
    let (month, day) = (number(&[o1, o2])?, number(&[d1, d2])?);
    let (hour, minute, second) = (number(&[h1, h2])?, number(&[m1, m2])?, number(&[s1, s2])?);
    let (nanos, rest) = fraction(rest)?;
    let offset = match *rest {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), a, b, b':', c, d] => {
            let (hours, minutes) = (number(&[a, b])?, number(&[c, d])?);
            if hours > 23 || minutes > 59 {
                return Err(TimeError::Calendar);
            }
            (hours * 60 + minutes) * if sign == b'-' { -60 } else { 60 }
        }
        _ => return Err(TimeError::Form),
    };
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) || hour > 23 || minute > 59 || second > 60 {
        return Err(TimeError::Calendar);
    }
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    let total = i128::from(seconds) * i128::from(SECOND) + i128::from(nanos);
    i64::try_from(total).map(Timestamp).map_err(|_| TimeError::Range)
}

fn number(digits: &[u8]) -> Result<i64, TimeError> {
    digits.iter().try_fold(0, |value, digit| match digit {
        b'0'..=b'9' => Ok(value * 10 + i64::from(digit - b'0')),
        _ => Err(TimeError::Form),
    })
}

/// The fraction of a second, and what stands after it.
fn fraction(rest: &[u8]) -> Result<(i64, &[u8]), TimeError> {
    let Some(digits) = rest.strip_prefix(b".") else {
        return Ok((0, rest));
    };
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = digits.split_at_checked(count).ok_or(TimeError::Form)?;
    if !(1..=9).contains(&count) {
        return Err(TimeError::Form);
    }
    Ok((number(digits)? * 10i64.pow(9 - count as u32), rest))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; years begin in March here, so that the leap day
/// comes last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<i64, TimeError>) {
        assert_eq!(parse_rfc3339(text).map(|ts| ts.0), expected, "{text}");
    }

    #[test]
    fn times() {
        check("1970-01-01T00:00:00Z", Ok(0));
        check("1969-12-31T23:59:59.999999999Z", Ok(-1));
        check("2024-02-29T12:00:00.5+02:00", Ok(1_709_200_800_500_000_000));
        check("2026-01-31 23:59:59.123456789z", Ok(1_769_903_999_123_456_789));
        check("2016-12-31T23:59:60Z", Ok(1_483_228_800 * SECOND));
        check("2000-01-01T00:00:00-23:59", Ok((946_684_800 + 86_340) * SECOND));
        check("2262-04-11T23:47:16.854775807Z", Ok(i64::MAX));
        check("1677-09-21T00:12:43.145224192Z", Ok(i64::MIN));
    }

    #[test]
    fn no_times() {
        check("2262-04-11T23:47:16.854775808Z", Err(TimeError::Range));
        check("0000-01-01T00:00:00Z", Err(TimeError::Range));
        check("2023-02-29T00:00:00Z", Err(TimeError::Calendar));
        check("2023-13-01T00:00:00Z", Err(TimeError::Calendar));
        check("2023-00-01T00:00:00Z", Err(TimeError::Calendar));
        check("2023-01-01T24:00:00Z", Err(TimeError::Calendar));
        check("2023-01-01T00:00:00+24:00", Err(TimeError::Calendar));
        for bad in [
            "",
            "2023-01-01",
            "2023-01-01T00:00:00",
            "2023-01-01T00:00:00.Z",
            "2023-01-01T00:00:00.1234567890Z",
            "2023-01-01T00:00:00+0100",
            "2023-1-01T00:00:00Z",
            "+023-01-01T00:00:00Z",
            "2023-01-01T00:00:00ZZ",
            "２０23-01-01T00:00:00Z",
        ] {
            check(bad, Err(TimeError::Form));
        }
    }
}
