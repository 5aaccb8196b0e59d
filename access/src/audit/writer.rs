//! The thread that writes the trail: it gathers what has come, and makes it durable with one write and one sync.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use device::time::Timestamp;
use serde_json::json;
use tokio::sync::oneshot;

use super::collapse::Collapse;
use super::{Act, AuditError, Job, Shared};
use crate::journal::{Journal, JournalError};

/// Acts of one write at most.
const BATCH: usize = 512;

/// How often it looks whether what gathers is due, and tries again what failed.
const TICK: Duration = Duration::from_secs(1);

type Told = oneshot::Sender<Result<(), AuditError>>;

pub(super) struct Writer {
    file: Journal<Act>,
    receiver: Receiver<Job>,
    shared: Arc<Shared>,
    collapse: Collapse,
    /// The time that came last, and when: callers bring the time.
    last: (Timestamp, Instant),
    /// What a failed write has left.
    left: Vec<(Timestamp, Act)>,
}

impl Writer {
    pub(super) fn new(file: Journal<Act>, receiver: Receiver<Job>, shared: Arc<Shared>) -> Self {
        let last = (Timestamp::default(), Instant::now());
        Self { file, receiver, shared, collapse: Collapse::default(), last, left: Vec::new() }
    }

    pub(super) fn run(mut self) {
        loop {
            let first = if self.collapse.waits() || !self.left.is_empty() {
                self.receiver.recv_timeout(TICK)
            } else {
                self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            let ended = matches!(first, Err(RecvTimeoutError::Disconnected));
            let mut jobs: Vec<Job> = first.ok().into_iter().collect();
            while jobs.len() < BATCH
                && let Ok(job) = self.receiver.try_recv()
            {
                jobs.push(job);
            }
            self.take(jobs, ended);
            if ended {
                return;
            }
        }
    }

    /// Writes what is to be written of `jobs`, and what is due.
    fn take(&mut self, jobs: Vec<Job>, all: bool) {
        let mut acts = std::mem::take(&mut self.left);
        let mut waiting: Vec<Told> = Vec::new();
        for Job { now, act, told } in jobs {
            self.last = (now, Instant::now());
            acts.extend(self.collapse.take(now, act).map(|act| (now, act)));
            waiting.extend(told);
        }
        let now = self.last.0.plus(i64::try_from(self.last.1.elapsed().as_nanos()).unwrap_or(i64::MAX));
        acts.extend(self.collapse.due(now, all).into_iter().map(|act| (now, act)));
        let dropped = self.shared.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let detail = json!({ "count": dropped });
            acts.push((now, Act::done("weir", "audit.dropped", "").detail(detail)));
        }
        let written = self.write(&acts);
        match &written {
            Ok(()) => {}
            Err(error) => {
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                if !self.shared.failing.load(Ordering::Relaxed) {
                    tracing::error!(%error, "the audit trail cannot be written; changes are not confirmed until it can");
                }
                // They are facts all the same. Beyond this only their number is kept.
                let over = acts.len().saturating_sub(super::QUEUE) as u64;
                self.shared.dropped.fetch_add(over, Ordering::Relaxed);
                self.shared.dropped_ever.fetch_add(over, Ordering::Relaxed);
                acts.truncate(super::QUEUE);
                self.left = acts;
            }
        }
        self.shared.failing.store(written.is_err(), Ordering::Relaxed);
        for told in waiting {
            let _ = told.send(written.clone());
        }
    }

    /// All or none of them.
    fn write(&mut self, acts: &[(Timestamp, Act)]) -> Result<(), AuditError> {
        let written = self.file.add_timed(|_| Ok::<_, JournalError>(acts.to_vec()));
        written.map_err(|error| AuditError::Journal(error.to_string()))?;
        self.shared.written.fetch_add(acts.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
