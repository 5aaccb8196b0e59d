//! When to send what: the pure core of the device's side of the protocol.
//!
//! [`Agent::step`] takes what happened and the time, and says what to do. It knows numbers only, no bytes: the
//! caller reads records from the outbox, packs them into frames, and carries messages. Absent: sockets, clocks
//! (the time is that since the start of the process, so a wall clock that is set cannot stall a resend) and
//! sources of randomness (a seed is given once).

mod flight;
mod step;
#[cfg(test)]
mod tests;
mod track;

use std::time::Duration;

use device::seq::Epoch;

use crate::outbox::{EpochView, Lost};
use flight::{Flights, Jitter};
use track::Track;

/// Bounds of the sending side. The defaults are those of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// Most records sent and not acknowledged, whatever credit the engine gives.
    pub max_in_flight: u64,
    /// Most records of one [`Action::Send`].
    pub frame_records: u64,
    /// Time without an ack after which a range is sent again the first time; doubles from there.
    pub resend_after: Duration,
    /// Where the doubling ends.
    pub resend_at_most: Duration,
    /// Most old epochs that are drained at the same time.
    pub epochs_at_once: usize,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            max_in_flight: 1024,
            frame_records: 64,
            resend_after: Duration::from_secs(5),
            resend_at_most: Duration::from_secs(60),
            epochs_at_once: 8,
        }
    }
}

/// What the engine says about one epoch: everything up to `cum` is accounted for, and so are the ranges (both
/// ends inclusive).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EpochAck {
    /// Which epoch.
    pub epoch: u64,
    /// Everything up to here.
    pub cum: u64,
    /// And these.
    pub ranges: Vec<(u64, u64)>,
}

/// The part of an ack frame or of the answer to a hello that the agent acts on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ack {
    /// What is stored.
    pub epochs: Vec<EpochAck>,
    /// How many records may be in flight; `None`: as before.
    pub credit: Option<u64>,
    /// How many refusals it names.
    pub nacks: u64,
    /// Numbers that the engine misses: epoch, first, last.
    pub resend: Vec<(u64, u64, u64)>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Records of the live epoch are durable in the outbox, up to this number.
    Recorded {
        /// The highest.
        last: u64,
    },
    /// The outbox dropped numbers, and that is durable.
    Lost(Lost),
    /// A connection stands.
    Connected,
    /// The answer to the hello.
    HelloAck(Ack),
    /// An ack frame.
    Ack(Ack),
    /// The connection is gone.
    Disconnected,
    /// The outbox wrote everything unacknowledged of `old` anew under `fresh`, which is live now.
    Forked {
        /// The epoch that was given up.
        old: Epoch,
        /// The live epoch.
        fresh: Epoch,
        /// Its highest durable number.
        last: u64,
    },
    /// Time has passed.
    Tick,
    /// Send everything in flight again, as if its time had come: for tests of the engine.
    Repeat,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Publish a hello that lists these epochs.
    Hello(Vec<EpochView>),
    /// Send these records, in one frame or several.
    Send {
        /// Their epoch.
        epoch: Epoch,
        /// First number.
        first: u64,
        /// Last number.
        last: u64,
        /// 1 the first time.
        attempt: u32,
    },
    /// Send a frame that declares these losses, all of one epoch.
    Declare(Vec<Lost>),
    /// Tell the outbox what an ack covers.
    Forget(EpochAck),
    /// Draw a new epoch, have the outbox write everything unacknowledged of this one anew, answer with
    /// [`Event::Forked`].
    Fork(Epoch),
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentCounts {
    /// Records sent, repetitions included.
    pub sent: u64,
    /// Records sent again.
    pub resent: u64,
    /// Numbers that acks covered (records and losses).
    pub acked: u64,
    /// Refusals named in acks.
    pub nacked: u64,
    /// Times the engine knew more of an epoch than this store.
    pub forks: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    /// Hello sent, answer awaited: sent again at `due`.
    Greeting {
        due: Duration,
        wait: Duration,
    },
    Up,
}

/// The sending side of one device.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    jitter: Jitter,
    link: Link,
    /// Oldest first; the live epoch is the last.
    tracks: Vec<Track>,
    flights: Flights,
    credit: u64,
    /// With no credit and nothing in flight, one record is sent at this time: the ack that gave credit may be lost.
    probe_at: Option<Duration>,
    /// Above zero: the live epoch has sent less than its share.
    balance: i64,
    turn: usize,
    counts: AgentCounts,
}

impl Agent {
    /// An agent for what the outbox holds. `seed`: any random number.
    pub fn new(config: AgentConfig, seed: u64, epochs: &[EpochView], lost: &[Lost]) -> Self {
        let mut tracks: Vec<Track> = epochs.iter().map(Track::new).collect();
        for lost in lost {
            if let Some(track) = tracks.iter_mut().find(|track| track.epoch == lost.epoch) {
                track.lose(*lost);
            }
        }
        Self {
            credit: config.max_in_flight,
            config,
            jitter: Jitter::new(seed),
            link: Link::Down,
            tracks,
            flights: Flights::default(),
            probe_at: None,
            balance: 0,
            turn: 0,
            counts: AgentCounts::default(),
        }
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        match self.link {
            Link::Down => None,
            Link::Greeting { due, .. } => Some(due),
            Link::Up => {
                let losses = self.tracks.iter().filter_map(Track::loss_due);
                losses.chain(self.flights.next_due()).chain(self.probe_at).min()
            }
        }
    }

    /// Numbers that wait for an ack.
    pub fn unacknowledged(&self) -> u64 {
        self.tracks.iter().map(Track::unacknowledged).sum()
    }

    /// Records sent and not acknowledged.
    pub fn in_flight(&self) -> u64 {
        self.flights.records()
    }

    /// Whether the engine answered the hello of this connection.
    pub fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    /// Counters since the start.
    pub fn counts(&self) -> AgentCounts {
        self.counts
    }
}
