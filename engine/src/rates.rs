//! How often somebody may do something: token buckets by key, bounded in number.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Keys that are told apart at a time; all further ones share one bucket.
const KEYS: usize = 10_000;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// Buckets that hold `burst` and are filled with `rate` a second.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    rate: f64,
    burst: f64,
    buckets: Mutex<(HashMap<K, Bucket>, Option<Bucket>)>,
}

impl<K: Hash + Eq> Rates<K> {
    /// At least one is let through, whatever the rate.
    pub(crate) fn new(rate: f64, burst: f64) -> Self {
        Self { rate, burst: burst.max(1.0), buckets: Mutex::default() }
    }

    /// Takes one; or how long it takes until there is one.
    pub(crate) fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        self.with(key, now, 1.0)
    }

    /// Whether one could be taken, without taking it.
    pub(crate) fn look(&self, key: K, now: Instant) -> Result<(), Duration> {
        self.with(key, now, 0.0)
    }

    fn with(&self, key: K, now: Instant, take: f64) -> Result<(), Duration> {
        let mut guard = self.buckets.lock();
        let (buckets, others) = &mut *guard;
        let full = Bucket { left: self.burst, at: now };
        let filled = |bucket: &Bucket| {
            (bucket.left + now.saturating_duration_since(bucket.at).as_secs_f64() * self.rate).min(self.burst)
        };
        if buckets.len() >= KEYS && !buckets.contains_key(&key) {
            // A bucket that is full again says nothing.
            buckets.retain(|_, bucket| filled(bucket) < self.burst);
        }
        let bucket = if buckets.len() >= KEYS && !buckets.contains_key(&key) {
            others.get_or_insert(full)
        } else {
            buckets.entry(key).or_insert(full)
        };
        bucket.left = filled(bucket);
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / self.rate.max(1e-6)));
        }
        bucket.left -= take;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills() {
        let rates = Rates::new(2.0, 3.0);
        let start = Instant::now();
        assert_eq!((0..5).filter(|_| rates.take("a", start).is_ok()).count(), 3);
        assert!(rates.look("b", start).is_ok() && rates.take("b", start).is_ok(), "another key");
        let wait = rates.take("a", start).unwrap_err();
        assert!(wait <= Duration::from_millis(500) && wait > Duration::from_millis(400), "{wait:?}");
        assert!(rates.take("a", start + Duration::from_millis(500)).is_ok());
        assert!(rates.take("a", start + Duration::from_millis(500)).is_err());
    }

    #[test]
    fn more_keys_than_there_is_room_for_share_a_bucket() {
        let rates = Rates::new(1.0, 2.0);
        let start = Instant::now();
        for key in 0..KEYS {
            rates.take(key, start).unwrap();
        }
        let more = (KEYS..2 * KEYS).filter(|key| rates.take(*key, start).is_ok()).count();
        assert_eq!(more, 2);
        assert!(rates.take(3 * KEYS, start + Duration::from_secs(2)).is_ok(), "full buckets were forgotten");
        assert!(rates.buckets.lock().0.len() < KEYS);
    }
}
