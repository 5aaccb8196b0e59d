//! A pipeline over two streams: its rows are what `stream_join` gives at each barrier.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use device::time::Timestamp;
use sql::PipelinePlan;

use super::{Pipeline, PipelineError, Query};
use crate::checkpoint::{self, Checkpoint};
use crate::lookup::{self, Lookup};
use crate::outcome::LateRow;
use crate::stream_join::{self, StreamJoin};
use crate::watermark::Entry;

/// The columns that a query reads: those of the stream, then those that a second stream and lookups add.
pub(super) fn source(plan: &PipelinePlan, first: &SchemaRef, lookups: &[Lookup]) -> Result<SchemaRef, PipelineError> {
    match &plan.stream_join {
        None => lookup::schema(first, lookups),
        Some(join) => stream_join::schema(first, join, lookups),
    }
}

/// The join of a plan, if it has one, and the lookups that are left for rows that come out of it.
pub(super) fn make(
    plan: &PipelinePlan,
    source: &SchemaRef,
    first: &SchemaRef,
    lookups: Vec<Lookup>,
    query: &Query,
) -> Result<(Option<Box<StreamJoin>>, Vec<Lookup>), PipelineError> {
    let Some(join) = &plan.stream_join else { return Ok((None, lookups)) };
    let (columns, after) = match query {
        Query::Rows { stage, .. } => (stage.columns(), 0),
        Query::Windows { cut, .. } => (cut.before.columns(), cut.windows.frontier_after(0)),
    };
    let join = StreamJoin::new((plan, join), source, first, lookups, columns, after)?;
    Ok((Some(Box::new(join)), Vec::new()))
}

/// How far devices had come by a state, that of its join included.
pub(super) fn progress(state: &[u8]) -> Result<Checkpoint, PipelineError> {
    let (rest, join) = stream_join::parts(state)?;
    let rest = checkpoint::progress(rest)?;
    let Some(join) = join else { return Ok(rest) };
    let join = checkpoint::progress(join)?;
    let mut devices: BTreeMap<Box<str>, Entry> = BTreeMap::new();
    for entry in rest.devices.into_iter().chain(join.devices).flatten() {
        let known = devices.entry(entry.name.clone()).or_insert_with(|| entry.clone());
        known.newest = known.newest.max(entry.newest);
        known.heard = known.heard.max(entry.heard);
        known.frontier = known.frontier.max(entry.frontier);
    }
    let devices = devices.into_values().map(Some).collect();
    let (floor, now) = (rest.floor.max(join.floor), rest.now.max(join.now));
    Ok(Checkpoint { floor, now, devices, segments: Vec::new(), shared: rest.shared })
}

impl Pipeline {
    /// Takes rows of one of the streams that it reads, in the order of the log.
    pub fn ingest_from(&mut self, stream: &str, batch: &RecordBatch) -> Result<(), PipelineError> {
        let Some(join) = &mut self.join else { return self.ingest(batch) };
        let rows = join.ingest(stream, batch)?;
        self.stats.rows += rows as u64;
        self.since_barrier += rows;
        Ok(())
    }

    /// At a barrier: takes the rows that the join gives. Returns those that it did not take.
    pub(super) fn join_up(&mut self, now: Timestamp) -> Result<Vec<LateRow>, PipelineError> {
        let Some(mut join) = self.join.take() else { return Ok(Vec::new()) };
        if let Query::Windows { marks, .. } = &mut self.query {
            // A window waits for all rows of its device, not only for those that found another.
            for device in join.heard() {
                marks.observe(&device.name, device.newest, device.ingest);
            }
        }
        let keep = self.keep;
        let mut late = join.barrier(now, keep, &mut |rows| {
            // When a device was heard is known from its own rows.
            let rows = self.gathered(&rows, Some(i64::MIN))?;
            self.collect(&rows)
        })?;
        self.stats.late_records += late.iter().map(|row| row.records).sum::<u64>();
        let failed = join.take_failed();
        self.stats.failed_records += failed.iter().map(|row| row.records).sum::<u64>();
        late.extend(failed);
        self.join = Some(join);
        Ok(late)
    }

    /// Restores the join from its part of a state; gives the rest.
    pub(super) fn restore_join<'a>(&mut self, state: &'a [u8]) -> Result<&'a [u8], PipelineError> {
        match (stream_join::parts(state)?, &mut self.join) {
            ((rest, None), None) => Ok(rest),
            ((rest, Some(part)), Some(join)) => {
                join.restore(&self.identity, part)?;
                Ok(rest)
            }
            ((_, None), Some(_)) => Err(PipelineError::state("it holds no rows of two streams")),
            ((_, Some(_)), None) => Err(PipelineError::state("it holds rows of two streams")),
        }
    }

    /// Lets a join begin where another pipeline has come to.
    pub(super) fn succeed_join(&mut self, before: &Checkpoint) {
        if let Some(join) = &mut self.join {
            join.succeed(before.devices.clone(), before.floor, before.now);
        }
    }
}
