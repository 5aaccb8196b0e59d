//! The log in memory: for tests and simulation. It can be made to fail, as a disk does.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use device::id::ShardId;
use device::seq::Position;
use parking_lot::Mutex;

use super::{Bounds, LogError, ShardLog};

/// A [`ShardLog`] that lives as long as the value.
#[derive(Debug, Default)]
pub struct MemoryLog {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    shards: BTreeMap<ShardId, Shard>,
    failing: bool,
    failed: bool,
}

#[derive(Debug, Default)]
struct Shard {
    truncated: Position,
    records: VecDeque<Bytes>,
}

impl Shard {
    fn bounds(&self) -> Bounds {
        Bounds { first: self.truncated.next(), last: Position(self.truncated.0 + self.records.len() as u64) }
    }

    fn index(&self, position: Position) -> usize {
        position.0.saturating_sub(self.truncated.0 + 1) as usize
    }
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on every append fails (true) or succeeds again (false), as on a disk that is full.
    pub fn set_failing(&self, failing: bool) {
        self.inner.lock().failing = failing;
    }
}

impl ShardLog for MemoryLog {
    fn append(&self, shard: ShardId, position: Position, record: &Bytes) -> Result<(), LogError> {
        let mut inner = self.inner.lock();
        if inner.failing {
            inner.failed = true;
            return Err(LogError::Unavailable("told to fail".to_owned()));
        }
        inner.failed = false;
        let log = inner.shards.entry(shard).or_default();
        let Bounds { first, last } = log.bounds();
        if position < first {
            return Err(LogError::Truncated { shard, position, first });
        }
        if position > last.next() {
            return Err(LogError::Gap { shard, position, last });
        }
        match log.records.get(log.index(position)) {
            Some(there) if there == record => Ok(()),
            Some(_) => Err(LogError::Conflict { shard, position }),
            None => {
                log.records.push_back(record.clone());
                Ok(())
            }
        }
    }

    fn read(&self, shard: ShardId, from: Position, max_bytes: usize) -> Result<Vec<(Position, Bytes)>, LogError> {
        let inner = self.inner.lock();
        let Some(log) = inner.shards.get(&shard) else { return Ok(Vec::new()) };
        let Bounds { first, .. } = log.bounds();
        if from < first {
            return Err(LogError::Truncated { shard, position: from, first });
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        for (offset, record) in log.records.iter().skip(log.index(from)).enumerate() {
            if !taken.is_empty() && bytes + record.len() > max_bytes {
                break;
            }
            bytes += record.len();
            taken.push((Position(from.0 + offset as u64), record.clone()));
        }
        Ok(taken)
    }

    fn bounds(&self, shard: ShardId) -> Result<Bounds, LogError> {
        let inner = self.inner.lock();
        Ok(inner.shards.get(&shard).map_or(Bounds { first: Position(1), last: Position(0) }, Shard::bounds))
    }

    fn truncate(&self, shard: ShardId, upto: Position) -> Result<(), LogError> {
        let mut inner = self.inner.lock();
        let log = inner.shards.entry(shard).or_default();
        while log.truncated < upto && log.records.pop_front().is_some() {
            log.truncated = log.truncated.next();
        }
        Ok(())
    }

    fn healthy(&self) -> bool {
        !self.inner.lock().failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::suite;

    #[test]
    fn passes_the_suite() {
        suite::run(MemoryLog::new);
    }

    #[test]
    fn an_append_repeated_after_failures_counts_once() {
        let log = MemoryLog::new();
        suite::fill(&log, ShardId(0), 1..=3);
        log.set_failing(true);
        assert!(log.append(ShardId(0), Position(4), &suite::record(4)).unwrap_err().is_retriable());
        assert!(!log.healthy());
        log.set_failing(false);
        suite::fill(&log, ShardId(0), 4..=5);
        assert!(log.healthy());
        suite::expect(&log, ShardId(0), 1..=5);
    }
}
