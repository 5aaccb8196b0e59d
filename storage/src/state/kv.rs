//! The database under a shard's state: the port that [`super::StateStore`] stands on.
//!
//! Two adapters, one suite: `slate.rs` on any object store, [`super::MemoryKv`] for simulation. A batch is durable,
//! whole, when [`Kv::write`] returns; after an error it may be there or not, and may be written again. Deliberately
//! absent: what keys mean (that is `keys.rs`) and any retry.

use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;

use super::StateError;

/// Changes that become durable together; later ones win.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    changes: Vec<(Bytes, Option<Bytes>)>,
}

impl Batch {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.changes.push((key.into(), Some(value.into())));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.changes.push((key.into(), None));
    }

    /// Keys and their new values, `None` for removal, in order.
    pub fn changes(self) -> Vec<(Bytes, Option<Bytes>)> {
        self.changes
    }
}

/// An ordered map from bytes to bytes with one writer.
#[async_trait]
pub trait Kv: Send + Sync {
    /// The value of a key.
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Up to `limit` keys of the range, ascending, with their values.
    async fn scan(&self, from: Bound<Bytes>, to: Bound<Bytes>, limit: usize)
    -> Result<Vec<(Bytes, Bytes)>, StateError>;

    /// Writes a batch; it is durable when this returns. [`StateError::Fenced`] once somebody else has opened the
    /// database.
    async fn write(&self, batch: Batch) -> Result<(), StateError>;

    /// Ends it in good order. Without it nothing durable is lost.
    async fn close(&self) -> Result<(), StateError>;
}
