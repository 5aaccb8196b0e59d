//! Table files: rows of a cut, split by partition, sorted, encoded and put on the store.
//!
//! Everything here is a function of the rows and their order: a cut that is repeated after a crash writes the same
//! bytes under the same name. Deliberately absent: deciding when to cut, and noting that a cut is done.

mod encode;
mod encoding;
mod replace;
mod sort;
mod split;

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use device::id::ShardId;
use device::seq::Barrier;
use object_store_14::{ObjectStoreExt, PutPayload};
use thiserror::Error;

pub use self::encode::{FileMeta, encode};
pub(crate) use self::encode::{key, options_of};
pub(crate) use self::encoding::SAMPLE;
pub use self::replace::{Replaced, replace, sweep};
pub use self::split::split_by_partition;
use crate::columns;
use crate::layout::{self, FileName, Granularity, Partition};
use crate::store::Store;

/// Why files could not be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The store failed. The whole call may be repeated.
    #[error("cannot write {path}: {reason}")]
    Store {
        /// Which file.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// The rows cannot be put into a file: a bug.
    #[error("the rows of table {table} cannot be written: {reason}")]
    Rows {
        /// Which table.
        table: String,
        /// What is wrong.
        reason: String,
    },
}

impl WriteError {
    pub(crate) fn rows(table: &str, reason: impl std::fmt::Display) -> Self {
        Self::Rows { table: table.to_owned(), reason: reason.to_string() }
    }
}

/// What a cut has for one table.
#[derive(Debug, Clone)]
pub struct TableRows {
    /// Name of the table.
    pub table: String,
    /// `major.minor` of its schema, for the files' metadata.
    pub version: String,
    /// The column that partitions come from.
    pub time_column: String,
    /// How finely the table is split.
    pub granularity: Granularity,
    /// The rows, in the order of the log.
    pub batches: Vec<RecordBatch>,
}

/// A file that stands on the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its path in the store.
    pub path: String,
    /// Its rows.
    pub rows: usize,
    /// Its size.
    pub bytes: usize,
}

/// Writes the files of one cut: what the log of `shard` produced after barrier `from` up to and including `to`.
///
/// When this returns, every file and its folders are on the disk. Repeating it is harmless.
pub async fn write_cut(
    store: &Store,
    shard: ShardId,
    from: Barrier,
    to: Barrier,
    tables: Vec<TableRows>,
) -> Result<Vec<Written>, WriteError> {
    let mut written = Vec::new();
    let file = FileName { shard, from, to };
    let target = store.writing();
    for rows in tables {
        let TableRows { table, version, time_column, granularity, batches } = rows;
        let split = split_all(&table, &time_column, granularity, batches)?;
        for (partition, batches) in split {
            let path = layout::table_file(&table, partition, file);
            let count = batches.iter().map(RecordBatch::num_rows).sum();
            let meta =
                FileMeta { table: table.clone(), version: version.clone(), time_column: time_column.clone(), file };
            let bytes = elsewhere(&table, move || encode(&meta, &batches)).await?;
            let len = bytes.len();
            #[cfg(feature = "planted")]
            if device::planted::is("partial-file") {
                let part = PutPayload::from(bytes.slice(..len / 2));
                let _ = target.put(&object_store_14::path::Path::from(path.as_str()), part).await;
            }
            target
                .put(&object_store_14::path::Path::from(path.as_str()), PutPayload::from(bytes))
                .await
                .map_err(|error| WriteError::Store { path: path.clone(), reason: error.to_string() })?;
            written.push(Written { path, rows: count, bytes: len });
        }
    }
    Ok(written)
}

/// Computes on another thread: a large partition takes seconds, and this thread may serve sockets. A runtime with a
/// single thread has none to spare, and a simulation on it stays the same each time.
async fn elsewhere<T: Send + 'static>(
    table: &str,
    compute: impl FnOnce() -> Result<T, WriteError> + Send + 'static,
) -> Result<T, WriteError> {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::CurrentThread => compute(),
        _ => tokio::task::spawn_blocking(compute).await.map_err(|error| WriteError::rows(table, error))?,
    }
}

fn split_all(
    table: &str,
    time_column: &str,
    granularity: Granularity,
    batches: Vec<RecordBatch>,
) -> Result<BTreeMap<Partition, Vec<RecordBatch>>, WriteError> {
    let mut split: BTreeMap<Partition, Vec<RecordBatch>> = BTreeMap::new();
    for batch in batches {
        let schema = columns::stored_schema(batch.schema_ref());
        let batch = columns::fit(&batch, &schema).map_err(|error| WriteError::rows(table, error))?;
        let parts =
            split_by_partition(&batch, time_column, granularity).map_err(|error| WriteError::rows(table, error))?;
        for (partition, rows) in parts {
            split.entry(partition).or_default().push(rows);
        }
    }
    Ok(split)
}

#[cfg(test)]
mod tests;
