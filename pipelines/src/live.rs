//! What stands behind the last files of a shard: rows that are durable and not yet in Parquet.
//!
//! The runner writes here, queries read. One lock covers both the rows and the barrier that the files reach to,
//! so a query never sees a row in both places or in neither.

use std::collections::BTreeMap;

use arrow::record_batch::RecordBatch;
use device::seq::Barrier;
use parking_lot::Mutex;

use crate::tap::Taps;

/// Rows of one shard that are in no file yet.
#[derive(Debug, Default)]
pub struct LiveTables {
    inner: Mutex<Live>,
    /// Who watches them come.
    pub taps: Taps,
}

/// A view of [`LiveTables`]; cheap to clone, columns are shared.
#[derive(Debug, Default, Clone)]
pub struct Live {
    /// Files up to this barrier hold everything before `tables`; later files must not be read beside it.
    pub files_upto: Barrier,
    /// Rows by table.
    pub tables: BTreeMap<String, Vec<RecordBatch>>,
}

impl LiveTables {
    /// The view as it is now.
    pub fn view(&self) -> Live {
        self.inner.lock().clone()
    }

    /// Rows now, over all tables.
    pub fn rows(&self) -> usize {
        self.inner.lock().tables.values().flatten().map(RecordBatch::num_rows).sum()
    }

    pub(crate) fn start(&self, files_upto: Barrier) {
        *self.inner.lock() = Live { files_upto, tables: BTreeMap::new() };
    }

    pub(crate) fn add(&self, table: &str, batch: RecordBatch) {
        if batch.num_rows() == 0 {
            return;
        }
        self.taps.offer(table, &batch);
        let mut live = self.inner.lock();
        match live.tables.get_mut(table) {
            Some(batches) => batches.push(batch),
            None => {
                live.tables.insert(table.to_owned(), vec![batch]);
            }
        }
    }

    /// Everything before `barrier` is in files now.
    pub(crate) fn cut(&self, barrier: Barrier) {
        let old = std::mem::replace(&mut *self.inner.lock(), Live { files_upto: barrier, tables: BTreeMap::new() });
        // Freed outside of the lock: it may be a hundred megabytes.
        drop(old);
    }
}
