//! One of two streams that are joined: what comes in of it, and what is held of it.
//!
//! Rows are looked up in reference tables and filtered as they come, so that only those are kept which can become part
//! of a result, and of them only the columns that are needed later. Held rows are sorted by device, time, and order in
//! the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{self, interleave_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef, TimestampNanosecondType, UInt32Type};
use datafusion::common::HashMap;
use datafusion::error::DataFusionError;

use super::matching::Rows;
use crate::error::PipelineError;
use crate::lookup::{self, Lookup};
use crate::stage::Stage;

/// Rows on which an expression failed, by device, time and reason.
pub(crate) type Failed = BTreeMap<(String, i64, String), u64>;

/// Rows that came too late, by device: how many, the earliest and the latest time.
pub(crate) type Late = BTreeMap<u32, (u64, i64, i64)>;

/// Columns of held rows that stand before all others: the device's number and the time.
const DEVICE: usize = 0;
const TIME: usize = 1;
/// How many they are.
pub(super) const OWN: usize = 2;

/// What there is to know of a side before rows come.
pub(super) struct Needs {
    /// Columns to take from the stream: as the query calls them, and their names in the stream.
    pub(super) take: Vec<(FieldRef, String)>,
    pub(super) lookups: Vec<Lookup>,
    /// What rows must fulfil; its columns are at these places of the source.
    pub(super) filter: Option<Condition>,
    /// Columns to hold, as the query calls them.
    pub(super) keep: Vec<FieldRef>,
}

/// A condition of the query, over columns that are known by name.
#[derive(Debug)]
pub(super) struct Condition {
    stage: Stage,
    columns: Vec<FieldRef>,
}

impl Condition {
    /// `source` are the columns that the stage's places count.
    pub(super) fn new(stage: Stage, source: &Schema) -> Result<Self, PipelineError> {
        let field = |at: &usize| source.fields().get(*at).cloned();
        let columns =
            stage.columns().iter().map(|at| field(at).ok_or_else(|| PipelineError::unsupported("a new column")));
        Ok(Self { columns: columns.collect::<Result<_, _>>()?, stage })
    }

    /// The columns it reads.
    pub(super) fn columns(&self) -> &[FieldRef] {
        &self.columns
    }

    /// For each row whether the condition holds. Rows on which it fails go to `failed`, for them it does not hold.
    pub(super) fn holds(
        &self,
        batch: &RecordBatch,
        failed: &mut Vec<(usize, String)>,
    ) -> Result<BooleanArray, PipelineError> {
        let columns = self.columns.iter().map(|field| Ok(Arc::clone(named(batch, field.name())?)));
        let fields: Vec<FieldRef> = self.columns.clone();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let columns = columns.collect::<Result<Vec<_>, PipelineError>>()?;
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
        let mut parts: Vec<BooleanArray> = Vec::new();
        self.evaluate(&batch, 0, &mut parts, failed)?;
        let parts: Vec<&dyn Array> = parts.iter().map(|part| part as &dyn Array).collect();
        Ok(match parts.as_slice() {
            [] => BooleanArray::from(Vec::<bool>::new()),
            parts => compute::concat(parts)?.as_boolean().clone(),
        })
    }

    /// Evaluates the whole, or else each half.
    fn evaluate(
        &self,
        batch: &RecordBatch,
        at: usize,
        parts: &mut Vec<BooleanArray>,
        failed: &mut Vec<(usize, String)>,
    ) -> Result<(), PipelineError> {
        let rows = batch.num_rows();
        let error = match self.stage.run(batch.clone(), None) {
            Ok((result, _)) => {
                let holds = result.columns().first().and_then(|c| c.as_boolean_opt());
                let holds =
                    holds.ok_or_else(|| DataFusionError::Internal("a condition without a result".to_owned()))?;
                let whole = holds.null_count() == 0;
                parts.push(if whole { holds.clone() } else { compute::prep_null_mask_filter(holds) });
                return Ok(());
            }
            Err(error) => error,
        };
        if rows <= 1 {
            failed.push((at, format!("evaluation failed: {}", error.strip_backtrace())));
            parts.push(BooleanArray::from(vec![false; rows]));
            return Ok(());
        }
        let half = rows / 2;
        self.evaluate(&batch.slice(0, half), at, parts, failed)?;
        self.evaluate(&batch.slice(half, rows - half), at + half, parts, failed)
    }
}

/// What came of a stream since the last barrier, and what is held of it from before.
pub(super) struct Side {
    needs: Needs,
    /// Device by name, time, then [`Needs::keep`], in the order of the log.
    new: Vec<RecordBatch>,
    /// Device by number, time, then [`Needs::keep`]; sorted by the first two.
    held: RecordBatch,
}

/// The rows of a side at a barrier, sorted.
pub(super) struct Sorted {
    pub(super) rows: RecordBatch,
    pub(super) fresh: Vec<bool>,
}

impl Sorted {
    pub(super) fn devices(&self) -> &UInt32Array {
        devices(&self.rows)
    }

    pub(super) fn times(&self) -> &Int64Array {
        times(&self.rows)
    }

    pub(super) fn places(&self) -> Rows<'_> {
        Rows { devices: self.devices().values(), times: self.times().values(), fresh: &self.fresh }
    }
}

impl Side {
    pub(super) fn new(needs: Needs) -> Self {
        let held = RecordBatch::new_empty(held_schema(&needs.keep));
        Self { needs, new: Vec::new(), held }
    }

    /// The columns of held rows.
    pub(super) fn schema(&self) -> SchemaRef {
        self.held.schema()
    }

    /// The rows that are held.
    pub(super) fn held(&self) -> &RecordBatch {
        &self.held
    }

    /// Rows to hold in the place of all others.
    pub(super) fn hold(&mut self, rows: RecordBatch) {
        self.held = rows;
    }

    /// Bytes in memory.
    pub(super) fn size(&self) -> usize {
        self.new.iter().chain([&self.held]).map(RecordBatch::get_array_memory_size).sum()
    }

    /// Takes rows of the stream, in the order of the log.
    pub(super) fn take(&mut self, batch: &RecordBatch, failed: &mut Failed) -> Result<(), PipelineError> {
        let Needs { take, lookups, filter, keep } = &self.needs;
        let device = typed(batch, "device", &DataType::Utf8)?;
        let time = typed(batch, "ts", &storage::schema::timestamp())?;
        let mut fields: Vec<FieldRef> = Vec::with_capacity(take.len());
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(take.len());
        for (field, own) in take {
            columns.push(Arc::clone(typed(batch, own, field.data_type())?));
            fields.push(Arc::clone(field));
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let taken = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
        let taken = lookup::extend(&taken, lookups)?;

        let times: ArrayRef = Arc::new(time.as_primitive::<TimestampNanosecondType>().reinterpret_cast::<Int64Type>());
        let mut kept = vec![Arc::clone(device), Arc::clone(&times)];
        for field in keep {
            kept.push(Arc::clone(named(&taken, field.name())?));
        }
        let mut fields = vec![Arc::new(Field::new("(device)", DataType::Utf8, false))];
        fields.extend(held_schema(keep).fields().iter().skip(1).cloned());
        let mut kept = RecordBatch::try_new(Arc::new(Schema::new(fields)), kept)?;
        if let Some(filter) = filter {
            let mut bad = Vec::new();
            let holds = filter.holds(&taken, &mut bad)?;
            for (row, reason) in bad {
                let name = device.as_string::<i32>().value(row).to_owned();
                let ts = times.as_primitive::<Int64Type>().value(row);
                *failed.entry((name, ts, reason)).or_default() += 1;
            }
            if holds.true_count() < kept.num_rows() {
                kept = compute::filter_record_batch(&kept, &holds)?;
            }
        }
        if kept.num_rows() > 0 {
            self.new.push(kept);
        }
        Ok(())
    }

    /// All rows, those that are too late left out and counted.
    pub(super) fn sorted(
        &mut self,
        devices: &HashMap<Box<str>, u32>,
        late: &mut Late,
        is_late: impl Fn(u32, i64) -> bool,
    ) -> Result<Sorted, PipelineError> {
        let held = self.held.clone();
        let new = std::mem::take(&mut self.new);
        let Some(first) = new.first() else {
            return Ok(Sorted { fresh: vec![false; held.num_rows()], rows: held });
        };
        let new = compute::concat_batches(&first.schema(), &new)?;
        let names = new.column(DEVICE).as_string::<i32>();
        let times = new.column(TIME).as_primitive::<Int64Type>().values();
        let mut ids = Vec::with_capacity(new.num_rows());
        let mut last: (&str, u32) = ("", 0);
        let mut known = false;
        for name in names.iter().flatten() {
            if !known || last.0 != name {
                let id = devices.get(name).copied();
                last = (name, id.ok_or_else(|| DataFusionError::Internal("a device that was not heard".to_owned()))?);
                known = true;
            }
            ids.push(last.1);
        }
        let mut order: Vec<(u32, i64, usize)> = Vec::with_capacity(ids.len());
        for (row, (id, ts)) in ids.iter().zip(times).enumerate() {
            if is_late(*id, *ts) {
                let (count, from, to) = late.entry(*id).or_insert((0, *ts, *ts));
                (*count, *from, *to) = (*count + 1, (*from).min(*ts), (*to).max(*ts));
            } else {
                order.push((*id, *ts, row));
            }
        }
        order.sort_unstable();
        let mut columns = new.columns().to_vec();
        if let Some(device) = columns.get_mut(DEVICE) {
            *device = Arc::new(UInt32Array::from(ids));
        }
        let new = RecordBatch::try_new(held.schema(), columns)?;

        // Of rows at the same time, those that came earlier stand first.
        let before = Sorted { rows: held, fresh: Vec::new() };
        let (ids, times) = (before.devices().values(), before.times().values());
        let mut places = Vec::with_capacity(ids.len() + order.len());
        let mut fresh = Vec::with_capacity(places.capacity());
        let mut at = 0;
        for (id, ts, row) in order {
            while ids.get(at).zip(times.get(at)).is_some_and(|(i, t)| (*i, *t) <= (id, ts)) {
                places.push((0, at));
                fresh.push(false);
                at += 1;
            }
            places.push((1, row));
            fresh.push(true);
        }
        places.extend((at..ids.len()).map(|at| (0, at)));
        fresh.resize(places.len(), false);
        let rows = interleave_record_batch(&[&before.rows, &new], &places)?;
        Ok(Sorted { rows, fresh })
    }
}

/// Numbers of the devices of held rows.
pub(super) fn devices(held: &RecordBatch) -> &UInt32Array {
    held.column(DEVICE).as_primitive::<UInt32Type>()
}

/// Times of held rows.
pub(super) fn times(held: &RecordBatch) -> &Int64Array {
    held.column(TIME).as_primitive::<Int64Type>()
}

/// Device by number, time, then what is kept.
fn held_schema(keep: &[FieldRef]) -> SchemaRef {
    let mut fields = vec![
        Arc::new(Field::new("(device)", DataType::UInt32, false)),
        Arc::new(Field::new("(time)", DataType::Int64, false)),
    ];
    fields.extend(keep.iter().cloned());
    Arc::new(Schema::new(fields))
}

pub(super) fn named<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, PipelineError> {
    let missing = || DataFusionError::Internal(format!("rows without the column {name}"));
    Ok(batch.column_by_name(name).ok_or_else(missing)?)
}

fn typed<'a>(batch: &'a RecordBatch, name: &str, expected: &DataType) -> Result<&'a ArrayRef, PipelineError> {
    let found = batch.column_by_name(name);
    found.filter(|c| c.data_type() == expected).ok_or_else(|| PipelineError::Source {
        column: name.to_owned(),
        found: found.map_or_else(|| "missing".to_owned(), |c| c.data_type().to_string()),
        expected: expected.to_string(),
    })
}
