//! Incidents that make others not worth telling: a gateway that is down, and everything behind it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::matcher::{Facts, Matcher};

/// While an incident is open that fits `source`, nobody is told of those that fit `target` and have the same values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inhibit {
    /// What makes others not worth telling.
    pub source: Vec<Matcher>,
    /// Which others.
    pub target: Vec<Matcher>,
    /// Names whose values have to be the same: `device`, `rule`, `severity` or labels.
    #[serde(default)]
    pub equal: Vec<String>,
}

impl Inhibit {
    fn key(&self, facts: &Facts<'_>) -> String {
        self.equal.iter().map(|name| facts.get(name)).collect::<Vec<_>>().join("\u{1f}")
    }
}

/// The open incidents that are sources, for each [`Inhibit`] with the values that have to be the same.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Sources(Vec<BTreeMap<String, String>>);

impl Sources {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Begins anew for other rules.
    pub(crate) fn reset(&mut self, inhibits: &[Inhibit]) {
        self.0 = vec![BTreeMap::new(); inhibits.len()];
    }

    /// An incident is as it is now; `None`: it is over. True: that changes what others are told.
    pub(crate) fn note(&mut self, inhibits: &[Inhibit], incident: &str, facts: Option<Facts<'_>>) -> bool {
        let mut changed = false;
        for (inhibit, of) in inhibits.iter().zip(&mut self.0) {
            let key = facts.filter(|facts| Matcher::all(&inhibit.source, facts)).map(|facts| inhibit.key(&facts));
            if of.get(incident) == key.as_ref() {
                continue;
            }
            changed = true;
            match key {
                Some(key) => of.insert(incident.to_owned(), key),
                None => of.remove(incident),
            };
        }
        changed
    }

    /// The incident because of which nobody is told of such a one. None is told of because of itself or its like.
    pub(crate) fn inhibits(&self, inhibits: &[Inhibit], facts: &Facts<'_>) -> Option<&str> {
        inhibits.iter().zip(&self.0).find_map(|(inhibit, of)| {
            if of.is_empty() || !Matcher::all(&inhibit.target, facts) || Matcher::all(&inhibit.source, facts) {
                return None;
            }
            let wanted = inhibit.key(facts);
            of.iter().find(|(_, key)| **key == wanted).map(|(incident, _)| incident.as_str())
        })
    }
}
