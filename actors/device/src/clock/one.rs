//! One clock of a device between two steps: what was measured of it, and what follows for device times.

use super::fit::{bounds, rate, scaled, slope};
use super::note::Piece;
use super::{EXTRAPOLATED, INTERPOLATED, SYNCED, UNKNOWN_ERROR};
use crate::time::{SECOND, Timestamp};

/// Measurements among which the one of the shortest round trip counts.
pub(super) const RECENT: usize = 8;
/// Sync points kept: at one in two minutes enough for the rate, and of earlier times enough to interpolate between.
pub(super) const POINTS: usize = 12;
/// The newest sync points, which are kept whatever comes.
const NEWEST: usize = 6;
/// Time that one sync point stands for.
const APART: i64 = 120 * SECOND;
/// Time that one floor of one-way times stands for.
pub(super) const FLOOR_APART: i64 = 10 * SECOND;
/// Floors kept.
pub(super) const FLOORS: usize = 8;
/// Floors needed: one burst of messages that all waited in the same queue is not enough.
const FLOORS_NEEDED: usize = 4;

/// Sync points needed for a rate, and the time they have to span.
const RATE_POINTS: usize = 6;
const RATE_SPAN: i64 = 600 * SECOND;
/// No oscillator that works is further off, in ns per second (500 ppm).
pub(super) const MAX_RATE: i64 = 500_000;
/// What a rate that is known may change by: temperature moves a plain crystal about that far.
const WANDER: i64 = 10_000;
/// A sync point speaks for this long before and after it.
const FRESH: i64 = 300 * SECOND;

/// One measurement of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// The device's wall clock then.
    pub(super) at: i64,
    /// What has to be added to it.
    pub(super) offset: i64,
    /// How far off that may be.
    pub(super) err: i64,
}

/// The least one-way time within some seconds of the engine's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Floor {
    /// The engine's time when it began.
    pub(super) since: i64,
    /// The device's wall clock at the least.
    pub(super) at: i64,
    /// Receipt less send time: the offset, if the way took no time.
    pub(super) offset: i64,
}

/// A rate and how far off it may be, in ns per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) value: i64,
    pub(super) err: i64,
}

/// What is known of the offset at some device time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) offset: i64,
    pub(super) err: i64,
}

/// One clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clock {
    /// Which of the device's clocks, from 1.
    pub(super) id: u64,
    /// Which of its boots, as far as they are known; the monotonic clock is the same within one.
    pub(super) boot: u64,
    /// The first and the last wall time heard.
    pub(super) first: i64,
    pub(super) last: i64,
    /// Monotonic time at `last`, if the device has one.
    pub(super) mono: Option<u64>,
    /// The last measurements, the newest at the end.
    pub(super) recent: Vec<Sample>,
    /// The best measurement of each two minutes, ascending.
    pub(super) points: Vec<Sample>,
    /// The device time that the last point's two minutes began at.
    pub(super) began: i64,
    /// Of devices that measure nothing.
    pub(super) floors: Vec<Floor>,
    /// The floors are of plain records.
    pub(super) plain: bool,
    pub(super) drifting: bool,
    pub(super) rejected: bool,
    /// Follows from the points.
    pub(super) rate: Option<Rate>,
}

impl Clock {
    pub(super) fn new(id: u64, boot: u64, wall: i64, mono: Option<u64>) -> Self {
        Self {
            id,
            boot,
            first: wall,
            last: wall,
            mono,
            recent: Vec::new(),
            points: Vec::new(),
            began: wall,
            floors: Vec::new(),
            plain: false,
            drifting: false,
            rejected: false,
            rate: None,
        }
    }

    /// Wall less monotonic time, which only a step changes.
    pub(super) fn apart(&self) -> Option<i128> {
        self.mono.map(|mono| i128::from(self.last) - i128::from(mono))
    }

    /// Takes a measurement.
    pub(super) fn sample(&mut self, sample: Sample) {
        if self.recent.len() >= RECENT {
            self.recent.remove(0);
        }
        self.recent.push(sample);
        match self.points.last_mut() {
            Some(last) if sample.at < last.at => return,
            Some(last) if sample.at.saturating_sub(self.began) < APART => {
                if sample.err > last.err {
                    return;
                }
                *last = sample;
            }
            _ => {
                self.began = sample.at;
                self.points.push(sample);
                self.thin();
            }
        }
        self.fit();
    }

    /// Forgets the sync point that is missed least: the one with the nearest neighbours, of the older ones.
    fn thin(&mut self) {
        if self.points.len() <= POINTS {
            return;
        }
        let old = self.points.len() - NEWEST;
        let gaps = self.points.windows(3).take(old.saturating_sub(1)).map(|of| match of {
            [before, _, after] => after.at.saturating_sub(before.at),
            _ => i64::MAX,
        });
        if let Some((at, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) {
            self.points.remove(at + 1);
        }
    }

    /// The rate that follows from the points.
    pub(super) fn fit(&mut self) {
        (self.rate, self.rejected) = (None, false);
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else { return };
        let span = last.at.saturating_sub(first.at);
        if self.points.len() < RATE_POINTS || span < RATE_SPAN {
            return;
        }
        let places: Vec<(i64, i64)> = self.points.iter().map(|point| (point.at, point.offset)).collect();
        let Some(value) = slope(&places) else { return };
        self.rejected = value.saturating_abs() > MAX_RATE;
        if !self.rejected {
            let errs: Vec<i64> = self.points.iter().map(|point| point.err).collect();
            let (low, high) = bounds(&places, &errs);
            // Two bounds that exclude each other: the rate has changed meanwhile, between them.
            let (low, high) = (low.min(high), low.max(high));
            let off = value.saturating_sub(low).saturating_abs().max(high.saturating_sub(value).saturating_abs());
            self.rate = Some(Rate { value, err: off.saturating_add(WANDER).min(MAX_RATE) });
        }
    }

    /// Takes a one-way time.
    pub(super) fn floor(&mut self, wall: i64, received: i64) {
        let offset = received.saturating_sub(wall);
        match self.floors.last_mut() {
            Some(last) if received.saturating_sub(last.since) < FLOOR_APART => {
                if offset < last.offset {
                    (last.at, last.offset) = (wall, offset);
                }
            }
            _ => {
                if self.floors.len() >= FLOORS {
                    self.floors.remove(0);
                }
                self.floors.push(Floor { since: received, at: wall, offset });
            }
        }
    }

    /// The rate and its uncertainty: nothing is known to run better than the worst that works.
    fn pace(&self) -> Rate {
        self.rate.unwrap_or(Rate { value: 0, err: MAX_RATE })
    }

    /// How far off a measurement may be that was made within `gap` before it was told: the middle of the gap is taken
    /// for its time.
    pub(super) fn untimely(&self, gap: i64) -> i64 {
        let pace = self.pace();
        scaled(pace.err.saturating_add(pace.value.saturating_abs()).min(MAX_RATE), gap / 2)
    }

    /// The measurement that says most about now: the least error, which grows while it ages.
    fn best(&self) -> Option<Sample> {
        let newest = self.recent.iter().map(|sample| sample.at).max()?;
        let err = self.pace().err;
        self.recent.iter().copied().min_by_key(|sample| {
            let age = newest.saturating_sub(sample.at);
            (sample.err.saturating_add(scaled(err, age)), age)
        })
    }

    /// Times at which the offset is known, ascending.
    fn knots(&self) -> Vec<Sample> {
        let mut knots = self.points.clone();
        if let Some(best) = self.best() {
            if knots.last().is_none_or(|last| last.at < best.at) {
                knots.push(best);
            }
        } else if self.floors.len() >= FLOORS_NEEDED
            && let Some(floor) = self.floors.iter().min_by_key(|floor| floor.offset)
            && (!self.plain || floor.offset < 0)
        {
            knots.push(Sample { at: floor.at, offset: floor.offset, err: UNKNOWN_ERROR });
        }
        // What a neighbour says more exactly is better not looked at.
        let err = self.pace().err;
        let beaten = |knot: &Sample, by: &Sample| {
            by.err.saturating_add(scaled(err, by.at.saturating_sub(knot.at).saturating_abs())) < knot.err
        };
        let all = knots.clone();
        knots.retain(|knot| !all.iter().any(|other| beaten(knot, other)));
        knots
    }

    /// Whether the device has measured this clock.
    pub(super) fn is_measured(&self) -> bool {
        !self.recent.is_empty()
    }

    /// The offset that the last measurements give for a device time.
    pub(super) fn at(&self, ts: i64) -> Option<Known> {
        let pieces = self.pieces(ts, ts)?;
        let piece = pieces.iter().rfind(|piece| piece.from.0 <= ts)?;
        let away = ts.saturating_sub(piece.at.0);
        Some(Known { offset: piece.offset.saturating_add(scaled(piece.rate, away)), err: piece.err_at(ts) })
    }

    /// What has to be added to device times from `low` to `high`; `None`: it is not known.
    pub(super) fn pieces(&self, low: i64, high: i64) -> Option<Vec<Piece>> {
        let knots = self.knots();
        let (first, last) = (knots.first()?, knots.last()?);
        let pace = self.pace();
        let mut pieces = Vec::new();
        let mut times: Vec<i64> = self.points.iter().chain(&self.recent).map(|sample| sample.at).collect();
        times.sort_unstable();
        let newest = times.last().copied().unwrap_or(last.at).max(last.at);
        // Whether something was measured all the way, even if a knot says it more exactly.
        let covered = |from: i64, to: i64| {
            let inside = times.iter().copied().filter(|at| from < *at && *at < to);
            let mut before = from;
            inside.chain([to]).all(|at| at.saturating_sub(std::mem::replace(&mut before, at)) <= 2 * FRESH)
        };
        let open = |from: i64, knot: &Sample, quality| Piece {
            from: Timestamp(from),
            at: Timestamp(knot.at),
            offset: knot.offset,
            rate: pace.value,
            err: knot.err,
            err_rate: pace.err,
            quality,
        };
        pieces.push(open(i64::MIN, first, EXTRAPOLATED));
        pieces.push(open(first.at.saturating_sub(FRESH), first, SYNCED));
        for pair in knots.windows(2) {
            let [from, to] = pair else { continue };
            let gap = to.at.saturating_sub(from.at);
            let quality = if covered(from.at, to.at) { SYNCED } else { INTERPOLATED };
            // How far a clock can get from the line in between and back.
            let err = from.err.max(to.err).saturating_add(scaled(WANDER.saturating_mul(2), gap / 2));
            // Near to a good knot it alone says more than a line to a bad one.
            let alone = |knot: &Sample| rate(err.saturating_sub(knot.err), pace.err).unwrap_or(0).clamp(0, gap);
            let (after, before) = (alone(from), alone(to));
            if after.saturating_add(before) >= gap {
                let half = rate(to.err.saturating_sub(from.err), pace.err).unwrap_or(0).saturating_add(gap) / 2;
                pieces.push(open(from.at, from, quality));
                pieces.push(open(from.at.saturating_add(half.clamp(0, gap)), to, quality));
                continue;
            }
            if after > 0 {
                pieces.push(open(from.at, from, quality));
            }
            pieces.push(Piece {
                rate: rate(to.offset.saturating_sub(from.offset), gap).unwrap_or(0),
                err,
                err_rate: 0,
                ..open(from.at, from, quality)
            });
            if let Some(line) = pieces.last_mut() {
                line.from = Timestamp(from.at.saturating_add(after));
            }
            if before > 0 {
                pieces.push(open(to.at.saturating_sub(before), to, quality));
            }
        }
        pieces.push(open(last.at, last, SYNCED));
        pieces.push(open(newest.saturating_add(FRESH), last, EXTRAPOLATED));
        // Only those that are needed, and the first counts from the beginning.
        let begin = pieces.iter().rposition(|piece| piece.from.0 <= low).unwrap_or(0);
        let end = pieces.iter().rposition(|piece| piece.from.0 <= high).unwrap_or(begin).max(begin);
        let mut pieces = pieces.get(begin..=end)?.to_vec();
        if let Some(first) = pieces.first_mut() {
            first.from = Timestamp(i64::MIN);
        }
        Some(pieces)
    }

    /// How far from any one-way time the clock may be.
    pub(super) fn doubt(&self) -> i64 {
        let most = self.floors.iter().map(|floor| floor.offset.saturating_abs()).max().unwrap_or(0);
        most.saturating_add(UNKNOWN_ERROR)
    }
}
