//! What a shard gives to other shards, until it is in their logs; and what came for pipelines it does not have yet.
//!
//! A contribution is durable with the checkpoint of the barrier that made it, is sent only then, and is forgotten with
//! the first checkpoint after it has become durable in the log of the shard it is for. A crash in between sends it once
//! more, under the same number. While the shards go over to another version of the project one after the other, a
//! contribution can come for a pipeline that its shard does not have yet: it is *parked* until that has gone over,
//! too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use device::entry::{LogBody, LogRecord, Partial};
use device::id::ShardId;
use device::time::Timestamp;
use storage::state::PipelinePart;

use super::RunnerError;
use crate::shared::owner;

/// The logs of all shards, as far as contributions go into them.
pub trait Peers: Send + Sync {
    /// Adds a contribution to the log of `to`. The answer becomes true when it is durable there; `None`: that shard
    /// is not open yet.
    fn send(&self, to: ShardId, partial: Partial) -> Option<Arc<AtomicBool>>;
}

/// Names under which the shard's state keeps them; no pipeline has such a name.
const OUTGOING: &str = "(outgoing)";
const PARKED: &str = "(parked)";

/// The counter of a shard's state that holds the number of its last contribution.
const NUMBER: &str = "contributions";

/// Contributions under way.
#[derive(Default)]
pub(super) struct Mail {
    number: u64,
    outgoing: BTreeMap<u64, Letter>,
    parked: Vec<Partial>,
    /// Parked ones that the state still holds, though they are gone.
    unparked: Vec<i64>,
}

struct Letter {
    partial: Partial,
    /// Whether it is durable where it belongs; `None`: not sent.
    arrived: Option<Arc<AtomicBool>>,
}

/// Whether a piece of state is one of these.
pub(super) fn is_mail(part: &PipelinePart) -> bool {
    matches!(part.pipeline.as_str(), OUTGOING | PARKED)
}

impl Mail {
    /// From what a shard's state holds.
    pub(super) fn load(
        parts: impl Iterator<Item = PipelinePart>,
        counters: &[(String, u64)],
    ) -> Result<Self, RunnerError> {
        let number = counters.iter().find(|(name, _)| name == NUMBER).map_or(0, |(_, number)| *number);
        let mut this = Self { number, ..Self::default() };
        #[cfg(feature = "planted")]
        let parts = parts.filter(|part| part.pipeline != OUTGOING || !device::planted::is("contribution-forgotten"));
        for part in parts {
            let Some(bytes) = part.state else { continue };
            let damaged = |what: String| RunnerError::Rows(format!("a contribution in the state: {what}"));
            let record = LogRecord::decode(bytes).map_err(|e| damaged(e.to_string()))?;
            let LogBody::Partial(partial) = record.body else { return Err(damaged("it is none".to_owned())) };
            match part.pipeline.as_str() {
                OUTGOING => drop(this.outgoing.insert(partial.number, Letter { partial, arrived: None })),
                _ => this.parked.push(partial),
            }
        }
        Ok(this)
    }

    /// A contribution of this shard, to be sent when the checkpoint is durable.
    pub(super) fn post(&mut self, shard: ShardId, pipeline: String, state: Bytes) {
        self.number += 1;
        let partial = Partial { pipeline, shard, number: self.number, state };
        self.outgoing.insert(self.number, Letter { partial, arrived: None });
    }

    /// Keeps one that came too early.
    pub(super) fn park(&mut self, partial: Partial) {
        self.parked.push(partial);
    }

    /// Offers what is parked; what is not taken is given up if `last`, and stays otherwise.
    pub(super) fn unpark(
        &mut self,
        last: bool,
        mut take: impl FnMut(&Partial) -> Result<bool, RunnerError>,
    ) -> Result<(), RunnerError> {
        for partial in std::mem::take(&mut self.parked) {
            if take(&partial)? || last {
                self.unparked.push(slot(&partial));
            } else {
                self.parked.push(partial);
            }
        }
        Ok(())
    }

    /// What a checkpoint has to write of it. What has arrived is forgotten.
    pub(super) fn save(&mut self) -> (Vec<PipelinePart>, (String, u64)) {
        let part = |pipeline: &str, part, state| PipelinePart { pipeline: pipeline.to_owned(), part, state };
        let mut parts = Vec::new();
        self.outgoing.retain(|number, letter| {
            let arrived = letter.arrived.as_ref().is_some_and(|arrived| arrived.load(Ordering::Acquire));
            match &letter.arrived {
                _ if arrived => parts.push(part(OUTGOING, *number as i64, None)),
                None => parts.push(part(OUTGOING, *number as i64, Some(encode(&letter.partial)))),
                Some(_) => {}
            }
            !arrived
        });
        parts.extend(std::mem::take(&mut self.unparked).into_iter().map(|slot| part(PARKED, slot, None)));
        parts.extend(self.parked.iter().map(|partial| part(PARKED, slot(partial), Some(encode(partial)))));
        (parts, (NUMBER.to_owned(), self.number))
    }

    /// Sends what the state holds and was not sent yet.
    pub(super) fn send(&mut self, shards: u16, peers: &dyn Peers) {
        for letter in self.outgoing.values_mut().filter(|letter| letter.arrived.is_none()) {
            letter.arrived = peers.send(owner(&letter.partial.pipeline, shards), letter.partial.clone());
            if letter.arrived.is_none() {
                // Those behind it must not overtake it.
                break;
            }
        }
    }
}

fn encode(partial: &Partial) -> Bytes {
    let mut out = Vec::new();
    LogRecord { time: Timestamp(0), body: LogBody::Partial(partial.clone()) }.encode(&mut out);
    Bytes::from(out)
}

/// Where a parked one stands in the state.
fn slot(partial: &Partial) -> i64 {
    (i64::from(partial.shard.0) << 44) | (partial.number & ((1 << 44) - 1)) as i64
}
