//! The trouble a simulated device makes, and when. Pure: it follows from the seed.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use super::sensor::random;

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The connection breaks without a goodbye.
    Cut,
    /// Everything in flight is sent again.
    Repeat,
    /// The next messages are sent twice.
    Twice(u32),
    /// The next messages are sent in reverse order.
    Disorder(u32),
    /// A payload that nobody can read.
    Bad(Vec<u8>),
    /// The device restarts without a goodbye.
    Restart,
}

/// Kinds of trouble and how long it is between two of a kind, on average, in seconds.
const EVERY: [f64; 6] = [12.0, 5.0, 4.0, 4.0, 6.0, 20.0];

/// When a device makes which trouble.
#[derive(Debug)]
pub(super) struct Chaos {
    random: SmallRng,
    next: [Duration; 6],
}

impl Chaos {
    /// `None` for a device that makes no trouble.
    pub(super) fn new(wanted: bool, seed: u64, index: usize) -> Option<Self> {
        let mut random = random(seed, index, 1);
        let next = EVERY.map(|every| wait(&mut random, every));
        wanted.then_some(Self { random, next })
    }

    /// What goes wrong up to `now` (time since the device's start) and did not go wrong before.
    pub(super) fn due(&mut self, now: Duration) -> Vec<Trouble> {
        let mut due = Vec::new();
        for (kind, (next, every)) in self.next.iter_mut().zip(EVERY).enumerate() {
            if *next > now {
                continue;
            }
            *next = now + wait(&mut self.random, every);
            due.push(match kind {
                0 => Trouble::Cut,
                1 => Trouble::Repeat,
                2 => Trouble::Twice(self.random.random_range(1..=4)),
                3 => Trouble::Disorder(self.random.random_range(2..=4)),
                4 => Trouble::Bad(bad(&mut self.random)),
                _ => Trouble::Restart,
            });
        }
        due
    }
}

fn wait(random: &mut SmallRng, every: f64) -> Duration {
    // Exponential, so that troubles meet each other now and then.
    Duration::from_secs_f64(-every * (1.0 - random.random::<f64>()).max(1e-6).ln())
}

/// A payload that must be refused with a reason and kept as a dead letter.
fn bad(random: &mut SmallRng) -> Vec<u8> {
    match random.random_range(0..6) {
        0 => (0..random.random_range(1..64)).map(|_| random.random_range(0xf8..=0xffu8)).collect(),
        1 => b"{\"temperature\": ".to_vec(),
        2 => b"{\"ts\": \"yesterday\", \"temperature\": 20}".to_vec(),
        3 => b"{\"temperature\": \"warm\"}".to_vec(),
        // A frame that ends after its version, and JSON that is no UTF-8.
        4 => vec![0xa8, 0x00, 0x01, 0x01],
        _ => b"{\"status\": \"\xff\xfe\"}".to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_follows_from_the_seed_and_every_kind_comes() {
        let plan = |seed| {
            let mut chaos = Chaos::new(true, seed, 3).unwrap();
            (0..600).flat_map(|s| chaos.due(Duration::from_secs(s))).collect::<Vec<_>>()
        };
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
        let kinds: std::collections::HashSet<_> = plan(1).iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), EVERY.len());
        assert!(Chaos::new(false, 1, 3).is_none());
    }
}
