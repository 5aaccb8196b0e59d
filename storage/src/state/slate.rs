//! [`Kv`] on SlateDB.

use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use device::id::ShardId;
use slatedb::{CloseReason, Db, ErrorKind, WriteBatch};

use super::indexes::Indexes;
use super::kv::{Batch, Kv};
use super::{StateError, indexes, settings};
use crate::layout;
use crate::store::Store;

impl From<slatedb::Error> for StateError {
    fn from(error: slatedb::Error) -> Self {
        match error.kind() {
            ErrorKind::Closed(CloseReason::Fenced) => Self::Fenced,
            ErrorKind::Closed(CloseReason::Clean) => Self::Closed,
            ErrorKind::Data => Self::Damaged(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

/// One SlateDB.
pub(super) struct SlateKv {
    db: Db,
}

impl SlateKv {
    /// Opens the database of a shard, creating it if it is missing, and fences its former owner.
    pub(super) async fn open(store: &Store, shard: ShardId) -> Result<Self, StateError> {
        let db = Db::builder(layout::shard_state(shard), store.writing())
            .with_settings(settings::settings())
            .with_db_cache(Arc::new(Indexes::new(indexes::MOST)), 0)
            .build()
            .await?;
        Ok(Self { db })
    }
}

#[async_trait]
impl Kv for SlateKv {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.db.get(key).await?)
    }

    async fn scan(
        &self,
        from: Bound<Bytes>,
        to: Bound<Bytes>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StateError> {
        let mut found = Vec::new();
        let mut rows = self.db.scan((from, to)).await?;
        while found.len() < limit {
            let Some(row) = rows.next().await? else { break };
            found.push((row.key, row.value));
        }
        Ok(found)
    }

    async fn write(&self, batch: Batch) -> Result<(), StateError> {
        let mut changes = WriteBatch::new();
        for (key, value) in batch.changes() {
            match value {
                Some(value) => changes.put_bytes(key, value),
                None => changes.delete(key),
            }
        }
        let handle = self.db.write(changes).await?;
        // Without this the write would wait for the next tick of the flush timer.
        self.db.flush().await?;
        Ok(handle.await_durable().await?)
    }

    async fn close(&self) -> Result<(), StateError> {
        Ok(self.db.close().await?)
    }
}
