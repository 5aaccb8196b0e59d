//! Which time a row gets: the device's own, corrected where its error is known, or the time of receipt.
//!
//! - `note`: what an entry says about the time of its records. It is decided when they are admitted and stands in the
//!   log, so rows are the same in every replay.
//! - `clocks`: what is known of a device's clocks; a function of the notes in the log alone.
//! - `one`: one clock between two steps: samples, sync points, rate. `fit`: lines through points.
//! - `place`: under which of them a frame's records were made. `store`: all of it as bytes.
//!
//! Absent: any clock. Device times, monotonic times and times of receipt come in as values.

mod clocks;
mod fit;
mod note;
mod one;
mod place;
mod store;
#[cfg(test)]
mod tests;

pub use clocks::{Clocks, Frame, Standing};
pub use note::{Change, ChangeKind, Note, Piece, Sighting};

use crate::time::{SECOND, Timestamp};

/// 2020-01-01T00:00:00Z. A device that says it is earlier has not set its clock.
pub const EARLIEST: Timestamp = Timestamp(1_577_836_800 * SECOND);

/// How far ahead of the engine a device's clock may be believed: more than any network delay, far less than a
/// window.
pub const AHEAD: i64 = 5 * SECOND;

/// Offsets up to this are left alone: smaller than what a sensor's own sampling is off by, and correcting them
/// would only add noise.
pub const TOLERANCE: i64 = SECOND / 20;

/// The error assumed when the device never measured its offset: the usual upper end of one-way delays.
pub const UNKNOWN_ERROR: i64 = SECOND / 2;

/// The device's clock was used, within the stated error.
pub const SYNCED: u8 = 0;
/// Between two sync points of the same clock.
pub const INTERPOLATED: u8 = 1;
/// Before the first or after the last sync point of the same clock.
pub const EXTRAPOLATED: u8 = 2;
/// By the monotonic clock: the wall clock had not been set, or was set in between.
pub const ANCHORED: u8 = 3;
/// The device's time is not known: the row has the time of receipt.
pub const UNKNOWN: u8 = 4;

/// The time of a row and how good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The row's `ts`.
    pub ts: Timestamp,
    /// How far off it may be; `None` if nothing can be said.
    pub clock_err_ns: Option<i64>,
    /// [`SYNCED`], [`INTERPOLATED`], [`EXTRAPOLATED`], [`ANCHORED`] or [`UNKNOWN`].
    pub quality: u8,
}

impl Stamp {
    /// Nothing is known but when it came.
    fn unknown(received: Timestamp) -> Self {
        Self { ts: received, clock_err_ns: None, quality: UNKNOWN }
    }
}

/// The time of a record as its entry says: by the note, or, where there is none, by [`stamp`].
#[inline]
pub fn stamp_noted(
    ts_device: Option<Timestamp>,
    received: Timestamp,
    measured: Option<(i64, u64)>,
    note: Option<&Note>,
) -> Stamp {
    match note {
        None => stamp(ts_device, received, measured),
        Some(note) => note.stamp(ts_device, received),
    }
}

/// Decides the time of a record of which the log says nothing more: a device whose clock gave no cause for it, or an
/// entry of an engine that kept no clocks.
///
/// - No time, a time before [`EARLIEST`], or one more than [`AHEAD`] after the receipt: the time of receipt,
///   quality 4. So no device can move a window or a partition beyond the engine's own time.
/// - `measured` is the device's last `(offset, round trip)` against the engine; the offset is what has to be added
///   to the device's clock, half the round trip is its error. It is applied where it is above [`TOLERANCE`] and
///   above three times its error. Otherwise the device's time stands unchanged, with that error, or with
///   [`UNKNOWN_ERROR`] when nothing was measured.
///
/// This rule stays as it is: logs depend on it.
///
/// ```
/// use device::clock::{stamp, EARLIEST};
/// let received = EARLIEST.plus(1_000_000_000);
/// assert_eq!(stamp(None, received, None).ts, received);
/// // the device's clock is 2 s behind, measured over a round trip of 10 ms
/// let at = stamp(Some(EARLIEST), received.plus(2_000_000_000), Some((2_000_000_000, 10_000_000)));
/// assert_eq!((at.ts, at.clock_err_ns), (EARLIEST.plus(2_000_000_000), Some(5_000_000)));
/// ```
pub fn stamp(ts_device: Option<Timestamp>, received: Timestamp, measured: Option<(i64, u64)>) -> Stamp {
    let unknown = Stamp::unknown(received);
    let Some(ts) = ts_device.filter(|ts| *ts >= EARLIEST) else {
        return unknown;
    };
    let (ts, err) = match measured {
        None => (ts, UNKNOWN_ERROR),
        Some((offset, roundtrip)) => {
            let err = i64::try_from(roundtrip / 2).unwrap_or(i64::MAX);
            (if applies(offset, err) { ts.plus(offset) } else { ts }, err)
        }
    };
    if ts < EARLIEST || ts > received.plus(AHEAD) {
        return unknown;
    }
    Stamp { ts, clock_err_ns: Some(err), quality: SYNCED }
}

/// Whether an offset says more than its error.
fn applies(offset: i64, err: i64) -> bool {
    offset.saturating_abs() > TOLERANCE && offset.saturating_abs() > err.saturating_mul(3)
}
