//! What a runner says when it has replayed its log, and when it cannot go on.

use device::id::ShardId;
use device::seq::{Barrier, Position};
use device::time::Timestamp;
use thiserror::Error;

use crate::PipelineError;

/// Why a shard's consumer had to stop. The process stops with it: behind this point nothing would be true.
#[derive(Debug, Error)]
pub enum RunnerError {
    /// The log could not be read.
    #[error("cannot read the shard log: {0}")]
    Log(#[from] storage::log::LogError),
    /// The state store failed in a way that waiting cannot mend.
    #[error("state store: {0}")]
    State(#[from] storage::state::StateError),
    /// A record of the log is damaged or newer than this program.
    #[error("record {position} of the log of shard {shard} cannot be read: {error}")]
    Record {
        /// Which record.
        position: Position,
        /// Of which shard.
        shard: ShardId,
        /// What is wrong.
        error: String,
    },
    /// A pipeline failed.
    #[error("pipeline {name}: {source}")]
    Pipeline {
        /// Which one.
        name: String,
        /// Why.
        source: PipelineError,
    },
    /// Rows could not be built or written for a reason other than the store.
    #[error("{0}")]
    Rows(String),
    /// Device snapshots could not be had.
    #[error("device snapshots: {0}")]
    Snapshots(String),
}

/// Where the log ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogEnd {
    /// Position of the last record.
    pub position: Position,
    /// The last barrier.
    pub barrier: Barrier,
    /// Time of the last record.
    pub time: Timestamp,
    /// Records stand behind the last cut.
    pub uncut: bool,
    /// Rows made in replay.
    pub rows: u64,
}
