//! The clocks of a device as bytes, for its snapshot.

use super::clocks::{CLOCKS, Clocks};
use super::one::{Clock, FLOORS, Floor, POINTS, RECENT, Sample};
use crate::varint::{self, Broken, Cursor};

const MONO: u8 = 1;
const PLAIN: u8 = 2;
const DRIFTING: u8 = 4;

impl Clocks {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, self.made);
        varint::put(out, self.boots);
        varint::put_signed(out, self.heard);
        out.push(u8::from(self.pair.is_some()));
        if let Some((offset, roundtrip)) = self.pair {
            varint::put_signed(out, offset);
            varint::put(out, roundtrip);
        }
        varint::put(out, self.list.len() as u64);
        for clock in &self.list {
            put_clock(out, clock);
        }
    }

    pub(crate) fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        let (made, boots) = (cursor.unsigned("a number of clocks")?, cursor.unsigned("a number of boots")?);
        let heard = cursor.signed("a time")?;
        let pair = match cursor.byte("whether something was measured")? {
            0 => None,
            1 => Some((cursor.signed("an offset")?, cursor.unsigned("a round trip")?)),
            _ => return cursor.broken("whether something was measured"),
        };
        let count = cursor.count(9, "a number of clocks")?;
        if count > CLOCKS {
            return cursor.broken("a number of clocks");
        }
        let list = (0..count).map(|_| clock(cursor)).collect::<Result<_, _>>()?;
        Ok(Self { made, boots, list, pair, heard })
    }
}

fn put_clock(out: &mut Vec<u8>, clock: &Clock) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(flag(clock.mono.is_some(), MONO) | flag(clock.plain, PLAIN) | flag(clock.drifting, DRIFTING));
    varint::put(out, clock.id);
    varint::put(out, clock.boot);
    varint::put_signed(out, clock.first);
    varint::put_signed(out, clock.last.wrapping_sub(clock.first));
    if let Some(mono) = clock.mono {
        varint::put(out, mono);
    }
    varint::put_signed(out, clock.began.wrapping_sub(clock.first));
    for samples in [&clock.recent, &clock.points] {
        varint::put(out, samples.len() as u64);
        let mut before = (clock.first, 0i64);
        for sample in samples {
            varint::put_signed(out, sample.at.wrapping_sub(before.0));
            varint::put_signed(out, sample.offset.wrapping_sub(before.1));
            varint::put_signed(out, sample.err);
            before = (sample.at, sample.offset);
        }
    }
    varint::put(out, clock.floors.len() as u64);
    for floor in &clock.floors {
        varint::put_signed(out, floor.since);
        varint::put_signed(out, floor.at.wrapping_sub(floor.since));
        varint::put_signed(out, floor.offset);
    }
}

fn clock(cursor: &mut Cursor<'_>) -> Result<Clock, Broken> {
    let flags = cursor.byte("flags of a clock")?;
    let (id, boot) = (cursor.unsigned("a clock")?, cursor.unsigned("a boot")?);
    let first = cursor.signed("a time")?;
    let last = first.wrapping_add(cursor.signed("a time")?);
    let mono = if flags & MONO != 0 { Some(cursor.unsigned("a monotonic time")?) } else { None };
    let began = first.wrapping_add(cursor.signed("a time")?);
    let recent = samples(cursor, first, RECENT)?;
    let points = samples(cursor, first, POINTS)?;
    let count = cursor.count(3, "a number of floors")?;
    if count > FLOORS {
        return cursor.broken("a number of floors");
    }
    let mut floors = Vec::with_capacity(count);
    for _ in 0..count {
        let since = cursor.signed("a time")?;
        let at = since.wrapping_add(cursor.signed("a time")?);
        floors.push(Floor { since, at, offset: cursor.signed("an offset")? });
    }
    let plain = flags & PLAIN != 0;
    let mut clock = Clock { last, began, recent, points, floors, plain, ..Clock::new(id, boot, first, mono) };
    clock.drifting = flags & DRIFTING != 0;
    clock.fit();
    Ok(clock)
}

fn samples(cursor: &mut Cursor<'_>, first: i64, most: usize) -> Result<Vec<Sample>, Broken> {
    let count = cursor.count(3, "a number of measurements")?;
    if count > most {
        return cursor.broken("a number of measurements");
    }
    let mut samples = Vec::with_capacity(count);
    let mut before = (first, 0i64);
    for _ in 0..count {
        let at = before.0.wrapping_add(cursor.signed("a time")?);
        let offset = before.1.wrapping_add(cursor.signed("an offset")?);
        samples.push(Sample { at, offset, err: cursor.signed("an error")? });
        before = (at, offset);
    }
    Ok(samples)
}
