//! One incident, and those who were told of it.

use std::collections::BTreeSet;

use device::time::{SECOND, Timestamp};
use serde::{Deserialize, Serialize};

use crate::change::{Change, What};
use crate::matcher::{Facts, Labels};
use crate::message::{About, Message};
use crate::time::{maybe_nanos, nanos};

/// An incident that is over is remembered for so long: it may come back within ten minutes of the device's time, and the
/// device may lag behind.
const REMEMBERED: i64 = 1800 * SECOND;

/// Somebody who is to be told, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rung {
    pub(crate) about: About,
    /// The number of the transition.
    pub(crate) step: u64,
    /// By the engine's clock.
    #[serde(with = "nanos")]
    pub(crate) at: Timestamp,
    pub(crate) to: Whom,
}

/// Who.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Whom {
    /// A name of a ladder.
    Name(String),
    /// The channels that were told of the end.
    Channels(BTreeSet<String>),
}

/// One incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) device: String,
    pub(crate) rule: String,
    pub(crate) severity: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub(crate) labels: Labels,
    #[serde(with = "nanos")]
    pub(crate) since: Timestamp,
    #[serde(default)]
    pub(crate) value: Option<f64>,
    #[serde(default)]
    pub(crate) stale: bool,
    #[serde(default)]
    pub(crate) acked: bool,
    /// When it ended, by the engine's clock.
    #[serde(default, with = "maybe_nanos")]
    pub(crate) over: Option<Timestamp>,
    /// Those who are to be told, and were not yet.
    #[serde(default)]
    pub(crate) waiting: Vec<Rung>,
    /// Channels that know that it is open.
    #[serde(default)]
    pub(crate) paged: BTreeSet<String>,
    /// Channels that know that it had ended.
    #[serde(default)]
    pub(crate) ended: BTreeSet<String>,
    /// The groups that its device belonged to when it began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) fleets: Vec<String>,
    /// The storm that it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) storm: Option<String>,
    /// Since when nobody may be told.
    #[serde(default, with = "maybe_nanos")]
    pub(crate) held: Option<Timestamp>,
    /// By how much the ladder is behind: as long as nobody could be told, in nanoseconds.
    #[serde(default)]
    pub(crate) behind_ns: i64,
}

impl Case {
    pub(crate) fn new(change: &Change) -> Self {
        Self {
            device: change.device.clone(),
            rule: change.rule.clone(),
            severity: change.severity.clone(),
            labels: change.labels.clone(),
            since: change.since,
            value: None,
            stale: false,
            acked: false,
            over: None,
            waiting: Vec::new(),
            paged: BTreeSet::new(),
            ended: BTreeSet::new(),
            fleets: change.fleets.iter().map(|fleet| fleet.name.clone()).collect(),
            storm: None,
            held: None,
            behind_ns: 0,
        }
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts { rule: &self.rule, device: &self.device, severity: &self.severity, labels: &self.labels.0 }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.over.is_none()
    }

    /// Takes a change, but for its end. `flaps`: it comes and goes, which is no news any more.
    pub(crate) fn take(&mut self, now: Timestamp, change: &Change, flaps: bool) {
        self.severity.clone_from(&change.severity);
        self.value = change.value.or(self.value);
        self.stale = change.stale;
        match change.what {
            What::Fired => self.over = None,
            What::Escalated => {
                self.acked = false;
                self.behind_ns = 0;
                self.held = self.held.map(|_| now);
                // The ladder begins anew; who is to hear that it goes on still is.
                self.waiting.retain(|rung| rung.about == About::Again);
            }
            What::Acknowledged => self.acked = true,
            What::Unacknowledged => self.acked = false,
            What::Told => {
                let at = change.ts.plus(self.behind_ns);
                for to in &change.to {
                    let to = Whom::Name(to.clone());
                    self.waiting.push(Rung { about: About::Page, step: change.number, at, to });
                }
            }
            What::Changed | What::Over => {}
        }
        // They know that it had ended. In the past it may end once more before anybody could do something about it.
        if !change.past && self.is_open() {
            let mut to = std::mem::take(&mut self.ended);
            if flaps {
                self.paged.append(&mut to);
            }
            if !to.is_empty() {
                let to = Whom::Channels(to);
                self.waiting.push(Rung { about: About::Again, step: change.number, at: now, to });
            }
        }
    }

    /// It is over. Gives the channels that have to hear of it.
    pub(crate) fn end(&mut self, now: Timestamp, change: &Change) -> BTreeSet<String> {
        self.value = change.value.or(self.value);
        self.over = Some(now);
        self.waiting.clear();
        (self.stale, self.acked, self.held, self.behind_ns) = (false, false, None, 0);
        let told = std::mem::take(&mut self.paged);
        self.ended.extend(told.iter().cloned());
        told
    }

    /// Whether nobody may be told now. While that is so, the ladder stands still.
    pub(crate) fn hold(&mut self, now: Timestamp, held: bool) {
        match (self.held, held) {
            (None, true) => self.held = Some(now),
            (Some(since), false) => {
                let lasted = now.since(since);
                self.held = None;
                self.behind_ns = self.behind_ns.saturating_add(lasted);
                self.waiting.iter_mut().for_each(|rung| rung.at = rung.at.plus(lasted));
            }
            _ => {}
        }
    }

    fn climbs(&self) -> bool {
        self.is_open() && self.held.is_none()
    }

    /// When the next one is to be told.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        let may = |rung: &&Rung| !self.acked || rung.about == About::Again;
        self.waiting.iter().filter(may).map(|rung| rung.at).min().filter(|_| self.climbs())
    }

    /// Those who are to be told now.
    pub(crate) fn release(&mut self, now: Timestamp) -> Vec<Rung> {
        if !self.climbs() {
            return Vec::new();
        }
        let acked = self.acked;
        let due = |rung: &mut Rung| rung.at <= now && (!acked || rung.about == About::Again);
        self.waiting.extract_if(.., due).collect()
    }

    /// Whether it may be forgotten.
    pub(crate) fn is_past(&self, now: Timestamp) -> bool {
        self.over.is_some_and(|over| now.since(over) > REMEMBERED)
    }

    /// A message about it.
    pub(crate) fn message(&self, incident: &str, about: About, step: u64, channel: &str, now: Timestamp) -> Message {
        let state = match (self.is_open(), self.stale) {
            (false, _) => "ok",
            (true, true) => "no_data",
            (true, false) => "firing",
        };
        Message {
            number: 0,
            about,
            channel: channel.to_owned(),
            incident: incident.to_owned(),
            step,
            to: None,
            rule: self.rule.clone(),
            device: self.device.clone(),
            state: state.to_owned(),
            severity: self.severity.clone(),
            since: self.since,
            at: now,
            value: self.value,
            labels: self.labels.clone(),
            members: Vec::new(),
            more: 0,
            storm: None,
        }
    }
}
