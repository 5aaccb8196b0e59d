//! The window operator: rows in, groups of closed windows out.
//!
//! Since the last barrier, rows are aggregated in one table per window (a *pane*); windows with only a few rows, as
//! when a device brings home what it buffered for days, share one table keyed by the window too. At a barrier the
//! tables are emptied: groups whose window is closed for their device are merged with what the [`Store`] has of them
//! and come out as final values, exactly once; the rest becomes state rows in the store. A window of which everything
//! lies in one pane and everybody has passed is evaluated without that detour.
//!
//! One slow device holds back nobody: closing is per device, and its rows wait in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, UInt32Array};
use arrow::compute;
use arrow::datatypes::UInt32Type;
use datafusion::common::HashMap;
use datafusion::error::DataFusionError;

use crate::aggregate::{Aggregates, Input, Table};
use crate::store::{Store, split};
use crate::watermark::Watermarks;
use crate::window::Windows;

/// So many windows get a pane however few their rows: the current ones.
const PANES: usize = 8;

/// Beyond that, a window gets a pane for this many rows in one go: a pane costs a few kilobytes.
const PANE_ROWS: usize = 256;

/// Rows that came after their window was closed, by device and window.
pub(crate) type Late = BTreeMap<(u32, i64), u64>;

/// Aggregates rows by window, device and other keys.
pub(crate) struct Operator {
    aggregates: Arc<Aggregates>,
    limits: Windows,
    panes: BTreeMap<i64, Table>,
    /// The windows that have no pane, and their table.
    sparse: Option<Table>,
    sparse_windows: BTreeSet<i64>,
    store: Store,
}

impl Operator {
    pub(crate) fn new(aggregates: Arc<Aggregates>, limits: Windows, store: Store) -> Self {
        Self { aggregates, limits, panes: BTreeMap::new(), sparse: None, sparse_windows: BTreeSet::new(), store }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Groups open: an upper bound, one group may be in several places.
    pub(crate) fn groups(&self) -> usize {
        self.tables().map(Table::len).sum::<usize>() + self.store.rows()
    }

    /// Bytes held.
    pub(crate) fn size(&self) -> usize {
        self.tables().map(Table::size).sum::<usize>() + self.store.size()
    }

    /// Windows that are open.
    pub(crate) fn windows(&self) -> Result<BTreeSet<i64>, DataFusionError> {
        let mut all = self.sparse_windows.clone();
        all.extend(self.panes.keys());
        self.store.windows(&mut all)?;
        Ok(all)
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        self.panes.values().chain(&self.sparse)
    }

    /// Aggregates rows; those whose window is closed for their device are counted in `late` instead.
    pub(crate) fn update(&mut self, input: &Input, marks: &Watermarks, late: &mut Late) -> Result<(), DataFusionError> {
        let starts = input.windows.values();
        let (Some(first), Some(last)) = (starts.iter().min().copied(), starts.iter().max().copied()) else {
            return Ok(());
        };
        let maybe_late = self.limits.closed(first, marks.highest());
        if first == last && !maybe_late {
            return self.add(first, input);
        }
        let devices = input.keys.first().and_then(|k| k.as_primitive_opt::<UInt32Type>());
        let devices = devices.ok_or_else(|| DataFusionError::Internal("rows without devices".to_owned()))?.values();

        let mut slots: HashMap<i64, usize> = HashMap::default();
        let mut parts: Vec<(i64, Vec<u32>)> = Vec::new();
        let mut slot = 0;
        for (row, (start, id)) in (0..).zip(starts.iter().zip(devices)) {
            if maybe_late && self.limits.closed(*start, marks.frontier(*id)) {
                *late.entry((*id, *start)).or_default() += 1;
                continue;
            }
            if parts.get(slot).is_none_or(|(s, _)| s != start) {
                slot = *slots.entry(*start).or_insert_with(|| {
                    parts.push((*start, Vec::new()));
                    parts.len() - 1
                });
            }
            if let Some((_, rows)) = parts.get_mut(slot) {
                rows.push(row);
            }
        }
        // Which window gets a pane must follow from the log alone, so not from the order of a hash map.
        parts.sort_unstable_by_key(|(start, _)| *start);
        let mut few = Vec::new();
        for (start, rows) in parts {
            if rows.len() == starts.len() {
                return self.add(start, input);
            }
            if self.panes.contains_key(&start) || self.panes.len() < PANES || rows.len() >= PANE_ROWS {
                let part = input.take(&UInt32Array::from(rows))?;
                self.add(start, &part)?;
            } else {
                self.sparse_windows.insert(start);
                few.extend(rows);
            }
        }
        if few.is_empty() {
            return Ok(());
        }
        let part = input.take(&UInt32Array::from(few))?;
        let table = match &mut self.sparse {
            Some(table) => table,
            empty => empty.insert(Table::of_windows(&self.aggregates)?),
        };
        table.update(&part)
    }

    fn add(&mut self, start: i64, input: &Input) -> Result<(), DataFusionError> {
        match self.panes.entry(start) {
            std::collections::btree_map::Entry::Occupied(mut pane) => pane.get_mut().update(input),
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(Table::of_window(&self.aggregates)?).update(input)
            }
        }
    }

    /// At a barrier, after `marks` advanced: the groups of windows that are closed now, as key columns of a state row
    /// and final values. Everything else goes to the store.
    pub(crate) fn close(&mut self, marks: &Watermarks) -> Result<Vec<RecordBatch>, DataFusionError> {
        let mut elsewhere = std::mem::take(&mut self.sparse_windows);
        let due = self.panes.keys().any(|start| self.limits.closed(*start, marks.highest()));
        if due {
            self.store.windows(&mut elsewhere)?;
        }
        let mut done = Vec::new();
        let mut fresh = Vec::new();
        for (start, mut pane) in std::mem::take(&mut self.panes) {
            let keys = pane.take_keys(Some(start))?;
            let whole = !elsewhere.contains(&start) && self.limits.closed(start, marks.highest());
            if whole && self.all_passed(start, &keys, marks) {
                done.push(pane.into_values(keys)?);
            } else {
                fresh.push(pane.into_states(keys)?);
            }
        }
        if let Some(mut table) = self.sparse.take() {
            let keys = table.take_keys(None)?;
            fresh.push(table.into_states(keys)?);
        }

        let mut closed = self.store.extract(marks, self.limits)?;
        let mut open = Vec::new();
        for states in fresh {
            let parts = split(states, marks, self.limits)?;
            closed.extend(parts.closed);
            open.extend(parts.open);
        }
        if !closed.is_empty() {
            done.push(self.finish(&closed)?);
        }
        let open = match open.first() {
            Some(first) => Some(compute::concat_batches(&first.schema(), &open)?),
            None => None,
        };
        self.store.append(&self.aggregates, open)?;
        Ok(done)
    }

    /// Merges state rows and evaluates them.
    pub(crate) fn finish<'a>(
        &self,
        states: impl IntoIterator<Item = &'a RecordBatch>,
    ) -> Result<RecordBatch, DataFusionError> {
        let mut table = Table::of_windows(&self.aggregates)?;
        for batch in states {
            table.merge(&self.aggregates, batch)?;
        }
        let keys = table.take_keys(None)?;
        table.into_values(keys)
    }

    fn all_passed(&self, start: i64, keys: &[arrow::array::ArrayRef], marks: &Watermarks) -> bool {
        let devices = keys.get(crate::aggregate::DEVICE).and_then(|k| k.as_primitive_opt::<UInt32Type>());
        devices.is_some_and(|ids| ids.values().iter().all(|id| self.limits.closed(start, marks.frontier(*id))))
    }
}
