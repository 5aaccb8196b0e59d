//! How far each device has come: its watermark, and the frontier up to which its windows are closed.
//!
//! Watermark of a device = the greatest `ts` of its rows minus [`SLACK`], never beyond the log's time. At each barrier
//! the *frontier* of a device rises to its watermark; a device that has been silent for [`HOLD`] has its frontier
//! moved past its last row, so that what it left open is closed with what there is. Frontiers only rise, and never
//! beyond the log's time. Everything about "was this window emitted" follows from the frontier alone.
//!
//! Devices are known by dense numbers, because a number is far cheaper to group by than a name. A device's entry is
//! kept as long as there are no more than [`KEEP`]: a device that was away for a month then finds its frontier where
//! it was, and what it buffered is not late. Beyond that number, entries of devices that are silent for [`HOLD`] and
//! have nothing open are forgotten, and their greatest frontier is remembered as the one that an unknown device
//! begins with. So a forgotten device can never make a window appear twice; the price is that in a fleet that large,
//! a device that was never seen before has its rows from before that point counted as late.

use std::collections::BTreeSet;

use datafusion::common::HashMap;
use device::time::SECOND;

use crate::shared::IDLE;
use crate::window::Windows;

/// How much disorder within one device is expected: rows that arrive this much behind its newest are in time.
pub const SLACK: i64 = 2 * SECOND;

/// A device silent for so long has its open windows closed with what they hold.
pub const HOLD: i64 = 7 * 24 * 3600 * SECOND;

/// Entries of silent devices are kept up to this many: about 6 MB.
pub(crate) const KEEP: usize = 65_536;

/// What is known of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Box<str>,
    /// Greatest `ts` of its rows.
    pub(crate) newest: i64,
    /// Greatest `ts_ingest` of its rows.
    pub(crate) heard: i64,
    /// Windows that close at or before this are closed for it.
    pub(crate) frontier: i64,
}

/// The watermarks of all devices of a shard for one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watermarks {
    entries: Vec<Option<Entry>>,
    index: HashMap<Box<str>, u32>,
    free: BTreeSet<u32>,
    /// Where unknown devices begin.
    floor: i64,
    now: i64,
    /// The frontiers before the last barrier, by number.
    before: Vec<i64>,
    /// Greatest frontier of all, to skip the search for late rows where there can be none.
    highest: i64,
    /// Which device came after which, the last time: devices report in turn, so the guess is mostly right and saves
    /// hashing the name.
    next: Vec<u32>,
    last: u32,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            index: HashMap::default(),
            free: BTreeSet::new(),
            floor: i64::MIN,
            now: i64::MIN,
            before: Vec::new(),
            highest: i64::MIN,
            next: Vec::new(),
            last: 0,
        }
    }
}

impl Watermarks {
    /// From a saved state. Entries stand at their numbers; gaps are free.
    pub(crate) fn restore(entries: Vec<Option<Entry>>, floor: i64, now: i64) -> Self {
        #[cfg(feature = "planted")]
        let entries = match device::planted::is("watermark-too-high") {
            true => entries.into_iter().map(|e| e.map(|e| Entry { frontier: e.newest.max(e.frontier), ..e })).collect(),
            false => entries,
        };
        let mut this = Self { floor, now, highest: floor, ..Self::default() };
        for (id, entry) in (0..).zip(&entries) {
            match entry {
                Some(entry) => {
                    this.highest = this.highest.max(entry.frontier);
                    this.index.insert(entry.name.clone(), id);
                }
                None => {
                    this.free.insert(id);
                }
            }
        }
        this.next = vec![0; entries.len()];
        this.entries = entries;
        this
    }

    /// Of one device, which is at `frontier`.
    pub(crate) fn of_one(frontier: i64) -> Self {
        let entry = Entry { name: "".into(), newest: i64::MIN, heard: i64::MIN, frontier };
        Self::restore(vec![Some(entry)], i64::MIN, i64::MIN)
    }

    /// The one device is at `frontier` now.
    pub(crate) fn raise(&mut self, frontier: i64) {
        self.before = vec![self.frontier(0)];
        if let Some(entry) = self.entries.iter_mut().flatten().next() {
            entry.frontier = entry.frontier.max(frontier);
            self.highest = self.highest.max(entry.frontier);
        }
    }

    /// The watermark of the slowest device that others wait for, as of the last barrier: heard of within [`IDLE`], and
    /// not further than that behind the first. `None`: there is none.
    pub(crate) fn slowest(&self) -> Option<i64> {
        let live = self.entries.iter().flatten().filter(|e| self.now.saturating_sub(e.heard) < IDLE);
        let marks: Vec<i64> = live.map(|e| e.newest.saturating_sub(SLACK).min(self.now)).collect();
        let first = marks.iter().copied().max()?;
        marks.into_iter().filter(|mark| *mark >= first.saturating_sub(IDLE)).min()
    }

    /// Entries by number.
    pub(crate) fn entries(&self) -> &[Option<Entry>] {
        &self.entries
    }

    /// Where unknown devices begin.
    pub(crate) fn floor(&self) -> i64 {
        self.floor
    }

    /// The log's time at the last barrier.
    pub(crate) fn now(&self) -> i64 {
        self.now
    }

    /// Greatest frontier of any device.
    pub(crate) fn highest(&self) -> i64 {
        self.highest
    }

    /// Devices known.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// The name behind a number.
    pub(crate) fn name(&self, id: u32) -> Option<&str> {
        self.entries.get(id as usize)?.as_ref().map(|entry| &*entry.name)
    }

    /// The frontier of a device; unknown numbers stand where unknown devices begin.
    pub(crate) fn frontier(&self, id: u32) -> i64 {
        match self.entries.get(id as usize) {
            Some(Some(entry)) => entry.frontier,
            _ => self.floor,
        }
    }

    /// The frontier of a device before the last [`Watermarks::advance`]. What closed then closed once.
    pub(crate) fn frontier_before(&self, id: u32) -> i64 {
        self.before.get(id as usize).copied().unwrap_or(self.floor)
    }

    /// Takes note of a stored row and gives the device's number.
    pub(crate) fn observe(&mut self, name: &str, ts: i64, ingest: i64) -> u32 {
        let id = self.number(name);
        if let Some(Some(entry)) = self.entries.get_mut(id as usize) {
            entry.newest = entry.newest.max(ts);
            entry.heard = entry.heard.max(ingest);
        }
        id
    }

    fn number(&mut self, name: &str) -> u32 {
        if self.name(self.last) == Some(name) {
            return self.last;
        }
        let guess = self.next.get(self.last as usize).copied().unwrap_or(0);
        let id = if self.name(guess) == Some(name) { guess } else { self.find_or_add(name) };
        if let Some(next) = self.next.get_mut(self.last as usize) {
            *next = id;
        }
        self.last = id;
        id
    }

    fn find_or_add(&mut self, name: &str) -> u32 {
        if let Some(id) = self.index.get(name) {
            return *id;
        }
        let name: Box<str> = name.into();
        let entry = Entry { name: name.clone(), newest: i64::MIN, heard: i64::MIN, frontier: self.floor };
        // The smallest free number, so that a restored process gives the same ones.
        let id = match self.free.pop_first() {
            Some(id) => id,
            None => {
                self.entries.push(None);
                self.next.push(0);
                u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
            }
        };
        if let Some(slot) = self.entries.get_mut(id as usize) {
            *slot = Some(entry);
        }
        self.index.insert(name, id);
        id
    }

    /// At a barrier: the log's time is `now`.
    pub(crate) fn advance(&mut self, now: i64, windows: Windows) {
        self.now = self.now.max(now);
        let now = self.now;
        let frontiers = self.entries.iter().map(|entry| entry.as_ref().map_or(self.floor, |e| e.frontier));
        self.before = frontiers.collect();
        for entry in self.entries.iter_mut().flatten() {
            let mut reached = entry.newest.saturating_sub(SLACK);
            if now.saturating_sub(entry.heard) >= HOLD {
                reached = reached.max(windows.frontier_after(entry.newest));
            }
            entry.frontier = entry.frontier.max(reached.min(now));
            self.highest = self.highest.max(entry.frontier);
        }
    }

    /// At a barrier of marks that know no windows (`heard.rs`): notes who has been silent for [`HOLD`], and since when.
    pub(crate) fn note_silence(&mut self, now: i64) {
        self.now = self.now.max(now);
        for entry in self.entries.iter_mut().flatten() {
            if self.now.saturating_sub(entry.heard) >= HOLD {
                entry.frontier = entry.frontier.max(entry.newest);
            }
        }
    }

    /// The number of a device that is known.
    pub(crate) fn id(&self, name: &str) -> Option<u32> {
        self.index.get(name).copied()
    }

    /// Whether [`Watermarks::forget`] has anything to do.
    pub(crate) fn crowded(&self, keep: usize) -> bool {
        self.len() > keep
    }

    /// Forgets devices that are silent for [`HOLD`] and not `open`, until no more than `keep` are left. Longest silent
    /// first.
    pub(crate) fn forget(&mut self, keep: usize, open: &BTreeSet<u32>) {
        let mut silent: Vec<(i64, u32)> = (0..)
            .zip(&self.entries)
            .filter_map(|(id, entry)| {
                let entry = entry.as_ref()?;
                let silent = self.now.saturating_sub(entry.heard) >= HOLD;
                (silent && !open.contains(&id)).then_some((entry.heard, id))
            })
            .collect();
        silent.sort_unstable();
        for (_, id) in silent.into_iter().take(self.len().saturating_sub(keep)) {
            if let Some(entry) = self.entries.get_mut(id as usize).and_then(Option::take) {
                self.floor = self.floor.max(entry.frontier);
                self.index.remove(&entry.name);
                self.free.insert(id);
            }
        }
        self.highest = self.highest.max(self.floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60 * SECOND;

    fn windows() -> Windows {
        Windows::tumbling(MINUTE, 30 * SECOND)
    }

    #[test]
    fn a_frontier_follows_the_rows_but_not_beyond_the_log() {
        let mut marks = Watermarks::default();
        let a = marks.observe("a", 100 * SECOND, 100 * SECOND);
        let b = marks.observe("b", 500 * SECOND, 100 * SECOND);
        assert_eq!(marks.frontier(a), i64::MIN, "nothing moves between barriers");
        marks.advance(200 * SECOND, windows());
        assert_eq!(marks.frontier(a), 98 * SECOND);
        assert_eq!(marks.frontier(b), 200 * SECOND, "a clock ahead of the log moves nothing ahead of the log");
        marks.observe("a", 50 * SECOND, 210 * SECOND);
        marks.advance(210 * SECOND, windows());
        assert_eq!(marks.frontier(a), 98 * SECOND, "an old row moves nothing back");
        assert_eq!(marks.highest(), 210 * SECOND);
        marks.advance(100 * SECOND, windows());
        assert_eq!(marks.now(), 210 * SECOND, "the log's time does not go back");
    }

    #[test]
    fn silence_for_hold_closes_what_was_left_and_nothing_later() {
        let mut marks = Watermarks::default();
        let a = marks.observe("a", 100 * SECOND, 100 * SECOND);
        marks.advance(100 * SECOND + HOLD - 1, windows());
        assert!(!windows().closed(MINUTE, marks.frontier(a)));
        marks.advance(100 * SECOND + HOLD, windows());
        assert!(windows().closed(MINUTE, marks.frontier(a)));
        assert!(!windows().closed(2 * MINUTE, marks.frontier(a)), "what it buffered meanwhile is not late");
    }

    #[test]
    fn hold_does_not_close_a_window_that_is_longer_than_hold() {
        let mut marks = Watermarks::default();
        let windows = Windows::tumbling(5 * HOLD, 0);
        let a = marks.observe("a", 100 * SECOND, 100 * SECOND);
        marks.advance(100 * SECOND + HOLD, windows);
        assert!(!windows.closed(0, marks.frontier(a)));
        marks.advance(5 * HOLD + 100 * SECOND, windows);
        assert!(windows.closed(0, marks.frontier(a)));
    }

    #[test]
    fn a_forgotten_device_begins_where_it_cannot_repeat_a_window() {
        let mut marks = Watermarks::default();
        let a = marks.observe("a", 100 * SECOND, 100 * SECOND);
        let b = marks.observe("b", 200 * SECOND, 200 * SECOND);
        let now = 300 * SECOND + HOLD;
        let c = marks.observe("c", now, now);
        marks.advance(now, windows());
        let left = marks.frontier(a);
        marks.forget(2, &BTreeSet::from([b]));
        assert_eq!((marks.name(a), marks.name(b), marks.name(c)), (None, Some("b"), Some("c")));
        assert_eq!(marks.floor(), left);
        // The number is given again, the frontier is kept.
        assert_eq!(marks.observe("d", 0, now), a);
        assert_eq!(marks.frontier(a), left);
        marks.forget(2, &BTreeSet::new());
        assert_eq!(marks.len(), 2, "b goes, it is silent and no longer open");
        assert_eq!(marks.name(b), None);
    }

    #[test]
    fn a_restored_table_goes_on_alike() {
        let mut marks = Watermarks::default();
        for name in ["a", "b", "c"] {
            marks.observe(name, 100 * SECOND, 100 * SECOND);
        }
        marks.advance(100 * SECOND + HOLD, windows());
        marks.forget(1, &BTreeSet::from([1]));
        let mut copy = Watermarks::restore(marks.entries().to_vec(), marks.floor(), marks.now());
        for (name, ts) in [("x", 5), ("b", 7), ("y", 9), ("x", 6), ("z", 1)] {
            assert_eq!(marks.observe(name, ts, ts), copy.observe(name, ts, ts), "{name}");
        }
        marks.advance(101 * SECOND + HOLD, windows());
        copy.advance(101 * SECOND + HOLD, windows());
        assert_eq!(marks.entries(), copy.entries());
        assert_eq!((marks.floor(), marks.highest()), (copy.floor(), copy.highest()));
    }
}
