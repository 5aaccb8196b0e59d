//! Packs stored records into telemetry frames.
//!
//! The same records always make the same bytes, apart from what is said about clocks (keys 7, 8, 9, 11 and 12), so a frame
//! that is sent again after a restart or a partial ack needs no copy of the first one. Absent: the frame format itself (crate `device`).

use device::payload::{FrameHeader, FrameRecord, Layout, LossRange, encode_frame};
use device::schema::{OwnedValue, SchemaVersion};
use device::seq::Epoch;
use device::time::Timestamp;
use minicbor::Decoder;
use minicbor::data::Type;

use crate::clock::Stamp;
use crate::outbox::{Lost, Stored};
use crate::reading::SchemaRef;

/// How frames are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameConfig {
    /// Most records of a frame.
    pub records: usize,
    /// Most bytes of a frame; one record may make it larger, as it cannot be split.
    pub bytes: usize,
    /// Rows or columns.
    pub layout: Layout,
}

impl Default for FrameConfig {
    fn default() -> Self {
        Self { records: 64, bytes: 16 << 10, layout: Layout::Rows }
    }
}

/// What a frame says about the clocks of the device.
#[derive(Clone, Copy)]
pub struct Times<'a> {
    /// The two clocks at the moment of sending.
    pub stamp: Stamp,
    /// What was measured last: offset and round trip.
    pub measured: Option<(i64, u64)>,
    /// How far apart the clocks were when the record of a number was made, if that is known: [`Stamp::apart`].
    pub apart: &'a dyn Fn(u64) -> Option<i128>,
}

impl Times<'_> {
    /// Nothing is known but the time of sending.
    pub fn of(stamp: Stamp) -> Self {
        Times { stamp, measured: None, apart: &|_| None }
    }

    /// The monotonic clock when the record of that number and time was made.
    fn mono(&self, stored: &Stored) -> Option<u64> {
        let apart = (self.apart)(stored.seq)?;
        let mono = u64::try_from(i128::from(stored.reading.ts.0) - apart).ok()?;
        // A time that is not of this clock, or a future one, says nothing.
        (mono <= self.stamp.mono).then_some(mono)
    }
}

/// Flag of a frame: the device does not know the time.
const UNSYNCED: u32 = 2;

/// Room for a frame's head, and what a row costs beside its fields.
const HEAD: usize = 80;
const ROW: usize = 12;

/// Frames for these records, which are ascending and of one epoch. A gap, another schema, a step of the wall clock or a limit
/// begins a new frame. A record that cannot be encoded is left out and its number returned.
pub fn pack(epoch: Epoch, records: &[Stored], config: &FrameConfig, times: &Times<'_>) -> (Vec<Vec<u8>>, Vec<u64>) {
    let (mut frames, mut bad) = (Vec::new(), Vec::new());
    let mut rest = records;
    while !rest.is_empty() {
        let (group, after) = rest.split_at(group(rest, config, times));
        encode(epoch, group, config.layout, times, &mut frames, &mut bad);
        rest = after;
    }
    (frames, bad)
}

/// A frame without records that declares losses.
pub fn declare(epoch: Epoch, lost: &[Lost], schema: SchemaRef, times: &Times<'_>) -> Option<Vec<u8>> {
    let header = FrameHeader {
        epoch: epoch.0,
        seq: lost.first()?.from,
        losses: lost.iter().map(|lost| LossRange { from: lost.from, to: lost.to, reason: lost.reason }).collect(),
        ..head(schema, times.stamp.wall, times)
    };
    encode_frame(&header, &[]).ok()
}

fn head(schema: SchemaRef, base_time: Timestamp, times: &Times<'_>) -> FrameHeader {
    FrameHeader {
        schema_id: schema.id,
        schema_version: SchemaVersion::from_number(schema.version),
        base_time,
        send_time: times.stamp.wall,
        mono_send: Some(times.stamp.mono),
        flags: if times.stamp.is_set() { 0 } else { UNSYNCED },
        clock: times.measured,
        ..FrameHeader::default()
    }
}

/// How many of `records` go into the next frame: at least one.
fn group(records: &[Stored], config: &FrameConfig, times: &Times<'_>) -> usize {
    let Some(first) = records.first() else { return 0 };
    let mut bytes = HEAD;
    let apart = (times.apart)(first.seq);
    let mut count: usize = 0;
    for stored in records {
        bytes += ROW + stored.reading.fields.len();
        let joins = stored.seq == first.seq + count as u64
            && stored.reading.schema == first.reading.schema
            && (times.apart)(stored.seq) == apart
            && (config.layout == Layout::Rows || stored.reading.flags == first.reading.flags);
        if count > 0 && (!joins || bytes > config.bytes || count >= config.records) {
            break;
        }
        count += 1;
    }
    count
}

fn encode(
    epoch: Epoch,
    group: &[Stored],
    layout: Layout,
    times: &Times<'_>,
    frames: &mut Vec<Vec<u8>>,
    bad: &mut Vec<u64>,
) {
    let Some(first) = group.first() else { return };
    let mut header = FrameHeader {
        epoch: epoch.0,
        seq: first.seq,
        layout,
        mono_base: times.mono(first),
        ..head(first.reading.schema, first.reading.ts, times)
    };
    if layout == Layout::Columns {
        header.flags |= first.reading.flags;
    }
    let rows: Option<Vec<FrameRecord>> = group
        .iter()
        .map(|stored| {
            let flags = if layout == Layout::Rows { stored.reading.flags } else { 0 };
            Some(FrameRecord { ts: stored.reading.ts, values: values(&stored.reading.fields)?, flags })
        })
        .collect();
    match rows.and_then(|rows| encode_frame(&header, &rows).ok()) {
        Some(frame) => frames.push(frame),
        None if group.len() == 1 => bad.push(first.seq),
        // Times too far apart for one frame, one bad record, or a bad guess at the size.
        None => {
            let (left, right) = group.split_at(group.len() / 2);
            encode(epoch, left, layout, times, frames, bad);
            encode(epoch, right, layout, times, frames, bad);
        }
    }
}

/// The values of a record's CBOR map.
fn values(fields: &[u8]) -> Option<Vec<(u32, OwnedValue)>> {
    let mut d = Decoder::new(fields);
    let count = d.map().ok()??;
    let mut values = Vec::with_capacity(count.min(64) as usize);
    for _ in 0..count {
        let id = d.u32().ok()?;
        values.push((id, value(&mut d).ok()??));
    }
    Some(values)
}

fn value(d: &mut Decoder<'_>) -> Result<Option<OwnedValue>, minicbor::decode::Error> {
    Ok(Some(match d.datatype()? {
        Type::Bool => OwnedValue::Bool(d.bool()?),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => OwnedValue::U64(d.u64()?),
        Type::I8 | Type::I16 | Type::I32 | Type::I64 => OwnedValue::I64(d.i64()?),
        Type::F32 => OwnedValue::F32(d.f32()?),
        Type::F64 => OwnedValue::F64(d.f64()?),
        Type::String => OwnedValue::Text(d.str()?.to_owned()),
        Type::Bytes => OwnedValue::Bytes(d.bytes()?.to_vec()),
        Type::Array => {
            let Some(count) = d.array()? else { return Ok(None) };
            let (mut floats, mut integers) = (Vec::new(), Vec::new());
            for _ in 0..count {
                match d.datatype()? {
                    Type::F64 => floats.push(d.f64()?),
                    _ => integers.push(d.i64()?),
                }
            }
            if floats.is_empty() { OwnedValue::I64List(integers) } else { OwnedValue::F64List(floats) }
        }
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use device::payload::read_frame_header;
    use device::schema::Value;

    use super::*;
    use crate::reading::Reading;

    const SCHEMA: SchemaRef = SchemaRef { id: 1, version: 1 << 16 };
    const STAMP: Stamp = Stamp { wall: Timestamp(5), mono: 6 };

    fn stored(seq: u64, ts: i64, schema: SchemaRef) -> Stored {
        let values =
            [(1, Value::F64(20.5)), (4, Value::Text("ok")), (9, Value::I64(-4)), (10, Value::I64List(&[1, 2]))];
        Stored { seq, reading: Reading::new(Timestamp(ts), schema, &values) }
    }

    fn frames(records: &[Stored], config: FrameConfig) -> Vec<(u64, u32)> {
        let (frames, bad) = pack(Epoch(3), records, &config, &Times::of(STAMP));
        assert_eq!(bad, Vec::<u64>::new());
        frames
            .iter()
            .map(|bytes| {
                let header = read_frame_header(bytes).expect("a frame the engine reads");
                assert_eq!((header.epoch, header.send_time, header.mono_send), (3, Timestamp(5), Some(6)));
                assert_eq!(header.layout, config.layout);
                (header.seq, header.records)
            })
            .collect()
    }

    #[test]
    fn frames_end_at_limits_gaps_schemas_and_impossible_times() {
        let many: Vec<Stored> = (1..=150).map(|n| stored(n, n as i64, SCHEMA)).collect();
        for layout in [Layout::Rows, Layout::Columns] {
            let config = FrameConfig { layout, ..FrameConfig::default() };
            assert_eq!(frames(&many, config), vec![(1, 64), (65, 64), (129, 22)]);
            let gap = [stored(1, 1, SCHEMA), stored(3, 2, SCHEMA)];
            assert_eq!(frames(&gap, config), vec![(1, 1), (3, 1)]);
            let other = [stored(1, 1, SCHEMA), stored(2, 2, SchemaRef { id: 2, ..SCHEMA })];
            assert_eq!(frames(&other, config), vec![(1, 1), (2, 1)]);
            let far = [stored(1, i64::MIN, SCHEMA), stored(2, i64::MAX, SCHEMA)];
            assert_eq!(frames(&far, config), vec![(1, 1), (2, 1)]);
        }
        let small = FrameConfig { bytes: 200, ..FrameConfig::default() };
        assert!(frames(&many, small).len() > 40);
    }

    #[test]
    fn frames_tell_the_clocks_and_end_where_one_was_set() {
        let wall = device::clock::EARLIEST.0 + 1_000_000;
        let records: Vec<Stored> = (1..=5).map(|n| stored(n, wall + n as i64 * 100, SCHEMA)).collect();
        // The first is of an earlier process; before the fourth somebody has set the clock.
        let apart = |seq: u64| match seq {
            1 => None,
            2 | 3 => Some(i128::from(wall)),
            _ => Some(i128::from(wall) + 50),
        };
        let stamp = Stamp { wall: Timestamp(wall), mono: 450 };
        let times = Times { stamp, measured: Some((-7, 8)), apart: &apart };
        let (frames, _) = pack(Epoch(3), &records, &FrameConfig::default(), &times);
        let headers: Vec<_> = frames.iter().map(|bytes| read_frame_header(bytes).unwrap()).collect();
        let said: Vec<_> = headers.iter().map(|h| (h.seq, h.records, h.mono_base)).collect();
        assert_eq!(said, [(1, 1, None), (2, 2, Some(200)), (4, 2, Some(350))]);
        assert!(headers.iter().all(|header| header.clock == Some((-7, 8)) && header.flags == 0));
        // A time that the clock did not show yet, and a clock that was never set.
        let early = Times { stamp: Stamp { wall: Timestamp(5), mono: 340 }, ..times };
        let (frames, _) = pack(Epoch(3), &records[3..], &FrameConfig::default(), &early);
        let header = read_frame_header(&frames[0]).unwrap();
        assert_eq!((header.mono_base, header.flags), (None, UNSYNCED));
    }

    #[test]
    fn losses_make_a_frame_without_records() {
        let lost = Lost { epoch: Epoch(3), from: 4, to: 9, reason: device::entry::LossReason::RingFull };
        let header = read_frame_header(&declare(Epoch(3), &[lost], SCHEMA, &Times::of(STAMP)).unwrap()).unwrap();
        assert_eq!(header.records, 0);
        assert_eq!(header.losses, vec![LossRange { from: 4, to: 9, reason: lost.reason }]);
    }
}
