//! Incidents that belong together are told of together: the first news wait a little for more, later ones longer, and what
//! goes on for long is said again.

use std::collections::{BTreeMap, BTreeSet};

use device::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::message::About;
use crate::settings::Settings;
use crate::time::{maybe_nanos, nanos};

/// What of an incident is to be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct News {
    pub(crate) about: About,
    pub(crate) step: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<String>,
}

/// What one channel knows of a group, and what it is to hear.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Batch {
    /// By incident.
    news: BTreeMap<String, News>,
    /// The incidents that it knows to be open, with what it was last told of them.
    told: BTreeMap<String, News>,
    #[serde(default, with = "maybe_nanos")]
    due: Option<Timestamp>,
    #[serde(default, with = "maybe_nanos")]
    last: Option<Timestamp>,
}

/// A group of incidents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// When it began, by the engine's clock.
    #[serde(with = "nanos")]
    pub(crate) since: Timestamp,
    /// Counts what was told of it.
    pub(crate) step: u64,
    channels: BTreeMap<String, Batch>,
}

impl Group {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { since: now, step: 0, channels: BTreeMap::new() }
    }

    /// A channel is to hear of an incident.
    pub(crate) fn add(&mut self, now: Timestamp, settings: &Settings, channel: &str, incident: &str, news: News) {
        let batch = self.channels.entry(channel.to_owned()).or_default();
        if news.about == About::Resolved && !batch.told.contains_key(incident) {
            // It came and went before anybody heard of it.
            batch.news.remove(incident);
            return;
        }
        batch.news.insert(incident.to_owned(), news);
        let soonest = match batch.last {
            None => now.plus(settings.group_wait_ns),
            Some(last) => now.max(last.plus(settings.group_interval_ns)),
        };
        batch.due = Some(batch.due.map_or(soonest, |due| due.min(soonest)));
    }

    /// When something is to be told.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.channels.values().filter_map(|batch| batch.due).min()
    }

    /// What is to be told now, by channel; `quiet`: incidents of which nothing is repeated.
    pub(crate) fn flush(
        &mut self,
        now: Timestamp,
        settings: &Settings,
        quiet: impl Fn(&str) -> bool,
    ) -> Vec<(String, BTreeMap<String, News>)> {
        let mut all = Vec::new();
        for (channel, batch) in &mut self.channels {
            if batch.due.is_none_or(|due| due > now) {
                continue;
            }
            let mut members = std::mem::take(&mut batch.news);
            for (incident, news) in &members {
                match news.about {
                    About::Resolved => batch.told.remove(incident),
                    _ => batch.told.insert(incident.clone(), news.clone()),
                };
            }
            if members.is_empty() {
                let again = batch.told.iter().filter(|(incident, _)| !quiet(incident));
                members = again.map(|(incident, news)| (incident.clone(), news.clone())).collect();
            }
            batch.last = Some(now);
            batch.due = (!batch.told.is_empty()).then(|| now.plus(settings.repeat_ns));
            if !members.is_empty() {
                all.push((channel.clone(), members));
            }
        }
        if !all.is_empty() {
            self.step += 1;
        }
        all
    }

    /// Channels that are no more are not told.
    pub(crate) fn keep(&mut self, channels: &BTreeSet<String>) {
        self.channels.retain(|channel, _| channels.contains(channel));
    }

    /// Whether nothing need be remembered.
    pub(crate) fn is_past(&self) -> bool {
        self.channels.values().all(|batch| batch.news.is_empty() && batch.told.is_empty())
    }
}
