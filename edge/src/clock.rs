//! The device's two clocks: a wall clock that somebody may set, and a monotonic one that nobody does.
//!
//! Three things follow from reading them together: how far the wall clock is from the engine's (each ack is an exchange of
//! four times), what the monotonic clock showed when a record was made, and whether the wall clock was set in between.
//! Pure: every time comes in as a value. Absent: any correction; the engine does that, the device sends what it saw.

use std::collections::VecDeque;

use device::clock::EARLIEST;
use device::seq::Epoch;
use device::time::{SECOND, Timestamp};

/// The two clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Wall clock of the device.
    pub wall: Timestamp,
    /// Its clock that nobody sets, in nanoseconds.
    pub mono: u64,
}

impl Stamp {
    /// Wall less monotonic time: only a step of the wall clock changes it.
    pub fn apart(self) -> i128 {
        i128::from(self.wall.0) - i128::from(self.mono)
    }

    /// Whether the wall clock was ever set.
    pub fn is_set(self) -> bool {
        self.wall >= EARLIEST
    }
}

/// What an answer of the engine says of the message that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// The send time in that message, echoed.
    pub sent: Timestamp,
    /// When the engine received it.
    pub received: Timestamp,
    /// When the engine answered.
    pub answered: Timestamp,
}

/// Messages whose answers can still be told.
const SENT: usize = 64;
/// Steps of the wall clock remembered.
const MARKS: usize = 64;
/// An answer that took longer measures the rate of the clock more than its offset.
const LONGEST: u64 = 60 * SECOND as u64;
/// A measurement is told for so long.
const TOLD: u64 = 900 * SECOND as u64;
/// What reading two clocks one after the other is off by.
const JITTER: i128 = SECOND as i128 / 1000;

/// A result: what has to be added to the wall clock, as it stood when `apart` was so.
#[derive(Debug, Clone, Copy)]
struct Measured {
    offset: i64,
    roundtrip: u64,
    apart: i128,
    mono: u64,
}

/// How far apart the clocks were when records were made: from this number of this epoch on.
#[derive(Debug, Clone, Copy)]
struct Mark {
    epoch: Epoch,
    from: u64,
    apart: i128,
}

/// What was seen of the clocks since the start.
#[derive(Debug, Default)]
pub struct Clocks {
    sent: VecDeque<Stamp>,
    measured: Option<Measured>,
    marks: VecDeque<Mark>,
}

impl Clocks {
    /// A message with this stamp is sent.
    pub fn sends(&mut self, stamp: Stamp) {
        if self.sent.len() >= SENT {
            self.sent.pop_front();
        }
        self.sent.push_back(stamp);
    }

    /// An answer came.
    pub fn answered(&mut self, exchange: Exchange, now: Stamp) {
        let Some(sent) = self.sent.iter().rfind(|sent| sent.wall == exchange.sent) else { return };
        let Some(passed) = now.mono.checked_sub(sent.mono).filter(|passed| *passed <= LONGEST) else { return };
        let there = i128::from(exchange.answered.0) - i128::from(exchange.received.0);
        let Ok(roundtrip) = u64::try_from(i128::from(passed) - there.max(0)) else { return };
        // By the monotonic clock: the wall clock may have been set while the message was on its way.
        let (out, back) = (
            i128::from(exchange.received.0) - i128::from(sent.wall.0),
            i128::from(exchange.answered.0) - (i128::from(sent.wall.0) + i128::from(passed)),
        );
        let Ok(offset) = i64::try_from((out + back) / 2) else { return };
        self.measured = Some(Measured { offset, roundtrip, apart: sent.apart(), mono: now.mono });
    }

    /// Offset and round trip for a message that is sent now, if they are not too old: what has to be added to the wall
    /// clock as it stands.
    pub fn measured(&self, now: Stamp) -> Option<(i64, u64)> {
        let measured = self.measured?;
        now.mono.checked_sub(measured.mono).filter(|age| *age <= TOLD)?;
        let step = now.apart() - measured.apart;
        let step = if step.abs() <= JITTER { 0 } else { step };
        Some((i64::try_from(i128::from(measured.offset) - step).ok()?, measured.roundtrip))
    }

    /// The record of this number is made now.
    pub fn records(&mut self, epoch: Epoch, seq: u64, now: Stamp) {
        let apart = now.apart();
        let last = self.marks.back().filter(|mark| mark.epoch == epoch);
        if last.is_some_and(|mark| (mark.apart - apart).abs() <= JITTER) {
            return;
        }
        if self.marks.len() >= MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back(Mark { epoch, from: seq, apart });
    }

    /// How far apart the clocks were when the record of this number was made; `None`: it is of an earlier process.
    pub fn apart(&self, epoch: Epoch, seq: u64) -> Option<i128> {
        self.marks.iter().rfind(|mark| mark.epoch == epoch && mark.from <= seq).map(|mark| mark.apart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = SECOND / 1000;
    const WALL: i64 = 1_772_359_170 * SECOND;

    fn stamp(wall: i64, mono: i64) -> Stamp {
        Stamp { wall: Timestamp(WALL + wall), mono: mono as u64 }
    }

    fn exchange(sent: i64, received: i64, answered: i64) -> Exchange {
        let at = |time| Timestamp(WALL + time);
        Exchange { sent: at(sent), received: at(received), answered: at(answered) }
    }

    #[test]
    fn four_times_give_offset_and_round_trip() {
        let mut clocks = Clocks::default();
        // The device is 3 s behind; 10 ms there, 200 ms at the engine, 30 ms back.
        clocks.sends(stamp(0, 50 * MS));
        clocks.answered(exchange(0, 3010 * MS, 3210 * MS), stamp(240 * MS, 290 * MS));
        let now = stamp(300 * MS, 350 * MS);
        assert_eq!(clocks.measured(now), Some((2990 * MS, 40 * MS as u64)));
        // Set by 2 s: what has to be added is less by that.
        assert_eq!(clocks.measured(stamp(2300 * MS, 350 * MS)), Some((990 * MS, 40 * MS as u64)));
        assert_eq!(clocks.measured(stamp(901 * SECOND, 901 * SECOND)), None, "too old");
    }

    #[test]
    fn a_step_on_the_way_does_not_count() {
        let mut clocks = Clocks::default();
        clocks.sends(stamp(0, 0));
        clocks.answered(exchange(0, 10 * MS, 10 * MS), stamp(-3600 * SECOND, 20 * MS));
        assert_eq!(clocks.measured(stamp(-3600 * SECOND, 20 * MS)), Some((3600 * SECOND + 20 * MS, 20 * MS as u64)));
    }

    #[test]
    fn answers_that_fit_nothing_are_passed_over() {
        let mut clocks = Clocks::default();
        clocks.sends(stamp(0, 0));
        for (exchange, now) in [
            (exchange(1, 10, 10), stamp(20, 20)),
            (exchange(0, 10, 10 + 61 * SECOND), stamp(61 * SECOND, 61 * SECOND)),
            (exchange(0, 10, 2000), stamp(20, 20)),
            (
                Exchange { received: Timestamp(i64::MIN), answered: Timestamp(i64::MAX), ..exchange(0, 0, 0) },
                stamp(20, 20),
            ),
        ] {
            clocks.answered(exchange, now);
            assert_eq!(clocks.measured(now), None, "{exchange:?}");
        }
        (0..100).for_each(|n| clocks.sends(stamp(100 + n, 100)));
        clocks.answered(exchange(0, 10, 10), stamp(20, 120));
        assert_eq!(clocks.measured(stamp(20, 120)), None, "too many since");
    }

    #[test]
    fn each_record_knows_what_the_clocks_were_apart() {
        let mut clocks = Clocks::default();
        let (old, live) = (Epoch(1), Epoch(2));
        clocks.records(live, 1, stamp(0, 0));
        clocks.records(live, 2, stamp(10 * MS, 10 * MS + 900_000));
        clocks.records(live, 3, stamp(5 * SECOND, 20 * MS));
        let apart = |seq| clocks.apart(live, seq).map(|apart| apart - i128::from(WALL));
        assert_eq!((apart(1), apart(2)), (Some(0), Some(0)));
        assert_eq!((apart(3), apart(9)), (Some(i128::from(4980 * MS)), Some(i128::from(4980 * MS))));
        assert_eq!((clocks.apart(old, 1), apart(0)), (None, None));
    }
}
