//! What every [`ShardLog`] must do, whatever it stands on. Each adapter runs all of it.

use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use device::id::ShardId;
use device::seq::Position;

use super::{Bounds, LogError, ShardLog};

/// The record that stands at `position` in all of these tests: of different lengths, some empty, some large.
pub(crate) fn record(position: u64) -> Bytes {
    let len = match position % 7 {
        0 => 0,
        3 => 70_000,
        other => other * 113,
    };
    Bytes::from((0..len).map(|at| (at * 31 + position * 7) as u8).collect::<Vec<_>>())
}

pub(crate) fn fill(log: &dyn ShardLog, shard: ShardId, positions: RangeInclusive<u64>) {
    for position in positions {
        log.append(shard, Position(position), &record(position)).unwrap();
    }
}

/// Reads the whole log in small bites and compares it with the records of `positions`.
pub(crate) fn expect(log: &dyn ShardLog, shard: ShardId, positions: RangeInclusive<u64>) {
    let bounds = Bounds { first: Position(*positions.start()), last: Position(*positions.end()) };
    assert_eq!(log.bounds(shard).unwrap(), bounds);
    let mut next = bounds.first;
    while next <= bounds.last {
        let bite = log.read(shard, next, 1_000).unwrap();
        assert!(!bite.is_empty(), "nothing at {next}");
        for (position, bytes) in bite {
            assert_eq!(position, next);
            assert!(bytes == record(position.0), "another record at {position}");
            next = next.next();
        }
    }
    assert!(log.read(shard, next, 1_000).unwrap().is_empty());
}

pub(crate) fn run<L: ShardLog + 'static>(open: impl Fn() -> L) {
    an_empty_log(&open());
    appends_are_read_back(&open());
    shards_are_apart(&open());
    wrong_positions_are_refused(&open());
    repeats_are_exact(&open());
    truncation(&open());
    truncation_of_everything(&open());
    writers_at_the_same_time(Arc::new(open()));
}

fn an_empty_log(log: &dyn ShardLog) {
    assert_eq!(log.bounds(ShardId(3)).unwrap(), Bounds { first: Position(1), last: Position(0) });
    assert!(log.read(ShardId(3), Position(1), 10).unwrap().is_empty());
    log.truncate(ShardId(3), Position(9)).unwrap();
    assert_eq!(log.bounds(ShardId(3)).unwrap(), Bounds { first: Position(1), last: Position(0) });
    assert!(log.healthy());
}

fn appends_are_read_back(log: &dyn ShardLog) {
    fill(log, ShardId(0), 1..=40);
    expect(log, ShardId(0), 1..=40);
    let few = log.read(ShardId(0), Position(5), 600).unwrap();
    assert!(few.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() <= 600 && !few.is_empty());
    let all = log.read(ShardId(0), Position(1), usize::MAX).unwrap();
    assert_eq!(all.len(), 40);
}

fn shards_are_apart(log: &dyn ShardLog) {
    fill(log, ShardId(0), 1..=10);
    fill(log, ShardId(7), 1..=4);
    fill(log, ShardId(0), 11..=12);
    log.truncate(ShardId(0), Position(3)).unwrap();
    expect(log, ShardId(0), 4..=12);
    expect(log, ShardId(7), 1..=4);
}

fn wrong_positions_are_refused(log: &dyn ShardLog) {
    fill(log, ShardId(0), 1..=3);
    let gap = log.append(ShardId(0), Position(5), &record(5)).unwrap_err();
    assert!(matches!(gap, LogError::Gap { last: Position(3), .. }), "{gap}");
    assert!(!gap.is_retriable());
    let conflict = log.append(ShardId(0), Position(3), &record(4)).unwrap_err();
    assert!(matches!(conflict, LogError::Conflict { position: Position(3), .. }), "{conflict}");
    let conflict = log.append(ShardId(0), Position(2), &record(4)).unwrap_err();
    assert!(matches!(conflict, LogError::Conflict { position: Position(2), .. }), "{conflict}");
    log.truncate(ShardId(0), Position(2)).unwrap();
    let gone = log.append(ShardId(0), Position(2), &record(2)).unwrap_err();
    assert!(matches!(gone, LogError::Truncated { first: Position(3), .. }), "{gone}");
    let gone = log.read(ShardId(0), Position(2), 10).unwrap_err();
    assert!(matches!(gone, LogError::Truncated { first: Position(3), .. }), "{gone}");
    expect(log, ShardId(0), 3..=3);
}

fn repeats_are_exact(log: &dyn ShardLog) {
    fill(log, ShardId(0), 1..=5);
    fill(log, ShardId(0), 4..=5);
    fill(log, ShardId(0), 5..=6);
    expect(log, ShardId(0), 1..=6);
}

fn truncation(log: &dyn ShardLog) {
    fill(log, ShardId(0), 1..=20);
    log.truncate(ShardId(0), Position(8)).unwrap();
    log.truncate(ShardId(0), Position(5)).unwrap();
    expect(log, ShardId(0), 9..=20);
    fill(log, ShardId(0), 21..=22);
    expect(log, ShardId(0), 9..=22);
}

fn truncation_of_everything(log: &dyn ShardLog) {
    fill(log, ShardId(0), 1..=9);
    log.truncate(ShardId(0), Position(1_000)).unwrap();
    assert_eq!(log.bounds(ShardId(0)).unwrap(), Bounds { first: Position(10), last: Position(9) });
    assert!(log.read(ShardId(0), Position(10), 10).unwrap().is_empty());
    fill(log, ShardId(0), 10..=12);
    expect(log, ShardId(0), 10..=12);
}

fn writers_at_the_same_time(log: Arc<dyn ShardLog>) {
    std::thread::scope(|scope| {
        for shard in 0..4 {
            let log = log.clone();
            scope.spawn(move || {
                for position in 1..=60 {
                    log.append(ShardId(shard), Position(position), &record(position)).unwrap();
                    if position % 20 == 0 {
                        log.truncate(ShardId(shard), Position(position - 10)).unwrap();
                    }
                }
            });
        }
    });
    for shard in 0..4 {
        expect(&*log, ShardId(shard), 51..=60);
    }
}
