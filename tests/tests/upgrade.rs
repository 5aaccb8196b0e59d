//! Promise: a data directory of an older engine opens, adds up, and goes on.
//!
//! `tests/golden/data_v1` was written by `write_it_anew` below: two shards, files in two tables, an open window in a
//! checkpoint, closed rows in the outbox, records behind the checkpoint that only the log has, dead letters, losses. A
//! change that makes old directories unreadable fails here. Directories of formats that are no longer written stay.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actors::admission::Credit;
use actors::message::{Channel, Inbound, Ingress, Outcome, OutcomeSink, Reply, Stray};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use device::entry::{LossReason, Reason};
use device::id::DeviceId;
use device::payload::{FrameHeader, FrameRecord, LossRange, encode_frame};
use device::schema::{OwnedValue, SchemaVersion};
use device::time::{SECOND, Timestamp};
use engine::config::Config;
use engine::core::{Core, Silent};
use engine::{audit, limits, project, query};
use sql::SourceFile;

/// 2026-11-23T10:00:00Z: when the directory was written, by the clock that it was written with.
const TIME: i64 = 1_795_428_000 * SECOND;

const PROJECT: &str = "CREATE STREAM telemetry (
  temperature DOUBLE OPTIONS (id = 1, unit = 'Cel'),
  status TEXT OPTIONS (id = 2)
) WITH (version = '1.0');
CREATE PIPELINE climate_1m AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start,
       avg(temperature) AS temperature_avg, approx_percentile_cont(temperature, 0.5) AS temperature_p50, count(*) AS n
FROM telemetry GROUP BY device, window_start;
";

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/data_v1")
}

#[derive(Debug, Default)]
struct Outcomes(Mutex<Vec<Outcome>>);

impl OutcomeSink for Outcomes {
    fn decided(&self, _: u64, outcome: Outcome) {
        self.0.lock().unwrap().push(outcome);
    }
}

struct Bench {
    core: Core,
    clock: engine::clock::Clock,
    /// The clock is so far ahead of where it would be.
    ahead: Arc<AtomicI64>,
}

impl Bench {
    /// Opens `data` at a time; the clock goes on from there.
    async fn open(data: &Path, time: i64) -> Result<Self, engine::core::CoreError> {
        let mut config = Config::default();
        config.store.data = data.to_owned();
        config.node.shards = 2;
        config.durability.checkpoint_every = Duration::from_millis(500);
        config.durability.cut_every = Duration::from_secs(3600);
        let file = SourceFile { name: "p.sql".to_owned(), text: PROJECT.to_owned() };
        let start = Instant::now();
        let ahead = Arc::new(AtomicI64::new(0));
        let moved = ahead.clone();
        let clock: engine::clock::Clock =
            Arc::new(move || Timestamp(time + moved.load(Ordering::Relaxed) + start.elapsed().as_nanos() as i64));
        let core = Core::open(&config, project::check(vec![file]).unwrap(), clock.clone(), Arc::new(Silent)).await?;
        Ok(Self { core, clock, ahead })
    }

    /// Sends a message and waits for its outcome.
    async fn send(&self, device: &str, payload: Vec<u8>) -> Outcome {
        let sink = Arc::new(Outcomes::default());
        let door = self.core.node.open(&DeviceId::new(device).unwrap()).await;
        let inbound = Inbound {
            channel: Channel::Telemetry,
            payload: Bytes::from(payload),
            format: None,
            received: (self.clock)(),
            session: 1,
            reply: Some(Reply { sink: sink.clone(), ticket: 0 }),
            credit: Credit::free(),
        };
        self.core.node.push(&door, inbound).unwrap();
        self.outcome(&sink).await
    }

    async fn outcome(&self, sink: &Outcomes) -> Outcome {
        for _ in 0..1000 {
            if let Some(outcome) = sink.0.lock().unwrap().pop() {
                return outcome;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no outcome within 10 s");
    }

    async fn stray(&self) -> Outcome {
        let sink = Arc::new(Outcomes::default());
        self.core.node.stray(Stray {
            sender: "a b".to_owned(),
            topic: "devices/a b/telemetry".to_owned(),
            payload: Bytes::from_static(b"{}"),
            reason: Reason::BadDevice,
            text: "no device id".to_owned(),
            received: (self.clock)(),
            reply: Some(Reply { sink: sink.clone(), ticket: 0 }),
            credit: Credit::free(),
        });
        self.outcome(&sink).await
    }

    async fn number(&self, sql: &str) -> i64 {
        let context = query::over_engine(&self.core, query::runtime(limits::QUERY_MEMORY).unwrap()).await.unwrap();
        let bounds = query::Bounds { rows: 10, time: Duration::from_secs(30) };
        let table = query::run(&context, sql, bounds).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        table.batches.iter().find(|batch| batch.num_rows() > 0).unwrap().column(0).as_primitive::<Int64Type>().value(0)
    }

    /// Every device's account is right; returns (device, stored, rows, lost) over all its epochs.
    async fn audit(&self) -> Vec<(String, u64, u64, u64)> {
        let ids = audit::known_devices(&self.core, None, 100).await.unwrap();
        let audits = audit::audit(&self.core, query::runtime(limits::QUERY_MEMORY).unwrap(), &ids).await.unwrap();
        let sums = audits.into_iter().map(|audit| {
            assert!(audit.ok, "{audit:?}");
            let sum = |of: fn(&audit::EpochAudit) -> u64| audit.epochs.iter().map(of).sum::<u64>();
            (audit.device.clone(), sum(|e| e.stored), sum(|e| e.rows), sum(|e| e.lost))
        });
        sums.collect()
    }
}

/// A frame of `count` records from `seq` on, one a second from `at` seconds after [`TIME`].
fn frame(seq: u64, count: i64, at: i64, losses: Vec<LossRange>) -> Vec<u8> {
    let header = FrameHeader {
        epoch: 1 << 40,
        seq,
        schema_id: 1,
        schema_version: SchemaVersion { major: 1, minor: 0 },
        base_time: Timestamp(TIME + at * SECOND),
        send_time: Timestamp(TIME + at * SECOND),
        losses,
        ..FrameHeader::default()
    };
    let record = |n: i64| FrameRecord {
        ts: Timestamp(TIME + (at + n) * SECOND),
        values: vec![(1, OwnedValue::F64(20.0 + n as f64)), (2, OwnedValue::Text("ok".to_owned()))],
        flags: 0,
    };
    encode_frame(&header, &(0..count).map(record).collect::<Vec<_>>()).unwrap()
}

fn plain(seq: u64, at: i64) -> Vec<u8> {
    let ts = TIME + at * SECOND;
    format!(r#"{{"epoch": 7, "seq": {seq}, "ts": {ts}, "temperature": 1.5, "colour": "red"}}"#).into_bytes()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_format_1_opens_adds_up_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    copy(&golden(), &data);
    // An hour later, so that all windows are over.
    let bench = Bench::open(&data, TIME + 3600 * SECOND).await.unwrap();
    let row = |device: &str, stored, rows, lost| (device.to_owned(), stored, rows, lost);
    assert_eq!(bench.audit().await, [row("plain-1", 3, 3, 0), row("pump-7", 68, 68, 2)]);
    assert_eq!(bench.number("SELECT count(*) FROM telemetry").await, 71);
    assert_eq!(bench.number("SELECT count(*) FROM telemetry WHERE extra = '{\"colour\":\"red\"}'").await, 3);
    assert_eq!(bench.number("SELECT count(*) FROM _dead_letters").await, 2);
    assert_eq!(bench.number("SELECT count(*) FROM _losses").await, 1);
    let files = bench.number("SELECT count(*) FROM climate_1m").await;
    assert!(files > 0, "windows that were closed then are there");

    // Repeats of what is in files, in the checkpoint and in the log alone are repeats still.
    for payload in [frame(1, 30, 0, vec![]), frame(31, 30, 30, vec![]), frame(63, 8, 130, vec![])] {
        assert_eq!(bench.send("pump-7", payload).await, Outcome::Stored);
    }
    assert_eq!(bench.send("plain-1", plain(3, 131)).await, Outcome::Stored);
    assert_eq!(bench.number("SELECT count(*) FROM telemetry").await, 71);
    // It goes on.
    assert_eq!(bench.send("pump-7", frame(71, 5, 3600, vec![])).await, Outcome::Stored);
    assert_eq!(bench.send("plain-1", plain(4, 3600)).await, Outcome::Stored);
    bench.core.flush().await.unwrap();
    assert_eq!(bench.audit().await, [row("plain-1", 4, 4, 0), row("pump-7", 73, 73, 2)]);
    // Windows that were open in the checkpoint, and went on in the log, are closed with all their rows.
    assert_eq!(bench.number("SELECT sum(n) FROM climate_1m WHERE device = 'pump-7'").await, 68);
    assert_eq!(bench.number("SELECT max(n) FROM climate_1m WHERE device = 'pump-7'").await, 60);
    bench.core.shutdown(true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_a_newer_format_is_left_alone_and_says_what_to_do() {
    for (file, old, new) in [
        ("registry/node/node.json", "\"format\": 1", "\"format\": 2"),
        ("registry/pipelines/project.json", "\"version\": 1", "\"version\": 2"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        copy(&golden(), &data);
        let text = std::fs::read_to_string(data.join(file)).unwrap();
        assert!(text.contains(old), "{file}: {text}");
        std::fs::write(data.join(file), text.replace(old, new)).unwrap();
        let error = Bench::open(&data, TIME).await.err().expect("a newer format is refused").to_string();
        assert!(error.contains(file) && error.contains("run the weir that wrote it"), "{error}");
    }
}

/// `cargo test --workspace --test upgrade -- --ignored write_it_anew` writes `tests/golden/data_v1`, if it is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes the golden directory"]
async fn write_it_anew() {
    let data = golden();
    assert!(!data.exists(), "{} is there: a directory that was written stays as it is", data.display());
    let bench = Bench::open(&data, TIME + 60 * SECOND).await.unwrap();
    let lost = LossRange { from: 61, to: 62, reason: LossReason::RingFull };
    // A whole minute and what a cut writes of it.
    assert_eq!(bench.send("pump-7", frame(1, 30, 0, vec![])).await, Outcome::Stored);
    assert_eq!(bench.send("pump-7", frame(31, 30, 30, vec![lost])).await, Outcome::Stored);
    assert_eq!(bench.send("plain-1", plain(1, 1)).await, Outcome::Stored);
    assert!(matches!(bench.stray().await, Outcome::Refused { kept: true, .. }));
    bench.core.flush().await.unwrap();
    // A checkpoint behind the cut: the first minute is closed (outbox), the third is open.
    bench.ahead.store(75 * SECOND, Ordering::Relaxed);
    assert_eq!(bench.send("pump-7", frame(63, 4, 130, vec![])).await, Outcome::Stored);
    assert_eq!(bench.send("plain-1", plain(2, 130)).await, Outcome::Stored);
    tokio::time::sleep(Duration::from_secs(3)).await;
    // And what only the log has.
    assert_eq!(bench.send("pump-7", frame(67, 4, 134, vec![])).await, Outcome::Stored);
    assert_eq!(bench.send("plain-1", plain(3, 131)).await, Outcome::Stored);
    assert!(matches!(bench.send("plain-1", b"no payload".to_vec()).await, Outcome::Refused { kept: true, .. }));
    bench.core.shutdown(false).await.unwrap();
}
