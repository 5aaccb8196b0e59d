//! What the engine keeps in a world that lasts for weeks: memory, log, state and files, day by day and life by life.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::live::{Ground, Live};

/// A look at a world, at the end of one of its days.
#[derive(Debug, Clone)]
pub struct Look {
    /// Days since the world began.
    pub day: i64,
    /// Which life of the engine it is.
    pub life: u64,
    /// Devices that are awake; none while the engine is away.
    pub awake: usize,
    /// Files in the store.
    pub files: usize,
    /// Records of the log that are not truncated.
    pub log_records: u64,
    /// Keys of the state.
    pub state_keys: usize,
    /// Virtual milliseconds from the credit of a message to its outcome, of this day, ascending.
    pub waits: Vec<u64>,
    /// Real time since the last look.
    pub took: Duration,
}

/// What a life of the engine held in its last moment.
#[derive(Debug, Clone)]
pub struct Life {
    /// Which one.
    pub number: u64,
    /// Days since the world began, when it ended.
    pub day: f64,
    /// Bytes that were free again once it was gone.
    pub bytes: usize,
}

/// Watches a world. The default sees no memory.
#[derive(Debug, Clone)]
pub struct Soak {
    allocated: fn() -> usize,
    before: usize,
    looked: Instant,
    seen: Arc<Mutex<(Vec<Look>, Vec<Life>)>>,
}

const DAY: i64 = 86_400_000;

impl Default for Soak {
    fn default() -> Self {
        Self::new(|| 0)
    }
}

impl Soak {
    /// `allocated`: how many bytes the process has allocated.
    pub fn new(allocated: fn() -> usize) -> Self {
        Self { allocated, before: 0, looked: Instant::now(), seen: Arc::default() }
    }

    /// Everything seen so far.
    pub fn seen(&self) -> (Vec<Look>, Vec<Life>) {
        self.seen.lock().clone()
    }

    pub(super) fn look(&mut self, now: i64, life: u64, ground: &Ground, live: Option<&Live>) {
        let (files, log_records, state_keys) = ground.disks.sizes();
        let mut waits = ground.hub.waits();
        waits.sort_unstable();
        let look = Look {
            day: (now + 1) / DAY,
            life,
            awake: live.map_or(0, Live::awake),
            files,
            log_records,
            state_keys,
            waits,
            took: self.looked.elapsed(),
        };
        self.looked = Instant::now();
        self.seen.lock().0.push(look);
    }

    /// The engine is about to end.
    pub(super) fn going(&mut self) {
        self.before = (self.allocated)();
    }

    /// It is gone. Nothing to see if it had not started.
    pub(super) fn gone(&mut self, now: i64, number: u64) {
        let before = std::mem::take(&mut self.before);
        if before > 0 {
            let bytes = before.saturating_sub((self.allocated)());
            self.seen.lock().1.push(Life { number, day: now as f64 / DAY as f64, bytes });
        }
    }
}
