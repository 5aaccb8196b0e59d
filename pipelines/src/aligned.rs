//! The window operator for windows that are aligned to the epoch: one after the other, or overlapping.
//!
//! Since the last barrier, rows are aggregated in one table per *pane*, which is a window, or where windows overlap a
//! part that they are made of; panes with only a few rows, as when a device brings home what it buffered for days,
//! share one table keyed by the pane too. At a barrier the tables are emptied: groups whose window is closed for
//! their device are merged with what the [`Store`] has of them and come out as final values, exactly once; the rest
//! becomes state rows in the store. A window of which everything lies in one pane and everybody has passed is
//! evaluated without that detour. Where windows overlap, a pane stays in the store until the last window that it is
//! part of is closed.
//!
//! One slow device holds back nobody: closing is per device, and its rows wait in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute;
use arrow::datatypes::UInt32Type;
use datafusion::common::HashMap;
use datafusion::error::DataFusionError;
use sql::Kind;

use crate::aggregate::{Aggregates, DEVICE, Input, Table, devices, evaluate, windows};
use crate::operator::{Late, Operator};
use crate::store::{Store, of_windows, split};
use crate::watermark::Watermarks;
use crate::window::Windows;

/// So many windows get a pane however few their rows: the current ones.
const PANES: usize = 8;

/// Beyond that, a window gets a pane for this many rows in one go: a pane costs a few kilobytes.
const PANE_ROWS: usize = 256;

/// Aggregates rows by window, device and other keys.
pub(crate) struct Aligned {
    aggregates: Arc<Aggregates>,
    limits: Windows,
    panes: BTreeMap<i64, Table>,
    /// The windows that have no pane, and their table.
    sparse: Option<Table>,
    sparse_windows: BTreeSet<i64>,
    store: Store,
}

impl Aligned {
    pub(crate) fn new(aggregates: Arc<Aggregates>, limits: Windows, store: Store) -> Self {
        Self { aggregates, limits, panes: BTreeMap::new(), sparse: None, sparse_windows: BTreeSet::new(), store }
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        self.panes.values().chain(&self.sparse)
    }

    fn add(&mut self, start: i64, input: &Input) -> Result<(), DataFusionError> {
        match self.panes.entry(start) {
            std::collections::btree_map::Entry::Occupied(mut pane) => pane.get_mut().update(input),
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(Table::of_window(&self.aggregates)?).update(input)
            }
        }
    }

    fn all_passed(&self, start: i64, keys: &[ArrayRef], marks: &Watermarks) -> bool {
        let devices = keys.get(DEVICE).and_then(|k| k.as_primitive_opt::<UInt32Type>());
        devices.is_some_and(|ids| ids.values().iter().all(|id| self.limits.closed(start, marks.frontier(*id))))
    }
}

impl Operator for Aligned {
    fn store(&self) -> &Store {
        &self.store
    }

    fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    fn groups(&self) -> usize {
        self.tables().map(Table::len).sum::<usize>() + self.store.rows()
    }

    fn size(&self) -> usize {
        self.tables().map(Table::size).sum::<usize>() + self.store.size()
    }

    fn windows(&self) -> Result<BTreeSet<i64>, DataFusionError> {
        let mut all = self.sparse_windows.clone();
        all.extend(self.panes.keys());
        self.store.windows(&mut all)?;
        Ok(all)
    }

    fn needed(&self) -> Result<Vec<(i64, i64)>, DataFusionError> {
        let last = |start: i64| start.saturating_add(self.limits.pane_ns() - 1);
        Ok(self.windows()?.into_iter().map(|start| (start, last(start))).collect())
    }

    fn update(&mut self, input: &Input, marks: &Watermarks, late: &mut Late) -> Result<(), DataFusionError> {
        let starts = input.windows.values();
        let (Some(first), Some(last)) = (starts.iter().min().copied(), starts.iter().max().copied()) else {
            return Ok(());
        };
        let limits = self.limits;
        let maybe_late = limits.closed(limits.first_of_pane(first), marks.highest());
        if first == last && !maybe_late {
            return self.add(first, input);
        }
        let devices = input.keys.first().and_then(|k| k.as_primitive_opt::<UInt32Type>());
        let devices = devices.ok_or_else(|| DataFusionError::Internal("rows without devices".to_owned()))?.values();

        let mut slots: HashMap<i64, usize> = HashMap::default();
        let mut parts: Vec<(i64, Vec<u32>)> = Vec::new();
        let mut slot = 0;
        for (row, (start, id)) in (0..).zip(starts.iter().zip(devices)) {
            if maybe_late {
                let frontier = marks.frontier(*id);
                let mut open = false;
                for window in limits.of_pane(*start) {
                    if !limits.closed(window, frontier) {
                        open = true;
                        break;
                    }
                    *late.entry((*id, window, limits.end(window))).or_default() += 1;
                }
                if !open {
                    continue;
                }
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

    fn merge(&mut self, states: RecordBatch, marks: &Watermarks) -> Result<(), DataFusionError> {
        let limits = self.limits;
        let panes = windows(&states)?.values().iter().zip(devices(&states)?.values());
        let open: BooleanArray =
            panes.map(|(pane, id)| Some(!limits.closed(limits.last_of_pane(*pane), marks.frontier(*id)))).collect();
        let states = compute::filter_record_batch(&states, &open)?;
        self.store.append(&self.aggregates, Some(states))
    }

    fn close(&mut self, marks: &Watermarks, _: &mut Late) -> Result<Vec<RecordBatch>, DataFusionError> {
        let mut elsewhere = std::mem::take(&mut self.sparse_windows);
        let own = matches!(self.limits.kind(), Kind::Tumble);
        let due = own && self.panes.keys().any(|start| self.limits.closed(*start, marks.highest()));
        if due {
            self.store.windows(&mut elsewhere)?;
        }
        let mut done = Vec::new();
        let mut fresh = Vec::new();
        for (start, mut pane) in std::mem::take(&mut self.panes) {
            let keys = pane.take_keys(Some(start))?;
            let whole = own && !elsewhere.contains(&start) && self.limits.closed(start, marks.highest());
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
            done.push(evaluate(&self.aggregates, &closed)?);
        }
        let open = match open.first() {
            Some(first) => Some(compute::concat_batches(&first.schema(), &open)?),
            None => None,
        };
        self.store.append(&self.aggregates, open)?;
        Ok(done)
    }

    fn provisional(&self, marks: &Watermarks) -> Result<RecordBatch, DataFusionError> {
        let limits = self.limits;
        if let Kind::Tumble = limits.kind() {
            return evaluate(&self.aggregates, self.store.batches());
        }
        let open = |window, id| !limits.closed(window, marks.frontier(id));
        let states = self.store.batches().map(|rows| of_windows(rows, limits, open)).collect::<Result<Vec<_>, _>>()?;
        evaluate(&self.aggregates, &states)
    }
}
