//! Sets of sequence numbers as sorted ranges, both ends inclusive.
//!
//! Acks arrive as "everything up to" plus a few ranges, so a set of millions of numbers is a handful of ranges
//! here. Absent: bitmaps; the device side never needs to know single numbers inside a range.

/// A set of numbers, kept as sorted ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<(u64, u64)>,
}

impl RangeSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `from..=to`; nothing happens if `from > to`.
    pub fn insert(&mut self, from: u64, to: u64) {
        if from > to {
            return;
        }
        // All ranges that overlap or touch the new one melt into it.
        let start = self.ranges.partition_point(|&(_, end)| end.saturating_add(1) < from);
        let end = self.ranges.partition_point(|&(begin, _)| begin <= to.saturating_add(1));
        let mut merged = (from, to);
        for &(a, b) in self.ranges.get(start..end).unwrap_or_default() {
            merged = (merged.0.min(a), merged.1.max(b));
        }
        self.ranges.splice(start..end.max(start), [merged]);
    }

    /// Whether `number` is in the set.
    pub fn contains(&self, number: u64) -> bool {
        self.covers(number, number)
    }

    /// Whether all of `from..=to` is in the set.
    pub fn covers(&self, from: u64, to: u64) -> bool {
        if from > to {
            return true;
        }
        let at = self.ranges.partition_point(|&(_, end)| end < from);
        self.ranges.get(at).is_some_and(|&(begin, end)| begin <= from && to <= end)
    }

    /// The first stretch inside `from..=to` that is not in the set.
    pub fn first_gap(&self, from: u64, to: u64) -> Option<(u64, u64)> {
        if from > to {
            return None;
        }
        let at = self.ranges.partition_point(|&(_, end)| end < from);
        let mut begin = from;
        for &(a, b) in self.ranges.get(at..).unwrap_or_default() {
            if begin < a {
                return Some((begin, to.min(a - 1)));
            }
            if b >= to {
                return None;
            }
            begin = b + 1;
        }
        Some((begin, to))
    }

    /// All stretches inside `from..=to` that are not in the set.
    pub fn gaps(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut begin = from;
        while let Some(gap) = self.first_gap(begin, to) {
            gaps.push(gap);
            if gap.1 >= to {
                break;
            }
            begin = gap.1 + 1;
        }
        gaps
    }

    /// How many numbers of `from..=to` are not in the set.
    pub fn missing(&self, from: u64, to: u64) -> u64 {
        self.gaps(from, to).into_iter().map(|(a, b)| b - a + 1).sum()
    }

    /// The highest number in the set.
    pub fn max(&self) -> Option<u64> {
        self.ranges.last().map(|&(_, end)| end)
    }

    /// How many numbers are in the set.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|&(a, b)| b - a + 1).sum()
    }

    /// Whether the set holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(inserts in prop::collection::vec((0u64..60, 0u64..8), 0..30), from in 0u64..70, len in 0u64..20) {
            let mut ranges = RangeSet::new();
            let mut model = BTreeSet::new();
            for (begin, len) in inserts {
                ranges.insert(begin, begin + len);
                model.extend(begin..=begin + len);
            }
            let to = from + len;
            let missing: Vec<u64> = (from..=to).filter(|n| !model.contains(n)).collect();
            let gaps: Vec<u64> = ranges.gaps(from, to).into_iter().flat_map(|(a, b)| a..=b).collect();
            prop_assert_eq!(&gaps, &missing);
            prop_assert_eq!(ranges.missing(from, to), missing.len() as u64);
            prop_assert_eq!(ranges.covers(from, to), missing.is_empty());
            prop_assert_eq!(ranges.len(), model.len() as u64);
            prop_assert_eq!(ranges.max(), model.last().copied());
            let listed: Vec<(u64, u64)> = ranges.iter().collect();
            prop_assert!(listed.windows(2).all(|w| w[0].1 + 1 < w[1].0), "ranges touch: {:?}", listed);
        }
    }

    #[test]
    fn holds_at_the_end_of_the_number_space() {
        let mut ranges = RangeSet::new();
        ranges.insert(5, u64::MAX);
        assert_eq!(ranges.first_gap(0, u64::MAX), Some((0, 4)));
        assert_eq!(ranges.gaps(0, u64::MAX), vec![(0, 4)]);
        ranges.insert(0, 4);
        assert!(ranges.covers(0, u64::MAX));
    }
}
