//! One continuous query over one shard: rows in, in the order of the log; at each barrier the rows of closed windows
//! out; its state saved and restored.
//!
//! Everything it gives is a function of the rows and barriers it was given, not of how the rows were cut into
//! batches: rows are gathered, and aggregated each time [`GATHER`] have come since the last barrier, and at the
//! barrier. So a process that restores a checkpoint and is fed the log from there does the same arithmetic.
//!
//! After an error from anything but the constructors the state is in doubt: drop the pipeline, restore the last
//! checkpoint and replay. A row on which an expression fails (a division by zero) is no such error: it is counted
//! with its reason in [`Closed::late`], and the others go on.

mod begin;
mod joined;
mod recompute;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampNanosecondArray, UInt32Array};
use arrow::compute;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampNanosecondType, UInt32Type};
use bytes::Bytes;
use datafusion::DATAFUSION_VERSION;
use datafusion::error::DataFusionError;
use device::time::Timestamp;
use sql::{Kind, PipelinePlan};

use crate::aggregate::Input;
use crate::checkpoint::{self, Identity};
pub(crate) use crate::error::PipelineError;
use crate::finish::finish;
use crate::heard::Heard;
use crate::lookup::{self, Lookup};
use crate::operator::{self, Late, Operator, joined};
use crate::outcome::{Closed, LATE, LateRow, Stats};
use crate::plan::{Cut, Windowed, cut};
use crate::shared::{Local, Shared};
use crate::stage::Stage;
use crate::store::Store;
use crate::stream_join::{self, StreamJoin};
use crate::watermark::{Entry, KEEP, Watermarks};
pub use recompute::Passed;
pub(crate) use recompute::{Judge, Recompute, Settled};

/// Rows gathered before they are aggregated. Fewer cost more, most of all with percentiles, whose digests are
/// rebuilt each time a group gets rows; more do not pay, as the columns no longer fit the caches.
pub(crate) const GATHER: usize = 65_536;

/// A running query of one shard.
pub struct Pipeline {
    name: String,
    /// What its rows come out of, if it reads two streams.
    join: Option<Box<StreamJoin>>,
    lookups: Vec<Lookup>,
    /// The columns of the source, then those that a second stream and lookups add.
    source: SchemaRef,
    /// Which of them hold the time and the device.
    time: String,
    device: Option<String>,
    output: SchemaRef,
    identity: Identity,
    query: Query,
    /// The columns that are gathered: those the query reads, then `ts`, then the device.
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    since_barrier: usize,
    failed: BTreeMap<(String, i64, String), u64>,
    /// What the last barrier gave away.
    contribution: Option<Bytes>,
    stats: Stats,
    /// [`GATHER`] and [`KEEP`], but for tests.
    pub(crate) gather: usize,
    pub(crate) keep: usize,
}

enum Query {
    Rows {
        stage: Stage,
        now: i64,
        done: Vec<RecordBatch>,
    },
    Windows {
        cut: Box<Windowed>,
        operator: Box<dyn Operator>,
        marks: Box<Watermarks>,
        late: Late,
        /// Groups have rows of many devices: what comes between two barriers is given away, see `shared.rs`.
        shared: Option<Box<Local>>,
    },
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("name", &self.name).field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl Pipeline {
    /// A pipeline that has seen nothing. `source` are the columns of the stream it reads.
    pub fn new(plan: &PipelinePlan, source: SchemaRef) -> Result<Self, PipelineError> {
        let lookups = plan.joins.iter().map(Lookup::new).collect::<Result<Vec<_>, _>>()?;
        let first = source;
        let source = joined::source(plan, &first, &lookups)?;
        let parts = cut(plan, &source)?;
        let (found, shape) = match &parts {
            Cut::Rows(stage) => (stage.schema().clone(), String::new()),
            Cut::Windows(windowed) => (windowed.after.schema().clone(), windowed.aggregates.shape()?),
        };
        let types = |s: &Schema| s.fields().iter().map(|f| f.data_type().to_string()).collect::<Vec<_>>().join(", ");
        if types(&found) != types(&plan.output) {
            return Err(PipelineError::Output { found: types(&found), expected: types(&plan.output) });
        }
        let query = match parts {
            Cut::Rows(stage) => Query::Rows { stage, now: i64::MIN, done: Vec::new() },
            Cut::Windows(cut) => {
                let operator = operator::new(&cut.aggregates, cut.windows)?;
                let shared = cut.device_at.is_none().then(|| Box::new(Local::new(i64::MIN)));
                Query::Windows { cut, operator, marks: Box::default(), late: Late::default(), shared }
            }
        };
        let (join, lookups) = joined::make(plan, &source, &first, lookups, &query)?;
        Ok(Self {
            name: plan.name.clone(),
            join,
            lookups,
            source,
            time: plan.reads.time.clone(),
            device: plan.reads.device.clone(),
            output: Arc::clone(&plan.output),
            identity: Identity { shape, ..identity(plan) },
            query,
            pending: Vec::new(),
            pending_rows: 0,
            since_barrier: 0,
            failed: BTreeMap::new(),
            contribution: None,
            stats: Stats::default(),
            gather: GATHER,
            keep: KEEP,
        })
    }

    /// Whether `state` was written by this version of the pipeline and of the query engine. An error: it cannot be
    /// told, because it is of a newer format or damaged; then it must not be replaced either.
    pub fn matches(plan: &PipelinePlan, state: &[u8]) -> Result<bool, PipelineError> {
        let own = identity(plan);
        let found = checkpoint::identity(stream_join::parts(state)?.0)?;
        Ok(found.fingerprint == own.fingerprint && found.datafusion == own.datafusion)
    }

    /// The pipeline as it was when [`Pipeline::checkpoint`] gave `state`.
    pub fn restore(plan: &PipelinePlan, source: SchemaRef, state: &[u8]) -> Result<Self, PipelineError> {
        let mut this = Self::new(plan, source)?;
        let state = checkpoint::decode(this.restore_join(state)?, &this.identity)?;
        match &mut this.query {
            Query::Rows { now, .. } => *now = state.now,
            Query::Windows { operator, marks, shared, .. } => {
                if let (Some(own), Some(Shared::Local(local))) = (shared, state.shared) {
                    **own = local;
                }
                **marks = Watermarks::restore(state.devices, state.floor, state.now);
                let segments = state.segments;
                #[cfg(feature = "planted")]
                let segments = match device::planted::is("segment-not-restored") {
                    true => segments.into_iter().skip(1).collect(),
                    false => segments,
                };
                *operator.store_mut() = Store::restore(segments)?;
            }
        }
        Ok(this)
    }

    /// A pipeline in the place of one of another meaning, which `state` is of. No window comes out twice: those that
    /// the old one has closed stay closed, and for each device the new one begins with the first window after all
    /// that it has records in. What the old one held of those is given up.
    pub(crate) fn succeed(
        plan: &PipelinePlan,
        source: SchemaRef,
        state: &[u8],
        heard: Option<&Heard>,
    ) -> Result<Self, PipelineError> {
        let before = joined::progress(state)?;
        if before.devices.is_empty() {
            // The old one had no windows, or has seen nothing.
            return Self::begin(plan, source, heard);
        }
        let mut this = Self::new(plan, source)?;
        this.succeed_join(&before);
        // Of what is joined later, a part may have come before.
        let before_ns = plan.stream_join.as_ref().map_or(0, |join| join.lower_ns.saturating_neg().max(0));
        match &mut this.query {
            Query::Rows { now, .. } => *now = before.now,
            Query::Windows { cut, marks, shared: Some(own), .. } => {
                let newest = before.devices.iter().flatten().map(|entry| entry.newest).max();
                let passed = newest.map_or(i64::MIN, |newest| {
                    cut.windows.frontier_after(newest.min(before.now).saturating_add(before_ns))
                });
                let since = match before.shared {
                    Some(Shared::Local(local)) => local.since(),
                    _ => i64::MIN,
                };
                **own = Local::new(since.max(passed));
                **marks = Watermarks::restore(before.devices, before.floor, before.now);
            }
            Query::Windows { cut, marks, .. } => {
                let passed = before.devices.into_iter().map(|entry| {
                    let entry = entry?;
                    let seen = entry.newest.saturating_add(before_ns);
                    let passed = entry.frontier.max(cut.windows.frontier_after(seen));
                    Some(Entry { frontier: passed, ..entry })
                });
                **marks = Watermarks::restore(passed.collect(), before.floor, before.now);
            }
        }
        Ok(this)
    }

    /// The pipeline's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes rows of the stream that it reads, of two streams those of the first, in the order of the log.
    pub fn ingest(&mut self, batch: &RecordBatch) -> Result<(), PipelineError> {
        self.ingest_at(batch, None)
    }

    /// Takes rows of the pipeline that is the source, which it gave at a barrier whose time is `now`.
    pub fn ingest_result(&mut self, batch: &RecordBatch, now: Timestamp) -> Result<(), PipelineError> {
        self.ingest_at(batch, Some(now.0))
    }

    fn ingest_at(&mut self, batch: &RecordBatch, now: Option<i64>) -> Result<(), PipelineError> {
        if let Some(join) = &self.join {
            let first = join.first_stream().to_owned();
            return self.ingest_from(&first, batch);
        }
        let rows = match self.lookups.as_slice() {
            [] => self.gathered(batch, now)?,
            lookups => self.gathered(&lookup::extend(batch, lookups)?, now)?,
        };
        self.stats.rows += rows.num_rows() as u64;
        self.collect(&rows)
    }

    /// Gathers rows, and aggregates what has been gathered when it is enough.
    fn collect(&mut self, rows: &RecordBatch) -> Result<(), PipelineError> {
        let mut at = 0;
        while at < rows.num_rows() {
            let count = (rows.num_rows() - at).min(self.gather - self.pending_rows);
            self.pending.push(rows.slice(at, count));
            self.pending_rows += count;
            self.since_barrier += count;
            at += count;
            if self.pending_rows == self.gather {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// A barrier of the log, whose time is `now`: gives the rows of all windows that close here.
    pub fn barrier(&mut self, now: Timestamp) -> Result<Closed, PipelineError> {
        let mut closed = Closed { late: self.join_up(now)?, ..Closed::default() };
        self.flush()?;
        self.since_barrier = 0;
        match &mut self.query {
            Query::Rows { now: at, done, .. } => {
                *at = now.0.max(*at);
                closed.rows = std::mem::take(done);
            }
            Query::Windows { cut, operator, marks, late, shared: Some(local) } => {
                marks.advance(now.0, cut.windows);
                operator.close(&Watermarks::default(), late)?;
                let states = operator.store_mut().take()?;
                if let Some(report) = local.report(marks.slowest(), marks.now(), states.is_some()) {
                    let segments = states.iter().map(checkpoint::to_ipc).collect::<Result<_, _>>()?;
                    let shared = Some(Shared::Contribution(report));
                    let (now, floor) = (marks.now(), marks.floor());
                    self.contribution = Some(checkpoint::encode(&self.identity, (now, floor), &[], segments, shared)?);
                }
                if marks.crowded(self.keep) {
                    marks.forget(self.keep, &BTreeSet::new());
                }
            }
            Query::Windows { cut, operator, marks, late, shared: None } => {
                marks.advance(now.0, cut.windows);
                let groups = operator.close(marks, late)?;
                // Rows are late by what held before this barrier.
                for ((device, start, end), records) in std::mem::take(late) {
                    self.stats.late_records += records;
                    closed.late.push(LateRow {
                        device: marks.name(device).unwrap_or_default().to_owned(),
                        window_start: Timestamp(start),
                        window_end: Timestamp(end),
                        records,
                        reason: LATE.to_owned(),
                    });
                }
                closed.rows.extend(finish(cut, marks, groups, &self.output)?);
                if marks.crowded(self.keep) {
                    marks.forget(self.keep, &operator.store().devices()?);
                }
            }
        }
        for ((device, start, reason), records) in std::mem::take(&mut self.failed) {
            self.stats.failed_records += records;
            let end = match &self.query {
                Query::Rows { .. } => start,
                Query::Windows { cut, .. } => cut.windows.end(start),
            };
            let (window_start, window_end) = (Timestamp(start), Timestamp(end));
            closed.late.push(LateRow { device, window_start, window_end, records, reason });
        }
        #[cfg(feature = "planted")]
        if device::planted::is("late-dropped") {
            closed.late.clear();
        }
        closed.late.sort_by(|a, b| {
            let key = |r: &LateRow| (r.window_start, r.records);
            a.device.cmp(&b.device).then(key(a).cmp(&key(b))).then(a.reason.cmp(&b.reason))
        });
        self.stats.emitted += closed.rows.iter().map(|b| b.num_rows() as u64).sum::<u64>();
        Ok(closed)
    }

    /// What the last barrier gave for groups that have rows of all shards. It is durable only with a checkpoint.
    pub fn contribution(&mut self) -> Option<Bytes> {
        self.contribution.take()
    }

    /// Whether groups have rows of all shards.
    pub fn is_shared(&self) -> bool {
        matches!(&self.query, Query::Windows { shared: Some(_), .. })
    }

    /// The state, right after [`Pipeline::barrier`].
    pub fn checkpoint(&mut self) -> Result<Bytes, PipelineError> {
        if self.since_barrier > 0 {
            return Err(PipelineError::NotAtBarrier { rows: self.since_barrier });
        }
        let state = match &mut self.query {
            Query::Rows { now, .. } => checkpoint::encode(&self.identity, (*now, i64::MIN), &[], Vec::new(), None),
            Query::Windows { operator, marks, shared, .. } => {
                let segments = operator.store_mut().encode()?;
                let shared = shared.as_deref().cloned().map(Shared::Local);
                checkpoint::encode(&self.identity, (marks.now(), marks.floor()), marks.entries(), segments, shared)
            }
        };
        match &self.join {
            None => state,
            Some(join) => Ok(stream_join::join(&state?, &join.encode(&self.identity)?)),
        }
    }

    /// What windows that are still open would give if they closed now, as of the last barrier. Changes nothing.
    pub fn provisional(&mut self) -> Result<Vec<RecordBatch>, PipelineError> {
        let Query::Windows { cut, operator, marks, shared: None, .. } = &self.query else { return Ok(Vec::new()) };
        if operator.store().rows() == 0 {
            return Ok(Vec::new());
        }
        let groups = operator.provisional(marks)?;
        Ok(finish(cut, marks, vec![groups], &self.output)?.into_iter().collect())
    }

    /// Times whose records are in windows that are open, or wait for others, as of the last barrier: first and last nanosecond of each
    /// range, in order, none touching the next.
    pub fn needed(&self) -> Result<Vec<(i64, i64)>, PipelineError> {
        let open = match &self.query {
            Query::Rows { .. } => Vec::new(),
            Query::Windows { operator, .. } => operator.needed()?,
        };
        Ok(joined(match &self.join {
            None => open,
            Some(join) => join.needed(open),
        }))
    }

    /// How it stands.
    pub fn stats(&self) -> Stats {
        let pending = self.pending.iter().map(RecordBatch::get_array_memory_size).sum::<usize>();
        let pending = pending + self.join.as_ref().map_or(0, |join| join.size());
        match &self.query {
            Query::Rows { done, .. } => {
                let done = done.iter().map(RecordBatch::get_array_memory_size).sum::<usize>();
                let devices = self.join.as_ref().map_or(0, |join| join.devices());
                Stats { devices, state_bytes: pending + done, ..self.stats }
            }
            Query::Windows { operator, marks, .. } => Stats {
                open_panes: operator.windows().map_or(0, |w| w.len()),
                groups: operator.groups(),
                devices: marks.len(),
                state_bytes: pending + operator.size(),
                ..self.stats
            },
        }
    }

    /// The gathered columns of a batch; takes note of devices and times on the way. `now`: when it came, unless each
    /// row says so.
    fn gathered(&mut self, batch: &RecordBatch, now: Option<i64>) -> Result<RecordBatch, PipelineError> {
        let columns = match &self.query {
            Query::Rows { stage, .. } => stage.columns(),
            Query::Windows { cut, .. } => cut.before.columns(),
        };
        let mut fields = Vec::with_capacity(columns.len() + 2);
        let mut arrays = Vec::with_capacity(columns.len() + 2);
        for index in columns {
            let expected =
                self.source.fields().get(*index).ok_or_else(|| PipelineError::unsupported("a new column"))?;
            arrays.push(Arc::clone(column(batch, expected.name(), expected.data_type())?));
            fields.push(Arc::clone(expected));
        }
        let time = storage::schema::timestamp();
        let ts = column(batch, &self.time, &time)?;
        arrays.push(Arc::clone(ts));
        fields.push(Arc::new(Field::new("ts", time.clone(), false)));
        let device = match &self.device {
            Some(device) => compute::cast(of_any_type(batch, device)?, &DataType::Utf8)?,
            None => Arc::new(StringArray::from_iter_values(std::iter::repeat_n("", batch.num_rows()))),
        };
        match &mut self.query {
            Query::Rows { .. } => {
                arrays.push(device);
                fields.push(Arc::new(Field::new("device", DataType::Utf8, false)));
            }
            Query::Windows { marks, .. } => {
                let ingest: ArrayRef = match now {
                    Some(now) => Arc::new(TimestampNanosecondArray::from_value(now, batch.num_rows())),
                    None => Arc::clone(column(batch, "ts_ingest", &time)?),
                };
                let rows = device.as_string::<i32>().iter();
                let times = ts.as_primitive::<TimestampNanosecondType>().values().iter();
                let ingest = ingest.as_primitive::<TimestampNanosecondType>().values();
                let ids = rows.zip(times.zip(ingest)).map(|(name, (ts, ingest))| {
                    // The schema says that there is a device in every row.
                    marks.observe(name.unwrap_or_default(), *ts, *ingest)
                });
                arrays.push(Arc::new(UInt32Array::from_iter_values(ids)));
                fields.push(Arc::new(Field::new("device", DataType::UInt32, false)));
            }
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
    }

    /// Aggregates what has been gathered.
    fn flush(&mut self) -> Result<(), PipelineError> {
        let batches = std::mem::take(&mut self.pending);
        self.pending_rows = 0;
        let batch = match batches.as_slice() {
            [] => return Ok(()),
            [one] => one.clone(),
            [first, ..] => compute::concat_batches(&first.schema(), &batches)?,
        };
        let batch = match self.evaluate(&batch) {
            Ok(evaluated) => return self.take(evaluated),
            Err(error) => {
                let mut bad = Vec::new();
                self.find(&batch, 0, error, &mut bad);
                self.refuse(&batch, &bad);
                let good: Vec<u32> = (0..batch.num_rows() as u32)
                    .filter(|row| bad.binary_search_by_key(row, |(row, _)| *row).is_err())
                    .collect();
                compute::take_record_batch(&batch, &UInt32Array::from(good))?
            }
        };
        let evaluated = self.evaluate(&batch)?;
        self.take(evaluated)
    }

    /// Everything that is computed row by row, and so does not change the state.
    fn evaluate(&self, batch: &RecordBatch) -> Result<Evaluated, DataFusionError> {
        let extra = batch.num_columns().saturating_sub(2);
        let rows = batch.project(&(0..extra).collect::<Vec<_>>())?;
        match &self.query {
            Query::Rows { stage, .. } => Ok(Evaluated::Rows(stage.run(rows, None)?.0)),
            Query::Windows { cut, .. } => {
                let devices = Arc::clone(batch.column(extra + 1));
                let (rows, devices) = cut.before.run(rows, Some(devices))?;
                let devices = devices.ok_or_else(|| DataFusionError::Internal("rows without devices".to_owned()))?;
                let devices = match cut.device_at {
                    Some(_) => devices,
                    None => Arc::new(UInt32Array::from_value(0, devices.len())),
                };
                Ok(Evaluated::Input(Input::evaluate(&cut.aggregates, &rows, devices)?))
            }
        }
    }

    fn take(&mut self, evaluated: Evaluated) -> Result<(), PipelineError> {
        match (&mut self.query, evaluated) {
            (Query::Rows { done, .. }, Evaluated::Rows(batch)) if batch.num_rows() > 0 => {
                done.push(RecordBatch::try_new(Arc::clone(&self.output), batch.columns().to_vec())?);
            }
            (Query::Windows { cut, operator, late, shared: Some(local), .. }, Evaluated::Input(input)) => {
                if cut.windows.kind() != Kind::Session {
                    local.count(input.windows.values());
                }
                operator.update(&input, &Watermarks::default(), late)?;
            }
            (Query::Windows { operator, marks, late, .. }, Evaluated::Input(input)) => {
                operator.update(&input, marks, late)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Finds the rows of a batch that cannot be evaluated, by halves. `error` is what the whole batch gave.
    fn find(&self, batch: &RecordBatch, at: u32, error: DataFusionError, bad: &mut Vec<(u32, String)>) {
        let rows = batch.num_rows();
        if rows == 0 {
            return;
        }
        if rows == 1 {
            bad.push((at, format!("evaluation failed: {}", error.strip_backtrace())));
            return;
        }
        let half = rows / 2;
        for (start, count) in [(0, half), (half, rows - half)] {
            let part = batch.slice(start, count);
            if let Err(error) = self.evaluate(&part) {
                self.find(&part, at + start as u32, error, bad);
            }
        }
    }

    fn refuse(&mut self, batch: &RecordBatch, bad: &[(u32, String)]) {
        let extra = batch.num_columns().saturating_sub(2);
        let times = batch.column(extra).as_primitive::<TimestampNanosecondType>();
        for (row, reason) in bad {
            let row = *row as usize;
            let (device, start) = match &self.query {
                Query::Rows { .. } => {
                    (batch.column(extra + 1).as_string::<i32>().value(row).to_owned(), times.value(row))
                }
                Query::Windows { cut, marks, .. } => {
                    let id = batch.column(extra + 1).as_primitive::<UInt32Type>().value(row);
                    (marks.name(id).unwrap_or_default().to_owned(), cut.windows.start(times.value(row)))
                }
            };
            *self.failed.entry((device, start, reason.clone())).or_default() += 1;
        }
    }
}

enum Evaluated {
    Rows(RecordBatch),
    Input(Input),
}

fn identity(plan: &PipelinePlan) -> Identity {
    Identity { datafusion: DATAFUSION_VERSION.to_owned(), fingerprint: plan.fingerprint, shape: String::new() }
}

/// A windowed plan in its parts, and whose states they make.
pub(crate) struct Parted {
    pub(crate) cut: Box<Windowed>,
    pub(crate) identity: Identity,
}

/// Takes a windowed plan apart. `source`: the columns that it reads.
pub(crate) fn parted(plan: &PipelinePlan, source: &SchemaRef) -> Result<Parted, PipelineError> {
    let lookups = plan.joins.iter().map(Lookup::new).collect::<Result<Vec<_>, _>>()?;
    match cut(plan, &joined::source(plan, source, &lookups)?)? {
        Cut::Rows(_) => Err(PipelineError::unsupported("groups without a window")),
        Cut::Windows(cut) => {
            let identity = Identity { shape: cut.aggregates.shape()?, ..identity(plan) };
            Ok(Parted { cut, identity })
        }
    }
}

fn of_any_type<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, PipelineError> {
    batch.column_by_name(name).ok_or_else(|| PipelineError::Source {
        column: name.to_owned(),
        found: "missing".to_owned(),
        expected: "a text".to_owned(),
    })
}

pub(crate) fn column<'a>(
    batch: &'a RecordBatch,
    name: &str,
    expected: &DataType,
) -> Result<&'a ArrayRef, PipelineError> {
    let found = batch.column_by_name(name);
    found.filter(|c| c.data_type() == expected).ok_or_else(|| PipelineError::Source {
        column: name.to_owned(),
        found: found.map_or_else(|| "missing".to_owned(), |c| c.data_type().to_string()),
        expected: expected.to_string(),
    })
}
