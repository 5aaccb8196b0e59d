//! Looks at tables on a disk, with clocks, holds and cuts as the test wants them.

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use storage::layout::Granularity;
use storage::parquet::{TableRows, write_cut};
use storage::schema::timestamp;
use storage::store::Store;

use super::*;
use crate::query::{self, Bounds};

const HOUR: i64 = 3_600_000_000_000;
/// 2026-11-23T00:00:00Z
const DAY: i64 = 1_795_392_000_000_000_000;
const GRACE: Duration = Duration::from_secs(60);
const BOUNDS: Bounds = Bounds { rows: usize::MAX, time: Duration::from_secs(60) };

struct Bench {
    dir: tempfile::TempDir,
    tables: Arc<TableStore>,
    holds: Arc<Holds>,
    report: Arc<Report>,
    house: House,
    view: View,
    start: Instant,
    barrier: u64,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tables = Arc::new(TableStore::open(Store::local(dir.path()).unwrap()));
        let (holds, report) = (Arc::new(Holds::default()), Arc::new(Report::default()));
        let house = House::new(tables.clone(), holds.clone(), GRACE, report.clone());
        let view = View { policies: [("t".to_owned(), policy)].into(), ..View::default() };
        Self { dir, tables, holds, report, house, view, start: Instant::now(), barrier: 0 }
    }

    /// A cut with ten rows in each of some hours; it is done.
    async fn cut(&mut self, hours: &[i64]) {
        let fields = vec![
            Field::new("device", DataType::Utf8, false),
            Field::new("epoch", DataType::Int64, false),
            Field::new("seq", DataType::Int64, false),
            Field::new("ts", timestamp(), false),
        ];
        let schema = Arc::new(Schema::new(fields));
        let batches = hours.iter().map(|hour| {
            let seqs = (self.barrier as i64 * 100 + hour * 10)..(self.barrier as i64 * 100 + hour * 10 + 10);
            let times = seqs.clone().map(|seq| DAY + hour * HOUR + seq % 10);
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(seqs.clone().map(|seq| format!("d{}", seq % 2)))),
                Arc::new(Int64Array::from_iter_values(seqs.clone().map(|_| 7))),
                Arc::new(Int64Array::from_iter_values(seqs)),
                Arc::new(TimestampNanosecondArray::from_iter_values(times).with_timezone("UTC")),
            ];
            RecordBatch::try_new(schema.clone(), columns).unwrap()
        });
        let rows = TableRows {
            table: "t".to_owned(),
            version: "1.0".to_owned(),
            time_column: "ts".to_owned(),
            granularity: Granularity::Hour,
            batches: batches.collect(),
        };
        let (from, to) = (Barrier(self.barrier), Barrier(self.barrier + 1));
        write_cut(self.tables.store(), ShardId(0), from, to, vec![rows]).await.unwrap();
        self.barrier += 1;
        self.view.done.insert(ShardId(0), to);
    }

    /// A look at that hour of the day, so many seconds after the test began.
    async fn look(&mut self, hour: i64, seconds: u64) -> Done {
        let at = self.start + Duration::from_secs(seconds);
        self.house.look(&self.view, Timestamp(DAY + hour * HOUR), at).await;
        assert_eq!(self.report.failures.load(Ordering::Relaxed), 0);
        self.report.tables().get("t").copied().unwrap_or_default()
    }

    /// As after kill -9.
    fn restart(&mut self) {
        self.tables = Arc::new(TableStore::open(Store::local(self.dir.path()).unwrap()));
        self.holds = Arc::default();
        self.house = House::new(self.tables.clone(), self.holds.clone(), GRACE, self.report.clone());
    }

    /// Tasks of a query hold its files for a moment longer than it takes.
    async fn quiet(&self) {
        let now = self.tables.moment();
        for _ in 0..400 {
            if self.tables.unread_since(now) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn rows(&self) -> usize {
        let memory = query::runtime(1 << 30).unwrap();
        let began = self.tables.moment();
        let table = query::run_over_files(&self.tables, None, memory, "SELECT seq FROM t", BOUNDS).await.unwrap();
        // Who read before it is not waited for.
        if self.tables.unread_since(began) {
            self.quiet().await;
        }
        table.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Files on the disk.
    fn files(&self) -> usize {
        fn count(dir: &std::path::Path) -> usize {
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
        }
        count(&self.dir.path().join("tables"))
    }
}

fn retain(hours: i64) -> Policy {
    Policy { retain_ns: Some(hours * HOUR), compact_ns: None, counted: true }
}

#[tokio::test]
async fn what_is_too_old_goes_at_once_and_its_files_after_the_grace_time() {
    let mut bench = Bench::new(retain(2));
    bench.cut(&[0, 1, 2, 3, 4]).await;
    bench.cut(&[0, 4]).await;
    let done = bench.look(10, 0).await;
    assert_eq!((done.partitions, done.files, done.hidden, done.erased), (2, 3, 3, 0), "hours 0 and 1 of 0 to 4");
    assert!(done.bytes > 0);
    assert_eq!((bench.rows().await, bench.files()), (40, 7));
    assert_eq!(bench.look(10, 59).await.erased, 0);
    let done = bench.look(10, 60).await;
    assert_eq!((done.erased, done.hidden, done.files), (3, 0, 3));
    assert_eq!((bench.rows().await, bench.files()), (40, 4));
    let expired = bench.tables.expired("t").await.unwrap();
    assert_eq!(expired[&("d0".to_owned(), 7)] + expired[&("d1".to_owned(), 7)], 30);
}

#[tokio::test]
async fn a_damaged_file_goes_with_its_partition() {
    let mut bench = Bench::new(retain(2));
    bench.cut(&[0, 1, 2, 3, 4]).await;
    let path = bench.dir.path().join("tables/t/date=2026-11-23/hour=00/0000-000000000000-000000000001.parquet");
    std::fs::write(path, b"no file of ours").unwrap();
    assert_eq!(bench.look(10, 0).await.partitions, 2);
    assert_eq!(bench.tables.expired("t").await.unwrap().values().sum::<u64>(), 10, "what could be counted");
    assert_eq!(bench.rows().await, 30);
}

#[tokio::test]
async fn a_query_that_runs_keeps_the_files_it_has_seen() {
    let mut bench = Bench::new(retain(2));
    bench.cut(&[0, 1, 2, 3, 4]).await;
    let session = query::over_files(&bench.tables, None, query::runtime(1 << 30).unwrap()).await.unwrap();
    bench.look(10, 0).await;
    assert_eq!(bench.look(10, 3600).await.erased, 0, "however long it takes");
    let table = query::run(&session, "SELECT seq FROM t", BOUNDS).await.unwrap();
    assert_eq!(table.batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 50, "and sees all it saw at its start");
    drop(session);
    bench.quiet().await;
    assert_eq!(bench.look(10, 3601).await.erased, 2);
}

#[tokio::test]
async fn nothing_goes_that_somebody_needs() {
    let mut bench = Bench::new(retain(1));
    bench.cut(&[0, 1, 2, 3, 4, 5]).await;
    // A window that is open for a device that is away; a repair; a cut that is written and not done.
    bench.view.needed.insert("t".to_owned(), vec![(DAY + 5, DAY + HOUR / 60)]);
    let lease = bench.holds.hold("t", (DAY + HOUR, DAY + HOUR)).await;
    bench.cut(&[2]).await;
    bench.view.done.insert(ShardId(0), Barrier(1));
    assert_eq!(bench.look(10, 0).await.partitions, 1, "hour 3 alone");
    drop(lease);
    assert_eq!(bench.look(10, 1).await.partitions, 2);
    bench.view.needed.clear();
    bench.view.done.insert(ShardId(0), Barrier(2));
    assert_eq!(bench.look(10, 2).await.partitions, 4);
    assert_eq!(bench.rows().await, 20);
}

#[tokio::test]
async fn no_wrong_clock_drops_anything() {
    let mut bench = Bench::new(retain(24));
    bench.cut(&[0, 1, 2]).await;
    assert_eq!(bench.look(24 * 365 * 70, 0).await.partitions, 0, "the engine's says 2096");
    bench.cut(&[24 * 365 * 70]).await;
    assert_eq!(bench.look(3, 1).await.partitions, 0, "a row says so");
    assert_eq!(bench.look(27, 2).await.partitions, 3, "time passes");
}

#[tokio::test]
async fn after_a_kill_it_goes_on() {
    let mut bench = Bench::new(retain(2));
    bench.cut(&[0, 1, 2, 3, 4]).await;
    bench.look(10, 0).await;
    bench.restart();
    let path = bench.dir.path().join("tables/t/date=2026-11-23/hour=00");
    std::fs::remove_dir_all(&path).unwrap();
    assert_eq!(bench.rows().await, 30, "nothing of the other half is seen");
    assert_eq!(bench.look(10, 100).await.erased, 0, "its grace time begins anew");
    assert_eq!(bench.look(10, 160).await.erased, 2);
    assert_eq!(bench.files(), 3);
}

fn compact(hours: i64) -> Policy {
    Policy { retain_ns: None, compact_ns: Some(hours * HOUR), counted: false }
}

/// Far enough from now that files written by the test are not new.
const LATER: i64 = 24 * 365 * 50;

#[tokio::test]
async fn cold_partitions_come_down_to_a_file() {
    let mut bench = Bench::new(compact(2));
    for _ in 0..4 {
        bench.cut(&[0, 1, 2, 3]).await;
    }
    // By the clock alone the files of hours 0 and 1 are cold; these were written a moment ago.
    assert_eq!(bench.look(10, 0).await.merges, 0);
    bench.cut(&[LATER]).await;
    let session = query::over_files(&bench.tables, None, query::runtime(1 << 30).unwrap()).await.unwrap();
    let done = bench.look(LATER, 0).await;
    assert_eq!((done.merges, done.merged, done.merged_rows), (4, 16, 160));
    assert_eq!((bench.rows().await, bench.files()), (170, 21), "both are there, one counts");
    assert_eq!(bench.look(LATER, 100).await.hidden, 0, "a query still reads the old ones");
    drop(session);
    bench.quiet().await;
    assert_eq!(bench.look(LATER, 101).await.hidden, 16);
    assert_eq!(bench.look(LATER, 160).await.erased, 0);
    let done = bench.look(LATER, 161).await;
    assert_eq!((done.erased, done.merges), (16, 4));
    assert_eq!((bench.rows().await, bench.files()), (170, 5), "at rest no rule is needed");

    // What comes late for a cold hour is merged once more.
    bench.cut(&[1]).await;
    bench.look(LATER, 200).await;
    bench.look(LATER, 201).await;
    bench.look(LATER, 300).await;
    assert_eq!((bench.rows().await, bench.files()), (180, 5));
}

#[tokio::test]
async fn a_kill_between_the_file_and_what_it_covers_changes_nothing() {
    let mut bench = Bench::new(compact(2));
    for _ in 0..3 {
        bench.cut(&[0]).await;
    }
    bench.cut(&[LATER]).await;
    assert_eq!(bench.look(LATER, 0).await.merges, 1);
    bench.restart();
    assert_eq!((bench.rows().await, bench.files()), (40, 5));
    // Also if the option is taken back meanwhile: what was begun is finished.
    bench.view.policies.clear();
    assert_eq!(bench.look(LATER, 10).await.hidden, 3);
    bench.look(LATER, 100).await;
    assert_eq!((bench.rows().await, bench.files()), (40, 2));
}

#[tokio::test]
async fn a_lease_keeps_files_from_being_merged_and_a_cut_under_way_too() {
    let mut bench = Bench::new(compact(2));
    for _ in 0..3 {
        bench.cut(&[0, 1]).await;
    }
    bench.cut(&[LATER]).await;
    let lease = bench.holds.hold("t", (DAY, DAY)).await;
    bench.view.done.insert(ShardId(0), Barrier(2));
    assert_eq!(bench.look(LATER, 0).await.merges, 0);
    bench.view.done.insert(ShardId(0), Barrier(4));
    assert_eq!(bench.look(LATER, 1).await.merges, 1);
    drop(lease);
    assert_eq!(bench.look(LATER, 2).await.merges, 2);
}

#[tokio::test]
async fn a_query_from_another_process_begins_anew_when_files_are_gone() {
    let mut bench = Bench::new(retain(2));
    bench.cut(&[0, 1, 2, 3, 4]).await;
    let other = TableStore::open(Store::existing(bench.dir.path()).unwrap());
    let memory = || query::runtime(1 << 30).unwrap();
    let session = query::over_files(&other, None, memory()).await.unwrap();
    bench.look(10, 0).await;
    assert_eq!(bench.look(10, 60).await.erased, 2);
    let error = query::run(&session, "SELECT seq FROM t", BOUNDS).await.unwrap_err();
    assert!(other.names_gone(&error.to_string()).await, "{error}");
    let table = query::run_over_files(&other, None, memory(), "SELECT seq FROM t", BOUNDS).await.unwrap();
    assert_eq!(table.batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 30);
}

#[tokio::test]
async fn a_plan_says_what_a_shorter_time_drops() {
    let mut bench = Bench::new(Policy::default());
    bench.cut(&[0, 1, 2, 3, 4]).await;
    bench.cut(&[1]).await;
    let now = Timestamp(DAY + 30 * HOUR);
    let drops = would_drop(&bench.tables, "t", 2 * HOUR, now).await.unwrap().unwrap();
    let (first, last) = ("date=2026-11-23/hour=00".to_owned(), "date=2026-11-23/hour=01".to_owned());
    assert_eq!((drops.partitions, drops.files, drops.first, drops.last), (2, 3, first, last));
    assert_eq!(would_drop(&bench.tables, "t", 20 * HOUR, now).await.unwrap(), None);
    assert_eq!(would_drop(&bench.tables, "nobody", HOUR, now).await.unwrap(), None);
}

#[test]
fn policies_come_from_the_project_and_the_configuration() {
    let text = "CREATE STREAM telemetry (t DOUBLE) WITH (retain = INTERVAL '90 days');
CREATE STREAM plain (t DOUBLE) WITH (schema = 9);
CREATE PIPELINE c WITH (retain = INTERVAL '9 days', compact = INTERVAL '1 day', rollup = '1 minute, 1 hour') AS
SELECT device, tumble(ts, rollup) AS w, max(t) AS t FROM telemetry GROUP BY device, w;";
    let project = sql::check(&[sql::SourceFile { name: "p.sql".to_owned(), text: text.to_owned() }]).unwrap();
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let config = TablesConfig { retain: [(DEAD_LETTERS.to_owned(), days(7))].into(), ..TablesConfig::default() };
    let all = policies(&project, &config);
    assert_eq!(all.keys().collect::<Vec<_>>(), [DEAD_LETTERS, "c_1h", "c_1m", "telemetry"]);
    let day = 24 * HOUR;
    assert_eq!(all["telemetry"], Policy { retain_ns: Some(90 * day), compact_ns: None, counted: true });
    assert_eq!(all["c_1h"], Policy { retain_ns: Some(9 * day), compact_ns: Some(day), counted: false });
    assert_eq!(all[DEAD_LETTERS], Policy { retain_ns: Some(7 * day), compact_ns: None, counted: true });
}
