//! The epochs of one device: open ones with their numbers, closed ones as little more than how far they came.

use std::collections::VecDeque;

use crate::dedup::EpochState;
use crate::seq::Epoch;
use crate::time::{SECOND, Timestamp};

/// Most epochs that stay open. Agents drain 8 at a time; plain clients never say that they are done with one. When
/// there are more, the one not used for longest is closed.
pub(super) const MAX_OPEN: usize = 64;

/// Most new epochs a device may open in a day: a device that restarts every quarter of an hour stays below it.
pub(super) const MAX_NEW_PER_DAY: u32 = 100;

/// Most closed epochs remembered, 40 bytes each. At one restart a day that is eleven years, at the daily limit 40
/// days. What comes from an epoch forgotten here is taken for new.
pub(super) const MAX_CLOSED: usize = 4096;

/// An epoch that may still grow.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub(super) epoch: Epoch,
    pub(super) state: EpochState,
    /// Frames came under it: its device reads acks and sends again.
    pub(super) framed: bool,
    /// Something about it was applied.
    pub(super) durable: bool,
    /// Durably closed; here again (or still) because something came late.
    pub(super) closed: bool,
    /// A closing entry is on its way.
    pub(super) closing: bool,
    pub(super) watch: Option<Watch>,
    used: u64,
}

/// How long a hole has been there and how often it was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    pub(super) cum: u64,
    pub(super) since: Timestamp,
    pub(super) tries: u8,
}

/// An epoch that is over.
#[derive(Debug, Clone)]
pub(super) struct Closed {
    pub(super) epoch: Epoch,
    pub(super) state: EpochState,
}

/// How an epoch is known.
pub(super) enum Known {
    Open(usize),
    Closed(usize),
    Never,
}

/// All epochs of a device.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    pub(super) open: Vec<Open>,
    pub(super) closed: VecDeque<Closed>,
    /// The day (since 1970) of the last new epoch, and how many there were on it.
    pub(super) day: (i64, u32),
    /// Where the last one used stands: nearly always the next one, too.
    recent: usize,
    uses: u64,
}

fn day_of(ts: Timestamp) -> i64 {
    ts.0.div_euclid(86_400 * SECOND)
}

impl Epochs {
    #[inline]
    pub(super) fn position(&self, epoch: Epoch) -> Option<usize> {
        if self.open.get(self.recent).is_some_and(|open| open.epoch == epoch) {
            return Some(self.recent);
        }
        self.open.iter().position(|open| open.epoch == epoch)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, epoch: Epoch) -> Option<&mut Open> {
        let at = self.position(epoch)?;
        self.recent = at;
        self.uses += 1;
        let open = self.open.get_mut(at)?;
        open.used = self.uses;
        Some(open)
    }

    pub(super) fn find(&self, epoch: Epoch) -> Known {
        match self.position(epoch) {
            Some(at) => Known::Open(at),
            None => match self.closed.iter().rposition(|closed| closed.epoch == epoch) {
                Some(at) => Known::Closed(at),
                None => Known::Never,
            },
        }
    }

    /// Whether another new epoch would be too many.
    pub(super) fn storm(&self, now: Timestamp) -> bool {
        let durable = if self.day.0 == day_of(now) { self.day.1 } else { 0 };
        let in_flight = self.open.iter().filter(|open| !open.durable && !open.closed).count();
        // Epochs with holes that a device never answers for cannot be closed for it; they are bounded here.
        durable as usize + in_flight >= MAX_NEW_PER_DAY as usize
            || self.open.len() >= MAX_OPEN + MAX_NEW_PER_DAY as usize
    }

    /// Opens an epoch that is not open: a closed one goes on where it stood, a new one begins above `base`.
    pub(super) fn open(&mut self, epoch: Epoch, base: u64) {
        let closed = self.closed.iter().rposition(|closed| closed.epoch == epoch).and_then(|at| self.closed.remove(at));
        let reopened = closed.is_some();
        let state = closed.map_or_else(|| EpochState::above(base), |closed| closed.state);
        self.uses += 1;
        self.recent = self.open.len();
        self.open.push(Open {
            epoch,
            state,
            framed: false,
            durable: reopened,
            closed: reopened,
            closing: false,
            watch: None,
            used: self.uses,
        });
    }

    /// The open epoch that an entry is applied to; opens it where it is not.
    #[inline]
    pub(super) fn applying(&mut self, epoch: Epoch, base: u64, received: Timestamp) -> Option<&mut Open> {
        match self.position(epoch) {
            Some(at) => self.recent = at,
            None => self.open(epoch, base),
        }
        let open = self.open.get_mut(self.recent)?;
        if !open.durable {
            open.durable = true;
            let day = day_of(received);
            self.day = (day, if self.day.0 == day { self.day.1 + 1 } else { 1 });
        }
        Some(open)
    }

    /// An epoch was opened for a message that was refused after all.
    pub(super) fn forget_unused(&mut self, epoch: Epoch) {
        self.compact(epoch);
        self.open.retain(|open| open.epoch != epoch || open.durable || !open.state.is_quiet());
    }

    /// Moves a durably closed epoch to the closed ones, unless something of it is still missing or on its way.
    pub(super) fn compact(&mut self, epoch: Epoch) {
        let over = |open: &Open| open.closed && open.state.is_quiet() && !open.state.has_holes();
        if let Some(at) = self.position(epoch).filter(|at| self.open.get(*at).is_some_and(over)) {
            let open = self.open.remove(at);
            self.remember(open.epoch, open.state);
        }
    }

    pub(super) fn remember(&mut self, epoch: Epoch, state: EpochState) {
        if self.closed.len() == MAX_CLOSED {
            self.closed.pop_front();
        }
        self.closed.push_back(Closed { epoch, state });
    }

    /// The epoch to close when there are too many: the longest unused one without holes, else the longest unused
    /// one of a plain client (which will not fill its holes). Never one of `kept`.
    pub(super) fn superfluous(&self, kept: &[Epoch]) -> Option<Epoch> {
        if self.open.len() <= MAX_OPEN {
            return None;
        }
        let may_go = |open: &&Open| open.state.is_quiet() && !open.closing && !kept.contains(&open.epoch);
        self.open
            .iter()
            .filter(may_go)
            .filter(|open| !open.framed || !open.state.has_holes())
            .min_by_key(|open| (open.state.has_holes(), open.used))
            .map(|open| open.epoch)
    }
}
