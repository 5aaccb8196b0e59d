//! When a window ends, is due, and is closed for a device. Pure; times are nanoseconds since the Unix epoch.
//!
//! A window is `[start, start + size)`; windows that hop begin every `slide`, overlap, and are made of *panes*, parts
//! of equal length of which each is wholly in a window or not at all. Of a session, `size` is the gap that ends it,
//! and its last record stands for its start: it ends a gap after that. A window *closes* for a device when that device's frontier (`watermark.rs`) reaches
//! its end plus the lateness. It is *due* when the log's own time has, and since a frontier never runs ahead of the
//! log, a window that is not due is closed for nobody.

use sql::{Kind, Window};

/// The windows of one pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Windows {
    kind: Kind,
    size: i64,
    lateness: i64,
}

impl Windows {
    /// `None` for lengths that are none.
    pub(crate) fn new(window: &Window, lateness: i64) -> Option<Self> {
        let Window { kind, size_ns: size, .. } = *window;
        let slides = match kind {
            Kind::Hop { slide_ns } => slide_ns > 0 && slide_ns <= size,
            Kind::Tumble | Kind::Session => true,
        };
        (slides && size > 0 && lateness >= 0).then_some(Self { kind, size, lateness })
    }

    /// Windows of one size.
    #[cfg(test)]
    pub(crate) fn tumbling(size_ns: i64, lateness: i64) -> Self {
        let window = Window { size_ns, kind: Kind::Tumble, group: "w".to_owned(), device: None };
        Self::new(&window, lateness).unwrap()
    }

    /// How windows follow each other.
    pub(crate) fn kind(self) -> Kind {
        self.kind
    }

    /// Length of the panes, in nanoseconds.
    pub(crate) fn pane_ns(self) -> i64 {
        self.kind.pane_ns(self.size)
    }

    /// From one start to the next.
    fn slide(self) -> i64 {
        match self.kind {
            Kind::Hop { slide_ns } => slide_ns,
            Kind::Tumble | Kind::Session => self.size,
        }
    }

    /// Starts of the windows that hold the pane which begins at `pane`, ascending.
    pub(crate) fn of_pane(self, pane: i64) -> impl Iterator<Item = i64> {
        let slide = self.slide();
        let into = pane.rem_euclid(slide);
        let count = 1 + (self.size - into - 1) / slide;
        (0..count).rev().map(move |back| pane.saturating_sub(into).saturating_sub(back * slide))
    }

    /// Start of the first of them.
    pub(crate) fn first_of_pane(self, pane: i64) -> i64 {
        self.of_pane(pane).next().unwrap_or(pane)
    }

    /// Start of the last of them: once it is closed, they all are.
    pub(crate) fn last_of_pane(self, pane: i64) -> i64 {
        pane.saturating_sub(pane.rem_euclid(self.slide()))
    }

    /// Just after the window's last instant.
    pub(crate) fn end(self, start: i64) -> i64 {
        start.saturating_add(self.size)
    }

    /// The frontier at which the window closes.
    pub(crate) fn closes_at(self, start: i64) -> i64 {
        self.end(start).saturating_add(self.lateness)
    }

    /// Whether the window is closed at `frontier`: then its result is out and a row for it is late.
    pub(crate) fn closed(self, start: i64, frontier: i64) -> bool {
        frontier >= self.closes_at(start)
    }

    /// No window that begins later than this is closed at `frontier`.
    pub(crate) fn last_closed(self, frontier: i64) -> i64 {
        frontier.saturating_sub(self.size).saturating_sub(self.lateness)
    }

    /// The least frontier that closes the window of `ts`, wherever windows begin, and not the one after it.
    pub(crate) fn frontier_after(self, ts: i64) -> i64 {
        ts.saturating_add(self.size).saturating_add(self.lateness)
    }

    /// Start of the last window of `ts`; of a session, which is not known by its record alone, `ts`.
    pub(crate) fn start(self, ts: i64) -> i64 {
        match self.kind {
            Kind::Tumble | Kind::Hop { .. } => self.last_of_pane(ts),
            Kind::Session => ts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(kind: Kind, size_ns: i64, lateness: i64) -> Option<Windows> {
        Windows::new(&Window { size_ns, kind, group: "w".to_owned(), device: None }, lateness)
    }

    #[test]
    fn a_window_closes_at_its_end_plus_lateness() {
        let windows = windows(Kind::Tumble, 60, 30).unwrap();
        assert!(!windows.closed(120, 209));
        assert!(windows.closed(120, 210));
        assert_eq!(windows.end(-60), 0);
    }

    #[test]
    fn starts_are_aligned_also_before_the_epoch() {
        let windows = windows(Kind::Tumble, 60, 0).unwrap();
        for (ts, start) in [(0, 0), (59, 0), (60, 60), (-1, -60), (-60, -60), (-61, -120)] {
            assert_eq!(windows.start(ts), start, "{ts}");
        }
    }

    #[test]
    fn the_frontier_after_a_row_closes_its_window_only() {
        let windows = windows(Kind::Tumble, 60, 30).unwrap();
        for ts in [0, 1, 59, -1, -60, 61] {
            let start = windows.start(ts);
            let frontier = windows.frontier_after(ts);
            assert!(windows.closed(start, frontier), "{ts}");
            assert!(!windows.closed(start + 60, frontier), "{ts}");
        }
    }

    #[test]
    fn panes_are_in_each_window_that_holds_them() {
        for (slide_ns, size) in [(60, 300), (60, 90), (40, 60), (7, 10), (60, 60)] {
            let hop = windows(Kind::Hop { slide_ns }, size, 0).unwrap();
            let length = Kind::Hop { slide_ns }.pane_ns(size);
            for pane in (-600..600).step_by(length as usize) {
                let found: Vec<i64> = hop.of_pane(pane).collect();
                let all = (-2000 / slide_ns..2000 / slide_ns).map(|n| n * slide_ns);
                let expected: Vec<i64> = all.filter(|s| *s <= pane && pane + length <= *s + size).collect();
                assert_eq!(found, expected, "{slide_ns} {size} {pane}");
                assert_eq!((hop.first_of_pane(pane), hop.last_of_pane(pane)), (found[0], found[found.len() - 1]));
                let touched = (-2000 / slide_ns..2000 / slide_ns).map(|n| n * slide_ns);
                assert_eq!(touched.filter(|s| *s < pane + length && pane < *s + size).count(), found.len());
            }
        }
        assert!(windows(Kind::Hop { slide_ns: 61 }, 60, 0).is_none());
        assert!(windows(Kind::Hop { slide_ns: 0 }, 60, 0).is_none());
        assert_eq!(windows(Kind::Tumble, 60, 0).unwrap().of_pane(-60).collect::<Vec<_>>(), [-60]);
    }

    #[test]
    fn the_ends_of_time_hold() {
        let long = windows(Kind::Tumble, i64::MAX, i64::MAX).unwrap();
        assert!(!long.closed(i64::MAX, i64::MAX - 1));
        assert_eq!(long.end(i64::MAX), i64::MAX);
        assert!(windows(Kind::Tumble, 0, 0).is_none());
        assert!(windows(Kind::Tumble, 1, -1).is_none());
    }
}
