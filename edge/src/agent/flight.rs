//! What was sent and is not acknowledged, and when its time is up.

use std::time::Duration;

use device::seq::Epoch;

use super::track::Track;

/// A range that was sent together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    pub(super) epoch: Epoch,
    pub(super) first: u64,
    pub(super) last: u64,
    /// Records of the range that still wait.
    pub(super) records: u64,
    pub(super) due: Duration,
    /// How long the last wait was, before jitter.
    pub(super) wait: Duration,
    pub(super) attempt: u32,
}

/// All of them, in the order they were first sent.
#[derive(Debug, Default)]
pub(super) struct Flights {
    list: Vec<Flight>,
    records: u64,
}

impl Flights {
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    pub(super) fn add(&mut self, flight: Flight) {
        self.records += flight.records;
        self.list.push(flight);
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.records = 0;
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        self.list.iter().map(|flight| flight.due).min()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Flight> {
        self.list.iter_mut()
    }

    /// Forgets what is acknowledged or lost of an epoch; everything if the epoch is gone.
    pub(super) fn settle(&mut self, epoch: Epoch, track: Option<&Track>) {
        self.list.retain_mut(|flight| {
            if flight.epoch != epoch {
                return true;
            }
            let wanted = track.map(|track| track.wanted(flight.first, flight.last)).unwrap_or_default();
            let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return false };
            (flight.first, flight.last) = (first.0, last.1);
            flight.records = wanted.iter().map(|(a, b)| b - a + 1).sum();
            true
        });
        self.records = self.list.iter().map(|flight| flight.records).sum();
    }
}

/// Spreads waits by 20 % either way, so that a fleet that lost its engine at one moment does not come back at
/// one moment. SplitMix64: small, and the same for the same seed.
#[derive(Debug)]
pub(crate) struct Jitter {
    state: u64,
}

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(crate) fn spread(&mut self, wait: Duration) -> Duration {
        // 0.8 to 1.2 in steps of a thousandth.
        let thousandths = 800 + self.next() % 401;
        wait.mul_f64(thousandths as f64 / 1000.0)
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}
