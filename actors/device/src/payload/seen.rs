//! Which declared fields a record has had already: a duplicate key is an error, never a choice.

/// A set of column indexes that allocates only for streams of more than 256 columns.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    low: [u64; 4],
    more: Vec<u16>,
}

impl Seen {
    pub(crate) fn clear(&mut self) {
        self.low = [0; 4];
        self.more.clear();
    }

    /// Adds a column; false if it was there.
    #[inline]
    pub(crate) fn insert(&mut self, column: u16) -> bool {
        match self.low.get_mut(usize::from(column >> 6)) {
            Some(word) => {
                let bit = 1 << (column & 63);
                let new = *word & bit == 0;
                *word |= bit;
                new
            }
            None => match self.more.binary_search(&column) {
                Ok(_) => false,
                Err(at) => {
                    self.more.insert(at, column);
                    true
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_counts_once() {
        let mut seen = Seen::default();
        for column in [0, 63, 64, 255, 256, 5000, 300] {
            assert!(seen.insert(column), "{column}");
            assert!(!seen.insert(column), "{column}");
        }
        seen.clear();
        assert!(seen.insert(0) && seen.insert(5000));
    }
}
