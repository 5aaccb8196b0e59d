//! One epoch as the agent sees it: what is acknowledged, what is lost, what was sent.

use std::time::Duration;

use device::seq::Epoch;

use super::EpochAck;
use crate::outbox::{EpochView, Lost};
use crate::ranges::RangeSet;

/// How far above the first unacknowledged number records are sent. The engine remembers 4,096 numbers above its
/// `cum`; what is further ahead it would refuse.
const AHEAD: u64 = 4000;

/// A loss that is not acknowledged, and when it is declared again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    pub(super) lost: Lost,
    /// `None`: not declared on this connection.
    pub(super) due: Option<Duration>,
    pub(super) wait: Duration,
}

#[derive(Debug)]
pub(super) struct Track {
    pub(super) epoch: Epoch,
    pub(super) live: bool,
    /// Highest durable number.
    pub(super) last: u64,
    acked: RangeSet,
    /// `acked` and what is lost: numbers that are not sent as records.
    skip: RangeSet,
    /// Numbers below were sent on this connection, or are in `skip`.
    next: u64,
    pub(super) losses: Vec<Loss>,
    /// The engine knows numbers that were never written here: nothing more is sent of this epoch.
    pub(super) forked: bool,
}

impl Track {
    pub(super) fn new(view: &EpochView) -> Self {
        let mut acked = RangeSet::new();
        acked.insert(1, view.first.saturating_sub(1));
        Self {
            epoch: view.epoch,
            live: view.live,
            last: view.last,
            skip: acked.clone(),
            acked,
            next: 1,
            losses: Vec::new(),
            forked: false,
        }
    }

    pub(super) fn view(&self) -> EpochView {
        let first = self.acked.first_gap(1, self.last).map_or(self.last + 1, |(from, _)| from);
        EpochView { epoch: self.epoch, first, last: self.last, live: self.live }
    }

    /// The connection is new: what is not acknowledged has to be sent on it.
    pub(super) fn rewind(&mut self) {
        self.next = 1;
        for loss in &mut self.losses {
            loss.due = None;
        }
    }

    pub(super) fn lose(&mut self, lost: Lost) {
        self.skip.insert(lost.from, lost.to);
        self.last = self.last.max(lost.to);
        match self.losses.iter_mut().find(|old| {
            old.due.is_none() && old.lost.reason == lost.reason && old.lost.to.checked_add(1) == Some(lost.from)
        }) {
            Some(old) => old.lost.to = lost.to,
            None => self.losses.push(Loss { lost, due: None, wait: Duration::ZERO }),
        }
    }

    /// Takes what an ack says. Returns how many numbers are new in it.
    pub(super) fn ack(&mut self, ack: &EpochAck) -> u64 {
        let before = self.acked.missing(1, self.last);
        let ranges = [(1, ack.cum)].into_iter().chain(ack.ranges.iter().copied());
        for (from, to) in ranges {
            self.acked.insert(from, to.min(self.last));
            self.skip.insert(from, to.min(self.last));
        }
        self.losses.retain(|loss| !self.acked.covers(loss.lost.from, loss.lost.to));
        before - self.acked.missing(1, self.last)
    }

    pub(super) fn unacknowledged(&self) -> u64 {
        self.acked.missing(1, self.last)
    }

    pub(super) fn is_drained(&self) -> bool {
        !self.live && self.acked.covers(1, self.last)
    }

    pub(super) fn is_acked(&self, seq: u64) -> bool {
        self.acked.contains(seq)
    }

    /// The parts of a range that still have to be stored as records.
    pub(super) fn wanted(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        self.skip.gaps(first, last.min(self.last))
    }

    /// The next records that were not sent yet, at most `count` of them.
    pub(super) fn unsent(&self, count: u64) -> Option<(u64, u64)> {
        if self.forked || count == 0 {
            return None;
        }
        let (first, last) = self.skip.first_gap(self.next, self.last)?;
        let oldest = self.acked.first_gap(1, self.last).map_or(first, |(from, _)| from);
        (first - oldest <= AHEAD).then_some((first, last.min(first + count - 1)))
    }

    pub(super) fn sent(&mut self, last: u64) {
        self.next = self.next.max(last + 1);
    }

    /// Losses to declare now: new ones once everything below them was sent, old ones whose time has come.
    pub(super) fn losses_to_declare(&mut self, now: Duration) -> Vec<&mut Loss> {
        let unsent = self.skip.first_gap(self.next, self.last).map_or(u64::MAX, |(first, _)| first);
        let forked = self.forked;
        let due = move |loss: &&mut Loss| match loss.due {
            None => !forked && loss.lost.from < unsent,
            Some(due) => !forked && due <= now,
        };
        self.losses.iter_mut().filter(due).collect()
    }

    /// What is left of a loss that an ack may cover in part.
    pub(super) fn rest(&self, lost: Lost) -> impl Iterator<Item = Lost> {
        self.acked.gaps(lost.from, lost.to).into_iter().map(move |(from, to)| Lost { from, to, ..lost })
    }

    pub(super) fn loss_due(&self) -> Option<Duration> {
        self.losses.iter().filter_map(|loss| loss.due).min()
    }
}
