//! Carries messages between a device's seat, its state machine and the committer. It decides nothing.
//!
//! What it owns besides the machine is the list of entries that are still being committed: before each step it
//! applies those that have become durable, so nobody has to send it a message for every commit.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use device::alert::{Ack, Event, IncidentId, Transition, Wants};
use device::entry::{Body, DeadLetter, Entries, Entry, Reason};
use device::id::DeviceId;
use device::machine::{self, Decision, Device, Effect, EpochLedger, Watch};
use device::payload::PayloadFormat;
use device::seq::Position;
use device::time::Timestamp;

use crate::admission::Credit;
use crate::handle::DeviceHandle;
use crate::message::{Channel, Inbound, Outcome, Reply};
use crate::metrics::add;
use crate::shard::Shard;

/// A step of a device failed: its state is not to be trusted any more.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What happened, for the log.
    pub(crate) text: String,
    /// The message that was not looked at yet: it belongs to the successor.
    pub(crate) untouched: Option<Box<Inbound>>,
}

/// An entry that is being committed.
#[derive(Debug)]
struct Staged {
    position: Position,
    entry: Entry,
    /// Streams that its records belong to.
    streams: u64,
}

/// A device that is awake.
#[derive(Debug)]
pub(crate) struct Carrier {
    shard: Arc<Shard>,
    device: Device,
    staged: VecDeque<Staged>,
    /// Number of the last transition that was pushed to the committer.
    logged: u64,
    /// How many of the staged entries their sender expects an ack frame for.
    to_acknowledge: usize,
}

impl Carrier {
    pub(crate) fn new(shard: Arc<Shard>, device: Device) -> Self {
        let device = device.with_rules(shard.shadow_rules.clone());
        Self { shard, device, staged: VecDeque::new(), logged: 0, to_acknowledge: 0 }
    }

    /// A message has its turn.
    pub(crate) fn take(&mut self, handle: &Arc<DeviceHandle>, message: Inbound) -> Result<(), Failure> {
        let mut message = Some(message);
        if let Some(message) = &message {
            self.device.heard(message.received);
        }
        let turn = self.guarded(|carrier| {
            carrier.settle(handle);
            message.take().map_or(Ok(()), |message| carrier.admit(handle, message))
        });
        let untouched = message.map(Box::new);
        turn.unwrap_or_else(|failure| Err(Failure { untouched, ..failure }))
    }

    /// Time has passed: acks and resend requests may be due.
    pub(crate) fn tick(&mut self, handle: &Arc<DeviceHandle>, now: Timestamp) -> Result<(), Failure> {
        self.guarded(|carrier| {
            // Acks say when they were made.
            carrier.device.heard(now);
            carrier.settle(handle);
            let effects = carrier.device.tick(now);
            carrier.carry_out(handle, effects);
            carrier.pass_time(handle, now);
            if carrier.device.owes() || !carrier.staged.is_empty() {
                carrier.shard.attend(handle);
            }
        })
    }

    /// The durable state, for a checkpoint.
    pub(crate) fn snapshot(&mut self, handle: &Arc<DeviceHandle>) -> Result<Bytes, Failure> {
        self.guarded(|carrier| {
            carrier.settle(handle);
            if !carrier.staged.is_empty() {
                // They will be durable behind this checkpoint: the next one has to ask again.
                carrier.shard.touch(handle);
            }
            Bytes::from(carrier.device.snapshot())
        })
    }

    /// The durable state if nothing is under way, so that the device may go to sleep with it.
    pub(crate) fn rest(&mut self, handle: &Arc<DeviceHandle>) -> Result<Option<Bytes>, Failure> {
        self.guarded(|carrier| {
            carrier.settle(handle);
            let quiet = carrier.staged.is_empty() && carrier.device.is_quiet();
            quiet.then(|| Bytes::from(carrier.device.snapshot()))
        })
    }

    /// The account of every epoch.
    pub(crate) fn ledger(&mut self, handle: &Arc<DeviceHandle>) -> Result<Vec<EpochLedger>, Failure> {
        self.guarded(|carrier| {
            carrier.settle(handle);
            carrier.device.ledger()
        })
    }

    /// A panic of the step is a failure of this device alone, on whatever thread it happens.
    fn guarded<T>(&mut self, step: impl FnOnce(&mut Self) -> T) -> Result<T, Failure> {
        catch_unwind(AssertUnwindSafe(|| step(self)))
            .map_err(|_| Failure { text: "a step of the device panicked".into(), untouched: None })
    }

    /// Applies what has become durable.
    fn settle(&mut self, handle: &Arc<DeviceHandle>) {
        if self.staged.is_empty() {
            return;
        }
        let durable = self.shard.committer.durable();
        while let Some(Staged { position, entry, streams }) =
            self.staged.pop_front_if(|staged| staged.position <= durable)
        {
            self.to_acknowledge -= usize::from(wants_ack(&entry));
            let book = &self.shard.book;
            let rules = (book.any() || self.device.is_alerting()).then(|| book.at(position));
            let watch = rules.as_ref().map(|rules| Watch { rules, streams });
            let effects = self.device.apply_under(position, &entry, watch);
            self.carry_out(handle, effects);
            if self.staged.front().is_none_or(|next| next.position > position) {
                self.device.advance(position);
            }
        }
        if self.device.is_alerting() {
            self.log_transitions(handle);
        }
    }

    /// Transitions that durable entries have made become entries.
    fn log_transitions(&mut self, handle: &Arc<DeviceHandle>) {
        while let Some((entry, last)) = self.device.unlogged((self.shard.clock)(), self.logged) {
            self.logged = last;
            self.stage(handle, entry, None);
        }
    }

    /// Commits an entry of the engine's own.
    fn stage(&mut self, handle: &Arc<DeviceHandle>, entry: Entry, reply: Option<Reply>) {
        // Before the push: a checkpoint that covers the entry must find this device on its list.
        self.shard.touch(handle);
        let reply = reply.map(|reply| (reply, Outcome::Stored));
        let position = self.shard.committer.push([entry.clone()], reply, Credit::free());
        self.staged.push_back(Staged { position, entry, streams: 0 });
        self.shard.attend(handle);
    }

    /// Whether time changes something for it: alerts, values and commands that end.
    pub(crate) fn heeds_time(&self) -> bool {
        self.device.is_alerting() || self.device.due().is_some()
    }

    /// Brings into the log what was made and never reached it, and has a tick soon.
    pub(crate) fn look_again(&mut self, handle: &Arc<DeviceHandle>) {
        self.log_transitions(handle);
        self.shard.attend(handle);
    }

    /// Says that time has passed if that changes an alert, or when to ask again.
    fn pass_time(&mut self, handle: &Arc<DeviceHandle>, now: Timestamp) {
        if !self.staged.is_empty() {
            return;
        }
        let overdue = self.device.overdue(now);
        if !overdue.is_empty() {
            self.stage_all(handle, overdue, None);
        }
        if let Some(at) = self.device.due()
            && handle.wants_reminder(at)
        {
            self.shard.book.remind(at, handle.id().clone());
        }
        if !self.device.is_alerting() || !self.staged.is_empty() {
            return;
        }
        let floor = self.shard.floor;
        match self.device.wants(&self.shard.book.now(), now, floor) {
            Wants::Now => {
                let entry = Entry { device: handle.id().clone(), received: now, body: Body::Tick { floor } };
                self.stage(handle, entry, None);
            }
            Wants::At(at) => {
                if handle.wants_reminder(at) {
                    self.shard.book.remind(at, handle.id().clone());
                }
            }
            Wants::Nothing => {}
        }
    }

    /// Somebody takes care of an incident, or (`None`) no longer does. False: it is not open. `reply` is told when
    /// it is durable.
    pub(crate) fn acknowledge(
        &mut self,
        handle: &Arc<DeviceHandle>,
        (incident, ack): (IncidentId, Option<Ack>),
        reply: Reply,
    ) -> Result<bool, Failure> {
        self.guarded(|carrier| {
            carrier.settle(handle);
            let open = carrier.device.has_incident(incident);
            if open {
                let body = Body::Acknowledge { incident, ack };
                let entry = Entry { device: handle.id().clone(), received: (carrier.shard.clock)(), body };
                carrier.stage(handle, entry, Some(reply));
            }
            open
        })
    }

    /// Commits entries of the engine's own, in one record.
    fn stage_all(&mut self, handle: &Arc<DeviceHandle>, entries: Entries, reply: Option<Reply>) {
        self.shard.touch(handle);
        let reply = reply.map(|reply| (reply, Outcome::Stored));
        let position = self.shard.committer.push(entries.clone(), reply, Credit::free());
        self.staged.extend(entries.into_iter().map(|entry| Staged { position, entry, streams: 0 }));
        self.shard.attend(handle);
    }

    /// Somebody asks the device for something. The answer counts when `reply` is told.
    pub(crate) fn request<T>(
        &mut self,
        handle: &Arc<DeviceHandle>,
        decide: &(impl Fn(&mut Device, Timestamp) -> (T, Entries) + ?Sized),
        reply: Reply,
    ) -> Result<T, Failure> {
        self.guarded(|carrier| {
            carrier.settle(handle);
            let (answer, entries) = decide(&mut carrier.device, (carrier.shard.clock)());
            if entries.is_empty() {
                carrier.shard.committer.push_reply(reply, Outcome::Stored);
            } else {
                carrier.stage_all(handle, entries, Some(reply));
            }
            answer
        })
    }

    /// Looks at the device as it is durable.
    pub(crate) fn look<T>(&mut self, handle: &Arc<DeviceHandle>, at: impl FnOnce(&Device) -> T) -> Result<T, Failure> {
        self.guarded(|carrier| {
            carrier.settle(handle);
            at(&carrier.device)
        })
    }

    fn admit(&mut self, handle: &Arc<DeviceHandle>, inbound: Inbound) -> Result<(), Failure> {
        let Inbound { channel, payload, format, received, session, reply, credit } = inbound;
        // What is told because of it goes out when it is durable, so a tick has to come.
        let keeps = !matches!(channel, Channel::Telemetry | Channel::Hello | Channel::HelloDue);
        let message = machine::Message {
            channel: match channel {
                Channel::Hello => machine::Channel::Hello,
                Channel::HelloDue => machine::Channel::HelloDue,
                _ => machine::Channel::Telemetry,
            },
            payload: &payload,
            format,
            received,
            session,
        };
        let metrics = &self.shard.metrics;
        add(&metrics.messages, 1);
        let (shard, device) = (&self.shard, &mut self.device);
        // Until the entries are pushed: streams change between two messages, never inside of one.
        let declared = shard.declared.read();
        let verdict = catch_unwind(AssertUnwindSafe(|| match &channel {
            Channel::Telemetry | Channel::Hello | Channel::HelloDue => {
                device.admit(message, &declared, &mut || (shard.random)())
            }
            Channel::Reported => device.report(message, None),
            Channel::PlainReported(name) => device.report(message, Some(name)),
            Channel::CommandResult => device.command_result(message),
            Channel::Status => device.presence(message),
            Channel::Listening => device.listening(message),
        }));
        let Ok(verdict) = verdict else {
            // The payload is kept so that the same bytes cannot fail the device for ever; the state goes, and the
            // device starts from what is durable.
            let text = "the device's state machine failed on this payload; it is kept here for diagnosis".to_owned();
            let letter = DeadLetter {
                sender: String::new(),
                topic: format!("devices/{}/{}", handle.id(), channel.topic()),
                reason: Reason::Failed,
                text: text.clone(),
                payload,
                accounted: None,
            };
            let entry = Entry { device: handle.id().clone(), received, body: Body::DeadLetter(letter) };
            self.shard.touch(handle);
            add(&metrics.received, 1);
            add(&metrics.dead_lettered, 1);
            let outcome = Outcome::Refused { reason: Reason::Failed, text: text.clone(), kept: true };
            self.shard.committer.push([entry], reply.map(|reply| (reply, outcome)), credit);
            return Err(Failure { text, untouched: None });
        };
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
            self.shard.touch(handle);
            let entries = verdict.entries.clone();
            let position = self.shard.committer.push(verdict.entries, reply.map(|reply| (reply, outcome)), credit);
            self.to_acknowledge += entries.iter().filter(|entry| wants_ack(entry)).count();
            let streams = verdict.streams;
            self.staged.extend(entries.into_iter().map(|entry| Staged { position, entry, streams }));
            if self.shard.book.any() && self.shard.book.now().look_at(streams) {
                self.shard.attend(handle);
            }
            drop(declared);
        } else if let Some(reply) = reply {
            match verdict.decision {
                Decision::Staged => self.shard.committer.push_reply(reply, outcome),
                _ => reply.send(outcome),
            }
        }
        self.carry_out(handle, verdict.effects);
        if self.to_acknowledge > 0 || self.device.owes() || keeps {
            self.shard.attend(handle);
        }
        Ok(())
    }

    fn carry_out(&self, handle: &DeviceHandle, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Publish { topic, payload, qos } => {
                    self.shard.downlink.publish(handle.id(), &topic, Bytes::from(payload), qos);
                }
                Effect::Alert(transition) => announce(handle.id(), &transition),
                Effect::Event(event) => {
                    add(&self.shard.metrics.events, 1);
                    tracing::info!(device = %handle.id(), ?event, "device event");
                }
            }
        }
    }
}

/// The log's part of telling people. The table `_alerts` has every transition.
fn announce(device: &DeviceId, transition: &Transition) {
    let Transition { rule, incident, severity, event, told, since, value, .. } = transition;
    let (rule, severity, since) = (&**rule, &**severity, since.0);
    match event {
        Event::Told => {
            let to = told.join(", ");
            tracing::warn!(%device, rule, %incident, severity, since, to, "alert: somebody has to be told");
        }
        Event::Fired | Event::Escalated | Event::Surfaced if !transition.history => {
            tracing::warn!(%device, rule, %incident, severity, since, value, "alert {}", event.as_str());
        }
        Event::Resolved if !transition.history => {
            let told = told.join(", ");
            tracing::info!(%device, rule, %incident, severity, since, told, "alert resolved");
        }
        _ => {}
    }
}

/// Whether the device expects an ack frame for this entry: only senders of frames do.
fn wants_ack(entry: &Entry) -> bool {
    match &entry.body {
        Body::Records(records) => records.format == PayloadFormat::Frame,
        Body::Loss(_) | Body::Closed { .. } => true,
        Body::Tick { .. }
        | Body::Acknowledge { .. }
        | Body::Transitions(_)
        | Body::Shadow(_)
        | Body::Command(_)
        | Body::Status(_) => false,
        Body::DeadLetter(letter) => letter.accounted.is_some(),
    }
}
