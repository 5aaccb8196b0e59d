//! Rows that are durable in the log but not in files yet.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Date32Array, Int32Array, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef, TimestampNanosecondType};
use arrow::error::ArrowError;
use device::id::ShardId;
use device::seq::Barrier;

use super::provider::{DATE, HOUR};
use crate::columns;
use crate::layout::{Granularity, Partition};

/// What the running engine knows of a table beyond its files.
#[derive(Debug, Clone, Default)]
pub struct LiveTable {
    /// The declared columns: they count even if no row has come yet.
    pub schema: Option<SchemaRef>,
    /// The column that partitions come from.
    pub time_column: Option<String>,
    /// Rows newer than the files, by shard.
    pub shards: Vec<LiveShard>,
}

/// Rows of one shard that are not in files.
#[derive(Debug, Clone)]
pub struct LiveShard {
    /// Which shard.
    pub shard: ShardId,
    /// Files of this shard count up to and including this barrier; `batches` hold what came after it.
    pub files_upto: Barrier,
    /// The rows.
    pub batches: Vec<RecordBatch>,
}

/// The rows of `batch` under the full schema of the table: its columns, then those that files get from their folders.
pub(super) fn complete(
    batch: &RecordBatch,
    schema: &SchemaRef,
    file_columns: &SchemaRef,
    time_column: Option<&str>,
    granularity: Granularity,
) -> Result<RecordBatch, ArrowError> {
    let stored = columns::fit(batch, file_columns)?;
    let mut arrays: Vec<ArrayRef> = stored.columns().to_vec();
    for field in schema.fields().iter().skip(arrays.len()) {
        let times = time_column.and_then(|name| stored.column_by_name(name));
        let times = times.and_then(|column| column.as_primitive_opt::<TimestampNanosecondType>());
        let partition = |row: usize| {
            // As in the files: a row without a time lies on 1970-01-01.
            let nanos = times.map_or(0, |times| if times.is_valid(row) { times.value(row) } else { 0 });
            Partition::of(nanos, granularity)
        };
        let rows = 0..stored.num_rows();
        arrays.push(match field.name().as_str() {
            DATE => Arc::new(Date32Array::from_iter_values(rows.map(|row| partition(row).date.0))),
            HOUR => Arc::new(Int32Array::from_iter(rows.map(|row| partition(row).hour.map(i32::from)))),
            other => return Err(ArrowError::SchemaError(format!("{other} is no partition column"))),
        });
    }
    debug_assert!(schema.fields().iter().all(|field| field.data_type() != &DataType::Null));
    RecordBatch::try_new(schema.clone(), arrays)
}
