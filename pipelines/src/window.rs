//! When a window ends, is due, and is closed for a device. Pure; times are nanoseconds since the Unix epoch.
//!
//! A window is `[start, start + size)`. It *closes* for a device when that device's frontier (`watermark.rs`) reaches
//! its end plus the lateness. It is *due* when the log's own time has, and since a frontier never runs ahead of the
//! log, a window that is not due is closed for nobody.

/// The tumbling windows of one pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Windows {
    size: i64,
    lateness: i64,
}

impl Windows {
    /// `None` for a size that is no length of time.
    pub(crate) fn new(size: i64, lateness: i64) -> Option<Self> {
        (size > 0 && lateness >= 0).then_some(Self { size, lateness })
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

    /// The least frontier that closes the window of `ts`, wherever windows begin, and not the one after it.
    pub(crate) fn frontier_after(self, ts: i64) -> i64 {
        ts.saturating_add(self.size).saturating_add(self.lateness)
    }

    /// Start of the window of `ts` for windows aligned to the epoch.
    pub(crate) fn start(self, ts: i64) -> i64 {
        ts.saturating_sub(ts.rem_euclid(self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_closes_at_its_end_plus_lateness() {
        let windows = Windows::new(60, 30).unwrap();
        assert!(!windows.closed(120, 209));
        assert!(windows.closed(120, 210));
        assert_eq!(windows.end(-60), 0);
    }

    #[test]
    fn starts_are_aligned_also_before_the_epoch() {
        let windows = Windows::new(60, 0).unwrap();
        for (ts, start) in [(0, 0), (59, 0), (60, 60), (-1, -60), (-60, -60), (-61, -120)] {
            assert_eq!(windows.start(ts), start, "{ts}");
        }
    }

    #[test]
    fn the_frontier_after_a_row_closes_its_window_only() {
        let windows = Windows::new(60, 30).unwrap();
        for ts in [0, 1, 59, -1, -60, 61] {
            let start = windows.start(ts);
            let frontier = windows.frontier_after(ts);
            assert!(windows.closed(start, frontier), "{ts}");
            assert!(!windows.closed(start + 60, frontier), "{ts}");
        }
    }

    #[test]
    fn the_ends_of_time_hold() {
        let windows = Windows::new(i64::MAX, i64::MAX).unwrap();
        assert!(!windows.closed(i64::MAX, i64::MAX - 1));
        assert_eq!(windows.end(i64::MAX), i64::MAX);
        assert!(Windows::new(0, 0).is_none());
        assert!(Windows::new(1, -1).is_none());
    }
}
