//! Which alert rules count where in a shard's log, and which devices want to hear that time has passed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use device::alert::Rules;
use device::id::DeviceId;
use device::seq::Position;
use device::time::Timestamp;
use parking_lot::{Mutex, RwLock};

/// Gives the rules of the version of the project with a fingerprint, if it is kept.
pub type RulesOf = Arc<dyn Fn(u64) -> Option<Arc<Rules>> + Send + Sync>;

/// The rules of one shard.
pub struct RuleBook {
    of: RulesOf,
    /// Rules, and the position behind which they count; ascending, never empty.
    changes: RwLock<Vec<(Position, Arc<Rules>)>>,
    /// Whether there ever were any in this process: devices of others pay for one look at it.
    any: AtomicBool,
    reminders: Mutex<BinaryHeap<Reverse<(Timestamp, DeviceId)>>>,
}

impl std::fmt::Debug for RuleBook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleBook").field("any", &self.any).finish_non_exhaustive()
    }
}

impl RuleBook {
    /// `rules` count from the beginning; others come by [`RuleBook::note`].
    pub fn new(rules: Arc<Rules>, of: RulesOf) -> Self {
        Self {
            of,
            any: AtomicBool::new(!rules.is_empty()),
            changes: RwLock::new(vec![(Position(0), rules)]),
            reminders: Mutex::default(),
        }
    }

    /// A book without rules, for shards that will never have any.
    pub fn empty() -> Self {
        Self::new(Arc::new(Rules::default()), Arc::new(|_| None))
    }

    /// Behind this position, another version of the project counts. Called before anything behind it is durable.
    pub fn note(&self, position: Position, project: u64) {
        // A version that is not kept was written by a weir that computed fingerprints otherwise: nothing has changed.
        let Some(rules) = (self.of)(project) else { return };
        let mut changes = self.changes.write();
        if changes.last().is_some_and(|(last, now)| **now == *rules || *last >= position) {
            return;
        }
        let any = !rules.is_empty();
        changes.push((position, rules));
        drop(changes);
        if any {
            self.any.store(true, Ordering::Release);
        }
    }

    /// Whether there are or were rules.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// The rules that count at a position.
    pub fn at(&self, position: Position) -> Arc<Rules> {
        let changes = self.changes.read();
        let at = changes.partition_point(|(from, _)| *from < position);
        changes.get(at.saturating_sub(1)).map(|(_, rules)| rules.clone()).unwrap_or_default()
    }

    /// The rules that count for what comes now.
    pub fn now(&self) -> Arc<Rules> {
        self.changes.read().last().map(|(_, rules)| rules.clone()).unwrap_or_default()
    }

    /// Reminds a device at a time.
    pub(crate) fn remind(&self, at: Timestamp, device: DeviceId) {
        self.reminders.lock().push(Reverse((at, device)));
    }

    /// The devices whose time has come.
    pub(crate) fn due(&self, now: Timestamp) -> Vec<DeviceId> {
        let mut reminders = self.reminders.lock();
        let mut due = Vec::new();
        while let Some(Reverse((at, _))) = reminders.peek()
            && *at <= now
            && let Some(Reverse((_, device))) = reminders.pop()
        {
            due.push(device);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_count_behind_the_barrier_that_names_them() {
        let of = |version| Arc::new(Rules::new(version, Vec::new(), Arc::default()));
        let book = RuleBook::new(of(1), Arc::new(move |version| (version < 9).then(|| of(version))));
        book.note(Position(10), 2);
        book.note(Position(20), 2);
        book.note(Position(30), 9);
        book.note(Position(40), 1);
        let at = [1, 10, 11, 40, 41].map(|position| book.at(Position(position)).version());
        assert_eq!((at, book.now().version(), book.any()), ([1, 1, 2, 2, 1], 1, false));
        for (at, name) in [(7, "c"), (5, "a"), (6, "b")] {
            book.remind(Timestamp(at), DeviceId::new(name).unwrap());
        }
        let names = |now| book.due(Timestamp(now)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!((names(4), names(6), names(9)), (vec![], vec!["a".into(), "b".into()], vec!["c".to_owned()]));
    }
}
