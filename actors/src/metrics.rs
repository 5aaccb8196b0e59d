//! Counters of the device side. They add up: every record received is stored, duplicate, refused or kept as a
//! dead letter.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the process started, over all shards.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Messages put into the inboxes of devices.
    pub handed: AtomicU64,
    /// Messages that device actors have looked at, and those that named no valid device.
    pub messages: AtomicU64,
    /// Records in them, as far as they could be read; an unreadable payload counts as one.
    pub received: AtomicU64,
    /// Records admitted to the log.
    pub stored: AtomicU64,
    /// Records seen before.
    pub duplicate: AtomicU64,
    /// Records refused and not kept: the sender has to act.
    pub nacked: AtomicU64,
    /// Records whose payload was kept in `_dead_letters`.
    pub dead_lettered: AtomicU64,
    /// Messages that named no valid device, kept in `_dead_letters`.
    pub strays: AtomicU64,
    /// Device actors started.
    pub woken: AtomicU64,
    /// Device actors put to sleep.
    pub passivated: AtomicU64,
    /// Device actors that failed and were started again.
    pub restarted: AtomicU64,
    /// Group commits.
    pub commits: AtomicU64,
    /// Bytes of log records appended.
    pub log_bytes: AtomicU64,
    /// Appends that failed and were tried again.
    pub commit_failures: AtomicU64,
    /// Devices that restarted their numbering without saying so.
    pub numbering_restarted: AtomicU64,
    /// Other events that devices reported.
    pub events: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    if n > 0 {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Name and value of every counter.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("messages_handed", get(&self.handed)),
            ("messages", get(&self.messages)),
            ("records_received", get(&self.received)),
            ("records_stored", get(&self.stored)),
            ("records_duplicate", get(&self.duplicate)),
            ("records_nacked", get(&self.nacked)),
            ("records_dead_lettered", get(&self.dead_lettered)),
            ("stray_messages", get(&self.strays)),
            ("actors_woken", get(&self.woken)),
            ("actors_passivated", get(&self.passivated)),
            ("actors_restarted", get(&self.restarted)),
            ("log_commits", get(&self.commits)),
            ("log_bytes", get(&self.log_bytes)),
            ("log_commit_failures", get(&self.commit_failures)),
            ("numbering_restarted", get(&self.numbering_restarted)),
            ("device_events", get(&self.events)),
        ]
    }
}
