//! Points in time as values. Nothing here reads a clock.

/// Nanoseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

/// One second in nanoseconds.
pub const SECOND: i64 = 1_000_000_000;

impl Timestamp {
    /// This time moved by `nanos`, held at the ends of the range.
    pub fn plus(self, nanos: i64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// Nanoseconds from `earlier` to this time, held at the ends of the range.
    pub fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}
