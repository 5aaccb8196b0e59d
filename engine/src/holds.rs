//! Who needs which times of which tables, in this process: so that retention drops nothing under a repair, and compaction
//! and a repair never replace the same files at once.
//!
//! A [`Lease`] says that somebody reads or replaces a range of a table and may take long. A [`Claim`] is taken by housekeeping
//! for one step: it is refused where a lease stands, and a lease waits until it is over. So whoever has a lease and then
//! lists the table finds the same files as long as it keeps it, but for new ones of cuts. A repair takes its leases (on the
//! stream that it reads, and on the table whose files it replaces) before it asks for the barrier that it works up to: then
//! no merged file reaches beyond that barrier.
//!
//! Deliberately absent: leases of other processes. There are none, because the data directory has a lock.

use std::sync::Arc;

use parking_lot::Mutex;
use storage::retention::{Range, overlap};
use tokio::sync::Notify;

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Number, table, range.
    leases: Vec<(u64, String, Range)>,
    claims: Vec<(u64, String, Range)>,
}

impl State {
    fn add(&mut self, claim: bool, table: &str, range: Range) -> u64 {
        let number = self.next;
        self.next += 1;
        let list = if claim { &mut self.claims } else { &mut self.leases };
        list.push((number, table.to_owned(), range));
        number
    }
}

fn taken(list: &[(u64, String, Range)], table: &str, range: Range) -> bool {
    list.iter().any(|(_, of, other)| of == table && overlap(*other, range))
}

/// All leases and claims of a process.
#[derive(Debug, Default)]
pub struct Holds {
    state: Mutex<State>,
    freed: Notify,
}

/// Somebody needs a range of a table, until this is dropped.
#[derive(Debug)]
pub struct Lease {
    number: u64,
    holds: Arc<Holds>,
}

/// Housekeeping changes which files a range of a table has, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    number: u64,
    holds: Arc<Holds>,
}

impl Holds {
    /// Keeps what a table has of the times from `range.0` to `range.1` (nanoseconds, both of it). Waits while
    /// housekeeping is at it, which is seconds for a merge. List the table after this, not before.
    pub async fn hold(self: &Arc<Self>, table: &str, range: Range) -> Lease {
        loop {
            let freed = self.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // Before looking, so that no end of a claim is missed.
            freed.as_mut().enable();
            {
                let mut state = self.state.lock();
                if !taken(&state.claims, table, range) {
                    let number = state.add(false, table, range);
                    return Lease { number, holds: self.clone() };
                }
            }
            freed.await;
        }
    }

    /// For one step of housekeeping; `None` if somebody holds any of it.
    pub fn claim(self: &Arc<Self>, table: &str, range: Range) -> Option<Claim> {
        let mut state = self.state.lock();
        if taken(&state.leases, table, range) || taken(&state.claims, table, range) {
            return None;
        }
        let number = state.add(true, table, range);
        Some(Claim { number, holds: self.clone() })
    }

    /// What is held of a table now.
    pub fn ranges(&self, table: &str) -> Vec<Range> {
        self.state.lock().leases.iter().filter(|(_, of, _)| of == table).map(|(_, _, range)| *range).collect()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.holds.state.lock().leases.retain(|(number, ..)| *number != self.number);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.holds.state.lock().claims.retain(|(number, ..)| *number != self.number);
        self.holds.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_claim_is_refused_where_a_lease_stands_and_a_lease_waits_for_a_claim() {
        let holds = Arc::new(Holds::default());
        let lease = holds.hold("t", (10, 20)).await;
        let second = holds.hold("t", (15, 30)).await;
        assert_eq!(holds.ranges("t"), [(10, 20), (15, 30)]);
        assert!(holds.claim("t", (20, 25)).is_none() && holds.claim("t", (0, 10)).is_none());
        assert!(holds.claim("t", (0, 9)).is_some() && holds.claim("u", (10, 20)).is_some());
        drop((lease, second));
        let claim = holds.claim("t", (20, 25)).unwrap();
        assert!(holds.claim("t", (0, 20)).is_none(), "one at a time");
        let waiting = tokio::spawn({
            let holds = holds.clone();
            async move { holds.hold("t", (0, 20)).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        drop(claim);
        let lease = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        assert!(holds.claim("t", (5, 5)).is_none());
        drop(lease);
        assert!(holds.claim("t", (5, 5)).is_some());
    }
}
