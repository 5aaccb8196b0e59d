//! One rule for one device: samples wait until nothing before them is to be expected, then the machine has them in the
//! order of their time.
//!
//! Samples that come from a buffer after newer ones were evaluated run on a machine of their own (*history*), which
//! makes incidents of the past and touches nothing of now.

use std::sync::Arc;

use super::machine::{Machine, SETTLED, Sample, Step};
use super::rule::Rule;
use super::transition::{Event, State};
use crate::time::{SECOND, Timestamp};

/// A sample waits until one comes that is so much newer, or until nothing came for so long: the slack of watermarks.
pub const SLACK: i64 = 2 * SECOND;

/// A sample that was received so long after its time is old: 5 minutes.
pub const OLD: i64 = 300 * SECOND;

/// Most samples of one rule that wait: the device has sent a thousand a second. What is more is evaluated early.
const MAX_WAITING: usize = 2048;

/// Machine and samples that wait for it, in the order of their time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Line {
    pub(super) machine: Machine,
    pub(super) waiting: Vec<Sample>,
    /// Time of the newest sample.
    pub(super) newest: Timestamp,
    /// When a sample last came, by the engine's clock.
    pub(super) heard: Timestamp,
}

impl Line {
    /// Whether a newer sample was evaluated before.
    fn is_past(&self, sample: &Sample) -> bool {
        self.machine.last.is_some_and(|last| sample.ts < last)
    }

    fn add(&mut self, sample: Sample, now: Timestamp) {
        let first = self.machine.last.is_none() && self.waiting.is_empty();
        self.newest = if first { sample.ts } else { self.newest.max(sample.ts) };
        self.heard = if first { now } else { self.heard.max(now) };
        let at = self.waiting.partition_point(|waiting| waiting.ts <= sample.ts);
        self.waiting.insert(at, sample);
    }

    /// How many samples need not wait any more.
    fn ready(&self, upto: Timestamp) -> usize {
        let ready = self.waiting.partition_point(|waiting| waiting.ts <= upto);
        ready.max(self.waiting.len().saturating_sub(MAX_WAITING))
    }
}

/// One rule for one device.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lane {
    /// Index in the rules of now.
    pub(super) rule: u16,
    /// The rule's name.
    pub(super) name: Arc<str>,
    /// The rule's version.
    pub(super) version: u64,
    pub(super) line: Line,
    /// The first sample after the last time that the device was away: what is older may still come.
    pub(super) resumed: Option<Timestamp>,
    pub(super) history: Option<Line>,
    /// Samples that came too late to be evaluated.
    pub(super) late: u64,
}

impl Lane {
    pub(super) fn new(rule: u16, of: &Rule) -> Self {
        Self {
            rule,
            name: of.name.clone(),
            version: of.version,
            line: Line::default(),
            resumed: None,
            history: None,
            late: 0,
        }
    }

    /// Takes a sample as it comes.
    pub(super) fn take(&mut self, step: &mut Step<'_>, sample: Sample) {
        if !self.line.is_past(&sample) {
            self.line.add(sample, step.now);
            let upto = self.line.newest.plus(-SLACK);
            return self.release(step, upto);
        }
        self.line.heard = self.line.heard.max(step.now);
        if !sample.old || self.resumed.is_none_or(|resumed| sample.ts >= resumed) {
            self.late += 1;
            return;
        }
        let history = self.history.get_or_insert_default();
        if history.is_past(&sample) {
            self.late += 1;
            return;
        }
        history.add(sample, step.now);
        let (upto, before) = (history.newest.plus(-SLACK), step.out.len());
        release(history, step, upto);
        of_the_past(step, before);
    }

    fn release(&mut self, step: &mut Step<'_>, upto: Timestamp) {
        let ready = self.line.ready(upto);
        for sample in self.line.waiting.drain(..ready) {
            if self.line.machine.last.is_none_or(|last| sample.ts.since(last) > OLD) {
                self.resumed = Some(sample.ts);
            }
            self.line.machine.sample(step, &sample);
        }
    }

    /// What time does. Nothing could be heard before `floor`.
    pub(super) fn time(&mut self, step: &mut Step<'_>, floor: Timestamp) {
        let now = step.now;
        if now.since(self.line.heard) >= SLACK {
            self.release(step, now.plus(-SLACK));
        }
        if let Some(history) = &mut self.history
            && now.since(history.heard) >= SETTLED
        {
            let (newest, before) = (history.newest, step.out.len());
            release(history, step, newest);
            if history.machine.state != State::Ok {
                history.machine.resolve(step, newest, None, Event::Superseded);
            }
            of_the_past(step, before);
            self.history = None;
        }
        self.line.machine.time(step, Some(self.line.heard.max(floor)));
    }

    /// When time will do something next, by the engine's clock.
    pub(super) fn due(&self, rule: &Rule, floor: Timestamp) -> Option<Timestamp> {
        let waiting = self.line.waiting.first().map(|first| first.ts.max(self.line.heard).plus(SLACK));
        let history = self.history.as_ref().map(|history| history.heard.plus(SETTLED));
        let machine = self.line.machine.due(rule, self.line.heard.max(floor));
        [waiting, history, machine].into_iter().flatten().min()
    }
}

fn release(line: &mut Line, step: &mut Step<'_>, upto: Timestamp) {
    let ready = line.ready(upto);
    for sample in line.waiting.drain(..ready) {
        line.machine.sample(step, &sample);
    }
}

/// What was made since is no change of the alert's state of now.
fn of_the_past(step: &mut Step<'_>, since: usize) {
    step.out.iter_mut().skip(since).for_each(|transition| transition.history = true);
}
