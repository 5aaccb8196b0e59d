//! Payloads: which format a message has, and reading its records without building them.
//!
//! One reader, directed by the schema, serves the hot path and replay: what was admitted reads the same for ever.
//! Absent: protobuf, and any decision about what a record means.

mod base64;
mod detect;
mod extra;
mod frame;
mod plain;
mod rfc3339;
mod row;
mod seen;
mod value;
mod wire;

pub use detect::{content_type, detect};
pub(crate) use extra::put_text;
pub use frame::{
    EncodeError, FrameHeader, FrameRecord, LAST_FRAME, Layout, LossRange, encode_frame, peek_numbers,
    read_frame_header, restamp,
};
pub use rfc3339::{TimeError, parse_rfc3339};

use crate::entry::Reason;
use crate::schema::{Catalog, StreamIndex, Value};
use crate::time::Timestamp;

/// Most bytes of a frame: it has to fit the buffers of small devices and gateways.
pub const MAX_FRAME: usize = 64 * 1024;
/// Most bytes of a plain payload: room for 1024 wide JSON records.
pub const MAX_PLAIN: usize = 1024 * 1024;
/// Most records of a frame or plain payload: a quarter of the dedup window.
pub const MAX_RECORDS: usize = 1024;
/// How deep arrays and maps may nest: telemetry nests two or three deep, and each level costs stack.
pub const MAX_DEPTH: usize = 16;

/// Most bytes of a refusal's text.
const MAX_TEXT: usize = 400;

/// How a payload is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PayloadFormat {
    /// The telemetry frame: a CBOR map with integer keys.
    Frame = 1,
    /// One JSON object or an array of objects.
    Json = 2,
    /// One CBOR map with text keys or an array of such maps.
    Cbor = 3,
}

impl PayloadFormat {
    /// The format of that number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Frame,
            2 => Self::Json,
            3 => Self::Cbor,
            _ => return None,
        })
    }
}

/// Why a payload was refused, in a form for machines and one for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// For machines.
    pub reason: Reason,
    /// For people: what is wrong, where, and what to do.
    pub text: String,
}

impl Refusal {
    /// A refusal of this kind. Texts may quote the payload, so they are cut where they get long.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.len() > MAX_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text.push_str(" ...");
        }
        Self { reason, text }
    }
}

/// What a record says of itself, apart from its values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Head {
    /// Which record of the payload, from 0.
    pub index: u32,
    /// Its stream.
    pub stream: StreamIndex,
    /// Its epoch, if it names one.
    pub epoch: Option<u64>,
    /// Its sequence number, if it names one.
    pub seq: Option<u64>,
    /// The device's own time of it, if it names one.
    pub ts: Option<Timestamp>,
    /// Minor schema version it was written with.
    pub schema_minor: u16,
    /// Flags of frame and record.
    pub flags: u32,
}

/// Takes the records of a payload one after the other; nothing is allocated for them on the way.
///
/// For each record: `start` once, `value` for each declared field present, `extra` at most once, `end` once.
pub trait RecordSink {
    /// The device's last measured clock offset and round trip, in ns, ahead of all records, if the payload has it.
    fn clock(&mut self, _measured: (i64, u64)) {}
    /// A record begins. False: its values are not wanted; the reader goes on to the next record.
    fn start(&mut self, head: &Head) -> bool;
    /// A declared field (column index of its stream) has this value. Null fields are not reported.
    fn value(&mut self, field: u16, value: Value<'_>);
    /// All undeclared fields of the record, as the text of one JSON object.
    fn extra(&mut self, json: &str);
    /// The record ends.
    fn end(&mut self);
}

/// Reads all records of a payload into `sink`.
///
/// On a refusal the sink may have seen some records already: whoever must not act on half a payload calls
/// [`validate`] first.
pub fn read(
    format: PayloadFormat,
    payload: &[u8],
    catalog: &Catalog,
    sink: &mut impl RecordSink,
) -> Result<(), Refusal> {
    match format {
        PayloadFormat::Frame => frame::read(payload, catalog, sink),
        PayloadFormat::Json => plain::read_json(payload, catalog, sink),
        PayloadFormat::Cbor => plain::read_cbor(payload, catalog, sink),
    }
}

/// Checks a payload completely, values and types included, and hands out what its records say of themselves.
pub fn validate(
    format: PayloadFormat,
    payload: &[u8],
    catalog: &Catalog,
    head: &mut impl FnMut(&Head),
) -> Result<(), Refusal> {
    read(format, payload, catalog, &mut Heads(head))
}

/// A frame's header and the check of its records, in one go. The inner result is about the records alone: with a
/// header one knows at least which numbers it is about.
/// The inner result has the earliest and the latest time of the records.
pub(crate) fn validate_frame(payload: &[u8], catalog: &Catalog) -> Result<(FrameHeader, Checked), Refusal> {
    let (header, body) = frame::parse(payload)?;
    let mut span: Option<(Timestamp, Timestamp)> = None;
    let mut head = |head: &Head| {
        if let Some(ts) = head.ts {
            span = Some(span.map_or((ts, ts), |(low, high)| (low.min(ts), high.max(ts))));
        }
    };
    let records = frame::known(&header, catalog)
        .and_then(|()| frame::read_body(payload, &header, body, catalog, &mut Heads(&mut head)));
    let span = span.unwrap_or((header.base_time, header.base_time));
    Ok((header, records.map(|()| span)))
}

/// The times that a frame's records lie between, or why it has none.
type Checked = Result<(Timestamp, Timestamp), Refusal>;

/// Wants all values, so that all are checked, and keeps none.
struct Heads<'a, F>(&'a mut F);

impl<F: FnMut(&Head)> RecordSink for Heads<'_, F> {
    fn start(&mut self, head: &Head) -> bool {
        (self.0)(head);
        true
    }
    fn value(&mut self, _: u16, _: Value<'_>) {}
    fn extra(&mut self, _: &str) {}
    fn end(&mut self) {}
}

#[cfg(test)]
mod tests;
