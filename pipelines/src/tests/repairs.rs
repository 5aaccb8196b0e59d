//! Repairs beside a pipeline that runs: random queries over random logs, with cuts, repairs of random spans, and
//! pipelines that begin late. After a repair of everything the table is what plain DataFusion makes of all rows, late
//! ones included, as far as windows are closed.
//!
//! `WEIR_CASES=2000` runs so many seeds, `WEIR_SEED=17` one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::*;
use arrow::compute;
use arrow::datatypes::{Field, Schema, SchemaRef, TimestampNanosecondType};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::SessionContext;
use device::id::ShardId;
use device::seq::Barrier;
use device::time::{SECOND, Timestamp};
use sql::{Project, SourceFile};
use storage::columns;
use storage::layout::Granularity;
use storage::parquet::{TableRows, write_cut};
use storage::store::Store;
use storage::table::TableStore;

use super::differential::{Query, Windowing, collect, groups, log, query};
use super::harness::*;
use crate::Pipeline;
use crate::heard::Heard;
use crate::repair::{RepairError, Totals, repair, widen};
use crate::runner::Stand;

const CASES: u64 = 16;
pub(super) const SHARD: ShardId = ShardId(0);
pub(super) const ALL: std::ops::Range<i64> = i64::MIN..i64::MAX;

/// A shard with one stream `t` and one pipeline `p`, as a runner would drive it.
pub(super) struct World {
    pub(super) project: Arc<Project>,
    pub(super) schema: SchemaRef,
    pub(super) pipeline: Option<Pipeline>,
    pub(super) heard: Heard,
    pub(super) tables: TableStore,
    pub(super) folder: tempfile::TempDir,
    pub(super) barrier: Barrier,
    pub(super) cut: Barrier,
    pub(super) before: Barrier,
    pub(super) rows: Vec<RecordBatch>,
    pub(super) results: Vec<RecordBatch>,
}

pub(super) fn project(select: &str, more: &str) -> Arc<Project> {
    let text = format!(
        "CREATE STREAM t (v DOUBLE, i BIGINT, s TEXT, b BOOLEAN);
         CREATE PIPELINE p WITH ({more}) AS {select};"
    );
    let files = [SourceFile { name: "p.sql".to_owned(), text }];
    Arc::new(sql::check(&files).unwrap_or_else(|d| panic!("{select}: {d:#?}")))
}

pub(super) fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

impl World {
    pub(super) fn new(project: Arc<Project>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tables = TableStore::open(Store::scratch(folder.path()).unwrap());
        let schema = storage::schema::stream_schema(&project.stream("t").unwrap().stream);
        let heard = Heard::default();
        let (rows, results) = (Vec::new(), Vec::new());
        let (barrier, cut, before) = (Barrier(0), Barrier(0), Barrier(0));
        Self { project, schema, pipeline: None, heard, tables, folder, barrier, cut, before, rows, results }
    }

    /// The pipeline begins, as it is in `project`.
    pub(super) fn begin(&mut self, project: Arc<Project>) {
        let plan = project.pipeline("p").unwrap();
        self.pipeline = Some(Pipeline::begin(plan, self.schema.clone(), Some(&self.heard)).unwrap());
        self.project = project;
    }

    pub(super) fn ingest(&mut self, rows: RecordBatch) {
        self.heard.observe(&rows).unwrap();
        if let Some(pipeline) = &mut self.pipeline {
            pipeline.ingest(&rows).unwrap();
        }
        self.rows.push(rows);
    }

    pub(super) fn barrier(&mut self, now: i64) {
        self.barrier = self.barrier.next();
        self.heard.barrier(now);
        if let Some(pipeline) = &mut self.pipeline {
            self.results.extend(pipeline.barrier(Timestamp(now)).unwrap().rows);
            let state = pipeline.checkpoint().unwrap();
            let plan = self.project.pipeline("p").unwrap();
            *pipeline = Pipeline::restore(plan, self.schema.clone(), &state).unwrap();
        }
    }

    /// Files of everything up to the last barrier.
    pub(super) fn cut(&mut self) {
        let plan = self.project.pipeline("p").unwrap();
        let table = |table: &str, time: &str, granularity, batches| TableRows {
            table: table.to_owned(),
            version: "1".to_owned(),
            time_column: time.to_owned(),
            granularity,
            batches,
        };
        let stream = table("t", "ts", Granularity::Hour, std::mem::take(&mut self.rows));
        let of_result = crate::output::granularity(plan.partition);
        let result = table("p", &plan.time_column, of_result, std::mem::take(&mut self.results));
        wait(write_cut(self.tables.store(), SHARD, self.cut, self.barrier, vec![stream, result])).unwrap();
        (self.before, self.cut) = (self.cut, self.barrier);
    }

    pub(super) fn stand(&self) -> Stand {
        let passed = self.pipeline.as_ref().and_then(Pipeline::passed).map(Arc::new);
        Stand { shard: SHARD, barrier: self.cut, before: self.before, project: self.project.clone(), passed }
    }

    pub(super) fn repair(&self, span: std::ops::Range<i64>) -> Result<Totals, RepairError> {
        let memory = Arc::new(RuntimeEnv::default());
        let span = widen(span, crate::output::granularity(self.project.pipeline("p").unwrap().partition));
        wait(repair(&self.tables, &[self.stand()], "p", span, &memory, &mut |_| true))
    }

    /// The table as a reader sees it who knows the rule of names.
    pub(super) fn table(&self) -> RecordBatch {
        let output = columns::stored_schema(&self.project.pipeline("p").unwrap().output);
        let found = wait(async {
            let Some(provider) = self.tables.provider("p", None).await.unwrap() else { return Vec::new() };
            SessionContext::new().read_table(provider).unwrap().collect().await.unwrap()
        });
        let found: Vec<RecordBatch> = found.iter().map(|rows| columns::fit(rows, &output).unwrap()).collect();
        compute::concat_batches(&output, &found).unwrap()
    }
}

/// All rows with all their windows: nothing is late.
fn everything(rows: &[Row], windowing: Windowing, keys: &HashMap<usize, String>) -> Vec<(usize, i64, i64)> {
    let size = windowing.size();
    let mut all = Vec::new();
    let mut by_group: BTreeMap<(&str, &str), Vec<(i64, usize)>> = BTreeMap::new();
    for (at, row) in rows.iter().enumerate() {
        let Some(key) = keys.get(&at) else { continue };
        match windowing {
            Windowing::Session(_) => by_group.entry((&row.device, key)).or_default().push((row.ts, at)),
            _ => all.extend(windowing.starts(row.ts).into_iter().map(|start| (at, start, start + size))),
        }
    }
    for mut of_group in by_group.into_values() {
        of_group.sort_unstable();
        let mut open: Vec<(i64, usize)> = Vec::new();
        let mut close = |open: &mut Vec<(i64, usize)>| {
            if let (Some(first), Some(last)) = (open.first().copied(), open.last().copied()) {
                all.extend(open.drain(..).map(|(_, at)| (at, first.0, last.0 + size)));
            }
        };
        for (ts, at) in of_group {
            if open.last().is_some_and(|(last, _)| ts >= last + size) {
                close(&mut open);
            }
            open.push((ts, at));
        }
        close(&mut open);
    }
    all
}

/// What plain DataFusion makes of those rows in those windows.
fn wanted(output: &SchemaRef, all: &RecordBatch, kept: &[(usize, i64, i64)], query: &Query) -> RecordBatch {
    let taken = UInt32Array::from_iter_values(kept.iter().map(|(row, ..)| *row as u32));
    let taken = compute::take_record_batch(all, &taken).unwrap();
    let times = |of: fn(&(usize, i64, i64)) -> i64| -> ArrayRef {
        Arc::new(TimestampNanosecondArray::from_iter_values(kept.iter().map(of)).with_timezone("UTC"))
    };
    let (mut fields, mut columns) = (all.schema().fields().to_vec(), taken.columns().to_vec());
    for (name, column) in [("w", times(|k| k.1)), ("we", times(|k| k.2))] {
        fields.push(Arc::new(Field::new(name, column.data_type().clone(), false)));
        columns.push(column);
    }
    let taken = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let text = query.text.replace("{W}", "w").replace("{END}", "max(we)");
    columns::fit(&collect(output, taken, &text), &columns::stored_schema(output)).unwrap()
}

fn keys_of(rows: &RecordBatch, keys: usize) -> Vec<String> {
    let text = |row| {
        let shown = |c: &ArrayRef| arrow::util::display::array_value_to_string(c, row).unwrap() + "|";
        rows.columns()[..keys].iter().map(shown).collect::<String>()
    };
    let mut all: Vec<String> = (0..rows.num_rows()).map(text).collect();
    all.sort();
    all
}

fn equal(what: &str, got: &RecordBatch, want: &RecordBatch, query: &Query) {
    let keys = 2 + query.keys.len();
    assert_eq!(keys_of(got, keys), keys_of(want, keys), "{what}: which rows");
    let (got, want) = (sorted(std::slice::from_ref(got), keys), sorted(std::slice::from_ref(want), keys));
    for (at, near) in query.near.iter().enumerate() {
        compare(&format!("{what}: column {at}"), got.column(at), want.column(at), *near);
    }
}

fn case(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let windowing = Windowing::random(&mut random);
    let lateness = random.below(40) as i64 * SECOND;
    let query = query(&mut random, true);
    let events = log(&mut random);
    let partition = ["hour", "day"][random.below(2) as usize];
    let written = query.text.replace("{W}", &windowing.written()).replace("{END}", "window_end()");
    let more = format!("lateness = INTERVAL '{} seconds', partition = '{partition}'", lateness / SECOND);
    let what = format!("seed {seed}: {written}, {windowing:?}, {more}");
    let project = project(&written, &more);
    let plan = project.pipeline("p").unwrap();
    let keys = 2 + query.keys.len();

    let rows: Vec<Row> =
        events.iter().filter_map(|e| if let Event::Row(r) = e { Some(r.clone()) } else { None }).collect();
    let mut world = World::new(project.clone());
    let all = batch(&world.schema, &rows);
    let of_all = groups(&world.schema, &all, &query);
    // From the start, or when some of it has passed.
    let begins = if random.below(2) == 0 { 0 } else { random.below(1 + rows.len() as u64) as usize };
    let (mut at, mut from) = (0, 0);
    let last = events.len() - 1;
    for (number, event) in events.iter().enumerate() {
        let Event::Barrier(now) = event else {
            at += 1;
            if random.below(5) == 0 {
                world.ingest(all.slice(from, at - from));
                from = at;
            }
            continue;
        };
        world.ingest(all.slice(from, at - from));
        from = at;
        world.barrier(*now);
        if world.pipeline.is_none() && at >= begins {
            // A shard goes over right behind a cut.
            world.cut();
            world.begin(project.clone());
            world.barrier(*now);
        }
        if number < last && random.below(3) > 0 {
            continue;
        }
        world.cut();
        if world.pipeline.is_none() || world.before == Barrier(0) || (number < last && random.below(2) == 0) {
            continue;
        }
        let whole = number == last || random.below(2) == 0;
        let span = match random.below(2) + u64::from(whole) {
            0 => START - 3600 * SECOND..START + random.below(7200) as i64 * SECOND,
            1 if !whole => START + random.below(3600) as i64 * SECOND..START + 7200 * SECOND,
            _ => ALL,
        };
        let before = world.table();
        let done = world.repair(span.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
        let table = world.table();
        assert_eq!(done.unknown, 0, "{what}: every device was heard of");
        let mut once = keys_of(&table, keys);
        once.dedup();
        assert_eq!(once.len(), table.num_rows(), "{what}: a window is twice in the table");

        let passed = world.stand().passed.unwrap();
        let mut kept = everything(&rows[..at], windowing, &of_all);
        kept.retain(|(row, _, end)| passed.of(&rows[*row].device) >= end + lateness);
        let widened = widen(span.clone(), crate::output::granularity(plan.partition));
        let want = wanted(&plan.output, &all, &kept, &query);
        if !matches!(windowing, Windowing::Session(_)) {
            let inside = |rows: &RecordBatch, inside: bool| {
                let starts = rows.column(1).as_primitive::<TimestampNanosecondType>().values();
                let mask: BooleanArray = starts.iter().map(|s| Some(widened.contains(s) == inside)).collect();
                compute::filter_record_batch(rows, &mask).unwrap()
            };
            equal(&what, &inside(&table, true), &inside(&want, true), &query);
            equal(&format!("{what}: outside"), &inside(&table, false), &inside(&before, false), &query);
        } else if number == last {
            assert_eq!((done.open, done.at_edges), (0, 0), "{what}");
            equal(&what, &table, &want, &query);
        }
        if random.below(3) == 0 {
            // Once more, as of a cut behind it, with the same result.
            world.barrier(*now);
            world.cut();
            let again = world.repair(span).unwrap_or_else(|e| panic!("{what}: again: {e}"));
            assert_eq!((again.rows, again.open, again.kept), (done.rows, done.open, done.kept), "{what}: again");
            equal(&format!("{what}: again"), &world.table(), &table, &query);
        }
    }
}

#[test]
fn after_a_repair_the_table_is_what_plain_datafusion_makes_of_all_rows() {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("WEIR_SEED") {
        return case(seed);
    }
    let cases = 0..number("WEIR_CASES").unwrap_or(CASES);
    let failed: Vec<u64> = cases.filter(|seed| std::panic::catch_unwind(|| case(*seed)).is_err()).collect();
    assert!(failed.is_empty(), "WEIR_SEED={} repeats one of the seeds {failed:?}", failed[0]);
}
