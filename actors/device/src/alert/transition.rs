//! What the log and the table `_alerts` hold of an alert: one row for each change of its state.

use std::sync::Arc;

use crate::time::Timestamp;
use crate::varint::{self, Broken, Cursor};

/// Where an alert of a device stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Nothing is the matter.
    #[default]
    Ok = 0,
    /// Readings raise, but not for long enough yet.
    Pending = 1,
    /// An incident is open.
    Firing = 2,
    /// Readings clear, but not for long enough yet; the incident is open.
    Recovering = 3,
    /// Nothing is heard.
    NoData = 4,
}

impl State {
    const ALL: [Self; 5] = [Self::Ok, Self::Pending, Self::Firing, Self::Recovering, Self::NoData];

    /// Its name in tables and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Recovering => "recovering",
            Self::NoData => "no_data",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Event {
    /// Readings began to raise.
    Pending = 1,
    /// They stopped before it was long enough.
    Lapsed = 2,
    /// An incident was opened, or an old one goes on.
    Fired = 3,
    /// Its severity went up.
    Escalated = 4,
    /// Its severity went down.
    Eased = 5,
    /// Readings began to clear.
    Recovering = 6,
    /// They raise again before it was long enough.
    Relapsed = 7,
    /// The incident is over.
    Resolved = 8,
    /// Nothing was heard for too long.
    NoData = 9,
    /// Something was heard again.
    Returned = 10,
    /// An incident found in old samples still goes on: now people are told.
    Surfaced = 11,
    /// An incident found in old samples ends where newer samples were evaluated before.
    Superseded = 12,
    /// The rule is gone or has changed.
    Dropped = 13,
    /// Somebody has taken care of it.
    Acknowledged = 14,
    /// Nobody takes care of it any more.
    Unacknowledged = 15,
    /// Somebody is told.
    Told = 16,
}

impl Event {
    const ALL: [Self; 16] = [
        Self::Pending,
        Self::Lapsed,
        Self::Fired,
        Self::Escalated,
        Self::Eased,
        Self::Recovering,
        Self::Relapsed,
        Self::Resolved,
        Self::NoData,
        Self::Returned,
        Self::Surfaced,
        Self::Superseded,
        Self::Dropped,
        Self::Acknowledged,
        Self::Unacknowledged,
        Self::Told,
    ];

    /// Its name in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Lapsed => "lapsed",
            Self::Fired => "fired",
            Self::Escalated => "escalated",
            Self::Eased => "eased",
            Self::Recovering => "recovering",
            Self::Relapsed => "relapsed",
            Self::Resolved => "resolved",
            Self::NoData => "no_data",
            Self::Returned => "returned",
            Self::Surfaced => "surfaced",
            Self::Superseded => "superseded",
            Self::Dropped => "dropped",
            Self::Acknowledged => "acknowledged",
            Self::Unacknowledged => "unacknowledged",
            Self::Told => "told",
        }
    }
}

/// Names one incident: the same in every replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IncidentId(pub u64);

impl IncidentId {
    /// Of a rule, its version (labels are part of it), a device and the time it began.
    pub fn of(rule: &str, version: u64, device: &str, since: Timestamp) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let parts = [rule.as_bytes(), &[0], &version.to_le_bytes(), device.as_bytes(), &[0], &since.0.to_le_bytes()];
        for byte in parts.into_iter().flatten() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(hash)
    }

    /// From its text.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl std::fmt::Display for IncidentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Who takes care of an incident, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ack {
    /// Who.
    pub by: Arc<str>,
    /// When it ends, by the engine's clock.
    pub until: Timestamp,
}

/// One change of an alert of a device. It says all there is to say about the alert behind the change.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// Counts the transitions of the device from 1.
    pub number: u64,
    /// Name of the rule.
    pub rule: Arc<str>,
    /// Its version.
    pub version: u64,
    /// When, by the device's samples; of what time or people do, by the engine's clock.
    pub ts: Timestamp,
    /// What happened.
    pub event: Event,
    /// Where the alert stood.
    pub from: State,
    /// Where it stands now.
    pub to: State,
    /// Severity of the incident, or what it would be.
    pub severity: Arc<str>,
    /// The incident.
    pub incident: IncidentId,
    /// When it began.
    pub since: Timestamp,
    /// The reading that made the change.
    pub value: Option<f64>,
    /// An old sample made it.
    pub backfilled: bool,
    /// It is of an incident of the past, beside the alert's state of now.
    pub history: bool,
    /// The incident is open, but nothing is heard.
    pub stale: bool,
    /// Who takes care of it.
    pub ack: Option<Ack>,
    /// Who is told with this, or was told before and now hears of the end.
    pub told: Vec<Arc<str>>,
    /// Labels of the rule, as `name=value` joined by commas.
    pub labels: Arc<str>,
}

const VALUE: u8 = 1;
const BACKFILLED: u8 = 2;
const STALE: u8 = 4;
const ACK: u8 = 8;
const HISTORY: u8 = 16;

impl Transition {
    /// The least bytes one takes.
    pub(crate) const LEAST: usize = 20;

    /// Appends its stored form.
    pub fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, self.number);
        varint::put_bytes(out, self.rule.as_bytes());
        varint::put(out, self.version);
        varint::put_signed(out, self.ts.0);
        out.extend([self.event as u8, self.from as u8, self.to as u8]);
        varint::put_bytes(out, self.severity.as_bytes());
        out.extend_from_slice(&self.incident.0.to_le_bytes());
        varint::put_signed(out, self.since.0.wrapping_sub(self.ts.0));
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.push(
            flag(self.value.is_some(), VALUE)
                | flag(self.backfilled, BACKFILLED)
                | flag(self.stale, STALE)
                | flag(self.history, HISTORY)
                | flag(self.ack.is_some(), ACK),
        );
        if let Some(value) = self.value {
            out.extend_from_slice(&value.to_le_bytes());
        }
        if let Some(ack) = &self.ack {
            varint::put_bytes(out, ack.by.as_bytes());
            varint::put_signed(out, ack.until.0);
        }
        put_texts(out, &self.told);
        varint::put_bytes(out, self.labels.as_bytes());
    }

    pub(crate) fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        let number = cursor.unsigned("the number of a transition")?;
        let rule = text(cursor, "the name of a rule")?;
        let version = cursor.unsigned("the version of a rule")?;
        let ts = Timestamp(cursor.signed("a time")?);
        let event = usize::from(cursor.byte("an event")?).checked_sub(1);
        let Some(event) = event.and_then(|at| Event::ALL.get(at)).copied() else {
            return cursor.broken("an event");
        };
        let (from, to) = (state(cursor)?, state(cursor)?);
        let severity = text(cursor, "a severity")?;
        let incident = IncidentId(u64::from_le_bytes(fixed(cursor)?));
        let since = Timestamp(ts.0.wrapping_add(cursor.signed("a time")?));
        let flags = cursor.byte("flags of a transition")?;
        let value = match flags & VALUE {
            0 => None,
            _ => Some(finite(cursor)?),
        };
        let ack = match flags & ACK {
            0 => None,
            _ => Some(Ack { by: text(cursor, "a name")?, until: Timestamp(cursor.signed("a time")?) }),
        };
        Ok(Self {
            number,
            rule,
            version,
            ts,
            event,
            from,
            to,
            severity,
            incident,
            since,
            value,
            backfilled: flags & BACKFILLED != 0,
            history: flags & HISTORY != 0,
            stale: flags & STALE != 0,
            ack,
            told: texts(cursor)?,
            labels: text(cursor, "labels")?,
        })
    }

    /// Several as one piece of bytes; [`Transition::unpack`] reads it.
    pub fn pack<'a>(all: impl ExactSizeIterator<Item = (&'a str, &'a Self)>) -> Vec<u8> {
        let mut out = vec![1];
        varint::put(&mut out, all.len() as u64);
        for (device, transition) in all {
            varint::put_bytes(&mut out, device.as_bytes());
            transition.put(&mut out);
        }
        out
    }

    /// What [`Transition::pack`] wrote; the error says what is wrong.
    pub fn unpack(bytes: &[u8]) -> Result<Vec<(String, Self)>, String> {
        let mut cursor = Cursor::new(bytes);
        let mut read = || -> Result<Vec<(String, Self)>, Broken> {
            if cursor.byte("a version")? != 1 {
                return cursor.broken("a version that this engine knows");
            }
            let count = cursor.count(Self::LEAST, "a number of alerts")?;
            let mut all = Vec::with_capacity(count);
            for _ in 0..count {
                all.push((cursor.text("a device")?.to_owned(), Self::get(&mut cursor)?));
            }
            cursor.end("the end of the alerts")?;
            Ok(all)
        };
        read().map_err(|broken| format!("damaged at byte {}: expected {}", broken.at, broken.what))
    }
}

pub(super) fn state(cursor: &mut Cursor<'_>) -> Result<State, Broken> {
    match State::ALL.get(usize::from(cursor.byte("a state")?)) {
        Some(state) => Ok(*state),
        None => cursor.broken("a state"),
    }
}

pub(super) fn text(cursor: &mut Cursor<'_>, what: &'static str) -> Result<Arc<str>, Broken> {
    cursor.text(what).map(Arc::from)
}

pub(super) fn fixed(cursor: &mut Cursor<'_>) -> Result<[u8; 8], Broken> {
    let mut value = [0; 8];
    value.copy_from_slice(cursor.take(8, "eight bytes")?);
    Ok(value)
}

/// A number that an alert compared: those that are none never get so far.
pub(super) fn finite(cursor: &mut Cursor<'_>) -> Result<f64, Broken> {
    match f64::from_le_bytes(fixed(cursor)?) {
        value if value.is_finite() => Ok(value),
        _ => cursor.broken("a finite number"),
    }
}

pub(super) fn put_texts(out: &mut Vec<u8>, texts: &[Arc<str>]) {
    varint::put(out, texts.len() as u64);
    texts.iter().for_each(|text| varint::put_bytes(out, text.as_bytes()));
}

pub(super) fn texts(cursor: &mut Cursor<'_>) -> Result<Vec<Arc<str>>, Broken> {
    let count = cursor.count(1, "a number of names")?;
    (0..count).map(|_| text(cursor, "a name")).collect()
}
