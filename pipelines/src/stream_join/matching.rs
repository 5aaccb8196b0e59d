//! Which rows of two streams match. Pure; times are nanoseconds since the Unix epoch.
//!
//! Both sides are sorted by device, then by time. For the rows of the first side in that order, the rows of the second
//! that match are a range which only moves on: one walk over both.

/// Rows of one side, sorted by device and time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// The number of the device.
    pub(crate) devices: &'a [u32],
    pub(crate) times: &'a [i64],
    /// Whether the row has come since the last barrier.
    pub(crate) fresh: &'a [bool],
}

/// How far apart two rows may be: the second's time less the first's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) lower: i64,
    pub(crate) upper: i64,
}

/// A range in sorted rows that only moves on.
#[derive(Default)]
struct Range {
    from: usize,
    to: usize,
}

impl Range {
    /// Moves on to the rows of `device` from `earliest` to `latest`.
    fn advance(&mut self, rows: &[(u32, i64, u32)], device: u32, earliest: i64, latest: i64) {
        while rows.get(self.from).is_some_and(|(d, ts, _)| (*d, *ts) < (device, earliest)) {
            self.from += 1;
        }
        self.to = self.to.max(self.from);
        while rows.get(self.to).is_some_and(|(d, ts, _)| (*d, *ts) <= (device, latest)) {
            self.to += 1;
        }
    }
}

/// Calls `each` with every pair of rows that match and of which at least one is fresh: in the order of the first side,
/// then of the second.
pub(crate) fn pairs<E>(
    first: Rows<'_>,
    second: Rows<'_>,
    bound: Bound,
    mut each: impl FnMut(u32, u32) -> Result<(), E>,
) -> Result<(), E> {
    let of = |rows: Rows<'_>| -> Vec<(u32, i64, u32)> {
        let places = rows.devices.iter().zip(rows.times).zip(0..);
        places.map(|((device, ts), row)| (*device, *ts, row)).collect()
    };
    let all = of(second);
    let fresh: Vec<(u32, i64, u32)> =
        all.iter().zip(second.fresh).filter(|(_, fresh)| **fresh).map(|(row, _)| *row).collect();
    let (mut in_all, mut in_fresh) = (Range::default(), Range::default());
    for ((device, ts, row), is_fresh) in of(first).into_iter().zip(first.fresh) {
        let (rows, range) = if *is_fresh { (&all, &mut in_all) } else { (&fresh, &mut in_fresh) };
        range.advance(rows, device, ts.saturating_add(bound.lower), ts.saturating_add(bound.upper));
        for (_, _, other) in rows.get(range.from..range.to).unwrap_or_default() {
            each(row, *other)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Side {
        devices: Vec<u32>,
        times: Vec<i64>,
        fresh: Vec<bool>,
    }

    impl Side {
        fn of(rows: &[(u32, i64, bool)]) -> Self {
            let mut rows = rows.to_vec();
            rows.sort_by_key(|(device, ts, _)| (*device, *ts));
            let (devices, times) = rows.iter().map(|(device, ts, _)| (*device, *ts)).unzip();
            Self { devices, times, fresh: rows.iter().map(|row| row.2).collect() }
        }

        fn rows(&self) -> Rows<'_> {
            Rows { devices: &self.devices, times: &self.times, fresh: &self.fresh }
        }
    }

    fn found(first: &Side, second: &Side, bound: Bound) -> Vec<(u32, u32)> {
        let mut out = Vec::new();
        pairs(first.rows(), second.rows(), bound, |a, b| {
            out.push((a, b));
            Ok::<(), ()>(())
        })
        .unwrap();
        out
    }

    #[test]
    fn each_match_with_a_fresh_row_once_and_in_order() {
        let mut state = 7_u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for _ in 0..500 {
            let mut side = || -> Side {
                let count = below(30);
                let rows: Vec<_> =
                    (0..count).map(|_| (below(4) as u32, below(20) as i64 - 10, below(2) == 0)).collect();
                Side::of(&rows)
            };
            let (first, second) = (side(), side());
            let lower = below(13) as i64 - 6;
            let bound = Bound { lower, upper: lower + below(8) as i64 };
            let mut expected = Vec::new();
            for a in 0..first.times.len() {
                for b in 0..second.times.len() {
                    let apart = second.times[b] - first.times[a];
                    let near = first.devices[a] == second.devices[b] && (bound.lower..=bound.upper).contains(&apart);
                    if near && (first.fresh[a] || second.fresh[b]) {
                        expected.push((a as u32, b as u32));
                    }
                }
            }
            assert_eq!(found(&first, &second, bound), expected);
        }
    }

    #[test]
    fn the_ends_of_time_hold() {
        let ends = Side::of(&[(0, i64::MIN, true), (0, i64::MAX, true)]);
        let bound = Bound { lower: -5, upper: 5 };
        assert_eq!(found(&ends, &ends, bound), [(0, 0), (1, 1)]);
    }
}
