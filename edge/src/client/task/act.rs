//! Carrying out the agent's actions, and turning messages into its events.

use std::sync::atomic::Ordering;

use device::entry::LossReason;
use device::hello::Hello;
use device::seq::Epoch;
use device::shadow::DEFAULT;
use tokio::time::Instant;

use super::Task;
use crate::agent::{Action, EpochAck, Event};
use crate::clock::Exchange;
use crate::frame::{self, Times};
use crate::mqtt::{Incoming, Outgoing};
use crate::outbox::{EpochView, Lost, Outbox};
use crate::wire;

/// With more than this waiting for the socket, nothing is sent again: it would only wait behind its first copy.
const MAX_QUEUED: usize = 256 << 10;

pub(super) fn telemetry<'a>(topic: &'a str, payload: &'a [u8]) -> Outgoing<'a> {
    Outgoing { topic, payload, qos: 0, retain: false, dup: false, content_type: None }
}

pub(super) fn status<'a>(topic: &'a str, payload: &'a [u8]) -> Outgoing<'a> {
    Outgoing { qos: 1, retain: true, ..telemetry(topic, payload) }
}

impl Task {
    pub(super) async fn incoming(&mut self, message: Incoming) {
        let Some(message) = self.certified(message).await else { return };
        match message {
            Incoming::Message { topic, payload } if topic == self.topics.ack => match wire::ack(&payload) {
                Some((ack, times)) => {
                    self.answered(times);
                    self.step(Event::Ack(ack)).await;
                }
                None => tracing::warn!(device = %self.config.device, "an ack frame that does not decode"),
            },
            Incoming::Message { topic, payload } if topic == self.topics.hello_ack => {
                if let Some(greeting) = wire::hello_ack(&payload, self.session) {
                    self.answered(greeting.times);
                    self.reconnect_wait = super::RECONNECT_AFTER;
                    self.step(Event::HelloAck(greeting.ack)).await;
                    self.greeted(greeting.wish).await;
                    self.papers(crate::identity::Event::Greeted { renew: greeting.renew }).await;
                }
            }
            Incoming::Message { topic, payload } if topic == self.topics.errors => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(device = %self.config.device, error = %String::from_utf8_lossy(&payload), "refused");
            }
            Incoming::Message { topic, payload } if topic == self.topics.config => self.wanted(payload).await,
            Incoming::Message { topic, payload } if topic == self.topics.commands => self.commanded(payload).await,
            Incoming::Message { .. } => {}
            Incoming::Acknowledged { refused: Some(reason), .. } => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(device = %self.config.device, %reason, "the engine refused a message");
            }
            Incoming::Acknowledged { refused: None, id } => self.taken(id).await,
        }
    }

    pub(super) async fn step(&mut self, event: Event) {
        self.steps(vec![event]).await;
    }

    /// Gives events to the agent and does what it says. What that leads to is done in turn, not by recursion.
    pub(super) async fn steps(&mut self, mut events: Vec<Event>) {
        while !events.is_empty() {
            for event in std::mem::take(&mut events) {
                let actions = self.agent.step(event, self.elapsed());
                for action in actions {
                    self.act(action, &mut events).await;
                }
            }
        }
        if let Some(outbox) = &self.outbox
            && outbox.is_dirty()
            && self.commit_at.is_none()
        {
            self.commit_at = Some(Instant::now() + self.config.commit_after);
        }
    }

    async fn act(&mut self, action: Action, events: &mut Vec<Event>) {
        match action {
            Action::Hello(epochs) => self.hello(&epochs),
            Action::Send { epoch, first, last, attempt } => self.send(epoch, first, last, attempt),
            Action::Declare(lost) => {
                let Some(epoch) = lost.first().map(|lost| lost.epoch) else { return };
                let stamp = self.stamp();
                self.clocks.sends(stamp);
                let times = Times { measured: self.clocks.measured(stamp), ..Times::of(stamp) };
                if let Some(frame) = frame::declare(epoch, &lost, self.schema, &times) {
                    self.publish_frame(&frame);
                }
            }
            Action::Forget(ack) => self.forget(&ack),
            Action::Fork(old) => {
                tracing::warn!(device = %self.config.device, epoch = old.0,
                    "the engine knows more of this epoch than the outbox, which seems to be a copy of an older \
                     state: everything unacknowledged gets new numbers");
                let fresh = Epoch(rand::random::<u64>() & device::seq::MAX_SEQ);
                match self.blocking(move |outbox: &mut Outbox| outbox.fork(old, fresh)).await {
                    Ok(()) => {
                        let last = self.outbox.as_ref().map(Outbox::epochs).unwrap_or_default();
                        let last = last.last().map_or(0, |view| view.last);
                        events.push(Event::Forked { old, fresh, last });
                    }
                    // The agent sends nothing more of the epoch; the next opening of the store begins a new one.
                    Err(error) => tracing::error!(device = %self.config.device, %error, "cannot renumber"),
                }
            }
        }
    }

    fn hello(&mut self, epochs: &[EpochView]) {
        let Some(outbox) = &self.outbox else { return };
        let stamp = self.stamp();
        let hello = Hello {
            install: outbox.install().to_vec(),
            fw: self.config.firmware.clone(),
            epochs: wire::held(epochs),
            boot_no: outbox.boots(),
            mono: Some(stamp.mono),
            st: Some(stamp.wall),
            session: self.session,
            applied_dv: self.keeper.watch().borrow().shadows().get(DEFAULT).map(|held| held.applied_dv),
            ..Hello::default()
        };
        self.clocks.sends(stamp);
        let Some(link) = &mut self.link else { return };
        let (payload, online) = (hello.encode(), wire::online(&hello));
        let message = Outgoing { qos: 1, ..telemetry(&self.topics.hello, &payload) };
        let sent = link.publish(&message).and_then(|_| link.publish(&status(&self.topics.status, &online)));
        if let Err(error) = sent {
            tracing::warn!(device = %self.config.device, %error, "cannot send a hello");
        }
    }

    fn send(&mut self, epoch: Epoch, first: u64, last: u64, attempt: u32) {
        if attempt > 1 && self.link.as_ref().is_some_and(|link| link.queued() > MAX_QUEUED) {
            return;
        }
        if attempt > 1 {
            // Disorder on purpose ends here: held back for longer, frames would be lost on purpose.
            self.disorder = 0;
        }
        let stamp = self.stamp();
        let Some(outbox) = &mut self.outbox else { return };
        let count = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
        // A failing read is tried again when the time of the range is up, as if the frame had been lost.
        let records = match outbox.read(epoch, first, last, count) {
            Ok(records) => records,
            Err(error) => {
                tracing::warn!(device = %self.config.device, %error, "cannot read what is to be sent");
                return;
            }
        };
        self.clocks.sends(stamp);
        let clocks = &self.clocks;
        let apart = |seq| clocks.apart(epoch, seq);
        let times = Times { stamp, measured: clocks.measured(stamp), apart: &apart };
        let (frames, bad) = frame::pack(epoch, &records, &self.config.frame, &times);
        for seq in bad {
            outbox.declare(Lost { epoch, from: seq, to: seq, reason: LossReason::StorageCorrupt });
        }
        for frame in frames {
            self.publish_frame(&frame);
        }
    }

    fn publish_frame(&mut self, frame: &[u8]) {
        let Some(link) = &mut self.link else { return };
        self.held_back.push(frame.to_vec());
        if self.held_back.len() < self.disorder as usize {
            return;
        }
        self.disorder = 0;
        for frame in self.held_back.drain(..).rev() {
            let copies = if self.twice > 0 { 2 } else { 1 };
            self.twice = self.twice.saturating_sub(1);
            for _ in 0..copies {
                self.shared.sent_frames.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = link.publish(&telemetry(&self.topics.telemetry, &frame)) {
                    tracing::warn!(device = %self.config.device, %error, "cannot send a frame");
                }
            }
        }
    }

    fn forget(&mut self, ack: &EpochAck) {
        let Some(outbox) = &mut self.outbox else { return };
        if let Err(error) = outbox.forget(Epoch(ack.epoch), ack.cum, &ack.ranges) {
            // What stays is sent again after a restart and recognised as a duplicate.
            tracing::warn!(device = %self.config.device, %error, "cannot remove what is acknowledged");
        }
        let now = Instant::now();
        while let Some((epoch, last, count, since)) = self.timed.front().copied() {
            if epoch.0 != ack.epoch || last > ack.cum {
                break;
            }
            self.config.latency.add(now.saturating_duration_since(since), count);
            self.timed.pop_front();
        }
    }

    /// The engine has answered: that measures the clock.
    fn answered(&mut self, times: Option<Exchange>) {
        let now = self.stamp();
        if let Some(times) = times {
            self.clocks.answered(times, now);
        }
    }

    /// Room may have come with an ack: goes on with what waits for it.
    pub(super) async fn unstall(&mut self) {
        if let Some(batch) = self.stalled.take() {
            self.push(batch).await;
        }
    }
}
