//! How a [`LogRecord`] stands in the log: a version byte, then packed integers and raw payloads.
//!
//! Decoding shares the input instead of copying payloads, and takes any bytes without panicking or allocating
//! more than they could stand for. There is no checksum here: the log that holds the record has one.

use bytes::Bytes;

use super::{
    Body, DeadLetter, Entry, LogBody, LogRecord, Loss, LossReason, Partial, Reason, Records, Run, Runs, Stamps,
};
use crate::alert::{Ack, IncidentId, Transition};
use crate::clock::Note;
use crate::command::Step;
use crate::id::{DeviceId, ShardId};
use crate::payload::PayloadFormat;
use crate::seq::{Barrier, Epoch, MAX_SEQ};
use crate::shadow::Change;
use crate::status::Status;
use crate::time::Timestamp;
use crate::varint::{self, Broken, Cursor};

/// The newest version: with notes about clocks. Records that older engines know are written as [`FIRST`].
const VERSION: u8 = 5;
/// With shadows and commands.
const SHADOWS: u8 = 4;
/// With what alerts write, without shadows and commands.
const ALERTS: u8 = 3;
/// With partials, without what alerts write.
const PARTIALS: u8 = 2;
/// Without both.
const FIRST: u8 = 1;

const BATCH: u8 = 1;
const BARRIER: u8 = 2;
const PARTIAL: u8 = 3;

const RECORDS: u8 = 1;
const LOSS: u8 = 2;
const DEAD_LETTER: u8 = 3;
const CLOSED: u8 = 4;
const TICK: u8 = 5;
const ACKNOWLEDGE: u8 = 6;
const TRANSITIONS: u8 = 7;
const SHADOW: u8 = 8;
const COMMAND: u8 = 9;
const STATUS: u8 = 10;

/// Beside the payload's format: it has numbers of its own, and there is a note about its times.
const ASSURED: u8 = 0x80;
const NOTED: u8 = 0x40;

/// Why bytes are not a log record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer engine.
    #[error("log record version {found} is newer than this engine's {known}: run the newer engine")]
    Newer {
        /// Its version.
        found: u8,
        /// The newest version this engine knows.
        known: u8,
    },
    /// The bytes are not a log record.
    #[error("log record is damaged at byte {at}: expected {what}")]
    Damaged {
        /// Where.
        at: usize,
        /// What was expected there.
        what: &'static str,
    },
}

impl From<Broken> for DecodeError {
    fn from(broken: Broken) -> Self {
        Self::Damaged { at: broken.at, what: broken.what }
    }
}

impl LogRecord {
    /// Appends the record's stored form to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let version = |entry: &Entry| match &entry.body {
            Body::Records(records) if records.clock.is_some() => VERSION,
            Body::Shadow(_) | Body::Command(_) | Body::Status(_) => SHADOWS,
            Body::Tick { .. } | Body::Acknowledge { .. } | Body::Transitions(_) => ALERTS,
            Body::Records(_) | Body::Loss(_) | Body::DeadLetter(_) | Body::Closed { .. } => FIRST,
        };
        out.push(match &self.body {
            LogBody::Partial(_) => PARTIALS,
            LogBody::Batch(entries) => entries.iter().map(version).max().unwrap_or(FIRST),
            LogBody::Barrier { .. } => FIRST,
        });
        match &self.body {
            LogBody::Batch(entries) => {
                out.push(BATCH);
                varint::put_signed(out, self.time.0);
                varint::put(out, entries.len() as u64);
                for entry in entries {
                    put_entry(out, self.time, entry);
                }
            }
            LogBody::Partial(partial) => {
                out.push(PARTIAL);
                varint::put_signed(out, self.time.0);
                varint::put_bytes(out, partial.pipeline.as_bytes());
                varint::put(out, u64::from(partial.shard.0));
                varint::put(out, partial.number);
                varint::put_bytes(out, &partial.state);
            }
            LogBody::Barrier { barrier, cut, catalog } => {
                out.push(BARRIER);
                varint::put_signed(out, self.time.0);
                varint::put(out, barrier.0);
                out.push(u8::from(*cut));
                varint::put(out, *catalog);
            }
        }
    }

    /// Reads what [`Self::encode`] wrote; the payloads in the result share `bytes`.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(&bytes);
        let found = cursor.byte("a version")?;
        if found > VERSION {
            return Err(DecodeError::Newer { found, known: VERSION });
        }
        if !(FIRST..=VERSION).contains(&found) {
            return Err(DecodeError::Damaged { at: 0, what: "a version" });
        }
        let kind = cursor.byte("a kind of record")?;
        let time = Timestamp(cursor.signed("a time")?);
        let body = match kind {
            BATCH if found != PARTIALS => {
                // The shortest entry: a name of two bytes, a time, a tag and an epoch.
                let count = cursor.count(5, "a number of entries")?;
                let mut entries: Vec<Entry> = Vec::with_capacity(count);
                for _ in 0..count {
                    let entry = entry(&mut cursor, &bytes, time, entries.last())?;
                    entries.push(entry);
                }
                LogBody::Batch(entries)
            }
            BARRIER if found == FIRST => LogBody::Barrier {
                barrier: Barrier(cursor.unsigned("a barrier number")?),
                cut: boolean(&mut cursor, "whether files are cut")?,
                catalog: cursor.unsigned("a catalog version")?,
            },
            PARTIAL if found == PARTIALS => LogBody::Partial(Partial {
                pipeline: cursor.text("the name of a pipeline")?.to_owned(),
                shard: match u16::try_from(cursor.unsigned("a shard")?) {
                    Ok(shard) => ShardId(shard),
                    Err(_) => return cursor.broken("a shard").map_err(Into::into),
                },
                number: cursor.unsigned("a number")?,
                state: cursor.shared(&bytes, "a state")?,
            }),
            _ => return Err(DecodeError::Damaged { at: 1, what: "a kind of record" }),
        };
        cursor.end("the end of the record")?;
        Ok(Self { time, body })
    }
}

fn put_entry(out: &mut Vec<u8>, time: Timestamp, entry: &Entry) {
    varint::put_bytes(out, entry.device.as_str().as_bytes());
    // Messages are received just before the group commit that holds them: the difference is short. It wraps, so
    // that any two times come back as they were.
    varint::put_signed(out, entry.received.0.wrapping_sub(time.0));
    match &entry.body {
        Body::Records(records) => {
            out.push(RECORDS);
            out.push(
                records.format as u8
                    | if records.assured { ASSURED } else { 0 }
                    | if records.clock.is_some() { NOTED } else { 0 },
            );
            varint::put(out, records.runs.len() as u64);
            for run in &records.runs {
                varint::put(out, u64::from(run.index));
                varint::put(out, u64::from(run.len));
                put_epoch(out, run.epoch);
                varint::put(out, run.seq);
            }
            varint::put(out, records.stamps.len() as u64);
            let mut before = entry.received.0;
            for stamp in &records.stamps {
                varint::put_signed(out, stamp.0.wrapping_sub(before));
                before = stamp.0;
            }
            if let Some(note) = &records.clock {
                note.put(entry.received, out);
            }
            varint::put_bytes(out, &records.payload);
        }
        Body::Loss(loss) => {
            out.push(LOSS);
            put_epoch(out, loss.epoch);
            varint::put(out, loss.from);
            varint::put(out, loss.to);
            out.push(loss.reason as u8);
        }
        Body::DeadLetter(letter) => {
            out.push(DEAD_LETTER);
            varint::put_bytes(out, letter.sender.as_bytes());
            varint::put_bytes(out, letter.topic.as_bytes());
            out.push(letter.reason as u8);
            varint::put_bytes(out, letter.text.as_bytes());
            match letter.accounted {
                None => out.push(0),
                Some((epoch, seq, count)) => {
                    out.push(1);
                    put_epoch(out, epoch);
                    varint::put(out, seq);
                    varint::put(out, u64::from(count));
                }
            }
            varint::put_bytes(out, &letter.payload);
        }
        Body::Closed { epoch } => {
            out.push(CLOSED);
            put_epoch(out, *epoch);
        }
        Body::Tick { floor } => {
            out.push(TICK);
            varint::put_signed(out, entry.received.0.wrapping_sub(floor.0));
        }
        Body::Acknowledge { incident, ack } => {
            out.push(ACKNOWLEDGE);
            out.extend_from_slice(&incident.0.to_le_bytes());
            out.push(u8::from(ack.is_some()));
            if let Some(ack) = ack {
                varint::put_bytes(out, ack.by.as_bytes());
                varint::put_signed(out, ack.until.0);
            }
        }
        Body::Shadow(change) => {
            out.push(SHADOW);
            change.put(out);
        }
        Body::Command(step) => {
            out.push(COMMAND);
            step.put(out);
        }
        Body::Status(status) => {
            out.push(STATUS);
            status.put(out);
        }
        Body::Transitions(transitions) => {
            out.push(TRANSITIONS);
            varint::put(out, transitions.len() as u64);
            transitions.iter().for_each(|transition| transition.put(out));
        }
    }
}

/// Epochs are random: eight bytes hold them in less than a packed integer would.
fn put_epoch(out: &mut Vec<u8>, epoch: Epoch) {
    out.extend_from_slice(&epoch.0.to_le_bytes());
}

fn epoch(cursor: &mut Cursor<'_>) -> Result<Epoch, Broken> {
    let mut value = [0; 8];
    value.copy_from_slice(cursor.take(8, "an epoch")?);
    Ok(Epoch(u64::from_le_bytes(value)))
}

fn boolean(cursor: &mut Cursor<'_>, what: &'static str) -> Result<bool, Broken> {
    match cursor.byte(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => cursor.broken(what),
    }
}

fn seq(cursor: &mut Cursor<'_>) -> Result<u64, Broken> {
    match cursor.unsigned("a sequence number")? {
        seq if seq <= MAX_SEQ => Ok(seq),
        _ => cursor.broken("a sequence number"),
    }
}

fn entry(cursor: &mut Cursor<'_>, whole: &Bytes, time: Timestamp, before: Option<&Entry>) -> Result<Entry, Broken> {
    let at = cursor.at();
    let name = cursor.text("a device id")?;
    // A device's messages of one commit stand together: share the name instead of making it again.
    let device = match before {
        Some(before) if before.device.as_str() == name => before.device.clone(),
        _ => DeviceId::new(name).map_err(|_| Broken { at, what: "a device id" })?,
    };
    let received = Timestamp(time.0.wrapping_add(cursor.signed("a time")?));
    let body = match cursor.byte("a kind of entry")? {
        RECORDS => Body::Records(records(cursor, whole, received)?),
        LOSS => Body::Loss(Loss {
            epoch: epoch(cursor)?,
            from: seq(cursor)?,
            to: seq(cursor)?,
            reason: match LossReason::from_u8(cursor.byte("a loss reason")?) {
                Some(reason) => reason,
                None => return cursor.broken("a loss reason"),
            },
        }),
        DEAD_LETTER => Body::DeadLetter(DeadLetter {
            sender: cursor.text("a sender")?.to_owned(),
            topic: cursor.text("a topic")?.to_owned(),
            reason: match Reason::from_u8(cursor.byte("a reason")?) {
                Some(reason) => reason,
                None => return cursor.broken("a reason"),
            },
            text: cursor.text("a text")?.to_owned(),
            accounted: match boolean(cursor, "whether numbers are accounted for")? {
                false => None,
                true => Some((epoch(cursor)?, seq(cursor)?, cursor.unsigned32("a number of records")?)),
            },
            payload: cursor.shared(whole, "a payload")?,
        }),
        CLOSED => Body::Closed { epoch: epoch(cursor)? },
        TICK => Body::Tick { floor: Timestamp(received.0.wrapping_sub(cursor.signed("a time")?)) },
        ACKNOWLEDGE => Body::Acknowledge {
            incident: IncidentId(epoch(cursor)?.0),
            ack: match boolean(cursor, "whether somebody takes care")? {
                false => None,
                true => Some(Ack { by: cursor.text("a name")?.into(), until: Timestamp(cursor.signed("a time")?) }),
            },
        },
        TRANSITIONS => {
            let count = cursor.count(Transition::LEAST, "a number of transitions")?;
            if count == 0 {
                return cursor.broken("a number of transitions");
            }
            Body::Transitions((0..count).map(|_| Transition::get(cursor)).collect::<Result<_, _>>()?)
        }
        SHADOW => Body::Shadow(Box::new(Change::get(cursor)?)),
        COMMAND => Body::Command(Step::get(cursor)?),
        STATUS => Body::Status(Status::get(cursor)?),
        _ => return cursor.broken("a kind of entry"),
    };
    Ok(Entry { device, received, body })
}

fn records(cursor: &mut Cursor<'_>, whole: &Bytes, received: Timestamp) -> Result<Records, Broken> {
    let format = cursor.byte("a payload format")?;
    let (assured, noted) = (format & ASSURED != 0, format & NOTED != 0);
    let format = match PayloadFormat::from_u8(format & !(ASSURED | NOTED)) {
        Some(format) => format,
        None => return cursor.broken("a payload format"),
    };
    let count = cursor.count(11, "a number of runs")?;
    let mut runs = Runs::with_capacity(count);
    for _ in 0..count {
        let run = Run {
            index: cursor.unsigned32("the index of a run")?,
            len: cursor.unsigned32("the length of a run")?,
            epoch: epoch(cursor)?,
            seq: seq(cursor)?,
        };
        let ends = run.seq.saturating_add(u64::from(run.len.saturating_sub(1)));
        if run.len == 0 || ends > MAX_SEQ || run.index.checked_add(run.len).is_none() {
            return cursor.broken("a run inside the number range");
        }
        runs.push(run);
    }
    let count = cursor.count(1, "a number of times")?;
    let mut stamps = Stamps::with_capacity(count);
    let mut before = received.0;
    for _ in 0..count {
        before = before.wrapping_add(cursor.signed("a time")?);
        stamps.push(Timestamp(before));
    }
    let clock = if noted { Some(Box::new(Note::get(cursor, received)?)) } else { None };
    Ok(Records { format, payload: cursor.shared(whole, "a payload")?, runs, stamps, assured, clock })
}

#[cfg(test)]
mod tests;
