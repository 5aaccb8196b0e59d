//! Where a committer stands: when barriers are due, and what is to be appended next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use device::entry::Partial;
use device::seq::{Barrier, Position};
use device::time::Timestamp;
// A simulation's clock inside of its runtime, the machine's anywhere else.
use tokio::time::Instant;

use super::{BarrierPolicy, BarrierRequest, Pending, Start};

/// One hour in nanoseconds: files are cut when a partition ends.
const HOUR: i64 = 3600 * device::time::SECOND;

/// Where a committer stands between two steps.
pub struct Progress {
    pub(super) barrier: Barrier,
    pub(super) time: Timestamp,
    pub(super) last_batch: Instant,
    pub(super) last_barrier: Instant,
    pub(super) last_cut: Instant,
    pub(super) bytes_since_cut: u64,
    /// Something was committed since the last barrier.
    pub(super) fresh: bool,
    /// Something was committed since the last cut.
    pub(super) uncut: bool,
    pub(super) cut_hour: i64,
    /// Where records are encoded.
    pub(super) buffer: Vec<u8>,
    /// Being appended.
    pub(super) pending: Option<Pending>,
    /// To be appended next, in this order: position, contribution, and what becomes true.
    pub(super) partials_next: VecDeque<(Position, Partial, Arc<AtomicBool>)>,
    /// To be appended behind those: position, whether it cuts, and who asked for it.
    pub(super) barrier_next: Option<(Position, bool, Vec<BarrierRequest>)>,
    /// Right behind that: position, the project it names, and who asked for it.
    pub(super) switch_next: Option<(Position, u64, Vec<BarrierRequest>)>,
    /// The version of the pipeline project that counts, if it is no longer that of the start.
    pub(super) project: Option<u64>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("barrier", &self.barrier).field("time", &self.time).finish_non_exhaustive()
    }
}

impl Progress {
    /// At the start of a committer.
    pub fn new(start: Start) -> Self {
        Self {
            barrier: start.barrier,
            time: start.time,
            last_batch: Instant::now(),
            last_barrier: Instant::now(),
            last_cut: Instant::now(),
            bytes_since_cut: 0,
            fresh: start.uncut,
            uncut: start.uncut,
            cut_hour: start.time.0.div_euclid(HOUR),
            buffer: Vec::new(),
            pending: None,
            partials_next: VecDeque::new(),
            barrier_next: None,
            switch_next: None,
            project: None,
        }
    }

    /// `Some(cut)` when a barrier is due.
    pub(super) fn due(&self, now: Timestamp, policy: &BarrierPolicy) -> Option<bool> {
        if self.uncut
            && (self.bytes_since_cut >= policy.cut_bytes
                || self.last_cut.elapsed() >= policy.cut_every
                || now.0.div_euclid(HOUR) > self.cut_hour)
        {
            return Some(true);
        }
        let wanted = self.fresh || self.settling(policy);
        (wanted && self.last_barrier.elapsed() >= policy.checkpoint_every).then_some(false)
    }

    fn settling(&self, policy: &BarrierPolicy) -> bool {
        self.last_batch.elapsed() < policy.settle
    }

    pub(super) fn wait(&self, policy: &BarrierPolicy) -> Duration {
        let mut wait = Duration::from_secs(10);
        if self.fresh || self.settling(policy) {
            wait = wait.min(policy.checkpoint_every.saturating_sub(self.last_barrier.elapsed()));
        }
        if self.uncut {
            wait = wait.min(policy.cut_every.saturating_sub(self.last_cut.elapsed()));
        }
        wait.max(Duration::from_millis(1))
    }

    pub(super) fn passed(&mut self, cut: bool) {
        self.fresh = false;
        self.last_barrier = Instant::now();
        if cut {
            self.uncut = false;
            self.last_cut = Instant::now();
            self.bytes_since_cut = 0;
            self.cut_hour = self.time.0.div_euclid(HOUR);
        }
    }
}
