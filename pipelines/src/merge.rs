//! The part of a pipeline that merges what all shards contribute to shared groups (`shared.rs`).
//!
//! Contributions are taken as they come in the log of the one shard that merges, and become part of windows at the
//! next barrier, in that order.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use device::entry::Partial;
use device::time::Timestamp;
use sql::PipelinePlan;

use crate::checkpoint::{self, Identity};
use crate::error::PipelineError;
use crate::finish::finish;
use crate::operator::{self, Late, Operator};
use crate::outcome::{Closed, LateRow};
use crate::pipeline::{Parted, parted};
use crate::plan::Windowed;
use crate::shared::{Frontiers, Shared};
use crate::store::Store;
use crate::watermark::Watermarks;

/// Why a row was late, as [`LateRow::reason`] says it.
const LATE: &str = "late: the window was closed";

/// Merges the contributions of all shards to one pipeline.
pub(crate) struct Merge {
    cut: Box<Windowed>,
    identity: Identity,
    output: SchemaRef,
    operator: Box<dyn Operator>,
    frontiers: Frontiers,
    /// The frontier again, as operators ask for it: everything is of device 0.
    marks: Watermarks,
    late: Late,
    now: i64,
    /// States that came since the last barrier.
    fresh: Vec<RecordBatch>,
}

impl Merge {
    /// Over so many shards. `source`: the columns that the pipeline reads. Windows that close at or before `frontier`
    /// are closed.
    pub(crate) fn new(
        plan: &PipelinePlan,
        source: &SchemaRef,
        shards: u16,
        frontier: i64,
    ) -> Result<Self, PipelineError> {
        let Parted { cut, identity } = parted(plan, source)?;
        Ok(Self {
            operator: operator::new(&cut.aggregates, cut.windows)?,
            cut,
            identity,
            output: Arc::clone(&plan.output),
            frontiers: Frontiers::new(shards, frontier),
            marks: Watermarks::of_one(frontier),
            late: Late::default(),
            now: i64::MIN,
            fresh: Vec::new(),
        })
    }

    /// As it was when [`Merge::checkpoint`] gave `state`.
    pub(crate) fn restore(
        plan: &PipelinePlan,
        source: &SchemaRef,
        shards: u16,
        state: &[u8],
    ) -> Result<Self, PipelineError> {
        let mut this = Self::new(plan, source, shards, i64::MIN)?;
        let state = checkpoint::decode(state, &this.identity)?;
        let Some(Shared::Merged(frontiers)) = state.shared else {
            return Err(PipelineError::state("it is not one of merged groups"));
        };
        this.marks = Watermarks::of_one(frontiers.frontier());
        this.frontiers = frontiers;
        this.now = state.now;
        *this.operator.store_mut() = Store::restore(state.segments)?;
        Ok(this)
    }

    /// In the place of one of another meaning, which `state` is of: what that one has closed stays closed.
    pub(crate) fn succeed(
        plan: &PipelinePlan,
        source: &SchemaRef,
        shards: u16,
        state: &[u8],
    ) -> Result<Self, PipelineError> {
        let frontier = match checkpoint::progress(state)?.shared {
            Some(Shared::Merged(frontiers)) => frontiers.frontier(),
            _ => i64::MIN,
        };
        Self::new(plan, source, shards, frontier)
    }

    /// Takes a contribution. `false`: it is of another version of the pipeline.
    pub(crate) fn take(&mut self, partial: &Partial) -> Result<bool, PipelineError> {
        let of = checkpoint::identity(&partial.state)?;
        if (of.fingerprint, &of.datafusion) != (self.identity.fingerprint, &self.identity.datafusion) {
            return Ok(false);
        }
        let state = checkpoint::decode(&partial.state, &self.identity)?;
        let Some(Shared::Contribution(report)) = state.shared else {
            return Err(PipelineError::state("it is no contribution"));
        };
        if self.frontiers.take(partial.shard, partial.number, &report) {
            self.fresh.extend(state.segments.into_iter().map(|(rows, _)| rows));
            for (pane, rows) in report.rows {
                for window in self.cut.windows.of_pane(pane) {
                    if !self.cut.windows.closed(window, self.marks.frontier(0)) {
                        break;
                    }
                    *self.late.entry((0, window, self.cut.windows.end(window))).or_default() += rows;
                }
            }
        }
        Ok(true)
    }

    /// Times whose records are in windows that are open, as of the last barrier.
    pub(crate) fn needed(&self) -> Result<Vec<(i64, i64)>, PipelineError> {
        Ok(self.operator.needed()?)
    }

    /// A barrier of the log, whose time is `now`: gives the rows of all windows that close here.
    pub(crate) fn barrier(&mut self, now: Timestamp) -> Result<Closed, PipelineError> {
        self.now = self.now.max(now.0);
        for rows in std::mem::take(&mut self.fresh) {
            self.operator.merge(rows, &self.marks)?;
        }
        self.frontiers.advance(self.now);
        self.marks.raise(self.frontiers.frontier());
        let groups = self.operator.close(&self.marks, &mut self.late)?;
        let late = std::mem::take(&mut self.late).into_iter().map(|((_, start, end), records)| LateRow {
            device: String::new(),
            window_start: Timestamp(start),
            window_end: Timestamp(end),
            records,
            reason: LATE.to_owned(),
        });
        let late = late.collect();
        let rows = finish(&self.cut, &self.marks, groups, &self.output)?.into_iter().collect();
        Ok(Closed { rows, late })
    }

    /// The state, right after [`Merge::barrier`].
    pub(crate) fn checkpoint(&mut self) -> Result<Bytes, PipelineError> {
        let segments = self.operator.store_mut().encode()?;
        let shared = Shared::Merged(self.frontiers.clone());
        checkpoint::encode(&self.identity, (self.now, i64::MIN), &[], segments, Some(shared))
    }

    /// Windows that close at or before this are out.
    pub(crate) fn frontier(&self) -> i64 {
        self.frontiers.frontier()
    }

    /// Groups in open windows.
    pub(crate) fn groups(&self) -> usize {
        self.operator.groups()
    }
}
