//! One simulated device's sensors and clock: slow changes, a little noise, now and then a hot spell.
//!
//! Pure: the same seed, index and times give the same readings.

use device::time::Timestamp;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// One set of readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    pub(super) ts: Timestamp,
    pub(super) temperature: f64,
    pub(super) humidity: f64,
    pub(super) vibration: f64,
    pub(super) status: &'static str,
}

#[derive(Debug)]
pub(super) struct Sensor {
    random: SmallRng,
    /// The device's clock minus the true one, in ns.
    offset: i64,
    last: i64,
    mean: f64,
    phase: f64,
    temperature: f64,
    humidity: f64,
    vibration: f64,
    /// Every tenth device runs hot for a while in each cycle, so that there is something to alert on.
    runs_hot: bool,
}

/// Time constants in seconds.
const DRIFT: f64 = 30.0;
const CYCLE: f64 = 600.0;
const HOT_CYCLE: f64 = 120.0;
const HOT_FOR: f64 = 45.0;

const SECOND: i64 = device::time::SECOND;
/// 2100-01-01 minus 2025-01-01, about: a clock that was set by a typing error.
const FAR_FUTURE: i64 = 75 * 365 * 86_400 * SECOND;

impl Sensor {
    /// `now`: for clocks that begin in 1970 when `wrong_clocks` are wanted.
    pub(super) fn new(seed: u64, index: usize, now: Timestamp, wrong_clocks: bool) -> Self {
        let mut random = random(seed, index, 0);
        let jitter = random.random_range(-50_000_000..=50_000_000);
        let offset = match index % 20 {
            7 if wrong_clocks => now.0.saturating_neg(),
            13 if wrong_clocks => FAR_FUTURE,
            3 | 11 if wrong_clocks => random.random_range(-600 * SECOND..=600 * SECOND),
            _ => jitter,
        };
        let mean = random.random_range(18.0..26.0);
        Self {
            offset,
            last: i64::MIN,
            mean,
            phase: random.random_range(0.0..std::f64::consts::TAU),
            temperature: mean,
            humidity: random.random_range(35.0..60.0),
            vibration: random.random_range(0.5..3.0),
            runs_hot: index % 10 == 4,
            random,
        }
    }

    /// The device's clock when the true one says `now`.
    pub(super) fn offset(&self) -> i64 {
        self.offset
    }

    /// What the sensors say at the true time `at`, `step` seconds after the sample before.
    pub(super) fn sample(&mut self, at: Timestamp, step: f64) -> Sample {
        // The interval of a real device is never exact; its own times never run backwards.
        let wobble = self.random.random_range(-0.05..=0.05) * step * SECOND as f64;
        let ts = at.plus(self.offset).plus(wobble as i64).0.max(self.last.saturating_add(1));
        self.last = ts;
        let seconds = (at.0 / 1_000_000) as f64 / 1e3;
        let hot = self.runs_hot && (seconds + self.phase * 20.0) % HOT_CYCLE < HOT_FOR;
        let swing = 2.0 * (seconds / CYCLE * std::f64::consts::TAU + self.phase).sin();
        let target = if hot { 92.0 } else { self.mean + swing };
        let follow = 1.0 - (-step.max(1e-3) / if hot { 5.0 } else { DRIFT }).exp();
        let noise = |random: &mut SmallRng, width: f64| random.random_range(-width..=width);
        self.temperature += (target - self.temperature) * follow + noise(&mut self.random, 0.05);
        self.humidity = (self.humidity + noise(&mut self.random, 0.2)).clamp(10.0, 95.0);
        self.vibration = (self.vibration + noise(&mut self.random, 0.05)).clamp(0.05, 12.0);
        let status = match (self.temperature, self.vibration) {
            (t, _) if t > 80.0 => "hot",
            (_, v) if v > 8.0 => "worn",
            _ => "ok",
        };
        // Sensors have a resolution; it is also what lets Parquet use dictionaries.
        let rounded = |value: f64, digits: f64| (value * digits).round() / digits;
        Sample {
            ts: Timestamp(ts),
            temperature: rounded(self.temperature, 100.0),
            humidity: rounded(self.humidity, 10.0),
            vibration: rounded(self.vibration, 1000.0),
            status,
        }
    }
}

/// A source of randomness for one purpose of one device.
pub(super) fn random(seed: u64, index: usize, purpose: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose.rotate_left(48))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(seed: u64, index: usize, wrong: bool) -> Vec<Sample> {
        let start = 1_800_000_000 * SECOND;
        let mut sensor = Sensor::new(seed, index, Timestamp(start), wrong);
        (0..2000).map(|n| sensor.sample(Timestamp(start + n * SECOND), 1.0)).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_readings() {
        assert_eq!(samples(1, 5, true), samples(1, 5, true));
        assert_ne!(samples(1, 5, true), samples(2, 5, true));
        assert_ne!(samples(1, 5, true), samples(1, 6, true));
    }

    #[test]
    fn readings_are_plausible_and_change_slowly() {
        for index in 0..30 {
            let samples = samples(9, index, false);
            for pair in samples.windows(2) {
                assert!(pair[0].ts < pair[1].ts, "time runs backwards");
                assert!((pair[0].temperature - pair[1].temperature).abs() < 20.0);
            }
            assert!(samples.iter().all(|s| (-20.0..100.0).contains(&s.temperature) && s.vibration > 0.0));
            let hot = samples.iter().any(|s| s.temperature > 80.0);
            assert_eq!(hot, index % 10 == 4, "device {index}");
        }
    }

    #[test]
    fn wrong_clocks_are_wrong_only_when_wanted() {
        let year = 365 * 86_400 * SECOND;
        let (start, first) = (1_800_000_000 * SECOND, |index, wrong| samples(1, index, wrong)[0].ts.0);
        assert!(first(7, true) < year, "1970");
        assert!(first(13, true) > start + 70 * year, "2100");
        for index in 0..20 {
            assert!((first(index, false) - start).abs() < SECOND);
        }
    }
}
