//! Decides about requests and reports, and merges the two sides of a shadow.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::change::{Change, Conflict, Reported, What, Winner};
use super::document::{self, MAX_DEPTH, MAX_SIZE, Path};
use super::rules::{Policy, ShadowRules};
use super::{Shadow, Shadows};
use crate::time::Timestamp;

/// Most shadows of one device.
pub const MAX_NAMED: usize = 16;
/// Longest name of a shadow, of whoever asks, and of a request, in bytes.
const MAX_NAME: usize = 128;
/// How much later, at least, a device must have changed a value to count as later: how wrong its clock may be when it
/// does not say.
const CLOCK_ERROR: i64 = 500_000_000;

/// A request to change what is desired.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// The name of the shadow.
    pub shadow: Arc<str>,
    /// A JSON merge patch; `None`: empty the shadow.
    pub patch: Option<Map<String, Value>>,
    /// Who asks.
    pub by: Arc<str>,
    /// The id of the request: asked twice, it counts once.
    pub request: Option<Arc<str>>,
    /// Only if this is the version now.
    pub if_dv: Option<u64>,
    /// How long its values count, in nanoseconds.
    pub ttl: Option<i64>,
}

/// What a device says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The name of the shadow; empty: the default one.
    pub shadow: String,
    /// The session it belongs to.
    pub session: Option<u64>,
    /// Its number within the session.
    pub rseq: Option<u64>,
    /// The version of what is desired that the device has applied.
    pub based_on: Option<u64>,
    /// It is all the device has: what is not in it is gone.
    pub full: bool,
    /// A merge patch, or the whole document.
    pub patch: Map<String, Value>,
    /// When values were changed on the device.
    pub times: Vec<(Path, Timestamp)>,
    /// How far off these times may be, as far as it is known, in nanoseconds.
    pub times_err: i64,
    /// Values that were changed on the device itself; `None`: it does not say.
    pub local: Option<Vec<Path>>,
}

/// The answer to a request or report.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It changes the shadow; the version that it makes.
    Changed(u64),
    /// It changes nothing, or did so earlier; the version now, or that it made.
    Unchanged(u64),
    /// The version is another one.
    Mismatch(u64),
    /// It is of an ended session, or was heard before.
    Old,
    /// It cannot be done.
    Refused(String),
}

/// What was decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Ruling {
    /// For whoever asked.
    pub answer: Answer,
    /// What has to become durable, in this order.
    pub changes: Vec<Change>,
}

impl Ruling {
    fn only(answer: Answer) -> Self {
        Self { answer, changes: Vec::new() }
    }

    fn refused(text: impl Into<String>) -> Self {
        Self::only(Answer::Refused(text.into()))
    }
}

/// What is wrong with the name of a shadow.
fn bad_name(name: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
        return Some(format!(
            "{name:?} cannot be the name of a shadow: up to {MAX_NAME} letters, digits, `-`, `_`, `.`"
        ));
    }
    None
}

/// What is wrong with a document.
fn bad_document(side: &str, document: &Map<String, Value>) -> Option<String> {
    let deep = document::depth(document);
    if deep > MAX_DEPTH {
        return Some(format!("{side} would be {deep} objects deep, {MAX_DEPTH} at most"));
    }
    let size = serde_json::to_string(document).map_or(usize::MAX, |text| text.len());
    (size > MAX_SIZE).then(|| format!("{side} would have {size} bytes as JSON, {MAX_SIZE} at most"))
}

/// What keeps a document from being what is desired of a device; `None`: nothing.
pub fn unfit(document: &Map<String, Value>) -> Option<String> {
    bad_document("it", document)
}

impl Shadows {
    /// Decides about a request.
    pub fn ask(&self, ask: Ask, now: Timestamp) -> Ruling {
        let Ask { shadow: name, patch, by, request, if_dv, ttl } = ask;
        let remembered = request.as_ref().and_then(|id| self.answers.iter().rev().find(|answer| answer.request == *id));
        if let Some(answer) = remembered {
            return Ruling::only(Answer::Unchanged(answer.dv));
        }
        if let Some(text) = bad_name(&name) {
            return Ruling::refused(text);
        }
        for (what, text) in [("who asks", Some(&by)), ("the id of a request", request.as_ref())] {
            if text.is_some_and(|text| text.is_empty() || text.len() > MAX_NAME) {
                return Ruling::refused(format!("{what} has 1 to {MAX_NAME} bytes"));
            }
        }
        let empty = Shadow::default();
        let shadow = match self.named.get(&name) {
            Some(shadow) => shadow,
            None if self.named.len() >= MAX_NAMED => {
                return Ruling::refused(format!(
                    "the device has {MAX_NAMED} shadows already, {name:?} would be one more"
                ));
            }
            None => &empty,
        };
        if if_dv.is_some_and(|wanted| wanted != shadow.dv) {
            return Ruling::only(Answer::Mismatch(shadow.dv));
        }
        let dv = shadow.dv + 1;
        let Some(patch) = patch else {
            if shadow.desired.is_empty() && shadow.reported.is_empty() {
                return Ruling::only(Answer::Unchanged(shadow.dv));
            }
            let what = What::Deleted { dv, rv: shadow.rv + 1 };
            return Ruling { answer: Answer::Changed(dv), changes: vec![Change { shadow: name, by, request, what }] };
        };
        let before = shadow.wanted(now);
        let mut after = before.clone();
        document::merge_plain(&mut after, &patch);
        if let Some(text) = bad_document("what is desired", &after).or_else(|| bad_document("the patch", &patch)) {
            return Ruling::refused(text);
        }
        // The same value once more can end a conflict, or make last what was to end.
        let settles = |path: &Path| {
            shadow.open.contains(path) || shadow.desired.leaf(path).is_some_and(|leaf| leaf.expires.is_some())
        };
        if after == before && ttl.is_none() && !document::paths_of(&patch).iter().any(settles) {
            return Ruling::only(Answer::Unchanged(shadow.dv));
        }
        let expires = ttl.map(|ttl| now.plus(ttl));
        let what = What::Desired { dv, patch, expires, adopted: false };
        Ruling { answer: Answer::Changed(dv), changes: vec![Change { shadow: name, by, request, what }] }
    }

    /// Decides about a report. `session` is the one that the device has greeted with, if it has.
    pub fn report(
        &self,
        report: Report,
        device: &str,
        session: Option<u64>,
        rules: &ShadowRules,
        now: Timestamp,
    ) -> Ruling {
        let name = if report.shadow.is_empty() { super::DEFAULT } else { &report.shadow };
        if let Some(text) = bad_name(name) {
            return Ruling::refused(text);
        }
        let empty = Shadow::default();
        let shadow = match self.named.get(name) {
            Some(shadow) => shadow,
            None if self.named.len() >= MAX_NAMED => {
                return Ruling::refused(format!(
                    "the device has {MAX_NAMED} shadows already, {name:?} would be one more"
                ));
            }
            None => &empty,
        };
        let turn = report.session.zip(report.rseq);
        if let (Some(of), Some(current)) = (report.session, session)
            && of != current
        {
            return Ruling::only(Answer::Old);
        }
        if let (Some((of, rseq)), Some((last_of, last))) = (turn, shadow.turn)
            && of == last_of
            && rseq <= last
        {
            return Ruling::only(Answer::Old);
        }
        let before = shadow.reported.to_json();
        let patch = if report.full { document::difference(&before, &report.patch) } else { report.patch };
        let mut after = before.clone();
        document::merge_plain(&mut after, &patch);
        if let Some(text) = bad_document("what is reported", &after).or_else(|| bad_document("the report", &patch)) {
            return Ruling::refused(text);
        }
        let merge = Merge {
            shadow,
            name,
            based_on: report.based_on,
            local: report.local.as_deref(),
            times: &report.times,
            times_err: report.times_err,
            before: &before,
            after: &after,
        }
        .run(rules, now);
        let changed = before != after;
        let rv = shadow.rv + u64::from(changed);
        let by: Arc<str> = Arc::from(device);
        let change = |what| Change { shadow: Arc::from(name), by: by.clone(), request: None, what };
        let news = changed
            || report.based_on.is_some_and(|based_on| based_on != shadow.applied)
            || turn.is_some()
            || !report.times.is_empty()
            || merge.open != shadow.open;
        let mut changes = Vec::new();
        if news {
            changes.push(change(What::Reported(Box::new(Reported {
                rv,
                patch,
                full: report.full,
                // A device cannot have applied what was never desired.
                applied: report.based_on.map(|based_on| based_on.min(shadow.dv)),
                turn,
                times: report.times,
                open: merge.open.into_iter().collect(),
            }))));
        }
        changes.extend(merge.conflicts.into_iter().map(|conflict| change(What::Conflict(Box::new(conflict)))));
        if !merge.adopt.is_empty() {
            let what = What::Desired { dv: shadow.dv + 1, patch: merge.adopt, expires: None, adopted: true };
            changes.push(change(what));
        }
        Ruling { answer: if changed { Answer::Changed(rv) } else { Answer::Unchanged(rv) }, changes }
    }

    /// Values whose time is over.
    pub fn expire(&self, now: Timestamp) -> Vec<Change> {
        let all = self.named.iter().map(|(name, shadow)| (name, shadow.dv, shadow.expired(now)));
        let over = all.filter(|(_, _, paths)| !paths.is_empty());
        let change = |(name, dv, paths): (&Arc<str>, u64, Vec<Path>)| Change {
            shadow: name.clone(),
            by: Arc::from("engine"),
            request: None,
            what: What::Expired { dv: dv + 1, paths },
        };
        over.map(change).collect()
    }
}

/// What a merge comes to.
#[derive(Debug, Default)]
struct Merged {
    /// What is desired has to become this.
    adopt: Map<String, Value>,
    conflicts: Vec<Conflict>,
    open: BTreeSet<Path>,
}

/// The three-way merge: what was desired when the device last applied it, what is desired now, what the device has.
struct Merge<'a> {
    shadow: &'a Shadow,
    name: &'a str,
    based_on: Option<u64>,
    local: Option<&'a [Path]>,
    times: &'a [(Path, Timestamp)],
    times_err: i64,
    /// What was reported before.
    before: &'a Map<String, Value>,
    /// What is reported now.
    after: &'a Map<String, Value>,
}

impl Merge<'_> {
    fn run(self, rules: &ShadowRules, now: Timestamp) -> Merged {
        let mut merged = Merged { open: self.shadow.open.clone(), ..Merged::default() };
        let wanted = self.shadow.wanted(now);
        let base = match self.based_on {
            // Not known any more: all that differs is decided by policy.
            Some(based_on) => self.shadow.at_version(based_on).unwrap_or_default(),
            // It does not say what it has applied: only what it says to have changed itself can count.
            None if self.local.is_some() => wanted.clone(),
            None => {
                let settled = |path: &Path| self.is_settled(&wanted, path, rules);
                merged.open.retain(|path| !settled(path));
                return merged;
            }
        };
        let forgotten = self.based_on.is_some_and(|based_on| self.shadow.at_version(based_on).is_none());
        let mut paths: BTreeSet<Path> = document::paths_of(&base).into_iter().collect();
        paths.extend(document::paths_of(&wanted));
        for path in paths {
            let deadband = rules.deadband(self.name, &path);
            let at = |object| document::value_at(object, &path);
            let (from, theirs, Some(ours)) = (at(&base), at(&wanted), at(self.after)) else { continue };
            if theirs.is_some_and(|theirs| document::alike(theirs, ours, deadband)) {
                merged.open.remove(&path);
                continue;
            }
            let edited = from != theirs || forgotten;
            let changed_here = match self.local {
                Some(local) => local.contains(&path),
                None => from.is_none_or(|from| !document::alike(from, ours, deadband)),
            };
            if !changed_here {
                // What is in dispute stays so: the device says it once that it has changed it.
                if rules.policy(self.name, &path) != Policy::Manual {
                    merged.open.remove(&path);
                }
                continue;
            }
            let (winner, value) = self.decide(rules.policy(self.name, &path), &path, theirs, ours);
            match winner {
                Winner::Nobody => drop(merged.open.insert(path.clone())),
                _ => drop(merged.open.remove(&path)),
            }
            if let Some(value) = value {
                document::place(&mut merged.adopt, &path, value);
            }
            // The same report once more is no new conflict.
            if edited && document::value_at(self.before, &path) != Some(ours) {
                let value = |value: Option<&Value>| value.cloned().unwrap_or(Value::Null);
                merged.conflicts.push(Conflict {
                    base: value(from),
                    desired: value(theirs),
                    reported: ours.clone(),
                    desired_at: self.shadow.desired.leaf(&path).map(|leaf| leaf.at),
                    reported_at: self.time(&path),
                    policy: rules.policy(self.name, &path),
                    winner,
                    path,
                });
            }
        }
        let settled = |path: &Path| self.is_settled(&wanted, path, rules);
        merged.open.retain(|path| !settled(path));
        merged
    }

    /// Whether nothing is in dispute at a path.
    fn is_settled(&self, wanted: &Map<String, Value>, path: &Path, rules: &ShadowRules) -> bool {
        match (document::value_at(wanted, path), document::value_at(self.after, path)) {
            (Some(theirs), Some(ours)) => document::alike(theirs, ours, rules.deadband(self.name, path)),
            _ => true,
        }
    }

    fn time(&self, path: &Path) -> Option<Timestamp> {
        self.times.iter().find(|(of, _)| of == path).map(|(_, at)| *at)
    }

    /// Who wins, and what has to become desired.
    fn decide(&self, policy: Policy, path: &Path, theirs: Option<&Value>, ours: &Value) -> (Winner, Option<Value>) {
        let device = || (Winner::Device, Some(ours.clone()));
        let numbers = || Some((theirs?.as_f64()?, ours.as_f64()?));
        match policy {
            Policy::Server => (Winner::Server, None),
            Policy::Device => device(),
            Policy::Manual => (Winner::Nobody, None),
            Policy::Later => {
                let set = self.shadow.desired.leaf(path).map(|leaf| leaf.at);
                match (self.time(path), set) {
                    (Some(changed), Some(set)) if changed.0.saturating_sub(set.0) > CLOCK_ERROR.max(self.times_err) => {
                        device()
                    }
                    (Some(_), None) => device(),
                    _ => (Winner::Server, None),
                }
            }
            Policy::Max | Policy::Min => match numbers() {
                Some((theirs, ours)) if (policy == Policy::Max) == (ours > theirs) => device(),
                None if theirs.is_none() => device(),
                _ => (Winner::Server, None),
            },
            Policy::Union => match (theirs, ours) {
                (Some(Value::Array(theirs)), Value::Array(ours)) => {
                    let mut all = theirs.clone();
                    for value in ours {
                        if !all.contains(value) {
                            all.push(value.clone());
                        }
                    }
                    if all.len() == theirs.len() {
                        (Winner::Server, None)
                    } else {
                        (Winner::Merged, Some(Value::Array(all)))
                    }
                }
                (None, _) => device(),
                _ => (Winner::Server, None),
            },
        }
    }
}
