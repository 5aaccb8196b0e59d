//! Which Parquet encoding each column gets, by what is in it.
//!
//! Times and sequence numbers: deltas. Floats: readings of a sensor with few steps go into a dictionary (5 bytes a row
//! of 8 such columns against 13), full-precision ones are split by bytes (20 against 25). Integers: a dictionary, or
//! deltas where most values differ. The choice is made from a sample of the sorted rows, so it is the same each time.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int64Type, UInt64Type};
use parquet::basic::Encoding;

use super::sort::RowRef;

/// Rows looked at. A dictionary page holds 131,072 numbers; with this sample a column that would overflow it shows
/// mostly different values.
pub(crate) const SAMPLE: usize = 65_536;

/// The encoding to use instead of a dictionary; `None`: a dictionary it is.
pub(super) fn choose(
    name: &str,
    column: usize,
    kind: &DataType,
    batches: &[RecordBatch],
    rows: &[RowRef],
) -> Option<Encoding> {
    match kind {
        DataType::Timestamp(_, _) => Some(Encoding::DELTA_BINARY_PACKED),
        DataType::Int64 if name == "seq" => Some(Encoding::DELTA_BINARY_PACKED),
        DataType::Int64 | DataType::UInt64 if mostly_different(column, batches, rows) => {
            Some(Encoding::DELTA_BINARY_PACKED)
        }
        DataType::Float32 | DataType::Float64 if mostly_different(column, batches, rows) => {
            Some(Encoding::BYTE_STREAM_SPLIT)
        }
        _ => None,
    }
}

fn mostly_different(column: usize, batches: &[RecordBatch], rows: &[RowRef]) -> bool {
    let step = rows.len().div_ceil(SAMPLE).max(1);
    let mut values: Vec<u64> = Vec::with_capacity(rows.len() / step + 1);
    for (batch, row) in rows.iter().step_by(step).map(|row| row.place()) {
        let Some(array) = batches.get(batch).and_then(|batch| batch.columns().get(column)) else { continue };
        if array.is_valid(row) {
            values.push(bits(array.as_ref(), row));
        }
    }
    let all = values.len();
    values.sort_unstable();
    values.dedup();
    values.len() * 2 > all
}

fn bits(array: &dyn Array, row: usize) -> u64 {
    if let Some(values) = array.as_primitive_opt::<Float64Type>() {
        values.value(row).to_bits()
    } else if let Some(values) = array.as_primitive_opt::<Float32Type>() {
        u64::from(values.value(row).to_bits())
    } else if let Some(values) = array.as_primitive_opt::<Int64Type>() {
        values.value(row) as u64
    } else if let Some(values) = array.as_primitive_opt::<UInt64Type>() {
        values.value(row)
    } else {
        0
    }
}
