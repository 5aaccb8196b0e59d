//! What all simulated devices have in common: a name, a clock, the truth about what was recorded, and messages that
//! wait to be carried.

use std::collections::BTreeMap;

use device::id::DeviceId;
use device::time::{SECOND, Timestamp};

use super::params::{Fault, Params};
use super::random::Random;

/// When worlds begin: 2026-03-01, 09:59:30, shortly before an hour ends.
pub(super) const BEGIN: i64 = 1_772_359_170 * SECOND;

/// A millisecond in nanoseconds.
pub(super) const MILLI: i64 = 1_000_000;

/// One record, as it was.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Truth {
    /// The device's own time of it.
    pub(super) ts: i64,
    /// A value.
    pub(super) temperature: Option<f64>,
    /// Another.
    pub(super) status: String,
    /// The device must not lose it any more: it is durable there, or was acknowledged.
    pub(super) kept: bool,
    /// The engine said that it is stored.
    pub(super) acked: bool,
}

/// A message on its way to the engine.
#[derive(Debug, Clone)]
pub(super) struct Uplink {
    /// Whether it is a hello.
    pub(super) hello: bool,
    /// Its bytes.
    pub(super) payload: Vec<u8>,
    /// The sender's number of it.
    pub(super) ticket: u64,
}

/// What a device is, beside its protocol.
#[derive(Debug)]
pub(super) struct Common {
    /// Its name.
    pub(super) id: DeviceId,
    /// Everything it recorded, by the number `n` that it put into the record.
    pub(super) truth: BTreeMap<i64, Truth>,
    /// Random numbers of this device alone.
    pub(super) random: Random,
    /// Messages to be carried.
    pub(super) out: Vec<Uplink>,
    /// It wants its connection to be closed.
    pub(super) hangup: bool,
    /// Its clock against the world's, in nanoseconds.
    pub(super) offset: i64,
    /// Parts per million that it is too fast.
    drift: i64,
    clock: bool,
    next: i64,
}

impl Common {
    /// Device number `number` of a world.
    pub(super) fn new(params: &Params, number: u64) -> Self {
        let name = format!("d{number}");
        let mut random = Random::named(params.seed, &name);
        let clock = params.has(Fault::Clock);
        let mut this = Self {
            id: DeviceId::new(&name).unwrap(),
            truth: BTreeMap::new(),
            out: Vec::new(),
            hangup: false,
            offset: 0,
            drift: if clock { random.between(0, 400) as i64 - 200 } else { 0 },
            clock,
            next: 0,
            random,
        };
        this.jump();
        this
    }

    /// The clock is set anew, if clocks are trouble.
    pub(super) fn jump(&mut self) {
        if self.clock {
            self.offset = match self.random.below(20) {
                0 => 3600 * SECOND,
                1 => -3600 * SECOND,
                2 => -BEGIN,
                _ => (self.random.between(0, 6000) as i64 - 3000) * MILLI,
            };
        }
    }

    /// The device's wall clock, `now` milliseconds after the world began.
    pub(super) fn wall(&self, now: i64) -> i64 {
        BEGIN + now * MILLI + now * self.drift + self.offset
    }

    /// Makes up a record and returns its number.
    pub(super) fn reading(&mut self, now: i64) -> (i64, Truth) {
        let n = self.next;
        self.next += 1;
        // Sometimes it is about something that was a while ago.
        let ago = if self.random.chance(30) { self.random.below(20_000) as i64 } else { 0 };
        let truth = Truth {
            ts: self.wall(now - ago),
            temperature: (!self.random.chance(50)).then(|| self.random.below(1000) as f64 / 10.0),
            status: format!("s{}", self.random.below(4)),
            kept: false,
            acked: false,
        };
        self.truth.insert(n, truth.clone());
        (n, truth)
    }

    /// The wall clock as a time.
    pub(super) fn stamp(&self, now: i64) -> Timestamp {
        Timestamp(self.wall(now))
    }
}
