//! Indexes and filters of a database's files, kept in memory: without them every read of a device that wakes would read and check
//! those of each file again, which is most of the work. Blocks are not kept: a device is read once and then awake.

use async_trait::async_trait;
use lru::LruCache;
use parking_lot::Mutex;
use slatedb::Error;
use slatedb::db_cache::{CacheFetch, CacheLoader, CachedEntry, CachedKey, DbCache};

/// Bytes of one shard at most. An index has some 40 bytes for each 4 KiB of state.
pub(super) const MOST: usize = 16 << 20;

struct Held {
    entries: LruCache<CachedKey, CachedEntry>,
    bytes: usize,
}

/// The cache.
pub(super) struct Indexes {
    held: Mutex<Held>,
    most: usize,
}

impl Indexes {
    /// An empty one that holds so many bytes at most.
    pub(super) fn new(most: usize) -> Self {
        Self { held: Mutex::new(Held { entries: LruCache::unbounded(), bytes: 0 }), most }
    }

    fn get(&self, key: &CachedKey) -> Option<CachedEntry> {
        self.held.lock().entries.get(key).cloned()
    }
}

#[async_trait]
impl DbCache for Indexes {
    async fn get_block(&self, _: &CachedKey) -> Result<Option<CachedEntry>, Error> {
        Ok(None)
    }

    async fn get_index(&self, key: &CachedKey) -> Result<Option<CachedEntry>, Error> {
        Ok(self.get(key))
    }

    async fn get_filter(&self, key: &CachedKey) -> Result<Option<CachedEntry>, Error> {
        Ok(self.get(key))
    }

    async fn get_stats(&self, key: &CachedKey) -> Result<Option<CachedEntry>, Error> {
        Ok(self.get(key))
    }

    async fn fetch_block(&self, _: CachedKey, loader: CacheLoader) -> Result<CacheFetch, Error> {
        loader().await.map(CacheFetch::miss)
    }

    async fn insert(&self, key: CachedKey, entry: CachedEntry) {
        let size = entry.size();
        let mut held = self.held.lock();
        let before = held.entries.put(key, entry).map_or(0, |before| before.size());
        held.bytes = held.bytes + size - before.min(held.bytes);
        while held.bytes > self.most
            && let Some((_, gone)) = held.entries.pop_lru()
        {
            held.bytes -= gone.size().min(held.bytes);
        }
    }

    async fn remove(&self, key: &CachedKey) {
        let mut held = self.held.lock();
        if let Some(gone) = held.entries.pop(key) {
            held.bytes -= gone.size().min(held.bytes);
        }
    }

    fn entry_count(&self) -> u64 {
        self.held.lock().entries.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store_14::memory::InMemory;
    use slatedb::Db;

    use super::*;

    #[tokio::test]
    async fn indexes_are_kept_within_their_bound_and_reads_are_right_with_and_without() {
        for most in [MOST, 3000, 0] {
            let store = Arc::new(InMemory::new());
            let indexes = Arc::new(Indexes::new(most));
            let value = |n: u32| format!("{n}-{}", "x".repeat(500));
            let key = |n: u32| format!("device-{n:05}");
            // Each life leaves files of its own.
            for life in 0..3 {
                let builder = Db::builder("state", store.clone()).with_settings(super::super::settings::settings());
                let db = builder.with_db_cache(indexes.clone(), 0).build().await.unwrap();
                for n in life * 300..(life + 1) * 300 {
                    db.put(key(n).as_bytes(), value(n).as_bytes()).await.unwrap();
                }
                db.flush().await.unwrap();
                db.close().await.unwrap();
            }
            let builder = Db::builder("state", store).with_settings(super::super::settings::settings());
            let db = builder.with_db_cache(indexes.clone(), 0).build().await.unwrap();
            for n in 0..1000 {
                let read = db.get(key(n).as_bytes()).await.unwrap();
                assert_eq!(read.as_deref(), (n < 900).then(|| value(n)).as_deref().map(str::as_bytes), "{n}");
            }
            db.close().await.unwrap();
            let held = indexes.held.lock();
            assert!(held.bytes <= most, "{} of {most}", held.bytes);
            assert_eq!(held.bytes, held.entries.iter().map(|(_, entry)| entry.size()).sum::<usize>());
            assert_eq!(held.entries.is_empty(), most == 0);
        }
    }
}
