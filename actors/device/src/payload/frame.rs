//! The telemetry frame: a CBOR map with integer keys. Here its header; the records and the encoder have files of
//! their own.

mod encode;
mod records;

pub use encode::{EncodeError, FrameRecord, encode_frame, restamp};
pub(crate) use records::{known, read, read_body};

use super::wire::{Fault, Item, Wire};
use super::{MAX_DEPTH, MAX_FRAME, MAX_RECORDS, Refusal};
use crate::entry::{LossReason, Reason};
use crate::schema::SchemaVersion;
use crate::seq::MAX_SEQ;
use crate::time::Timestamp;

/// Flag of a frame: the device will add no more records to this epoch.
pub const LAST_FRAME: u32 = 8;

/// Most keys of a frame's outer map: the format has 15, the rest is room for newer ones.
const MAX_KEYS: u64 = 64;

/// How a frame's body is laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// A list per record.
    #[default]
    Rows,
    /// A list per field, integers as differences.
    Columns,
}

/// Numbers that the device declares lost, both ends inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossRange {
    /// First.
    pub from: u64,
    /// Last.
    pub to: u64,
    /// Why.
    pub reason: LossReason,
}

/// Everything a frame says apart from its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameHeader {
    /// Key 0: frame version, always 1.
    pub version: u8,
    /// Key 1.
    pub epoch: u64,
    /// Key 2: number of the first record; the others follow.
    pub seq: u64,
    /// Key 3.
    pub schema_id: u32,
    /// Key 4.
    pub schema_version: SchemaVersion,
    /// Key 5: what the records' times are relative to.
    pub base_time: Timestamp,
    /// Key 7: the device's wall clock at this transmission.
    pub send_time: Timestamp,
    /// Key 8: its monotonic clock at this transmission.
    pub mono_send: Option<u64>,
    /// Key 9: its monotonic clock at the base time.
    pub mono_base: Option<u64>,
    /// Key 10.
    pub layout: Layout,
    /// Key 11.
    pub flags: u32,
    /// Key 12: the device's last measured clock offset and round trip, in ns.
    pub clock: Option<(i64, u64)>,
    /// Key 13.
    pub losses: Vec<LossRange>,
    /// Key 14.
    pub trace: Option<[u8; 16]>,
    /// How many records the body holds.
    pub records: u32,
}

/// Reads a frame's header and checks that the whole payload is one well-formed frame within its limits. What the
/// records hold is checked when they are read.
pub fn read_frame_header(payload: &[u8]) -> Result<FrameHeader, Refusal> {
    parse(payload).map(|(header, _)| header)
}

/// Epoch and number of a frame that may be broken further on: enough to tell the sender which one is meant.
pub fn peek_numbers(payload: &[u8]) -> Option<(u64, u64)> {
    let mut wire = Wire::new(payload, 0);
    let (mut epoch, mut seq) = (None, None);
    let Ok(Item::Map(pairs)) = wire.item() else {
        return None;
    };
    for _ in 0..pairs.unwrap_or(MAX_KEYS).min(MAX_KEYS) {
        match wire.item() {
            Ok(Item::Uint(1)) if epoch.is_none() => epoch = Some(wire.uint("").ok()?),
            Ok(Item::Uint(2)) if seq.is_none() => seq = Some(wire.uint("").ok()?),
            Ok(Item::Uint(_) | Item::Nint(_)) => wire.skip(MAX_DEPTH, true).ok()?,
            _ => return None,
        }
        if let (Some(epoch), Some(seq)) = (epoch, seq) {
            return (epoch <= MAX_SEQ && seq <= MAX_SEQ).then_some((epoch, seq));
        }
    }
    None
}

/// The header, and where the body stands.
pub(crate) fn parse(payload: &[u8]) -> Result<(FrameHeader, usize), Refusal> {
    if payload.len() > MAX_FRAME {
        let text =
            format!("a frame has at most {MAX_FRAME} bytes, this one has {}: send smaller frames", payload.len());
        return Err(Refusal::new(Reason::TooLarge, text));
    }
    let (header, body) = fields(payload).map_err(bad)?;
    if header.records as usize > MAX_RECORDS {
        let text = format!("a frame has at most {MAX_RECORDS} records, this one has {}", header.records);
        return Err(Refusal::new(Reason::TooLarge, text));
    }
    if header.seq == 0 {
        return Err(Refusal::new(Reason::BadFrame, "key 2: sequence numbers begin at 1"));
    }
    let last = header.seq.checked_add(u64::from(header.records.saturating_sub(1)));
    let Some(last) = last.filter(|last| *last <= MAX_SEQ && header.epoch <= MAX_SEQ) else {
        return Err(Refusal::new(Reason::BadFrame, "epoch and sequence numbers end at 2^63-1"));
    };
    for loss in &header.losses {
        if header.records > 0 && loss.from <= last && loss.to >= header.seq {
            let text =
                format!("key 13: numbers {} to {} are declared lost, but a record here has one", loss.from, loss.to);
            return Err(Refusal::new(Reason::BadFrame, text));
        }
    }
    if header.records == 0 && header.losses.is_empty() {
        return Err(Refusal::new(Reason::BadFrame, "the frame has neither records (key 6) nor losses (key 13)"));
    }
    Ok((header, body))
}

/// A fault as the refusal of a frame.
pub(crate) fn bad(fault: Fault) -> Refusal {
    Refusal::new(Reason::BadFrame, format!("bad frame at byte {}: {}", fault.at, fault.what))
}

fn fields(payload: &[u8]) -> Result<(FrameHeader, usize), Fault> {
    let mut wire = Wire::new(payload, 0);
    let mut header = FrameHeader::default();
    let mut body = 0;
    let mut seen = 0u64;
    let mut others: Vec<Item<'_>> = Vec::new();
    let pairs = wire.map("a frame is a map")?;
    if pairs > MAX_KEYS {
        return Wire::fault(0, "a frame has at most 64 keys");
    }
    for _ in 0..pairs {
        let at = wire.at();
        let key = wire.item()?;
        let Item::Uint(number @ 0..=14) = key else {
            if !matches!(key, Item::Uint(_) | Item::Nint(_)) {
                return Wire::fault(at, "a frame's keys are integers");
            }
            if others.contains(&key) {
                return Wire::fault(at, "a key stands twice");
            }
            others.push(key);
            wire.skip(MAX_DEPTH, false)?;
            continue;
        };
        if seen & 1 << number != 0 {
            return Wire::fault(at, "a key stands twice");
        }
        seen |= 1 << number;
        match number {
            0 => match wire.uint("key 0 (frame version) is an unsigned integer")? {
                1 => header.version = 1,
                _ => return Wire::fault(at, "this engine knows frame version 1 only"),
            },
            1 => header.epoch = wire.uint("key 1 (epoch) is an unsigned integer")?,
            2 => header.seq = wire.uint("key 2 (seq) is an unsigned integer")?,
            3 => header.schema_id = small(&mut wire, "key 3 (schema id) is an unsigned integer of 32 bits")?,
            4 => {
                let number = small(&mut wire, "key 4 (schema version) is an unsigned integer of 32 bits")?;
                header.schema_version = SchemaVersion::from_number(number);
            }
            5 => header.base_time = Timestamp(wire.int("key 5 (base time) is an integer of 64 bits")?),
            6 => {
                body = wire.at();
                wire.skip(MAX_DEPTH, false)?;
            }
            7 => header.send_time = Timestamp(wire.int("key 7 (send time) is an integer of 64 bits")?),
            8 => header.mono_send = Some(wire.uint("key 8 (monotonic send time) is an unsigned integer")?),
            9 => header.mono_base = Some(wire.uint("key 9 (monotonic base time) is an unsigned integer")?),
            10 => {
                header.layout = match wire.uint("key 10 (layout) is 0 or 1")? {
                    0 => Layout::Rows,
                    1 => Layout::Columns,
                    _ => return Wire::fault(at, "key 10 (layout) is 0 or 1"),
                }
            }
            11 => header.flags = small(&mut wire, "key 11 (flags) is an unsigned integer of 32 bits")?,
            12 => {
                const CLOCK: &str = "key 12 (clock) is [offset, round trip]";
                if wire.array(CLOCK)? != 2 {
                    return Wire::fault(at, CLOCK);
                }
                header.clock = Some((wire.int(CLOCK)?, wire.uint(CLOCK)?));
            }
            13 => header.losses = losses(&mut wire)?,
            _ => match wire.item()? {
                Item::Bytes(bytes) => match bytes.try_into() {
                    Ok(trace) => header.trace = Some(trace),
                    Err(_) => return Wire::fault(at, "key 14 (trace id) has 16 bytes"),
                },
                _ => return Wire::fault(at, "key 14 (trace id) has 16 bytes"),
            },
        }
    }
    if wire.left() > 0 {
        return Wire::fault(wire.at(), "bytes after the end of the frame");
    }
    const NEEDED: [&str; 8] = [
        "key 0 (frame version) is missing",
        "key 1 (epoch) is missing",
        "key 2 (seq) is missing",
        "key 3 (schema id) is missing",
        "key 4 (schema version) is missing",
        "key 5 (base time) is missing",
        "key 6 (body) is missing",
        "key 7 (send time) is missing",
    ];
    for (number, what) in NEEDED.into_iter().enumerate() {
        if seen & 1 << number == 0 {
            return Wire::fault(wire.at(), what);
        }
    }
    header.records = count(payload, body, header.layout)?;
    Ok((header, body))
}

fn small(wire: &mut Wire<'_>, what: &'static str) -> Result<u32, Fault> {
    let at = wire.at();
    match u32::try_from(wire.uint(what)?) {
        Ok(value) => Ok(value),
        Err(_) => Wire::fault(at, what),
    }
}

/// How many records the body has, without reading them.
fn count(payload: &[u8], body: usize, layout: Layout) -> Result<u32, Fault> {
    let mut wire = Wire::new(payload, body);
    let mut len = wire.array("key 6 (body) is an array")?;
    if layout == Layout::Columns {
        if len % 2 == 0 {
            return Wire::fault(body, "a body of columns is [times, field id, values, field id, values, ...]");
        }
        len = wire.array("a body of columns begins with the array of times")?;
    }
    // The array was passed over before, so it is no longer than the payload.
    Ok(u32::try_from(len).unwrap_or(u32::MAX))
}

fn losses(wire: &mut Wire<'_>) -> Result<Vec<LossRange>, Fault> {
    const FORM: &str = "key 13 (losses) is an array of [from, to, reason]";
    let at = wire.at();
    let len = wire.array(FORM)?;
    if len > MAX_RECORDS as u64 {
        return Wire::fault(at, "key 13 (losses) has at most 1024 ranges: join neighbours, send the rest later");
    }
    let mut losses = Vec::new();
    for _ in 0..len {
        let at = wire.at();
        if wire.array(FORM)? != 3 {
            return Wire::fault(at, FORM);
        }
        let (from, to) = (wire.uint(FORM)?, wire.uint(FORM)?);
        if from == 0 || from > to || to > MAX_SEQ {
            return Wire::fault(at, "a loss covers numbers from 1 to 2^63-1, the lower one first");
        }
        let reason = u8::try_from(wire.uint(FORM)?).ok().and_then(LossReason::from_u8);
        match reason.filter(|reason| *reason != LossReason::Skipped) {
            Some(reason) => losses.push(LossRange { from, to, reason }),
            None => return Wire::fault(at, "a loss reason is a number from 1 to 5"),
        }
    }
    Ok(losses)
}
