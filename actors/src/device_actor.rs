//! The actor of one device: carries messages between the inbox, the device's state machine and the committer.
//!
//! It decides nothing. What it owns besides the machine is the list of entries that are still being committed:
//! before each step it applies those that have become durable, so nobody has to send it a message for every
//! commit.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use device::entry::{Body, DeadLetter, Entry, Reason};
use device::id::DeviceId;
use device::machine::{self, Decision, Device, Effect};
use device::payload::PayloadFormat;
use device::seq::Position;
use device::time::Timestamp;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use crate::handle::DeviceHandle;
use crate::message::{Channel, Inbound, Outcome};
use crate::metrics::add;
use crate::shard::Shard;

/// Messages taken from the inbox before other actors get their turn.
pub const TURN: usize = 128;

/// Where the snapshots of a checkpoint are gathered. Dropping it unanswered counts as "no answer".
#[derive(Debug)]
pub struct SnapshotRequest {
    pub(crate) reply: tokio::sync::mpsc::Sender<(DeviceId, Option<Bytes>)>,
}

/// What a device actor is told.
#[derive(Debug)]
pub enum DeviceMessage {
    /// There are messages in the inbox.
    Work,
    /// Time has passed: acks and resend requests may be due.
    Tick,
    /// Give your durable state, for a checkpoint.
    Snapshot(SnapshotRequest),
    /// Nobody has talked to you for long: go to sleep if nothing is in flight.
    Passivate,
    /// Give your ledger.
    Ledger(oneshot::Sender<Vec<machine::EpochLedger>>),
}

/// What the actor starts from.
pub(crate) struct Start {
    pub(crate) shard: Arc<Shard>,
    pub(crate) handle: Arc<DeviceHandle>,
    /// The actor replaces one that failed: state must be rebuilt from the log.
    pub(crate) after_failure: bool,
}

pub(crate) struct State {
    shard: Arc<Shard>,
    handle: Arc<DeviceHandle>,
    after_failure: bool,
    device: Device,
    staged: VecDeque<(Position, Vec<Entry>)>,
    taken: Vec<Inbound>,
}

/// The ractor behaviour; all state is in [`State`].
pub(crate) struct DeviceActor;

impl Actor for DeviceActor {
    type Msg = DeviceMessage;
    type State = State;
    type Arguments = Start;

    async fn pre_start(&self, _myself: ActorRef<DeviceMessage>, start: Start) -> Result<State, ActorProcessingErr> {
        // The supervisor waits for this; loading waits for the store and comes in `post_start`.
        Ok(State {
            device: Device::new(start.handle.id().clone()),
            shard: start.shard,
            handle: start.handle,
            after_failure: start.after_failure,
            staged: VecDeque::new(),
            taken: Vec::new(),
        })
    }

    async fn post_start(&self, myself: ActorRef<DeviceMessage>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.device = state.shard.load(state.handle.id(), state.after_failure).await?;
        if state.after_failure {
            state.shard.touch(&state.handle);
        }
        add(&state.shard.metrics.woken, 1);
        state.handle.serve(myself);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<DeviceMessage>,
        message: DeviceMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DeviceMessage::Work => return state.work(&myself),
            DeviceMessage::Tick => state.tick((state.shard.clock)()),
            DeviceMessage::Snapshot(request) => {
                state.settle();
                let snapshot = Bytes::from(state.device.snapshot());
                if !state.staged.is_empty() {
                    // They will be durable behind this checkpoint: the next one has to ask again.
                    state.shard.touch(&state.handle);
                }
                let _ = request.reply.try_send((state.handle.id().clone(), Some(snapshot)));
            }
            DeviceMessage::Passivate => {
                state.settle();
                if state.staged.is_empty() && state.device.is_quiet() && state.shard.park(&state.handle, &state.device)
                {
                    myself.stop(None);
                }
            }
            DeviceMessage::Ledger(reply) => {
                state.settle();
                let _ = reply.send(state.device.ledger());
            }
        }
        Ok(())
    }
}

impl State {
    fn work(&mut self, myself: &ActorRef<DeviceMessage>) -> Result<(), ActorProcessingErr> {
        let mut taken = std::mem::take(&mut self.taken);
        self.handle.take(TURN, &mut taken);
        self.settle();
        let mut failed = None;
        for message in taken.drain(..) {
            add(&self.shard.metrics.messages, 1);
            if let Err(error) = self.admit(message) {
                failed = Some(error);
                break;
            }
        }
        if let Some(error) = failed {
            // What was taken but not looked at is lost with this actor; without an answer its senders repeat it.
            return Err(error);
        }
        self.taken = taken;
        if self.device.owes() || self.staged.iter().any(|(_, entries)| entries.iter().any(wants_ack)) {
            self.shard.attend(&self.handle);
        }
        if self.handle.rest() {
            return Ok(());
        }
        // Others have their turn first.
        myself.send_message(DeviceMessage::Work).map_err(|e| ActorProcessingErr::from(e.to_string()))
    }

    /// Applies what has become durable.
    fn settle(&mut self) {
        let durable = self.shard.committer.durable();
        while self.staged.front().is_some_and(|(position, _)| *position <= durable) {
            let Some((position, entries)) = self.staged.pop_front() else { return };
            for entry in &entries {
                let effects = self.device.apply(position, entry);
                self.carry_out(effects);
            }
            if self.staged.front().is_none_or(|(next, _)| *next > position) {
                self.device.advance(position);
            }
        }
    }

    fn tick(&mut self, now: Timestamp) {
        self.settle();
        let effects = self.device.tick(now);
        self.carry_out(effects);
        if self.device.owes() || !self.staged.is_empty() {
            self.shard.attend(&self.handle);
        }
    }

    fn admit(&mut self, inbound: Inbound) -> Result<(), ActorProcessingErr> {
        let Inbound { channel, payload, format, received, session, reply, credit } = inbound;
        let message = machine::Message {
            channel: match channel {
                Channel::Telemetry => machine::Channel::Telemetry,
                Channel::Hello => machine::Channel::Hello,
            },
            payload: &payload,
            format,
            received,
            session,
        };
        let shard = self.shard.clone();
        let device = &mut self.device;
        let verdict =
            catch_unwind(AssertUnwindSafe(|| device.admit(message, &shard.catalog, &mut || (shard.random)())));
        let Ok(verdict) = verdict else {
            // The payload is kept so that the same bytes cannot fail the device for ever; the actor goes, and its
            // successor starts from what is durable.
            let text = "the device's state machine failed on this payload; it is kept here for diagnosis".to_owned();
            let letter = DeadLetter {
                sender: String::new(),
                topic: format!("devices/{}/{}", self.handle.id(), topic_of(channel)),
                reason: Reason::Failed,
                text: text.clone(),
                payload,
                accounted: None,
            };
            let entry = Entry { device: self.handle.id().clone(), received, body: Body::DeadLetter(letter) };
            self.shard.touch(&self.handle);
            add(&self.shard.metrics.received, 1);
            add(&self.shard.metrics.dead_lettered, 1);
            let outcome = Outcome::Refused { reason: Reason::Failed, text: text.clone(), kept: true };
            self.shard.committer.push([entry], reply.map(|reply| (reply, outcome)), credit);
            return Err(ActorProcessingErr::from(text));
        };
        let metrics = &self.shard.metrics;
        add(&metrics.received, verdict.counts.received);
        add(&metrics.stored, verdict.counts.stored);
        add(&metrics.duplicate, verdict.counts.duplicate);
        add(&metrics.nacked, verdict.counts.nacked);
        add(&metrics.dead_lettered, verdict.counts.dead);
        let outcome = match verdict.decision {
            Decision::Commit | Decision::Duplicate | Decision::Staged => Outcome::Stored,
            Decision::Kept(ref refusal) => {
                Outcome::Refused { reason: refusal.reason, text: refusal.text.clone(), kept: true }
            }
            Decision::Refused(ref refusal) => {
                Outcome::Refused { reason: refusal.reason, text: refusal.text.clone(), kept: false }
            }
        };
        if !verdict.entries.is_empty() {
            // Before the push: a checkpoint that covers the entries must find this device on its list.
            self.shard.touch(&self.handle);
            let entries = verdict.entries.clone();
            let position = self.shard.committer.push(verdict.entries, reply.map(|reply| (reply, outcome)), credit);
            self.staged.push_back((position, entries));
        } else if let Some(reply) = reply {
            match verdict.decision {
                Decision::Staged => self.shard.committer.push_reply(reply, outcome),
                _ => reply.send(outcome),
            }
        }
        self.carry_out(verdict.effects);
        Ok(())
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Publish { topic, payload, qos } => {
                    self.shard.downlink.publish(self.handle.id(), topic, Bytes::from(payload), qos);
                }
                Effect::Event(event) => {
                    add(&self.shard.metrics.events, 1);
                    tracing::info!(device = %self.handle.id(), ?event, "device event");
                }
            }
        }
    }
}

fn topic_of(channel: Channel) -> &'static str {
    match channel {
        Channel::Telemetry => "telemetry",
        Channel::Hello => "hello",
    }
}

/// Whether the device expects an ack frame for this entry: only senders of frames do.
fn wants_ack(entry: &Entry) -> bool {
    match &entry.body {
        Body::Records(records) => records.format == PayloadFormat::Frame,
        Body::Loss(_) | Body::Closed { .. } => true,
        Body::DeadLetter(letter) => letter.accounted.is_some(),
    }
}
