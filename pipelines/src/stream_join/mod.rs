//! Joins rows of two streams: those of one device that lie within a bound of each other in time.
//!
//! Pure: rows of both streams in the order of the log and barriers in, joined rows out. All is done at barriers, since
//! the order in which rows of *different* streams came between two barriers depends on how the log was cut into
//! batches. What comes out is sorted by device, the first row and the second row.
//!
//! The watermark of a device is that of both its streams together (`watermark.rs`). At a barrier at which it stands at
//! `w`,
//!
//! * a row that comes after is *late* if its time plus the lateness is less than `w`: it counts for nothing and is
//!   reported;
//! * a row is held as long as a row that is not late can still match it. So a pair is found when the second of the
//!   two has come, and only then: held rows have been matched among each other before;
//! * a row of the first stream that is held no longer and never had a match is given alone, for LEFT JOIN.
//!
//! So the result is the plain join of the rows that were not late, whatever came between them, and what is held of a
//! device is what it sent within bound plus lateness.

mod matching;
mod side;
mod state;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, UInt32Array};
use arrow::compute;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimestampNanosecondType};
use datafusion::common::HashMap;
use device::time::{SECOND, Timestamp};
use futures::executor::block_on;
use sql::{Kind, PipelinePlan, Window};

use self::matching::Bound;
use self::side::{Condition, Failed, Late, Needs, OWN, Side, Sorted, named};
pub(crate) use self::state::{join, parts};
use crate::error::PipelineError;
use crate::lookup::Lookup;
use crate::outcome::LateRow;
use crate::stage::{Leaf, Stage};
use crate::watermark::Watermarks;
use crate::window::Windows;

const HOUR: i64 = 3600 * SECOND;

/// Joined rows are given in batches of so many.
const CHUNK: usize = 8192;

/// A device of which rows came since the last barrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) name: Box<str>,
    /// Greatest `ts`.
    pub(crate) newest: i64,
    /// Greatest `ts_ingest`.
    pub(crate) ingest: i64,
}

/// Where a column of joined rows comes from.
#[derive(Debug, Clone, Copy)]
enum Place {
    Device,
    Time,
    SecondDevice,
    SecondTime,
    First(usize),
    Second(usize),
}

/// The join of one pipeline.
pub(crate) struct StreamJoin {
    /// Names of the streams.
    streams: [String; 2],
    bound: Bound,
    lateness: i64,
    outer: bool,
    first: Side,
    second: Side,
    /// What two rows must fulfil besides; only if `outer`.
    condition: Option<Condition>,
    /// Whether a held row of the first stream has had a match; only if `outer`.
    matched: Vec<bool>,
    columns: Vec<(FieldRef, Place)>,
    marks: Watermarks,
    /// How far silence moves a device on.
    reach: Windows,
    heard: HashMap<Box<str>, (i64, i64)>,
    failed: Failed,
}

/// The source of a query over two streams: the columns of the first, those of the second that are used, and those
/// that lookups add.
pub(crate) fn schema(
    first: &SchemaRef,
    join: &sql::StreamJoin,
    lookups: &[Lookup],
) -> Result<SchemaRef, PipelineError> {
    let mut fields = first.fields().to_vec();
    for (name, column) in &join.columns {
        fields.push(Arc::new(join.schema.field_with_name(column)?.clone().with_name(name)));
    }
    let all = crate::lookup::schema(&Arc::new(Schema::new(fields)), lookups)?;
    // What is behind the first stream's columns is NULL in a row without a match.
    let nullable = |(at, field): (usize, &FieldRef)| match at < first.fields().len() {
        true => Arc::clone(field),
        false => Arc::new(field.as_ref().clone().with_nullable(true)),
    };
    Ok(Arc::new(Schema::new(all.fields().iter().enumerate().map(nullable).collect::<Vec<_>>())))
}

impl StreamJoin {
    /// A join that has seen nothing. `source` are the columns of [`schema`], of which `first` are the first stream's;
    /// `read` are those that the query reads; `after`: how far behind its newest row silence must move a device, that
    /// everything which comes after the join is closed.
    pub(crate) fn new(
        (plan, join): (&PipelinePlan, &sql::StreamJoin),
        source: &SchemaRef,
        first: &SchemaRef,
        lookups: Vec<Lookup>,
        read: &[usize],
        after: i64,
    ) -> Result<Self, PipelineError> {
        let condition = |plan: &Option<datafusion::logical_expr::LogicalPlan>| {
            let Some(plan) = plan else { return Ok(None) };
            let physical = block_on(sql::session_state().create_physical_plan(plan))?;
            Ok::<_, PipelineError>(Some(Condition::new(Stage::compile(&physical, &[0], Leaf::Source)?, source)?))
        };
        let (first_filter, second_filter) = (condition(&join.first_filter)?, condition(&join.second_filter)?);
        let condition = condition(&join.condition)?;

        let (mut of_first, mut of_second) = (Vec::new(), Vec::new());
        for (at, lookup) in lookups.into_iter().enumerate() {
            if join.lookups.contains(&at) { of_second.push(lookup) } else { of_first.push(lookup) }
        }
        let added = |lookups: &[Lookup]| -> Result<Vec<FieldRef>, PipelineError> {
            Ok(crate::lookup::schema(&Arc::new(Schema::empty()), lookups)?.fields().to_vec())
        };
        let (first_added, second_added) = (added(&of_first)?, added(&of_second)?);

        let mut wanted: Vec<FieldRef> = Vec::new();
        let asked = read.iter().filter_map(|at| source.fields().get(*at));
        for field in asked.chain(condition.iter().flat_map(Condition::columns)) {
            if !wanted.iter().any(|known| known.name() == field.name()) {
                wanted.push(Arc::clone(field));
            }
        }
        let (mut first_keep, mut second_keep) = (Vec::new(), Vec::new());
        let mut columns = Vec::with_capacity(wanted.len() + 3);
        for field in wanted {
            let name = field.name().as_str();
            let own = join.columns.iter().find(|(wide, _)| wide == name).map(|(_, own)| own.as_str());
            let of_second = own.is_some() || second_added.iter().any(|f| f.name() == name);
            let from = match (of_second, own.unwrap_or(name)) {
                (false, "device") => Place::Device,
                (false, "ts") => Place::Time,
                (true, "device") if own.is_some() => Place::SecondDevice,
                (true, "ts") if own.is_some() => Place::SecondTime,
                (false, _) => {
                    first_keep.push(Arc::clone(&field));
                    Place::First(OWN + first_keep.len() - 1)
                }
                (true, _) => {
                    second_keep.push(Arc::clone(&field));
                    Place::Second(OWN + second_keep.len() - 1)
                }
            };
            columns.push((field, from));
        }
        for (name, kind, from) in
            [("device", DataType::Utf8, Place::Device), ("ts", storage::schema::timestamp(), Place::Time)]
        {
            if !columns.iter().any(|(field, _)| field.name() == name) {
                columns.push((Arc::new(Field::new(name, kind, false)), from));
            }
        }

        let take = |lookups: &[Lookup], filter: &Option<Condition>, keep: &[FieldRef], added: &[FieldRef]| {
            let on = lookups.iter().flat_map(Lookup::on).map(str::to_owned);
            let filter = filter.iter().flat_map(Condition::columns).map(|f| f.name().clone());
            let mut names: Vec<String> = on.chain(filter).chain(keep.iter().map(|f| f.name().clone())).collect();
            names.sort_unstable();
            names.dedup();
            names.retain(|name| !added.iter().any(|field| field.name() == name));
            names
        };
        let named = |name: &String| Ok::<_, PipelineError>(Arc::new(source.field_with_name(name)?.clone()));
        let first_take = take(&of_first, &first_filter, &first_keep, &first_added);
        let first_take: Vec<(FieldRef, String)> =
            first_take.iter().map(|name| Ok((named(name)?, name.clone()))).collect::<Result<_, PipelineError>>()?;
        let second_take = take(&of_second, &second_filter, &second_keep, &second_added);
        let own = |name: &String| {
            let column = join.columns.iter().find(|(wide, _)| wide == name).map(|(_, own)| own.clone());
            column.ok_or_else(|| PipelineError::unsupported("a condition on both streams, before they are joined,"))
        };
        let second_take: Vec<(FieldRef, String)> =
            second_take.iter().map(|name| Ok((named(name)?, own(name)?))).collect::<Result<_, PipelineError>>()?;
        if let Some((field, _)) = first_take.iter().find(|(field, _)| first.index_of(field.name()).is_err()) {
            return Err(PipelineError::unsupported(format!("a condition on {}", field.name())));
        }

        let bound = Bound { lower: join.lower_ns, upper: join.upper_ns };
        let lateness = plan.lateness_ns;
        let reach = after.max(join.span_ns().saturating_add(lateness).saturating_add(1));
        let window = Window { size_ns: reach, kind: Kind::Tumble, group: String::new(), device: None };
        let reach =
            Windows::new(&window, 0).ok_or_else(|| PipelineError::unsupported("a join within no time at all"))?;
        Ok(Self {
            streams: [plan.source.clone(), join.source.clone()],
            bound,
            lateness,
            outer: join.outer,
            first: Side::new(Needs { take: first_take, lookups: of_first, filter: first_filter, keep: first_keep }),
            second: Side::new(Needs {
                take: second_take,
                lookups: of_second,
                filter: second_filter,
                keep: second_keep,
            }),
            condition,
            matched: Vec::new(),
            columns,
            marks: Watermarks::default(),
            reach,
            heard: HashMap::default(),
            failed: Failed::new(),
        })
    }

    /// Name of the first stream.
    pub(crate) fn first_stream(&self) -> &str {
        let [first, _] = &self.streams;
        first
    }

    /// Takes rows of one of the streams, in the order of the log. Gives how many it took.
    pub(crate) fn ingest(&mut self, stream: &str, batch: &RecordBatch) -> Result<usize, PipelineError> {
        self.hear(batch)?;
        let [first, second] = &self.streams;
        if stream == first {
            self.first.take(batch, &mut self.failed)?;
        }
        if stream == second {
            self.second.take(batch, &mut self.failed)?;
        }
        Ok(batch.num_rows())
    }

    /// Takes note of devices and times.
    fn hear(&mut self, batch: &RecordBatch) -> Result<(), PipelineError> {
        let devices = named(batch, "device")?.as_string_opt::<i32>();
        let time =
            |name: &str| Ok::<_, PipelineError>(named(batch, name)?.as_primitive_opt::<TimestampNanosecondType>());
        let Some(((devices, ts), ingest)) = devices.zip(time("ts")?).zip(time("ts_ingest")?) else {
            return Err(PipelineError::unsupported("a stream without device and times"));
        };
        let mut current: Option<(&str, i64, i64)> = None;
        let mut note = |(name, ts, ingest): (&str, i64, i64)| {
            match self.heard.get_mut(name) {
                Some(at) => *at = (at.0.max(ts), at.1.max(ingest)),
                None => {
                    self.heard.insert(name.into(), (ts, ingest));
                }
            };
        };
        for ((name, ts), ingest) in devices.iter().zip(ts.values()).zip(ingest.values()) {
            // The schema says that there is a device in every row.
            let name = name.unwrap_or_default();
            current = match current {
                Some((same, newest, heard)) if same == name => Some((name, newest.max(*ts), heard.max(*ingest))),
                other => {
                    other.into_iter().for_each(&mut note);
                    Some((name, *ts, *ingest))
                }
            };
        }
        current.into_iter().for_each(note);
        Ok(())
    }

    /// The devices of which rows came since the last barrier, by name: whoever keeps watermarks of what comes out has
    /// to hear of all rows that come in.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        let heard = self.heard.iter();
        let mut heard: Vec<Heard> = heard
            .map(|(name, (newest, ingest))| Heard { name: name.clone(), newest: *newest, ingest: *ingest })
            .collect();
        heard.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        heard
    }

    /// A barrier of the log, whose time is `now`: gives joined rows to `emit`, with the columns that the query reads,
    /// `device` and `ts`; and returns what was late or failed. `keep`: so many devices are remembered.
    pub(crate) fn barrier(
        &mut self,
        now: Timestamp,
        keep: usize,
        emit: &mut dyn FnMut(RecordBatch) -> Result<(), PipelineError>,
    ) -> Result<Vec<LateRow>, PipelineError> {
        // By name: numbers must not depend on the order of the two streams' batches.
        let heard = self.heard();
        self.heard.clear();
        let mut devices: HashMap<Box<str>, u32> = HashMap::default();
        for Heard { name, newest, ingest } in heard {
            let id = self.marks.observe(&name, newest, ingest);
            devices.insert(name, id);
        }
        let mut late = [Late::new(), Late::new()];
        let [first_late, second_late] = &mut late;
        let (marks, lateness) = (&self.marks, self.lateness);
        let is_late = |id: u32, ts: i64| ts.saturating_add(lateness) < marks.frontier(id);
        let first = self.first.sorted(&devices, first_late, is_late)?;
        let second = self.second.sorted(&devices, second_late, is_late)?;
        let late = self.late_rows(&late);

        let mut matched = self.carried(&first);
        self.match_up(&first, &second, &mut matched, emit)?;
        self.marks.advance(now.0, self.reach);

        let Bound { lower, upper } = self.bound;
        let held = |rows: &Sorted, span: i64| -> BooleanArray {
            let places = rows.devices().values().iter().zip(rows.times().values());
            let until = |ts: &i64| ts.saturating_add(span).saturating_add(lateness);
            places.map(|(id, ts)| Some(until(ts) >= self.marks.frontier(*id))).collect()
        };
        let (first_held, second_held) = (held(&first, upper), held(&second, lower.saturating_neg()));
        if self.outer {
            let alone = first_held.values().iter().zip(&matched).zip(0_u32..);
            let alone: Vec<u32> =
                alone.filter(|((held, matched), _)| !*held && !**matched).map(|(_, row)| row).collect();
            for rows in alone.chunks(CHUNK) {
                emit(self.joined(&first, &second, UInt32Array::from(rows.to_vec()), new_nulls(rows.len()))?)?;
            }
            let mut held = first_held.values().iter();
            matched.retain(|_| held.next().unwrap_or_default());
        }
        self.matched = matched;
        self.first.hold(compute::filter_record_batch(&first.rows, &first_held)?);
        self.second.hold(compute::filter_record_batch(&second.rows, &second_held)?);
        if self.marks.crowded(keep) {
            let open = [&self.first, &self.second].map(|side| side::devices(side.held()).values().iter().copied());
            self.marks.forget(keep, &open.into_iter().flatten().collect());
        }
        Ok(late)
    }

    /// Whether a row of the first stream has had a match, for held rows and new ones together.
    fn carried(&mut self, first: &Sorted) -> Vec<bool> {
        let mut before = std::mem::take(&mut self.matched).into_iter();
        first.fresh.iter().map(|fresh| !fresh && before.next().unwrap_or_default()).collect()
    }

    /// Gives all pairs of which at least one row is new.
    fn match_up(
        &mut self,
        first: &Sorted,
        second: &Sorted,
        matched: &mut [bool],
        emit: &mut dyn FnMut(RecordBatch) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let mut failed = std::mem::take(&mut self.failed);
        let (mut ones, mut others) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
        let mut give = |ones: &mut Vec<u32>, others: &mut Vec<u32>| -> Result<(), PipelineError> {
            let pairs = std::mem::take(ones);
            let rows = self.joined(
                first,
                second,
                UInt32Array::from(pairs.clone()),
                UInt32Array::from(std::mem::take(others)),
            )?;
            let rows = match &self.condition {
                None => {
                    pairs.iter().filter_map(|row| matched.get_mut(*row as usize).map(|at| *at = true)).for_each(drop);
                    rows
                }
                Some(condition) => {
                    let mut bad = Vec::new();
                    let holds = condition.holds(&rows, &mut bad)?;
                    for (at, reason) in bad {
                        let row = pairs.get(at).map_or(0, |row| *row as usize);
                        let name = self.marks.name(first.devices().value(row)).unwrap_or_default().to_owned();
                        *failed.entry((name, first.times().value(row), reason)).or_default() += 1;
                    }
                    for (row, holds) in pairs.iter().zip(holds.values()) {
                        if let Some(at) = matched.get_mut(*row as usize) {
                            *at |= holds;
                        }
                    }
                    compute::filter_record_batch(&rows, &holds)?
                }
            };
            if rows.num_rows() > 0 { emit(rows) } else { Ok(()) }
        };
        matching::pairs(first.places(), second.places(), self.bound, |one, other| {
            ones.push(one);
            others.push(other);
            if ones.len() == CHUNK { give(&mut ones, &mut others) } else { Ok(()) }
        })?;
        if !ones.is_empty() {
            give(&mut ones, &mut others)?;
        }
        self.failed = failed;
        Ok(())
    }

    /// Joined rows: of the first side these, of the second those, or none where it is NULL.
    fn joined(
        &self,
        first: &Sorted,
        second: &Sorted,
        ones: UInt32Array,
        others: UInt32Array,
    ) -> Result<RecordBatch, PipelineError> {
        let name = |id: u32| self.marks.name(id).unwrap_or_default();
        let first_ids = first.devices();
        let mut fields = Vec::with_capacity(self.columns.len());
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.columns.len());
        for (field, from) in &self.columns {
            let array: ArrayRef = match from {
                Place::Device => Arc::new(StringArray::from_iter_values(
                    ones.values().iter().map(|row| name(first_ids.value(*row as usize))),
                )),
                Place::SecondDevice => Arc::new(StringArray::from_iter(
                    others.iter().map(|row| row.map(|row| name(second.devices().value(row as usize)))),
                )),
                Place::Time => compute::cast(&compute::take(first.times(), &ones, None)?, field.data_type())?,
                Place::SecondTime => compute::cast(&compute::take(second.times(), &others, None)?, field.data_type())?,
                Place::First(at) => compute::take(first.rows.column(*at), &ones, None)?,
                Place::Second(at) => compute::take(second.rows.column(*at), &others, None)?,
            };
            arrays.push(array);
            fields.push(Arc::clone(field));
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
    }

    fn late_rows(&mut self, late: &[Late; 2]) -> Vec<LateRow> {
        let mut rows = Vec::new();
        for (late, stream) in late.iter().zip(&self.streams) {
            for (id, (records, from, to)) in late {
                rows.push(LateRow {
                    device: self.marks.name(*id).unwrap_or_default().to_owned(),
                    window_start: Timestamp(*from),
                    window_end: Timestamp(to.saturating_add(1)),
                    records: *records,
                    reason: late_reason(stream),
                });
            }
        }
        rows
    }

    /// Takes what failed since the last barrier.
    pub(crate) fn take_failed(&mut self) -> Vec<LateRow> {
        let failed = std::mem::take(&mut self.failed).into_iter();
        let row = |((device, ts, reason), records)| {
            let at = Timestamp(ts);
            LateRow { device, window_start: at, window_end: at, records, reason }
        };
        failed.map(row).collect()
    }

    /// Times whose records are needed, of either stream: those that joined rows at `open` times may be made of, and the
    /// hours of held rows.
    pub(crate) fn needed(&self, open: Vec<(i64, i64)>) -> Vec<(i64, i64)> {
        let Bound { lower, upper } = self.bound;
        let widened = |(from, to): (i64, i64)| (from.saturating_add(lower.min(0)), to.saturating_add(upper.max(0)));
        let held = [self.first.held(), self.second.held()].map(side::times);
        let hours: BTreeSet<i64> = held.iter().flat_map(|times| times.values()).map(|ts| ts.div_euclid(HOUR)).collect();
        let hours =
            hours.into_iter().map(|hour| (hour.saturating_mul(HOUR), hour.saturating_add(1).saturating_mul(HOUR) - 1));
        open.into_iter().map(widened).chain(hours).collect()
    }

    /// Devices known.
    pub(crate) fn devices(&self) -> usize {
        self.marks.len()
    }

    /// Bytes held.
    pub(crate) fn size(&self) -> usize {
        self.first.size() + self.second.size() + self.matched.len()
    }
}

/// Why a row of a stream was late, as [`LateRow::reason`] says it.
pub(crate) fn late_reason(stream: &str) -> String {
    format!("late: a row of {stream} came after the rows of this device that it may be joined to were given up")
}

fn new_nulls(rows: usize) -> UInt32Array {
    UInt32Array::from(vec![None; rows])
}
