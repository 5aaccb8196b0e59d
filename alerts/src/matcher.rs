//! What an incident is, by name and value, and conditions on that: `device=~pump-.*`.

use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// Longest text of a matcher in bytes.
const MAX_TEXT: usize = 1000;

/// Most memory of a compiled pattern: a pattern that needs more is a mistake, or an attack.
const MAX_PATTERN: usize = 1 << 20;

/// Names and values of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, String>);

impl Labels {
    /// From `name=value,name=value`.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a matcher looks at.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The rule.
    pub rule: &'a str,
    /// The device.
    pub device: &'a str,
    /// The severity.
    pub severity: &'a str,
    /// Labels of the rule.
    pub labels: &'a BTreeMap<String, String>,
}

impl Facts<'_> {
    /// What stands under a name; a label that is not there is empty.
    pub fn get(&self, name: &str) -> &str {
        match name {
            "rule" => self.rule,
            "device" => self.device,
            "severity" => self.severity,
            label => self.labels.get(label).map_or("", String::as_str),
        }
    }
}

/// A condition on one name. A pattern has to fit the whole value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Matcher {
    name: String,
    text: String,
    equal: bool,
    pattern: Option<Regex>,
}

impl Matcher {
    /// Reads `name=value`, `name!=value`, `name=~pattern` or `name!~pattern`. The error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is no matcher; write rule=overheating, device=~pump-.*, severity!=info or team!~north|south"
            )
        };
        if text.len() > MAX_TEXT {
            return Err(format!("a matcher has up to {MAX_TEXT} bytes, this one has {}", text.len()));
        }
        let at = text.find(['=', '!']).ok_or_else(form)?;
        let (name, rest) = text.split_at(at);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(form());
        }
        let (equal, is_pattern, value) = if let Some(value) = rest.strip_prefix("=~") {
            (true, true, value)
        } else if let Some(value) = rest.strip_prefix("!~") {
            (false, true, value)
        } else if let Some(value) = rest.strip_prefix("!=") {
            (false, false, value)
        } else if let Some(value) = rest.strip_prefix('=') {
            (true, false, value)
        } else {
            return Err(form());
        };
        let pattern = match is_pattern {
            false => None,
            true => {
                let whole = format!("^(?:{value})$");
                let built = regex::RegexBuilder::new(&whole).size_limit(MAX_PATTERN).build();
                Some(built.map_err(|error| {
                    let why = match error {
                        regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
                        other => other.to_string().lines().last().unwrap_or_default().trim().to_owned(),
                    };
                    format!("{text:?}: {value:?} is no pattern: {why}")
                })?)
            }
        };
        Ok(Self { name: name.to_owned(), text: value.to_owned(), equal, pattern })
    }

    /// Whether it holds.
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        let value = facts.get(&self.name);
        let fits = match &self.pattern {
            Some(pattern) => pattern.is_match(value),
            None => value == self.text,
        };
        fits == self.equal
    }

    /// Whether all of them hold.
    pub(crate) fn all(matchers: &[Self], facts: &Facts<'_>) -> bool {
        matchers.iter().all(|matcher| matcher.holds(facts))
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.text, self.equal, self.pattern.is_some())
            == (&other.name, &other.text, other.equal, other.pattern.is_some())
    }
}

impl Eq for Matcher {}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match (self.equal, self.pattern.is_some()) {
            (true, false) => "=",
            (false, false) => "!=",
            (true, true) => "=~",
            (false, true) => "!~",
        };
        write!(f, "{}{sign}{}", self.name, self.text)
    }
}

impl TryFrom<String> for Matcher {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Matcher> for String {
    fn from(matcher: Matcher) -> Self {
        matcher.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matches() {
        let labels = Labels::parse("team=plant,site=north");
        let facts = Facts { rule: "hot", device: "pump-7", severity: "critical", labels: &labels.0 };
        let holds = |text: &str| {
            let matcher = Matcher::parse(text).unwrap();
            assert_eq!(Matcher::parse(&matcher.to_string()).unwrap(), matcher);
            matcher.holds(&facts)
        };
        for text in ["rule=hot", "device=~pump-.*", "device!~pump", "severity!=info", "team=plant", "site=~north|south"]
        {
            assert!(holds(text), "{text}");
        }
        for text in ["rule=ho", "rule=~ho", "device!=pump-7", "team=~", "site!~n.*", "severity=Critical"] {
            assert!(!holds(text), "{text}");
        }
        assert!(holds("unit=") && holds("unit!=x") && holds("a=") && !holds("rule=") && !holds("rule!=hot"));
        assert!(Matcher::parse("x=a=b").unwrap().to_string() == "x=a=b");
    }

    #[test]
    fn what_is_no_matcher() {
        for (text, why) in [
            ("", "no matcher"),
            ("rule", "no matcher"),
            ("=hot", "no matcher"),
            ("rule!hot", "no matcher"),
            ("a b=c", "no matcher"),
            ("device=~pump-(", "no pattern"),
            ("device=~(a{500}){500}", "too large"),
        ] {
            let error = Matcher::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(Matcher::parse(&format!("a={}", "x".repeat(1000))).is_err());
    }
}
