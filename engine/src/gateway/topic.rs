//! Topic names and filters: what is valid, and what a filter matches.

use super::fault::{Fault, code};
use super::frame;
use super::limits::FILTER_LEVELS;

/// Checks a topic name of the wire (not empty, UTF-8, no U+0000, no wildcard).
pub(crate) fn name(bytes: &[u8]) -> Result<&str, Fault> {
    if bytes.is_empty() {
        return Err(Fault::new(code::TOPIC_NAME, "the topic is empty"));
    }
    if bytes.iter().any(|b| matches!(b, b'+' | b'#')) {
        return Err(Fault::new(code::TOPIC_NAME, "a topic to publish on must not hold + or #"));
    }
    frame::text(bytes)
}

/// A valid topic filter, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filter<'a> {
    /// The name of the shared group, if it is a shared subscription.
    pub(crate) group: Option<&'a str>,
    /// The filter itself, without `$share/{group}/`.
    pub(crate) path: &'a str,
    /// Whether it holds `+` or `#`.
    pub(crate) wild: bool,
}

/// Why a text is not a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoFilter {
    /// The standard forbids it.
    Malformed,
    /// `$share` without what must follow it. In MQTT 3.1.1 it would be a filter like any other.
    Share,
    /// It has more levels than are served here.
    Deep,
}

impl NoFilter {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Malformed => "a topic filter is empty, holds U+0000, or a wildcard that is not a level of its own",
            Self::Share => "a shared subscription is $share/{name}/{filter}, without wildcards in the name",
            Self::Deep => "a topic filter has more than 64 levels",
        }
    }
}

/// Checks a filter.
pub(crate) fn filter(text: &str) -> Result<Filter<'_>, NoFilter> {
    let (group, path) = match text.strip_prefix("$share/") {
        Some(rest) => {
            let (group, path) = rest.split_once('/').ok_or(NoFilter::Share)?;
            if group.is_empty() || group.contains(['+', '#']) || path.is_empty() {
                return Err(NoFilter::Share);
            }
            (Some(group), path)
        }
        None if text == "$share" => return Err(NoFilter::Share),
        None => (None, text),
    };
    if path.is_empty() {
        return Err(NoFilter::Malformed);
    }
    let mut wild = false;
    let mut levels = path.split('/').peekable();
    let mut count = 0;
    while let Some(level) = levels.next() {
        count += 1;
        match level {
            "+" => wild = true,
            "#" if levels.peek().is_none() => wild = true,
            other if other.contains(['+', '#', '\0']) => return Err(NoFilter::Malformed),
            _ => {}
        }
    }
    if count <= FILTER_LEVELS { Ok(Filter { group, path, wild }) } else { Err(NoFilter::Deep) }
}

/// Whether every topic that `inner` matches is matched by `outer` too (both without `$share`).
pub(crate) fn covers(outer: &str, inner: &str) -> bool {
    if inner.starts_with('$') && outer.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = inner.split('/').peekable();
    for level in outer.split('/') {
        if level == "#" {
            return true;
        }
        match levels.next() {
            Some("#") => return false,
            Some(name) if level == "+" || level == name => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether a filter (without `$share`) matches a topic name.
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut names = topic.split('/');
    for level in filter.split('/') {
        if level == "#" {
            return true;
        }
        match names.next() {
            Some(name) if level == "+" || level == name => {}
            _ => return false,
        }
    }
    names.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(name(b"a/b").is_ok());
        assert!(name("é/temp".as_bytes()).is_ok());
        assert!(name(b"/").is_ok());
        assert_eq!(name(b"").unwrap_err().code, code::TOPIC_NAME);
        assert_eq!(name(b"a/+").unwrap_err().code, code::TOPIC_NAME);
        assert_eq!(name(b"a\0b").unwrap_err().code, code::MALFORMED);
        assert_eq!(name(&[0xc3, 0x28]).unwrap_err().code, code::MALFORMED);
    }

    #[test]
    fn filters_are_checked() {
        for good in ["#", "+", "/", "a", "a/+/b", "a/#", "+/+", "/#", "$SYS/#", "a//b", "$share/g/#", "$share/g/a"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "a/#/b", "x+y", "a+", "#a", "a/b#", "a\0", "$share/g/a+"] {
            assert_eq!(filter(bad), Err(NoFilter::Malformed), "{bad}");
        }
        for bad in ["$share/g", "$share//a", "$share/g/", "$share/+/a", "$share"] {
            assert_eq!(filter(bad), Err(NoFilter::Share), "{bad}");
        }
        assert_eq!(filter(&"a/".repeat(FILTER_LEVELS)), Err(NoFilter::Deep));
        let shared = filter("$share/g/a/+").unwrap();
        assert_eq!((shared.group, shared.path, shared.wild), (Some("g"), "a/+", true));
    }

    #[test]
    fn a_filter_covers_what_is_a_part_of_it() {
        for (outer, inner, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/c", false),
            ("a/#", "a/b/c", true),
            ("a/#", "a/+/c", true),
            ("a/#", "a/#", true),
            ("a/#", "a", true),
            ("a/#", "#", false),
            ("a/#", "+/b", false),
            ("a/+", "a/b", true),
            ("a/+", "a/+", true),
            ("a/+", "a/#", false),
            ("a/b", "a/+", false),
            ("#", "a/b", true),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/a", false),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
        ] {
            assert_eq!(covers(outer, inner), expected, "{outer} {inner}");
        }
    }

    #[test]
    fn matching_follows_the_standard() {
        for (filter, topic, expected) in [
            ("sport/#", "sport", true),
            ("sport/#", "sport/a/b", true),
            ("#", "a/b", true),
            ("+", "a", true),
            ("+", "/a", false),
            ("+/+", "/a", true),
            ("/+", "/a", true),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/a", false),
            ("$SYS/#", "$SYS/a", true),
            ("$SYS/+", "$SYS/a", true),
            ("a", "a/b", false),
            ("a/b", "a", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }
}
