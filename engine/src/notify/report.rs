//! What is known of the channels: for people and for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use device::time::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What is known of a channel since the engine was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelReport {
    /// Messages that the receiver has accepted.
    pub accepted: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Messages that were given up.
    pub gave_up: u64,
    /// Attempts in a row that failed.
    pub failing: u32,
    /// Why the last one failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When something was last accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_accepted: Option<String>,
}

/// What is known of all channels.
#[derive(Debug, Default)]
pub struct Report {
    channels: Mutex<BTreeMap<String, ChannelReport>>,
    unreached: AtomicU64,
    stuck: AtomicBool,
}

impl Report {
    /// By channel.
    pub fn channels(&self) -> BTreeMap<String, ChannelReport> {
        self.channels.lock().clone()
    }

    /// How often a ladder told somebody who has no channel.
    pub fn unreached_count(&self) -> u64 {
        self.unreached.load(Ordering::Relaxed)
    }

    fn change(&self, channel: &str, change: impl FnOnce(&mut ChannelReport)) {
        change(self.channels.lock().entry(channel.to_owned()).or_default());
    }

    pub(super) fn accepted(&self, channel: &str, now: Timestamp) {
        self.change(channel, |report| {
            report.accepted += 1;
            report.failing = 0;
            report.last_accepted = super::text(Some(now));
        });
    }

    pub(super) fn failed(&self, channel: &str, failing: u32, why: String) {
        self.change(channel, |report| {
            report.failed += 1;
            report.failing = failing;
            report.last_error = Some(why);
        });
    }

    pub(super) fn gave_up(&self, channel: &str) {
        self.change(channel, |report| report.gave_up += 1);
    }

    pub(super) fn unreached(&self) {
        self.unreached.fetch_add(1, Ordering::Relaxed);
    }

    /// Says once that what alerts need cannot be written, and once that it can again.
    pub(super) fn writable(&self, error: Option<&String>) {
        match (self.stuck.swap(error.is_some(), Ordering::Relaxed), error) {
            (false, Some(error)) => tracing::error!(error, "alerts: no new messages until this can be written"),
            (true, None) => tracing::info!("alerts: messages go on"),
            _ => {}
        }
    }
}
