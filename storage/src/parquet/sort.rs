//! The order of rows in a file: by device, then time, then epoch and seq, then as they came.

use std::collections::HashMap;

use arrow::array::{Array, AsArray, PrimitiveArray, RecordBatch, StringArray};
use arrow::datatypes::{ArrowPrimitiveType, Int64Type, TimestampNanosecondType};

/// A row: which batch, which row in it. The shape that arrow's `interleave` takes.
pub(super) type RowRef = (usize, usize);

/// The rows in file order, and how many devices there are.
pub(super) struct Order {
    pub(super) rows: Vec<RowRef>,
    pub(super) devices: usize,
}

struct Keys<'a> {
    device: Option<&'a StringArray>,
    time: Option<&'a PrimitiveArray<TimestampNanosecondType>>,
    epoch: Option<&'a PrimitiveArray<Int64Type>>,
    seq: Option<&'a PrimitiveArray<Int64Type>>,
}

fn number<T: ArrowPrimitiveType<Native = i64>>(column: Option<&PrimitiveArray<T>>, row: usize) -> i64 {
    match column {
        Some(values) if values.is_valid(row) => values.value(row),
        _ => i64::MIN,
    }
}

impl<'a> Keys<'a> {
    fn of(batch: &'a RecordBatch, time_column: &str) -> Self {
        let column = |name| batch.column_by_name(name);
        Self {
            device: column("device").and_then(|column| column.as_string_opt::<i32>()),
            time: column(time_column).and_then(|column| column.as_primitive_opt()),
            epoch: column("epoch").and_then(|column| column.as_primitive_opt()),
            seq: column("seq").and_then(|column| column.as_primitive_opt()),
        }
    }

    fn device(&self, row: usize) -> &'a str {
        match self.device {
            Some(names) if names.is_valid(row) => names.value(row),
            _ => "",
        }
    }
}

/// Sorts by counting rows per device, then within each: most devices send in order, so there is little left to do.
pub(super) fn order(batches: &[RecordBatch], time_column: &str) -> Order {
    let keys: Vec<Keys<'_>> = batches.iter().map(|batch| Keys::of(batch, time_column)).collect();
    let total = batches.iter().map(RecordBatch::num_rows).sum();

    let mut ids: HashMap<&str, u32> = HashMap::new();
    let mut id_of_row: Vec<u32> = Vec::with_capacity(total);
    let mut last: Option<(&str, u32)> = None;
    for (batch, key) in batches.iter().zip(&keys) {
        for row in 0..batch.num_rows() {
            let name = key.device(row);
            let id = match last {
                Some((before, id)) if before == name => id,
                _ => {
                    let next = ids.len() as u32;
                    *ids.entry(name).or_insert(next)
                }
            };
            last = Some((name, id));
            id_of_row.push(id);
        }
    }
    let mut names: Vec<(&str, u32)> = ids.into_iter().collect();
    names.sort_unstable();
    let mut rank_of_id: Vec<usize> = vec![0; names.len()];
    for (rank, (_, id)) in names.iter().enumerate() {
        if let Some(place) = rank_of_id.get_mut(*id as usize) {
            *place = rank;
        }
    }

    let mut buckets: Vec<Vec<(i64, RowRef)>> = Vec::new();
    buckets.resize_with(names.len(), Vec::new);
    let mut ids = id_of_row.iter();
    for (at, (batch, key)) in batches.iter().zip(&keys).enumerate() {
        for (row, id) in (0..batch.num_rows()).zip(&mut ids) {
            let rank = rank_of_id.get(*id as usize).copied().unwrap_or(0);
            if let Some(bucket) = buckets.get_mut(rank) {
                bucket.push((number(key.time, row), (at, row)));
            }
        }
    }

    let mut rows = Vec::with_capacity(total);
    for mut bucket in buckets {
        // Stable, so equal keys stay as they came; and quick on what is already in order.
        bucket.sort_by(|(time, row), (other_time, other)| {
            time.cmp(other_time).then_with(|| numbering(&keys, *row).cmp(&numbering(&keys, *other)))
        });
        rows.extend(bucket.into_iter().map(|(_, row)| row));
    }
    Order { rows, devices: names.len() }
}

fn numbering(keys: &[Keys<'_>], (batch, row): RowRef) -> (i64, i64) {
    keys.get(batch).map_or((0, 0), |key| (number(key.epoch, row), number(key.seq, row)))
}
