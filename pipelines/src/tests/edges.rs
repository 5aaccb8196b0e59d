//! Single cases: the ends of time, bad rows, devices that go and come.

use std::sync::Arc;

use super::harness::*;
use crate::{HOLD, Pipeline, PipelineError};
use arrow::array::*;
use device::time::{SECOND, Timestamp};

const W: &str = "tumble(ts, INTERVAL '1 minute')";

fn row(device: &str, ts: i64, ingest: i64, v: f64) -> Row {
    Row { device: device.to_owned(), ts, ingest, v: Some(v), i: Some(v as i64), s: None, b: None }
}

fn sums() -> String {
    format!("SELECT device, {W} AS w, sum(v) AS x, count(*) AS n FROM t GROUP BY device, {W}")
}

/// (device, seconds of the window, sum) of each row.
fn listed(batches: &[RecordBatch]) -> Vec<(String, i64, f64)> {
    let mut out = Vec::new();
    for batch in batches {
        let starts = batch.column(1).as_primitive::<arrow::datatypes::TimestampNanosecondType>();
        let sums = batch.column(2).as_primitive::<arrow::datatypes::Float64Type>();
        for i in 0..batch.num_rows() {
            let device = batch.column(0).as_string::<i32>().value(i).to_owned();
            out.push((device, starts.value(i) / SECOND, sums.value(i)));
        }
    }
    out
}

struct Bench {
    pipeline: Pipeline,
    schema: arrow::datatypes::SchemaRef,
}

impl Bench {
    fn new(select: &str) -> Self {
        let (plan, schema) = plan(select);
        Self { pipeline: Pipeline::new(&plan, schema.clone()).unwrap(), schema }
    }

    fn rows(&mut self, rows: &[Row]) {
        self.pipeline.ingest(&batch(&self.schema, rows)).unwrap();
    }

    fn barrier(&mut self, now: i64) -> Vec<(String, i64, f64)> {
        listed(&self.pipeline.barrier(Timestamp(now)).unwrap().rows)
    }
}

fn d(name: &str, seconds: i64, sum: f64) -> (String, i64, f64) {
    (name.to_owned(), seconds, sum)
}

#[test]
fn windows_before_and_across_the_epoch() {
    let mut bench = Bench::new(&sums());
    let s = SECOND;
    bench.rows(&[
        row("a", -61 * s, 0, 1.0),
        row("a", -60 * s, 0, 2.0),
        row("a", -1, 0, 4.0),
        row("a", 0, 0, 8.0),
        row("a", 59 * s, 59 * s, 16.0),
        row("a", 60 * s, 60 * s, 32.0),
    ]);
    // The watermark is 58 s: only what ends 10 s before that is closed.
    assert_eq!(bench.barrier(1000 * s), [d("a", -120, 1.0), d("a", -60, 6.0)]);
    bench.rows(&[row("a", 132 * s, 132 * s, 64.0)]);
    assert_eq!(bench.barrier(1001 * s), [d("a", 0, 24.0), d("a", 60, 32.0)]);
}

#[test]
fn nothing_gives_nothing() {
    let mut bench = Bench::new(&sums());
    assert!(bench.barrier(START).is_empty());
    bench.rows(&[]);
    assert!(bench.barrier(START + MINUTE).is_empty());
    let state = bench.pipeline.checkpoint().unwrap();
    let (plan, schema) = plan(&sums());
    bench.pipeline = Pipeline::restore(&plan, schema, &state).unwrap();
    bench.rows(&[row("a", START, START, 1.0)]);
    assert_eq!(bench.barrier(START + HOLD), [d("a", START / SECOND, 1.0)]);
    assert_eq!(bench.pipeline.stats().groups, 0);
}

#[test]
fn a_device_alone_closes_its_windows_and_holds_back_nobody() {
    let mut bench = Bench::new(&sums());
    let at = |seconds: i64| START + seconds * SECOND;
    bench.rows(&[row("slow", at(1), at(1), 1.0), row("fast", at(2), at(2), 1.0), row("fast", at(80), at(80), 1.0)]);
    assert_eq!(bench.barrier(at(81)), [d("fast", at(0) / SECOND, 1.0)]);
    // Three days later the slow one brings what it buffered: two windows, one still open at its watermark.
    let day = 3 * 24 * 3600;
    bench.rows(&[
        row("slow", at(30), at(day), 2.0),
        row("slow", at(61), at(day), 4.0),
        row("slow", at(150), at(day), 8.0),
    ]);
    assert_eq!(bench.barrier(at(day + 1)), [d("slow", at(0) / SECOND, 3.0), d("slow", at(60) / SECOND, 4.0)]);
    let closed = bench.pipeline.barrier(Timestamp(at(day + 2))).unwrap();
    assert!(closed.rows.is_empty() && closed.late.is_empty());
}

#[test]
fn a_row_is_late_only_once_a_barrier_has_closed_its_window() {
    let mut bench = Bench::new(&sums());
    let at = |seconds: i64| START + seconds * SECOND;
    bench.rows(&[row("a", at(1), at(1), 1.0), row("a", at(300), at(300), 1.0), row("a", at(2), at(300), 2.0)]);
    assert_eq!(bench.barrier(at(301)), [d("a", at(0) / SECOND, 3.0)], "the watermark moves at barriers only");
    bench.rows(&[row("a", at(3), at(302), 4.0), row("a", at(4), at(302), 4.0), row("b", at(5), at(302), 8.0)]);
    let closed = bench.pipeline.barrier(Timestamp(at(310))).unwrap();
    assert!(closed.rows.is_empty());
    let late = closed.late.first().unwrap();
    assert_eq!((closed.late.len(), late.device.as_str(), late.records), (1, "a", 2));
    assert_eq!((late.window_start.0, late.window_end.0), (at(0), at(60)));
    assert_eq!(bench.pipeline.stats().late_records, 2);
}

#[test]
fn a_silent_device_is_closed_after_hold_and_may_come_back() {
    let mut bench = Bench::new(&sums());
    let at = |seconds: i64| START + seconds * SECOND;
    bench.rows(&[row("a", at(1), at(1), 1.0)]);
    assert!(bench.barrier(at(1) + HOLD - 1).is_empty());
    assert_eq!(bench.barrier(at(1) + HOLD), [d("a", at(0) / SECOND, 1.0)]);
    let later = at(1) + 2 * HOLD;
    bench.rows(&[row("a", at(2), later, 2.0), row("a", at(70), later, 4.0), row("a", later, later, 8.0)]);
    let closed = bench.pipeline.barrier(Timestamp(later)).unwrap();
    assert_eq!(listed(&closed.rows), [d("a", at(60) / SECOND, 4.0)], "what it buffered after its last row counts");
    assert_eq!(closed.late.len(), 1, "what belongs to the window that hold has closed is late");
}

#[test]
fn more_devices_than_are_kept_never_repeat_a_window() {
    let mut bench = Bench::new(&sums());
    bench.pipeline.keep = 2;
    let at = |seconds: i64| START + seconds * SECOND;
    let names = ["a", "b", "c", "d"];
    bench.rows(&names.map(|n| row(n, at(1), at(1), 1.0)));
    assert_eq!(bench.barrier(at(2) + HOLD).len(), 4);
    assert_eq!(bench.pipeline.stats().devices, 2);
    bench.rows(&names.map(|n| row(n, at(3), at(3) + HOLD, 1.0)));
    let closed = bench.pipeline.barrier(Timestamp(at(4) + HOLD)).unwrap();
    assert!(closed.rows.is_empty());
    assert_eq!(closed.late.iter().map(|l| l.records).sum::<u64>(), 4, "forgotten or not, the rows are late");
}

#[test]
fn many_windows_at_once_share_a_table_and_come_out_right() {
    let mut bench = Bench::new(&sums());
    let at = |seconds: i64| START + seconds * SECOND;
    let now = at(3 * 24 * 3600);
    // 2000 windows with two rows each from one device, out of order, and a busy one beside it.
    let mut rows = Vec::new();
    for k in 0..2000 {
        let k = (k * 7919) % 2000;
        rows.push(row("away", at(60 * k), now, 1.0));
        rows.push(row("away", at(60 * k + 59), now, k as f64));
        rows.push(row("busy", now + k, now, 1.0));
    }
    bench.rows(&rows);
    let got = bench.barrier(now + SECOND);
    let closed: Vec<_> = (0..1999).map(|k| d("away", at(60 * k) / SECOND, 1.0 + k as f64)).collect();
    // The last but one ends at 119,940 s, plus lateness that is at the watermark of 119,997 - 10.
    assert_eq!(got, closed);
    assert_eq!(bench.pipeline.stats().open_panes, 2);
}

#[test]
fn a_row_that_cannot_be_evaluated_harms_no_other() {
    let text = format!("SELECT device, {W} AS w, sum(100 / i) AS x FROM t WHERE 10 / i > -100 GROUP BY device, {W}");
    let (plan, schema) = plan(&text);
    let mut pipeline = Pipeline::new(&plan, schema.clone()).unwrap();
    let at = |seconds: i64| START + seconds * SECOND;
    let rows: Vec<Row> = (0..50).map(|k| row("a", at(k), at(k), f64::from((k % 10) as i32))).collect();
    pipeline.ingest(&batch(&schema, &rows)).unwrap();
    pipeline.ingest(&batch(&schema, &[row("a", at(200), at(200), 1.0)])).unwrap();
    let closed = pipeline.barrier(Timestamp(at(201))).unwrap();
    let sum = closed.rows[0].column(2).as_primitive::<arrow::datatypes::Int64Type>().value(0);
    assert_eq!(sum, 5 * (1..10).map(|k| 100 / k).sum::<i64>());
    let failed = &closed.late[0];
    assert_eq!((failed.records, failed.window_start.0, failed.device.as_str()), (5, at(0), "a"));
    assert!(failed.reason.contains("evaluation failed") && failed.reason.to_lowercase().contains("zero"), "{failed:?}");
    assert_eq!(pipeline.stats().failed_records, 5);

    let (plan, schema) = super::harness::plan("SELECT device, ts, 100 / i AS x FROM t");
    let mut pipeline = Pipeline::new(&plan, schema.clone()).unwrap();
    pipeline.ingest(&batch(&schema, &rows)).unwrap();
    let closed = pipeline.barrier(Timestamp(at(201))).unwrap();
    assert_eq!(closed.rows[0].num_rows(), 45);
    assert_eq!(closed.late.iter().map(|l| l.records).sum::<u64>(), 5);
}

#[test]
fn not_a_number_and_infinities_are_values() {
    let text = format!(
        "SELECT device, {W} AS w, max(v) AS x, avg(v) AS y, stddev(v) AS z, approx_percentile_cont(v, 0.5) AS p, \
         median(v) AS m, count(DISTINCT v) AS n FROM t GROUP BY device, {W}"
    );
    let (plan, schema) = plan(&text);
    let at = |seconds: i64| START + seconds * SECOND;
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -f64::NAN, 1.0, f64::MAX, f64::MIN, -0.0];
    let mut events = Vec::new();
    for k in 0..400_usize {
        let device = format!("d{}", k % 9);
        let mut row = row(&device, at(k as i64 / 4), at(k as i64 / 4), odd[(k / 9) % odd.len()]);
        // Devices with one kind of value only.
        if k % 9 < 8 {
            row.v = (k % 5 != 0).then_some(odd[k % 9]);
        }
        events.push(Event::Row(row));
        if k % 40 == 39 {
            events.push(Event::Barrier(at(k as i64 / 4)));
        }
    }
    events.push(Event::Barrier(at(0) + HOLD + 1000 * SECOND));
    let how = How { chop: 7, gather: 11, restore_each: Some(1) };
    let outcome = run(&plan, &schema, &events, how);
    let rows: usize = outcome.batches().iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 9 * 2);
}

#[test]
fn the_state_of_another_pipeline_is_refused() {
    let (one, schema) = plan(&sums());
    let (other, _) = plan(&sums().replace("sum(v)", "avg(v)"));
    let mut pipeline = Pipeline::new(&one, schema.clone()).unwrap();
    pipeline.ingest(&batch(&schema, &[row("a", START, START, 1.0)])).unwrap();
    assert!(matches!(pipeline.checkpoint(), Err(PipelineError::NotAtBarrier { rows: 1 })));
    pipeline.barrier(Timestamp(START)).unwrap();
    let state = pipeline.checkpoint().unwrap();
    assert!(Pipeline::matches(&one, &state).unwrap() && !Pipeline::matches(&other, &state).unwrap());
    // What cannot be told must not be replaced.
    assert!(Pipeline::matches(&one, b"").is_err());
    let newer = [&[2], &state[1..]].concat();
    assert!(Pipeline::matches(&one, &newer).unwrap_err().to_string().contains("run the weir that wrote it"));
    let refused = Pipeline::restore(&other, schema.clone(), &state).unwrap_err();
    assert!(refused.to_string().contains("another version of this pipeline"), "{refused}");
    for end in 0..state.len() {
        assert!(Pipeline::restore(&one, schema.clone(), &state[..end]).is_err());
        if end > 2000 {
            break;
        }
    }
}

#[test]
fn rows_of_another_stream_are_refused() {
    let (plan, schema) = plan(&sums());
    let mut pipeline = Pipeline::new(&plan, schema.clone()).unwrap();
    let rows = batch(&schema, &[row("a", START, START, 1.0)]);
    let keep: Vec<usize> = (0..schema.fields().len()).filter(|i| schema.field(*i).name() != "v").collect();
    let error = pipeline.ingest(&rows.project(&keep).unwrap()).unwrap_err();
    assert!(error.to_string().contains("column v is missing"), "{error}");
}

#[test]
fn open_windows_can_be_looked_at() {
    let mut bench = Bench::new(&sums());
    let at = |seconds: i64| START + seconds * SECOND;
    for k in 0..40 {
        bench.rows(&[row("b", at(k), at(k), 1.0), row("a", at(k), at(k), 2.0)]);
        assert!(bench.barrier(at(k)).is_empty());
    }
    let before = bench.pipeline.checkpoint().unwrap();
    let seen = listed(&bench.pipeline.provisional().unwrap());
    assert_eq!(seen, [d("a", at(0) / SECOND, 80.0), d("b", at(0) / SECOND, 40.0)]);
    assert_eq!(before, bench.pipeline.checkpoint().unwrap());
}

#[test]
fn rows_of_reference_tables_change_and_the_windows_go_on() {
    let text = "CREATE STREAM t (v DOUBLE, i BIGINT, s TEXT, b BOOLEAN);
        CREATE TABLE sites (device TEXT, number TINYINT UNSIGNED, site TEXT) WITH (location = 'x.csv', key = 'number, device');
        CREATE PIPELINE p AS SELECT t.device, tumble(ts, INTERVAL '1 minute') AS w, string_agg(site, ',' ORDER BY ts) AS x
        FROM t LEFT JOIN sites ON t.i = sites.number AND sites.device = t.device GROUP BY t.device, w;";
    let mut project = sql::check(&[sql::SourceFile { name: "p.sql".to_owned(), text: text.to_owned() }]).unwrap();
    let schema = storage::schema::stream_schema(&project.stream("t").unwrap().stream);
    let table = project.tables[0].schema.clone();
    let mut with = |sites: [&str; 2]| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["a", "a"])),
            Arc::new(UInt64Array::from(vec![1, 2])),
            Arc::new(StringArray::from(sites.to_vec())),
        ];
        project.set_rows("sites", &RecordBatch::try_new(table.clone(), columns).unwrap());
        project.pipeline("p").unwrap().clone()
    };
    let (before, after) = (with(["north", "south"]), with(["east", "west"]));
    let row = |seconds: i64, i: Option<i64>| Row {
        device: "a".to_owned(),
        ts: START + seconds * SECOND,
        ingest: START + seconds * SECOND,
        v: None,
        i,
        s: None,
        b: None,
    };
    let mut pipeline = Pipeline::new(&before, schema.clone()).unwrap();
    pipeline.ingest(&batch(&schema, &[row(1, Some(1)), row(2, Some(2)), row(3, None), row(4, Some(-1))])).unwrap();
    pipeline.barrier(Timestamp(START + 5 * SECOND)).unwrap();
    let state = pipeline.checkpoint().unwrap();
    assert!(Pipeline::matches(&after, &state).unwrap());
    let mut pipeline = Pipeline::restore(&after, schema.clone(), &state).unwrap();
    pipeline.ingest(&batch(&schema, &[row(6, Some(1)), row(200, Some(3))])).unwrap();
    let closed = pipeline.barrier(Timestamp(START + 200 * SECOND)).unwrap();
    assert_eq!(closed.rows[0].column(2).as_string::<i64>().value(0), "north,south,east");
}

#[test]
fn a_pipeline_that_changes_gives_no_window_twice_and_none_in_part() {
    let (old, schema) = plan(&sums());
    let (new, _) = plan(&sums().replace("sum(v)", "sum(v) + 1"));
    let feed = |pipeline: &mut Pipeline, rows: &[Row], at: i64| {
        pipeline.ingest(&batch(&schema, rows)).unwrap();
        pipeline.barrier(Timestamp(START + at * SECOND)).unwrap()
    };
    let at = |device: &str, second: i64| row(device, START + second * SECOND, START + second * SECOND, 1.0);
    let mut pipeline = Pipeline::new(&old, schema.clone()).unwrap();
    let closed = feed(&mut pipeline, &[at("a", 10), at("a", 90), at("b", 20)], 90);
    let begin = START / SECOND;
    assert_eq!(listed(&closed.rows), [("a".to_owned(), begin, 1.0)]);
    let state = pipeline.checkpoint().unwrap();
    assert!(!Pipeline::matches(&new, &state).unwrap());

    let mut pipeline = Pipeline::succeed(&new, schema.clone(), &state, None).unwrap();
    // For `a` the windows of 0 and 60 seconds are over, one closed and one given up; for `b` that of 0.
    let rows = [at("a", 30), at("a", 100), at("b", 40), at("b", 70), at("a", 130), at("c", 5)];
    let closed = feed(&mut pipeline, &rows, 130);
    assert_eq!(closed.rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    let late: Vec<_> = closed.late.iter().map(|l| (l.device.as_str(), l.window_start.0, l.records)).collect();
    assert_eq!(late, [("a", START, 1), ("a", START + MINUTE, 1), ("b", START, 1)]);
    let closed = feed(&mut pipeline, &[at("a", 300), at("b", 300), at("c", 300)], 300);
    let windows = [("a", 120), ("b", 60), ("c", 0)].map(|(device, start)| (device.to_owned(), begin + start, 2.0));
    assert_eq!(listed(&closed.rows), windows, "a device that was not known begins where it is");
}
