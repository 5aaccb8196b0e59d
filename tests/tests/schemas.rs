//! Promise: a frame that comes before its schema is declared becomes rows when it is, each exactly once; and a data directory
//! refuses a project that would change what it holds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actors::admission::Credit;
use actors::message::{Channel, Inbound, Ingress, Outcome, OutcomeSink, Reply};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use device::id::DeviceId;
use device::payload::{FrameHeader, FrameRecord, encode_frame};
use device::schema::{OwnedValue, SchemaVersion};
use device::time::{SECOND, Timestamp};
use engine::config::Config;
use engine::core::{Core, CoreError, Silent};
use engine::{audit, limits, project, query};
use sql::SourceFile;

/// 2026-11-23T10:00:00Z
const TIME: i64 = 1_795_428_000 * SECOND;

const FIRST: &str = "CREATE STREAM telemetry (t FLOAT OPTIONS (id = 1)) WITH (version = '1.0');\n";
const SECOND_MINOR: &str =
    "CREATE STREAM telemetry (t DOUBLE OPTIONS (id = 1), h DOUBLE OPTIONS (id = 2)) WITH (version = '1.1');\n";
const PUMPS: &str = "CREATE STREAM pumps (rpm BIGINT OPTIONS (id = 1)) WITH (schema = 7, version = '3.2');
CREATE PIPELINE fast AS SELECT ts, device, seq, rpm FROM pumps;
CREATE PIPELINE turns AS SELECT device, tumble(ts, INTERVAL '1 minute') AS w, count(*) AS n FROM pumps GROUP BY device, w;\n";

#[derive(Debug, Default)]
struct Outcomes(Mutex<Vec<Outcome>>);

impl OutcomeSink for Outcomes {
    fn decided(&self, _: u64, outcome: Outcome) {
        self.0.lock().unwrap().push(outcome);
    }
}

/// A data directory. Each engine opens a copy of what the one before it left, as after a death of the machine: an engine that
/// has ended may hold locks of its own for a moment longer.
struct Data(tempfile::TempDir);

impl Data {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn renew(&mut self) -> &Path {
        let fresh = tempfile::tempdir().unwrap();
        copy(self.0.path(), fresh.path());
        self.0 = fresh;
        self.0.path()
    }
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

struct Bench {
    core: Core,
}

impl Bench {
    async fn open(data: &mut Data, text: &str) -> Result<Self, CoreError> {
        let mut config = Config::default();
        config.store.data = data.renew().to_owned();
        config.node.shards = 1;
        config.durability.checkpoint_every = Duration::from_millis(200);
        config.durability.cut_every = Duration::from_secs(3600);
        let file = SourceFile { name: "p.sql".to_owned(), text: text.to_owned() };
        let start = Instant::now();
        let clock: engine::clock::Clock =
            Arc::new(move || Timestamp(TIME + 3600 * SECOND + start.elapsed().as_nanos() as i64));
        let core = Core::open(&config, project::check(vec![file]).unwrap(), clock, Arc::new(Silent)).await?;
        Ok(Self { core })
    }

    /// Opens, and waits until all letters have been looked at.
    async fn settled(data: &mut Data, text: &str) -> Self {
        let bench = Self::open(data, text).await.unwrap();
        for _ in 0..1000 {
            if bench.core.statuses.iter().all(|s| !s.redecoding.load(std::sync::atomic::Ordering::Acquire)) {
                return bench;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("letters are still looked at after 10 s");
    }

    async fn send(&self, device: &str, payload: Vec<u8>) -> Outcome {
        let sink = Arc::new(Outcomes::default());
        let door = self.core.node.open(&DeviceId::new(device).unwrap()).await;
        let inbound = Inbound {
            channel: Channel::Telemetry,
            payload: Bytes::from(payload),
            format: None,
            received: Timestamp(TIME + 3600 * SECOND),
            session: 1,
            reply: Some(Reply { sink: sink.clone(), ticket: 0 }),
            credit: Credit::free(),
        };
        self.core.node.push(&door, inbound).unwrap();
        for _ in 0..1000 {
            if let Some(outcome) = sink.0.lock().unwrap().pop() {
                return outcome;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no outcome within 10 s");
    }

    async fn waits(&self, device: &str, payload: Vec<u8>) {
        let outcome = self.send(device, payload).await;
        assert!(matches!(outcome, Outcome::Refused { kept: true, .. }), "{outcome:?}");
    }

    async fn number(&self, sql: &str) -> i64 {
        let context = query::over_engine(&self.core, query::runtime(limits::QUERY_MEMORY).unwrap()).await.unwrap();
        let bounds = query::Bounds { rows: 10, time: Duration::from_secs(30) };
        let table = query::run(&context, sql, bounds).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        table.batches.iter().find(|batch| batch.num_rows() > 0).unwrap().column(0).as_primitive::<Int64Type>().value(0)
    }

    /// Rows of a table and the sum of their numbers, after the audit of all devices.
    async fn rows(&self, table: &str) -> (i64, i64) {
        let ids = audit::known_devices(&self.core, None, 100).await.unwrap();
        let audits = audit::audit(&self.core, query::runtime(limits::QUERY_MEMORY).unwrap(), &ids).await.unwrap();
        for audit in audits {
            assert!(audit.ok, "{audit:?}");
        }
        (
            self.number(&format!("SELECT count(*) FROM {table}")).await,
            self.number(&format!("SELECT coalesce(sum(seq), 0) FROM {table}")).await,
        )
    }
}

/// Numbers of `pumps`, or a temperature.
fn frame(schema: u32, version: (u16, u16), seq: u64, count: i64) -> Vec<u8> {
    let value = if schema == 7 { OwnedValue::I64(900) } else { OwnedValue::F64(0.1) };
    frame_of((schema, version), seq, count, value)
}

fn frame_of((schema, version): (u32, (u16, u16)), seq: u64, count: i64, value: OwnedValue) -> Vec<u8> {
    let at = Timestamp(TIME + seq as i64 * SECOND);
    let header = FrameHeader {
        epoch: 1 << 40,
        seq,
        schema_id: schema,
        schema_version: SchemaVersion { major: version.0, minor: version.1 },
        base_time: at,
        send_time: at,
        ..FrameHeader::default()
    };
    let record = |n: i64| FrameRecord { ts: Timestamp(at.0 + n * SECOND), values: vec![(1, value.clone())], flags: 0 };
    encode_frame(&header, &(0..count).map(record).collect::<Vec<_>>()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_waited_for_their_schema_become_rows_once() {
    let data = &mut Data::new();
    let bench = Bench::open(data, FIRST).await.unwrap();
    bench.waits("a", frame(7, (3, 0), 1, 3)).await;
    // Overlaps the one before: only 4 and 5 are its own. Sent again it is nothing at all.
    bench.waits("a", frame(7, (3, 1), 2, 4)).await;
    assert_eq!(bench.send("a", frame(7, (3, 1), 2, 4)).await, Outcome::Stored);
    assert_eq!(bench.send("a", frame(1, (1, 0), 6, 2)).await, Outcome::Stored);
    // A version beyond, another major version, one that does not fit what will be declared.
    bench.waits("a", frame(7, (3, 3), 8, 1)).await;
    bench.waits("a", frame(7, (2, 0), 9, 1)).await;
    let wrong = frame_of((7, (3, 0)), 10, 1, OwnedValue::F64(0.1));
    bench.waits("a", wrong).await;
    bench.waits("a", frame(1, (1, 1), 11, 2)).await;
    assert_eq!(bench.rows("telemetry").await, (2, 13));
    assert_eq!(bench.number("SELECT CAST(sum(records) AS BIGINT) FROM _dead_letters").await, 10);
    // Nothing of it is in a file yet.
    bench.core.shutdown(false).await.unwrap();

    let both = format!("{SECOND_MINOR}{PUMPS}");
    for start in 0..3 {
        let bench = Bench::settled(data, &both).await;
        assert_eq!(bench.rows("pumps").await, (5, 15), "at start {start}");
        assert_eq!(bench.rows("telemetry").await, (4, 13 + 11 + 12), "at start {start}");
        assert_eq!(bench.rows("fast").await, (5, 15), "the pipeline has them, too");
        assert_eq!(bench.number("SELECT count(*) FROM telemetry WHERE t = 0.1 AND schema_minor = 1").await, 2);
        if start > 0 {
            assert_eq!(bench.send("a", frame(7, (3, 0), 1, 3)).await, Outcome::Stored);
            bench.core.flush().await.unwrap();
            assert_eq!(bench.rows("pumps").await, (5, 15), "a repetition is one still");
        }
        bench.core.shutdown(start == 2).await.unwrap();
    }

    // Not declared for a while, and declared again in a higher version: only what came meanwhile, or is new, is added.
    let bench = Bench::settled(data, SECOND_MINOR).await;
    bench.waits("a", frame(7, (3, 0), 13, 2)).await;
    bench.core.shutdown(false).await.unwrap();
    let again = format!("{SECOND_MINOR}{}", PUMPS.replace("'3.2'", "'3.3'"));
    for _ in 0..2 {
        let bench = Bench::settled(data, &again).await;
        assert_eq!(bench.rows("pumps").await, (8, 15 + 8 + 13 + 14));
        for _ in 0..3 {
            bench.core.flush().await.unwrap();
        }
        assert_eq!(bench.rows("pumps").await, (8, 15 + 8 + 13 + 14));
        bench.core.shutdown(false).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_letters_are_read_in_parts() {
    let data = &mut Data::new();
    let bench = Bench::open(data, FIRST).await.unwrap();
    for device in 0..30 {
        for seq in 0..50 {
            bench.waits(&format!("d{device}"), frame(7, (3, 2), 1 + seq * 2, 2)).await;
        }
    }
    bench.core.shutdown(true).await.unwrap();
    let both = format!("{FIRST}{PUMPS}");
    // Ended in the middle, it goes on where it was.
    let bench = Bench::open(data, &both).await.unwrap();
    bench.core.shutdown(false).await.unwrap();
    let bench = Bench::settled(data, &both).await;
    assert_eq!(bench.rows("pumps").await, (3000, 30 * 5050));
    assert_eq!(bench.rows("fast").await, (3000, 30 * 5050));
    bench.core.shutdown(true).await.unwrap();
}

async fn refused(data: &mut Data, text: String) -> String {
    Bench::open(data, &text).await.err().expect("it is refused").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_refuses_what_its_tables_cannot_become() {
    let data = &mut Data::new();
    Bench::open(data, SECOND_MINOR).await.unwrap().core.shutdown(true).await.unwrap();
    let narrower = refused(data, SECOND_MINOR.replace("'1.1'", "'1.2'").replace("t DOUBLE", "t FLOAT")).await;
    assert!(
        narrower.contains("the type of `t` was DOUBLE and is FLOAT") && narrower.contains("p.sql:1:"),
        "{narrower}"
    );
    assert!(refused(data, FIRST.to_owned()).await.contains("goes back: 1.1 counts already"));
    // What is no longer declared is known all the same.
    Bench::open(data, PUMPS).await.unwrap().core.shutdown(true).await.unwrap();
    assert!(refused(data, FIRST.to_owned()).await.contains("goes back: 1.1 counts already"));
    let majors = format!("{SECOND_MINOR}{}", FIRST.replace("'1.0'", "'2.0'"));
    let bench = Bench::open(data, &majors).await.unwrap();
    assert_eq!(bench.send("a", frame(1, (2, 0), 1, 3)).await, Outcome::Stored);
    assert_eq!(bench.send("a", frame(1, (1, 0), 4, 2)).await, Outcome::Stored);
    assert_eq!(bench.rows("telemetry_v2").await, (3, 6));
    assert_eq!(bench.number("SELECT sum(seq) FROM telemetry_all WHERE schema_major = 1").await, 9);
    bench.core.shutdown(true).await.unwrap();
    assert!(refused(data, FIRST.replace("'1.0'", "'2.0'")).await.contains("version 1 of `telemetry` is gone"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_declared_while_the_engine_runs() {
    let data = &mut Data::new();
    let bench = Bench::open(data, FIRST).await.unwrap();
    bench.waits("a", frame(7, (3, 0), 1, 3)).await;
    bench.waits("a", frame(1, (1, 1), 4, 2)).await;
    let take = async |text: &str| {
        let file = SourceFile { name: "p.sql".to_owned(), text: text.to_owned() };
        bench.core.go_over(&project::check(vec![file]).unwrap()).await
    };
    let both = format!("{SECOND_MINOR}{PUMPS}");
    assert!(take(&both).await.unwrap());
    for _ in 0..500 {
        if bench.number("SELECT count(*) FROM fast").await == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((bench.rows("pumps").await, bench.rows("telemetry").await), ((3, 6), (2, 9)));
    // From now on at once, and what was widened is whole.
    assert_eq!(bench.send("a", frame(7, (3, 2), 6, 1)).await, Outcome::Stored);
    assert_eq!(bench.send("a", frame(1, (1, 1), 7, 1)).await, Outcome::Stored);
    assert_eq!((bench.rows("pumps").await, bench.rows("telemetry").await), ((4, 12), (3, 16)));
    let narrower = take(&both.replace("'1.1'", "'1.2'").replace("t DOUBLE", "t FLOAT")).await.unwrap_err().to_string();
    assert!(narrower.contains("the type of `t` was DOUBLE and is FLOAT"), "{narrower}");
    assert_eq!(bench.number("SELECT count(*) FROM telemetry WHERE t = 0.1").await, 3);
    // No longer declared: its rows are accounted for, its frames wait again.
    assert!(take(SECOND_MINOR).await.unwrap());
    bench.waits("a", frame(7, (3, 0), 8, 1)).await;
    assert_eq!(bench.rows("telemetry").await, (3, 16));
    bench.core.shutdown(false).await.unwrap();
    for _ in 0..2 {
        let bench = Bench::settled(data, &both).await;
        assert_eq!((bench.rows("pumps").await, bench.rows("telemetry").await), ((5, 20), (3, 16)));
        bench.core.shutdown(false).await.unwrap();
    }
}
