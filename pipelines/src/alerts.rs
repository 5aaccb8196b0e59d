//! Which alerts are not `ok` now, as the log says: a view that the consumer keeps of the transitions in it.
//!
//! It is part of the shard's checkpoint, so it needs no device to be awake, and nothing of the log before. And who else
//! hears of the transitions ([`Listener`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use device::alert::{State, Transition};
use device::id::{DeviceId, ShardId};
use device::seq::Position;
use parking_lot::Mutex;
use storage::log::LogError;

/// The name that the view has among the states of pipelines; no pipeline can be called so.
pub(crate) const PART: &str = "_alerts";

/// Device and rule.
pub type AlertKey = (Arc<str>, Arc<str>);

/// Hears of the transitions in the logs of all shards, and keeps what it needs of them. Who is told, and how, is behind
/// it; this crate does not know.
pub trait Listener: Send + Sync {
    /// The transitions of one record. A replay tells of it again: the position says which one it is.
    fn hear(&self, shard: ShardId, position: Position, transitions: &[(&DeviceId, &[Transition])]);
    /// Returns when everything that was heard is kept durably; it is not told again then. Blocks.
    fn keep(&self) -> Result<(), LogError>;
}

/// Hears of nothing.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

impl Listener for Nobody {
    fn hear(&self, _: ShardId, _: Position, _: &[(&DeviceId, &[Transition])]) {}

    fn keep(&self) -> Result<(), LogError> {
        Ok(())
    }
}

/// The last transition of each alert of a shard that is not `ok`.
#[derive(Debug, Default)]
pub struct OpenAlerts {
    open: Mutex<BTreeMap<AlertKey, Transition>>,
    changed: AtomicBool,
}

impl OpenAlerts {
    /// As a checkpoint holds it.
    pub(crate) fn restore(&self, part: Option<Bytes>) -> Result<(), String> {
        let all = part.map_or(Ok(Vec::new()), |part| Transition::unpack(&part))?;
        let all = all.into_iter().map(|(device, last)| ((Arc::from(device), last.rule.clone()), last));
        *self.open.lock() = all.collect();
        Ok(())
    }

    /// For a checkpoint, if it has changed since the last one.
    pub(crate) fn checkpoint(&self) -> Option<Bytes> {
        if !self.changed.swap(false, Ordering::AcqRel) {
            return None;
        }
        let open = self.open.lock();
        Some(Transition::pack(open.iter().map(|((device, _), last)| (&**device, last))).into())
    }

    pub(crate) fn take(&self, device: &str, transitions: &[Transition]) {
        let mut open = self.open.lock();
        for transition in transitions.iter().filter(|transition| !transition.history) {
            let key = (Arc::from(device), transition.rule.clone());
            match transition.to {
                State::Ok => drop(open.remove(&key)),
                _ => {
                    // What time and people do has no reading of its own: the last one is still the last one.
                    let before = open.get(&key).filter(|before| before.incident == transition.incident);
                    let value = transition.value.or(before.and_then(|before| before.value));
                    open.insert(key, Transition { value, ..transition.clone() });
                }
            }
        }
        self.changed.store(true, Ordering::Release);
    }

    /// Those that `wanted` takes, by device and rule, behind `after`: at most `limit`.
    pub fn list(
        &self,
        after: Option<&AlertKey>,
        limit: usize,
        wanted: impl Fn(&AlertKey, &Transition) -> bool,
    ) -> Vec<(AlertKey, Transition)> {
        let open = self.open.lock();
        let behind = open.iter().filter(|(key, last)| after.is_none_or(|after| *key > after) && wanted(key, last));
        behind.take(limit).map(|(key, last)| (key.clone(), last.clone())).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether all is well.
    pub fn is_empty(&self) -> bool {
        self.open.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use device::alert::{Event, IncidentId};

    use super::*;

    fn transition(to: State, value: Option<f64>, history: bool) -> Transition {
        Transition {
            number: 1,
            rule: "hot".into(),
            version: 7,
            ts: Default::default(),
            event: Event::Fired,
            from: State::Ok,
            to,
            severity: "warning".into(),
            incident: IncidentId(5),
            since: Default::default(),
            value,
            backfilled: history,
            history,
            stale: false,
            ack: None,
            told: Vec::new(),
            labels: "".into(),
        }
    }

    #[test]
    fn what_is_not_ok_is_listed_and_outlives_a_checkpoint() {
        let view = OpenAlerts::default();
        view.take("a", &[transition(State::Firing, Some(81.0), false), transition(State::Firing, None, false)]);
        view.take("b", &[transition(State::Firing, Some(82.0), false), transition(State::Ok, None, true)]);
        view.take("c", &[transition(State::Firing, Some(83.0), false), transition(State::Ok, None, false)]);
        let bytes = view.checkpoint().unwrap();
        assert_eq!(view.checkpoint(), None, "only what has changed is written");
        let again = OpenAlerts::default();
        again.restore(Some(bytes.clone())).unwrap();
        let all = again.list(None, 9, |_, _| true);
        let shown: Vec<_> = all.iter().map(|((device, _), last)| (&**device, last.value)).collect();
        assert_eq!(shown, [("a", Some(81.0)), ("b", Some(82.0))], "incidents of the past are not those of now");
        assert_eq!(again.list(Some(&all[0].0), 9, |_, _| true).len(), 1);
        assert_eq!((again.len(), again.is_empty(), again.list(None, 1, |_, _| true).len()), (2, false, 1));
        let newer = [&[2], &bytes[1..]].concat();
        let error = OpenAlerts::default().restore(Some(newer.into())).unwrap_err();
        assert_eq!(error, "damaged at byte 1: expected a version that this engine knows");
    }
}
