//! [`Kv`] in memory: for simulation and tests. What is written outlives the value that wrote it, as a disk would.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::StateError;
use super::kv::{Batch, Kv};

/// What [`MemoryKv`]s stand on: opened one after the other, each sees what the one before wrote.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    inner: Arc<Mutex<Disk>>,
}

#[derive(Debug, Default)]
struct Disk {
    map: BTreeMap<Bytes, Bytes>,
    owner: u64,
}

impl MemoryDisk {
    /// Opens it and fences whoever had it before.
    pub fn open(&self) -> MemoryKv {
        let mut disk = self.inner.lock();
        disk.owner += 1;
        MemoryKv { disk: self.clone(), owner: disk.owner }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.inner.lock().map.len()
    }

    /// Whether nothing was ever written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An open [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryKv {
    disk: MemoryDisk,
    owner: u64,
}

#[async_trait]
impl Kv for MemoryKv {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.disk.inner.lock().map.get(key).cloned())
    }

    async fn scan(
        &self,
        from: Bound<Bytes>,
        to: Bound<Bytes>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StateError> {
        if let (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) = (&from, &to)
            && a >= b
        {
            return Ok(Vec::new());
        }
        let disk = self.disk.inner.lock();
        Ok(disk.map.range((from, to)).take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn write(&self, batch: Batch) -> Result<(), StateError> {
        let mut disk = self.disk.inner.lock();
        if disk.owner != self.owner {
            return Err(StateError::Fenced);
        }
        for (key, value) in batch.changes() {
            match value {
                Some(value) => disk.map.insert(key, value),
                None => disk.map.remove(&key),
            };
        }
        Ok(())
    }

    async fn close(&self) -> Result<(), StateError> {
        Ok(())
    }
}
