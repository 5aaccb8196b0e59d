//! What an entry of the log says about the time of its records.

use smallvec::SmallVec;

use super::fit::scaled;
use super::{AHEAD, ANCHORED, EARLIEST, Stamp, UNKNOWN, applies};
use crate::time::Timestamp;
use crate::varint::{self, Broken, Cursor};

/// Decided when the records were admitted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note {
    /// How device times become times: ascending by `from`, never empty. The first counts from the beginning of time.
    pub pieces: SmallVec<[Piece; 1]>,
    /// What the entry tells about the device's clock, if that is anything new.
    pub seen: Option<Sighting>,
    /// What follows from it: rows of the table `_clock`.
    pub changes: Vec<Change>,
}

/// A straight line: what has to be added to device times from `from` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The first device time that it counts for.
    pub from: Timestamp,
    /// The device time that offset and error are stated at.
    pub at: Timestamp,
    /// What has to be added to the device's clock there, in ns.
    pub offset: i64,
    /// By how much that grows, in ns per second of the device's clock.
    pub rate: i64,
    /// How far off the result may be there, in ns.
    pub err: i64,
    /// By how much that grows with the distance from `at`, in ns per second.
    pub err_rate: i64,
    /// One of the qualities of [`super::Stamp`]. With [`UNKNOWN`] the rest means nothing.
    pub quality: u8,
}

impl Piece {
    /// Nothing is known.
    pub(super) const NOTHING: Self =
        Self { from: Timestamp(i64::MIN), at: Timestamp(0), offset: 0, rate: 0, err: 0, err_rate: 0, quality: UNKNOWN };

    /// How far off the result may be for a device time.
    pub(super) fn err_at(&self, ts: i64) -> i64 {
        let away = ts.saturating_sub(self.at.0).saturating_abs();
        self.err.saturating_add(scaled(self.err_rate, away))
    }

    /// What follows for a device time.
    pub(super) fn stamp(&self, ts: Timestamp, received: Timestamp) -> Stamp {
        let unknown = Stamp::unknown(received);
        if self.quality == UNKNOWN {
            return unknown;
        }
        let away = ts.since(self.at);
        let offset = self.offset.saturating_add(scaled(self.rate, away));
        let err = self.err_at(ts.0);
        // What cannot be is no better for being near to what is known.
        let impossible = ts < EARLIEST || ts > received.plus(AHEAD);
        let (corrected, err) = match impossible || applies(offset, err) {
            true => (ts.plus(offset), err),
            // It may be off by all that was measured.
            false => (ts, err.saturating_add(offset.saturating_abs())),
        };
        if corrected < EARLIEST || corrected > received.plus(AHEAD) {
            return unknown;
        }
        // A clock that was never set is good for differences only.
        let quality = if ts < EARLIEST { ANCHORED } else { self.quality };
        Stamp { ts: corrected, clock_err_ns: Some(err), quality }
    }
}

/// What a frame (or a plain payload) tells about the clock of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The wall clock when it was sent; of plain records, which have no such time, the newest time of a record.
    pub wall: Timestamp,
    /// The earliest time of a record that is known to be of the same clock; `wall`, if none is.
    pub since: Timestamp,
    /// The monotonic clock then.
    pub mono: Option<u64>,
    /// What the device measured: offset and round trip.
    pub sample: Option<(i64, u64)>,
    /// It comes from plain records: it can say that the clock is ahead, never that it is behind.
    pub plain: bool,
}

/// What happened to a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ChangeKind {
    /// Its offset is known for the first time.
    Synced = 1,
    /// It is over: the device started again, or the clock was set.
    Ended = 2,
    /// It is far off, or runs far too fast or too slow.
    Drifting = 3,
    /// It no longer is.
    Settled = 4,
    /// Its rate is beyond what a clock can have: the measurements are not used for a rate.
    Rejected = 5,
}

impl ChangeKind {
    fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Synced,
            2 => Self::Ended,
            3 => Self::Drifting,
            4 => Self::Settled,
            5 => Self::Rejected,
            _ => return None,
        })
    }

    /// Its name in the table `_clock`, in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Ended => "ended",
            Self::Drifting => "drift",
            Self::Settled => "drift_cleared",
            Self::Rejected => "rate_rejected",
        }
    }
}

/// One row of the table `_clock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// Which of the device's clocks, counted from 1.
    pub clock: u64,
    /// The first and the last device time that the engine heard from it.
    pub span: (Timestamp, Timestamp),
    /// What has to be added to it at the end of the span, in ns.
    pub offset: i64,
    /// How far off that may be, in ns.
    pub err: i64,
    /// How fast that grows, in ns per second, if it is known.
    pub rate: Option<i64>,
}

const SEEN: u8 = 1;
const CHANGED: u8 = 2;
const MONO: u8 = 4;
const SAMPLE: u8 = 8;
const PLAIN: u8 = 16;

impl Note {
    /// The time of a record.
    #[inline]
    pub fn stamp(&self, ts_device: Option<Timestamp>, received: Timestamp) -> Stamp {
        let Some(ts) = ts_device else { return Stamp::unknown(received) };
        let piece = self.pieces.iter().rfind(|piece| piece.from <= ts).or_else(|| self.pieces.first());
        piece.map_or(Stamp::unknown(received), |piece| piece.stamp(ts, received))
    }

    pub(crate) fn put(&self, received: Timestamp, out: &mut Vec<u8>) {
        let (mono, sample) = match self.seen {
            Some(seen) => (seen.mono, seen.sample),
            None => (None, None),
        };
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.push(
            flag(self.seen.is_some(), SEEN)
                | flag(!self.changes.is_empty(), CHANGED)
                | flag(mono.is_some(), MONO)
                | flag(sample.is_some(), SAMPLE)
                | flag(self.seen.is_some_and(|seen| seen.plain), PLAIN),
        );
        varint::put(out, self.pieces.len() as u64);
        for piece in &self.pieces {
            out.push(piece.quality);
            put_time(out, piece.from, received);
            put_time(out, piece.at, received);
            for value in [piece.offset, piece.rate, piece.err, piece.err_rate] {
                varint::put_signed(out, value);
            }
        }
        if let Some(seen) = self.seen {
            put_time(out, seen.wall, received);
            varint::put_signed(out, seen.wall.0.wrapping_sub(seen.since.0));
            if let Some(mono) = mono {
                varint::put(out, mono);
            }
            if let Some((offset, roundtrip)) = sample {
                varint::put_signed(out, offset);
                varint::put(out, roundtrip);
            }
        }
        if !self.changes.is_empty() {
            varint::put(out, self.changes.len() as u64);
        }
        for change in &self.changes {
            out.push(change.kind as u8 | flag(change.rate.is_some(), 0x80));
            varint::put(out, change.clock);
            put_time(out, change.span.0, received);
            put_time(out, change.span.1, received);
            varint::put_signed(out, change.offset);
            varint::put_signed(out, change.err);
            if let Some(rate) = change.rate {
                varint::put_signed(out, rate);
            }
        }
    }

    pub(crate) fn get(cursor: &mut Cursor<'_>, received: Timestamp) -> Result<Self, Broken> {
        let flags = cursor.byte("what a note holds")?;
        let mut pieces = SmallVec::new();
        for _ in 0..cursor.count(7, "a number of pieces")? {
            let quality = cursor.byte("a quality")?;
            pieces.push(Piece {
                from: time(cursor, received)?,
                at: time(cursor, received)?,
                offset: cursor.signed("an offset")?,
                rate: cursor.signed("a rate")?,
                err: cursor.signed("an error")?,
                err_rate: cursor.signed("a rate")?,
                quality,
            });
        }
        if pieces.is_empty() {
            return cursor.broken("a number of pieces");
        }
        let mut note = Self { pieces, seen: None, changes: Vec::new() };
        if flags & SEEN != 0 {
            let wall = time(cursor, received)?;
            note.seen = Some(Sighting {
                wall,
                since: Timestamp(wall.0.wrapping_sub(cursor.signed("a time")?)),
                mono: if flags & MONO != 0 { Some(cursor.unsigned("a monotonic time")?) } else { None },
                sample: match flags & SAMPLE {
                    0 => None,
                    _ => Some((cursor.signed("an offset")?, cursor.unsigned("a round trip")?)),
                },
                plain: flags & PLAIN != 0,
            });
        }
        if flags & CHANGED != 0 {
            for _ in 0..cursor.count(6, "a number of changes")? {
                note.changes.push(change(cursor, received)?);
            }
        }
        Ok(note)
    }
}

fn change(cursor: &mut Cursor<'_>, received: Timestamp) -> Result<Change, Broken> {
    let kind = cursor.byte("what happened to a clock")?;
    let Some(of) = ChangeKind::from_u8(kind & 0x7f) else { return cursor.broken("what happened to a clock") };
    Ok(Change {
        kind: of,
        clock: cursor.unsigned("a clock")?,
        span: (time(cursor, received)?, time(cursor, received)?),
        offset: cursor.signed("an offset")?,
        err: cursor.signed("an error")?,
        rate: if kind & 0x80 != 0 { Some(cursor.signed("a rate")?) } else { None },
    })
}

/// Device times are mostly near to the time of receipt. It wraps, so that any two times come back as they were.
fn put_time(out: &mut Vec<u8>, time: Timestamp, received: Timestamp) {
    // The beginning of time is what most pieces count from.
    let begin = time.0 == i64::MIN;
    out.push(u8::from(begin));
    if !begin {
        varint::put_signed(out, time.0.wrapping_sub(received.0));
    }
}

fn time(cursor: &mut Cursor<'_>, received: Timestamp) -> Result<Timestamp, Broken> {
    match cursor.byte("a time")? {
        0 => Ok(Timestamp(received.0.wrapping_add(cursor.signed("a time")?))),
        1 => Ok(Timestamp(i64::MIN)),
        _ => cursor.broken("a time"),
    }
}
