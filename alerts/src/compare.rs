//! What two runs of rules over the same records differ in.

use std::collections::{BTreeMap, BTreeSet};

use device::time::Timestamp;
use serde::Serialize;

use crate::rerun::Incident;

/// A difference.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum Difference {
    /// Only the first rules make it.
    Added {
        /// It.
        incident: Incident,
    },
    /// Only the second rules make it.
    Removed {
        /// It.
        incident: Incident,
    },
    /// Both make one at that time, but not the same.
    Changed {
        /// By the first rules.
        incident: Incident,
        /// By the second.
        before: Incident,
        /// What of it: `since`, `until`, `severity`, `told`.
        what: Vec<String>,
    },
}

impl Difference {
    /// The incident, by the first rules if they make it.
    pub fn incident(&self) -> &Incident {
        match self {
            Self::Added { incident } | Self::Removed { incident } | Self::Changed { incident, .. } => incident,
        }
    }
}

/// What `new` makes otherwise than `old`. Incidents of the same rule and device that overlap in time are one.
pub fn compare(new: &[Incident], old: &[Incident]) -> Vec<Difference> {
    let mut before: BTreeMap<(&str, &str), Vec<&Incident>> = BTreeMap::new();
    for incident in old {
        before.entry((&incident.rule, &incident.device)).or_default().push(incident);
    }
    let mut taken: BTreeSet<&str> = BTreeSet::new();
    let mut all = Vec::new();
    for incident in new {
        let others = before.get(&(incident.rule.as_str(), incident.device.as_str())).into_iter().flatten();
        let found = others.filter(|other| !taken.contains(other.id.as_str())).find(|other| overlap(incident, other));
        let Some(before) = found else {
            all.push(Difference::Added { incident: incident.clone() });
            continue;
        };
        taken.insert(&before.id);
        let what = [
            ("since", incident.since != before.since),
            ("until", incident.until != before.until),
            ("severity", incident.severity != before.severity),
            ("told", incident.told != before.told),
        ];
        let what: Vec<String> =
            what.iter().filter(|(_, differs)| *differs).map(|(name, _)| (*name).to_owned()).collect();
        if !what.is_empty() {
            all.push(Difference::Changed { incident: incident.clone(), before: (*before).clone(), what });
        }
    }
    let gone = old.iter().filter(|incident| !taken.contains(incident.id.as_str()));
    all.extend(gone.map(|incident| Difference::Removed { incident: incident.clone() }));
    all.sort_by_key(|difference| difference.incident().since);
    all
}

fn overlap(a: &Incident, b: &Incident) -> bool {
    let end = |incident: &Incident| incident.until.unwrap_or(Timestamp(i64::MAX));
    a.since <= end(b) && b.since <= end(a)
}
