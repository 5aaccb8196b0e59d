//! The states of windows that are still open, as immutable batches of state rows.
//!
//! At each barrier what was aggregated since the last one is appended here as one segment. A group may have rows in
//! several segments; they are merged, oldest first, when the group's window closes for its device. So nothing is ever
//! taken out of an accumulator and put back, a device that is away costs nothing but its rows here, and a process
//! that was restored from a checkpoint holds exactly what the one that wrote it held.
//!
//! Segments are combined like the levels of a log-structured tree: the last two as long as the older is not more
//! than twice the newer, so there are few and each row is copied only a few times. Combining merges the states of
//! equal groups only when there are many of them, because a merge can cost far more than a copy. All of this is
//! decided from row counts alone, so every process decides the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute;
use bytes::Bytes;
use datafusion::error::DataFusionError;
use sql::Kind;

use crate::aggregate::{Aggregates, Table, WINDOW, devices, windows};
use crate::checkpoint::to_ipc;
use crate::error::PipelineError;
use crate::watermark::Watermarks;
use crate::window::Windows;

/// With this many state rows for a group on average, combining merges them.
const MERGE_AT: usize = 4;

struct Segment {
    rows: RecordBatch,
    /// The first window in it.
    oldest: i64,
    /// Its bytes, once a checkpoint has asked for them.
    encoded: Option<Bytes>,
}

impl Segment {
    fn new(rows: RecordBatch) -> Result<Self, DataFusionError> {
        let oldest = windows(&rows)?.values().iter().min().copied().unwrap_or(i64::MAX);
        Ok(Self { rows, oldest, encoded: None })
    }
}

/// State rows of open windows, oldest first.
#[derive(Default)]
pub(crate) struct Store {
    segments: Vec<Segment>,
}

/// State rows of windows that close now, and those that are still needed. A pane of overlapping windows may be in
/// both: once for each window of it that closes, and as it is for the next ones.
pub(crate) struct Split {
    pub(crate) closed: Option<RecordBatch>,
    pub(crate) open: Option<RecordBatch>,
}

/// Parts state rows by whether their window is closed for their device.
pub(crate) fn split(rows: RecordBatch, marks: &Watermarks, limits: Windows) -> Result<Split, DataFusionError> {
    if let Kind::Hop { .. } = limits.kind() {
        return split_panes(rows, marks, limits);
    }
    let starts = windows(&rows)?.values();
    let ids = devices(&rows)?.values();
    let closed: BooleanArray =
        starts.iter().zip(ids).map(|(start, id)| Some(limits.closed(*start, marks.frontier(*id)))).collect();
    let count = closed.true_count();
    if count == 0 {
        return Ok(Split { closed: None, open: Some(rows) });
    }
    if count == rows.num_rows() {
        return Ok(Split { closed: Some(rows), open: None });
    }
    let open = compute::filter_record_batch(&rows, &compute::not(&closed)?)?;
    Ok(Split { closed: Some(compute::filter_record_batch(&rows, &closed)?), open: Some(open) })
}

fn split_panes(rows: RecordBatch, marks: &Watermarks, limits: Windows) -> Result<Split, DataFusionError> {
    let closed = of_windows(&rows, limits, |window, id| {
        limits.closed(window, marks.frontier(id)) && !limits.closed(window, marks.frontier_before(id))
    })?;
    let panes = windows(&rows)?.values().iter();
    let needed: BooleanArray = panes
        .zip(devices(&rows)?.values())
        .map(|(pane, id)| Some(!limits.closed(limits.last_of_pane(*pane), marks.frontier(*id))))
        .collect();
    let open = match needed.true_count() {
        0 => None,
        all if all == rows.num_rows() => Some(rows),
        _ => Some(compute::filter_record_batch(&rows, &needed)?),
    };
    Ok(Split { closed: Some(closed).filter(|c| c.num_rows() > 0), open })
}

/// The states of panes as states of the windows they are part of, as far as `wanted` takes window and device.
pub(crate) fn of_windows(
    rows: &RecordBatch,
    limits: Windows,
    wanted: impl Fn(i64, u32) -> bool,
) -> Result<RecordBatch, DataFusionError> {
    let (mut starts, mut from) = (Vec::new(), Vec::new());
    for (row, (pane, id)) in (0..).zip(windows(rows)?.values().iter().zip(devices(rows)?.values())) {
        for window in limits.of_pane(*pane).filter(|window| wanted(*window, *id)) {
            starts.push(window);
            from.push(row);
        }
    }
    let taken = compute::take_record_batch(rows, &UInt32Array::from(from))?;
    let mut columns = taken.columns().to_vec();
    if let Some(window) = columns.get_mut(WINDOW) {
        *window = Arc::new(Int64Array::from(starts));
    }
    Ok(RecordBatch::try_new(taken.schema(), columns)?)
}

impl Store {
    /// From the segments of a checkpoint.
    pub(crate) fn restore(segments: Vec<(RecordBatch, Bytes)>) -> Result<Self, DataFusionError> {
        let segments = segments
            .into_iter()
            .map(|(rows, bytes)| Ok(Segment { encoded: Some(bytes), ..Segment::new(rows)? }))
            .collect::<Result<_, DataFusionError>>()?;
        Ok(Self { segments })
    }

    /// Takes out the rows whose window is closed for their device, oldest segment first.
    pub(crate) fn extract(&mut self, marks: &Watermarks, limits: Windows) -> Result<Vec<RecordBatch>, DataFusionError> {
        let mut out = Vec::new();
        let mut kept = Vec::with_capacity(self.segments.len());
        for segment in std::mem::take(&mut self.segments) {
            if !limits.closed(limits.first_of_pane(segment.oldest), marks.highest()) {
                kept.push(segment);
                continue;
            }
            let parts = split(segment.rows.clone(), marks, limits)?;
            match (parts.closed, parts.open) {
                (closed, Some(open)) if open.num_rows() == segment.rows.num_rows() => {
                    out.extend(closed);
                    kept.push(segment);
                }
                (closed, open) => {
                    out.extend(closed);
                    if let Some(open) = open {
                        kept.push(Segment::new(open)?);
                    }
                }
            }
        }
        self.segments = kept;
        Ok(out)
    }

    /// Appends the states of one barrier and keeps the number of segments small.
    pub(crate) fn append(&mut self, aggregates: &Aggregates, rows: Option<RecordBatch>) -> Result<(), DataFusionError> {
        if let Some(rows) = rows.filter(|rows| rows.num_rows() > 0) {
            self.segments.push(Segment::new(rows)?);
        }
        while let [.., older, newer] = self.segments.as_slice() {
            if older.rows.num_rows() > newer.rows.num_rows().saturating_mul(2) {
                break;
            }
            let rows = compute::concat_batches(&older.rows.schema(), [&older.rows, &newer.rows])?;
            let combined = Segment::new(compact(aggregates, rows)?)?;
            self.segments.truncate(self.segments.len() - 2);
            self.segments.push(combined);
        }
        Ok(())
    }

    /// Takes everything out.
    pub(crate) fn take(&mut self) -> Result<Option<RecordBatch>, DataFusionError> {
        let rows: Vec<RecordBatch> = std::mem::take(&mut self.segments).into_iter().map(|s| s.rows).collect();
        let Some(first) = rows.first() else { return Ok(None) };
        Ok(Some(compute::concat_batches(&first.schema(), &rows)?))
    }

    /// Puts these rows in the place of all others.
    pub(crate) fn replace(&mut self, rows: Option<RecordBatch>) -> Result<(), DataFusionError> {
        let rows = rows.filter(|rows| rows.num_rows() > 0);
        self.segments = rows.map(Segment::new).transpose()?.into_iter().collect();
        Ok(())
    }

    /// The windows that have rows here.
    pub(crate) fn windows(&self, into: &mut BTreeSet<i64>) -> Result<(), DataFusionError> {
        for segment in &self.segments {
            let mut last = None;
            for start in windows(&segment.rows)?.values() {
                if last != Some(*start) {
                    into.insert(*start);
                    last = Some(*start);
                }
            }
        }
        Ok(())
    }

    /// The devices that have rows here.
    pub(crate) fn devices(&self) -> Result<BTreeSet<u32>, DataFusionError> {
        let mut all = BTreeSet::new();
        for segment in &self.segments {
            all.extend(devices(&segment.rows)?.values().iter().copied());
        }
        Ok(all)
    }

    /// All state rows, oldest segment first.
    pub(crate) fn batches(&self) -> impl Iterator<Item = &RecordBatch> {
        self.segments.iter().map(|s| &s.rows)
    }

    /// State rows held.
    pub(crate) fn rows(&self) -> usize {
        self.segments.iter().map(|s| s.rows.num_rows()).sum()
    }

    /// Bytes held.
    pub(crate) fn size(&self) -> usize {
        let encoded = |s: &Segment| s.encoded.as_ref().map_or(0, Bytes::len);
        self.segments.iter().map(|s| s.rows.get_array_memory_size() + encoded(s)).sum()
    }

    /// The bytes of each segment; those that have not changed are not encoded again.
    pub(crate) fn encode(&mut self) -> Result<Vec<Bytes>, PipelineError> {
        let mut out = Vec::with_capacity(self.segments.len());
        for segment in &mut self.segments {
            let bytes = match &segment.encoded {
                Some(bytes) => bytes.clone(),
                None => to_ipc(&segment.rows)?,
            };
            segment.encoded = Some(bytes.clone());
            out.push(bytes);
        }
        Ok(out)
    }
}

/// Merges the states of equal groups if there are many.
fn compact(aggregates: &Aggregates, rows: RecordBatch) -> Result<RecordBatch, DataFusionError> {
    let mut seen: BTreeSet<(i64, u32)> = BTreeSet::new();
    let starts = windows(&rows)?.values();
    seen.extend(starts.iter().copied().zip(devices(&rows)?.values().iter().copied()));
    // A lower bound of the groups: with further keys there are more, and then nothing is merged too early either.
    if rows.num_rows() < seen.len().saturating_mul(MERGE_AT) {
        return Ok(rows);
    }
    let mut table = Table::of_windows(aggregates)?;
    table.merge(aggregates, &rows)?;
    let keys = table.take_keys(None)?;
    table.into_states(keys)
}
