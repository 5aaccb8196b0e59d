//! Entries in, batches out: frames, plain records, partly admitted payloads, payloads that no longer read.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampNanosecondType, UInt8Type, UInt32Type};
use bytes::Bytes;
use device::clock::{Change, ChangeKind, EXTRAPOLATED, Note, Piece, UNKNOWN};
use device::entry::{DeadLetter, Loss, LossReason, Stamps};
use device::id::DeviceId;
use device::payload::PayloadFormat;
use device::schema::{Field, FieldType, SchemaVersion, Stream};
use device::seq::Epoch;

use super::*;

const NOW: Timestamp = Timestamp(1_795_392_000_000_000_000);

fn field(name: &str, id: u32, kind: FieldType) -> Field {
    Field { name: name.into(), id, kind, unit: None, scale: 0, comment: None }
}

fn stream(name: &str, schema_id: u32, fields: Vec<Field>) -> Stream {
    Stream { name: name.into(), schema_id: Some(schema_id), version: SchemaVersion { major: 1, minor: 2 }, fields }
}

fn catalog() -> Arc<Catalog> {
    Arc::new(Catalog::new(vec![
        stream("telemetry", 1, vec![field("temperature", 1, FieldType::F64), field("status", 2, FieldType::Text)]),
        stream("power", 2, vec![field("watts", 1, FieldType::I64)]),
    ]))
}

fn run(index: u32, len: u32, seq: u64) -> Run {
    Run { index, len, epoch: Epoch(5), seq }
}

fn records(device: &str, json: &str, runs: Vec<Run>) -> Entry {
    Entry {
        device: DeviceId::new(device).unwrap(),
        received: NOW,
        body: Body::Records(Records {
            format: PayloadFormat::Json,
            payload: Bytes::copy_from_slice(json.as_bytes()),
            runs: runs.into(),
            stamps: Stamps::new(),
            assured: true,
            clock: None,
        }),
    }
}

fn build(entries: &[Entry]) -> HashMap<String, RecordBatch> {
    let mut builder = RowBuilder::new(catalog());
    for entry in entries {
        builder.push(entry).unwrap();
    }
    let expected = builder.rows();
    let batches: HashMap<String, RecordBatch> =
        builder.finish().unwrap().into_iter().map(|(name, batch)| (name.to_string(), batch)).collect();
    assert_eq!(batches.values().map(RecordBatch::num_rows).sum::<usize>(), expected);
    assert_eq!(builder.rows(), 0);
    assert!(builder.finish().unwrap().is_empty());
    batches
}

fn numbers(batch: &RecordBatch, column: &str) -> Vec<Option<i64>> {
    batch.column_by_name(column).unwrap().as_primitive::<Int64Type>().iter().collect()
}

fn texts<'a>(batch: &'a RecordBatch, column: &str) -> Vec<Option<&'a str>> {
    batch.column_by_name(column).unwrap().as_string::<i32>().iter().collect()
}

#[test]
fn admitted_records_become_rows_under_their_numbers() {
    let json = r#"[{"seq":7,"temperature":1.5,"ts":1795391999000000000},
                   {"seq":8,"temperature":2.5},
                   {"seq":9,"temperature":3.5,"status":"ok","unknown":[1]},
                   {"seq":10,"schema":"power","watts":40}]"#;
    // The second was stored before.
    let batches = build(&[
        records("a", json, vec![run(0, 1, 7), run(2, 2, 9)]),
        records("b", r#"{"temperature":9}"#, vec![run(0, 1, 1)]),
    ]);
    let rows = &batches["telemetry"];
    assert_eq!(texts(rows, "device"), [Some("a"), Some("a"), Some("b")]);
    assert_eq!(numbers(rows, "seq"), [Some(7), Some(9), Some(1)]);
    assert_eq!(numbers(rows, "epoch"), [Some(5); 3]);
    let temperature = rows.column_by_name("temperature").unwrap().as_primitive::<Float64Type>();
    assert_eq!(temperature.values().to_vec(), [1.5, 3.5, 9.0]);
    assert_eq!(texts(rows, "status"), [None, Some("ok"), None]);
    assert_eq!(texts(rows, "extra"), [None, Some(r#"{"unknown":[1]}"#), None]);
    let time = |column| rows.column_by_name(column).unwrap().as_primitive::<TimestampNanosecondType>();
    assert_eq!(time("ts").values().to_vec(), [NOW.0 - 1_000_000_000, NOW.0, NOW.0]);
    assert!(time("ts_device").is_valid(0));
    assert_eq!(time("ts_device").null_count(), 2);
    assert_eq!(time("ts_ingest").values().to_vec(), [NOW.0; 3]);
    let quality = rows.column_by_name("clock_q").unwrap().as_primitive::<UInt8Type>();
    assert_eq!(quality.values().to_vec(), [0, 4, 4]);
    assert_eq!(numbers(rows, "clock_err_ns"), [Some(500_000_000), None, None]);
    assert_eq!(numbers(&batches["power"], "watts"), [Some(40)]);
    assert_eq!(numbers(&batches["power"], "seq"), [Some(10)]);
    assert_eq!(batches.len(), 2);
}

#[test]
fn a_payload_that_no_longer_reads_is_a_dead_letter_and_leaves_no_row() {
    let good = || records("a", r#"{"temperature":1,"status":"x"}"#, vec![run(0, 1, 1)]);
    let broken = [
        // A type that does not fit, after a record that does.
        r#"[{"temperature":1,"status":"gone"},{"temperature":{"a":1},"status":7}]"#,
        r#"[{"temperature":2},{"schema":"no_such_stream","x":1}]"#,
        "not json",
        // Fewer records than were admitted.
        r#"[{"temperature":2}]"#,
    ];
    for payload in broken {
        let batches = build(&[good(), records("b", payload, vec![run(0, 1, 20), run(1, 1, 30)]), good()]);
        let rows = &batches["telemetry"];
        assert_eq!(texts(rows, "device"), [Some("a"); 2], "{payload}");
        assert_eq!(texts(rows, "status"), [Some("x"); 2], "{payload}");
        let letters = &batches["_dead_letters"];
        assert_eq!(texts(letters, "device"), [Some("b"); 2], "{payload}");
        assert_eq!(numbers(letters, "seq"), [Some(20), Some(30)]);
        let counts = letters.column_by_name("records").unwrap().as_primitive::<UInt32Type>();
        assert_eq!(counts.values().to_vec(), [1, 1]);
        assert_eq!(letters.column_by_name("payload").unwrap().as_binary::<i32>().value(0), payload.as_bytes());
        assert!(texts(letters, "text")[0].unwrap().len() > 20);
    }
}

#[test]
fn dead_letters_and_losses_have_their_tables() {
    let letter = |sender: &str, accounted| Entry {
        device: DeviceId::nobody(),
        received: NOW,
        body: Body::DeadLetter(DeadLetter {
            sender: sender.to_owned(),
            topic: "devices/ä/telemetry".to_owned(),
            reason: Reason::BadDevice,
            text: "why".to_owned(),
            payload: Bytes::from_static(&[0xff, 0]),
            accounted,
        }),
    };
    let loss = Entry {
        device: DeviceId::new("a").unwrap(),
        received: NOW,
        body: Body::Loss(Loss { epoch: Epoch(3), from: 4, to: 6, reason: LossReason::RingFull }),
    };
    let closed = Entry { body: Body::Closed { epoch: Epoch(3) }, ..loss.clone() };
    let batches = build(&[letter("ä", None), letter("", Some((Epoch(1), 2, 3))), loss, closed]);
    let letters = &batches["_dead_letters"];
    assert_eq!(texts(letters, "device"), [Some("ä"), Some("~")]);
    assert_eq!(texts(letters, "reason"), [Some("bad_device"); 2]);
    assert_eq!(numbers(letters, "epoch"), [None, Some(1)]);
    let losses = &batches["_losses"];
    assert_eq!((numbers(losses, "from_seq"), numbers(losses, "to_seq")), (vec![Some(4)], vec![Some(6)]));
    assert_eq!(texts(losses, "reason_text"), [Some("ring_full")]);
    assert_eq!(batches.len(), 2);
}

#[test]
fn a_frame_is_read_with_its_measured_clock() {
    use device::payload::{FrameHeader, FrameRecord, encode_frame};
    let header = FrameHeader {
        version: 1,
        epoch: 5,
        seq: 11,
        schema_id: 2,
        schema_version: SchemaVersion { major: 1, minor: 1 },
        base_time: NOW.plus(-4_000_000_000),
        send_time: NOW.plus(-3_000_000_000),
        clock: Some((2_000_000_000, 10_000_000)),
        ..FrameHeader::default()
    };
    let at = |ts: i64| FrameRecord { ts: NOW.plus(ts), values: Vec::new(), flags: 0 };
    let payload = encode_frame(&header, &[at(-4_000_000_000), at(-3_500_000_000)]).unwrap();
    let mut entry = records("a", "", vec![run(0, 2, 11)]);
    if let Body::Records(records) = &mut entry.body {
        records.format = PayloadFormat::Frame;
        records.payload = Bytes::from(payload);
    }
    let rows = &build(&[entry])["power"];
    let ts = rows.column_by_name("ts").unwrap().as_primitive::<TimestampNanosecondType>();
    assert_eq!(ts.values().to_vec(), [NOW.0 - 2_000_000_000, NOW.0 - 1_500_000_000]);
    assert_eq!(numbers(rows, "clock_err_ns"), [Some(5_000_000); 2]);
    assert_eq!(numbers(rows, "seq"), [Some(11), Some(12)]);
}

#[test]
fn times_follow_the_note_of_the_entry_and_its_changes_are_rows() {
    let piece = Piece {
        from: Timestamp(i64::MIN),
        at: NOW.plus(-10_000_000_000),
        offset: 3_000_000_000,
        rate: 0,
        err: 1_000_000,
        err_rate: 100_000,
        quality: EXTRAPOLATED,
    };
    let unknown = Piece { from: NOW.plus(-5_000_000_000), quality: UNKNOWN, ..piece };
    let span = (NOW.plus(-60_000_000_000), NOW);
    let change = Change { kind: ChangeKind::Drifting, clock: 2, span, offset: 3_000_000_000, err: 5, rate: Some(-7) };
    let note = Note {
        pieces: vec![piece, unknown].into(),
        seen: None,
        changes: vec![change, Change { rate: None, ..change }],
    };
    let time = |ago: i64| NOW.0 - ago * 1_000_000_000;
    let json = format!(r#"[{{"ts": {}}}, {{"ts": {}}}, {{}}]"#, time(10), time(4));
    let mut entry = records("a", &json, vec![run(0, 3, 1)]);
    if let Body::Records(records) = &mut entry.body {
        records.clock = Some(Box::new(note));
    }
    let tables = build(&[entry]);
    let rows = tables.values().find(|rows| rows.column_by_name("clock_q").is_some()).unwrap();
    let times = rows.column_by_name("ts").unwrap().as_primitive::<TimestampNanosecondType>();
    assert_eq!(times.values().to_vec(), [time(7), NOW.0, NOW.0]);
    let quality = rows.column_by_name("clock_q").unwrap().as_primitive::<UInt8Type>();
    assert_eq!(quality.values().to_vec(), [EXTRAPOLATED, UNKNOWN, UNKNOWN]);
    assert_eq!(numbers(rows, "clock_err_ns"), [Some(1_000_000), None, None]);
    let changes = &tables["_clock"];
    assert_eq!(changes.num_rows(), 2);
    assert_eq!(numbers(changes, "offset_ns"), [Some(3_000_000_000); 2]);
    assert_eq!(numbers(changes, "rate_ppb"), [Some(-7), None]);
    assert_eq!(changes.column_by_name("event").unwrap().as_string::<i32>().value(0), "drift");
}
