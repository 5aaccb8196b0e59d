//! What is sent to a receiver.

use device::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::matcher::Labels;
use crate::storm::StormFacts;
use crate::time::{nanos, shown};

/// Why a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// A step of the ladder.
    Page,
    /// Whoever was told of the end: it goes on.
    Again,
    /// It is over.
    Resolved,
    /// It comes and goes: nothing more is said of it until it has settled.
    Flapping,
    /// There are so many of its kind that they are one storm.
    Storm,
    /// The storm is over.
    StormOver,
}

impl About {
    /// Its name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Again => "again",
            Self::Resolved => "resolved",
            Self::Flapping => "flapping",
            Self::Storm => "storm",
            Self::StormOver => "storm_over",
        }
    }
}

/// A message to one channel. It says the same however often it is tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Counts the messages of a node.
    pub number: u64,
    /// Why it is sent.
    pub about: About,
    /// Where to.
    pub channel: String,
    /// The incident.
    pub incident: String,
    /// What of the incident: the number of the transition that it comes from.
    pub step: u64,
    /// Whom the ladder tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The rule.
    pub rule: String,
    /// The device.
    pub device: String,
    /// Where the alert stands: `firing`, `no_data` or `ok`.
    pub state: String,
    /// Its severity.
    pub severity: String,
    /// When it began.
    #[serde(with = "nanos")]
    pub since: Timestamp,
    /// When the message was made.
    #[serde(with = "nanos")]
    pub at: Timestamp,
    /// The last reading that changed something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Labels of the rule.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Of a group: what happened to its incidents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: usize,
    /// Of a storm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<StormFacts>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// An incident of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// What is told of it.
    pub about: About,
    /// The incident.
    pub incident: String,
    /// The rule.
    pub rule: String,
    /// The device.
    pub device: String,
    /// `firing`, `no_data` or `ok`.
    pub state: String,
    /// Its severity.
    pub severity: String,
    /// When it began, RFC 3339.
    pub since: String,
    /// The last reading that changed something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Whom the ladder tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// A message as receivers read it.
#[derive(Serialize)]
struct Payload<'a> {
    key: String,
    about: &'static str,
    incident: &'a str,
    step: u64,
    channel: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    rule: &'a str,
    device: &'a str,
    state: &'a str,
    severity: &'a str,
    since: String,
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<f64>,
    labels: &'a Labels,
    #[serde(skip_serializing_if = "<[Member]>::is_empty")]
    members: &'a [Member],
    #[serde(skip_serializing_if = "is_zero")]
    more: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    storm: Option<StormPayload<'a>>,
    text: String,
}

#[derive(Serialize)]
struct StormPayload<'a> {
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    devices: &'a [String],
    last: String,
    open: u64,
}

impl Message {
    /// The same for every attempt, and for this message only: receivers tell repeats by it.
    pub fn key(&self) -> String {
        // The change with which it began to flap is told once more when it has settled, if it was the last.
        let about = if self.about == About::Flapping { "f" } else { "" };
        format!("{}-{}{about}-{}", self.incident, self.step, self.channel)
    }

    /// One line for people.
    pub fn text(&self) -> String {
        let Self { rule, device, severity, state, .. } = self;
        let value = self.value.map_or(String::new(), |value| format!(", value {value}"));
        let severity = if severity.is_empty() { String::new() } else { format!(" ({severity})") };
        let since = shown(self.since);
        if !self.members.is_empty() {
            return self.group_text();
        }
        let storm = self.storm.as_ref().map_or(String::new(), |storm| {
            let StormFacts { count, devices, open, fleet, .. } = storm;
            let of = fleet.as_ref().map_or(String::new(), |name| format!(" in group {name}"));
            format!("{count} incidents{of} since {since}, {open} of them open, first of all {}", devices.join(", "))
        });
        match self.about {
            About::Storm => format!("{rule}: a storm, {storm}; nobody is told of each"),
            About::StormOver => format!("{rule}: the storm is over, {storm}"),
            About::Resolved => format!("{rule}{severity} of {device} is over; it began {since}{value}"),
            About::Again => format!("{rule}{severity} of {device} is back: {state} since {since}{value}"),
            About::Flapping => {
                format!("{rule}{severity} of {device} comes and goes (now {state}{value}); quiet until it has settled")
            }
            About::Page => format!("{rule}{severity} of {device}: {state} since {since}{value}"),
        }
    }

    fn group_text(&self) -> String {
        let named = self.members.iter().take(10).map(|member| {
            let Member { rule, device, state, severity, .. } = member;
            format!("{rule} ({severity}) of {device} {}", if state == "ok" { "is over" } else { state })
        });
        let named: Vec<String> = named.collect();
        let more = match (self.members.len() + self.more).saturating_sub(named.len()) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let labels = self.labels.0.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ");
        let labels = if labels.is_empty() { String::new() } else { format!("{labels}: ") };
        format!("{labels}{}{more}", named.join("; "))
    }

    /// As JSON.
    pub fn json(&self) -> Vec<u8> {
        let payload = Payload {
            key: self.key(),
            about: self.about.as_str(),
            incident: &self.incident,
            step: self.step,
            channel: &self.channel,
            to: self.to.as_deref(),
            rule: &self.rule,
            device: &self.device,
            state: &self.state,
            severity: &self.severity,
            since: shown(self.since),
            at: shown(self.at),
            value: self.value,
            labels: &self.labels,
            members: &self.members,
            more: self.more,
            storm: self.storm.as_ref().map(|storm| StormPayload {
                count: storm.count,
                group: storm.fleet.as_deref(),
                devices: &storm.devices,
                last: shown(storm.last),
                open: storm.open,
            }),
            text: self.text(),
        };
        // Texts and finite numbers always are JSON.
        serde_json::to_vec(&payload).unwrap_or_default()
    }
}
