//! Windows once more, from rows that are read back: what a repair puts in the place of what a pipeline has written.
//!
//! The rows go through a pipeline of their own, which has seen nothing and closes nothing by itself, so none of them
//! is late. Which of its windows come out is decided by where the running pipeline stood at a barrier
//! ([`Passed`]): a window that is closed there for its device is *settled*, the running pipeline never gives it
//! again, and so it may be written here. All others are the running pipeline's, now or later, and are left out; should
//! the table have rows of them (a pipeline was dropped and began anew), those are kept as they are.
//!
//! A row of a pipeline without windows is settled as soon as it stands before the barrier.
//!
//! Sessions have no edges of their own: a late row may join two that were written apart. A session over all rows is
//! settled if it is closed, and lies wholly in the span that is recomputed. A session that the running pipeline still
//! holds is never part of a settled one: it ends no later, so it would be closed, too. Of the others the table may hold
//! parts, which are kept; so that these cannot count twice, everything of the same device that overlaps them is kept
//! with them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute;
use arrow::datatypes::{DataType, SchemaRef, TimestampNanosecondType};
use datafusion::error::DataFusionError;
use device::time::{SECOND, Timestamp};
use sql::{Kind, PipelinePlan};

use super::{Pipeline, Query, column, finish, of_any_type};
use crate::aggregate::{self, evaluate};
use crate::error::PipelineError;
use crate::lookup::Lookup;
use crate::sessions;
use crate::store::of_windows;
use crate::watermark::Watermarks;
use crate::window::Windows;

/// Partitions of a stream are no shorter, so what is gone of a device is gone by the hour.
const HOUR: i64 = 3600 * SECOND;

/// How far a pipeline's windows are out, by device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passed {
    floor: i64,
    devices: HashMap<Box<str>, i64>,
}

impl Passed {
    /// Windows that close at or before this are closed for the device.
    pub(crate) fn of(&self, device: &str) -> i64 {
        self.devices.get(device).copied().unwrap_or(self.floor)
    }

    /// Of windows that all devices share.
    pub(crate) fn of_all(frontier: i64) -> Self {
        Self { floor: frontier, devices: HashMap::new() }
    }

    /// Whether anything at all is known of how far a device is.
    fn knows(&self, device: &str) -> bool {
        self.floor > i64::MIN || self.devices.contains_key(device)
    }
}

impl Pipeline {
    /// How far its windows are out, right after a barrier; `None` if it has none, or shares them with other shards.
    pub fn passed(&self) -> Option<Passed> {
        let Query::Windows { marks, shared: None, .. } = &self.query else { return None };
        let devices = marks.entries().iter().flatten().map(|entry| (entry.name.clone(), entry.frontier)).collect();
        Some(Passed { floor: marks.floor(), devices })
    }
}

/// The results of one span of time in the making.
pub(crate) struct Recompute {
    pipeline: Pipeline,
    passed: Arc<Passed>,
    /// Whether it reads another pipeline, whose rows do not say when they came.
    chained: bool,
    span: Range<i64>,
    /// Devices that have rows, with the hours of those.
    seen: HashSet<(u32, i64)>,
    /// Rows in the span.
    rows: u64,
}

/// What was recomputed.
#[derive(Debug)]
pub(crate) struct Settled {
    /// The rows of the result.
    pub(crate) rows: Vec<RecordBatch>,
    /// Windows that are the running pipeline's to write.
    pub(crate) open: usize,
    /// Sessions that reach over an edge of the span, or overlap others of their device that were left out.
    pub(crate) at_edges: usize,
    /// Devices of which the pipeline does not know how far they are, and of which nothing was recomputed.
    pub(crate) unknown: usize,
    /// Records left out because an expression fails on them.
    pub(crate) failed: u64,
    /// What to do with the rows that the table has.
    pub(crate) judge: Judge,
}

/// Decides about rows of the table: those of settled windows go, others stay.
#[derive(Debug)]
pub(crate) struct Judge {
    passed: Arc<Passed>,
    /// A window that begins before this may lack records that it once had.
    begins: Option<i64>,
    by: By,
    ids: HashMap<Box<str>, u32>,
    /// Windows that have records, whether the result has a row of them or not.
    groups: HashSet<(u32, i64)>,
    seen: HashSet<(u32, i64)>,
}

#[derive(Debug)]
enum By {
    /// Each row of the result is one of these records.
    Rows {
        records: u64,
        had: u64,
    },
    Windows(Windows),
    /// By device: spans of time in which sessions lie, ascending, and whether they are settled.
    Sessions(HashMap<u32, Vec<(i64, i64, bool)>>),
}

/// A row of the table whose records the stream does not have any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone {
    /// Its device, if it is known which row it is.
    pub(crate) device: Option<String>,
    /// Start of its window, or its time.
    pub(crate) start: Timestamp,
}

impl std::fmt::Debug for Recompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recompute").field("pipeline", &self.pipeline).field("span", &self.span).finish_non_exhaustive()
    }
}

impl Recompute {
    /// For the windows that begin in `span`; of a pipeline without windows, for the rows in it. `source` are the
    /// columns of the stream.
    pub(crate) fn new(
        plan: &PipelinePlan,
        source: SchemaRef,
        passed: Option<&Arc<Passed>>,
        span: Range<i64>,
    ) -> Result<Self, PipelineError> {
        let pipeline = Pipeline::new(plan, source)?;
        if let (Query::Windows { .. }, None) = (&pipeline.query, passed) {
            return Err(PipelineError::state("it does not say how far windows are"));
        }
        let passed = passed.cloned().unwrap_or_default();
        Ok(Self { pipeline, passed, chained: plan.reads.pipeline, span, seen: HashSet::new(), rows: 0 })
    }

    /// The columns of what is read that are needed of each row.
    pub(crate) fn columns(&self, of: &SchemaRef) -> Vec<String> {
        let source = &self.pipeline.source;
        let read = match &self.pipeline.query {
            Query::Rows { stage, .. } => stage.columns(),
            Query::Windows { cut, .. } => cut.before.columns(),
        };
        let read = read.iter().filter_map(|at| source.fields().get(*at)).map(|field| field.name().as_str());
        let found = self.pipeline.lookups.iter().flat_map(Lookup::on);
        let own = [Some(&self.pipeline.time), self.pipeline.device.as_ref()].into_iter().flatten().map(String::as_str);
        let ingest = (!self.chained).then_some("ts_ingest");
        let wanted: HashSet<&str> = own.chain(ingest).chain(read).chain(found).collect();
        of.fields().iter().map(|field| field.name().clone()).filter(|name| wanted.contains(name.as_str())).collect()
    }

    /// The times of the records that may be part of it.
    pub(crate) fn reads(&self) -> Range<i64> {
        let Range { start, end } = self.span;
        let Query::Windows { cut, .. } = &self.pipeline.query else { return start..end };
        let windows = cut.windows;
        match windows.kind() {
            Kind::Session => start.saturating_sub(windows.end(0))..windows.end(end),
            Kind::Tumble | Kind::Hop { .. } => {
                let last = windows.start(end.saturating_sub(1));
                start..if last < start { end } else { end.max(windows.end(last)) }
            }
        }
    }

    /// Whether a window can begin in the span.
    pub(crate) fn has_windows(&self) -> bool {
        match &self.pipeline.query {
            Query::Windows { cut, .. } if cut.windows.kind() != Kind::Session => {
                cut.windows.start(self.span.end.saturating_sub(1)) >= self.span.start
            }
            _ => true,
        }
    }

    /// Takes records in the order of the log.
    pub(crate) fn ingest(&mut self, batch: &RecordBatch) -> Result<(), PipelineError> {
        self.pipeline.ingest_at(batch, self.chained.then_some(0))?;
        let time = column(batch, &self.pipeline.time, &storage::schema::timestamp())?;
        let ts = time.as_primitive::<TimestampNanosecondType>().values();
        self.rows += ts.iter().filter(|ts| self.span.contains(ts)).count() as u64;
        match (&self.pipeline.query, &self.pipeline.device) {
            (Query::Rows { .. }, _) => {}
            (Query::Windows { shared: Some(_), .. }, _) | (_, None) => {
                self.seen.extend(ts.iter().map(|ts| (0, ts.div_euclid(HOUR))));
            }
            (Query::Windows { marks, .. }, Some(device)) => {
                let devices = compute::cast(of_any_type(batch, device)?, &DataType::Utf8)?;
                for (device, ts) in devices.as_string::<i32>().iter().zip(ts) {
                    let id = marks.id(device.unwrap_or_default());
                    self.seen.extend(id.map(|id| (id, ts.div_euclid(HOUR))));
                }
            }
        }
        Ok(())
    }

    /// Bytes held.
    pub(crate) fn size(&self) -> usize {
        self.pipeline.stats().state_bytes
    }

    /// All records have been taken: gives what is settled. `begins`: records before this may be gone.
    pub(crate) fn settle(mut self, begins: Option<i64>) -> Result<Settled, PipelineError> {
        self.pipeline.flush()?;
        let span = self.span.clone();
        let failed = std::mem::take(&mut self.pipeline.failed);
        let failed = failed.iter().filter(|((_, start, _), _)| span.contains(start)).map(|(_, records)| records).sum();
        let judge = Judge {
            passed: self.passed.clone(),
            begins,
            by: By::Rows { records: self.rows, had: 0 },
            ids: HashMap::new(),
            groups: HashSet::new(),
            seen: std::mem::take(&mut self.seen),
        };
        match &mut self.pipeline.query {
            Query::Rows { done, .. } => {
                let rows = std::mem::take(done);
                Ok(Settled { rows, open: 0, at_edges: 0, unknown: 0, failed, judge })
            }
            Query::Windows { cut, operator, marks, late, shared } => {
                if shared.is_some() {
                    // Groups are of no device, and were aggregated as those of the first.
                    **marks = Watermarks::of_one(i64::MIN);
                }
                // No frontier has moved, so everything goes to the store.
                operator.close(marks, late)?;
                let names = || (0..).zip(marks.entries()).filter_map(|(id, entry)| Some((id, &*entry.as_ref()?.name)));
                let frontiers: Vec<i64> = (0..marks.entries().len() as u32)
                    .map(|id| judge.passed.of(marks.name(id).unwrap_or_default()))
                    .collect();
                let unknown = match shared {
                    Some(_) => 0,
                    None => names().filter(|(_, name)| !judge.passed.knows(name)).count(),
                };
                let ids = names().map(|(id, name)| (Box::from(name), id)).collect();
                let of = |id: u32| frontiers.get(id as usize).copied().unwrap_or(i64::MIN);
                let states: Vec<RecordBatch> = operator.store().batches().cloned().collect();
                let windows = cut.windows;
                let from = begins.unwrap_or(i64::MIN);
                let own = |start: i64, id: u32| span.contains(&start) && start >= from && windows.closed(start, of(id));
                let others = |start: i64, id: u32| span.contains(&start) && !windows.closed(start, of(id));
                let (by, settled, open, at_edges) = match windows.kind() {
                    Kind::Tumble => (By::Windows(windows), filtered(&states, own)?, distinct(&states, others)?, 0),
                    Kind::Hop { .. } => {
                        let hold = |which: &dyn Fn(i64, u32) -> bool| -> Result<Vec<RecordBatch>, DataFusionError> {
                            states.iter().map(|rows| of_windows(rows, windows, which)).collect()
                        };
                        (By::Windows(windows), hold(&own)?, distinct(&hold(&others)?, |_, _| true)?, 0)
                    }
                    Kind::Session => {
                        let found = spans(&states, |first, last, id| match windows.closed(last, of(id)) {
                            _ if last < span.start || span.end <= first => None,
                            false => Some(Fate::Open),
                            true if span.contains(&first) && span.contains(&last) => Some(Fate::Settled),
                            true => Some(Fate::AtEdge),
                        })?;
                        let settled =
                            |first: i64, id: u32| span.contains(&first) && found.settled(id, first) == Some(true);
                        let rows = filtered(&states, settled)?;
                        (By::Sessions(found.by_device), rows, found.open, found.at_edges)
                    }
                };
                let mut judge = Judge { by, ids, ..judge };
                let mut rows = Vec::new();
                // Accumulators refuse to be emptied of nothing.
                if settled.iter().any(|states| states.num_rows() > 0) {
                    let groups = evaluate(&cut.aggregates, &settled)?;
                    let starts = aggregate::windows(&groups)?.values().iter();
                    judge.groups = aggregate::devices(&groups)?.values().iter().copied().zip(starts.copied()).collect();
                    rows.extend(finish(cut, marks, vec![groups], &self.pipeline.output)?);
                }
                Ok(Settled { rows, open, at_edges, unknown, failed, judge })
            }
        }
    }
}

impl Judge {
    /// The rows of the table that stay, and one that must not go because its records are gone, if there is any.
    ///
    /// `device` and `time` are the columns of the pipeline's device, if windows are grouped by it, and of the window start;
    /// neither has a NULL.
    pub(crate) fn keep(
        &mut self,
        existing: &RecordBatch,
        device: Option<&str>,
        time: &str,
    ) -> Result<(RecordBatch, Option<Gone>), PipelineError> {
        let times = column(existing, time, &storage::schema::timestamp())?.as_primitive::<TimestampNanosecondType>();
        if let By::Rows { records, had } = &mut self.by {
            let left = usize::try_from(*records - (*records).min(*had)).unwrap_or(usize::MAX);
            *had += existing.num_rows() as u64;
            let gone = times.values().get(left).map(|ts| Gone { device: None, start: Timestamp(*ts) });
            return Ok((existing.slice(0, 0), gone));
        }
        let devices = match device {
            Some(device) => compute::cast(of_any_type(existing, device)?, &DataType::Utf8)?,
            None => Arc::new(StringArray::from_iter_values(std::iter::repeat_n("", existing.num_rows()))),
        };
        let (mut kept, mut gone) = (Vec::with_capacity(existing.num_rows()), None);
        for (name, start) in devices.as_string::<i32>().iter().zip(times.values()) {
            let (name, start) = (name.unwrap_or_default(), *start);
            let id = self.ids.get(name).copied();
            let (keep, there) = match &self.by {
                By::Windows(windows) => {
                    let keep = !windows.closed(start, self.passed.of(name));
                    let whole = self.begins.is_none_or(|begins| begins <= start);
                    (keep, keep || (whole && id.is_some_and(|id| self.has_records(id, start, windows.end(start)))))
                }
                By::Sessions(by_device) => {
                    let settled = id.and_then(|id| within(by_device, id, start));
                    let there = settled.is_some() || id.is_some_and(|id| self.has_records(id, start, start));
                    (settled == Some(false), there)
                }
                By::Rows { .. } => (false, true),
            };
            if !there && gone.is_none() {
                gone = Some(Gone { device: device.map(|_| name.to_owned()), start: Timestamp(start) });
            }
            kept.push(keep);
        }
        Ok((compute::filter_record_batch(existing, &BooleanArray::from(kept))?, gone))
    }

    /// Whether the stream has records of a device in a window, or close to where it begins.
    fn has_records(&self, id: u32, start: i64, end: i64) -> bool {
        let hours = start.div_euclid(HOUR)..=end.saturating_sub(1).max(start).div_euclid(HOUR);
        self.groups.contains(&(id, start)) || hours.into_iter().any(|hour| self.seen.contains(&(id, hour)))
    }
}

/// Rows of states by start and device.
fn filtered(states: &[RecordBatch], wanted: impl Fn(i64, u32) -> bool) -> Result<Vec<RecordBatch>, DataFusionError> {
    let filter = |rows: &RecordBatch| {
        let starts = aggregate::windows(rows)?.values().iter();
        let mask: BooleanArray =
            starts.zip(aggregate::devices(rows)?.values()).map(|(start, id)| Some(wanted(*start, *id))).collect();
        Ok(compute::filter_record_batch(rows, &mask)?)
    };
    states.iter().map(filter).collect()
}

/// How many windows of devices there are.
fn distinct(states: &[RecordBatch], wanted: impl Fn(i64, u32) -> bool) -> Result<usize, DataFusionError> {
    let mut found = HashSet::new();
    for rows in states {
        let starts = aggregate::windows(rows)?.values().iter().copied();
        found.extend(starts.zip(aggregate::devices(rows)?.values().iter().copied()).filter(|(s, id)| wanted(*s, *id)));
    }
    Ok(found.len())
}

/// What becomes of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Settled,
    Open,
    AtEdge,
}

#[derive(Debug, Default)]
struct Spans {
    by_device: HashMap<u32, Vec<(i64, i64, bool)>>,
    open: usize,
    at_edges: usize,
}

impl Spans {
    fn settled(&self, id: u32, at: i64) -> Option<bool> {
        within(&self.by_device, id, at)
    }
}

/// Whether the session of a device at that time is settled; `None` if there is none.
fn within(by_device: &HashMap<u32, Vec<(i64, i64, bool)>>, id: u32, at: i64) -> Option<bool> {
    let spans = by_device.get(&id)?;
    let before = spans.partition_point(|(first, ..)| *first <= at).checked_sub(1)?;
    spans.get(before).filter(|(_, last, _)| at <= *last).map(|(.., settled)| *settled)
}

/// The times that sessions of a device cover together, whatever their other keys.
fn spans(states: &[RecordBatch], fate: impl Fn(i64, i64, u32) -> Option<Fate>) -> Result<Spans, DataFusionError> {
    let mut all: BTreeMap<(u32, i64, i64), (Fate, usize)> = BTreeMap::new();
    for rows in states {
        let (last, _) = sessions::ends(rows)?;
        let starts = aggregate::windows(rows)?.values().iter();
        for ((first, id), last) in starts.zip(aggregate::devices(rows)?.values()).zip(last.values()) {
            let Some(fate) = fate(*first, *last, *id) else { continue };
            all.entry((*id, *first, *last)).or_insert((fate, 0)).1 += 1;
        }
    }
    let mut found = Spans::default();
    let mut counts: Vec<(u32, i64, usize)> = Vec::new();
    for ((id, first, last), (fate, count)) in all {
        let settled = fate == Fate::Settled;
        match fate {
            Fate::Settled => counts.push((id, first, count)),
            Fate::Open => found.open += count,
            Fate::AtEdge => found.at_edges += count,
        }
        let spans = found.by_device.entry(id).or_default();
        match spans.last_mut() {
            Some(before) if first <= before.1 => *before = (before.0, before.1.max(last), before.2 && settled),
            _ => spans.push((first, last, settled)),
        }
    }
    let lost = counts.into_iter().filter(|(id, first, _)| found.settled(*id, *first) != Some(true));
    found.at_edges += lost.map(|(.., count)| count).sum::<usize>();
    Ok(found)
}
