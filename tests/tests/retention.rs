//! Promise: no device's clock moves what retention keeps. Devices that stamp 1970, 2100, or an hour back neither make rows of
//! others go, nor keep anything longer; and a wrong clock of the engine drops nothing, either.
//!
//! A real data plane on a disk, three virtual days with a record of each device every twenty minutes, and a real look of retention
//! after every six hours.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actors::admission::Credit;
use actors::message::{Channel, Inbound, Ingress, Outcome, OutcomeSink, Reply};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use device::id::{DeviceId, ShardId};
use device::time::{SECOND, Timestamp};
use engine::config::Config;
use engine::core::{Core, Silent};
use engine::housekeeping::{House, Report, View, policies};
use engine::{limits, project, query};
use sql::SourceFile;

/// 2026-11-23T00:00:00Z
const TIME: i64 = 1_795_392_000 * SECOND;
const HOUR: i64 = 3600 * SECOND;
const EVERY: i64 = HOUR / 6;
/// What is to be kept.
const RETAIN: i64 = 24 * HOUR;

/// Name, and what the device takes the time for.
type Wrong = (&'static str, fn(i64) -> i64);

const DEVICES: [Wrong; 5] = [
    ("right", |now| now),
    ("seventies", |now| now - TIME + 1000 * SECOND),
    ("future", |now| now - TIME + 4_102_444_800 * SECOND),
    ("behind", |now| now - HOUR),
    ("stuck", |_| 4_102_444_800 * SECOND),
];

#[derive(Debug, Default)]
struct Outcomes(Mutex<Vec<Outcome>>);

impl OutcomeSink for Outcomes {
    fn decided(&self, _: u64, outcome: Outcome) {
        self.0.lock().unwrap().push(outcome);
    }
}

struct Bench {
    core: Core,
    now: Arc<AtomicI64>,
    house: House,
    report: Arc<Report>,
    start: Instant,
    seq: u64,
}

impl Bench {
    async fn open(data: &Path) -> Self {
        let mut config = Config::default();
        config.store.data = data.to_owned();
        config.node.shards = 2;
        config.durability.cut_every = Duration::from_secs(1_000_000);
        let text =
            "CREATE STREAM telemetry (t DOUBLE) WITH (retain = INTERVAL '1 day', partition = 'hour');".to_owned();
        let project = project::check(vec![SourceFile { name: "p.sql".to_owned(), text }]).unwrap();
        let now = Arc::new(AtomicI64::new(TIME));
        let clock: engine::clock::Clock = {
            let now = now.clone();
            Arc::new(move || Timestamp(now.load(Ordering::Relaxed)))
        };
        let core = Core::open(&config, project, clock, Arc::new(Silent)).await.unwrap();
        let report = Arc::new(Report::default());
        let house = House::new(core.tables.clone(), core.holds.clone(), Duration::ZERO, report.clone());
        Self { core, now, house, report, start: Instant::now(), seq: 0 }
    }

    fn now(&self) -> i64 {
        self.now.load(Ordering::Relaxed)
    }

    /// One record of each device; returns when all are durable.
    async fn round(&mut self) {
        self.seq += 1;
        let sink = Arc::new(Outcomes::default());
        for (name, clock) in DEVICES {
            let record = format!(r#"{{"ts": {}, "epoch": 7, "seq": {}, "t": 21.5}}"#, clock(self.now()), self.seq);
            let inbound = Inbound {
                channel: Channel::Telemetry,
                payload: Bytes::from(record),
                format: None,
                received: Timestamp(self.now()),
                session: 1,
                reply: Some(Reply { sink: sink.clone(), ticket: 0 }),
                credit: Credit::free(),
            };
            let door = self.core.node.open(&DeviceId::new(name).unwrap()).await;
            self.core.node.push(&door, inbound).unwrap();
        }
        for _ in 0..10_000 {
            let outcomes = sink.0.lock().unwrap().clone();
            if outcomes.len() == DEVICES.len() {
                assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Stored), "{outcomes:?}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("no outcome within 10 s");
    }

    /// A look of retention, by this clock.
    async fn look(&mut self, now: i64) {
        let mut view = View { policies: policies(&self.core.project(), &Default::default()), ..View::default() };
        for (shard, status) in (0..).zip(&self.core.statuses) {
            view.done.insert(ShardId(shard), *status.cut.borrow());
            for (table, ranges) in &*status.needed.lock() {
                view.needed.entry(table.clone()).or_default().extend(ranges);
            }
        }
        self.house.look(&view, Timestamp(now), self.start + Duration::from_secs(1)).await;
        assert_eq!(self.report.failures.load(Ordering::Relaxed), 0);
    }

    async fn number(&self, sql: &str) -> i64 {
        let context = query::over_engine(&self.core, query::runtime(limits::QUERY_MEMORY).unwrap()).await.unwrap();
        let bounds = query::Bounds { rows: 10, time: Duration::from_secs(30) };
        let table = query::run(&context, sql, bounds).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let column = table.batches[0].column(0);
        let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Int64).unwrap();
        column.as_primitive::<Int64Type>().value(0)
    }
}

/// Folders of hours, as `date=../hour=..`.
fn hours(data: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let names = |path: &Path| -> Vec<std::path::PathBuf> {
        std::fs::read_dir(path).map(|all| all.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
    };
    for date in names(&data.join("tables/telemetry")).into_iter().filter(|path| path.is_dir()) {
        for hour in names(&date).into_iter().filter(|path| !names(path).is_empty()) {
            let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
            all.push(format!("{}/{}", name(&date), name(&hour)));
        }
    }
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wrong_clock_moves_what_is_kept() {
    let data = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(data.path()).await;
    let mut dropped = 0;
    for quarter in 1..=12 {
        for _ in 0..36 {
            bench.round().await;
            bench.now.fetch_add(EVERY, Ordering::Relaxed);
        }
        bench.core.flush().await.unwrap();
        let now = bench.now();
        // Before and after: the engine's clock may be wrong for a moment, too.
        bench.look(0).await;
        if quarter % 3 == 0 {
            bench.look(4_102_444_800 * SECOND).await;
        }
        bench.look(now).await;
        let sent = quarter * 36;
        // Nobody loses a row that is young enough, by the time it was received.
        for (name, _) in DEVICES {
            let sql = format!(
                "SELECT count(*) FROM telemetry WHERE device = '{name}' AND ts_ingest >= to_timestamp_nanos({})",
                now - RETAIN + HOUR
            );
            assert_eq!(bench.number(&sql).await, sent.min((RETAIN - HOUR) / EVERY), "{name} after {quarter} quarters");
        }
        // Nobody keeps one that is older than an hour more: partitions go whole.
        let oldest = bench.number("SELECT min(ts_ingest) FROM telemetry").await;
        assert!(oldest >= now - RETAIN - 2 * HOUR, "{} h old", (now - oldest) / HOUR);
        let newest = bench.number("SELECT max(ts) FROM telemetry").await;
        assert!(newest <= now, "{} h ahead", (newest - now) / HOUR);
        dropped += usize::from(oldest > TIME);
    }
    assert!(dropped >= 7, "retention has dropped something after {dropped} of 12 quarters");
    // Nor is anything left on the disk of hours that are gone, or far from now.
    bench.look(bench.now()).await;
    let hours = hours(data.path());
    assert!((24..=27).contains(&hours.len()), "{hours:?}");
    assert!(
        hours.iter().all(|hour| hour.starts_with("date=2026-11-24") || hour.starts_with("date=2026-11-25")),
        "{hours:?}"
    );
    bench.core.shutdown(true).await.unwrap();
}
