//! The decisions: what each event changes and what is sent next.

use std::time::Duration;

use device::entry::LossReason;
use device::seq::Epoch;

use super::flight::Flight;
use super::track::Track;
use super::{Ack, Action, Agent, EpochAck, Event, Link};
use crate::outbox::Lost;

/// Of ten records, this many are of the live epoch while old ones wait too: after a long time offline fresh data
/// is visible at once.
const LIVE_SHARE: i64 = 7;
/// And this many of old epochs.
const OLD_SHARE: i64 = 3;
/// Most losses of one frame.
const LOSSES: usize = 64;

impl Agent {
    /// Takes what happened; returns what to do, in this order.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Recorded { last } => {
                if let Some(live) = self.tracks.last_mut() {
                    live.last = live.last.max(last);
                }
            }
            Event::Lost(lost) => {
                if let Some(track) = self.tracks.iter_mut().find(|track| track.epoch == lost.epoch) {
                    track.lose(lost);
                    self.flights.settle(lost.epoch, Some(track));
                }
            }
            Event::Connected => self.greet(self.config.resend_after, now, &mut actions),
            Event::HelloAck(ack) => {
                if self.link == Link::Down {
                    return actions;
                }
                if matches!(self.link, Link::Greeting { .. }) {
                    self.link = Link::Up;
                    self.flights.clear();
                    self.tracks.iter_mut().for_each(Track::rewind);
                }
                self.acked(ack, now, &mut actions);
            }
            Event::Ack(ack) => self.acked(ack, now, &mut actions),
            Event::Disconnected => {
                self.link = Link::Down;
                self.flights.clear();
                self.probe_at = None;
                self.credit = self.config.max_in_flight;
            }
            Event::Forked { old, fresh, last } => {
                self.tracks.retain(|track| track.epoch != old);
                self.flights.settle(old, None);
                self.tracks.iter_mut().for_each(|track| track.live = false);
                let view = crate::outbox::EpochView { epoch: fresh, first: 1, last, live: true };
                self.tracks.push(Track::new(&view));
            }
            Event::Tick => {
                if let Link::Greeting { due, wait } = self.link
                    && due <= now
                {
                    self.greet((wait * 2).min(self.config.resend_at_most), now, &mut actions);
                }
            }
            Event::Repeat => self.flights.iter_mut().for_each(|flight| flight.due = now),
        }
        if self.link == Link::Up {
            self.resend(now, &mut actions);
            self.declare(now, &mut actions);
            self.fill(now, &mut actions);
        }
        actions
    }

    fn greet(&mut self, wait: Duration, now: Duration, actions: &mut Vec<Action>) {
        self.link = Link::Greeting { due: now + self.jitter.spread(wait), wait };
        actions.push(Action::Hello(self.tracks.iter().map(Track::view).collect()));
    }

    fn acked(&mut self, ack: Ack, now: Duration, actions: &mut Vec<Action>) {
        self.counts.nacked += ack.nacks;
        if let Some(credit) = ack.credit {
            self.credit = credit;
            self.probe_at = None;
        }
        for (epoch, first, last) in &ack.resend {
            let said = ack.epochs.iter().find(|said| said.epoch == *epoch);
            self.missed(Epoch(*epoch), (*first, *last), said, now, actions);
        }
        for said in ack.epochs {
            let epoch = Epoch(said.epoch);
            let Some(track) = self.tracks.iter_mut().find(|track| track.epoch == epoch) else { continue };
            let highest = said.ranges.iter().map(|(_, to)| *to).fold(said.cum, u64::max);
            if highest > track.last && track.live {
                // The engine has records under numbers that this store never gave out: it is a copy of an older
                // state of itself. What this ack covers may be other content under the same numbers.
                if !track.forked {
                    track.forked = true;
                    self.counts.forks += 1;
                    actions.push(Action::Fork(epoch));
                }
                continue;
            }
            let fresh = track.ack(&said);
            self.counts.acked += fresh;
            self.flights.settle(epoch, Some(track));
            if fresh > 0 || track.is_drained() {
                actions.push(Action::Forget(said));
            }
        }
        self.tracks.retain(|track| !track.is_drained());
        if self.credit == 0 && self.flights.records() == 0 && self.probe_at.is_none() {
            self.probe_at = Some(now + self.jitter.spread(self.config.resend_after));
        }
    }

    /// The engine misses numbers: what is in flight is sent at once, what is not held any more is declared lost.
    fn missed(
        &mut self,
        epoch: Epoch,
        (first, last): (u64, u64),
        said: Option<&EpochAck>,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let gone = |from, to| Lost { epoch, from, to, reason: LossReason::StorageReset };
        if first == 0 || first > last {
            return;
        }
        let Some(track) = self.tracks.iter_mut().find(|track| track.epoch == epoch) else {
            actions.push(Action::Declare(vec![gone(first, last)]));
            return;
        };
        for flight in self.flights.iter_mut() {
            if flight.epoch == epoch && flight.first <= last && flight.last >= first {
                flight.due = now;
            }
        }
        for loss in &mut track.losses {
            if loss.lost.from <= last && loss.lost.to >= first && loss.due.is_some() {
                loss.due = Some(now);
            }
        }
        // Acknowledged before, and asked for now: the engine lost it, and so did we. A stale ack frame cannot say
        // this, as it names what it covers.
        let covered = |seq| {
            said.is_some_and(|said| {
                seq <= said.cum || said.ranges.iter().any(|(from, to)| (*from..=*to).contains(&seq))
            })
        };
        let mut lost: Vec<Lost> = Vec::new();
        for seq in first..=last.min(track.last).min(first.saturating_add(4096)) {
            if track.is_acked(seq) && !covered(seq) {
                match lost.last_mut() {
                    Some(range) if range.to + 1 == seq => range.to = seq,
                    _ => lost.push(gone(seq, seq)),
                }
            }
        }
        if !lost.is_empty() {
            lost.truncate(LOSSES);
            actions.push(Action::Declare(lost));
        }
    }

    fn resend(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let mut probed = false;
        for flight in self.flights.iter_mut() {
            if flight.due > now {
                continue;
            }
            flight.wait = (flight.wait * 2).min(self.config.resend_at_most);
            flight.due = now + self.jitter.spread(flight.wait);
            // Without credit one range is enough to learn whether there is credit again.
            if self.credit == 0 && std::mem::replace(&mut probed, true) {
                continue;
            }
            let Some(track) = self.tracks.iter().find(|track| track.epoch == flight.epoch && !track.forked) else {
                continue;
            };
            flight.attempt += 1;
            #[cfg(feature = "planted")]
            if device::planted::is("resend-dropped") {
                continue;
            }
            for (first, last) in track.wanted(flight.first, flight.last) {
                self.counts.sent += last - first + 1;
                self.counts.resent += last - first + 1;
                actions.push(Action::Send { epoch: flight.epoch, first, last, attempt: flight.attempt });
            }
        }
    }

    fn declare(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for track in &mut self.tracks {
            let mut lost = Vec::new();
            for loss in track.losses_to_declare(now).into_iter().take(LOSSES) {
                loss.wait = if loss.due.is_none() { self.config.resend_after } else { loss.wait * 2 };
                loss.wait = loss.wait.min(self.config.resend_at_most);
                loss.due = Some(now + self.jitter.spread(loss.wait));
                lost.push(loss.lost);
            }
            let rest: Vec<Lost> = lost.into_iter().flat_map(|lost| track.rest(lost)).take(LOSSES).collect();
            if !rest.is_empty() {
                actions.push(Action::Declare(rest));
            }
        }
    }

    /// Sends what was not sent yet, as far as the credit goes.
    fn fill(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let mut window = self.credit.min(self.config.max_in_flight);
        if let Some(at) = self.probe_at
            && at <= now
            && window == 0
        {
            window = 1;
            self.probe_at = None;
        }
        loop {
            let room = window.saturating_sub(self.flights.records());
            let count = self.config.frame_records.min(room);
            let Some((index, range)) = self.choose(count) else { return };
            // Rather than many small frames while acks trickle in, wait until a good part of one fits.
            let want = range.1 - range.0 + 1;
            let cut = want == count && count < self.config.frame_records;
            if cut && self.flights.records() > 0 && room * 2 < self.config.frame_records.min(window) {
                return;
            }
            let Some(track) = self.tracks.get_mut(index) else { return };
            track.sent(range.1);
            let wait = self.config.resend_after;
            self.flights.add(Flight {
                epoch: track.epoch,
                first: range.0,
                last: range.1,
                records: want,
                due: now + self.jitter.spread(wait),
                wait,
                attempt: 1,
            });
            self.counts.sent += want;
            actions.push(Action::Send { epoch: track.epoch, first: range.0, last: range.1, attempt: 1 });
        }
    }

    /// Whose turn it is, and with what.
    fn choose(&mut self, count: u64) -> Option<(usize, (u64, u64))> {
        let live = self.tracks.len().checked_sub(1)?;
        let fresh = self.tracks.get(live).and_then(|track| track.unsent(count)).map(|range| (live, range));
        let old = live.min(self.config.epochs_at_once);
        // In turn among the old ones, so that one that cannot go on does not hold up the others.
        let drained = (0..old).map(|step| (self.turn + step) % old).find_map(|index| {
            let range = self.tracks.get(index)?.unsent(count)?;
            Some((index, range))
        });
        let len = |(_, (first, last)): &(usize, (u64, u64))| (last - first + 1) as i64;
        match (fresh, drained) {
            (Some(fresh), Some(drained)) => {
                if self.balance >= 0 {
                    self.balance -= OLD_SHARE * len(&fresh);
                    Some(fresh)
                } else {
                    self.balance += LIVE_SHARE * len(&drained);
                    self.turn = drained.0 + 1;
                    Some(drained)
                }
            }
            (fresh, drained) => {
                self.balance = 0;
                fresh.or(drained)
            }
        }
    }
}
