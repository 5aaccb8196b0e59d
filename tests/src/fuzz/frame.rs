//! Telemetry frames: header and records, and through the encoder and back.

use device::payload::{
    EncodeError, FrameHeader, FrameRecord, Head, PayloadFormat, RecordSink, detect, encode_frame, peek_numbers, read,
    read_frame_header, restamp, validate,
};
use device::schema::{OwnedValue, Value};
use device::time::Timestamp;

use super::catalog::{catalog, is_scaled};
use super::meter::bounded;
use super::transcript::Transcript;

/// Any bytes as a frame.
pub fn frame(data: &[u8]) {
    let catalog = catalog();
    let _ = (detect(data, None), detect(data, Some(PayloadFormat::Cbor)));
    let header = bounded(data.len(), 4096, 64, || read_frame_header(data));
    assert_eq!(header, read_frame_header(data), "a header reads the same twice");
    let mut heads = Vec::new();
    // Text of 400 bytes at most for a refusal, buffers of a reader, and nothing that grows faster than the input.
    let valid =
        bounded(data.len(), 16 << 10, 256, || validate(PayloadFormat::Frame, data, catalog, &mut |h| heads.push(*h)));
    let mut full = Transcript::default();
    let whole = read(PayloadFormat::Frame, data, catalog, &mut full);
    assert_eq!(valid, whole, "what validates also reads, and the other way round");
    assert_eq!(heads, full.heads);
    let mut again = Transcript::default();
    assert_eq!(read(PayloadFormat::Frame, data, catalog, &mut again), whole);
    assert_eq!(again.lines, full.lines, "a frame reads the same twice");
    let Ok(header) = header else {
        assert!(whole.is_err(), "records without a header");
        return;
    };
    assert_eq!(peek_numbers(data), Some((header.epoch, header.seq)), "a good frame's numbers can be peeked at");
    if whole.is_err() {
        return;
    }
    assert_eq!(full.heads.len(), header.records as usize);
    for only in [0, 1] {
        let mut half = Transcript { only: Some(only), ..Transcript::default() };
        read(PayloadFormat::Frame, data, catalog, &mut half).expect("unwanted records do no harm");
        let wanted: Vec<Head> = full.heads.iter().copied().filter(|head| head.index % 2 == only).collect();
        assert_eq!(half.heads, wanted);
    }
    write_again(&header, data, &full);
}

/// The records once more, as the encoder takes them. `None`: they hold what the encoder cannot say.
struct Records {
    header_flags: u32,
    records: Vec<FrameRecord>,
    lossless: bool,
}

impl RecordSink for Records {
    fn start(&mut self, head: &Head) -> bool {
        let ts = head.ts.unwrap_or_default();
        self.lossless &= head.stream == 0;
        self.records.push(FrameRecord { ts, values: Vec::new(), flags: head.flags & !self.header_flags });
        true
    }
    fn value(&mut self, field: u16, value: Value<'_>) {
        self.lossless &= !is_scaled(field);
        if let Some(record) = self.records.last_mut() {
            record.values.push((u32::from(field) + 1, OwnedValue::from(value)));
        }
    }
    fn extra(&mut self, _: &str) {
        self.lossless = false;
    }
    fn end(&mut self) {}
}

fn write_again(header: &FrameHeader, data: &[u8], expected: &Transcript) {
    let mut records = Records { header_flags: header.flags, records: Vec::new(), lossless: true };
    read(PayloadFormat::Frame, data, catalog(), &mut records).expect("it was read before");
    if !records.lossless {
        return;
    }
    let mut bytes = match encode_frame(header, &records.records) {
        Ok(bytes) => bytes,
        // Our encoder writes doubles and times at full width: a frame near the limit may not fit any more.
        Err(EncodeError::TooLarge { .. }) => return,
        Err(error) => panic!("a frame that was read cannot be written: {error}"),
    };
    assert_eq!(read_frame_header(&bytes).as_ref(), Ok(header));
    let mut back = Transcript::default();
    read(PayloadFormat::Frame, &bytes, catalog(), &mut back).expect("what was written reads back");
    assert_eq!(sorted(&back), sorted(expected), "what was written reads back as it was");
    assert!(restamp(&mut bytes, Timestamp(i64::MIN), 77), "the encoder's frames can be stamped");
    let stamped = read_frame_header(&bytes).expect("a stamped frame is a frame");
    let mono_send = header.mono_send.map(|_| 77);
    assert_eq!(stamped, FrameHeader { send_time: Timestamp(i64::MIN), mono_send, ..header.clone() });
}

/// The lines of each record in one order: columns are written in the order of their first value.
fn sorted(transcript: &Transcript) -> Vec<Vec<&String>> {
    let mut records: Vec<Vec<&String>> =
        transcript.lines.split(|line| line == "end").map(|lines| lines.iter().collect()).collect();
    records.iter_mut().for_each(|lines| lines.sort());
    records
}
