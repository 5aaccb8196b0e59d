//! Writing frames: for devices, simulators and tests.

use minicbor::Encoder;
use minicbor::encode::Error;

use super::{FrameHeader, Layout};
use crate::payload::{MAX_FRAME, MAX_RECORDS};
use crate::schema::OwnedValue;
use crate::time::Timestamp;

/// One record to write.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameRecord {
    /// When.
    pub ts: Timestamp,
    /// Field ids and raw values (before `scale`); an absent field is left out.
    pub values: Vec<(u32, OwnedValue)>,
    /// Flags of this record (not in the layout of columns: put those into the header).
    pub flags: u32,
}

/// Why records do not make a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Over a limit.
    #[error(
        "{records} records in {bytes} bytes: a frame has at most {MAX_RECORDS} records and {MAX_FRAME} bytes, put fewer into it"
    )]
    TooLarge {
        /// How many records.
        records: usize,
        /// How many bytes.
        bytes: usize,
    },
    /// Times or integers too far apart.
    #[error("a time or integer is more than 64 bits away from the one before: put them into different frames")]
    Range,
    /// Columns have no room for the flags of single records.
    #[error("the layout of columns cannot hold the flags of single records: use rows, or the header's flags")]
    Flags,
}

impl<E> From<Error<E>> for EncodeError {
    /// Writing to a vector cannot fail; minicbor's type says it could.
    fn from(_: Error<E>) -> Self {
        Self::Range
    }
}

/// Where [`encode_frame`] puts key 7, and behind it key 8: right after the map's head and key 0.
const RESTAMP_AT: usize = 3;

/// Writes a frame. The header's `version` and `records` are ignored; keys 7 and 8 come right after key 0 in fixed
/// width, so that [`restamp`] can renew them in place.
pub fn encode_frame(header: &FrameHeader, records: &[FrameRecord]) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::with_capacity(64 + records.len() * 32);
    let optional = [
        header.mono_send.is_some(),
        header.mono_base.is_some(),
        header.layout == Layout::Columns,
        header.flags != 0,
        header.clock.is_some(),
        !header.losses.is_empty(),
        header.trace.is_some(),
    ];
    bytes.push(0xa0 | (8 + optional.iter().filter(|present| **present).count()) as u8);
    bytes.extend_from_slice(&[0x00, 0x01, 0x07]);
    bytes.extend_from_slice(&fixed(header.send_time));
    if let Some(mono) = header.mono_send {
        bytes.extend_from_slice(&[0x08, 0x1b]);
        bytes.extend_from_slice(&mono.to_be_bytes());
    }
    let mut out = Encoder::new(&mut bytes);
    out.u8(1)?.u64(header.epoch)?.u8(2)?.u64(header.seq)?;
    out.u8(3)?.u32(header.schema_id)?.u8(4)?.u32(header.schema_version.number())?;
    out.u8(5)?.i64(header.base_time.0)?;
    if let Some(mono) = header.mono_base {
        out.u8(9)?.u64(mono)?;
    }
    if header.layout == Layout::Columns {
        out.u8(10)?.u8(1)?;
    }
    if header.flags != 0 {
        out.u8(11)?.u32(header.flags)?;
    }
    if let Some((offset, roundtrip)) = header.clock {
        out.u8(12)?.array(2)?.i64(offset)?.u64(roundtrip)?;
    }
    if !header.losses.is_empty() {
        out.u8(13)?.array(header.losses.len() as u64)?;
        for loss in &header.losses {
            out.array(3)?.u64(loss.from)?.u64(loss.to)?.u8(loss.reason as u8)?;
        }
    }
    if let Some(trace) = &header.trace {
        out.u8(14)?.bytes(trace)?;
    }
    out.u8(6)?;
    match header.layout {
        Layout::Rows => rows(header, records, &mut bytes)?,
        Layout::Columns => columns(header, records, &mut bytes)?,
    }
    if bytes.len() > MAX_FRAME || records.len() > MAX_RECORDS {
        return Err(EncodeError::TooLarge { records: records.len(), bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Renews the send times (keys 7 and 8) of a frame that [`encode_frame`] wrote; false if it is not one. Key 8 is
/// renewed only where the frame has one.
pub fn restamp(frame: &mut [u8], send_time: Timestamp, mono_send: u64) -> bool {
    let Some([0x00, 0x01, 0x07, rest @ ..]) = frame.get_mut(RESTAMP_AT - 2..) else {
        return false;
    };
    let Some((wall, rest)) = rest.split_first_chunk_mut::<9>() else {
        return false;
    };
    if !matches!(wall.first(), Some(0x1b | 0x3b)) {
        return false;
    }
    *wall = fixed(send_time);
    if let Some(([0x08, 0x1b, mono @ ..], _)) = rest.split_first_chunk_mut::<10>() {
        mono.copy_from_slice(&mono_send.to_be_bytes());
    }
    true
}

/// A time as a CBOR integer of always nine bytes.
fn fixed(ts: Timestamp) -> [u8; 9] {
    let (initial, value) = if ts.0 < 0 { (0x3b, !ts.0) } else { (0x1b, ts.0) };
    let mut out = [initial; 9];
    if let Some(tail) = out.last_chunk_mut::<8>() {
        *tail = value.to_be_bytes();
    }
    out
}

fn difference(ts: Timestamp, base: Timestamp) -> Result<i64, EncodeError> {
    ts.0.checked_sub(base.0).ok_or(EncodeError::Range)
}

fn rows(header: &FrameHeader, records: &[FrameRecord], bytes: &mut Vec<u8>) -> Result<(), EncodeError> {
    let mut out = Encoder::new(bytes);
    out.array(records.len() as u64)?;
    for record in records {
        out.array(if record.flags == 0 { 2 } else { 3 })?;
        out.i64(difference(record.ts, header.base_time)?)?;
        out.map(record.values.len() as u64)?;
        for (id, value) in &record.values {
            out.u32(*id)?;
            put(&mut out, value)?;
        }
        if record.flags != 0 {
            out.u32(record.flags)?;
        }
    }
    Ok(())
}

fn columns(header: &FrameHeader, records: &[FrameRecord], bytes: &mut Vec<u8>) -> Result<(), EncodeError> {
    if records.iter().any(|record| record.flags != 0) {
        return Err(EncodeError::Flags);
    }
    let mut ids: Vec<u32> = Vec::new();
    for (id, _) in records.iter().flat_map(|record| &record.values) {
        if !ids.contains(id) {
            ids.push(*id);
        }
    }
    let mut out = Encoder::new(bytes);
    out.array(1 + 2 * ids.len() as u64)?.array(records.len() as u64)?;
    let mut before = header.base_time;
    for record in records {
        out.i64(difference(record.ts, before)?)?;
        before = record.ts;
    }
    for id in ids {
        out.u32(id)?.array(records.len() as u64)?;
        let mut before = 0i128;
        for record in records {
            let value = record.values.iter().find_map(|(other, value)| (*other == id).then_some(value));
            let integer = match value {
                Some(OwnedValue::I64(value)) => i128::from(*value),
                Some(OwnedValue::U64(value)) => i128::from(*value),
                Some(value) => {
                    put(&mut out, value)?;
                    continue;
                }
                None => {
                    out.null()?;
                    continue;
                }
            };
            let delta = minicbor::data::Int::try_from(integer - before).map_err(|_| EncodeError::Range)?;
            out.int(delta)?;
            before = integer;
        }
    }
    Ok(())
}

fn put(out: &mut Encoder<&mut Vec<u8>>, value: &OwnedValue) -> Result<(), EncodeError> {
    match value {
        OwnedValue::Bool(value) => out.bool(*value)?,
        OwnedValue::I64(value) => out.i64(*value)?,
        OwnedValue::U64(value) => out.u64(*value)?,
        OwnedValue::F32(value) => out.f32(*value)?,
        OwnedValue::F64(value) => out.f64(*value)?,
        OwnedValue::Text(value) => out.str(value)?,
        OwnedValue::Bytes(value) => out.bytes(value)?,
        OwnedValue::F64List(values) => {
            out.array(values.len() as u64)?;
            for value in values {
                out.f64(*value)?;
            }
            out
        }
        OwnedValue::I64List(values) => {
            out.array(values.len() as u64)?;
            for value in values {
                out.i64(*value)?;
            }
            out
        }
    };
    Ok(())
}
