//! Where a pipeline of a shard stands at a cut, for repairs: asked from outside, answered by the consumer at its next cut.

use std::sync::Arc;

use device::id::ShardId;
use device::seq::Barrier;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Runner, Status};
use crate::Passed;

/// Where a pipeline stands at a cut: everything up to the barrier is in files, nothing behind it is.
#[derive(Debug, Clone)]
pub struct Stand {
    /// Of which shard.
    pub shard: ShardId,
    /// The barrier of the cut.
    pub barrier: Barrier,
    /// The barrier of the cut before; 0 if it is the shard's first.
    pub before: Barrier,
    /// The project that counts up to the barrier.
    pub project: Arc<sql::Project>,
    /// How far the pipeline's windows are out; none if it has no windows, if another shard writes them, or if the project
    /// has no such pipeline.
    pub passed: Option<Arc<Passed>>,
}

/// Who waits for the next cut.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<Vec<(String, oneshot::Sender<Stand>)>>);

impl Status {
    /// Asks where a pipeline stands at the next cut of the shard. Cuts are not made for that: see
    /// `Committer::barrier` in `actors`.
    pub fn stand(&self, pipeline: &str) -> oneshot::Receiver<Stand> {
        let (sender, receiver) = oneshot::channel();
        self.asked.0.lock().push((pipeline.to_owned(), sender));
        receiver
    }
}

impl Runner {
    /// At a cut whose files stand.
    pub(super) fn answer(&self, before: Barrier, barrier: Barrier) {
        for (name, answer) in std::mem::take(&mut *self.parts.status.asked.0.lock()) {
            let running = self.built.running.iter().find(|running| running.pipeline.name() == name);
            let passed = running.and_then(|running| match &running.merge {
                Some(merge) => Some(Passed::of_all(merge.frontier())),
                None => running.pipeline.passed(),
            });
            let passed = passed.map(Arc::new);
            let (shard, project) = (self.parts.shard, self.parts.project.clone());
            // Whoever asked may have gone away.
            let _ = answer.send(Stand { shard, barrier, before, project, passed });
        }
    }
}
