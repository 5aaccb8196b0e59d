//! How long records wait for their ack: a histogram that many clients can share.
//!
//! Buckets grow by an eighth, so a quantile is right within about 12 %. Absent: exact values; a fleet of
//! thousands must not keep them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Eight buckets for each power of two of microseconds, up to about 70 minutes.
const BUCKETS: usize = 8 * 30;

/// Times from recording to acknowledgement.
#[derive(Debug)]
pub struct Latency {
    buckets: Vec<AtomicU64>,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Latency {
    /// Counts `records` that waited this long.
    pub fn add(&self, waited: Duration, records: u64) {
        if let Some(bucket) = self.buckets.get(index(waited)) {
            bucket.fetch_add(records, Ordering::Relaxed);
        }
    }

    /// The time that this part (0 to 1) of all records waited at most; zero if there are none.
    pub fn quantile(&self, part: f64) -> Duration {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let rank = ((total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= rank {
                return upper(at);
            }
        }
        Duration::ZERO
    }
}

/// Values below 8 µs have a bucket each; above, the three bits behind the leading one choose.
fn index(waited: Duration) -> usize {
    let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
    if micros < 8 {
        return micros as usize;
    }
    let power = micros.ilog2();
    let eighth = (micros >> (power - 3)) & 7;
    (((power - 2) as usize) * 8 + eighth as usize).min(BUCKETS - 1)
}

fn upper(index: usize) -> Duration {
    if index < 8 {
        return Duration::from_micros(index as u64);
    }
    let (power, eighth) = (index / 8 + 2, index % 8);
    Duration::from_micros(((8 + eighth as u64 + 1) << (power - 3)) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_close() {
        for micros in [0u64, 1, 7, 8, 9, 100, 1_000, 123_456, 10_000_000] {
            let latency = Latency::default();
            latency.add(Duration::from_micros(micros), 3);
            let found = latency.quantile(0.5).as_micros() as u64;
            assert!(found >= micros && found <= micros + micros / 8, "{micros} became {found}");
        }
        let latency = Latency::default();
        assert_eq!(latency.quantile(0.5), Duration::ZERO);
        latency.add(Duration::from_millis(1), 99);
        latency.add(Duration::from_secs(1), 1);
        assert!(latency.quantile(0.5) < Duration::from_millis(2));
        assert!(latency.quantile(0.99) < Duration::from_millis(2));
        assert!(latency.quantile(1.0) >= Duration::from_secs(1));
    }
}
