//! The durable part of a device as bytes: what replay would rebuild, and nothing that is in flight.

use std::collections::VecDeque;

use super::drawn::{Ring, Staged};
use super::keeping::Held;
use super::{Device, SnapshotError};
use crate::alert::Alerts;
use crate::clock::Clocks;
use crate::command::Commands;
use crate::dedup::{EpochState, Tally, WINDOW};
use crate::id::DeviceId;
use crate::seq::{Epoch, MAX_SEQ, Position};
use crate::shadow::Shadows;
use crate::status::Status;
use crate::varint::{self, Broken, Cursor};

/// The newest version that [`Device::snapshot`] writes: with clocks among the parts.
const VERSION: u8 = 4;
/// The version with a byte that says which of the parts behind it are there.
const PARTS: u8 = 3;
/// The version of devices that have alerts and nothing else of these parts.
const ALERTS: u8 = 2;
/// The version of devices that have none of them.
const PLAIN: u8 = 1;

const HAS_ALERTS: u8 = 1;
const HAS_SHADOWS: u8 = 2;
const HAS_COMMANDS: u8 = 4;
const HAS_STATUS: u8 = 8;
const HAS_CLOCKS: u8 = 16;

const FRAMED: u8 = 1;
const ZERO: u8 = 2;
const CLOSED: u8 = 4;
const TALLY: u8 = 8;

impl From<Broken> for SnapshotError {
    fn from(broken: Broken) -> Self {
        Self::Damaged { at: broken.at, what: broken.what }
    }
}

impl Device {
    /// The durable part of the device's state. Call it between positions, not between the entries of one.
    pub fn snapshot(&self) -> Vec<u8> {
        let version = match (&self.time.durable, &self.keeping, &self.alerts) {
            (Some(_), _, _) => VERSION,
            (None, Some(_), _) => PARTS,
            (None, None, Some(_)) => ALERTS,
            (None, None, None) => PLAIN,
        };
        let mut out = vec![version];
        varint::put(&mut out, self.as_of.0);
        varint::put(&mut out, self.unnumbered);
        varint::put_signed(&mut out, self.epochs.day.0);
        varint::put(&mut out, u64::from(self.epochs.day.1));
        let durable = || self.epochs.open.iter().filter(|open| open.durable);
        varint::put(&mut out, durable().count() as u64);
        for open in durable() {
            put_epoch(&mut out, open.epoch, &open.state, open.framed, open.closed);
        }
        varint::put(&mut out, self.epochs.closed.len() as u64);
        for closed in &self.epochs.closed {
            put_epoch(&mut out, closed.epoch, &closed.state, false, true);
        }
        match self.numbering.max_ts {
            None => out.push(0),
            Some(ts) => {
                out.push(1);
                varint::put_signed(&mut out, ts);
            }
        }
        let rings = || self.numbering.rings.iter().filter(|ring| !ring.times.is_empty());
        varint::put(&mut out, rings().count() as u64);
        for ring in rings() {
            out.extend_from_slice(&ring.epoch.0.to_le_bytes());
            varint::put(&mut out, ring.top);
            varint::put(&mut out, ring.times.len() as u64);
            // Sampled times are evenly spaced: the difference of differences is small.
            let (mut before, mut step) = (0i64, 0i64);
            for ts in &ring.times {
                let next = ts.wrapping_sub(before);
                varint::put_signed(&mut out, next.wrapping_sub(step));
                (before, step) = (*ts, next);
            }
        }
        if version >= PARTS {
            let part = |there: bool, part: u8| if there { part } else { 0 };
            let has_status = self.keeping.as_ref().is_some_and(|keeping| keeping.status.durable().is_some());
            out.push(
                part(self.alerts.is_some(), HAS_ALERTS)
                    | part(self.keeping.is_some(), HAS_SHADOWS | HAS_COMMANDS)
                    | part(has_status, HAS_STATUS)
                    | part(self.time.durable.is_some(), HAS_CLOCKS),
            );
        }
        if let Some(alerts) = &self.alerts {
            alerts.put(&mut out);
        }
        if let Some(keeping) = &self.keeping {
            keeping.shadows.durable().put(&mut out);
            keeping.commands.durable().put(&mut out);
            if let Some(status) = keeping.status.durable() {
                status.put(&mut out);
            }
        }
        if let Some(clocks) = &self.time.durable {
            clocks.put(&mut out);
        }
        out
    }

    /// The device as a snapshot says.
    pub fn restore(id: DeviceId, snapshot: &[u8]) -> Result<Self, SnapshotError> {
        let mut cursor = Cursor::new(snapshot);
        let version = cursor.byte("a version")?;
        match version {
            PLAIN | ALERTS | PARTS | VERSION => {}
            found if found > VERSION => return Err(SnapshotError::Newer { found, known: VERSION }),
            _ => return Err(SnapshotError::Damaged { at: 0, what: "a version" }),
        }
        let mut device = Self::new(id);
        device.as_of = Position(cursor.unsigned("a position")?);
        device.unnumbered = cursor.unsigned("a count")?;
        device.epochs.day = (cursor.signed("a day")?, cursor.unsigned32("a count")?);
        for _ in 0..cursor.count(11, "a number of open epochs")? {
            let (epoch, state, flags) = epoch(&mut cursor)?;
            device.epochs.open(epoch, 0);
            if let Some(open) = device.epochs.get_mut(epoch) {
                open.state = state;
                open.framed = flags & FRAMED != 0;
                open.durable = true;
                open.closed = flags & CLOSED != 0;
            }
            device.epochs.compact(epoch);
        }
        for _ in 0..cursor.count(11, "a number of closed epochs")? {
            let (epoch, state, _) = epoch(&mut cursor)?;
            device.epochs.remember(epoch, state);
        }
        device.numbering.max_ts = match cursor.byte("a latest time")? {
            0 => None,
            _ => Some(cursor.signed("a latest time")?),
        };
        for _ in 0..cursor.count(10, "a number of rings")? {
            device.numbering.rings.push(ring(&mut cursor)?);
        }
        let parts = match version {
            PARTS | VERSION => cursor.byte("which parts there are")?,
            ALERTS => HAS_ALERTS,
            _ => 0,
        };
        if parts & !(HAS_ALERTS | HAS_SHADOWS | HAS_COMMANDS | HAS_STATUS | HAS_CLOCKS) != 0 {
            return cursor.broken("parts that this engine knows").map_err(Into::into);
        }
        if parts & HAS_ALERTS != 0 {
            device.alerts = Some(Box::new(Alerts::get(&mut cursor)?));
        }
        if parts & HAS_SHADOWS != 0 {
            device.keeping.get_or_insert_default().shadows = Held::of(Shadows::get(&mut cursor)?);
        }
        if parts & HAS_COMMANDS != 0 {
            device.keeping.get_or_insert_default().commands = Held::of(Commands::get(&mut cursor)?);
        }
        if parts & HAS_STATUS != 0 {
            device.keeping.get_or_insert_default().status = Held::of(Some(Status::get(&mut cursor)?));
        }
        if parts & HAS_CLOCKS != 0 {
            device.time.durable = Some(Box::new(Clocks::get(&mut cursor)?));
        }
        cursor.end("the end of the snapshot")?;
        Ok(device)
    }
}

fn put_epoch(out: &mut Vec<u8>, epoch: Epoch, state: &EpochState, framed: bool, closed: bool) {
    let tally = state.tally();
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.extend_from_slice(&epoch.0.to_le_bytes());
    out.push(
        flag(framed, FRAMED)
            | flag(state.has_zero(), ZERO)
            | flag(closed, CLOSED)
            | flag(tally != Tally::default(), TALLY),
    );
    varint::put(out, state.cum());
    varint::put(out, state.duplicates());
    if tally != Tally::default() {
        for value in [tally.base, tally.early, tally.dead, tally.lost, tally.filtered] {
            varint::put(out, value);
        }
    }
    let above = state.above_cum();
    varint::put(out, above.iter().count() as u64);
    let mut before = state.cum();
    for (from, to) in above.iter() {
        varint::put(out, from - before);
        varint::put(out, to - from);
        before = to;
    }
}

fn epoch(cursor: &mut Cursor<'_>) -> Result<(Epoch, EpochState, u8), Broken> {
    let epoch = fixed(cursor)?;
    let flags = cursor.byte("flags of an epoch")?;
    let cum = number(cursor)?;
    let duplicate = cursor.unsigned32("a count")?;
    let mut tally = Tally::default();
    if flags & TALLY != 0 {
        tally = Tally {
            base: number(cursor)?,
            early: number(cursor)?,
            dead: number(cursor)?,
            lost: number(cursor)?,
            filtered: number(cursor)?,
        };
        // Each number went one way only, and there are no more numbers than these.
        let apart = tally.dead.checked_add(tally.lost).and_then(|sum| sum.checked_add(tally.filtered));
        if apart.is_none_or(|apart| apart > MAX_SEQ + 1) {
            return cursor.broken("counts of an epoch's numbers");
        }
    }
    let mut above = Vec::new();
    let mut before = cum;
    for _ in 0..cursor.count(2, "a number of ranges")? {
        let (skip, len) = (cursor.unsigned("a range")?, cursor.unsigned("a range")?);
        let from = before.checked_add(skip);
        let range = from.and_then(|from| Some((from, from.checked_add(len)?)));
        match range {
            Some((from, to)) if to <= MAX_SEQ && to - cum <= WINDOW => {
                above.push((from, to));
                before = to;
            }
            _ => return cursor.broken("a range inside the window"),
        }
    }
    Ok((epoch, EpochState::from_parts(cum, flags & ZERO != 0, duplicate, tally, &above), flags))
}

fn ring(cursor: &mut Cursor<'_>) -> Result<Ring, Broken> {
    let epoch = fixed(cursor)?;
    let top = number(cursor)?;
    let len = cursor.count(1, "a number of times")?;
    if len as u64 > WINDOW || len as u64 > top + 1 {
        return cursor.broken("as many times as the window holds");
    }
    let mut times = VecDeque::with_capacity(len);
    let (mut before, mut step) = (0i64, 0i64);
    for _ in 0..len {
        step = step.wrapping_add(cursor.signed("a time")?);
        before = before.wrapping_add(step);
        times.push_back(before);
    }
    Ok(Ring { epoch, times, top, staged: Staged::default() })
}

fn number(cursor: &mut Cursor<'_>) -> Result<u64, Broken> {
    match cursor.unsigned("a sequence number")? {
        number if number <= MAX_SEQ => Ok(number),
        _ => cursor.broken("a sequence number"),
    }
}

fn fixed(cursor: &mut Cursor<'_>) -> Result<Epoch, Broken> {
    let mut value = [0; 8];
    value.copy_from_slice(cursor.take(8, "an epoch")?);
    Ok(Epoch(u64::from_le_bytes(value)))
}
