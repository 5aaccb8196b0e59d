//! The decisions: what each event changes, what is to be done, and what to show at the next connection.

use std::time::Duration;

use device::renewal::renewal_due;
use device::time::Timestamp;

use super::{Answer, Doing, Effect, Event, Held, Identity, Way};

/// How long a new certificate that did not work, or a request that was refused, is left alone the first time; doubles.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Where the doubling ends.
const LAST_PAUSE: Duration = Duration::from_secs(600);
/// A request without an answer is sent again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// A certificate that was refused so often may have been revoked or lost: the claim is tried in between.
const GIVE_UP: u32 = 3;

/// Reasons for which no certificate will ever be given for this key.
const WRONG_KEY: [&str; 3] = [SAME_KEY, "other_key", "bad_request"];
const SAME_KEY: &str = "same_key";

impl Identity {
    /// What to show at the next connection; `None`: there is nothing to show. `now` and `wall` as for [`Self::step`].
    pub fn way(&self, now: Duration, wall: Timestamp) -> Option<Way> {
        let new = self.kept.new.flatten();
        if new.is_some() && now >= self.retry_at {
            return Some(Way::New);
        }
        // The clock may be wrong, a listener may not be there, a certificate may be worth nothing: all that may help, in turn.
        let is_late = |held: Held| self.means.recovery && (self.expired || wall > held.not_after);
        let current = self.kept.current;
        let claims = self.means.claim && (current.is_none() || self.refused >= GIVE_UP);
        let ways = [
            new.filter(|held| is_late(*held)).map(|_| Way::RecoveryNew),
            current.filter(|held| is_late(*held)).map(|_| Way::Recovery),
            current.map(|_| Way::Current),
            claims.then_some(Way::Claim),
        ];
        let ways: Vec<Way> = ways.into_iter().flatten().collect();
        if ways.is_empty() {
            return new.map(|_| Way::New);
        }
        let next = ways.iter().position(|way| Some(*way) == self.failed).map_or(0, |at| at + 1);
        ways.get(next % ways.len()).copied()
    }

    /// When [`Event::Tick`] is due at the latest; `None`: nothing waits for a time that this clock shows. Whether a certificate is
    /// due is looked at with every tick, and an hour is soon enough for that.
    pub fn deadline(&self) -> Option<Duration> {
        self.session?;
        match self.doing {
            Doing::Asking(until) => Some(until),
            Doing::Writing => None,
            Doing::Nothing if self.wants(None) || self.is_shown_to_work() => Some(self.retry_at),
            Doing::Nothing => None,
        }
    }

    /// Takes what happened; returns what to do, in this order. `now`: time since the start of the process, which nobody sets.
    /// `wall`: the device's wall clock.
    pub fn step(&mut self, event: Event, now: Duration, wall: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Connected(way) => {
                (self.session, self.greeted) = (Some(way), false);
                self.doing = Doing::Nothing;
            }
            Event::Greeted { renew } => {
                self.greeted = true;
                if self.session == Some(Way::Current) {
                    self.wanted |= renew;
                    (self.failed, self.refused, self.expired) = (None, 0, false);
                }
            }
            Event::Ended { way, reached, expired } => self.ended(way, reached, expired, now),
            // Only the current one can be due: another is on its way already.
            Event::Due => self.wanted |= self.session == Some(Way::Current),
            Event::Trust(trust) => effects.push(Effect::Trust(trust)),
            Event::Answer(answer) => self.answered(answer, now, &mut effects),
            Event::Kept(kept) => self.wrote(kept, now, &mut effects),
            Event::NotKept => {
                self.doing = Doing::Nothing;
                self.later(now);
            }
            Event::Rotate => {
                self.wanted = true;
                self.retry_at = now;
            }
            Event::Tick => {}
        }
        if effects.is_empty() {
            self.go_on(now, wall, &mut effects);
        }
        effects
    }

    fn later(&mut self, now: Duration) {
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }

    /// Whether the new certificate is known to work. One that has expired cannot be greeted; that it was let in is as much.
    fn is_shown_to_work(&self) -> bool {
        self.kept.new.flatten().is_some()
            && (self.session == Some(Way::New) && self.greeted || self.session == Some(Way::RecoveryNew))
    }

    /// Whether a certificate is to be asked for in this session.
    fn wants(&self, wall: Option<Timestamp>) -> bool {
        let is_due = || match (self.kept.current, wall) {
            (Some(held), Some(wall)) => wall >= renewal_due(held.not_before, held.not_after, &self.device),
            _ => false,
        };
        match self.session {
            Some(Way::Claim | Way::Recovery) => true,
            // What was begun is brought to its end.
            Some(Way::Current) => self.greeted && (self.kept.new.is_some() || self.wanted || is_due()),
            Some(Way::New | Way::RecoveryNew) | None => false,
        }
    }

    fn ended(&mut self, way: Way, reached: bool, expired: bool, now: Duration) {
        let worked = self.session == Some(way) && (self.greeted || !way.is_whole());
        (self.session, self.greeted, self.doing) = (None, false, Doing::Nothing);
        match way {
            // Nobody there: that says nothing about the certificate.
            Way::New if reached && !worked => {
                self.expired |= expired;
                self.counts.failed += 1;
                self.later(now);
            }
            Way::New => {}
            Way::Current if reached && !worked => {
                self.expired |= expired;
                self.refused = self.refused.saturating_add(1);
                self.failed = Some(way);
            }
            Way::Current | Way::Claim | Way::Recovery | Way::RecoveryNew => self.failed = Some(way),
        }
    }

    fn answered(&mut self, answer: Answer, now: Duration, effects: &mut Vec<Effect>) {
        // An answer of an earlier connection, or one that came twice.
        if !matches!(self.doing, Doing::Asking(_)) {
            return;
        }
        match answer {
            Answer::Nonce(nonce) if self.session == Some(Way::Claim) => {
                self.doing = Doing::Asking(now + ASK_AGAIN);
                effects.push(Effect::AskFirst(nonce));
            }
            Answer::Nonce(_) => {}
            Answer::Given { chain, bundle } => {
                self.doing = Doing::Writing;
                effects.push(Effect::Keep { chain, bundle });
            }
            Answer::Refused(reason) => {
                self.counts.refused += 1;
                self.doing = Doing::Nothing;
                self.later(now);
                // One that has a certificate may be the one that works, unless the other works now.
                let others_work = matches!(self.session, Some(Way::Current | Way::Recovery)) && reason == SAME_KEY;
                let may_go = !matches!(self.kept.new, Some(Some(_))) || others_work;
                if WRONG_KEY.contains(&reason.as_str()) && may_go {
                    self.doing = Doing::Writing;
                    effects.push(Effect::Forget);
                } else if self.session.is_some_and(|way| !way.is_whole()) && self.kept.current.is_some() {
                    // Nothing else is to be had here.
                    self.failed = self.session;
                    effects.push(Effect::Reconnect);
                }
            }
        }
    }

    fn wrote(&mut self, kept: super::Kept, now: Duration, effects: &mut Vec<Effect>) {
        let works = self.is_shown_to_work();
        let before = std::mem::replace(&mut self.kept, kept);
        self.doing = Doing::Nothing;
        match (before.new, kept.new) {
            // Promoted: the session goes on, with what is the current one now.
            (Some(Some(_)), None) if works => {
                self.counts.promoted += 1;
                let now_current = if self.session == Some(Way::New) { Way::Current } else { Way::Recovery };
                self.session = Some(now_current);
                (self.wanted, self.expired, self.failed, self.refused) = (false, false, None, 0);
                (self.pause, self.retry_at) = (FIRST_PAUSE, now);
            }
            // The certificate has come: try it.
            (_, Some(Some(_))) if self.session.is_some_and(|way| way != Way::New) => {
                self.retry_at = now;
                effects.push(Effect::Reconnect);
            }
            _ => {}
        }
    }

    /// What is to be done now, if nothing is under way.
    fn go_on(&mut self, now: Duration, wall: Timestamp, effects: &mut Vec<Effect>) {
        if let Doing::Asking(until) = self.doing
            && now >= until
        {
            self.doing = Doing::Nothing;
        }
        if self.doing != Doing::Nothing || now < self.retry_at {
            return;
        }
        if self.is_shown_to_work() {
            self.doing = Doing::Writing;
            effects.push(Effect::Promote);
            return;
        }
        if !self.wants(Some(wall)) {
            return;
        }
        if self.kept.new.is_none() {
            self.doing = Doing::Writing;
            effects.push(Effect::MakeKey);
            return;
        }
        self.doing = Doing::Asking(now + ASK_AGAIN);
        effects.push(if self.session == Some(Way::Claim) { Effect::AskNonce } else { Effect::AskNext });
    }
}
