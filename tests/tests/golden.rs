//! Promise: what an older engine or device wrote can be read, and today's bytes are those that others read already.
//!
//! One file of hex text below `tests/golden` for each format that crosses a border in time or between programs. Each
//! has to decode to the value that stands here, and the value has to encode to the file. A format that changes on
//! purpose gets a new version, a second file and a second value; the old pair stays. `WEIR_GOLDEN=write` writes
//! files that are not there yet. The formats inside `storage`, `pipelines` and `edge` have such tests beside their code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use device::ack::{Ack, EpochAck, Nack, Resend};
use device::alert::{self, Comparison, Event, Expr, IncidentId, State, Transition};
use device::clock::{self, Change as ClockChange, ChangeKind, Note, Piece, Sighting};
use device::command::{self, Order, Step};
use device::entry::{
    Body, DeadLetter, DecodeError, Entry, LogBody, LogRecord, Loss, LossReason, Partial, Reason, Records, Run,
};
use device::hello::{HeldEpoch, Hello, HelloAck};
use device::id::{DeviceId, ShardId};
use device::machine::{Channel, Device, EpochLedger, Message, SnapshotError, Watch};
use device::payload::{
    FrameHeader, FrameRecord, Layout, LossRange, PayloadFormat, encode_frame, read_frame_header, restamp,
};
use device::schema::{Catalog, Field, FieldType, OwnedValue, SchemaVersion, Stream};
use device::seq::{Barrier, Epoch, Position};
use device::shadow::{Ask, Change, Conflict, Policy, Reported, What, Winner};
use device::time::{SECOND, Timestamp};
use serde_json::json;

/// 2026-11-23T10:00:00Z
const TIME: i64 = 1_795_428_000 * SECOND;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// The bytes of a golden file; `today` are those of today's encoder.
fn golden(name: &str, today: &[u8]) -> Vec<u8> {
    let path = path(name);
    if !path.exists() && std::env::var("WEIR_GOLDEN").is_ok_and(|value| value == "write") {
        let mut text = String::new();
        for line in today.chunks(32) {
            line.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
            text.push('\n');
        }
        std::fs::write(&path, text).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).expect("a golden file is hex"))
        .collect();
    assert_eq!(today, bytes, "{name}: today's encoder writes other bytes than the engines and devices out there read");
    bytes
}

fn id(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

fn batch() -> LogRecord {
    let entry = |device: &str, received: i64, body| Entry { device: id(device), received: Timestamp(received), body };
    let records = Records {
        format: PayloadFormat::Json,
        payload: Bytes::from_static(br#"[{"a":1},{"a":2},{"a":3}]"#),
        runs: vec![
            Run { index: 0, len: 1, epoch: Epoch(u64::MAX >> 1), seq: 41 },
            Run { index: 2, len: 1, epoch: Epoch(7), seq: 300 },
        ]
        .into(),
        stamps: Default::default(),
        assured: true,
        clock: None,
    };
    let drawn = Records {
        format: PayloadFormat::Cbor,
        payload: Bytes::from_static(b"\xa2\x63seq\x05\x62ts\x1b\x18\xea\xa8\x2f\x8c\x0e\x00\x00"),
        runs: vec![Run { index: 0, len: 1, epoch: Epoch(99), seq: 5 }].into(),
        stamps: vec![Timestamp(TIME - SECOND)].into(),
        assured: true,
        clock: None,
    };
    let letter = DeadLetter {
        sender: "a b".to_owned(),
        topic: "devices/a b/telemetry".to_owned(),
        reason: Reason::BadDevice,
        text: "no device id".to_owned(),
        payload: Bytes::from_static(b"\x00\xff"),
        accounted: None,
    };
    let unknown = DeadLetter {
        sender: String::new(),
        accounted: Some((Epoch(7), 10, 3)),
        reason: Reason::UnknownSchema,
        ..letter.clone()
    };
    let loss = Loss { epoch: Epoch(7), from: 20, to: 29, reason: LossReason::RingFull };
    LogRecord {
        time: Timestamp(TIME),
        body: LogBody::Batch(vec![
            entry("pump-7", TIME - 5, Body::Records(records)),
            entry("pump-7", TIME - 4, Body::Loss(loss)),
            entry("urn:x:1", TIME - 3, Body::Records(drawn)),
            entry("urn:x:1", TIME - 2, Body::DeadLetter(unknown)),
            Entry { device: DeviceId::nobody(), received: Timestamp(TIME), body: Body::DeadLetter(letter) },
            entry("pump-7", TIME, Body::Closed { epoch: Epoch(7) }),
        ]),
    }
}

fn alerts() -> Vec<Entry> {
    let entry = |body| Entry { device: id("pump-7"), received: Timestamp(TIME), body };
    let ack = Some(alert::Ack { by: "ann".into(), until: Timestamp(TIME + 3600 * SECOND) });
    let incident = IncidentId::of("hot", 7, "pump-7", Timestamp(TIME - 9 * SECOND));
    let transition = Transition {
        number: 300,
        rule: "hot".into(),
        version: u64::MAX,
        ts: Timestamp(TIME - SECOND),
        event: Event::Told,
        from: State::Pending,
        to: State::Firing,
        severity: "critical".into(),
        incident,
        since: Timestamp(TIME - 9 * SECOND),
        value: Some(81.5),
        backfilled: true,
        history: true,
        stale: true,
        ack: ack.clone(),
        told: vec!["oncall".into(), "lead".into()],
        labels: "team=plant".into(),
    };
    let ended = Transition { number: 301, value: None, ack: None, to: State::NoData, ..transition.clone() };
    vec![
        entry(Body::Tick { floor: Timestamp(TIME - 60 * SECOND) }),
        entry(Body::Acknowledge { incident, ack }),
        entry(Body::Acknowledge { incident, ack: None }),
        entry(Body::Transitions(vec![transition, ended])),
    ]
}

fn object(value: serde_json::Value) -> serde_json::Map<String, serde_json::Value> {
    match value {
        serde_json::Value::Object(object) => object,
        other => panic!("{other}"),
    }
}

/// What shadows and commands write.
fn keeping() -> Vec<Entry> {
    let entry = |body| Entry { device: id("pump-7"), received: Timestamp(TIME), body };
    let path = vec!["a".into(), "b".into()];
    let changes = [
        What::Desired {
            dv: 300,
            patch: object(json!({"a": {"b": 1.5}})),
            expires: Some(Timestamp(TIME)),
            adopted: false,
        },
        What::Reported(Box::new(Reported {
            rv: 301,
            patch: object(json!({"c": null, "d": [1, "x"]})),
            full: true,
            applied: Some(299),
            turn: Some((u64::MAX, 3)),
            times: vec![(path.clone(), Timestamp(-1))],
            open: vec![path.clone()],
        })),
        What::Conflict(Box::new(Conflict {
            path: path.clone(),
            base: json!(null),
            desired: json!(2),
            reported: json!("x"),
            desired_at: Some(Timestamp(TIME)),
            reported_at: None,
            policy: Policy::Later,
            winner: Winner::Device,
        })),
        What::Expired { dv: 302, paths: vec![path] },
        What::Deleted { dv: 303, rv: 304 },
    ];
    let change = |(at, what)| {
        let request = (at == 0).then(|| "r-1".into());
        entry(Body::Shadow(Box::new(Change { shadow: "main".into(), by: "ann".into(), request, what })))
    };
    let order = Order {
        id: "c-1".into(),
        name: "open".into(),
        args: json!({"valve": 3}),
        deadline: Timestamp(TIME + 60 * SECOND),
        by: "ann".into(),
    };
    let mut entries: Vec<Entry> = changes.into_iter().enumerate().map(change).collect();
    entries.push(entry(Body::Command(Step::Queued(Box::new(order)))));
    let moved = Step::Moved { id: "c-1".into(), state: command::State::Running, out: json!({"at": 10}) };
    entries.push(entry(Body::Command(moved)));
    entries
}

#[test]
fn device_snapshots_with_shadows_and_commands() {
    let mut device = Device::new(id("pump-7"));
    let ask = Ask {
        shadow: "main".into(),
        patch: Some(object(json!({"a": {"b": 1}, "c": "x"}))),
        by: "ann".into(),
        request: Some("r-0".into()),
        if_dv: None,
        ttl: None,
    };
    let (_, entries) = device.ask(ask, Timestamp(TIME));
    for entry in entries.iter().chain(&keeping()[..2]).chain(&keeping()[5..]) {
        device.apply(Position(9), entry);
    }
    device.advance(Position(9));
    let bytes = golden("snapshot_v3.hex", &device.snapshot());
    let back = Device::restore(id("pump-7"), &bytes).unwrap();
    assert_eq!(back.snapshot(), bytes);
    let view = back.shadow("main", Timestamp(TIME - 1)).unwrap();
    assert_eq!((view.dv, view.rv, view.applied_dv, view.open.len()), (300, 301, 299, 1));
    assert_eq!(json!(view.desired), json!({"a": {"b": 1.5}, "c": "x"}));
    assert_eq!(back.commands().unwrap().find("c-1").unwrap().state, command::State::Running);
}

/// One stream with one field.
fn telemetry() -> Catalog {
    let field = Field { name: "t".into(), id: 1, kind: FieldType::F64, unit: None, scale: 0, comment: None };
    let version = SchemaVersion { major: 1, minor: 0 };
    Catalog::new(vec![Stream { name: "telemetry".into(), schema_id: Some(1), version, fields: vec![field] }])
}

/// A device with an incident, samples that wait, and transitions that are not in the log yet.
fn alerting() -> Device {
    let level = alert::Level {
        severity: "warning".into(),
        raise: Expr::Compare(Comparison::Greater, Box::new((Expr::Field(0), Expr::Int(80)))),
        clear: None,
        for_ns: 0,
        subject: Some(Expr::Field(0)),
    };
    let rule = alert::Rule {
        name: "hot".into(),
        version: 7,
        stream: 0,
        levels: vec![level],
        keep_firing_for_ns: 60 * SECOND,
        min_samples: 1,
        max_gap_ns: None,
        no_data_after_ns: Some(600 * SECOND),
        no_data: alert::NoData::Keep,
        backfill: alert::Backfill::Record,
        ladder: Vec::new(),
        labels: Vec::new(),
    };
    let mut device = Device::new(id("pump-7"));
    let catalog = telemetry();
    let rules = alert::Rules::new(5, vec![rule], Arc::new(catalog.clone()));
    // The last one was buffered while the device was away.
    for (at, (ts, t)) in [(0, 90), (3, 91), (6, 70), (7, 70), (-4000, 99)].into_iter().enumerate() {
        let ts = TIME + ts * SECOND;
        let payload = Bytes::from(format!(r#"{{"ts": {ts}, "epoch": 1, "seq": {}, "t": {t}}}"#, at + 1));
        let received = Timestamp(TIME + 8 * SECOND);
        let message = Message { channel: Channel::Telemetry, payload: &payload, format: None, received, session: 77 };
        let verdict = device.admit(message, &catalog, &mut || 5);
        let (position, streams) = (Position(at as u64 + 1), verdict.streams);
        for entry in &verdict.entries {
            device.apply_under(position, entry, Some(Watch { rules: &rules, streams }));
        }
        device.advance(position);
    }
    device
}

#[test]
fn device_snapshots_with_alerts() {
    let device = alerting();
    let bytes = golden("snapshot_v2.hex", &device.snapshot());
    let back = Device::restore(id("pump-7"), &bytes).unwrap();
    assert_eq!(back.snapshot(), bytes);
    let logs = |device: &Device| device.unlogged(Timestamp(TIME), 0);
    assert_eq!(logs(&back), logs(&device));
    let Some((Entry { body: Body::Transitions(transitions), .. }, 1)) = logs(&back) else { panic!("one transition") };
    assert_eq!(transitions.iter().map(|t| t.event).collect::<Vec<_>>(), [Event::Fired]);
    assert!(back.has_incident(IncidentId::of("hot", 7, "pump-7", Timestamp(TIME))));
}

/// Records with notes about clocks: all that a note can hold, and the least.
fn noted() -> Vec<Entry> {
    let piece = Piece {
        from: Timestamp(i64::MIN),
        at: Timestamp(TIME - 9 * SECOND),
        offset: -1_500_000_000,
        rate: -40_000,
        err: 12_000_000,
        err_rate: 10_000,
        quality: clock::SYNCED,
    };
    let later = Piece { from: Timestamp(TIME - SECOND), quality: clock::EXTRAPOLATED, ..piece };
    let (wall, since) = (Timestamp(TIME + SECOND), Timestamp(TIME - 3 * SECOND));
    let seen = Sighting { wall, since, mono: Some(77), sample: Some((-3, 9)), plain: false };
    let span = (Timestamp(TIME - 60 * SECOND), Timestamp(TIME + SECOND));
    let change = ClockChange { kind: ChangeKind::Drifting, clock: 3, span, offset: -5, err: 6, rate: Some(-250_000) };
    let full = Note {
        pieces: vec![piece, later].into(),
        seen: Some(seen),
        changes: vec![change, ClockChange { kind: ChangeKind::Synced, rate: None, ..change }],
    };
    let bare = Note { seen: None, changes: Vec::new(), pieces: vec![piece].into() };
    let ahead = Sighting { mono: None, sample: None, plain: true, ..seen };
    let ahead = Note { seen: Some(ahead), ..bare.clone() };
    let entry = |note: Note| {
        let records = Records {
            format: PayloadFormat::Json,
            payload: Bytes::from_static(br#"{"a":1}"#),
            runs: vec![Run { index: 0, len: 1, epoch: Epoch(7), seq: 300 }].into(),
            stamps: Default::default(),
            assured: true,
            clock: Some(Box::new(note)),
        };
        Entry { device: id("pump-7"), received: Timestamp(TIME), body: Body::Records(records) }
    };
    vec![entry(full), entry(bare), entry(ahead)]
}

/// A device with alerts, whose clock was set after it had been measured.
fn set() -> Device {
    let mut device = alerting();
    let catalog = telemetry();
    for n in 0..9 {
        let mono = 5 * SECOND + n * 130 * SECOND;
        let (wall, offset) = if n < 7 { (TIME - 6 * SECOND + mono, SECOND) } else { (TIME + mono, -5 * SECOND) };
        let header = FrameHeader {
            epoch: 9,
            seq: n as u64 + 1,
            schema_id: 1,
            schema_version: SchemaVersion { major: 1, minor: 0 },
            base_time: Timestamp(wall),
            send_time: Timestamp(wall),
            mono_send: Some(mono as u64),
            mono_base: Some(mono as u64),
            clock: Some((offset + n * 1000, 8_000_000 + n as u64)),
            ..FrameHeader::default()
        };
        let record = FrameRecord { ts: Timestamp(wall), values: vec![(1, OwnedValue::F64(1.0))], flags: 0 };
        let payload = Bytes::from(encode_frame(&header, &[record]).unwrap());
        let received = Timestamp(TIME + mono);
        let message = Message { channel: Channel::Telemetry, payload: &payload, format: None, received, session: 77 };
        let verdict = device.admit(message, &catalog, &mut || 5);
        let position = Position(100 + n as u64);
        verdict.entries.iter().for_each(|entry| drop(device.apply(position, entry)));
        device.advance(position);
    }
    device
}

#[test]
fn device_snapshots_with_clocks() {
    let device = set();
    let bytes = golden("snapshot_v4.hex", &device.snapshot());
    let back = Device::restore(id("pump-7"), &bytes).unwrap();
    assert_eq!(back.snapshot(), bytes);
    assert!(back.has_incident(IncidentId::of("hot", 7, "pump-7", Timestamp(TIME))), "alerts are there, too");
}

#[test]
fn log_records() {
    let barrier = LogBody::Barrier { barrier: Barrier(300), cut: true, catalog: 0x0123_4567_89ab_cdef };
    let partial = LogBody::Partial(Partial {
        pipeline: "fleet".to_owned(),
        shard: ShardId(3),
        number: 300,
        state: Bytes::from_static(b"a state"),
    });
    let of = |body| LogRecord { time: Timestamp(TIME + 1), body };
    for (name, record) in [
        ("log_batch_v1.hex", batch()),
        ("log_barrier_v1.hex", of(barrier)),
        ("log_partial_v2.hex", of(partial)),
        ("log_alerts_v3.hex", of(LogBody::Batch(alerts()))),
        ("log_shadows_v4.hex", of(LogBody::Batch(keeping()))),
        ("log_clock_v5.hex", of(LogBody::Batch(noted()))),
    ] {
        let mut today = Vec::new();
        record.encode(&mut today);
        let bytes = golden(name, &today);
        assert_eq!(LogRecord::decode(Bytes::from(bytes.clone())), Ok(record));
        let newer = [&[6], &bytes[1..]].concat();
        let error = LogRecord::decode(Bytes::from(newer)).unwrap_err();
        assert_eq!(error, DecodeError::Newer { found: 6, known: 5 });
        assert!(error.to_string().contains("run the newer engine"), "{error}");
    }
}

/// A device with an open epoch that has holes, a closed one, a drawn one, and records without numbers.
fn device() -> Device {
    let catalog = Catalog::new(Vec::new());
    let mut device = Device::new(id("pump-7"));
    let mut random = 1000u64;
    let frame = |epoch: u64, seq: u64, count: i64, flags: u32, losses: Vec<LossRange>| {
        let header = FrameHeader {
            epoch,
            seq,
            schema_id: 1,
            schema_version: SchemaVersion { major: 1, minor: 0 },
            base_time: Timestamp(TIME),
            send_time: Timestamp(TIME),
            flags,
            losses,
            ..FrameHeader::default()
        };
        let records: Vec<FrameRecord> = (0..count)
            .map(|n| FrameRecord { ts: Timestamp(TIME + n), values: vec![(1, OwnedValue::F64(0.5))], flags: 0 })
            .collect();
        encode_frame(&header, &records).unwrap()
    };
    let lost = LossRange { from: 11, to: 12, reason: LossReason::Ttl };
    let hello = Hello {
        install: vec![7; 16],
        epochs: vec![HeldEpoch { epoch: Epoch(5), first_held: 1, last_seq: 30, live: true }],
        session: 1,
        ..Hello::default()
    };
    let plain = |text: &str| text.as_bytes().to_vec();
    let steps = [
        (Channel::Telemetry, frame(9, 1, 3, 0, vec![])),
        (Channel::Telemetry, frame(5, 1, 10, 0, vec![lost])),
        (Channel::Telemetry, frame(5, 15, 2, 0, vec![])),
        (Channel::Telemetry, frame(5, 15, 2, 0, vec![])),
        (Channel::Hello, hello.encode()),
        (Channel::Telemetry, plain(r#"{"seq": 1, "ts": 1795428000000000000}"#)),
        (Channel::Telemetry, plain(r#"{"seq": 2, "ts": 1795428001000000000}"#)),
        (Channel::Telemetry, plain(r#"{"a": 2}"#)),
    ];
    for (at, (channel, payload)) in steps.into_iter().enumerate() {
        let payload = Bytes::from(payload);
        let received = Timestamp(TIME + at as i64 * SECOND);
        let message = Message { channel, payload: &payload, format: None, received, session: 77 };
        let mut draw = || {
            random += 1;
            random
        };
        let verdict = device.admit(message, &catalog, &mut draw);
        let position = Position(at as u64 + 1);
        for entry in &verdict.entries {
            device.apply(position, entry);
        }
        device.advance(position);
    }
    device
}

#[test]
fn device_snapshots() {
    let device = device();
    let bytes = golden("snapshot_v1.hex", &device.snapshot());
    let back = Device::restore(id("pump-7"), &bytes).unwrap();
    assert_eq!((back.as_of(), back.unnumbered()), (Position(8), 1));
    let ledger = back.ledger();
    assert_eq!(ledger, device.ledger());
    let of = |epoch| ledger.iter().find(|found| found.epoch == Epoch(epoch)).cloned().unwrap();
    let open = of(5);
    assert_eq!((open.cum, open.stored, open.lost, open.duplicate, open.closed), (12, 12, 2, 2, false));
    assert_eq!(open.missing, [(13, 14)]);
    assert!(matches!(of(9), EpochLedger { cum: 3, stored: 3, closed: true, .. }));
    assert_eq!(ledger.len(), 3, "and one that the engine drew");
    let error = Device::restore(id("pump-7"), &[&[5], &bytes[1..]].concat()).unwrap_err();
    assert_eq!(error, SnapshotError::Newer { found: 5, known: 4 });
    assert!(error.to_string().contains("run the newer engine"), "{error}");
}

#[test]
fn what_devices_send() {
    let header = FrameHeader {
        version: 1,
        epoch: u64::MAX >> 1,
        seq: 1000,
        schema_id: 1,
        schema_version: SchemaVersion { major: 1, minor: 2 },
        base_time: Timestamp(TIME),
        send_time: Timestamp(TIME + SECOND),
        mono_send: Some(5_000_000_000),
        mono_base: Some(4_000_000_000),
        layout: Layout::Rows,
        flags: 1,
        clock: Some((-1_500_000, 20_000_000)),
        losses: vec![LossRange { from: 990, to: 999, reason: LossReason::RingFull }],
        trace: Some([0xab; 16]),
        records: 2,
    };
    let values = |n: i64| {
        vec![
            (1, OwnedValue::Bool(true)),
            (2, OwnedValue::I64(-5 * n)),
            (3, OwnedValue::U64(u64::MAX)),
            (4, OwnedValue::F32(1.5)),
            (5, OwnedValue::F64(21.25)),
            (6, OwnedValue::Text("läuft".to_owned())),
            (7, OwnedValue::Bytes(vec![0, 255])),
            (8, OwnedValue::F64List(vec![0.5, -1.0])),
            (9, OwnedValue::I64List(vec![1, -2])),
        ]
    };
    let record = |n: i64, flags| FrameRecord { ts: Timestamp(TIME + n * SECOND), values: values(n), flags };
    let bytes = golden("frame_rows_v1.hex", &encode_frame(&header, &[record(0, 0), record(1, 4)]).unwrap());
    assert_eq!(read_frame_header(&bytes).as_ref(), Ok(&header));
    let columns = FrameHeader { layout: Layout::Columns, ..header.clone() };
    let bytes = golden("frame_columns_v1.hex", &encode_frame(&columns, &[record(0, 0), record(1, 0)]).unwrap());
    assert_eq!(read_frame_header(&bytes).as_ref(), Ok(&columns));
    let mut stamped = bytes.clone();
    assert!(restamp(&mut stamped, Timestamp(1), 2));
    assert_eq!(read_frame_header(&stamped).unwrap().send_time, Timestamp(1));
    // Key 0 stands first: a frame of a later version is refused in words that name it.
    let mut newer = bytes;
    newer[2] = 2;
    assert!(read_frame_header(&newer).unwrap_err().to_string().contains("frame version 1 only"));

    let hello = Hello {
        install: vec![7; 16],
        fw: "1.2.3".to_owned(),
        schemas: vec!["telemetry 1.2".to_owned()],
        epochs: vec![HeldEpoch { epoch: Epoch(9), first_held: 4, last_seq: 17, live: true }],
        applied_dv: Some(3),
        boot_no: 12,
        mono: Some(99),
        st: Some(Timestamp(TIME)),
        session: u64::MAX,
        caps: vec!["columns".to_owned()],
    };
    assert_eq!(Hello::decode(&golden("hello.hex", &hello.encode())), Ok(hello));
}

#[test]
fn what_devices_are_told() {
    let epochs = vec![
        EpochAck { epoch: Epoch(7), cum: 41, ranges: vec![(43, 2), (99, 1)], last: None },
        EpochAck { epoch: Epoch(u64::MAX >> 1), cum: 5, ranges: vec![], last: Some(5) },
    ];
    let ack = Ack {
        epochs: epochs.clone(),
        level: 1,
        credit: 1024,
        echo: Some(Timestamp(TIME)),
        server_rx: Timestamp(TIME + 1),
        server_tx: Timestamp(TIME + 2),
        nacks: vec![Nack { epoch: Epoch(7), seq: 9000, reason: Reason::Window }],
        resend: vec![Resend { epoch: Epoch(7), ranges: vec![(42, 1)] }],
    };
    let bytes = golden("ack_v1.hex", &ack.encode());
    assert_eq!(Ack::decode(&bytes), Ok(ack));
    let mut newer = bytes;
    newer[2] = 2;
    assert!(Ack::decode(&newer).unwrap_err().to_string().contains("ack version 1 only"));
    let answer = HelloAck {
        acks: epochs,
        ack_level: 1,
        credit: 1024,
        st: Some(Timestamp(TIME)),
        server_rx: Timestamp(TIME + 1),
        server_tx: Timestamp(TIME + 2),
        session: 8,
        dv: None,
        delta: None,
        renew: false,
    };
    assert_eq!(HelloAck::decode(&golden("hello_ack.hex", &answer.encode())), Ok(answer.clone()));
    let answer = HelloAck { dv: Some(3), delta: Some(vec![0xa1, 0x61, b'a', 0x01]), ..answer };
    assert_eq!(HelloAck::decode(&golden("hello_ack_delta.hex", &answer.encode())), Ok(answer));
}

#[test]
fn reasons_keep_their_numbers_and_names() {
    let reasons: Vec<String> =
        Reason::ALL.iter().map(|reason| format!("{} {}", *reason as u8, reason.as_str())).collect();
    let known = "1 bad_payload, 2 bad_frame, 3 too_large, 4 empty, 5 unknown_schema, 6 schema_mismatch, 7 window, \
                 8 bad_topic, 9 bad_device, 10 failed, 11 bad_field, 12 epoch_storm";
    assert!(reasons.join(", ").starts_with(known), "new ones come last: {reasons:?}");
    let losses: Vec<&str> = (1..=6).map(|number| LossReason::from_u8(number).unwrap().as_str()).collect();
    assert_eq!(losses, ["ring_full", "storage_corrupt", "ttl", "filtered", "storage_reset", "skipped"]);
}

#[test]
fn devices_keep_their_shard() {
    for (name, of_2, of_16) in [("pump-7", 0, 6), ("a", 0, 0), ("urn:x:1", 0, 4), ("sensor-000123", 1, 15)] {
        assert_eq!((id(name).shard(2), id(name).shard(16)), (ShardId(of_2), ShardId(of_16)), "{name}");
    }
}
