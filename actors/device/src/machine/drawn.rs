//! Numbering drawn by the engine for plain clients that send `seq` and `ts` but no epoch.
//!
//! The times of the last [`WINDOW`] numbers tell a repetition (same number, same time) from a device that began to
//! count anew. The ring before the current one is kept, too: what a client repeats across its own restart is still
//! recognised.

use std::collections::VecDeque;
use std::ops::Range;

use crate::dedup::WINDOW;
use crate::seq::Epoch;
use crate::time::Timestamp;

/// Stands for "no record of this number". The one time it shadows is moved by a nanosecond.
const NONE: i64 = i64::MIN;

/// The times of the last numbers of one drawn epoch.
#[derive(Debug, Clone)]
pub(super) struct Ring {
    pub(super) epoch: Epoch,
    /// Durable: times of the numbers up to `top`, the last one at the back.
    pub(super) times: VecDeque<i64>,
    pub(super) top: u64,
    /// On their way into the log.
    pub(super) staged: Staged,
}

/// Times of numbers on their way, in the order of the numbers. They nearly always come and go in that order.
#[derive(Debug, Clone, Default)]
pub(super) struct Staged(VecDeque<(u64, i64)>);

impl Staged {
    #[inline]
    pub(super) fn insert(&mut self, seq: u64, time: i64) {
        match self.0.back() {
            Some((last, _)) if *last >= seq => match self.0.binary_search_by_key(&seq, |(seq, _)| *seq) {
                Ok(at) => {
                    if let Some(known) = self.0.get_mut(at) {
                        known.1 = time;
                    }
                }
                Err(at) => self.0.insert(at, (seq, time)),
            },
            _ => self.0.push_back((seq, time)),
        }
    }

    #[inline]
    pub(super) fn get(&self, seq: u64) -> Option<i64> {
        let at = self.0.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        self.0.get(at).map(|(_, time)| *time)
    }

    /// Forgets these numbers.
    #[inline]
    pub(super) fn remove(&mut self, seqs: Range<u64>) {
        let from = self.0.partition_point(|(seq, _)| *seq < seqs.start);
        let to = self.0.partition_point(|(seq, _)| *seq < seqs.end);
        self.0.drain(from..to);
        if self.0.is_empty() && self.0.capacity() > KEPT {
            self.0 = VecDeque::new();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn highest(&self) -> Option<u64> {
        self.0.back().map(|(seq, _)| *seq)
    }

    fn latest(&self) -> Option<i64> {
        self.0.iter().map(|(_, time)| *time).max()
    }
}

/// Room for staged numbers that a quiet device keeps: what most have under way.
const KEPT: usize = 16;

impl Ring {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, times: VecDeque::new(), top: 0, staged: Staged::default() }
    }

    /// The remembered time of a number, and whether it is durable.
    #[inline]
    pub(super) fn recall(&self, seq: u64) -> Option<(i64, bool)> {
        if let Some(back) = self.top.checked_sub(seq).and_then(|back| usize::try_from(back).ok()) {
            let at = self.times.len().checked_sub(1 + back);
            if let Some(ts) = at.and_then(|at| self.times.get(at)).filter(|ts| **ts != NONE) {
                return Some((*ts, true));
            }
        }
        self.staged.get(seq).map(|ts| (ts, false))
    }

    /// The highest number remembered.
    #[inline]
    pub(super) fn highest(&self) -> Option<u64> {
        let durable = (!self.times.is_empty()).then_some(self.top);
        durable.max(self.staged.highest())
    }

    /// A record is durable.
    #[inline]
    pub(super) fn record(&mut self, seq: u64, ts: Timestamp) {
        if !self.staged.is_empty() {
            self.staged.remove(seq..seq + 1);
        }
        let ts = key(ts);
        if self.times.is_empty() || seq > self.top {
            let skipped = if self.times.is_empty() { 0 } else { seq - self.top - 1 };
            if skipped >= WINDOW {
                self.times.clear();
            } else {
                self.times.extend(std::iter::repeat_n(NONE, skipped as usize));
            }
            self.times.push_back(ts);
            self.top = seq;
            let excess = self.times.len().saturating_sub(WINDOW as usize);
            self.times.drain(..excess);
            return;
        }
        let back = self.top - seq;
        if back >= WINDOW {
            return;
        }
        while self.times.len() as u64 <= back {
            self.times.push_front(NONE);
        }
        let at = self.times.len() - 1 - back as usize;
        if let Some(slot) = self.times.get_mut(at) {
            *slot = ts;
        }
    }
}

/// A time as it is remembered.
#[inline]
pub(super) fn key(ts: Timestamp) -> i64 {
    ts.0.max(NONE + 1)
}

/// The drawn epochs of a device.
#[derive(Debug, Default)]
pub(super) struct Numbering {
    /// The last one is current.
    pub(super) rings: Vec<Ring>,
    /// The latest time of any durable record here.
    pub(super) max_ts: Option<i64>,
}

impl Numbering {
    /// The latest time of any record, durable or on its way.
    pub(super) fn latest(&self) -> Option<i64> {
        let staged = self.rings.iter().filter_map(|ring| ring.staged.latest()).max();
        self.max_ts.max(staged)
    }

    /// Whether an earlier epoch remembers exactly this record, and durably.
    pub(super) fn repeats_earlier(&self, seq: u64, ts: i64) -> Option<bool> {
        let (_, earlier) = self.rings.split_last()?;
        earlier
            .iter()
            .rev()
            .filter_map(|ring| ring.recall(seq))
            .find(|(known, _)| *known == ts)
            .map(|(_, durable)| durable)
    }

    /// Records are durable.
    pub(super) fn record(&mut self, epoch: Epoch, seq: u64, ts: Timestamp) {
        self.max_ts = self.max_ts.max(Some(key(ts)));
        let at = match self.rings.iter().rposition(|ring| ring.epoch == epoch) {
            Some(at) => at,
            None => {
                self.rings.push(Ring::new(epoch));
                self.rings.len() - 1
            }
        };
        if let Some(ring) = self.rings.get_mut(at) {
            ring.record(seq, ts);
        }
        // The last two that are durable stay (one on its way may be lost yet, and then the one before it is current
        // again); older ones as long as something of theirs is on its way.
        while self.rings.len() > 2
            && self.rings.iter().filter(|ring| !ring.times.is_empty()).count() > 2
            && self.rings.first().is_some_and(|ring| ring.staged.is_empty())
        {
            self.rings.remove(0);
        }
    }

    /// The epochs that must stay open.
    pub(super) fn epochs(&self) -> Vec<Epoch> {
        self.rings.iter().map(|ring| ring.epoch).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_remembers_a_window() {
        let mut ring = Ring::new(Epoch(1));
        for seq in [10, 12, 11, 5] {
            ring.record(seq, Timestamp(seq as i64 * 100));
        }
        for (seq, expected) in
            [(4, None), (5, Some(500)), (6, None), (10, Some(1000)), (11, Some(1100)), (12, Some(1200)), (13, None)]
        {
            assert_eq!(ring.recall(seq).map(|(ts, _)| ts), expected, "{seq}");
        }
        ring.record(12 + WINDOW - 1, Timestamp(7));
        assert_eq!((ring.recall(12), ring.recall(11)), (Some((1200, true)), None));
        ring.record(12 + 3 * WINDOW, Timestamp(8));
        assert_eq!((ring.times.len(), ring.recall(12 + WINDOW - 1), ring.highest()), (1, None, Some(12 + 3 * WINDOW)));
        ring.record(3, Timestamp(9));
        assert_eq!(ring.recall(3), None);
    }

    #[test]
    fn what_is_on_its_way_is_remembered_too() {
        let mut ring = Ring::new(Epoch(1));
        ring.staged.insert(4, 40);
        assert_eq!((ring.recall(4), ring.highest()), (Some((40, false)), Some(4)));
        ring.record(4, Timestamp(40));
        assert_eq!((ring.recall(4), ring.staged.is_empty()), (Some((40, true)), true));
    }
}
