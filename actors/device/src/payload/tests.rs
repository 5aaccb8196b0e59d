//! Payloads of every format, good and bad, and properties that hold for all of them.

use proptest::prelude::*;

use super::*;
use crate::entry::LossReason;
use crate::schema::{Field, FieldType, OwnedValue, SchemaVersion, Stream};
use crate::seq::MAX_SEQ;

/// Keeps all it is given, as text where that is shorter to compare.
#[derive(Default)]
pub(super) struct Collect<'c> {
    catalog: Option<&'c Catalog>,
    rows: Vec<Row>,
    skip: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    head: Head,
    values: Vec<(String, OwnedValue)>,
    extra: Option<String>,
}

impl RecordSink for Collect<'_> {
    fn start(&mut self, head: &Head) -> bool {
        self.rows.push(Row { head: *head, values: Vec::new(), extra: None });
        !self.skip
    }
    fn value(&mut self, field: u16, value: Value<'_>) {
        let row = self.rows.last_mut().unwrap();
        let stream = self.catalog.unwrap().stream(row.head.stream).unwrap();
        row.values.push((stream.fields[usize::from(field)].name.to_string(), value.into()));
    }
    fn extra(&mut self, json: &str) {
        assert!(serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok(), "{json}");
        assert_eq!(self.rows.last_mut().unwrap().extra.replace(json.to_owned()), None);
    }
    fn end(&mut self) {}
}

fn catalog() -> Catalog {
    let kinds = [
        ("a", FieldType::F64, 0),
        ("b", FieldType::I64, 0),
        ("c", FieldType::Text, 0),
        ("u", FieldType::U64, 0),
        ("f", FieldType::F32, 0),
        ("on", FieldType::Bool, 0),
        ("raw", FieldType::Bytes, 0),
        ("wave", FieldType::F64List, 0),
        ("steps", FieldType::I64List, 0),
        ("gps.lat", FieldType::F64, 0),
        ("milli", FieldType::F64, -3),
        ("device", FieldType::F64, 0),
    ];
    let fields = kinds.iter().enumerate().map(|(at, (name, kind, scale))| Field {
        name: (*name).into(),
        id: at as u32 + 1,
        kind: *kind,
        unit: None,
        scale: *scale,
        comment: None,
    });
    let stream = |name: &str, id, fields| Stream {
        name: name.into(),
        schema_id: Some(id),
        version: SchemaVersion { major: 1, minor: 2 },
        fields,
    };
    Catalog::new(vec![stream("telemetry", 1, fields.collect()), stream("other", 2, Vec::new())])
}

fn rows(payload: &[u8]) -> Result<Vec<Row>, Refusal> {
    let catalog = catalog();
    let mut sink = Collect { catalog: Some(&catalog), ..Collect::default() };
    let format = detect(payload, None)?;
    read(format, payload, &catalog, &mut sink)?;
    Ok(sink.rows)
}

/// One JSON record: its values as `name=value`, and its extra.
fn check(json: &str, values: &str, extra: Option<&str>) {
    let rows = rows(json.as_bytes()).unwrap_or_else(|refusal| panic!("{json}: {refusal}"));
    let [row] = rows.as_slice() else { panic!("{json}: {rows:?}") };
    let found: Vec<_> = row.values.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    assert_eq!(found.join(" "), values, "{json}");
    assert_eq!(row.extra.as_deref(), extra, "{json}");
}

fn refused(payload: &[u8], reason: Reason, text: &str) {
    let shown = String::from_utf8_lossy(payload);
    let refusal = rows(payload).expect_err(&shown);
    assert_eq!(refusal.reason, reason, "{shown}: {refusal}");
    assert!(refusal.text.contains(text), "{shown}: {refusal}");
}

#[test]
fn json_values() {
    check(r#"{}"#, "", None);
    check(r#"{"a":1.5,"b":-7,"c":"x"}"#, r#"a=F64(1.5) b=I64(-7) c=Text("x")"#, None);
    check(" {\n\"c\" : \"\\u00e9\\ud83d\\ude00\\n\\/\" , \"a\" : 1 } \t", r#"c=Text("é😀\n/") a=F64(1.0)"#, None);
    check(
        r#"{"b":9223372036854775807,"u":18446744073709551615}"#,
        "b=I64(9223372036854775807) u=U64(18446744073709551615)",
        None,
    );
    check(r#"{"a":0.1,"f":0.1}"#, "a=F64(0.1) f=F32(0.1)", None);
    check(r#"{"a":-0.0,"b":1e3}"#, "a=F64(-0.0) b=I64(1000)", None);
    check(r#"{"on":true,"raw":"AQI="}"#, "on=Bool(true) raw=Bytes([1, 2])", None);
    check(r#"{"wave":[1,2.5],"steps":[1,-2]}"#, "wave=F64List([1.0, 2.5]) steps=I64List([1, -2])", None);
    check(r#"{"wave":[],"a":null,"zz":null}"#, "wave=F64List([])", None);
    // scale is for frames: plain records carry the value itself
    check(r#"{"milli":5}"#, "milli=F64(5.0)", None);
}

#[test]
fn json_nesting_and_extra() {
    check(r#"{"gps":{"lat":48.1,"lon":11.50}}"#, "gps.lat=F64(48.1)", Some(r#"{"gps.lon":11.50}"#));
    check(r#"{"gps.lat":48.1}"#, "gps.lat=F64(48.1)", None);
    check(r#"{"x":1.10,"y":1e400,"z":-0}"#, "", Some(r#"{"x":1.10,"y":1e400,"z":-0}"#));
    check(r#"{"x":{"y":{"z":[1, {"k" : null}]}},"e":{}}"#, "", Some(r#"{"x.y.z":[1,{"k":null}],"e":{}}"#));
    check(r#"{"q\"":"\u0001"}"#, "", Some(r#"{"q\"":"\u0001"}"#));
    // system columns are no reserved keys: what is not declared is kept
    check(r#"{"ts_ingest":1,"extra":2}"#, "", Some(r#"{"ts_ingest":1,"extra":2}"#));
    check(r#"{"device":1}"#, "device=F64(1.0)", None);
}

#[test]
fn json_reserved_keys() {
    let json = r#"[{"a":1,"seq":7,"ts":"2026-01-31T23:59:59.123456789+01:00"},{"epoch":9,"seq":0,"ts":-1,"schema":"other","a":1},{"ts":null}]"#;
    let rows = rows(json.as_bytes()).unwrap();
    let heads: Vec<_> =
        rows.iter().map(|row| (row.head.index, row.head.stream, row.head.epoch, row.head.seq, row.head.ts)).collect();
    let ts = Timestamp(1_769_900_399_123_456_789);
    assert_eq!(heads[0], (0, 0, None, Some(7), Some(ts)));
    assert_eq!(heads[1], (1, 1, Some(9), Some(0), Some(Timestamp(-1))));
    assert_eq!(heads[2], (2, 0, None, None, None));
    assert_eq!(rows[0].head.schema_minor, 2);
    assert_eq!((rows[1].values.len(), rows[1].extra.as_deref()), (0, Some(r#"{"a":1}"#)));
}

#[test]
fn json_refusals() {
    refused(b"[]", Reason::BadPayload, "empty");
    refused(b"[1]", Reason::BadPayload, "record 0: expected an object, found a number, at byte 1");
    refused(b"{", Reason::BadPayload, "at byte 1");
    refused(br#"{"a":1}x"#, Reason::BadPayload, "at byte 7: bytes after the end");
    refused(br#"{"a":1,}"#, Reason::BadPayload, "comma");
    refused(br#"{"a":01}"#, Reason::BadPayload, "superfluous zero");
    refused(br#"{"a":1,"a":2}"#, Reason::BadPayload, "`a` stands twice");
    refused(br#"{"x":1,"x":2}"#, Reason::BadPayload, "`x` stands twice");
    refused(br#"{"x":{"k":1,"k":2}}"#, Reason::BadPayload, "`x.k` stands twice");
    refused(br#"{"x":[{"k":1,"k":2}]}"#, Reason::BadPayload, "stands twice");
    refused(br#"{"gps":{"lat":1},"gps.lat":2}"#, Reason::BadPayload, "`gps.lat` stands twice");
    refused(br#"{"seq":1,"seq":1}"#, Reason::BadPayload, "`seq` stands twice");
    refused(br#"{"c":"\ud800"}"#, Reason::BadPayload, "surrogate");
    refused(b"{\"c\":\"a\nb\"}", Reason::BadPayload, "control character");
    refused(b"{\"c\":\"\xff\"}", Reason::BadPayload, "not UTF-8 from byte 6 on");
    refused(br#"{"a":"hot"}"#, Reason::SchemaMismatch, "record 0: field `a` holds DOUBLE, found text, at byte 5");
    refused(
        br#"[{},{"b":1.5}]"#,
        Reason::SchemaMismatch,
        "record 1: field `b` holds BIGINT, the number has a fraction",
    );
    refused(br#"{"b":9223372036854775808}"#, Reason::SchemaMismatch, "out of its range");
    refused(br#"{"a":1e999}"#, Reason::SchemaMismatch, "out of its range");
    refused(br#"{"c":5}"#, Reason::SchemaMismatch, "holds TEXT, found a number");
    refused(br#"{"a":[1]}"#, Reason::SchemaMismatch, "found an array");
    refused(br#"{"wave":[null]}"#, Reason::SchemaMismatch, "found null");
    refused(br#"{"ts":"yesterday"}"#, Reason::BadField, "expected a time like");
    refused(br#"{"ts":1.5}"#, Reason::BadField, "`ts` has to be");
    refused(br#"{"ts":9223372036854775808}"#, Reason::BadField, "`ts` has to be");
    refused(br#"{"ts":"2300-01-01T00:00:00Z"}"#, Reason::BadField, "2262");
    refused(br#"{"seq":-1}"#, Reason::BadField, "`seq` has to be an integer from 0");
    refused(br#"{"seq":9223372036854775808}"#, Reason::BadField, "`seq` has to be");
    refused(br#"{"seq":"1"}"#, Reason::BadField, "found text");
    refused(br#"{"epoch":1.0,"seq":1}"#, Reason::BadField, "`epoch` has to be");
    refused(br#"{"schema":"nope"}"#, Reason::UnknownSchema, "no stream `nope` is declared");
    refused(br#"{"schema":5}"#, Reason::BadField, "`schema` has to be");
    let many = format!("[{}]", vec!["{}"; 1025].join(","));
    refused(many.as_bytes(), Reason::TooLarge, "at most 1024 records");
    let large = format!("{{\"c\":\"{}\"}}", "x".repeat(MAX_PLAIN));
    refused(large.as_bytes(), Reason::TooLarge, "at most 1048576 bytes");
    let deep = format!("{{\"x\":{}1{}}}", "[".repeat(40), "]".repeat(40));
    refused(deep.as_bytes(), Reason::BadPayload, "nest more than 16 deep");
    let deep = format!("{}1{}", "{\"x\":".repeat(40), "}".repeat(40));
    refused(deep.as_bytes(), Reason::BadPayload, "nest more than 16 deep");
}

fn cbor(value: &ciborium::Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

fn map(pairs: &[(&str, ciborium::Value)]) -> ciborium::Value {
    ciborium::Value::Map(pairs.iter().map(|(key, value)| ((*key).into(), value.clone())).collect())
}

#[test]
fn cbor_values() {
    let payload = cbor(&map(&[
        ("seq", 5.into()),
        ("ts", 17.into()),
        ("a", 1.5.into()),
        ("b", (-3).into()),
        ("raw", vec![1u8, 2].into()),
        ("gps", map(&[("lat", 2.into())])),
        ("x", ciborium::Value::Tag(37, Box::new(vec![255u8].into()))),
        ("nan", f64::NAN.into()),
        ("u", u64::MAX.into()),
    ]));
    let rows = rows(&payload).unwrap();
    let values: Vec<_> = rows[0].values.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    assert_eq!(values.join(" "), "a=F64(1.5) b=I64(-3) raw=Bytes([1, 2]) gps.lat=F64(2.0) u=U64(18446744073709551615)");
    assert_eq!(rows[0].extra.as_deref(), Some(r#"{"x":"/w==","nan":"NaN"}"#));
    assert_eq!((rows[0].head.seq, rows[0].head.ts), (Some(5), Some(Timestamp(17))));
    // an open map in an open array, self-described
    let rows = self::rows(&[0xd9, 0xd9, 0xf7, 0x9f, 0xbf, 0x61, b'a', 0x02, 0xff, 0xff]).unwrap();
    assert_eq!(rows[0].values, [("a".to_owned(), OwnedValue::F64(2.0))]);
}

#[test]
fn cbor_refusals() {
    refused(&[0x80], Reason::BadPayload, "empty");
    refused(&[0xa1, 0x05, 0x01], Reason::BadPayload, "keys of a plain record are text");
    refused(&[0xa1, 0x61, b'a', 0x61, 0xff], Reason::BadPayload, "byte 3: the text is not UTF-8");
    refused(&[0xa1, 0x61, b'a', 0x01, 0x00], Reason::BadPayload, "bytes after the end");
    refused(&[0xa2, 0x61, b'a', 0x01, 0x61, b'a', 0x01], Reason::BadPayload, "`a` stands twice");
    refused(&[0xa1, 0x61, b'a'], Reason::BadPayload, "ends inside a value");
    refused(&[0xa1, 0x61, b'a', 0x61, b'x'], Reason::SchemaMismatch, "field `a` holds DOUBLE, found text, at byte 3");
    refused(&cbor(&map(&[("ts", u64::MAX.into())])), Reason::BadField, "beyond 64 bits");
    refused(&cbor(&map(&[("ts", ciborium::Value::Tag(1, Box::new(5.into())))])), Reason::BadPayload, "tags 1 to 5");
    refused(&[0xbf, 0x61, b'a', 0x7f, 0xff, 0xff], Reason::BadPayload, "in pieces");
}

fn header(layout: Layout) -> FrameHeader {
    FrameHeader {
        version: 1,
        epoch: 99,
        seq: 10,
        schema_id: 1,
        schema_version: SchemaVersion { major: 1, minor: 7 },
        base_time: Timestamp(1_000),
        send_time: Timestamp(2_000),
        mono_send: Some(3),
        mono_base: Some(4),
        layout,
        flags: 1,
        clock: Some((-5, 6)),
        losses: vec![LossRange { from: 1, to: 9, reason: LossReason::Ttl }],
        trace: Some([7; 16]),
        records: 0,
    }
}

fn record(ts: i64, values: &[(u32, OwnedValue)]) -> FrameRecord {
    FrameRecord { ts: Timestamp(ts), values: values.to_vec(), flags: 0 }
}

#[test]
fn frames_in_both_layouts() {
    let records = [
        record(1_001, &[(1, OwnedValue::F64(1.5)), (2, OwnedValue::I64(-4)), (11, OwnedValue::I64(1234))]),
        record(
            990,
            &[(2, OwnedValue::I64(100)), (8, OwnedValue::F64List(vec![1.0, 2.0])), (77, OwnedValue::Bytes(vec![1]))],
        ),
        record(5_000, &[(1, OwnedValue::F64(f64::INFINITY)), (77, OwnedValue::I64(3)), (11, OwnedValue::I64(-1))]),
    ];
    for layout in [Layout::Rows, Layout::Columns] {
        let frame = encode_frame(&header(layout), &records).unwrap();
        assert_eq!(read_frame_header(&frame).unwrap(), FrameHeader { records: 3, ..header(layout) });
        assert_eq!(peek_numbers(&frame), Some((99, 10)));
        let rows = rows(&frame).unwrap();
        let texts: Vec<_> = rows
            .iter()
            .map(|row| {
                let mut values: Vec<_> = row.values.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
                values.sort();
                format!("{:?} {:?} {} {:?}", row.head.seq, row.head.ts.map(|ts| ts.0), values.join(" "), row.extra)
            })
            .collect();
        assert_eq!(
            texts,
            [
                "Some(10) Some(1001) a=F64(1.5) b=I64(-4) milli=F64(1.234) None",
                r#"Some(11) Some(990) b=I64(100) wave=F64List([1.0, 2.0]) Some("{\"77\":\"AQ==\"}")"#,
                r#"Some(12) Some(5000) a=F64(inf) milli=F64(-0.001) Some("{\"77\":3}")"#,
            ]
        );
        assert_eq!((rows[0].head.flags, rows[0].head.schema_minor, rows[0].head.epoch), (1, 7, Some(99)));
    }
}

#[test]
fn flags_of_single_records_join_those_of_the_frame() {
    let records = [FrameRecord { flags: 4, ..record(1, &[]) }, record(1, &[])];
    let rows = rows(&encode_frame(&header(Layout::Rows), &records).unwrap()).unwrap();
    assert_eq!(rows.iter().map(|row| row.head.flags).collect::<Vec<_>>(), [5, 1]);
    assert_eq!(encode_frame(&header(Layout::Columns), &records), Err(EncodeError::Flags));
}

#[test]
fn restamping_changes_the_send_times_alone() {
    for mono_send in [None, Some(7)] {
        let before = FrameHeader { mono_send, ..header(Layout::Rows) };
        let mut frame = encode_frame(&before, &[record(1, &[(1, OwnedValue::F64(2.0))])]).unwrap();
        let len = frame.len();
        assert!(restamp(&mut frame, Timestamp(-77), 88));
        let after = FrameHeader { send_time: Timestamp(-77), mono_send: mono_send.map(|_| 88), records: 1, ..before };
        assert_eq!((read_frame_header(&frame).unwrap(), frame.len()), (after, len));
    }
    assert!(!restamp(&mut [0xa1, 0x00, 0x01], Timestamp(0), 0));
    assert!(!restamp(b"{\"seq\":1,\"ts\":1000000}".to_vec().as_mut_slice(), Timestamp(0), 0));
}

/// A frame from its pairs, as raw CBOR.
fn raw(pairs: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0xa0 | pairs.len() as u8];
    for (key, value) in pairs {
        bytes.push(*key);
        bytes.extend_from_slice(value);
    }
    bytes
}

const LEAST: [(u8, &[u8]); 8] = [
    (0, &[1]),
    (1, &[5]),
    (2, &[1]),
    (3, &[1]),
    (4, &[0x1a, 0, 1, 0, 0]),
    (5, &[0]),
    (6, &[0x81, 0x82, 0, 0xa1, 1, 2]),
    (7, &[0]),
];

fn with(key: u8, value: &[u8]) -> Vec<u8> {
    let mut pairs = LEAST.to_vec();
    match pairs.iter_mut().find(|(known, _)| *known == key) {
        Some(pair) => pair.1 = value,
        None => pairs.push((key, value)),
    }
    raw(&pairs)
}

#[test]
fn frames_that_break_the_format() {
    let max = [0x1b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let over = [0x1b, 0x80, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(rows(&raw(&LEAST)).unwrap().len(), 1);
    assert_eq!(rows(&with(2, &max)).unwrap()[0].head.seq, Some(MAX_SEQ));
    let bad = |frame: Vec<u8>, text: &str| refused(&frame, Reason::BadFrame, text);
    for key in 1..8 {
        let pairs: Vec<_> = LEAST.iter().copied().filter(|(known, _)| *known != key).collect();
        bad(raw(&pairs), "is missing");
    }
    bad([raw(&LEAST), vec![0]].concat(), "bytes after the end");
    bad(with(0, &[2]), "version 1 only");
    bad(with(2, &[0]), "begin at 1");
    bad(with(2, &over), "end at 2^63-1");
    bad(with(1, &over), "end at 2^63-1");
    bad(with(6, &[0x82, 0x82, 0, 0xa0]), "");
    bad(with(6, &[0x9f, 0x82, 0, 0xa0, 0xff]), "indefinite");
    bad(with(6, &[0x81, 0x82, 0, 0xbf, 0xff]), "indefinite");
    bad(with(6, &[0x81, 0x82, 0, 0xa2, 1, 2, 1, 3]), "a field id stands twice");
    bad(with(6, &[0x81, 0x82, 0, 0xa2, 0x18, 99, 2, 0x18, 99, 3]), "a field id stands twice");
    bad(with(6, &[0x81, 0x82, 0, 0xa1, 0x18, 99, 0xa2, 1, 1, 1, 1]), "a key stands twice");
    bad(with(6, &[0x81, 0x81, 0]), "a record is");
    bad(with(6, &[0x81, 0x82, 0, 0xa1, 0x61, b'a', 2]), "a field id is an unsigned integer");
    bad(with(6, &[0x80]), "neither records");
    bad(with(10, &[2]), "0 or 1");
    bad(with(13, &[0x81, 0x83, 5, 4, 1]), "the lower one first");
    bad(with(13, &[0x81, 0x83, 5, 6, 6]), "from 1 to 5");
    bad(with(13, &[0x81, 0x83, 1, 6, 1]), "declared lost, but a record");
    bad(with(14, &[0x41, 1]), "16 bytes");
    let mut twice = LEAST.to_vec();
    twice.push((1, &[5]));
    bad(raw(&twice), "a key stands twice");
    twice[8] = (0x20, &[5]);
    assert!(rows(&raw(&twice)).is_ok(), "unknown keys are passed over");
    twice.push((0x20, &[5]));
    bad(raw(&twice), "a key stands twice");
    twice[9] = (0x61, b"ab");
    bad(raw(&twice), "keys are integers");
    let far = [0x81, 0x82, 0x1b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xa0];
    let mut overflow = LEAST.to_vec();
    overflow[6] = (6, &far);
    overflow[5] = (5, &[1]);
    bad(raw(&overflow), "leave the range");
    let deep = [vec![0x81, 0x82, 0, 0xa1, 0x18, 99], vec![0x81; 14], vec![0]].concat();
    bad(with(6, &deep), "16 deep");
}

#[test]
fn columns_that_break_the_format() {
    let columns = |body: &[u8]| {
        let mut pairs = LEAST.to_vec();
        pairs[6] = (6, body);
        pairs.push((10, &[1]));
        raw(&pairs)
    };
    assert_eq!(rows(&columns(&[0x83, 0x82, 0, 1, 1, 0x82, 5, 0xf6])).unwrap().len(), 2);
    let bad = |body: &[u8], text: &str| refused(&columns(body), Reason::BadFrame, text);
    bad(&[0x82, 0x82, 0, 1, 1], "a body of columns is");
    bad(&[0x83, 0x82, 0, 1, 1, 0x81, 5], "as many values as there are times");
    bad(&[0x85, 0x81, 0, 1, 0x81, 5, 1, 0x81, 5], "a field id stands twice");
    bad(&[0x81, 5], "begins with the array of times");
}

#[test]
fn frame_limits_and_schemas() {
    let many = vec![record(0, &[]); 1025];
    let error = encode_frame(&header(Layout::Rows), &many).unwrap_err();
    assert!(matches!(error, EncodeError::TooLarge { records: 1025, .. }));
    let text = OwnedValue::Text("x".repeat(MAX_FRAME));
    assert!(encode_frame(&header(Layout::Rows), &[record(0, &[(3, text)])]).is_err());
    let body = [vec![0x99, 0x04, 0x01], [0x82, 0, 0xa0].repeat(1025)].concat();
    refused(&with(6, &body), Reason::TooLarge, "at most 1024 records");
    let large = [vec![0x5a, 0, 1, 0, 0], vec![0; 65536]].concat();
    refused(&with(15, &large), Reason::TooLarge, "at most 65536 bytes");
    refused(&with(3, &[9]), Reason::UnknownSchema, "schema id 9");
    refused(
        &with(4, &[0x1a, 0, 2, 0, 0]),
        Reason::UnknownSchema,
        "the frame has version 2.0 of schema id 1, declared is `telemetry` 1.2",
    );
    refused(&with(6, &[0x81, 0x82, 0, 0xa1, 1, 0x61, b'x']), Reason::SchemaMismatch, "`a` holds DOUBLE, found text");
}

fn value(id: u32) -> BoxedStrategy<OwnedValue> {
    let finite = any::<f64>().prop_filter("NaN is not equal to itself", |value| !value.is_nan());
    match id {
        1 | 12 => finite.prop_map(OwnedValue::F64).boxed(),
        2 => any::<i64>().prop_map(OwnedValue::I64).boxed(),
        3 => "\\PC{0,8}".prop_map(OwnedValue::Text).boxed(),
        4 => any::<u64>().prop_map(OwnedValue::U64).boxed(),
        5 => any::<i16>().prop_map(|value| OwnedValue::F32(f32::from(value) / 8.0)).boxed(),
        6 => any::<bool>().prop_map(OwnedValue::Bool).boxed(),
        7 => prop::collection::vec(any::<u8>(), 0..8).prop_map(OwnedValue::Bytes).boxed(),
        8 => prop::collection::vec(finite, 0..4).prop_map(OwnedValue::F64List).boxed(),
        _ => prop::collection::vec(any::<i64>(), 0..4).prop_map(OwnedValue::I64List).boxed(),
    }
}

fn records() -> impl Strategy<Value = Vec<FrameRecord>> {
    let values = prop::collection::btree_map(1u32..10, Just(()), 0..6).prop_flat_map(|ids| {
        ids.into_keys().map(|id| value(id).prop_map(move |value| (id, value))).collect::<Vec<_>>()
    });
    let record = (any::<i32>(), values).prop_map(|(ts, values)| record(i64::from(ts), &values));
    prop::collection::vec(record, 1..12)
}

proptest! {
    #[test]
    fn frames_come_back(records in records(), columns in any::<bool>()) {
        let layout = if columns { Layout::Columns } else { Layout::Rows };
        let frame = encode_frame(&header(layout), &records).unwrap();
        let catalog = catalog();
        let mut sink = Collect { catalog: Some(&catalog), ..Collect::default() };
        read(PayloadFormat::Frame, &frame, &catalog, &mut sink).unwrap();
        prop_assert_eq!(sink.rows.len(), records.len());
        for (row, record) in sink.rows.iter().zip(&records) {
            prop_assert_eq!(row.head.ts, Some(record.ts));
            let mut values = row.values.clone();
            values.sort_by_key(|(name, _)| catalog.field_named(0, name));
            let expected: Vec<_> = record.values.iter().map(|(id, value)| {
                (catalog.streams()[0].fields[*id as usize - 1].name.to_string(), value.clone())
            }).collect();
            prop_assert_eq!(values, expected);
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let catalog = catalog();
        for format in [PayloadFormat::Frame, PayloadFormat::Json, PayloadFormat::Cbor] {
            let _ = read(format, &bytes, &catalog, &mut Collect { catalog: Some(&catalog), ..Collect::default() });
        }
        let _ = (rows(&bytes), peek_numbers(&bytes));
    }

    #[test]
    fn damaged_frames_are_refused_or_read(
        records in records(),
        columns in any::<bool>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let layout = if columns { Layout::Columns } else { Layout::Rows };
        let mut frame = encode_frame(&header(layout), &records).unwrap();
        for (at, byte) in damage {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()));
        }
        let mut restamped = frame.clone();
        restamp(&mut restamped, Timestamp(1), 2);
        let catalog = catalog();
        let mut sink = Collect { catalog: Some(&catalog), ..Collect::default() };
        let complete = read(PayloadFormat::Frame, &frame, &catalog, &mut sink);
        let mut heads = Vec::new();
        let validated = validate(PayloadFormat::Frame, &frame, &catalog, &mut |head| heads.push(*head));
        prop_assert_eq!(&validated, &complete, "validation and reading agree");
        if complete.is_ok() {
            let mut skipping = Collect { catalog: Some(&catalog), skip: true, ..Collect::default() };
            prop_assert_eq!(read(PayloadFormat::Frame, &frame, &catalog, &mut skipping), Ok(()));
            prop_assert_eq!(skipping.rows.len(), sink.rows.len(), "skipped values do not lead astray");
        }
    }

    #[test]
    fn json_is_taken_exactly_where_serde_json_takes_it(
        text in r#"(\{("[ab\\u0e]{0,3}":(-?[0-9.eE+]{1,4}|true|nul?l|"[^\x00-\x09"]{0,3}"|\[[0-9, ]{0,4}\]|\{\}),?){0,3}\}|[\[\]{}",:0-9aeu \\-]{0,12})"#
    ) {
        let ours = rows(text.as_bytes());
        let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        if !theirs {
            prop_assert!(ours.is_err(), "{}", text);
        }
        if let Err(refusal) = ours && theirs {
            // What we refuse beyond the grammar says so.
            prop_assert!(!refusal.text.contains("not JSON"), "{}: {}", text, refusal);
        }
    }

    #[test]
    fn numbers_reach_their_fields_exactly(b in any::<i64>(), u in any::<u64>(), a in any::<f64>()) {
        prop_assume!(a.is_finite());
        let json = format!("{{\"a\":{a:?},\"b\":{b},\"u\":{u}}}");
        let rows = rows(json.as_bytes()).unwrap();
        let values: Vec<_> = rows[0].values.iter().map(|(_, value)| value.clone()).collect();
        prop_assert_eq!(values, vec![OwnedValue::F64(a), OwnedValue::I64(b), OwnedValue::U64(u)]);
    }
}
