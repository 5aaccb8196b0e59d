//! The shadows of a device: what it is wanted to be (*desired*) and what it says it is (*reported*), each a JSON
//! document with a version of its own.
//!
//! A pure state machine. [`Shadows::ask`], [`Shadows::report`] and [`Shadows::expire`] decide and change nothing: what
//! they decide is a list of [`Change`]s, which the log carries, and [`Shadows::apply`] makes true. So a replay finds
//! what was decided, also when the rules or the clock say otherwise by then.
//!
//! - `document`: the tree of values, merge patches (RFC 7396).
//! - `change`: what the log holds.
//! - `rules`: who wins where both sides have changed a value.
//! - `decide`: requests, reports, values whose time is over; the three-way merge.
//! - `message`: what devices send and get.

mod change;
mod decide;
mod document;
mod message;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value};

pub use change::{Change, Conflict, Reported, What, Winner};
pub use decide::{Answer, Ask, MAX_NAMED, Report, Ruling, unfit};
pub use document::{MAX_DEPTH, MAX_SIZE, Path, merge_plain, shown, touches};
pub use message::{cbor, delta_cbor, delta_json, read_object, read_report};
pub use rules::{Policy, Rule, ShadowRules};

use crate::time::{SECOND, Timestamp};
use crate::varint::{self, Broken, Cursor};
use document::{Document, Mark};

/// The shadow that is meant where none is named.
pub const DEFAULT: &str = "main";

/// How long the answer to a request with an id is remembered.
const REMEMBER: i64 = 24 * 3600 * SECOND;
/// How many answers are remembered at most.
const MOST_ANSWERS: usize = 128;
/// Versions of what is desired that are always kept.
const VERSIONS: usize = 256;
/// For how long all versions are kept.
const KEEP: i64 = 90 * 86_400 * SECOND;
/// Size of the kept versions of one shadow, in bytes of JSON: however young they are, no more than this.
const KEEP_BYTES: usize = 256 << 10;

/// What takes a document from one version to the one before.
#[derive(Debug, Clone, PartialEq)]
struct Past {
    /// The version that this undoes.
    dv: u64,
    /// When that version came.
    at: Timestamp,
    undo: Map<String, Value>,
    /// Length of `undo` as text.
    size: usize,
}

/// One shadow.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shadow {
    desired: Document,
    dv: u64,
    reported: Document,
    rv: u64,
    /// The version of what is desired that the device has last said to have applied.
    applied: u64,
    /// Session and number of the last report.
    turn: Option<(u64, u64)>,
    /// Where neither side gives way.
    open: BTreeSet<Path>,
    /// Oldest first.
    past: VecDeque<Past>,
    changed: Timestamp,
}

/// The answer that a request got.
#[derive(Debug, Clone, PartialEq)]
struct Remembered {
    request: Arc<str>,
    at: Timestamp,
    dv: u64,
}

/// All shadows of a device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shadows {
    named: BTreeMap<Arc<str>, Shadow>,
    answers: VecDeque<Remembered>,
}

/// A shadow as it is at some time.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// What is desired.
    pub desired: Map<String, Value>,
    /// What is reported.
    pub reported: Map<String, Value>,
    /// What is desired and not reported so; complete.
    pub delta: Map<String, Value>,
    /// The version of what is desired; 0: there never was anything.
    pub dv: u64,
    /// The version of what is reported.
    pub rv: u64,
    /// The version of what is desired that the device has applied.
    pub applied_dv: u64,
    /// Nothing is left to do for the device.
    pub in_sync: bool,
    /// Where neither side gives way.
    pub open: Vec<Path>,
    /// When it last changed.
    pub changed: Timestamp,
    /// When each desired value was set, by whom, and until when it counts.
    pub desired_meta: Vec<(Path, Timestamp, Arc<str>, Option<Timestamp>)>,
    /// When each reported value was set.
    pub reported_meta: Vec<(Path, Timestamp)>,
}

impl Shadow {
    /// What is desired and counts at `now`.
    fn wanted(&self, now: Timestamp) -> Map<String, Value> {
        let mut wanted = self.desired.to_json();
        let over: Vec<Path> = self.expired(now);
        if !over.is_empty() {
            let mut patch = Map::new();
            for path in &over {
                document::place(&mut patch, path, Value::Null);
            }
            document::merge_plain(&mut wanted, &patch);
        }
        wanted
    }

    fn expired(&self, now: Timestamp) -> Vec<Path> {
        let leaves = self.desired.leaves().into_iter();
        leaves.filter(|(_, leaf)| leaf.expires.is_some_and(|at| at <= now)).map(|(path, _)| path).collect()
    }

    fn delta(&self, name: &str, now: Timestamp, rules: &ShadowRules) -> Map<String, Value> {
        let mut delta = Map::new();
        for (path, leaf) in self.desired.leaves() {
            let over = leaf.expires.is_some_and(|at| at <= now);
            let deadband = rules.deadband(name, &path);
            let there = self.reported.leaf(&path).is_some_and(|is| document::alike(&is.value, &leaf.value, deadband));
            if !over && !there && !self.open.contains(&path) {
                document::place(&mut delta, &path, leaf.value.clone());
            }
        }
        delta
    }

    /// What was desired at an earlier version; `None`: it is not known any more.
    fn at_version(&self, dv: u64) -> Option<Map<String, Value>> {
        if dv > self.dv {
            return None;
        }
        let mut document = self.desired.to_json();
        let mut at = self.dv;
        for past in self.past.iter().rev() {
            if at <= dv {
                break;
            }
            document::merge_plain(&mut document, &past.undo);
            at = past.dv.saturating_sub(1);
        }
        (at <= dv).then_some(document)
    }

    fn remember(&mut self, dv: u64, at: Timestamp, undo: Map<String, Value>) {
        let size = serde_json::to_string(&undo).map_or(0, |text| text.len());
        self.past.push_back(Past { dv, at, undo, size });
        let mut bytes: usize = self.past.iter().map(|past| past.size).sum();
        while let Some(first) = self.past.front() {
            let old = self.past.len() > VERSIONS && at.0.saturating_sub(first.at.0) > KEEP;
            if !old && bytes <= KEEP_BYTES {
                break;
            }
            bytes -= first.size;
            self.past.pop_front();
        }
        self.dv = dv;
        self.changed = at;
    }
}

impl Shadows {
    /// Makes a change that the log holds. `received` is the time of its entry.
    pub fn apply(&mut self, change: &Change, received: Timestamp) {
        let shadow = self.named.entry(change.shadow.clone()).or_default();
        match &change.what {
            What::Desired { dv, patch, expires, .. } => {
                let undo = shadow.desired.merge(patch, &Mark { at: received, by: &change.by, expires: *expires });
                for path in document::paths_of(patch) {
                    shadow.open.remove(&path);
                }
                shadow.remember(*dv, received, undo);
                if let Some(request) = &change.request {
                    self.answers.push_back(Remembered { request: request.clone(), at: received, dv: *dv });
                }
            }
            What::Reported(reported) => {
                let mark = Mark { at: received, by: &change.by, expires: None };
                shadow.reported.merge(&reported.patch, &mark);
                for (path, at) in &reported.times {
                    shadow.reported.set_time(path, *at);
                }
                shadow.rv = reported.rv;
                shadow.applied = reported.applied.unwrap_or(shadow.applied);
                shadow.turn = reported.turn.or(shadow.turn);
                shadow.open = reported.open.iter().cloned().collect();
                shadow.changed = received;
            }
            What::Conflict(_) => {}
            What::Expired { dv, paths } => {
                let mut patch = Map::new();
                for path in paths {
                    document::place(&mut patch, path, Value::Null);
                }
                let undo = shadow.desired.merge(&patch, &Mark { at: received, by: &change.by, expires: None });
                shadow.remember(*dv, received, undo);
            }
            What::Deleted { dv, rv } => {
                let undo = document::difference(&Map::new(), &shadow.desired.to_json());
                shadow.desired = Document::default();
                shadow.reported = Document::default();
                shadow.open.clear();
                shadow.rv = *rv;
                shadow.remember(*dv, received, undo);
            }
        }
        let old = |first: &Remembered| received.0.saturating_sub(first.at.0) > REMEMBER;
        while self.answers.len() > MOST_ANSWERS || self.answers.front().is_some_and(old) {
            self.answers.pop_front();
        }
    }

    /// The names of its shadows.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.named.keys()
    }

    /// The version of what is desired in a shadow.
    pub(crate) fn version(&self, name: &str) -> u64 {
        self.named.get(name).map_or(0, |shadow| shadow.dv)
    }

    /// A shadow as it is at `now`.
    pub fn view(&self, name: &str, now: Timestamp, rules: &ShadowRules) -> Option<View> {
        let shadow = self.named.get(name)?;
        let delta = shadow.delta(name, now, rules);
        let expired = shadow.expired(now);
        let desired = shadow.desired.leaves().into_iter().filter(|(path, _)| !expired.contains(path));
        let reported = shadow.reported.leaves().into_iter();
        Some(View {
            in_sync: delta.is_empty() && shadow.applied == shadow.dv && shadow.open.is_empty(),
            desired: shadow.wanted(now),
            reported: shadow.reported.to_json(),
            delta,
            dv: shadow.dv,
            rv: shadow.rv,
            applied_dv: shadow.applied,
            open: shadow.open.iter().cloned().collect(),
            changed: shadow.changed,
            desired_meta: desired.map(|(path, leaf)| (path, leaf.at, leaf.by.clone(), leaf.expires)).collect(),
            reported_meta: reported.map(|(path, leaf)| (path, leaf.at)).collect(),
        })
    }

    /// What was desired at a version; `None`: there is no such shadow, or it is not known any more.
    pub fn desired_at(&self, name: &str, dv: u64) -> Option<Map<String, Value>> {
        self.named.get(name)?.at_version(dv)
    }

    /// The version of what was desired at a time; `None`: there is no such shadow, or it is not known any more.
    pub fn version_at(&self, name: &str, at: Timestamp) -> Option<u64> {
        let shadow = self.named.get(name)?;
        match shadow.past.iter().rev().find(|past| past.at <= at) {
            Some(past) => Some(past.dv),
            None => match shadow.past.front() {
                Some(first) if first.dv == 1 => Some(0),
                _ => None,
            },
        }
    }

    /// When a value's time is over next.
    pub fn due(&self) -> Option<Timestamp> {
        self.named.values().filter_map(|shadow| shadow.desired.expires()).min()
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, self.named.len() as u64);
        for (name, shadow) in &self.named {
            varint::put_bytes(out, name.as_bytes());
            shadow.put(out);
        }
        varint::put(out, self.answers.len() as u64);
        for answer in &self.answers {
            varint::put_bytes(out, answer.request.as_bytes());
            varint::put_signed(out, answer.at.0);
            varint::put(out, answer.dv);
        }
    }

    pub(crate) fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        let mut shadows = Self::default();
        for _ in 0..cursor.count(9, "a number of shadows")? {
            let name = Arc::from(cursor.text("the name of a shadow")?);
            shadows.named.insert(name, Shadow::get(cursor)?);
        }
        for _ in 0..cursor.count(3, "a number of answers")? {
            shadows.answers.push_back(Remembered {
                request: Arc::from(cursor.text("the id of a request")?),
                at: Timestamp(cursor.signed("a time")?),
                dv: cursor.unsigned("a version")?,
            });
        }
        Ok(shadows)
    }
}

impl Shadow {
    fn put(&self, out: &mut Vec<u8>) {
        self.desired.put(out);
        varint::put(out, self.dv);
        self.reported.put(out);
        varint::put(out, self.rv);
        varint::put(out, self.applied);
        match self.turn {
            None => out.push(0),
            Some((session, rseq)) => {
                out.push(1);
                varint::put(out, session);
                varint::put(out, rseq);
            }
        }
        change::put_paths(out, &self.open.iter().cloned().collect::<Vec<_>>());
        varint::put_signed(out, self.changed.0);
        varint::put(out, self.past.len() as u64);
        for past in &self.past {
            varint::put(out, past.dv);
            varint::put_signed(out, past.at.0);
            document::put_object(out, &past.undo);
        }
    }

    fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        let mut shadow = Self {
            desired: Document::get(cursor)?,
            dv: cursor.unsigned("a version")?,
            reported: Document::get(cursor)?,
            rv: cursor.unsigned("a version")?,
            applied: cursor.unsigned("a version")?,
            turn: match cursor.byte("whether there is a session")? {
                0 => None,
                _ => Some((cursor.unsigned("a session")?, cursor.unsigned("a number")?)),
            },
            open: change::get_paths(cursor)?.into_iter().collect(),
            changed: Timestamp(cursor.signed("a time")?),
            past: VecDeque::new(),
        };
        for _ in 0..cursor.count(4, "a number of versions")? {
            let (dv, at) = (cursor.unsigned("a version")?, Timestamp(cursor.signed("a time")?));
            let undo = document::get_object(cursor)?;
            let size = serde_json::to_string(&undo).map_or(0, |text| text.len());
            shadow.past.push_back(Past { dv, at, undo, size });
        }
        Ok(shadow)
    }
}
