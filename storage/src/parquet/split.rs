//! Rows to partitions.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::TimestampNanosecondType;
use arrow::error::ArrowError;

use crate::layout::{Granularity, Partition};

/// The rows of each partition, in their order. A row without a time belongs to 1970-01-01.
pub fn split_by_partition(
    batch: &RecordBatch,
    time_column: &str,
    granularity: Granularity,
) -> Result<BTreeMap<Partition, RecordBatch>, ArrowError> {
    let mut found = BTreeMap::new();
    if batch.num_rows() == 0 {
        return Ok(found);
    }
    let column = batch
        .column_by_name(time_column)
        .ok_or_else(|| ArrowError::SchemaError(format!("there is no column {time_column} to partition by")))?;
    let times = column
        .as_primitive_opt::<TimestampNanosecondType>()
        .ok_or_else(|| ArrowError::SchemaError(format!("column {time_column} holds no nanosecond timestamps")))?;
    let mut rows: BTreeMap<Partition, Vec<u32>> = BTreeMap::new();
    // Neighbours mostly share their partition: remember the current one and its span.
    let mut current: Option<(Partition, i64, i64)> = None;
    let mut run: Vec<u32> = Vec::new();
    for (row, nanos) in times.values().iter().enumerate() {
        let nanos = if times.is_null(row) { 0 } else { *nanos };
        match current {
            Some((_, first, last)) if first <= nanos && nanos <= last => {}
            _ => {
                if let Some((partition, ..)) = current {
                    rows.entry(partition).or_default().append(&mut run);
                }
                let partition = Partition::of(nanos, granularity);
                let (first, last) = partition.span();
                current = Some((partition, first, last));
            }
        }
        run.push(row as u32);
    }
    if let Some((partition, ..)) = current {
        if rows.is_empty() {
            found.insert(partition, batch.clone());
            return Ok(found);
        }
        rows.entry(partition).or_default().append(&mut run);
    }
    for (partition, rows) in rows {
        found.insert(partition, take_record_batch(batch, &UInt32Array::from(rows))?);
    }
    Ok(found)
}
