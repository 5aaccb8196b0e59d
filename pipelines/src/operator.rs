//! What a window operator is: rows in, groups of closed windows out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use sql::Kind;

use crate::aggregate::{Aggregates, Input};
use crate::aligned::Aligned;
use crate::sessions::Sessions;
use crate::store::Store;
use crate::watermark::Watermarks;
use crate::window::Windows;

/// Rows that came after their window was closed, by device, start and end of the window. A row is counted once for
/// each closed window that it belongs to.
pub(crate) type Late = BTreeMap<(u32, i64, i64), u64>;

/// Aggregates rows by window, device and other keys. Groups come out as the key columns of a state row
/// (`aggregate.rs`) and final values.
pub(crate) trait Operator: Send {
    /// Aggregates rows; those that cannot count any more go to `late` instead, now or at the barrier.
    fn update(&mut self, input: &Input, marks: &Watermarks, late: &mut Late) -> Result<(), DataFusionError>;

    /// Takes states that another operator for the same windows gave, before `marks` advance. What cannot count any more
    /// is left out; rows of sessions that come late are counted at the barrier.
    fn merge(&mut self, states: RecordBatch, marks: &Watermarks) -> Result<(), DataFusionError>;

    /// At a barrier, after `marks` advanced: the groups of windows that close now. Everything else goes to the store.
    fn close(&mut self, marks: &Watermarks, late: &mut Late) -> Result<Vec<RecordBatch>, DataFusionError>;

    /// What windows that are still open would give, as of what the store holds. Changes nothing.
    fn provisional(&self, marks: &Watermarks) -> Result<RecordBatch, DataFusionError>;

    /// The states of open windows, as of the last barrier.
    fn store(&self) -> &Store;

    /// The same, to encode or replace it.
    fn store_mut(&mut self) -> &mut Store;

    /// Groups open: an upper bound, one group may be in several places.
    fn groups(&self) -> usize;

    /// Bytes held.
    fn size(&self) -> usize;

    /// Windows that are open; where they overlap, the panes they are made of.
    fn windows(&self) -> Result<BTreeSet<i64>, DataFusionError>;

    /// Times, first and last of each range, whose records are in windows that are open, as of the last barrier.
    fn needed(&self) -> Result<Vec<(i64, i64)>, DataFusionError>;
}

/// The operator for windows of that kind, with an empty store.
pub(crate) fn new(aggregates: &Arc<Aggregates>, limits: Windows) -> Result<Box<dyn Operator>, DataFusionError> {
    let aggregates = Arc::clone(aggregates);
    Ok(match limits.kind() {
        Kind::Tumble | Kind::Hop { .. } => Box::new(Aligned::new(aggregates, limits, Store::default())),
        Kind::Session => Box::new(Sessions::new(aggregates, limits)?),
    })
}

/// The same ranges of time, first and last nanosecond of each, in order, none touching the next.
pub(crate) fn joined(mut ranges: Vec<(i64, i64)>) -> Vec<(i64, i64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(i64, i64)> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    joined
}
