//! The shard log: the only input of everything behind it.
//!
//! A narrow port with two real adapters that one test suite drives: [`RaftLog`] on the local disk, [`MemoryLog`]
//! for tests and simulation. Records are bytes here; what they say is `device::entry`'s affair. Deliberately
//! absent: deciding positions (the committer does, and repeats them exactly after an error), waiting for consumers
//! before truncating (the runner knows them), and any notion of time.

mod memory;
mod raft;
#[cfg(test)]
mod suite;

use bytes::Bytes;
use device::id::ShardId;
use device::seq::Position;
use thiserror::Error;

pub use memory::MemoryLog;
pub use raft::{RaftLog, RaftLogOptions};

/// Which positions of a shard's log can be read: `first..=last`, nothing if `last` is before `first`.
///
/// `first` follows the last truncated position. Both survive a restart, also when every record was truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest record, or the place of the next one if there is none.
    pub first: Position,
    /// The newest durable record; before `first` if there is none.
    pub last: Position,
}

/// Why a log operation failed. Nothing that failed counts as durable.
#[derive(Debug, Error)]
pub enum LogError {
    /// The store failed. The same operation may be repeated until it succeeds.
    #[error("the log cannot be written or read at the moment: {0}; it goes on by itself when the store is back")]
    Unavailable(String),
    /// The position does not follow the last one: a bug of the writer.
    #[error("position {position} of shard {shard} leaves a gap: the log ends at {last}")]
    Gap {
        /// Which log.
        shard: ShardId,
        /// What was to be written.
        position: Position,
        /// Where the log ends.
        last: Position,
    },
    /// Another record stands at the position: two writers, or a bug of the one.
    #[error("position {position} of shard {shard} already holds another record: a second writer must have been here")]
    Conflict {
        /// Which log.
        shard: ShardId,
        /// Where.
        position: Position,
    },
    /// The position was truncated.
    #[error("position {position} of shard {shard} is truncated: the log begins at {first}")]
    Truncated {
        /// Which log.
        shard: ShardId,
        /// What was asked for.
        position: Position,
        /// Where the log begins.
        first: Position,
    },
    /// What is stored is damaged. Repeating does not help.
    #[error(
        "the log is damaged: {0}; restore the data directory from a copy, or move its log folder away to go on without"
    )]
    Damaged(String),
}

impl LogError {
    /// Whether the same operation may succeed later without anybody's help.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// One ordered, durable log per shard. All methods block; call them from a thread of their own.
pub trait ShardLog: Send + Sync {
    /// Writes one record; durable when this returns `Ok`.
    ///
    /// Positions are consecutive from 1. After an error the same position and bytes may be written again, as often
    /// as needed: they count once.
    fn append(&self, shard: ShardId, position: Position, record: &Bytes) -> Result<(), LogError>;

    /// Records from `from` on, in order, about `max_bytes` of them, at least one if there is one.
    fn read(&self, shard: ShardId, from: Position, max_bytes: usize) -> Result<Vec<(Position, Bytes)>, LogError>;

    /// What can be read now.
    fn bounds(&self, shard: ShardId) -> Result<Bounds, LogError>;

    /// Forgets all records up to and including `upto` and gives their space back.
    fn truncate(&self, shard: ShardId, upto: Position) -> Result<(), LogError>;

    /// Whether the last attempt to write succeeded.
    fn healthy(&self) -> bool;
}
