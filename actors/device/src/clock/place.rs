//! Under which clock the records of a frame were made, and what has to be added to their times.
//!
//! A frame that was buffered says what its clocks showed when it was recorded (keys 5 and 9) and when it was sent (keys
//! 7 and 8). If wall less monotonic time is the same, it is the clock that still runs. If not, the clock was set in
//! between: an earlier clock that was measured, or else the monotonic clock, leads to the time. Without monotonic times
//! the span of device times that each clock was heard in says which it can be.

use smallvec::{SmallVec, smallvec};

use super::clocks::{BESIDE, Clocks, Frame, STEP, beside, unset};
use super::note::Piece;
use super::one::Clock;
use super::{ANCHORED, EARLIEST, EXTRAPOLATED, SYNCED, UNKNOWN_ERROR};
use crate::time::{SECOND, Timestamp};

type Pieces = SmallVec<[Piece; 1]>;

/// Flag of a frame: it was buffered, and is sent again or late.
const REPLAYED: u32 = 1;
/// What reading two clocks one after the other is off by.
const TWO_READS: i64 = SECOND / 1000;
/// Records may be about so much before the first and after the last thing heard of their clock.
const AROUND: i64 = SECOND;

/// The clock that records were made under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The one of this index.
    Of(usize),
    Unknown,
}

/// Device time stands, and may be off by `err`.
pub(super) fn kept(err: i64) -> Pieces {
    let quality = if err > 3 * UNKNOWN_ERROR { EXTRAPOLATED } else { SYNCED };
    smallvec![Piece { err, quality, ..Piece::NOTHING }]
}

/// What has to be added to the times of a frame's records; `None`: nothing is known that [`super::stamp`] does not know.
pub(super) fn pieces(clocks: Option<&Clocks>, frame: &Frame, received: Timestamp) -> Option<Pieces> {
    let way = received.since(frame.wall).saturating_abs();
    let doubt = way.saturating_add(UNKNOWN_ERROR);
    let monos = frame.mono.zip(frame.mono_base);
    let shift = shift(frame);
    let Some((clocks, current)) = clocks.and_then(|clocks| Some((clocks, clocks.list.last()?))) else {
        return match shift {
            _ if unset(frame) => Some(smallvec![Piece::NOTHING]),
            Some(shift) if shift != 0 => Some(anchored(kept(doubt), shift, age(frame))),
            _ => (way > UNKNOWN_ERROR).then(|| kept(doubt)),
        };
    };
    let (low, high) = (frame.span.0.0, frame.span.1.0);
    let own = |(origin, extra): (Origin, i64)| match origin {
        Origin::Of(at) => (clocks.list.get(at).and_then(|clock| clock.pieces(low, high)), false, extra),
        Origin::Unknown => (None, true, 0),
    };
    let (found, unknown, extra) = match (shift, monos) {
        (Some(shift), _) => (same_boot(clocks, frame, shift, received), false, 0),
        // Another boot's: its own clock, if that is known and was set.
        (None, Some((_, base))) => own((of_another_boot(clocks, frame, base), 0)),
        (None, None) => own(by_time(clocks, frame)),
    };
    let mut pieces = match found {
        Some(pieces) => Pieces::from_vec(pieces),
        None if unset(frame) => smallvec![Piece::NOTHING],
        None if unknown => {
            let most = clocks.list.iter().map(farthest).max().unwrap_or(0);
            smallvec![Piece { err: most.max(UNKNOWN_ERROR), quality: EXTRAPOLATED, ..Piece::NOTHING }]
        }
        None => match shift {
            None | Some(0) => kept(doubt.max(current.doubt())),
            Some(shift) => anchored(kept(doubt), shift, age(frame)),
        },
    };
    // Without a monotonic clock a step looks like a long way.
    let extra = match current.at(frame.wall.0) {
        Some(known) if frame.mono.is_none() => {
            let late = received.since(frame.wall).saturating_sub(known.offset);
            extra.max(if late > AROUND { late } else { 0 })
        }
        _ => extra,
    };
    if extra > 0 {
        pieces.iter_mut().for_each(|piece| piece.err = piece.err.saturating_add(extra));
    }
    Some(pieces)
}

/// By how much the wall clock was set ahead between the base time and the sending; 0: it was not. `None`: nothing tells.
pub(super) fn shift(frame: &Frame) -> Option<i64> {
    let (sent, base) = frame.mono.zip(frame.mono_base).filter(|(sent, base)| base <= sent)?;
    let apart = |wall: Timestamp, mono: u64| i128::from(wall.0) - i128::from(mono);
    let shift = apart(frame.wall, sent) - apart(frame.base, base);
    if shift.abs() <= beside(i128::from(sent) - i128::from(base)) {
        return Some(0);
    }
    Some(i64::try_from(shift).unwrap_or(if shift < 0 { i64::MIN } else { i64::MAX }))
}

/// Monotonic time from the base time to the sending, in ns.
fn age(frame: &Frame) -> i64 {
    let age = frame.mono.zip(frame.mono_base).and_then(|(sent, base)| sent.checked_sub(base));
    age.and_then(|age| i64::try_from(age).ok()).unwrap_or(0)
}

/// Pieces for the clock that runs as those for one that shows `shift` less.
fn anchored(mut pieces: Pieces, shift: i64, age: i64) -> Pieces {
    let more = TWO_READS.saturating_add(super::fit::scaled(BESIDE, age));
    for piece in &mut pieces {
        if piece.from.0 != i64::MIN {
            piece.from = piece.from.plus(shift.saturating_neg());
        }
        piece.at = piece.at.plus(shift.saturating_neg());
        piece.offset = piece.offset.saturating_add(shift);
        piece.err = piece.err.saturating_add(more);
        piece.quality = ANCHORED;
    }
    pieces
}

/// Records of the boot that sends them: by each clock of it that was measured, and of these by the one that says it most
/// exactly. One that showed something else is led over to by the monotonic clock.
fn same_boot(clocks: &Clocks, frame: &Frame, shift: i64, received: Timestamp) -> Option<Vec<Piece>> {
    let current = clocks.list.last()?;
    let mono = i128::from(frame.mono?);
    let now = i128::from(frame.wall.0) - mono;
    let then = now - i128::from(shift);
    let (low, high) = (frame.span.0.0, frame.span.1.0);
    let mut best: Option<(i64, Vec<Piece>)> = None;
    for clock in clocks.list.iter().rev().filter(|clock| clock.boot == current.boot) {
        let apart = if clock.id == current.id { Some(now) } else { clock.apart() };
        let Some(apart) = apart else { continue };
        let between = apart - then;
        let Ok(step) = i64::try_from(between) else { continue };
        let passed = mono - i128::from(clock.mono.unwrap_or(0));
        let passed = i64::try_from(passed.abs()).unwrap_or(i64::MAX).max(age(frame));
        let own = between.abs() <= beside(i128::from(passed));
        let pieces = match own {
            true => clock.pieces(low, high),
            false => {
                let pieces = clock.pieces(low.saturating_add(step), high.saturating_add(step));
                pieces.map(|pieces| anchored(Pieces::from_vec(pieces), step, passed).into_vec())
            }
        };
        let Some(pieces) = pieces else { continue };
        let err = worst(&pieces, (low, high), received);
        // Its own clock counts where another says it hardly better.
        let err = if own { err } else { err.saturating_add(SECOND / 100) };
        if best.as_ref().is_none_or(|(least, _)| err < *least) {
            best = Some((err, pieces));
        }
    }
    best.map(|(_, pieces)| pieces)
}

/// The larger of the errors at both ends, as they would be stated: an offset that is not applied is a part of them, and a time that
/// cannot be is none.
fn worst(pieces: &[Piece], (low, high): (i64, i64), received: Timestamp) -> i64 {
    let at = |ts: i64| {
        let piece = pieces.iter().rfind(|piece| piece.from.0 <= ts);
        piece.and_then(|piece| piece.stamp(Timestamp(ts), received).clock_err_ns).unwrap_or(i64::MAX)
    };
    at(low).max(at(high))
}

/// The monotonic time is not of this boot.
fn of_another_boot(clocks: &Clocks, frame: &Frame, base: u64) -> Origin {
    let apart = i128::from(frame.base.0) - i128::from(base);
    let boot = clocks.boots;
    let found = clocks.list.iter().rposition(|clock| {
        clock.boot != boot && clock.apart().is_some_and(|of| (of - apart).abs() <= i128::from(STEP))
    });
    // Clocks that were never set begin at the same time in each boot.
    found.filter(|_| frame.base >= EARLIEST).map_or(Origin::Unknown, Origin::Of)
}

/// Which clock it can be, by the times it was heard at, and how far off that may be.
fn by_time(clocks: &Clocks, frame: &Frame) -> (Origin, i64) {
    let (low, high) = frame.span;
    let replayed = frame.flags & REPLAYED != 0;
    // An agent that has a monotonic clock and does not tell it for these records: they are of an earlier boot.
    if low < EARLIEST && (replayed || frame.mono.is_some()) {
        return (Origin::Unknown, 0);
    }
    let end = frame.wall.plus(AROUND);
    let last = clocks.list.len().saturating_sub(1);
    if last == 0 {
        return (if high <= end { Origin::Of(0) } else { Origin::Unknown }, 0);
    }
    let fits = |(at, clock): &(usize, &Clock)| {
        let until = if *at == last { end } else { Timestamp(clock.last).plus(AROUND) };
        low >= Timestamp(clock.first).plus(-AROUND) && high <= until
    };
    let fitting: Vec<(usize, &Clock)> = clocks.list.iter().enumerate().filter(fits).collect();
    let offsets = || fitting.iter().filter_map(|(_, clock)| clock.at(high.0)).map(|known| known.offset);
    let spread = match (offsets().min(), offsets().max()) {
        (Some(least), Some(most)) => most.saturating_sub(least),
        _ => 0,
    };
    match fitting.as_slice() {
        // There may have been a clock after it that nobody saw, on the way to the next one.
        [(only, clock)] => {
            let next = clocks.list.get(*only + 1).and_then(|next| next.at(next.first));
            let far = match (clock.at(high.0), next) {
                (Some(own), Some(next)) => own.offset.saturating_sub(next.offset).saturating_abs(),
                _ => 0,
            };
            (Origin::Of(*only), far)
        }
        [.., (at, _)] if *at == last && !replayed => (Origin::Of(last), spread),
        _ => (Origin::Unknown, 0),
    }
}

/// How far off a clock is at the most, as far as that is known.
fn farthest(clock: &Clock) -> i64 {
    match clock.at(clock.last) {
        Some(known) => known.offset.saturating_abs().saturating_add(known.err).saturating_add(UNKNOWN_ERROR),
        None => clock.doubt(),
    }
}
