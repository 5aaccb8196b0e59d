//! What of a transition matters to those who tell people.

use device::alert::{Event, State, Transition};
use device::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::matcher::Labels;
use crate::time::nanos;

/// What happened to an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It began, or goes on after it had ended.
    Fired,
    /// It is less bad, or one of now, or nothing is heard of it any more, or something again.
    Changed,
    /// It is worse: the ladder begins anew.
    Escalated,
    /// Somebody takes care of it.
    Acknowledged,
    /// Nobody takes care of it any more.
    Unacknowledged,
    /// Somebody is to be told.
    Told,
    /// It is over.
    Over,
}

/// A group of devices that a device belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// Its name.
    pub name: String,
    /// How many devices belong to it.
    pub devices: u32,
}

/// A change of an incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// What happened.
    pub what: What,
    /// The device.
    pub device: String,
    /// The rule.
    pub rule: String,
    /// The incident.
    pub incident: String,
    /// Counts the transitions of the device.
    pub number: u64,
    /// Its severity.
    pub severity: String,
    /// When it began.
    #[serde(with = "nanos")]
    pub since: Timestamp,
    /// When this happened.
    #[serde(with = "nanos")]
    pub ts: Timestamp,
    /// Nothing is heard of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
    /// The reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Who is to be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// Labels of the rule.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// It is of the past: it counts for nobody but those who are told of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub past: bool,
    /// Of one that began: the groups that the device belonged to then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fleets: Vec<Fleet>,
}

impl Change {
    /// Whether an incident of now begins with it, if it is not known yet.
    pub fn begins(&self) -> bool {
        matches!(self.what, What::Fired | What::Changed | What::Escalated) && !self.past
    }

    /// Of a transition; `None` if it is nobody's business.
    pub fn of(device: &str, transition: &Transition) -> Option<Self> {
        let what = match transition.event {
            Event::Told => What::Told,
            _ if transition.to == State::Ok => What::Over,
            Event::Fired => What::Fired,
            Event::Escalated => What::Escalated,
            Event::Eased | Event::Surfaced | Event::Returned => What::Changed,
            // Without an incident nothing has begun.
            Event::NoData if transition.stale => What::Changed,
            Event::Acknowledged => What::Acknowledged,
            Event::Unacknowledged => What::Unacknowledged,
            Event::Pending
            | Event::NoData
            | Event::Lapsed
            | Event::Recovering
            | Event::Relapsed
            | Event::Resolved
            | Event::Superseded
            | Event::Dropped => return None,
        };
        let lapsed = matches!(transition.event, Event::Lapsed | Event::Returned) && transition.to == State::Ok;
        // An incident of the past that nobody is told of is a row of `_alerts`, nothing more.
        if lapsed || (transition.history && transition.told.is_empty()) {
            return None;
        }
        Some(Self {
            what,
            device: device.to_owned(),
            rule: transition.rule.to_string(),
            incident: transition.incident.to_string(),
            number: transition.number,
            severity: transition.severity.to_string(),
            since: transition.since,
            ts: transition.ts,
            stale: transition.to == State::NoData,
            value: transition.value,
            to: match what {
                What::Told => transition.told.iter().map(|to| to.to_string()).collect(),
                _ => Vec::new(),
            },
            labels: Labels::parse(&transition.labels),
            past: transition.history || transition.backfilled,
            fleets: Vec::new(),
        })
    }
}
