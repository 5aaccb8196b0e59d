//! Everything that must survive a crash.
//!
//! A map of the crate, in the order a record passes through it:
//! - [`lock`]: the lock of a data directory; [`store`]: where its objects are; [`layout`]: all their paths, and the
//!   rule by which file names are the manifest.
//! - [`log`]: one ordered, durable log per shard, on the local disk or in memory. The only input of everything else.
//! - [`schema`], [`rows`]: entries of the log to rows, as Arrow batches.
//! - [`state`]: device snapshots, pipeline states and the outbox at checkpoints. A cache of a prefix of the log.
//! - [`durable`]: a record that stands in the log, as it is handed on.
//! - [`parquet`]: rows of a cut to files; [`columns`]: one table's columns over time.
//! - [`table`]: files and newest rows as DataFusion tables.
//! - [`retention`], [`compaction`]: files that go, and files that take the place of others.
//! - [`object`]: one object by its URL, for reference tables.
//!
//! Each foreign store is known in one place: raft-engine in `log/raft`, SlateDB in `state`. Deliberately absent: when
//! to commit, checkpoint or cut (their callers decide), what an entry means for a device, and any clock.

pub mod columns;
pub mod compaction;
pub mod durable;
pub mod layout;
pub mod lock;
pub mod log;
pub mod object;
pub mod parquet;
pub mod retention;
pub mod rows;
pub mod schema;
pub mod state;
pub mod store;
pub mod table;

use thiserror::Error;

/// Any error of this crate, for callers that only pass it on.
#[derive(Debug, Error)]
pub enum StorageError {
    /// The data directory.
    #[error(transparent)]
    Lock(#[from] lock::LockError),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The shard log.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// The state of a shard.
    #[error(transparent)]
    State(#[from] state::StateError),
    /// Writing table files.
    #[error(transparent)]
    Write(#[from] parquet::WriteError),
    /// Reading tables.
    #[error(transparent)]
    Table(#[from] table::TableError),
    /// Rows that do not form a batch: a bug.
    #[error("rows do not form a batch: {0}")]
    Rows(#[from] arrow::error::ArrowError),
}
