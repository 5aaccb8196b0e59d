//! The alerts of a device in its snapshot.

use super::alerts::Alerts;
use super::lane::{Lane, Line};
use super::machine::{Incident, Machine, Rising, Sample};
use super::transition::{Ack, IncidentId, Transition, finite, fixed, put_texts, state, text, texts};
use crate::time::Timestamp;
use crate::varint::{self, Broken, Cursor};

/// More levels than a rule can have.
const LEVELS: usize = 8;

impl Alerts {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, self.set);
        varint::put(out, self.made);
        varint::put(out, self.pending.len() as u64);
        self.pending.iter().for_each(|transition| transition.put(out));
        varint::put(out, self.lanes.len() as u64);
        for lane in &self.lanes {
            varint::put(out, u64::from(lane.rule));
            varint::put_bytes(out, lane.name.as_bytes());
            varint::put(out, lane.version);
            varint::put(out, lane.late);
            put_time(out, lane.resumed);
            put_line(out, &lane.line);
            option(out, lane.history.as_ref(), put_line);
        }
    }

    pub(crate) fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        let mut alerts = Self {
            set: cursor.unsigned("a version of rules")?,
            made: cursor.unsigned("a number of transitions")?,
            ..Self::default()
        };
        for _ in 0..cursor.count(Transition::LEAST, "a number of transitions")? {
            alerts.pending.push_back(Transition::get(cursor)?);
        }
        for _ in 0..cursor.count(20, "a number of rules")? {
            let rule = cursor.unsigned("the index of a rule")?;
            let Ok(rule) = u16::try_from(rule) else { return cursor.broken("the index of a rule") };
            alerts.lanes.push(Lane {
                rule,
                name: text(cursor, "the name of a rule")?,
                version: cursor.unsigned("the version of a rule")?,
                late: cursor.unsigned("a count")?,
                resumed: time(cursor)?,
                line: line(cursor)?,
                history: optional(cursor, line)?,
            });
        }
        Ok(alerts)
    }
}

fn put_line(out: &mut Vec<u8>, line: &Line) {
    varint::put_signed(out, line.newest.0);
    varint::put_signed(out, line.heard.0);
    varint::put(out, line.waiting.len() as u64);
    let mut before = line.newest.0;
    for sample in &line.waiting {
        varint::put_signed(out, sample.ts.0.wrapping_sub(before));
        before = sample.ts.0;
        out.extend([sample.raise, sample.known, sample.clear]);
        out.push(u8::from(sample.old) | u8::from(sample.value.is_some()) << 1);
        if let Some(value) = sample.value {
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
    put_machine(out, &line.machine);
}

fn line(cursor: &mut Cursor<'_>) -> Result<Line, Broken> {
    let newest = cursor.signed("a time")?;
    let heard = cursor.signed("a time")?;
    let count = cursor.count(5, "a number of samples")?;
    let mut waiting = Vec::with_capacity(count);
    let mut before = newest;
    for _ in 0..count {
        before = before.wrapping_add(cursor.signed("a time")?);
        let [raise, known, clear, flags] =
            [cursor.byte("a sample")?, cursor.byte("a sample")?, cursor.byte("a sample")?, cursor.byte("a sample")?];
        let value = match flags & 2 {
            0 => None,
            _ => Some(finite(cursor)?),
        };
        waiting.push(Sample { ts: Timestamp(before), raise, known, clear, old: flags & 1 != 0, value });
    }
    let machine = machine(cursor)?;
    Ok(Line { machine, waiting, newest: Timestamp(newest), heard: Timestamp(heard) })
}

fn put_machine(out: &mut Vec<u8>, machine: &Machine) {
    out.push(machine.state as u8);
    varint::put_signed(out, machine.since.0);
    varint::put(out, machine.rising.len() as u64);
    for rising in &machine.rising {
        option(out, rising.as_ref(), |out, rising| {
            varint::put_signed(out, rising.since.0);
            varint::put(out, u64::from(rising.count));
        });
    }
    put_time(out, machine.falling);
    put_time(out, machine.last);
    varint::put_signed(out, machine.interval);
    option(out, machine.incident.as_ref(), put_incident);
    option(out, machine.recent.as_ref(), |out, (incident, ended)| {
        put_incident(out, incident);
        varint::put_signed(out, ended.0);
    });
}

fn machine(cursor: &mut Cursor<'_>) -> Result<Machine, Broken> {
    let state = state(cursor)?;
    let since = Timestamp(cursor.signed("a time")?);
    let levels = cursor.count(1, "a number of severities")?;
    if levels > LEVELS {
        return cursor.broken("a number of severities");
    }
    let mut rising = Vec::with_capacity(levels);
    for _ in 0..levels {
        rising.push(optional(cursor, |cursor| {
            Ok(Rising { since: Timestamp(cursor.signed("a time")?), count: cursor.unsigned32("a count")? })
        })?);
    }
    Ok(Machine {
        state,
        since,
        rising,
        falling: time(cursor)?,
        last: time(cursor)?,
        interval: cursor.signed("an interval")?.max(0),
        incident: optional(cursor, incident)?,
        recent: optional(cursor, |cursor| Ok((incident(cursor)?, Timestamp(cursor.signed("a time")?))))?,
    })
}

fn put_incident(out: &mut Vec<u8>, incident: &Incident) {
    out.extend_from_slice(&incident.id.0.to_le_bytes());
    varint::put_signed(out, incident.since.0);
    out.push(incident.level);
    out.push(u8::from(incident.stale) | u8::from(incident.silent) << 1 | u8::from(incident.live) << 2);
    option(out, incident.ack.as_ref(), |out, ack| {
        varint::put_bytes(out, ack.by.as_bytes());
        varint::put_signed(out, ack.until.0);
    });
    varint::put_signed(out, incident.from.0);
    varint::put(out, incident.steps.len() as u64);
    incident.steps.iter().for_each(|count| varint::put(out, u64::from(*count)));
    put_texts(out, &incident.told);
}

fn incident(cursor: &mut Cursor<'_>) -> Result<Incident, Broken> {
    let id = IncidentId(u64::from_le_bytes(fixed(cursor)?));
    let since = Timestamp(cursor.signed("a time")?);
    let level = cursor.byte("a severity")?;
    if usize::from(level) >= LEVELS {
        return cursor.broken("a severity");
    }
    let flags = cursor.byte("flags of an incident")?;
    let ack =
        optional(cursor, |cursor| Ok(Ack { by: text(cursor, "a name")?, until: Timestamp(cursor.signed("a time")?) }))?;
    let from = Timestamp(cursor.signed("a time")?);
    let count = cursor.count(1, "a number of steps")?;
    let mut steps = Vec::with_capacity(count);
    for _ in 0..count {
        steps.push(cursor.unsigned32("a count")?);
    }
    Ok(Incident {
        id,
        since,
        level,
        stale: flags & 1 != 0,
        silent: flags & 2 != 0,
        live: flags & 4 != 0,
        ack,
        from,
        steps,
        told: texts(cursor)?,
    })
}

fn option<T>(out: &mut Vec<u8>, value: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn optional<T>(
    cursor: &mut Cursor<'_>,
    get: impl FnOnce(&mut Cursor<'_>) -> Result<T, Broken>,
) -> Result<Option<T>, Broken> {
    match cursor.byte("whether something is there")? {
        0 => Ok(None),
        1 => get(cursor).map(Some),
        _ => cursor.broken("whether something is there"),
    }
}

fn put_time(out: &mut Vec<u8>, time: Option<Timestamp>) {
    option(out, time.as_ref(), |out, time| varint::put_signed(out, time.0));
}

fn time(cursor: &mut Cursor<'_>) -> Result<Option<Timestamp>, Broken> {
    optional(cursor, |cursor| Ok(Timestamp(cursor.signed("a time")?)))
}
