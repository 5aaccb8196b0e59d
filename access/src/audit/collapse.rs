//! Refusals that repeat, as few acts with their number: what strangers may write is bounded.
//!
//! A pure state machine. The first refusal of a kind passes; those that follow within ten seconds are counted and come out
//! as one act when these are over. There are at most [`KINDS`] kinds at a time; all others of an action are one kind.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use device::time::Timestamp;
use serde_json::{Value, json};

use super::{Act, Outcome};

/// How long refusals of a kind gather.
pub(super) const WINDOW_NS: i64 = 10_000_000_000;

/// Kinds that are told apart at a time. With a row each per window, a flood writes some kilobytes a second.
const KINDS: usize = 100;

/// What makes two refusals the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    who: String,
    action: String,
    reason: String,
    from: String,
}

/// Refusals of a kind since the last that was let pass.
#[derive(Debug)]
struct Gathered {
    since: Timestamp,
    count: u64,
    last: Option<Act>,
}

/// All that gathers.
#[derive(Debug, Default)]
pub(super) struct Collapse {
    kinds: HashMap<Kind, Gathered>,
}

impl Collapse {
    /// The act, if it is to be written now.
    pub(super) fn take(&mut self, now: Timestamp, act: Act) -> Option<Act> {
        if act.outcome != Outcome::Refused {
            return Some(act);
        }
        let mut act = act;
        let mut kind = Kind {
            who: act.who.clone(),
            action: act.action.clone(),
            reason: act.reason.clone(),
            from: address(&act.from),
        };
        if self.kinds.len() >= KINDS && !self.kinds.contains_key(&kind) {
            // One kind for all that are too many; an action is a word of ours, so these are few.
            kind = Kind { who: String::new(), reason: String::new(), from: String::new(), ..kind };
            act.detail = json!({ "others": true, "of": act.detail });
        }
        match self.kinds.get_mut(&kind) {
            Some(gathered) => {
                gathered.count += 1;
                gathered.last = Some(act);
                None
            }
            None => {
                self.kinds.insert(kind, Gathered { since: now, count: 0, last: None });
                Some(act)
            }
        }
    }

    /// What has gathered for long enough; with `all`, whatever has.
    pub(super) fn due(&mut self, now: Timestamp, all: bool) -> Vec<Act> {
        let mut due = Vec::new();
        self.kinds.retain(|_, gathered| {
            // A clock that was set back must not hold them for ever.
            let over = now.0 < gathered.since.0 || now.0.saturating_sub(gathered.since.0) >= WINDOW_NS;
            if !over && !all {
                return true;
            }
            let Some(mut act) = gathered.last.take() else { return false };
            let of = std::mem::take(&mut act.detail);
            act.detail = json!({ "count": gathered.count });
            if let (false, Some(detail)) = (of.is_null(), act.detail.as_object_mut()) {
                detail.insert("last".to_owned(), of);
            }
            due.push(act);
            // They go on: the next ones wait again.
            (gathered.since, gathered.count) = (now, 0);
            !all
        });
        due.sort_by(|a, b| (&a.action, &a.who, &a.from).cmp(&(&b.action, &b.who, &b.from)));
        due
    }

    /// Whether anything waits for its time.
    pub(super) fn waits(&self) -> bool {
        !self.kinds.is_empty()
    }
}

/// The address without its port, which is another one for each connection.
fn address(from: &str) -> String {
    from.parse::<SocketAddr>()
        .map(|address| address.ip())
        .or_else(|_| from.parse::<IpAddr>())
        .map_or_else(|_| from.to_owned(), |ip| ip.to_string())
}

/// The number of acts that one of the journal stands for.
pub fn count(act: &Act) -> u64 {
    act.detail.get("count").and_then(Value::as_u64).unwrap_or(1)
}
