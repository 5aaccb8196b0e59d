//! PUBLISH from a client: to its device, to the live subscribers, and the acknowledgement when it may go out.

use std::sync::Arc;

use actors::admission::Credit;
use actors::message::{Channel, Inbound, Ingress, Outcome, OutcomeSink, Reply, Stray};
use bytes::{Buf, Bytes};
use device::entry::Reason;
use device::id::DeviceId;
use device::payload::PayloadFormat;
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Duration;

use super::connection::{Boxed, Connection, End, Wait};
use super::fault::{Fault, code};
use super::frame::{Frame, Version, kind};
use super::hub::Hub;
use super::identity::{Asker, Reminder};
use super::incoming::{Arrival, Verdict};
use super::message::{Delivery, Message};
use super::metrics::up;
use super::publish;
use super::reply;
use super::route::Target;
use crate::renewal;

/// What is left of a PUBLISH once its topic is resolved.
struct Head {
    qos: u8,
    retain: bool,
    packet_id: u16,
    expiry: Option<u32>,
    format: Option<PayloadFormat>,
    /// Where the payload begins.
    payload: usize,
    properties: Bytes,
}

/// The payload format that a MQTT 5 content type declares.
pub(crate) fn format(content_type: &str) -> Option<PayloadFormat> {
    match content_type.split(';').next().unwrap_or_default().trim() {
        "application/json" => Some(PayloadFormat::Json),
        "application/cbor" => Some(PayloadFormat::Cbor),
        "application/vnd.weir.frame+cbor" => Some(PayloadFormat::Frame),
        _ => None,
    }
}

/// What a client is told about an outcome. 3.1.1 has no words for a refusal: the message is over either way, and
/// the reason is published on the device's `errors` topic.
fn verdict(version: Version, words: bool, outcome: Outcome) -> Verdict {
    let Outcome::Refused { reason, text, .. } = outcome else { return Verdict::success() };
    if version == Version::V3 {
        return Verdict::success();
    }
    let code = match reason {
        Reason::BadPayload
        | Reason::BadFrame
        | Reason::Empty
        | Reason::UnknownSchema
        | Reason::SchemaMismatch
        | Reason::BadField => code::PAYLOAD_FORMAT,
        Reason::Window | Reason::EpochStorm => code::QUOTA,
        Reason::BadTopic | Reason::BadDevice => code::TOPIC_NAME,
        Reason::TooLarge | Reason::Failed => code::IMPLEMENTATION,
    };
    Verdict { code, text: words.then_some(text) }
}

/// A device that has not done what it was told to do about its certificate is told again after this time.
const REMIND_AGAIN: Duration = Duration::from_secs(600);

impl<I: Ingress, S: AsyncRead + AsyncWrite + Unpin> Connection<I, S> {
    /// Handles the PUBLISH at the start of the buffer, or begins to wait for what it needs first; then it is
    /// looked at again. Nothing is changed before everything is there.
    pub(crate) fn publish(&mut self, frame: Frame) -> Result<(), End> {
        let body = self.buf.get(frame.head..frame.len).unwrap_or_default();
        let publish = publish::parse(self.client.version, frame.flags, body)?;
        let topic = match publish.alias {
            0 => None,
            alias => Some(alias_of(&mut self.aliases_in, alias, publish.topic, self.shared.hub.limits.topic_aliases)?),
        };
        let topic = topic.as_deref().unwrap_or(publish.topic);
        let at = self.routes.find(topic, &self.identity);
        let Some(route) = self.routes.get(at) else { return Ok(()) };
        let live = matches!(route.target, Target::Live | Target::Device(..));
        let interest = live.then(|| route.interest(&self.shared.hub)).filter(|interest| interest.any());
        match &route.target {
            Target::Device(_, device) if route.door.is_none() => {
                let (ingress, device) = (self.shared.ingress.clone(), device.clone());
                self.wait = Wait::Door(Box::pin(async move { ingress.open(&device).await }), at, None);
                return Ok(());
            }
            Target::Device(..) | Target::Stray { .. } if self.credited < frame.len => {
                return self.take_credit(frame.len);
            }
            // Devices do not wait for live subscribers; who publishes to nobody else does, if he asked for more
            // than QoS 0.
            Target::Live if publish.qos > 0 && self.room.is_none() && interest.is_some_and(|i| i.wild) => {
                match room(&self.shared.hub, frame.len) {
                    Ok(room) => self.room = room,
                    Err(room) => {
                        self.wait = Wait::Room(room);
                        return Ok(());
                    }
                }
            }
            _ => {}
        }
        let may_retain = !publish.retain || !self.identity.is_strict() || self.identity.may_retain(&route.topic);
        let keeps = route.target.retains() && publish.retain || interest.is_some();
        let head = Head {
            qos: publish.qos,
            retain: publish.retain,
            packet_id: publish.packet_id,
            expiry: publish.expiry,
            format: publish.content_type.and_then(format),
            payload: frame.len - publish.payload.len(),
            properties: if keeps { publish::forwarded(publish.properties) } else { Bytes::new() },
        };

        let (mut ticket, mut repeated) = (None, false);
        if head.qos > 0 {
            let v5 = self.client.version == Version::V5;
            let limit = v5.then_some(usize::from(self.shared.hub.limits.receive_maximum));
            match self.core.incoming.publish(head.qos, head.packet_id, limit)? {
                Arrival::New(new) => ticket = Some(new),
                Arrival::Repeat => repeated = true,
            }
        }
        // Here it is taken: what is counted as received is counted once more where it goes.
        if let Some(count) = self.counts.received.get_mut(usize::from(head.qos)) {
            *count += 1;
        }
        if repeated {
            up(&self.shared.hub.metrics.repeated);
            self.buf.advance(frame.len);
            return Ok(());
        }
        let mut payload = self.buf.split_to(frame.len).freeze();
        payload.advance(head.payload);
        if !may_retain {
            return self.deny(at, ticket, "only status may be retained");
        }
        if self.routes.get(at).is_some_and(|route| route.target == Target::Denied) {
            return self.deny(at, ticket, self.identity.closed("this topic is not open to you"));
        }
        self.hand_on(at, head, payload, ticket, frame.len);
        Ok(())
    }

    fn hand_on(&mut self, at: usize, head: Head, payload: Bytes, ticket: Option<u64>, len: usize) {
        let Some(route) = self.routes.get(at) else { return };
        let reply = || ticket.map(|ticket| Reply { sink: self.session.sink.clone(), ticket });
        match &route.target {
            Target::Device(channel, device) => {
                let due = *channel == Channel::Hello && self.identity.is_due(device, self.received);
                let is_hello = *channel == Channel::Hello;
                let channel = if due { Channel::HelloDue } else { channel.clone() };
                let retains = route.target.retains();
                up(&self.shared.hub.metrics.to_device);
                self.credited = self.credited.saturating_sub(len);
                let Some(credit) = self.credit.clone() else { return };
                let inbound = Inbound {
                    channel,
                    payload: payload.clone(),
                    format: head.format,
                    received: self.received,
                    session: self.number,
                    reply: reply(),
                    credit,
                };
                self.push(at, inbound);
                // After the device, and only as a copy for the eyes: records are never taken from here.
                self.publish_live(at, Head { retain: head.retain && retains, ..head }, payload);
                if is_hello {
                    self.remind();
                }
            }
            Target::Stray { sender, reason, text } => {
                up(&self.shared.hub.metrics.to_nobody);
                self.credited = self.credited.saturating_sub(len);
                let Some(credit) = self.credit.clone() else { return };
                self.shared.ingress.stray(Stray {
                    sender: sender.clone(),
                    topic: route.topic.to_string(),
                    payload,
                    reason: *reason,
                    text: text.clone(),
                    received: self.received,
                    reply: reply(),
                    credit,
                });
            }
            Target::Provisioning(asker) => {
                up(&self.shared.hub.metrics.to_live);
                let asker = asker.clone();
                self.provision(asker, payload, ticket);
            }
            Target::Renewal(device) => {
                up(&self.shared.hub.metrics.to_live);
                let device = device.clone();
                self.renew(device, head.qos, payload, ticket);
            }
            Target::Live => {
                up(&self.shared.hub.metrics.to_live);
                let verdict = if self.publish_live(at, head, payload) {
                    Verdict::success()
                } else {
                    Verdict { code: code::QUOTA, text: Some("no more messages can be retained".into()) }
                };
                if let Some(ticket) = ticket {
                    self.core.incoming.decide(ticket, verdict);
                }
            }
            Target::Denied => {}
        }
    }

    /// Hands a request for a first certificate on.
    fn provision(&self, asker: Asker, payload: Bytes, ticket: Option<u64>) {
        let Some(guard) = self.shared.guard.clone() else { return };
        let topic = format!("provisioning/{}/res", asker.name());
        let answered = guard.provision(Some((asker, self.number)), self.peer, payload);
        let answer = async move { answered.await.map(|answered| answered.bytes()) };
        self.answer_when_decided(topic, 1, ticket, answer);
    }

    /// Hands a device's request for its next certificate on.
    fn renew(&self, device: DeviceId, qos: u8, payload: Bytes, ticket: Option<u64>) {
        let Some(guard) = self.shared.guard.clone() else { return };
        let topic = format!("devices/{device}/cert/res");
        let answer = guard.renew(self.identity.clone(), device, self.peer, payload);
        self.answer_when_decided(topic, qos.max(1), ticket, answer);
    }

    /// Tells a device what it is to do about its certificate, if it listens there: now and then, as long as it has not done it.
    pub(crate) fn remind(&mut self) {
        let Some(guard) = &self.shared.guard else { return };
        let Some((device, reminder)) = self.identity.reminder((self.shared.clock)()) else {
            self.reminded = None;
            return;
        };
        if self.reminded.is_some_and(|(told, at)| told == reminder && self.now.duration_since(at) < REMIND_AGAIN) {
            return;
        }
        let topic = format!("devices/{device}/cert/res");
        if !self.core.filters.iter().any(|filter| super::topic::matches(filter, &topic)) {
            return;
        }
        self.reminded = Some((reminder, self.now));
        let guard = guard.clone();
        let text = async move {
            match reminder {
                Reminder::Trust => guard.whom_to_trust().await,
                Reminder::Renew => Some(renewal::RENEW_NOW.into()),
            }
        };
        self.answer_when_decided(topic, 1, None, text);
    }

    /// The answer goes to this session alone, whatever else is subscribed, and the acknowledgement after it: both when what was
    /// decided is durable.
    fn answer_when_decided(
        &self,
        topic: String,
        qos: u8,
        ticket: Option<u64>,
        answer: impl Future<Output = Option<Vec<u8>>> + Send + 'static,
    ) {
        let (hub, session) = (self.shared.hub.clone(), self.session.clone());
        // Held until it is decided, as by every message that is on its way.
        let sink = self.session.sink.clone();
        tokio::spawn(async move {
            if let Some(answer) = answer.await {
                let (topic, payload, retain) = (Arc::from(topic), answer.into(), false);
                let message =
                    Message { topic, payload, qos, retain, properties: Bytes::new(), expires: None, publisher: 0 };
                hub.offer(&session, Delivery { message: Arc::new(message), qos, retain, ids: Vec::new() });
            }
            if let Some(ticket) = ticket {
                sink.decided(ticket, Outcome::Stored);
            }
        });
    }

    /// A message that goes nowhere.
    fn deny(&mut self, at: usize, ticket: Option<u64>, text: &'static str) -> Result<(), End> {
        up(&self.shared.hub.metrics.denied);
        if let Some(ticket) = ticket {
            self.core.incoming.decide(ticket, Verdict { code: code::NOT_AUTHORIZED, text: Some(text.into()) });
        }
        let topic = self.routes.get(at).map(|route| route.topic.clone());
        self.denied(topic.as_deref().unwrap_or_default(), text)
    }

    fn push(&mut self, at: usize, inbound: Inbound) {
        let Some(route) = self.routes.get(at) else { return };
        let Some(door) = &route.door else { return };
        if let Err(inbound) = self.shared.ingress.push(door, inbound) {
            // The device has gone to sleep: wake it, and hand over before anything else is read.
            route.door = None;
            if let Target::Device(_, device) = &route.target {
                let (ingress, device) = (self.shared.ingress.clone(), device.clone());
                self.wait = Wait::Door(Box::pin(async move { ingress.open(&device).await }), at, Some(inbound));
            }
        }
    }

    /// A device's door is open.
    pub(crate) fn opened(&mut self, at: usize, door: I::Door, message: Option<Inbound>) {
        if let Some(route) = self.routes.get(at) {
            route.door = Some(door);
        }
        if let Some(message) = message {
            self.push(at, message);
        }
    }

    /// Retains and publishes. False: it could not be retained.
    fn publish_live(&mut self, at: usize, head: Head, payload: Bytes) -> bool {
        let room = self.room.take();
        let hub = &self.shared.hub;
        let Some(route) = self.routes.get(at) else { return true };
        let interest = route.interest(hub);
        if !interest.any() && !head.retain {
            return true;
        }
        let message = Message {
            topic: route.topic.clone(),
            payload,
            qos: head.qos,
            retain: head.retain && self.identity.may_retain(&route.topic),
            properties: head.properties,
            expires: head.expiry.map(|seconds| self.now + Duration::from_secs(u64::from(seconds))),
            publisher: self.session.number,
        };
        let retained = !message.retain || hub.retain(&message).is_ok();
        if interest.any() {
            hub.publish(message, interest, room);
        }
        retained
    }

    /// Takes credit for all that was read, at once if there is some, else begins to wait for it.
    fn take_credit(&mut self, least: usize) -> Result<(), End> {
        let bytes = self.buf.len().max(least);
        if let Some(credit) = self.shared.ingress.admission().admit(bytes).now_or_never() {
            (self.credit, self.credited) = (Some(credit), bytes);
            return Ok(());
        }
        up(&self.shared.hub.metrics.stalls);
        let ingress = self.shared.ingress.clone();
        // What was credited before belongs to messages that are on their way.
        self.credit = None;
        self.wait = Wait::Credit(Box::pin(async move { ingress.admission().admit(bytes).await }), bytes);
        Ok(())
    }

    /// Takes in outcomes that have come, and writes the acknowledgements whose turn it is.
    pub(crate) fn settle(&mut self) {
        let spare = std::mem::take(&mut self.spare);
        let mut decisions = self.session.sink.take(spare);
        for (ticket, outcome) in decisions.drain(..) {
            if let Outcome::Refused { reason, .. } = &outcome {
                self.shared.hub.metrics.refused(*reason);
            }
            let verdict = verdict(self.client.version, self.client.problem_information, outcome);
            self.core.incoming.decide(ticket, verdict);
        }
        self.spare = decisions;
        self.acknowledge();
    }

    /// Writes the acknowledgements whose turn it is.
    pub(crate) fn acknowledge(&mut self) {
        while let Some(ack) = self.core.incoming.next() {
            let kind = if ack.qos == 1 { kind::PUBACK } else { kind::PUBREC };
            let text = ack.verdict.text.as_deref().filter(|_| self.client.problem_information);
            let limit = self.client.maximum_packet;
            reply::ack(self.client.version, kind, ack.packet_id, ack.verdict.code, text, limit, &mut self.out);
            self.counts.acknowledged += 1;
        }
    }
}

/// Takes room in the bus, or says what to wait for. No bus, no room: the message is then dropped and counted.
fn room(hub: &Arc<Hub>, bytes: usize) -> Result<Option<Credit>, Boxed<Credit>> {
    let Some(bus) = hub.bus.get() else { return Ok(None) };
    if let Some(room) = bus.room_now(bytes) {
        return Ok(Some(room));
    }
    let hub = hub.clone();
    Err(Box::pin(async move {
        match hub.bus.get() {
            Some(bus) => bus.room(bytes).await,
            None => Credit::free(),
        }
    }))
}

/// Resolves a topic alias, or sets it when a topic comes with it.
fn alias_of(known: &mut Vec<Option<Arc<str>>>, alias: u16, topic: &str, most: u16) -> Result<Arc<str>, Fault> {
    if alias > most {
        return Err(Fault::new(code::TOPIC_ALIAS, "the topic alias is above the maximum"));
    }
    let at = usize::from(alias) - 1;
    if known.len() <= at {
        known.resize(at + 1, None);
    }
    let Some(slot) = known.get_mut(at) else {
        return Err(Fault::new(code::TOPIC_ALIAS, "the topic alias is above the maximum"));
    };
    match slot {
        Some(set) if topic.is_empty() || &**set == topic => Ok(set.clone()),
        None if topic.is_empty() => Err(Fault::protocol("the topic alias was never set")),
        _ => {
            let set: Arc<str> = Arc::from(topic);
            *slot = Some(set.clone());
            Ok(set)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_to_those_who_can_hear_them() {
        let refused = |reason| Outcome::Refused { reason, text: "why".into(), kept: false };
        for (reason, expected) in [
            (Reason::Empty, 0x99),
            (Reason::SchemaMismatch, 0x99),
            (Reason::Window, 0x97),
            (Reason::BadTopic, 0x90),
            (Reason::Failed, 0x83),
        ] {
            let told = verdict(Version::V5, true, refused(reason));
            assert_eq!((told.code, told.text.as_deref()), (expected, Some("why")));
            assert_eq!(verdict(Version::V5, false, refused(reason)).text, None);
            assert_eq!(verdict(Version::V3, true, refused(reason)), Verdict::success());
        }
    }

    #[test]
    fn aliases_are_set_and_resolved() {
        let mut known = Vec::new();
        assert!(alias_of(&mut known, 2, "", 4).is_err());
        assert_eq!(&*alias_of(&mut known, 2, "a", 4).unwrap(), "a");
        assert_eq!(&*alias_of(&mut known, 2, "", 4).unwrap(), "a");
        assert_eq!(&*alias_of(&mut known, 2, "b", 4).unwrap(), "b");
        assert_eq!(&*alias_of(&mut known, 2, "", 4).unwrap(), "b");
        assert_eq!(alias_of(&mut known, 5, "b", 4).unwrap_err().code, code::TOPIC_ALIAS);
    }

    #[test]
    fn content_types_declare_formats() {
        assert_eq!(format("application/json; charset=utf-8"), Some(PayloadFormat::Json));
        assert_eq!(format("application/vnd.weir.frame+cbor"), Some(PayloadFormat::Frame));
        assert_eq!(format("text/plain"), None);
    }
}
