//! Latencies in microseconds, in buckets that are never wider than 1.6 % of their value.

/// 64 buckets for each power of two.
const STEPS: usize = 64;

/// A log-linear histogram.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; STEPS * 60], count: 0, sum: 0, max: 0 }
    }
}

fn bucket(value: u64) -> usize {
    if value < STEPS as u64 {
        return value as usize;
    }
    let shift = (63 - value.leading_zeros() as usize) - 6;
    (shift + 1) * STEPS + (value >> shift) as usize - STEPS
}

fn lowest(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let shift = bucket / STEPS - 1;
    ((bucket % STEPS + STEPS) as u64) << shift
}

impl Histogram {
    /// Counts one value.
    pub fn add(&mut self, value: u64) {
        if let Some(slot) = self.buckets.get_mut(bucket(value)) {
            *slot += 1;
        }
        self.count += 1;
        self.sum += u128::from(value);
        self.max = self.max.max(value);
    }

    /// Takes in what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Their mean; 0 if there are none.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// The value below which the share `q` of all lies.
    pub fn quantile(&self, q: f64) -> u64 {
        let wanted = ((q * self.count as f64).ceil() as u64).max(1);
        let mut passed = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            passed += count;
            if passed >= wanted {
                return lowest(at).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_close() {
        let mut h = Histogram::default();
        for value in 1..=100_000u64 {
            h.add(value);
        }
        for q in [0.01, 0.5, 0.9, 0.99, 0.999] {
            let got = h.quantile(q) as f64 / (q * 100_000.0);
            assert!((0.98..=1.0).contains(&got), "{q}: {got}");
        }
        assert_eq!((h.count(), h.max()), (100_000, 100_000));
    }

    #[test]
    fn buckets_are_in_order() {
        let mut last = 0;
        for value in (0..1000u64).chain((10..50).map(|e| 1 << e)) {
            assert!(bucket(value) >= last && lowest(bucket(value)) <= value);
            last = bucket(value);
        }
    }
}
