//! Lengths of time as people write them, in nanoseconds.
//!
//! Only units of one fixed length: a month is not one, so it has no place in a window or a retention. Read here and
//! not by sqlparser, because its interval grammar also accepts what we must refuse with a reason.

/// Units by their shortest name, with all spellings.
const UNITS: [(&[&str], i64); 8] = [
    (&["nanosecond", "nanoseconds", "ns"], 1),
    (&["microsecond", "microseconds", "us", "µs"], 1_000),
    (&["millisecond", "milliseconds", "ms"], 1_000_000),
    (&["second", "seconds", "sec", "secs", "s"], 1_000_000_000),
    (&["minute", "minutes", "min", "mins", "m"], 60_000_000_000),
    (&["hour", "hours", "hr", "h"], 3_600_000_000_000),
    (&["day", "days", "d"], 86_400_000_000_000),
    (&["week", "weeks", "w"], 604_800_000_000_000),
];

/// Why a text is no length of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Not of the form `<number> <unit>`.
    Form,
    /// A unit that does not exist, and the nearest that does.
    Unit(String, Option<String>),
    /// A month, quarter, year or more.
    Calendar(String),
    /// More than 292 years, or a fraction of a nanosecond.
    Range,
}

impl Wrong {
    /// Message and help for people; `text` is what they wrote.
    pub(crate) fn explain(&self, text: &str) -> (String, String) {
        const EXAMPLE: &str = "write a number and a unit from nanoseconds to weeks, as in INTERVAL '10 minutes'";
        match self {
            Self::Form => (format!("'{text}' is not a length of time"), EXAMPLE.to_owned()),
            Self::Unit(unit, Some(near)) => {
                (format!("'{unit}' is not a unit of time"), format!("did you mean `{near}`?"))
            }
            Self::Unit(unit, None) => (format!("'{unit}' is not a unit of time"), EXAMPLE.to_owned()),
            Self::Calendar(unit) => {
                (format!("a {unit} has no fixed length"), "use days or weeks, as in INTERVAL '30 days'".to_owned())
            }
            Self::Range => {
                (format!("'{text}' does not fit: lengths are whole nanoseconds, up to 292 years"), EXAMPLE.to_owned())
            }
        }
    }
}

/// Reads `1 minute`, `90s`, `1 hour 30 minutes`, `1.5 h`; with `unit` also a bare number, as in `INTERVAL '1' HOUR`.
pub(crate) fn parse(text: &str, unit: Option<&str>) -> Result<i64, Wrong> {
    let mut rest = text.trim();
    if let Some(unit) = unit {
        return amount(rest, scale(unit)?);
    }
    if rest.is_empty() {
        return Err(Wrong::Form);
    }
    let mut sum: i64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+')).ok_or(Wrong::Form)?;
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        if unit.is_empty() || number.is_empty() {
            return Err(Wrong::Form);
        }
        sum = sum.checked_add(amount(number, scale(unit)?)?).ok_or(Wrong::Range)?;
        rest = after.trim_start();
    }
    Ok(sum)
}

fn scale(unit: &str) -> Result<i64, Wrong> {
    let unit = unit.to_lowercase();
    if let Some((_, scale)) = UNITS.iter().find(|(names, _)| names.contains(&unit.as_str())) {
        return Ok(*scale);
    }
    let calendar = ["month", "quarter", "year", "decade", "century", "millennium"];
    let short = [("mon", "month"), ("mons", "month"), ("y", "year"), ("yr", "year"), ("centuries", "century")];
    let long = short.iter().find(|(s, _)| *s == unit).map_or(unit.as_str(), |(_, l)| l);
    if let Some(name) = calendar.iter().find(|c| long.trim_end_matches('s') == **c) {
        return Err(Wrong::Calendar((*name).to_owned()));
    }
    let names = UNITS.iter().flat_map(|(names, _)| names.iter().copied()).filter(|n| n.len() > 3);
    Err(Wrong::Unit(unit.clone(), crate::name::nearest(&unit, names)))
}

fn amount(number: &str, scale: i64) -> Result<i64, Wrong> {
    let number = number.trim();
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let good = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if !good(whole) || !good(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(Wrong::Form);
    }
    // Exact: 18 digits after the point are more than any unit needs.
    let fraction = fraction.trim_end_matches('0');
    if whole.len() > 19 || fraction.len() > 18 {
        return Err(Wrong::Range);
    }
    let parse = |t: &str| if t.is_empty() { Ok(0) } else { t.parse::<i128>().map_err(|_| Wrong::Range) };
    let ten = 10_i128.pow(fraction.len() as u32);
    let product = (parse(whole)? * ten + parse(fraction)?) * i128::from(scale);
    if product % ten != 0 {
        return Err(Wrong::Range);
    }
    let value = i64::try_from(product / ten).map_err(|_| Wrong::Range)?;
    Ok(if negative { -value } else { value })
}

/// The same length for DataFusion's interval literal: whole seconds if it can be, else nanoseconds. One length has
/// one text, so that equal windows become equal expressions however they were written.
pub(crate) fn literal(ns: i64) -> String {
    if ns % 1_000_000_000 == 0 { format!("{} seconds", ns / 1_000_000_000) } else { format!("{ns} nanoseconds") }
}

/// For names: `1m`, `90s`, `7d`.
pub(crate) fn short(ns: i64) -> String {
    let unit = |(_, scale): &&(&[&str], i64)| ns % scale == 0 && *scale <= 86_400_000_000_000;
    let Some((names, scale)) = UNITS.iter().rev().find(unit) else { return format!("{ns}ns") };
    let plain = names.iter().rev().find(|name| name.is_ascii()).copied();
    format!("{}{}", ns / scale, plain.unwrap_or("ns"))
}

/// For messages: a number of nanoseconds in the largest unit that divides it, as in `5 minutes`.
pub fn shown(ns: i64) -> String {
    let Some((names, scale)) = UNITS.iter().rev().find(|(_, scale)| ns % scale == 0) else { return format!("{ns} ns") };
    let count = ns / scale;
    let name = if count == 1 { names.first() } else { names.get(1) };
    format!("{count} {}", name.copied().unwrap_or("ns"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        let min = 60_000_000_000;
        for (text, unit, expected) in [
            ("1 minute", None, Ok(min)),
            (" 90 s ", None, Ok(90_000_000_000)),
            ("1h30m", None, Ok(90 * min)),
            ("1 hour 30 MINUTES", None, Ok(90 * min)),
            ("1.5 hours", None, Ok(90 * min)),
            ("0.000000001 s", None, Ok(1)),
            ("250µs", None, Ok(250_000)),
            ("-5 minutes", None, Ok(-5 * min)),
            ("2", Some("weeks"), Ok(2 * 7 * 24 * 60 * min)),
            ("0 seconds", None, Ok(0)),
            ("", None, Err(Wrong::Form)),
            ("minute", None, Err(Wrong::Form)),
            ("10", None, Err(Wrong::Form)),
            ("1 2 minutes", None, Err(Wrong::Form)),
            ("1:30 minutes", None, Err(Wrong::Form)),
            ("1.2.3 s", None, Err(Wrong::Form)),
            ("0.5 ns", None, Err(Wrong::Range)),
            ("9223372036854775807 ns", None, Ok(i64::MAX)),
            ("9223372036854775808 ns", None, Err(Wrong::Range)),
            ("99999999999999999999 s", None, Err(Wrong::Range)),
            ("300 years", None, Err(Wrong::Calendar("year".into()))),
            ("1 month", None, Err(Wrong::Calendar("month".into()))),
            ("1 mon", None, Err(Wrong::Calendar("month".into()))),
            ("1 century", None, Err(Wrong::Calendar("century".into()))),
            ("10 minuts", None, Err(Wrong::Unit("minuts".into(), Some("minute".into())))),
            ("10 lightyear", None, Err(Wrong::Unit("lightyear".into(), None))),
            ("3 secs 1", None, Err(Wrong::Form)),
        ] {
            assert_eq!(parse(text, unit), expected, "{text:?}");
        }
    }

    #[test]
    fn one_length_has_one_text() {
        assert_eq!(literal(parse("1 minute", None).unwrap()), literal(parse("60 seconds", None).unwrap()));
        assert_eq!(literal(1_500_000), "1500000 nanoseconds");
        assert_eq!(shown(60_000_000_000), "1 minute");
        assert_eq!(shown(90_000_000_000), "90 seconds");
        assert_eq!(shown(14 * 86_400_000_000_000), "2 weeks");
        assert_eq!(shown(7), "7 nanoseconds");
        let names = ["1 minute", "90 s", "1 hour", "1 day", "1 week", "36 hours", "250 ms", "3 us", "7 ns"];
        let short = names.map(|text| short(parse(text, None).unwrap()));
        assert_eq!(short, ["1m", "90s", "1h", "1d", "7d", "36h", "250ms", "3us", "7ns"]);
    }
}
