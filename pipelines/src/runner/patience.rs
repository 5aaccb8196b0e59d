//! Waiting for a store that is away: as long as it takes, and seen from outside.

use std::sync::atomic::Ordering;
use std::time::Duration;

use storage::state::StateError;

use super::{Parts, Runner, RunnerError};

/// A write to the store that takes longer than this counts as failing: a slow disk needs a tenth of it.
const STALL: Duration = Duration::from_secs(5);

impl Parts {
    /// Waits for the store. The state store tries again by itself, silently and without end: what takes too long is
    /// made known as a failing store, and given up only when the process is to end.
    pub(super) async fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(STALL, &mut work).await {
                return Ok(done);
            }
            if self.status.stop.load(Ordering::Relaxed) {
                return Err(Failure { permanent: true, text: "the store does not answer".to_owned() });
            }
            if self.status.healthy.swap(false, Ordering::Relaxed) {
                self.status.store_failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(shard = %self.shard, "the store has not answered for {STALL:?}; waiting until it does");
            }
        }
    }
}

impl Runner {
    /// Repeats `act` while the store is away. While it waits, the shard takes nothing, credits stay out, and the
    /// sockets of the shard's devices stand still.
    pub(super) async fn until_it_works<T>(
        &self,
        what: &str,
        act: impl AsyncFn(&Parts) -> Result<T, Failure>,
    ) -> Result<T, RunnerError> {
        let status = &self.parts.status;
        let mut pause = Duration::from_millis(100);
        loop {
            match act(&self.parts).await {
                Ok(value) => {
                    if !status.healthy.swap(true, Ordering::Relaxed) {
                        tracing::info!(shard = %self.parts.shard, "the store works again");
                    }
                    return Ok(value);
                }
                Err(failure) if failure.permanent || status.stop.load(Ordering::Relaxed) => {
                    return Err(RunnerError::Rows(format!("cannot {what}: {}", failure.text)));
                }
                Err(failure) => {
                    status.store_failures.fetch_add(1, Ordering::Relaxed);
                    if status.healthy.swap(false, Ordering::Relaxed) {
                        tracing::error!(shard = %self.parts.shard, error = failure.text, "cannot {what}; trying until it works");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
    }
}

/// Why something could not be done with the store.
pub(super) struct Failure {
    /// Waiting will not mend it.
    pub(super) permanent: bool,
    /// What happened.
    pub(super) text: String,
}

impl Failure {
    pub(super) fn of_state(error: storage::state::StateError) -> Self {
        Self { permanent: !matches!(error, StateError::Unavailable(_)), text: error.to_string() }
    }
}
