//! The order of rows in a file: by device, then time, then epoch and seq, then as they came.

use std::collections::HashMap;

use arrow::array::{Array, AsArray, PrimitiveArray, RecordBatch, StringArray};
use arrow::datatypes::{ArrowPrimitiveType, Int64Type, TimestampNanosecondType};

/// A row: its time, which batch, which row in it. Small, because there is one for each row of a cut.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowRef {
    time: i64,
    batch: u32,
    row: u32,
}

impl RowRef {
    /// Batch and row, in the shape that arrow's `interleave` takes.
    pub(super) fn place(self) -> (usize, usize) {
        (self.batch as usize, self.row as usize)
    }
}

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
    let mut counts: Vec<usize> = Vec::new();
    let mut last: Option<(&str, u32)> = None;
    for (batch, key) in batches.iter().zip(&keys) {
        for row in 0..batch.num_rows() {
            let name = key.device(row);
            let id = match last {
                Some((before, id)) if before == name => id,
                _ => *ids.entry(name).or_insert_with(|| {
                    counts.push(0);
                    counts.len() as u32 - 1
                }),
            };
            last = Some((name, id));
            id_of_row.push(id);
            if let Some(count) = counts.get_mut(id as usize) {
                *count += 1;
            }
        }
    }
    let mut names: Vec<(&str, u32)> = ids.into_iter().collect();
    names.sort_unstable();

    // Where the rows of each device begin, then where its next one goes.
    let mut next: Vec<usize> = vec![0; counts.len()];
    let mut at = 0;
    for (_, id) in &names {
        let id = *id as usize;
        if let (Some(next), Some(count)) = (next.get_mut(id), counts.get(id)) {
            *next = at;
            at += count;
        }
    }
    let mut rows = vec![RowRef::default(); total];
    let mut ids = id_of_row.iter();
    for (at, (batch, key)) in (0..).zip(batches.iter().zip(&keys)) {
        for (row, id) in (0..batch.num_rows()).zip(&mut ids) {
            let Some(next) = next.get_mut(*id as usize) else { continue };
            if let Some(place) = rows.get_mut(*next) {
                *place = RowRef { time: number(key.time, row), batch: at, row: row as u32 };
            }
            *next += 1;
        }
    }

    let mut rest = rows.as_mut_slice();
    for (_, id) in &names {
        let count = counts.get(*id as usize).copied().unwrap_or(0);
        let Some((own, others)) = std::mem::take(&mut rest).split_at_mut_checked(count) else { break };
        // Stable, so equal keys stay as they came; and quick on what is already in order.
        own.sort_by(|one, other| {
            one.time.cmp(&other.time).then_with(|| numbering(&keys, *one).cmp(&numbering(&keys, *other)))
        });
        rest = others;
    }
    Order { rows, devices: names.len() }
}

fn numbering(keys: &[Keys<'_>], row: RowRef) -> (i64, i64) {
    let (batch, row) = row.place();
    keys.get(batch).map_or((0, 0), |key| (number(key.epoch, row), number(key.seq, row)))
}
