//! Queries over files and live rows, against counts known beforehand.

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::physical_plan::displayable;

use super::*;
use crate::layout::{Granularity, Partition};
use crate::parquet::{TableRows, write_cut};
use crate::schema::timestamp;

const HOUR: i64 = 3_600_000_000_000;
/// 2026-11-23T00:00:00Z
const DAY: i64 = 1_795_392_000_000_000_000;

/// `count` rows of 8 devices, a minute apart from `start` on, numbered from `seq` on.
fn rows(start: i64, seq: i64, count: i64, with_more: bool) -> RecordBatch {
    let range = || seq..seq + count;
    let mut fields = vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("seq", DataType::Int64, false),
        Field::new("ts", timestamp(), false),
        Field::new("v", DataType::Float64, true).with_metadata([("unit".to_owned(), "Cel".to_owned())].into()),
    ];
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(range().map(|at| format!("d{}", at % 8)))),
        Arc::new(Int64Array::from_iter_values(range())),
        Arc::new(
            TimestampNanosecondArray::from_iter_values((0..count).map(|at| start + at * HOUR / 60))
                .with_timezone("UTC"),
        ),
        Arc::new(Float64Array::from_iter_values(range().map(|at| at as f64 / 10.0))),
    ];
    if with_more {
        fields.push(Field::new("more", DataType::Int64, true));
        columns.push(Arc::new(Int64Array::from_iter_values(range())));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

struct Fixture {
    dir: tempfile::TempDir,
    tables: TableStore,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tables = TableStore::open(Store::local(dir.path()).unwrap());
        Self { dir, tables }
    }

    async fn cut(&self, shard: u16, from: u64, to: u64, batch: RecordBatch) {
        let tables = vec![TableRows {
            table: "telemetry".to_owned(),
            version: "1.0".to_owned(),
            time_column: "ts".to_owned(),
            granularity: Granularity::Hour,
            batches: vec![batch],
        }];
        write_cut(&self.tables.store, ShardId(shard), Barrier(from), Barrier(to), tables).await.unwrap();
    }

    async fn query(&self, live: HashMap<String, LiveTable>, sql: &str) -> RecordBatch {
        let session = SessionContext::new();
        self.tables.register_all(&session, live).await.unwrap();
        let frame = session.sql(sql).await.unwrap();
        let schema = Arc::new(frame.schema().as_arrow().clone());
        concat_batches(&schema, &frame.collect().await.unwrap()).unwrap()
    }

    async fn number(&self, live: HashMap<String, LiveTable>, sql: &str) -> i64 {
        self.query(live, sql).await.column(0).as_primitive::<Int64Type>().value(0)
    }
}

fn live(shards: Vec<(u16, u64, RecordBatch)>) -> HashMap<String, LiveTable> {
    let shards = shards
        .into_iter()
        .map(|(shard, upto, batch)| LiveShard {
            shard: ShardId(shard),
            files_upto: Barrier(upto),
            batches: vec![batch],
        })
        .collect();
    [("telemetry".to_owned(), LiveTable { schema: None, time_column: Some("ts".to_owned()), shards })].into()
}

const COUNT: &str = "SELECT count(*) FROM telemetry";

#[tokio::test]
async fn files_and_live_rows_count_once() {
    let at = Fixture::new();
    at.cut(0, 0, 3, rows(DAY, 0, 100, false)).await;
    at.cut(1, 0, 2, rows(DAY, 0, 50, false)).await;
    assert_eq!(at.number(HashMap::new(), COUNT).await, 150);
    let more = live(vec![(0, 3, rows(DAY + 2 * HOUR, 100, 30, false))]);
    assert_eq!(at.number(more.clone(), COUNT).await, 180);
    // The cut of those rows comes while the live rows are still shown: they count as live only.
    at.cut(0, 3, 5, rows(DAY + 2 * HOUR, 100, 30, false)).await;
    assert_eq!(at.number(more, COUNT).await, 180);
    assert_eq!(at.number(HashMap::new(), COUNT).await, 180);
    assert_eq!(at.number(HashMap::new(), "SELECT sum(seq) FROM telemetry WHERE device = 'd3'").await, {
        (0..130).filter(|s| s % 8 == 3).sum::<i64>() + (0..50).filter(|s| s % 8 == 3).sum::<i64>()
    });
    // A file that covers others makes them obsolete, as long as they are still there.
    let covering = concat_batches(
        &rows(DAY, 0, 1, false).schema(),
        [&rows(DAY, 0, 100, false), &rows(DAY + 2 * HOUR, 100, 30, false)],
    )
    .unwrap();
    at.cut(0, 0, 5, covering).await;
    assert_eq!(at.number(HashMap::new(), COUNT).await, 180);
}

#[tokio::test]
async fn what_is_no_finished_file_is_not_read() {
    let at = Fixture::new();
    at.cut(0, 0, 1, rows(DAY, 0, 10, false)).await;
    let folder = at.dir.path().join("tables/telemetry/date=2026-11-23/hour=00");
    for name in ["0000-000000000001-000000000002.parquet#1", "notes.txt", "0000-1-2.parquet", "x.parquet"] {
        std::fs::write(folder.join(name), b"garbage").unwrap();
    }
    assert_eq!(at.number(HashMap::new(), COUNT).await, 10);
    let broken = folder.join("0000-000000000001-000000000002.parquet");
    std::fs::write(&broken, b"garbage").unwrap();
    let error = at.tables.provider("telemetry", None).await.unwrap_err().to_string();
    assert!(error.contains("0000-000000000001-000000000002.parquet"), "{error}");
}

#[tokio::test]
async fn partitions_are_left_out_by_time_and_by_folder() {
    let at = Fixture::new();
    at.cut(0, 0, 1, rows(DAY, 0, 600, false)).await;
    let session = SessionContext::new();
    at.tables.register_all(&session, HashMap::new()).await.unwrap();
    for (filter, files, expected) in [
        ("ts >= '2026-11-23T03:30:00Z' AND ts < '2026-11-23T05:00:00Z'", 2, 90),
        ("ts = '2026-11-23T03:30:00Z'", 1, 1),
        ("date = '2026-11-23' AND hour IN (1, 9)", 2, 120),
        ("date = '2026-11-24'", 0, 0),
        ("hour = 4 AND device = 'd0'", 1, 8),
        ("v >= 0", 10, 600),
    ] {
        let frame = session.sql(&format!("SELECT seq FROM telemetry WHERE {filter}")).await.unwrap();
        let plan = frame.clone().create_physical_plan().await.unwrap();
        let text = displayable(plan.as_ref()).indent(true).to_string();
        assert_eq!(text.matches(".parquet").count(), files, "{filter}: {text}");
        assert_eq!(frame.count().await.unwrap(), expected, "{filter}");
    }
}

#[tokio::test]
async fn statistics_leave_out_row_groups_and_pages() {
    let at = Fixture::new();
    at.cut(0, 0, 1, rows(DAY, 0, 50, false)).await;
    let session = SessionContext::new();
    at.tables.register_all(&session, HashMap::new()).await.unwrap();
    let frame = session.sql("EXPLAIN ANALYZE SELECT * FROM telemetry WHERE v > 1000").await.unwrap();
    let explained = frame.collect().await.unwrap();
    let text = arrow::util::pretty::pretty_format_batches(&explained).unwrap().to_string();
    assert!(text.contains("row_groups_pruned_statistics=1 total"), "{text}");
}

#[tokio::test]
async fn older_files_lack_newer_columns() {
    let at = Fixture::new();
    at.cut(0, 0, 1, rows(DAY, 0, 10, false)).await;
    at.cut(0, 1, 2, rows(DAY, 10, 5, true)).await;
    assert_eq!(at.number(HashMap::new(), "SELECT count(*) FROM telemetry WHERE more IS NULL").await, 10);
    assert_eq!(at.number(HashMap::new(), "SELECT sum(more) FROM telemetry").await, (10..15).sum::<i64>());
    let newest = live(vec![(0, 2, rows(DAY + 5 * HOUR, 15, 5, false))]);
    assert_eq!(at.number(newest.clone(), "SELECT count(*) FROM telemetry WHERE more IS NULL").await, 15);
    let hours = "SELECT count(*) FROM telemetry WHERE date = '2026-11-23' AND hour = 5";
    assert_eq!(at.number(newest, hours).await, 5);
    let provider = at.tables.provider("telemetry", None).await.unwrap().unwrap();
    let schema = provider.schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["device", "seq", "ts", "v", "more", "date", "hour"]);
    assert_eq!(schema.field(3).metadata().get("unit").map(String::as_str), Some("Cel"));
}

#[tokio::test]
async fn a_declared_table_without_rows_is_empty_and_an_unknown_one_is_none() {
    let at = Fixture::new();
    assert!(at.tables.tables().await.unwrap().is_empty());
    assert!(at.tables.provider("telemetry", None).await.unwrap().is_none());
    let declared = LiveTable { schema: Some(rows(0, 0, 1, false).schema()), ..LiveTable::default() };
    let live = || HashMap::from([("telemetry".to_owned(), declared.clone())]);
    assert_eq!(at.number(live(), COUNT).await, 0);
    assert_eq!(at.query(live(), "SELECT v, hour FROM telemetry").await.num_rows(), 0);
    at.cut(0, 0, 1, rows(DAY, 0, 10, false)).await;
    assert_eq!(at.tables.tables().await.unwrap(), ["telemetry"]);
    let files = at.tables.files("telemetry").await.unwrap();
    assert_eq!(files, ["tables/telemetry/date=2026-11-23/hour=00/0000-000000000000-000000000001.parquet"]);
    assert_eq!(layout::parse_table_file(&files[0]).unwrap().1, Partition::of(DAY, Granularity::Hour));
}
