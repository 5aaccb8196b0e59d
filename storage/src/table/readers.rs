//! Who reads, so that nothing is deleted under a reader of this process.
//!
//! Each snapshot of a table holds a [`Reading`]. Files that are left out of listings from some moment on may be deleted
//! when every reading that began before it has ended.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

#[derive(Debug, Default)]
struct Open {
    next: u64,
    open: BTreeSet<u64>,
}

/// The readings of a process.
#[derive(Debug, Clone, Default)]
pub(super) struct Readers {
    inner: Arc<Mutex<Open>>,
}

/// Somebody reads, from when this was made until it is dropped.
#[derive(Debug)]
pub struct Reading {
    number: u64,
    inner: Arc<Mutex<Open>>,
}

/// A moment, in the order of readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

impl Readers {
    /// Somebody begins to read.
    pub(super) fn begin(&self) -> Reading {
        let mut inner = self.inner.lock();
        let number = inner.next;
        inner.next += 1;
        inner.open.insert(number);
        Reading { number, inner: self.inner.clone() }
    }

    /// Now.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.inner.lock().next)
    }

    /// Whether nobody reads any more who began before `moment`.
    pub(super) fn none_before(&self, moment: Moment) -> bool {
        self.inner.lock().open.first().is_none_or(|first| *first >= moment.0)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.inner.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_readers_that_began_before_are_waited_for() {
        let readers = Readers::default();
        let first = readers.begin();
        let moment = readers.moment();
        let later = readers.begin();
        assert!(!readers.none_before(moment));
        drop(first);
        assert!(readers.none_before(moment));
        assert!(!readers.none_before(readers.moment()));
        drop(later);
        assert!(readers.none_before(readers.moment()));
    }
}
