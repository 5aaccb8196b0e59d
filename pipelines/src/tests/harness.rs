//! A small log of rows and barriers, a run of it through a pipeline, and what plain DataFusion makes of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::*;
use arrow::compute;
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use device::time::{SECOND, Timestamp};
use futures::executor::block_on;
use sql::{PipelinePlan, SourceFile};

use crate::{Closed, HOLD, LateRow, Pipeline, SLACK};

pub(crate) const MINUTE: i64 = 60 * SECOND;
pub(crate) const LATENESS: i64 = 10 * SECOND;
/// 2026-01-01
pub(crate) const START: i64 = 1_767_225_600 * SECOND;

/// A row of the stream `t`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) device: String,
    pub(crate) ts: i64,
    pub(crate) ingest: i64,
    pub(crate) v: Option<f64>,
    pub(crate) i: Option<i64>,
    pub(crate) s: Option<String>,
    pub(crate) b: Option<bool>,
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Row(Row),
    Barrier(i64),
}

/// The same pseudo-random numbers everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

pub(crate) fn plan(select: &str) -> (PipelinePlan, SchemaRef) {
    plan_with(select, LATENESS)
}

pub(crate) fn plan_with(select: &str, lateness: i64) -> (PipelinePlan, SchemaRef) {
    plan_of("v DOUBLE, i BIGINT, s TEXT, b BOOLEAN", select, lateness)
}

/// Columns of the stream `t`, in an order and of types that fit the values of a [`Row`], and others between them.
pub(crate) fn random_columns(random: &mut Random) -> String {
    let mut left = vec![
        format!("v {}", ["DOUBLE", "DOUBLE", "FLOAT"][random.below(3) as usize]),
        format!("i {}", ["BIGINT", "INTEGER", "SMALLINT", "TINYINT"][random.below(4) as usize]),
        "s TEXT".to_owned(),
        "b BOOLEAN".to_owned(),
    ];
    for other in ["x1 DOUBLE", "x2 TEXT", "x3 DOUBLE[]", "x4 BYTEA", "x5 BIGINT UNSIGNED"] {
        if random.below(3) == 0 {
            left.push(other.to_owned());
        }
    }
    let mut columns = Vec::new();
    while !left.is_empty() {
        columns.push(left.swap_remove(random.below(left.len() as u64) as usize));
    }
    columns.join(", ")
}

pub(crate) fn plan_of(columns: &str, select: &str, lateness: i64) -> (PipelinePlan, SchemaRef) {
    let text = format!(
        "CREATE STREAM t ({columns});
         CREATE PIPELINE p WITH (lateness = INTERVAL '{} seconds') AS {select};",
        lateness / SECOND
    );
    let files = [SourceFile { name: "p.sql".to_owned(), text }];
    let project = sql::check(&files).unwrap_or_else(|d| panic!("{select}: {d:#?}"));
    let schema = storage::schema::stream_schema(&project.stream("t").unwrap().stream);
    (project.pipeline("p").unwrap().clone(), schema)
}

pub(crate) fn batch(schema: &SchemaRef, rows: &[Row]) -> RecordBatch {
    let n = rows.len();
    let times = |of: fn(&Row) -> i64| -> ArrayRef {
        Arc::new(TimestampNanosecondArray::from_iter_values(rows.iter().map(of)).with_timezone("UTC"))
    };
    let columns = schema
        .fields()
        .iter()
        .map(|field| -> ArrayRef {
            match field.name().as_str() {
                "device" => Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.device))),
                "ts" | "ts_device" => times(|r| r.ts),
                "ts_ingest" => times(|r| r.ingest),
                "epoch" => Arc::new(Int64Array::from_value(1, n)),
                "seq" => Arc::new(Int64Array::from_iter_values(0..n as i64)),
                "assured" => Arc::new(BooleanArray::from(vec![true; n])),
                "v" => compute::cast(&rows.iter().map(|r| r.v).collect::<Float64Array>(), field.data_type()).unwrap(),
                "i" => compute::cast(&rows.iter().map(|r| r.i).collect::<Int64Array>(), field.data_type()).unwrap(),
                "s" => Arc::new(rows.iter().map(|r| r.s.clone()).collect::<StringArray>()),
                "b" => Arc::new(rows.iter().map(|r| r.b).collect::<BooleanArray>()),
                _ if field.is_nullable() => new_null_array(field.data_type(), n),
                _ => compute::cast(&Int64Array::from_value(0, n), field.data_type()).unwrap(),
            }
        })
        .collect();
    RecordBatch::try_new(schema.clone(), columns).unwrap()
}

/// Twelve devices for ten minutes: disorder, a laggard, one that goes for five minutes and brings it all back, one
/// that goes for good.
pub(crate) fn fleet(seed: u64) -> Vec<Event> {
    let mut random = Random(seed);
    let mut arrivals: Vec<(i64, Row)> = Vec::new();
    for device in 0..12_i64 {
        for second in 0..600_i64 {
            let ts = START + second * SECOND + device * 1_000_003;
            let delay = match device {
                0 => 45 * SECOND,
                1 if (200..500).contains(&second) => (500 - second) * SECOND + second * 1000,
                2 if second > 100 => continue,
                _ => (random.below(100) < 5) as i64 * random.below(60) as i64 * SECOND,
            };
            let ingest = ts + delay + random.below(SECOND as u64 / 10) as i64;
            let i = random.below(20) as i64;
            let row = Row {
                device: format!("d{device:02}"),
                ts,
                ingest,
                v: (random.below(50) > 0).then(|| random.below(1_000_000) as f64 / 1000.0 - 300.0),
                i: (i > 0).then_some(i - 10),
                s: (random.below(9) > 0).then(|| format!("s{}", random.below(4))),
                b: (random.below(7) > 0).then(|| random.below(3) > 0),
            };
            arrivals.push((ingest, row));
        }
    }
    arrivals.sort_by_key(|(at, row)| (*at, row.device.clone()));
    with_barriers(arrivals, 15 * SECOND)
}

/// Barriers each `every`, and at the end one after everything has been silent for long.
pub(crate) fn with_barriers(arrivals: Vec<(i64, Row)>, every: i64) -> Vec<Event> {
    let mut events = Vec::new();
    let mut next = arrivals.first().map_or(START, |a| a.0) + every;
    let mut last = next;
    for (at, row) in arrivals {
        while at >= next {
            events.push(Event::Barrier(next));
            next += every;
        }
        last = at;
        events.push(Event::Row(row));
    }
    events.push(Event::Barrier(last + every));
    events.push(Event::Barrier(last + HOLD + every));
    events
}

/// What a run gave.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) closed: Vec<(i64, Vec<RecordBatch>)>,
    pub(crate) late: Vec<LateRow>,
    /// What was still open before the last barrier.
    pub(crate) provisional: Vec<RecordBatch>,
}

impl Outcome {
    pub(crate) fn batches(&self) -> Vec<RecordBatch> {
        self.closed.iter().flat_map(|(_, b)| b.clone()).collect()
    }
}

/// How a run is done; none of it may show in the result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// Rows per batch given to `ingest`.
    pub(crate) chop: usize,
    /// Rows gathered before aggregating. Part of the definition of the arithmetic: must be equal to compare bits.
    pub(crate) gather: usize,
    /// Checkpoint and go on with a restored pipeline at each n-th barrier.
    pub(crate) restore_each: Option<usize>,
}

pub(crate) fn run(plan: &PipelinePlan, schema: &SchemaRef, events: &[Event], how: How) -> Outcome {
    let make = |p: Pipeline| {
        let mut p = p;
        p.gather = how.gather;
        p
    };
    let mut pipeline = make(Pipeline::new(plan, schema.clone()).unwrap());
    let mut outcome = Outcome::default();
    let mut rows: Vec<Row> = Vec::new();
    let mut barriers = 0;
    for (at, event) in events.iter().enumerate() {
        let feed = |pipeline: &mut Pipeline, rows: &mut Vec<Row>| {
            if !rows.is_empty() {
                pipeline.ingest(&batch(schema, rows)).unwrap();
                rows.clear();
            }
        };
        match event {
            Event::Row(row) => {
                rows.push(row.clone());
                if rows.len() >= how.chop {
                    feed(&mut pipeline, &mut rows);
                }
            }
            Event::Barrier(now) => {
                feed(&mut pipeline, &mut rows);
                let Closed { rows, late } = pipeline.barrier(Timestamp(*now)).unwrap();
                outcome.closed.push((*now, rows));
                outcome.late.extend(late);
                if at + 2 == events.len() {
                    outcome.provisional = pipeline.provisional().unwrap();
                }
                barriers += 1;
                if how.restore_each.is_some_and(|n| barriers % n == 0) {
                    let state = pipeline.checkpoint().unwrap();
                    assert_eq!(state, pipeline.checkpoint().unwrap(), "a checkpoint changes nothing");
                    assert!(Pipeline::matches(plan, &state).unwrap());
                    pipeline = make(Pipeline::restore(plan, schema.clone(), &state).unwrap());
                    assert_eq!(state, pipeline.checkpoint().unwrap(), "what is restored is what was saved");
                }
            }
        }
    }
    outcome
}

/// The rule for late rows once more, row by row: which rows count, which are late, and at which barrier each window
/// of a device is closed.
#[derive(Debug, Default)]
pub(crate) struct Reference {
    pub(crate) kept: Vec<Row>,
    pub(crate) late: Vec<Row>,
    /// Barrier at which (device, window start) comes out.
    pub(crate) closed_at: BTreeMap<(String, i64), i64>,
}

pub(crate) fn reference(events: &[Event], size: i64, lateness: i64) -> Reference {
    let mut out = Reference::default();
    let mut newest: HashMap<String, (i64, i64)> = HashMap::new();
    let mut frontier: HashMap<String, i64> = HashMap::new();
    for event in events {
        match event {
            Event::Row(row) => {
                let start = row.ts.div_euclid(size) * size;
                let at = newest.entry(row.device.clone()).or_insert((i64::MIN, i64::MIN));
                *at = (at.0.max(row.ts), at.1.max(row.ingest));
                if frontier.get(&row.device).is_some_and(|f| *f >= start + size + lateness) {
                    out.late.push(row.clone());
                } else {
                    out.kept.push(row.clone());
                    out.closed_at.entry((row.device.clone(), start)).or_insert(i64::MAX);
                }
            }
            Event::Barrier(now) => {
                for (device, (ts, heard)) in &newest {
                    let mut reached = ts - SLACK;
                    if now - heard >= HOLD {
                        reached = reached.max(ts + size + lateness);
                    }
                    let at = frontier.entry(device.clone()).or_insert(i64::MIN);
                    *at = (*at).max(reached.min(*now));
                }
                for ((device, start), at) in &mut out.closed_at {
                    if *at == i64::MAX && frontier[device] >= start + size + lateness {
                        *at = *now;
                    }
                }
            }
        }
    }
    out
}

/// Plain DataFusion over rows.
pub(crate) fn plain(schema: &SchemaRef, rows: &[Row], select: &str) -> Vec<RecordBatch> {
    let select = select.replace("tumble(ts, INTERVAL '1 minute')", "date_bin(INTERVAL '1 minute', ts)");
    let context = SessionContext::new();
    let table = MemTable::try_new(schema.clone(), vec![vec![batch(schema, rows)]]).unwrap();
    context.register_table("t", Arc::new(table)).unwrap();
    // DataFusion's own execution needs a runtime where it repartitions.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { context.sql(&select).await.unwrap().collect().await.unwrap() })
}

/// Planning alone needs no runtime.
pub(crate) fn sorted(batches: &[RecordBatch], keys: usize) -> RecordBatch {
    let all = compute::concat_batches(&batches[0].schema(), batches).unwrap();
    let columns: Vec<_> =
        all.columns()[..keys].iter().map(|c| compute::SortColumn { values: c.clone(), options: None }).collect();
    let order = compute::lexsort_to_indices(&columns, None).unwrap();
    block_on(async { compute::take_record_batch(&all, &order).unwrap() })
}

/// How near two results must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Near {
    Equal,
    /// Relative, for sums whose order differs.
    Relative(f64),
    /// Absolute, for estimates.
    Absolute(f64),
    /// The same elements in any order.
    Set,
}

pub(crate) fn compare(what: &str, got: &ArrayRef, want: &ArrayRef, near: Near) {
    assert_eq!(got.data_type(), want.data_type(), "{what}");
    assert_eq!(got.len(), want.len(), "{what}");
    if near == Near::Set {
        let (got, want) = (got.as_list::<i32>(), want.as_list::<i32>());
        for row in 0..got.len() {
            let elements = |a: ArrayRef| {
                let mut texts: Vec<String> =
                    (0..a.len()).map(|i| arrow::util::display::array_value_to_string(&a, i).unwrap()).collect();
                texts.sort();
                texts
            };
            assert_eq!(elements(got.value(row)), elements(want.value(row)), "{what} row {row}");
        }
        return;
    }
    let float = |a: &ArrayRef| {
        matches!(a.data_type(), DataType::Float64 | DataType::Float32)
            .then(|| compute::cast(a, &DataType::Float64).unwrap().as_primitive::<Float64Type>().clone())
    };
    let (Some(got), Some(want)) = (float(got), float(want)) else {
        assert_eq!(got, want, "{what}");
        return;
    };
    for (row, (got, want)) in got.iter().zip(want.iter()).enumerate() {
        let (Some(got), Some(want)) = (got, want) else {
            assert_eq!(got, want, "{what} row {row}");
            continue;
        };
        let bound = match near {
            Near::Relative(bound) => bound * want.abs().max(1.0),
            Near::Absolute(bound) => bound,
            Near::Equal | Near::Set => 0.0,
        };
        let fine = got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= bound;
        assert!(fine, "{what} row {row}: {got} is not {want}");
    }
}
