//! Rows of a table as they become visible, for one reader outside: `weir pipelines tap`.
//!
//! The reader must not hold back the shards nor let their rows pile up: what does not fit into its queue is skipped and
//! counted, and it is told so at the place where they are missing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use arrow::record_batch::RecordBatch;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes of rows that wait for a reader: a few batches of a wide stream.
const MOST_BYTES: usize = 16 << 20;

/// What a reader gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Tapped {
    /// Rows, of one shard in the order of its log.
    Rows(RecordBatch),
    /// So many rows came faster than they were read, and are left out here.
    Skipped(u64),
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<RecordBatch>,
    bytes: usize,
    /// Behind everything in the queue.
    skipped: u64,
}

/// One reader's queue. Dropping it ends the tap.
#[derive(Debug)]
pub struct Tap {
    table: String,
    waiting: Mutex<Waiting>,
    more: Notify,
}

impl Tap {
    /// A tap of a table; [`Taps::open`] of each shard makes rows come.
    pub fn new(table: &str) -> Arc<Self> {
        Arc::new(Self { table: table.to_owned(), waiting: Mutex::default(), more: Notify::new() })
    }

    fn offer(&self, batch: &RecordBatch) {
        let mut waiting = self.waiting.lock();
        let bytes = batch.get_array_memory_size();
        // Once something is skipped, nothing is taken until the reader has come to that place.
        let fits = waiting.queue.is_empty() || waiting.bytes + bytes <= MOST_BYTES;
        if waiting.skipped == 0 && fits {
            waiting.bytes += bytes;
            waiting.queue.push_back(batch.clone());
        } else {
            waiting.skipped += batch.num_rows() as u64;
        }
        drop(waiting);
        self.more.notify_one();
    }

    fn take(&self) -> Option<Tapped> {
        let mut waiting = self.waiting.lock();
        if let Some(batch) = waiting.queue.pop_front() {
            waiting.bytes -= batch.get_array_memory_size();
            return Some(Tapped::Rows(batch));
        }
        let skipped = std::mem::take(&mut waiting.skipped);
        (skipped > 0).then_some(Tapped::Skipped(skipped))
    }

    /// Waits for what comes next. For one reader.
    pub async fn next(&self) -> Tapped {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.more.notified().await;
        }
    }
}

/// The readers of one shard.
#[derive(Debug, Default)]
pub struct Taps {
    open: Mutex<Vec<Weak<Tap>>>,
    /// How many there are: mostly none, and then rows pass without a lock.
    count: AtomicUsize,
}

impl Taps {
    /// From now on the shard's rows of the table come to this tap.
    pub fn open(&self, tap: &Arc<Tap>) {
        let mut open = self.open.lock();
        open.push(Arc::downgrade(tap));
        self.count.store(open.len(), Ordering::Release);
    }

    pub(crate) fn offer(&self, table: &str, batch: &RecordBatch) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut open = self.open.lock();
        open.retain(|tap| match tap.upgrade() {
            Some(tap) => {
                if tap.table == table {
                    tap.offer(batch);
                }
                true
            }
            None => false,
        });
        self.count.store(open.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array};
    use futures::FutureExt;

    fn rows(from: i64, count: i64) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(from..from + count));
        RecordBatch::try_from_iter([("n", column)]).unwrap()
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed_and_where() {
        let (taps, tap) = (Taps::default(), Tap::new("t"));
        taps.offer("t", &rows(0, 1));
        taps.open(&tap);
        taps.offer("other", &rows(0, 1));
        let large = MOST_BYTES as i64 / 8 / 3;
        for at in 0..10 {
            taps.offer("t", &rows(at * large, large));
        }
        let held = tap.waiting.lock().bytes;
        assert!(held <= MOST_BYTES, "{held}");
        let mut seen = 0;
        let skipped = loop {
            match tap.next().now_or_never().unwrap() {
                Tapped::Rows(batch) => {
                    assert_eq!(batch, rows(seen, large));
                    seen += large;
                }
                Tapped::Skipped(count) => break count,
            }
        };
        assert_eq!(seen + skipped as i64, 10 * large);
        assert!(seen >= large && skipped > 0, "{seen} {skipped}");
        assert_eq!(tap.next().now_or_never(), None);
        taps.offer("t", &rows(7, 1));
        assert_eq!(tap.next().now_or_never(), Some(Tapped::Rows(rows(7, 1))), "it goes on with what is new");
        // A batch alone is taken however large it is.
        let huge = rows(0, MOST_BYTES as i64 / 4);
        taps.offer("t", &huge);
        assert_eq!(tap.next().now_or_never(), Some(Tapped::Rows(huge)));
    }

    #[test]
    fn a_reader_that_is_gone_costs_nothing() {
        let (taps, tap) = (Taps::default(), Tap::new("t"));
        taps.open(&tap);
        drop(tap);
        taps.offer("t", &rows(0, 1));
        assert_eq!(taps.count.load(Ordering::Relaxed), 0);
    }
}
