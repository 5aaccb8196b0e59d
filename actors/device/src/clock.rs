//! Which time a row gets: the device's own, corrected where its error is known, or the time of receipt.
//!
//! Pure arithmetic on one record. Filtering of clock samples over time, drift, and corrections that come after
//! the fact are deliberately absent: they need state that no part of the engine keeps yet.

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
/// The device's time is not known: the row has the time of receipt.
pub const UNKNOWN: u8 = 4;

/// The time of a row and how good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The row's `ts`.
    pub ts: Timestamp,
    /// How far off it may be; `None` if nothing can be said.
    pub clock_err_ns: Option<i64>,
    /// [`SYNCED`] or [`UNKNOWN`].
    pub quality: u8,
}

/// Decides the time of a record.
///
/// - No time, a time before [`EARLIEST`], or one more than [`AHEAD`] after the receipt: the time of receipt,
///   quality 4. So no device can move a window or a partition beyond the engine's own time.
/// - `measured` is the device's last `(offset, round trip)` against the engine; the offset is what has to be added
///   to the device's clock, half the round trip is its error. It is applied where it is above [`TOLERANCE`] and
///   above three times its error. Otherwise the device's time stands unchanged, with that error, or with
///   [`UNKNOWN_ERROR`] when nothing was measured.
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
    let unknown = Stamp { ts: received, clock_err_ns: None, quality: UNKNOWN };
    let Some(ts) = ts_device.filter(|ts| *ts >= EARLIEST) else {
        return unknown;
    };
    let (ts, err) = match measured {
        None => (ts, UNKNOWN_ERROR),
        Some((offset, roundtrip)) => {
            let err = i64::try_from(roundtrip / 2).unwrap_or(i64::MAX);
            let apply = offset.saturating_abs() > TOLERANCE && offset.saturating_abs() > err.saturating_mul(3);
            (if apply { ts.plus(offset) } else { ts }, err)
        }
    };
    if ts < EARLIEST || ts > received.plus(AHEAD) {
        return unknown;
    }
    Stamp { ts, clock_err_ns: Some(err), quality: SYNCED }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = SECOND / 1000;
    const NOW: Timestamp = Timestamp(1_750_000_000 * SECOND);

    fn check(ts: Option<i64>, measured: Option<(i64, u64)>, expected: (i64, Option<i64>, u8)) {
        let got = stamp(ts.map(|ts| NOW.plus(ts)), NOW, measured);
        assert_eq!((got.ts.since(NOW), got.clock_err_ns, got.quality), expected, "{ts:?} {measured:?}");
    }

    #[test]
    fn the_device_is_believed_within_reason() {
        check(None, None, (0, None, UNKNOWN));
        check(Some(-7 * 86_400 * SECOND), None, (-7 * 86_400 * SECOND, Some(UNKNOWN_ERROR), SYNCED));
        check(Some(5 * SECOND), None, (5 * SECOND, Some(UNKNOWN_ERROR), SYNCED));
        check(Some(5 * SECOND + 1), None, (0, None, UNKNOWN));
        check(Some(-NOW.0), None, (0, None, UNKNOWN));
        check(Some(EARLIEST.0 - NOW.0), None, (EARLIEST.0 - NOW.0, Some(UNKNOWN_ERROR), SYNCED));
        check(Some(EARLIEST.0 - NOW.0 - 1), None, (0, None, UNKNOWN));
        check(Some(i64::MAX - NOW.0), Some((i64::MAX, 0)), (0, None, UNKNOWN));
    }

    #[test]
    fn a_measured_offset_is_applied_where_it_says_more_than_its_error() {
        check(Some(-SECOND), Some((50 * MS, 0)), (-SECOND, Some(0), SYNCED));
        check(Some(-SECOND), Some((51 * MS, 20 * MS as u64)), (-949 * MS, Some(10 * MS), SYNCED));
        check(Some(-SECOND), Some((-51 * MS, 20 * MS as u64)), (-1051 * MS, Some(10 * MS), SYNCED));
        check(Some(-SECOND), Some((90 * MS, 60 * MS as u64)), (-SECOND, Some(30 * MS), SYNCED));
        check(Some(-SECOND), Some((7 * SECOND, 0)), (0, None, UNKNOWN));
        check(Some(-SECOND), Some((i64::MIN, u64::MAX)), (-SECOND, Some(i64::MAX), SYNCED));
    }
}
