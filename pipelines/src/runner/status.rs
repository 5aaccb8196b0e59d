//! What others see of a runner while it works: queries, `/readyz`, metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use device::seq::Barrier;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::stand::Asked;
use crate::alerts::OpenAlerts;
use crate::live::LiveTables;

/// What others see of a runner while it works.
#[derive(Debug)]
pub struct Status {
    /// Rows that are in no file yet.
    pub live: LiveTables,
    /// Alerts that are not `ok`.
    pub alerts: OpenAlerts,
    /// The last barrier whose files are visible.
    pub cut: watch::Sender<Barrier>,
    /// Position up to which everything is in tables or windows, and queries see it.
    pub position: AtomicU64,
    /// False while the store refuses writes.
    pub healthy: AtomicBool,
    /// Rows made, over all tables.
    pub rows: AtomicU64,
    /// Rows made of records, in the tables of streams.
    pub records: AtomicU64,
    /// How many of them were made anew from the log when the shard was opened.
    pub replayed: AtomicU64,
    /// Rows made of frames whose schema was unknown when they came.
    pub redecoded: AtomicU64,
    /// Such frames are still to be looked at: a cut takes the next part of them.
    pub redecoding: AtomicBool,
    /// Records that came too late for a window.
    pub late: AtomicU64,
    /// Files written.
    pub files: AtomicU64,
    /// Bytes of files written.
    pub file_bytes: AtomicU64,
    /// Checkpoints written.
    pub checkpoints: AtomicU64,
    /// Writes to the store that failed and were tried again.
    pub store_failures: AtomicU64,
    /// Groups in open windows, over all pipelines, at the last barrier.
    pub open_groups: AtomicU64,
    /// Memory of the states of pipelines, at the last barrier.
    pub state_bytes: AtomicU64,
    /// By stream, the times whose records are in open windows, at the last barrier: first and last nanosecond of ranges.
    pub needed: Mutex<BTreeMap<String, Vec<(i64, i64)>>>,
    /// Set to make the runner end even while the store is away.
    pub stop: AtomicBool,
    pub(super) asked: Asked,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            live: LiveTables::default(),
            alerts: OpenAlerts::default(),
            cut: watch::Sender::new(Barrier(0)),
            position: AtomicU64::new(0),
            healthy: AtomicBool::new(true),
            rows: AtomicU64::new(0),
            records: AtomicU64::new(0),
            replayed: AtomicU64::new(0),
            redecoded: AtomicU64::new(0),
            redecoding: AtomicBool::new(false),
            late: AtomicU64::new(0),
            files: AtomicU64::new(0),
            file_bytes: AtomicU64::new(0),
            checkpoints: AtomicU64::new(0),
            store_failures: AtomicU64::new(0),
            open_groups: AtomicU64::new(0),
            state_bytes: AtomicU64::new(0),
            needed: Mutex::default(),
            stop: AtomicBool::new(false),
            asked: Asked::default(),
        }
    }
}

impl Status {
    /// Rows made of records that were committed since the shard was opened.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Acquire).saturating_sub(self.replayed.load(Ordering::Acquire))
    }
}
