//! A set of numbers as sorted ranges.

/// Numbers as ranges, both ends inclusive: ascending, disjoint, never adjacent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<(u64, u64)>,
}

impl RangeSet {
    /// Adds all numbers from `from` to `to`.
    pub fn insert(&mut self, from: u64, to: u64) {
        // Everything that touches the new range becomes one with it.
        let first = self.ranges.partition_point(|(_, end)| end.saturating_add(1) < from);
        let last = self.ranges.partition_point(|(start, _)| *start <= to.saturating_add(1));
        let touching = self.ranges.get(first..last).unwrap_or_default();
        let from = touching.first().map_or(from, |(start, _)| from.min(*start));
        let to = touching.last().map_or(to, |(_, end)| to.max(*end));
        self.ranges.splice(first..last.max(first), [(from, to)]);
    }

    /// Takes all numbers from `from` to `to` out.
    pub fn remove(&mut self, from: u64, to: u64) {
        let first = self.ranges.partition_point(|(_, end)| *end < from);
        let last = self.ranges.partition_point(|(start, _)| *start <= to);
        let Some(cut) = self.ranges.get(first..last).filter(|cut| !cut.is_empty()) else {
            return;
        };
        let left = cut.first().filter(|(start, _)| *start < from).map(|(start, _)| (*start, from - 1));
        let right = cut.last().filter(|(_, end)| *end > to).map(|(_, end)| (to + 1, *end));
        self.ranges.splice(first..last, left.into_iter().chain(right));
    }

    /// Whether a number is in the set.
    pub fn contains(&self, number: u64) -> bool {
        self.end_of(number).is_some()
    }

    /// The last number of the range that holds `number`.
    pub fn end_of(&self, number: u64) -> Option<u64> {
        let at = self.ranges.partition_point(|(_, end)| *end < number);
        self.ranges.get(at).filter(|(start, _)| *start <= number).map(|(_, end)| *end)
    }

    /// The numbers from `from` to `to` that are not in the set, as ranges.
    pub fn gaps(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut next = from;
        let first = self.ranges.partition_point(|(_, end)| *end < from);
        for (start, end) in self.ranges.iter().skip(first) {
            if *start > to {
                break;
            }
            if *start > next {
                gaps.push((next, start - 1));
            }
            next = end.saturating_add(1);
        }
        if next <= to {
            gaps.push((next, to));
        }
        gaps
    }

    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().copied()
    }

    /// The highest number.
    pub fn last(&self) -> Option<u64> {
        self.ranges.last().map(|(_, end)| *end)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..40)) {
            let mut set = RangeSet::default();
            let mut model = std::collections::BTreeSet::new();
            for (add, from, len) in steps {
                let to = from + len;
                if add {
                    set.insert(from, to);
                    model.extend(from..=to);
                } else {
                    set.remove(from, to);
                    model.retain(|number| !(from..=to).contains(number));
                }
                let flat: Vec<u64> = set.iter().flat_map(|(from, to)| from..=to).collect();
                prop_assert_eq!(&flat, &model.iter().copied().collect::<Vec<_>>());
                prop_assert!(set.iter().zip(set.iter().skip(1)).all(|((_, end), (start, _))| end + 1 < start));
                let gaps: Vec<u64> = set.gaps(5, 50).into_iter().flat_map(|(from, to)| from..=to).collect();
                prop_assert_eq!(gaps, (5..=50).filter(|number| !model.contains(number)).collect::<Vec<_>>());
                prop_assert!((0..80).all(|number| set.contains(number) == model.contains(&number)));
            }
        }
    }
}
