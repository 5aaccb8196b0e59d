//! What the devices say, as pure functions of (seed, device, seq), so that the truth can be computed apart from
//! the run that is checked against it.
//!
//! No clock: the base time comes in as a value. Values are whole hundredths and thousandths, so that sums over
//! millions of rows can be compared exactly.

/// The population and the order of its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// How many devices.
    pub devices: u32,
    /// How many records each of them sends.
    pub rounds: u32,
    /// Nanoseconds of event time between two records of a device.
    pub interval_ns: i64,
    /// Event time before the first record, in nanoseconds since the Unix epoch.
    pub base_ns: i64,
    /// How many of 1,000 records are sent a second time.
    pub duplicates: u32,
    /// How many of 1,000 neighbouring pairs change places.
    pub disorder: u32,
    /// Another seed, other values and another epoch.
    pub seed: u64,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Position in the device's epoch, from 1.
    pub seq: u32,
    /// Nanoseconds since the Unix epoch.
    pub ts: i64,
    /// Degrees Celsius, in hundredths.
    pub temperature: u32,
    /// Percent, in hundredths.
    pub humidity: u32,
    /// Millimetres per second, in thousandths.
    pub vibration: u32,
}

impl Reading {
    /// The three values as the doubles that travel and are stored.
    pub fn values(&self) -> [f64; 3] {
        [f64::from(self.temperature) / 100.0, f64::from(self.humidity) / 100.0, f64::from(self.vibration) / 1000.0]
    }
}

/// The finalizer of MurmurHash3: cheap, and every input bit reaches every output bit.
pub(crate) fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Rises from 0 to 300 and falls back within 600 steps: a day in ten minutes.
fn wave(step: u64) -> u32 {
    let at = (step % 600) as u32;
    at.min(600 - at)
}

impl Workload {
    /// The epoch of every device in this run.
    pub fn epoch(&self) -> u64 {
        1 + (mix(self.seed ^ 0x65_70_6f_63_68) >> 33)
    }

    /// What is constant for one device.
    fn nature(&self, device: u32) -> u64 {
        mix(self.seed.wrapping_add(u64::from(device) + 1))
    }

    /// The record `seq` (from 1) of a device.
    pub fn reading(&self, device: u32, seq: u32) -> Reading {
        let nature = self.nature(device);
        let noise = mix(nature ^ u64::from(seq));
        let wave = wave(u64::from(seq) + nature % 600);
        let phase = (nature >> 8) % (self.interval_ns.max(1) as u64);
        Reading {
            seq,
            ts: self.base_ns + i64::from(seq) * self.interval_ns + phase as i64,
            temperature: 1500 + (nature % 1500) as u32 + wave + (noise % 11) as u32,
            humidity: 3000 + (nature >> 20 & 2047) as u32 + wave / 2 + (noise >> 8 & 7) as u32,
            vibration: 100 + (nature >> 40 & 1023) as u32 + (noise >> 16 & 63) as u32,
        }
    }

    /// Whether item `at` of a device (a record's seq, or the number of a frame) is sent twice.
    pub fn is_sent_twice(&self, device: u32, at: u32) -> bool {
        (mix(self.nature(device) ^ u64::from(at) ^ 0xd0_b1e5_0000_0000) % 1000) < u64::from(self.duplicates)
    }

    /// Which item a device sends at `turn` of `turns`: mostly that one, sometimes its neighbour first.
    pub fn order(&self, device: u32, turn: u32, turns: u32) -> u32 {
        let neighbour = turn ^ 1;
        let pair = u64::from(turn >> 1);
        let swapped = (mix(self.nature(device) ^ pair ^ 0x5a_9000_0000_0000) % 1000) < u64::from(self.disorder);
        if swapped && neighbour < turns { neighbour } else { turn }
    }

    /// Event time after which no record lies.
    pub fn end_ns(&self) -> i64 {
        self.base_ns + (i64::from(self.rounds) + 1) * self.interval_ns
    }
}

/// The name of a device; `prefix` is "d" unless two generators run at once.
pub fn device_name(prefix: &str, device: u32) -> String {
    format!("{prefix}{device:05}")
}

/// Walks the records of every `step`-th device in the order in which they are sent.
#[derive(Debug, Clone)]
pub struct Cursor {
    workload: Workload,
    first: u32,
    step: u32,
    count: u32,
    turn: u32,
    at: u32,
    repeat: bool,
}

impl Cursor {
    /// The devices `first`, `first + step`, ...
    pub fn new(workload: Workload, first: u32, step: u32) -> Self {
        let count = workload.devices.saturating_sub(first).div_ceil(step.max(1));
        Self { workload, first, step, count, turn: 0, at: 0, repeat: false }
    }
}

impl Cursor {
    /// The epoch of the records.
    pub fn epoch(&self) -> u64 {
        self.workload.epoch()
    }
}

impl Iterator for Cursor {
    /// Device, its record, and whether it is a repetition.
    type Item = (u32, Reading, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let rounds = self.workload.rounds;
        // One more turn than rounds: the repetitions of the last records.
        while self.count > 0 && self.turn <= rounds {
            let device = self.first + self.at * self.step;
            if !self.repeat {
                self.repeat = true;
                if self.turn < rounds {
                    let seq = 1 + self.workload.order(device, self.turn, rounds);
                    return Some((device, self.workload.reading(device, seq), false));
                }
            }
            self.repeat = false;
            let turn = self.turn;
            self.at += 1;
            if self.at == self.count {
                self.at = 0;
                self.turn += 1;
            }
            if turn > 0 {
                let seq = 1 + self.workload.order(device, turn - 1, rounds);
                if self.workload.is_sent_twice(device, seq) {
                    return Some((device, self.workload.reading(device, seq), true));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn workload() -> Workload {
        Workload {
            devices: 7,
            rounds: 501,
            interval_ns: 1_000_000_000,
            base_ns: 1_790_000_000_000_000_000,
            duplicates: 100,
            disorder: 100,
            seed: 3,
        }
    }

    #[test]
    fn every_record_once_and_some_twice() {
        let w = workload();
        let mut seen: HashMap<(u32, u32), u32> = HashMap::new();
        let mut out_of_order = 0;
        let mut last = HashMap::new();
        for first in 0..2 {
            for (device, reading, repeated) in Cursor::new(w, first, 2) {
                assert_eq!(device % 2, first);
                let times = seen.entry((device, reading.seq)).or_default();
                *times += 1;
                assert_eq!(repeated, *times == 2);
                if !repeated {
                    let before = last.insert(device, reading.seq).unwrap_or(0);
                    out_of_order += u32::from(reading.seq < before);
                }
            }
        }
        assert_eq!(seen.len(), 7 * 501);
        let twice = seen.iter().filter(|(_, times)| **times == 2).count();
        for ((device, seq), times) in seen {
            assert_eq!(times, 1 + u32::from(w.is_sent_twice(device, seq)));
        }
        assert!((200..500).contains(&twice), "{twice}");
        assert!((100..250).contains(&out_of_order), "{out_of_order}");
    }

    #[test]
    fn times_stay_within_the_span() {
        let w = workload();
        for (_, reading, _) in Cursor::new(w, 0, 1) {
            assert!(reading.ts > w.base_ns && reading.ts < w.end_ns());
        }
    }
}
