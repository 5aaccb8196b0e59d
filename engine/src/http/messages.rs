//! `/v1/alerts/channels`: the ways to receivers, and what is on its way there.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::Api;
use crate::config::ChannelConfig;
use crate::notify::{self, ChannelReport};

/// A channel.
#[derive(Debug, Serialize, Deserialize)]
pub struct ChannelItem {
    /// Its name.
    pub name: String,
    /// `webhook`, `mqtt` or `log`.
    pub kind: String,
    /// Scheme and host of the webhook, or the topic. The rest of an address may be a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Messages that no receiver has accepted yet.
    pub waiting: usize,
    /// When the oldest of them was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest: Option<String>,
    /// Since the engine was started.
    #[serde(flatten)]
    pub report: ChannelReport,
}

/// All channels, and who is reached by them.
#[derive(Debug, Serialize, Deserialize)]
pub struct ChannelsItem {
    /// The channels.
    pub channels: Vec<ChannelItem>,
    /// Channels by the names that ladders tell.
    pub people: BTreeMap<String, BTreeSet<String>>,
    /// Names that ladders tell and that have no channel, with the rules that tell them.
    pub unreached: BTreeMap<String, Vec<String>>,
}

pub(super) async fn channels(State(api): State<Api>) -> Json<ChannelsItem> {
    let (counts, settings) = api.core.desk.with(|desk| (desk.counts(), desk.settings().clone()));
    let reports = api.told.channels();
    let channels = api.channels.iter().map(|channel| {
        let counts = counts.get(&channel.name).copied().unwrap_or_default();
        ChannelItem {
            name: channel.name.clone(),
            kind: channel.kind.as_str().to_owned(),
            target: target(channel),
            waiting: counts.waiting,
            oldest: counts.oldest.map(alerts::shown),
            report: reports.get(&channel.name).cloned().unwrap_or_default(),
        }
    });
    let channels = channels.collect();
    let unreached = notify::unreached(&api.core.project(), &settings);
    Json(ChannelsItem { channels, people: settings.people, unreached })
}

fn target(channel: &ChannelConfig) -> Option<String> {
    match (&channel.url, &channel.topic) {
        (Some(url), _) => url::Url::parse(url).ok().map(|url| url.origin().ascii_serialization()),
        (None, topic) => topic.clone(),
    }
}
