//! When the device is told what is stored, and asked for what is missing.
//!
//! The content of every ack comes from what is durable when it is made: an ack can be late, never early.

use super::epochs::{Epochs, Known, Watch};
use super::types::{Effect, Event};
use crate::ack::{Ack, CREDIT, EpochAck, LEVEL_LOCAL, Nack, Resend};
use crate::entry::Reason;
use crate::seq::Epoch;
use crate::time::{SECOND, Timestamp};

/// Least time between two acks: a fast device would otherwise get one per frame.
const EVERY: i64 = SECOND / 5;
/// Unless that many records are to be acknowledged: a quarter of what may be in flight.
const RECORDS: u64 = 256;
/// Most ranges above `cum` in an ack, and most holes asked for: the rest is said later.
const MAX_RANGES: usize = 64;
/// Most nacks held until the next ack; a device whose nack is lost sends its frame again and gets another.
const MAX_NACKS: usize = 16;
/// How old a hole has to be before it is asked for: longer than a retransmission takes by itself.
const GAP_AGE: i64 = 30 * SECOND;
/// How often a hole is asked for.
const GAP_TRIES: u8 = 3;

/// What is owed to the device.
#[derive(Debug, Default)]
pub(super) struct Acks {
    last: Option<Timestamp>,
    pending: u64,
    due: Vec<Epoch>,
    nacks: Vec<Nack>,
    resend: Vec<Resend>,
    echo: Option<Timestamp>,
    received: Timestamp,
}

impl Acks {
    /// A frame came: its send time is echoed.
    #[inline]
    pub(super) fn frame(&mut self, send_time: Timestamp, received: Timestamp) {
        self.echo = Some(send_time);
        self.received = received;
    }

    /// There is news of an epoch.
    #[inline]
    pub(super) fn news(&mut self, epoch: Epoch, records: u64) {
        self.pending += records;
        if !self.due.contains(&epoch) {
            self.due.push(epoch);
        }
    }

    pub(super) fn nack(&mut self, epoch: Epoch, seq: u64, reason: Reason) {
        let nack = Nack { epoch, seq, reason };
        if self.nacks.len() < MAX_NACKS && !self.nacks.contains(&nack) {
            self.nacks.push(nack);
        }
        self.news(epoch, 0);
    }

    #[inline]
    pub(super) fn owed(&self) -> bool {
        !self.due.is_empty()
    }

    /// Makes the ack if one is owed and it is time for it.
    #[inline]
    pub(super) fn flush(&mut self, now: Timestamp, epochs: &Epochs, effects: &mut Vec<Effect>) {
        if self.owed() && (self.pending >= RECORDS || self.last.is_none_or(|last| now.since(last) >= EVERY)) {
            effects.push(self.make(now, epochs));
        }
    }

    fn make(&mut self, now: Timestamp, epochs: &Epochs) -> Effect {
        let nacks = std::mem::take(&mut self.nacks);
        let waits = |nack: &Nack| matches!(nack.reason, Reason::Window | Reason::EpochStorm);
        let ack = Ack {
            epochs: self.due.drain(..).map(|epoch| epoch_ack(epochs, epoch)).collect(),
            level: LEVEL_LOCAL,
            credit: if nacks.iter().any(waits) { 0 } else { CREDIT },
            echo: self.echo,
            server_rx: self.received,
            server_tx: now,
            nacks,
            resend: std::mem::take(&mut self.resend),
        };
        self.last = Some(now);
        self.pending = 0;
        Effect::Publish { topic: "ack".into(), payload: ack.encode(), qos: 0 }
    }

    /// Asks for holes that have been there for too long.
    pub(super) fn watch(&mut self, now: Timestamp, epochs: &mut Epochs, effects: &mut Vec<Effect>) {
        for open in &mut epochs.open {
            if !open.framed || !open.state.has_holes() {
                open.watch = None;
                continue;
            }
            let cum = open.state.cum();
            let watch = match &mut open.watch {
                Some(watch) if watch.cum == cum => watch,
                other => other.insert(Watch { cum, since: now, tries: 0 }),
            };
            if watch.tries > GAP_TRIES || now.since(watch.since) < GAP_AGE * (i64::from(watch.tries) + 1) {
                continue;
            }
            watch.tries += 1;
            let mut holes = open.state.holes();
            holes.truncate(MAX_RANGES);
            if watch.tries > GAP_TRIES {
                if let Some((from, to)) = holes.first() {
                    effects.push(Effect::Event(Event::GapUnanswered { epoch: open.epoch, from: *from, to: *to }));
                }
                continue;
            }
            let ranges = holes.into_iter().map(|(from, to)| (from, to - from + 1)).collect();
            self.resend.retain(|resend| resend.epoch != open.epoch);
            self.resend.push(Resend { epoch: open.epoch, ranges });
            self.news(open.epoch, 0);
        }
    }

    /// Whether there are holes that will be asked for.
    pub(super) fn watching(epochs: &Epochs) -> bool {
        epochs.open.iter().any(|open| {
            open.framed && open.state.has_holes() && open.watch.is_none_or(|watch| watch.tries <= GAP_TRIES)
        })
    }
}

/// What is stored of an epoch; nothing, if it was never seen.
pub(super) fn epoch_ack(epochs: &Epochs, epoch: Epoch) -> EpochAck {
    match epochs.find(epoch) {
        Known::Open(at) => {
            let Some(open) = epochs.open.get(at) else { return unseen(epoch) };
            let above = open.state.above_cum();
            let ranges = above.iter().take(MAX_RANGES).map(|(from, to)| (from, to - from + 1)).collect();
            let cum = open.state.cum();
            let last = (open.closed && !open.state.has_holes()).then_some(cum);
            EpochAck { epoch, cum, ranges, last }
        }
        Known::Closed(at) => {
            let Some(closed) = epochs.closed.get(at) else { return unseen(epoch) };
            let cum = closed.state.cum();
            EpochAck { epoch, cum, ranges: Vec::new(), last: Some(cum) }
        }
        Known::Never => unseen(epoch),
    }
}

fn unseen(epoch: Epoch) -> EpochAck {
    EpochAck { epoch, cum: 0, ranges: Vec::new(), last: None }
}
