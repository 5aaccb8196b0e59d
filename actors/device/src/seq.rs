//! Numbers that order and name things: epochs, sequence numbers, log positions, barriers.

use std::fmt;

/// Highest sequence number and highest epoch: both fit a signed 64-bit column.
pub const MAX_SEQ: u64 = i64::MAX as u64;

/// A random 63-bit number that names one numbering space of one device. Epochs have no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// A sequence number inside an epoch. Frames count from 1; plain records may begin at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seq(pub u64);

/// The place of a record in a shard's log: consecutive from 1. 0 means "before the first record".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u64);

impl Position {
    /// The place after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The number of a barrier of a shard: consecutive from 1. 0 means "before the first barrier".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Barrier(pub u64);

impl Barrier {
    /// The barrier after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012}", self.0)
    }
}
