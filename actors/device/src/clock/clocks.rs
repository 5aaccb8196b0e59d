//! What is known of a device's clocks: a function of the notes in the log, in their order, and of nothing else.
//!
//! The last clock is the one that runs. Another one begins when the device starts again or its clock is set; what was
//! measured of one says nothing about another.

use super::fit::scaled;
use super::note::{Change, ChangeKind, Note, Sighting};
use super::one::{Clock, FLOOR_APART, MAX_RATE, RECENT, Sample};
use super::{AHEAD, EARLIEST, UNKNOWN_ERROR, applies, place};
use crate::time::{SECOND, Timestamp};

/// Clocks remembered: what was recorded under one that is forgotten has no known offset.
pub(super) const CLOCKS: usize = 4;
/// A wall clock that moves against the monotonic one by more than this was set.
pub(super) const STEP: i64 = SECOND / 4;
/// By what wall and monotonic clock may run apart, in ns per second.
pub(super) const BESIDE: i64 = 20_000;
/// Messages come in disorder by less than this; a monotonic clock that goes back further began anew.
const DISORDER: i128 = 5 * SECOND as i128;
/// Once there are enough measurements, what is like those before is noted only so often: notes cost room in the log.
const NOTED: i64 = 10 * SECOND;
/// Unless it makes the error less by half of itself and this.
const WORTH: i64 = 5 * SECOND / 1000;
/// A measurement that is told is at most this old.
const OLDEST_SAMPLE: i64 = 900 * SECOND;
/// No device is off and on again within less, counted from when it was last switched on; a message that took longer than
/// the one before it by this looks the same.
const RESTART: i64 = 10 * SECOND;
/// Without a monotonic clock: a wall clock that moves against the engine's by more than this was set; a message that took
/// longer looks the same.
const LONGEST_WAY: i64 = 30 * SECOND;
/// How long a plain client is remembered to be ahead, once it no longer is.
const AHEAD_FOR: i64 = 600 * SECOND;

/// From where a clock is said to drift, and below what it no longer is: offset in ns, rate in ns per second.
const DRIFT: (i64, i64) = (5 * SECOND, 200_000);
const CALM: (i64, i64) = (5 * SECOND / 2, 100_000);

/// Flag of a frame: the device does not know the time.
pub(super) const UNSYNCED: u32 = 2;

/// What a frame says about time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frame {
    /// Key 7: wall clock when it was sent.
    pub wall: Timestamp,
    /// Key 8: monotonic clock then.
    pub mono: Option<u64>,
    /// Key 5.
    pub base: Timestamp,
    /// Key 9: monotonic clock at the base time, in the same boot as key 8.
    pub mono_base: Option<u64>,
    /// Key 11.
    pub flags: u32,
    /// Key 12: offset and round trip.
    pub sample: Option<(i64, u64)>,
    /// Earliest and latest time of its records.
    pub span: (Timestamp, Timestamp),
}

/// The clocks of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clocks {
    /// Clocks and boots so far.
    pub(super) made: u64,
    pub(super) boots: u64,
    /// The oldest first.
    pub(super) list: Vec<Clock>,
    /// The measurement noted last, as the device told it.
    pub(super) pair: Option<(i64, u64)>,
    /// When the last note was received.
    pub(super) heard: i64,
}

/// How the clock of a device stands, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which of its clocks, from 1.
    pub clock: u64,
    /// What has to be added to it, in nanoseconds.
    pub offset: i64,
    /// How far off that may be, in nanoseconds.
    pub err: i64,
    /// By how much the offset grows, in nanoseconds per second of its own; `None`: not known.
    pub rate: Option<i64>,
    /// Whether it is said to drift.
    pub drifting: bool,
}

/// How a clock goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Same,
    /// It was set.
    Set,
    /// The device started again.
    Boot,
}

impl Clocks {
    /// What a frame's entry has to say about time, and what is known of the clocks then, if that is something new. `None`:
    /// nothing, [`super::stamp`] does.
    pub fn frame(known: Option<&Self>, frame: &Frame, received: Timestamp) -> Option<(Note, Option<Self>)> {
        let seen = Self::sighting(known, frame, received);
        let mut changes = Vec::new();
        let next = seen.map(|seen| {
            let mut next = known.cloned().unwrap_or_default();
            changes = next.observe(&seen, received);
            next
        });
        let pieces = place::pieces(next.as_ref().or(known), frame, received)?;
        Some((Note { pieces, seen, changes }, next))
    }

    /// The same for plain records, the newest of which has the time `newest`. They have no send time: one from the future shows
    /// that the clock is ahead, one from the past may simply be late.
    pub fn plain(known: Option<&Self>, newest: Timestamp, received: Timestamp) -> Option<(Note, Option<Self>)> {
        let current = known.and_then(|clocks| clocks.list.last());
        if current.is_some_and(|clock| !clock.plain) {
            return None;
        }
        let since = known.map_or(i64::MAX, |clocks| received.0.saturating_sub(clocks.heard));
        let way = received.since(newest);
        if way >= -3 * UNKNOWN_ERROR {
            let clock = current.filter(|_| since < AHEAD_FOR)?;
            return Some((Note { pieces: place::kept(clock.doubt()), ..Note::default() }, None));
        }
        let lower = current.is_none_or(|clock| clock.floors.iter().all(|floor| way < floor.offset));
        let seen = (lower || !(0..NOTED).contains(&since)).then_some(Sighting {
            wall: newest,
            since: newest,
            mono: None,
            sample: None,
            plain: true,
        });
        let mut changes = Vec::new();
        let next = seen.map(|seen| {
            let mut next = known.cloned().unwrap_or_default();
            changes = next.observe(&seen, received);
            next
        });
        let clock = next.as_ref().or(known).and_then(|clocks| clocks.list.last());
        let pieces = clock.and_then(|clock| clock.pieces(newest.0, newest.0));
        let pieces = pieces.map_or_else(|| place::kept(way.saturating_abs()), Into::into);
        Some((Note { pieces, seen, changes }, next))
    }

    /// How the clock that runs stood when it was last heard; `None`: its offset is not known.
    pub fn standing(&self) -> Option<Standing> {
        let clock = self.list.last()?;
        let known = clock.at(clock.last)?;
        let rate = clock.rate.map(|rate| rate.value);
        Some(Standing { clock: clock.id, offset: known.offset, err: known.err, rate, drifting: clock.drifting })
    }

    /// A time that the clock which runs has shown, as the engine's time, and how far off that may be; `None`: it cannot be
    /// said. A clock of which nothing is known is taken for right.
    pub fn time(known: Option<&Self>, shown: Timestamp, received: Timestamp) -> Option<(Timestamp, i64)> {
        let known = known.and_then(|clocks| clocks.list.last()?.at(shown.0));
        let (ts, err) = match known {
            Some(known) if applies(known.offset, known.err) => (shown.plus(known.offset), known.err),
            Some(known) => (shown, known.err.max(known.offset.saturating_abs())),
            None => (shown, 0),
        };
        (ts >= EARLIEST && ts <= received.plus(AHEAD)).then_some((ts, err))
    }

    /// What a frame tells that is not known.
    fn sighting(known: Option<&Self>, frame: &Frame, received: Timestamp) -> Option<Sighting> {
        let same = place::shift(frame) == Some(0);
        let since = if same { frame.span.0.min(frame.wall) } else { frame.wall };
        let seen = Sighting { wall: frame.wall, since, mono: frame.mono, sample: frame.sample, plain: false };
        let way = received.since(frame.wall);
        let Some((clocks, current)) = known.and_then(|clocks| Some((clocks, clocks.list.last()?))) else {
            return (frame.sample.is_some() || way.saturating_abs() > AHEAD).then_some(seen);
        };
        let seen = Sighting { sample: clocks.fresh(&seen), ..seen };
        let due = !(0..NOTED).contains(&received.0.saturating_sub(clocks.heard));
        let wanted = match seen.sample {
            Some((_, roundtrip)) => {
                let err = half(roundtrip);
                let better = err.saturating_add(err / 2).saturating_add(WORTH);
                let since = current.recent.last().map_or(i64::MAX, |last| frame.wall.0.saturating_sub(last.at));
                current.recent.len() < RECENT
                    || !(0..NOTED).contains(&since)
                    || current.at(frame.wall.0).is_none_or(|known| better < known.err)
            }
            None => !current.is_measured() && current.floors.iter().all(|floor| way < floor.offset),
        };
        (due || wanted || current.plain || clocks.turn(current, &seen, received) != Turn::Same).then_some(seen)
    }

    /// A measurement that was not noted yet. The same result is another measurement once the first is too old to be told.
    fn fresh(&self, seen: &Sighting) -> Option<(i64, u64)> {
        let last = self.list.last().and_then(|clock| clock.recent.last());
        let since = last.map_or(0, |last| seen.wall.0.saturating_sub(last.at));
        seen.sample.filter(|pair| Some(*pair) != self.pair || since > OLDEST_SAMPLE)
    }

    /// Takes what a note tells. `received` is the time of its entry.
    pub(crate) fn observe(&mut self, seen: &Sighting, received: Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut seen = Sighting { sample: self.fresh(seen), ..*seen };
        self.pair = seen.sample.or(self.pair);
        // A measurement that says that the message came before it was sent is none of this clock.
        seen.sample = seen.sample.filter(|(offset, roundtrip)| {
            let room = STEP.saturating_add(scaled(MAX_RATE, OLDEST_SAMPLE));
            offset.saturating_sub(half(*roundtrip)) <= received.since(seen.wall).saturating_add(room)
        });
        let turn = match self.list.last() {
            None => Turn::Boot,
            Some(current) => self.turn(current, &seen, received),
        };
        // A measurement is of some time since the last one, and since the device started.
        let passed = received.0.saturating_sub(self.heard);
        let gap = match turn {
            Turn::Same => self.list.last().map_or(0, |clock| seen.wall.0.saturating_sub(clock.last)),
            Turn::Set => passed,
            Turn::Boot => OLDEST_SAMPLE,
        };
        let up = seen.mono.and_then(|mono| i64::try_from(mono).ok()).unwrap_or(OLDEST_SAMPLE);
        let gap = gap.min(up).clamp(0, OLDEST_SAMPLE);
        if turn != Turn::Same {
            self.begin(turn, &mut seen, &mut changes);
        }
        self.heard = received.0;
        let Some(clock) = self.list.last_mut() else { return changes };
        let before = clock.at(clock.last).is_some();
        clock.first = clock.first.min(seen.since.0);
        if seen.wall.0 >= clock.last {
            (clock.last, clock.mono) = (seen.wall.0, seen.mono);
        }
        if clock.plain != seen.plain {
            clock.plain = seen.plain;
            clock.floors.clear();
        }
        let rejected = clock.rejected;
        match seen.sample {
            Some((offset, roundtrip)) => {
                let err = half(roundtrip).saturating_add(clock.untimely(gap));
                clock.sample(Sample { at: seen.wall.0.saturating_sub(gap / 2), offset, err });
            }
            None if clock.is_measured() => {}
            None => clock.floor(seen.wall.0, received.0),
        }
        if let Some(known) = clock.at(clock.last) {
            if !before {
                changes.push(change(ChangeKind::Synced, clock));
            }
            if clock.rejected && !rejected {
                changes.push(change(ChangeKind::Rejected, clock));
            }
            let rate = clock.rate.map_or(0, |rate| rate.value.saturating_abs());
            let offset = known.offset.saturating_abs();
            if !clock.drifting && (offset > DRIFT.0 || rate > DRIFT.1) {
                clock.drifting = true;
                changes.push(change(ChangeKind::Drifting, clock));
            } else if clock.drifting && offset < CALM.0 && rate < CALM.1 {
                clock.drifting = false;
                changes.push(change(ChangeKind::Settled, clock));
            }
        }
        changes
    }

    /// Another clock runs from here on.
    fn begin(&mut self, turn: Turn, seen: &mut Sighting, changes: &mut Vec<Change>) {
        let mut drifting = false;
        if let Some(over) = self.list.last() {
            drifting = over.drifting;
            if over.at(over.last).is_some() {
                changes.push(change(ChangeKind::Ended, over));
            }
            // Measured before it was set, told after: the two differ by the step, which the monotonic clock has measured.
            if let (Turn::Set, Some((offset, roundtrip)), Some(apart), Some(mono)) =
                (turn, seen.sample, over.apart(), seen.mono)
                && let step = i128::from(seen.wall.0) - i128::from(mono) - apart
                && let Some(then) = i64::try_from(i128::from(seen.wall.0) - step).ok().and_then(|wall| over.at(wall))
            {
                let room = i128::from(then.err) + i128::from(half(roundtrip)) + i128::from(STEP);
                let of_before = (i128::from(offset) - i128::from(then.offset)).abs() <= room;
                let of_now = (i128::from(offset) - i128::from(then.offset) + step).abs() <= room;
                if of_before && !of_now {
                    seen.sample = None;
                }
            }
        }
        self.made += 1;
        self.boots += u64::from(turn == Turn::Boot);
        if self.list.len() >= CLOCKS {
            self.list.remove(0);
        }
        let mut clock = Clock::new(self.made, self.boots, seen.wall.0, seen.mono);
        clock.drifting = drifting;
        clock.plain = seen.plain;
        self.list.push(clock);
    }

    /// Whether the clock that runs is the one that ran before.
    fn turn(&self, current: &Clock, seen: &Sighting, received: Timestamp) -> Turn {
        if seen.plain {
            return Turn::Same;
        }
        // By the engine's clock, and as long as a message may take.
        let here = i128::from(received.0) - i128::from(self.heard);
        let moved = i128::from(seen.wall.0) - i128::from(current.last);
        if let (Some(mono), Some(before)) = (seen.mono, current.mono) {
            let passed = i128::from(mono) - i128::from(before);
            // It stood still while the device was off, and began at zero.
            if passed < -DISORDER || here - passed > i128::from(RESTART) + slack(here, MAX_RATE) {
                return Turn::Boot;
            }
            if (moved - passed).abs() > beside(passed) {
                return Turn::Set;
            }
        } else if (moved - here).abs() > i128::from(LONGEST_WAY) + slack(here, MAX_RATE) {
            return Turn::Set;
        }
        let Some(known) = current.at(seen.wall.0) else { return Turn::Same };
        let way = received.since(seen.wall);
        if let Some((offset, roundtrip)) = seen.sample {
            // Told for some time since the last one.
            let gap = seen.wall.0.saturating_sub(current.last).clamp(0, OLDEST_SAMPLE);
            let err = half(roundtrip).saturating_add(current.untimely(gap));
            let room = known.err.saturating_add(err).saturating_add(STEP);
            if current.is_measured() && offset.saturating_sub(known.offset).saturating_abs() > room {
                return Turn::Set;
            }
        } else if current.is_measured() {
            // It came before it was sent.
            if way < known.offset.saturating_sub(known.err).saturating_sub(STEP) {
                return Turn::Set;
            }
        }
        Turn::Same
    }
}

/// What a wall and a monotonic clock of one device may move against each other in a time, without one being set: mostly
/// they are one oscillator.
pub(super) fn beside(passed: i128) -> i128 {
    i128::from(STEP) + slack(passed, BESIDE).min(i128::from(STEP))
}

/// What two clocks may move against each other in a time, at a rate in ns per second.
fn slack(passed: i128, rate: i64) -> i128 {
    passed.abs() * i128::from(rate) / i128::from(SECOND)
}

/// Half a round trip: how far off what it measured may be.
fn half(roundtrip: u64) -> i64 {
    i64::try_from(roundtrip / 2).unwrap_or(i64::MAX)
}

fn change(kind: ChangeKind, clock: &Clock) -> Change {
    let known = clock.at(clock.last);
    Change {
        kind,
        clock: clock.id,
        span: (Timestamp(clock.first), Timestamp(clock.last)),
        offset: known.map_or(0, |known| known.offset),
        err: known.map_or(0, |known| known.err),
        rate: clock.rate.map(|rate| rate.value),
    }
}

/// Whether the device says itself that it does not know the time.
pub(super) fn unset(frame: &Frame) -> bool {
    frame.flags & UNSYNCED != 0 || frame.wall < EARLIEST
}

const _: () = assert!(FLOOR_APART <= NOTED, "each floor has to be noted");
