//! The window operator for sessions: the records of a group, each less than a gap after the one before.
//!
//! State rows have two columns more than those of other windows (`aggregate.rs`): the time of the session's last
//! record and how many records it has. What comes between two barriers is cut into sessions flush by flush; at the
//! barrier these are brought together with those in the store, so the result does not depend on the order in which
//! records came. Then a session is *late* if it would have been closed already before this barrier (a record that
//! links up with a session that is still open never is), and *closes* once its device's frontier has passed its last
//! record by the gap and the lateness. What comes after that begins a session of its own.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt64Array};
use arrow::compute;
use arrow::datatypes::{DataType, Int64Type, UInt64Type};
use arrow::row::{Row, RowConverter, SortField};
use datafusion::error::DataFusionError;

use crate::aggregate::{Aggregates, DEVICE, Input, Table, WINDOW, batch, devices, evaluate, windows};
use crate::operator::{Late, Operator};
use crate::store::Store;
use crate::watermark::Watermarks;
use crate::window::Windows;

/// Aggregates rows by session, device and other keys.
pub(crate) struct Sessions {
    aggregates: Arc<Aggregates>,
    limits: Windows,
    /// Makes keys comparable.
    keys: RowConverter,
    /// Since the last barrier.
    fresh: Option<Fresh>,
    /// At most one segment, in which no two sessions of a group touch.
    store: Store,
}

/// A table of sessions, and what the accumulators do not say of them.
struct Fresh {
    table: Table,
    last: Vec<i64>,
    records: Vec<u64>,
}

impl Fresh {
    fn new(aggregates: &Aggregates) -> Result<Self, DataFusionError> {
        Ok(Self { table: Table::of_windows(aggregates)?, last: Vec::new(), records: Vec::new() })
    }

    /// Takes note of what the table has just taken.
    fn note(&mut self, of_rows: impl Iterator<Item = (i64, u64)>) {
        self.last.resize(self.table.len(), i64::MIN);
        self.records.resize(self.table.len(), 0);
        for (group, (last, records)) in self.table.numbers().iter().zip(of_rows) {
            if let (Some(own), Some(count)) = (self.last.get_mut(*group), self.records.get_mut(*group)) {
                *own = last.max(*own);
                *count += records;
            }
        }
    }

    fn into_states(mut self) -> Result<RecordBatch, DataFusionError> {
        let keys = self.table.take_keys(None)?;
        let mut columns = self.table.into_states(keys)?.columns().to_vec();
        columns.push(Arc::new(Int64Array::from(self.last)));
        columns.push(Arc::new(UInt64Array::from(self.records)));
        batch(columns)
    }
}

/// Time of the last record of each session, and number of its records.
pub(crate) fn ends(rows: &RecordBatch) -> Result<(&Int64Array, &UInt64Array), DataFusionError> {
    let columns = match rows.columns() {
        [.., last, records] => last.as_primitive_opt::<Int64Type>().zip(records.as_primitive_opt::<UInt64Type>()),
        _ => None,
    };
    columns.ok_or_else(|| DataFusionError::Internal("a session without an end".to_owned()))
}

impl Sessions {
    pub(crate) fn new(aggregates: Arc<Aggregates>, limits: Windows) -> Result<Self, DataFusionError> {
        let mut fields = vec![SortField::new(DataType::UInt32)];
        fields.extend(aggregates.other_fields.iter().map(|field| SortField::new(field.data_type().clone())));
        Ok(Self { aggregates, limits, keys: RowConverter::new(fields)?, fresh: None, store: Store::default() })
    }

    /// Start of the session of each span of time, after all that touch are one.
    fn starts(&self, keys: &[ArrayRef], first: &[i64], last: &[i64]) -> Result<Int64Array, DataFusionError> {
        let rows = self.keys.convert_columns(keys)?;
        let mut spans: Vec<(Row<'_>, i64, i64, usize)> =
            rows.iter().zip(first.iter().zip(last)).zip(0..).map(|((key, (a, b)), at)| (key, *a, *b, at)).collect();
        spans.sort_unstable();
        let mut starts = vec![0; spans.len()];
        let mut open: Option<(Row<'_>, i64, i64)> = None;
        for (key, first, last, at) in spans {
            let (start, end) = match open {
                Some((of, start, end)) if of == key && first < self.limits.end(end) => (start, end.max(last)),
                _ => (first, last),
            };
            open = Some((key, start, end));
            if let Some(slot) = starts.get_mut(at) {
                *slot = start;
            }
        }
        Ok(Int64Array::from(starts))
    }

    /// Brings `fresh` together with the sessions of the same groups in `stored`, which is emptied of them.
    fn join(&self, stored: &mut [RecordBatch], fresh: RecordBatch) -> Result<RecordBatch, DataFusionError> {
        let keys = |rows: &RecordBatch| {
            let columns = rows.columns().get(DEVICE..self.aggregates.keys());
            columns
                .map(<[ArrayRef]>::to_vec)
                .ok_or_else(|| DataFusionError::Internal("a state without keys".to_owned()))
        };
        let fresh_keys = self.keys.convert_columns(&keys(&fresh)?)?;
        let touched: HashSet<&[u8]> = fresh_keys.iter().map(|key| key.data()).collect();
        let schema = fresh.schema();
        let mut parts = Vec::with_capacity(stored.len() + 1);
        for rows in stored.iter_mut() {
            let own = self.keys.convert_columns(&keys(rows)?)?;
            let mask: BooleanArray = own.iter().map(|key| Some(touched.contains(key.data()))).collect();
            parts.push(compute::filter_record_batch(rows, &mask)?);
            *rows = compute::filter_record_batch(rows, &compute::not(&mask)?)?;
        }
        parts.push(fresh);
        let all = compute::concat_batches(&schema, &parts)?;
        let (last, records) = ends(&all)?;
        let starts = self.starts(&keys(&all)?, windows(&all)?.values(), last.values())?;
        let mut columns = all.columns().to_vec();
        if let Some(window) = columns.get_mut(WINDOW) {
            *window = Arc::new(starts);
        }
        let mut joined = Fresh::new(&self.aggregates)?;
        joined.table.merge(&self.aggregates, &batch(columns)?)?;
        joined.note(last.values().iter().copied().zip(records.values().iter().copied()));
        joined.into_states()
    }

    /// Takes out the sessions that were closed before this barrier, and so have nothing but late records.
    fn without_late(
        &self,
        rows: RecordBatch,
        marks: &Watermarks,
        late: &mut Late,
    ) -> Result<RecordBatch, DataFusionError> {
        let (last, records) = ends(&rows)?;
        let mut keep = Vec::with_capacity(rows.num_rows());
        let of_rows = windows(&rows)?.values().iter().zip(devices(&rows)?.values()).zip(last.values());
        for (((start, id), last), records) in of_rows.zip(records.values()) {
            let closed = self.limits.closed(*last, marks.frontier_before(*id));
            if closed {
                *late.entry((*id, *start, self.limits.end(*last))).or_default() += records;
            }
            keep.push(!closed);
        }
        Ok(compute::filter_record_batch(&rows, &BooleanArray::from(keep))?)
    }
}

impl Operator for Sessions {
    fn update(&mut self, input: &Input, _: &Watermarks, _: &mut Late) -> Result<(), DataFusionError> {
        let times = input.windows.values();
        if times.is_empty() {
            return Ok(());
        }
        let input = Input { windows: self.starts(&input.keys, times, times)?, ..input.clone() };
        let fresh = match &mut self.fresh {
            Some(fresh) => fresh,
            empty => empty.insert(Fresh::new(&self.aggregates)?),
        };
        fresh.table.update(&input)?;
        fresh.note(times.iter().map(|ts| (*ts, 1)));
        Ok(())
    }

    fn merge(&mut self, states: RecordBatch, _: &Watermarks) -> Result<(), DataFusionError> {
        let fresh = match &mut self.fresh {
            Some(fresh) => fresh,
            empty => empty.insert(Fresh::new(&self.aggregates)?),
        };
        fresh.table.merge(&self.aggregates, &states)?;
        let (last, records) = ends(&states)?;
        fresh.note(last.values().iter().copied().zip(records.values().iter().copied()));
        Ok(())
    }

    fn close(&mut self, marks: &Watermarks, late: &mut Late) -> Result<Vec<RecordBatch>, DataFusionError> {
        let mut all: Vec<RecordBatch> = self.store.batches().cloned().collect();
        let mut changed = false;
        if let Some(fresh) = self.fresh.take() {
            let joined = self.join(&mut all, fresh.into_states()?)?;
            all.push(self.without_late(joined, marks, late)?);
            changed = true;
        }
        let mut closed = Vec::new();
        for rows in &mut all {
            let (last, _) = ends(rows)?;
            let ends = last.values().iter().zip(devices(rows)?.values());
            let mask: BooleanArray =
                ends.map(|(last, id)| Some(self.limits.closed(*last, marks.frontier(*id)))).collect();
            if mask.true_count() > 0 {
                closed.push(compute::filter_record_batch(rows, &mask)?);
                *rows = compute::filter_record_batch(rows, &compute::not(&mask)?)?;
                changed = true;
            }
        }
        if changed {
            let open = match all.first() {
                Some(first) => Some(compute::concat_batches(&first.schema(), &all)?),
                None => None,
            };
            self.store.replace(open)?;
        }
        if closed.is_empty() { Ok(Vec::new()) } else { Ok(vec![evaluate(&self.aggregates, &closed)?]) }
    }

    fn provisional(&self, _: &Watermarks) -> Result<RecordBatch, DataFusionError> {
        evaluate(&self.aggregates, self.store.batches())
    }

    fn store(&self) -> &Store {
        &self.store
    }

    fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    fn groups(&self) -> usize {
        self.fresh.as_ref().map_or(0, |fresh| fresh.table.len()) + self.store.rows()
    }

    fn size(&self) -> usize {
        let fresh = self.fresh.as_ref().map_or(0, |f| f.table.size() + (f.last.capacity() + f.records.capacity()) * 8);
        fresh + self.store.size()
    }

    fn windows(&self) -> Result<BTreeSet<i64>, DataFusionError> {
        let mut all = BTreeSet::new();
        self.store.windows(&mut all)?;
        Ok(all)
    }

    fn needed(&self) -> Result<Vec<(i64, i64)>, DataFusionError> {
        let mut all = Vec::new();
        for rows in self.store.batches() {
            all.extend(windows(rows)?.values().iter().copied().zip(ends(rows)?.0.values().iter().copied()));
        }
        Ok(all)
    }
}
