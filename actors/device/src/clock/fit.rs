//! Lines through points, in integers: the same on every machine and in every replay.

use crate::time::SECOND;

/// What a rate (ns per second) makes of a span of time (ns), held at the ends of the range.
pub(super) fn scaled(rate: i64, away: i64) -> i64 {
    held(i128::from(rate) * i128::from(away) / i128::from(SECOND))
}

/// The rate of a line that rises by `rise` within `run` ns; `None` if `run` is not positive.
pub(super) fn rate(rise: i64, run: i64) -> Option<i64> {
    (run > 0).then(|| held(i128::from(rise) * i128::from(SECOND) / i128::from(run)))
}

fn held(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// The Theil-Sen slope in ns per second: the median of the slopes of all pairs. Up to 29 % of the points may be
/// anywhere without moving it far. The points ascend by time.
pub(super) fn slope(points: &[(i64, i64)]) -> Option<i64> {
    let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
    for (at, (t0, y0)) in points.iter().enumerate() {
        for (t1, y1) in points.get(at + 1..).unwrap_or_default() {
            slopes.extend(rate(y1.saturating_sub(*y0), t1.saturating_sub(*t0)));
        }
    }
    median(&mut slopes)
}

/// What the slope of one line can be that passes all points within their errors: at least, at most.
pub(super) fn bounds(points: &[(i64, i64)], errs: &[i64]) -> (i64, i64) {
    let (mut low, mut high) = (i64::MIN, i64::MAX);
    let all: Vec<_> = points.iter().zip(errs).collect();
    for (at, ((t0, y0), e0)) in all.iter().enumerate() {
        for ((t1, y1), e1) in all.get(at + 1..).unwrap_or_default() {
            let (rise, run, err) = (y1.saturating_sub(*y0), t1.saturating_sub(*t0), e0.saturating_add(**e1));
            low = low.max(rate(rise.saturating_sub(err), run).unwrap_or(i64::MIN));
            high = high.min(rate(rise.saturating_add(err), run).unwrap_or(i64::MAX));
        }
    }
    (low, high)
}

/// The value in the middle; of an even number the lower of the two.
fn median(values: &mut [i64]) -> Option<i64> {
    if values.is_empty() {
        return None;
    }
    let middle = (values.len() - 1) / 2;
    let (_, value, _) = values.select_nth_unstable(middle);
    Some(*value)
}
