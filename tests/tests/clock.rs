//! Promise: times of devices with wrong clocks are right within the stated error, the same after a restart, and nobody else
//! notices: not the windows of other devices, not what retention keeps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actors::admission::Credit;
use actors::message::{Channel, Inbound, Ingress, Outcome, OutcomeSink, Reply};
use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use device::id::DeviceId;
use device::payload::{FrameHeader, FrameRecord, encode_frame};
use device::schema::{OwnedValue, SchemaVersion};
use device::time::{SECOND, Timestamp};
use engine::config::Config;
use engine::core::{Core, Silent};
use engine::{limits, project, query};
use sql::SourceFile;

/// 2026-11-23T10:00:00Z
const TIME: i64 = 1_795_428_000 * SECOND;
const MS: i64 = SECOND / 1000;

const PROJECT: &str = "CREATE STREAM telemetry (t DOUBLE OPTIONS (id = 1), truth BIGINT OPTIONS (id = 2));
CREATE PIPELINE minutes AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS w, count(*) AS n, min(truth) AS low, max(truth) AS high
FROM telemetry GROUP BY device, w;\n";

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
}

impl Bench {
    async fn open(data: &Path, at: i64) -> Self {
        let mut config = Config::default();
        config.store.data = data.to_owned();
        config.node.shards = 1;
        config.durability.checkpoint_every = Duration::from_millis(200);
        config.durability.cut_every = Duration::from_secs(3600);
        let file = SourceFile { name: "p.sql".to_owned(), text: PROJECT.to_owned() };
        let now = Arc::new(AtomicI64::new(at));
        let clock: engine::clock::Clock = {
            let now = now.clone();
            Arc::new(move || Timestamp(now.load(Ordering::Relaxed)))
        };
        let core = Core::open(&config, project::check(vec![file]).unwrap(), clock, Arc::new(Silent)).await.unwrap();
        Self { core, now }
    }

    async fn send(&self, device: &str, payload: Vec<u8>, received: i64) {
        self.now.fetch_max(received, Ordering::Relaxed);
        let sink = Arc::new(Outcomes::default());
        let door = self.core.node.open(&DeviceId::new(device).unwrap()).await;
        let inbound = Inbound {
            channel: Channel::Telemetry,
            payload: Bytes::from(payload),
            format: None,
            received: Timestamp(received),
            session: 1,
            reply: Some(Reply { sink: sink.clone(), ticket: 0 }),
            credit: Credit::free(),
        };
        self.core.node.push(&door, inbound).unwrap();
        for _ in 0..10_000 {
            if let Some(outcome) = sink.0.lock().unwrap().pop() {
                assert_eq!(outcome, Outcome::Stored);
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("no outcome within 10 s");
    }

    /// Waits until so many rows can be read: what is durable is shown a moment later.
    async fn shows(&self, rows: i64) {
        for _ in 0..1000 {
            if self.numbers("SELECT count(*) FROM telemetry").await == [[Some(rows)]] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{rows} rows do not show");
    }

    /// All rows of a query, as numbers.
    async fn numbers(&self, sql: &str) -> Vec<Vec<Option<i64>>> {
        let context = query::over_engine(&self.core, query::runtime(limits::QUERY_MEMORY).unwrap()).await.unwrap();
        let bounds = query::Bounds { rows: 100_000, time: Duration::from_secs(30) };
        let table = query::run(&context, sql, bounds).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let mut rows = Vec::new();
        for batch in &table.batches {
            for row in 0..batch.num_rows() {
                let value = |column: &arrow::array::ArrayRef| {
                    let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Int64).unwrap();
                    let numbers = column.as_primitive::<Int64Type>();
                    numbers.is_valid(row).then(|| numbers.value(row))
                };
                rows.push(batch.columns().iter().map(value).collect());
            }
        }
        rows
    }
}

/// A device of the test: its clocks and what it measured.
struct Clocked {
    name: &'static str,
    /// Wall clock less true time, at the begin, and ppm.
    offset: i64,
    ppm: i64,
    /// Its monotonic clock is not told, nor what it measures.
    simple: bool,
    epoch: u64,
    seq: u64,
    sample: Option<(i64, u64)>,
}

impl Clocked {
    fn new(name: &'static str, offset: i64, ppm: i64) -> Self {
        Self { name, offset, ppm, simple: false, epoch: 1 << 40, seq: 1, sample: None }
    }

    fn mono(&self, truth: i64) -> i64 {
        let passed = truth - TIME;
        1000 * SECOND + passed + passed / 1000 * self.ppm / 1000
    }

    fn wall(&self, truth: i64) -> i64 {
        TIME - 1000 * SECOND + self.offset + self.mono(truth)
    }

    /// Records made at these times, sent at one, 20 ms on the way. The answer takes 20 ms, too.
    async fn send(&mut self, bench: &Bench, made: &[i64], sent: i64) {
        let record = |truth: &i64| FrameRecord {
            ts: Timestamp(self.wall(*truth)),
            values: vec![(1, OwnedValue::F64(1.0)), (2, OwnedValue::I64(*truth))],
            flags: 0,
        };
        let records: Vec<FrameRecord> = made.iter().map(record).collect();
        let mono = |truth: i64| (!self.simple).then(|| self.mono(truth) as u64);
        let header = FrameHeader {
            epoch: self.epoch,
            seq: self.seq,
            schema_id: 1,
            schema_version: SchemaVersion { major: 1, minor: 0 },
            base_time: records[0].ts,
            send_time: Timestamp(self.wall(sent)),
            mono_send: mono(sent),
            mono_base: mono(made[0]),
            clock: self.sample,
            ..FrameHeader::default()
        };
        // No two messages take the same time.
        let received = sent + 20 * MS + (self.seq as i64 % 7) * MS;
        bench.send(self.name, encode_frame(&header, &records).unwrap(), received).await;
        self.seq += records.len() as u64;
        if !self.simple {
            let back = received + 20 * MS;
            let there = (received - self.wall(sent)) + (received - self.wall(back));
            self.sample = Some((there / 2, (self.mono(back) - self.mono(sent)) as u64));
        }
    }
}

/// Not the first three records of `behind`, of which nothing was known yet.
const LATER: &str = "w >= to_timestamp_nanos(1795428000000000000)";

const ALL: &str = "SELECT ts, ts_device, truth, clock_err_ns, clock_q, seq, ts_ingest FROM telemetry";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_clocks_are_corrected_and_nobody_else_notices() {
    let data = tempfile::tempdir().unwrap();
    let (first, second) = (data.path().join("first"), data.path().join("second"));
    let mut devices = vec![
        Clocked::new("right", 0, 0),
        Clocked::new("seventies", -TIME + 1000 * SECOND, 20),
        Clocked::new("future", 4_102_444_800 * SECOND - TIME, -20),
        Clocked::new("fast", 10 * MS, 300),
        Clocked::new("behind", -3600 * SECOND, 0),
        Clocked { simple: true, ..Clocked::new("simple", 4_102_444_800 * SECOND - TIME, 0) },
    ];
    let bench = Bench::open(&first, TIME).await;
    // A quarter of an hour: a record each 5 s, a frame each 20 s.
    for n in 0..45 {
        let at = |k: i64| TIME + n * 20 * SECOND + k * 5 * SECOND;
        for device in &mut devices {
            device.send(&bench, &[at(1), at(2), at(3)], at(4)).await;
        }
        if n == 20 {
            // What was made before it was set by an hour, and is sent after it.
            let made: Vec<i64> = vec![at(4) + SECOND / 10];
            let ts = devices[4].wall(made[0]);
            devices[4].offset = 0;
            let device = &mut devices[4];
            let header = FrameHeader {
                epoch: device.epoch,
                seq: device.seq,
                schema_id: 1,
                schema_version: SchemaVersion { major: 1, minor: 0 },
                base_time: Timestamp(ts),
                send_time: Timestamp(device.wall(at(4) + SECOND)),
                mono_send: Some(device.mono(at(4) + SECOND) as u64),
                mono_base: Some(device.mono(made[0]) as u64),
                clock: Some((0, 40 * MS as u64)),
                flags: 1,
                ..FrameHeader::default()
            };
            let values = vec![(1, OwnedValue::F64(1.0)), (2, OwnedValue::I64(made[0]))];
            let record = FrameRecord { ts: Timestamp(ts), values, flags: 0 };
            bench.send("behind", encode_frame(&header, &[record]).unwrap(), at(4) + SECOND + 20 * MS).await;
            device.seq += 1;
        }
    }
    bench.shows(6 * 45 * 3 + 1).await;
    let rows = bench.numbers(&format!("{ALL} ORDER BY device, seq")).await;
    let mut held = 0;
    for row in &rows {
        let [ts, _, truth, err, quality, _, ingest] = row[..] else { panic!("{row:?}") };
        let (ts, truth, ingest) = (ts.unwrap(), truth.unwrap(), ingest.unwrap());
        assert!(ts <= ingest + 5 * SECOND, "{row:?}");
        assert_eq!(quality == Some(4), err.is_none(), "{row:?}");
        held += usize::from(err.is_none_or(|err| (ts - truth).abs() <= err));
    }
    println!("{held} of {} rows within their error", rows.len());
    assert!(held * 100 >= rows.len() * 99);
    // A device whose clock is right keeps its times, bit for bit; all keep theirs in `ts_device`.
    let kept = "SELECT count(*) FROM telemetry WHERE device = 'right' AND ts = ts_device AND clock_q = 0 AND clock_err_ns < 60000000";
    assert_eq!(
        bench.numbers(kept).await,
        [[Some(43 * 3)]],
        "the first frame has no measurement, the second none of a known age"
    );
    for device in &devices {
        let sql = format!("{ALL} WHERE device = '{}' AND seq > 100 ORDER BY seq", device.name);
        for row in bench.numbers(&sql).await {
            assert_eq!(row[1], Some(device.wall(row[2].unwrap())), "{}", device.name);
        }
    }
    // Unknown is only what came before there was anything to know.
    let unknown = "SELECT count(*) FROM telemetry WHERE clock_q = 4 AND device";
    assert_eq!(bench.numbers(&format!("{unknown} IN ('right', 'fast', 'behind')")).await, [[Some(0)]]);
    assert_eq!(bench.numbers(&format!("{unknown} IN ('seventies', 'future')")).await, [[Some(6)]]);
    assert_eq!(bench.numbers(&format!("{unknown} = 'simple'")).await, [[Some(9)]]);
    let events = "SELECT count(*) FILTER (WHERE event = 'synced'), count(*) FILTER (WHERE event = 'drift'), \
                  count(*) FILTER (WHERE event = 'ended'), max(clock_id) FROM _clock WHERE device";
    let of = |device: &str| format!("{events} = '{device}'");
    assert_eq!(bench.numbers(&of("right")).await, [[Some(1), Some(0), Some(0), Some(1)]]);
    assert_eq!(bench.numbers(&of("fast")).await, [[Some(1), Some(1), Some(0), Some(1)]], "300 ppm");
    assert_eq!(bench.numbers(&of("behind")).await, [[Some(2), Some(1), Some(1), Some(2)]]);
    let cleared = "SELECT count(*) FROM _clock WHERE event = 'drift_cleared' AND device = 'behind'";
    assert_eq!(bench.numbers(cleared).await, [[Some(1)]]);

    // How clocks stand now is a question to the engine.
    let stands = "SELECT clock_offset_ns, clock_err_ns, clock_rate_ppb, drifting, groups FROM devices WHERE device";
    let rows_of = |device: &str| format!("{stands} = '{device}'");
    bench.core.groups.set("line-1", Some(engine::groups::Members::Devices(vec!["behind".into()]))).unwrap();
    for device in devices.iter().filter(|device| !device.simple) {
        let row = bench.numbers(&rows_of(device.name).replace(", groups", "")).await.remove(0);
        let off = -(device.wall(TIME + 900 * SECOND) - (TIME + 900 * SECOND));
        let [Some(offset), Some(err), rate, Some(drifting)] = row[..] else { panic!("{row:?}") };
        assert!((offset - off).abs() <= err.max(60 * MS), "{}: {row:?}, is {off}", device.name);
        assert!(rate.is_none_or(|rate| (rate + device.ppm * 1000).abs() < 20_000), "{}: {row:?}", device.name);
        assert_eq!(drifting == 1, !matches!(device.name, "right" | "behind"), "{}: {row:?}", device.name);
    }
    let listed = "SELECT count(*) FROM devices WHERE groups = 'line-1' AND device = 'behind'";
    assert_eq!(bench.numbers(listed).await, [[Some(1)]]);

    // After a crash the rows are the same, and what is known of the clocks goes on where it stood.
    bench.core.shutdown(false).await.unwrap();
    copy(&first, &second);
    let bench = Bench::open(&second, TIME + 900 * SECOND).await;
    assert_eq!(bench.numbers(&format!("{ALL} ORDER BY device, seq")).await, rows);
    let mut expected = rows.len() as i64;
    for device in &mut devices {
        let made = TIME + 910 * SECOND;
        device.sample = None;
        device.send(&bench, &[made], made + SECOND).await;
        expected += 1;
        bench.shows(expected).await;
        let sql = format!("{ALL} WHERE device = '{}' ORDER BY seq DESC LIMIT 1", device.name);
        let row = bench.numbers(&sql).await.remove(0);
        let off = (row[0].unwrap() - row[2].unwrap()).abs();
        assert!(row[4] < Some(4) && off <= row[3].unwrap(), "{}: {row:?}", device.name);
        assert!(device.simple || off < 60 * MS, "{}: {row:?}", device.name);
    }
    bench.core.flush().await.unwrap();
    // Windows are those of the true time, and each device has its own.
    let windows = bench
        .numbers(&format!("SELECT w, n, low, high FROM minutes WHERE device IN ('right', 'behind') AND {LATER}"))
        .await;
    assert!(windows.len() > 25, "{} windows", windows.len());
    for window in windows {
        let [Some(begin), Some(_), Some(low), Some(high)] = window[..] else { panic!("{window:?}") };
        assert!(low >= begin - 60 * MS && high < begin + 60 * SECOND + 60 * MS, "{window:?}");
    }
    let least =
        "SELECT min(n), max(n) FROM minutes WHERE device = 'right' AND w < to_timestamp_nanos(1795428840000000000)";
    assert_eq!(bench.numbers(least).await, [[Some(9), Some(9)]], "nobody has moved the windows of others");
    // No partition lies in the future or the past: retention looks at nothing else.
    let hours = bench.numbers("SELECT count(DISTINCT date_trunc('hour', ts)) FROM telemetry").await;
    assert_eq!(hours, [[Some(2)]], "but for records of `behind` before anything was measured");
    bench.core.shutdown(true).await.unwrap();
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
