//! An alert of a device that comes and goes: after a few times people hear of that once, and then of nothing until it has
//! settled.

use std::collections::{BTreeSet, VecDeque};

use device::time::{SECOND, Timestamp};
use serde::{Deserialize, Serialize};

use crate::time::maybe_nanos;

/// More beginnings and ends than this within [`WITHIN`] are flapping.
const MOST: usize = 6;

/// Within so long, in nanoseconds; and after so long without any it has settled: 10 minutes.
const WITHIN: i64 = 600 * SECOND;

/// The last beginnings and ends of one rule for one device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Flap {
    /// By the engine's clock, oldest first; at most one more than [`MOST`].
    times: VecDeque<i64>,
    /// Since when it flaps.
    #[serde(default, with = "maybe_nanos")]
    since: Option<Timestamp>,
    /// Channels that know that it flaps.
    #[serde(default)]
    pub(crate) informed: BTreeSet<String>,
    /// The last incident, and the number of its last transition.
    #[serde(default)]
    pub(crate) last: (String, u64),
}

impl Flap {
    /// It begins or ends once more. True: from now on it flaps.
    pub(crate) fn note(&mut self, now: Timestamp, incident: &str, step: u64) -> bool {
        self.last = (incident.to_owned(), step);
        self.times.push_back(now.0);
        while self.times.len() > MOST + 1 {
            self.times.pop_front();
        }
        let often = self.times.len() > MOST;
        let soon = self.times.front().is_some_and(|first| now.since(Timestamp(*first)) <= WITHIN);
        let begins = often && soon && self.since.is_none();
        if begins {
            self.since = Some(now);
        }
        begins
    }

    /// Whether it flaps now.
    pub(crate) fn flaps(&self) -> bool {
        self.since.is_some()
    }

    /// When it will have settled.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.since?;
        self.times.back().map(|last| Timestamp(*last).plus(WITHIN))
    }

    /// Whether nothing need be remembered.
    pub(crate) fn is_past(&self, now: Timestamp) -> bool {
        self.since.is_none() && self.times.back().is_none_or(|last| now.since(Timestamp(*last)) > WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seventh_change_within_ten_minutes_is_flapping_until_ten_minutes_without_one() {
        let mut flap = Flap::default();
        let at = |seconds: i64| Timestamp(seconds * SECOND);
        let began: Vec<bool> = (0..9).map(|n| flap.note(at(n * 100), "i", n as u64)).collect();
        assert_eq!(began, [false, false, false, false, false, false, true, false, false]);
        assert_eq!((flap.flaps(), flap.due()), (true, Some(at(1400))));
        let mut slow = Flap::default();
        assert!((0..50).all(|n| !slow.note(at(n * 101), "i", n as u64)) && !slow.flaps());
        assert!(!slow.is_past(at(50 * 101)) && slow.is_past(at(60 * 101)) && slow.due().is_none());
    }
}
