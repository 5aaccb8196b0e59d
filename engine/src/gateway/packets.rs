//! Every packet but PUBLISH from a client, and what its session has for it.

use actors::admission::Credit;
use actors::message::{Channel, Inbound, Ingress};
use bytes::Bytes;
use device::id::DeviceId;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Connection, End, Owed};
use super::control::{self, Retained};
use super::fault::{Fault, code};
use super::frame::{Frame, Version, kind};
use super::limits::OUT_HIGH;
use super::message::Delivery;
use super::metrics::up;
use super::outgoing::{Dropped, Next};
use super::publish::Outgoing;
use super::topic::{self, Filter, NoFilter};
use super::{reply, route};

/// Retained messages looked up at one time.
const PAGE: usize = 32;

impl<I: Ingress, S: AsyncRead + AsyncWrite + Unpin> Connection<I, S> {
    /// Handles one packet.
    pub(crate) fn packet(&mut self, frame: Frame, body: &[u8]) -> Result<(), End> {
        let version = self.client.version;
        match frame.kind {
            kind::PUBACK | kind::PUBREC | kind::PUBREL | kind::PUBCOMP => {
                let ack = control::ack(version, frame.kind, body)?;
                self.answer(frame.kind, ack);
            }
            kind::SUBSCRIBE => self.subscribe(&control::subscribe(version, body)?)?,
            kind::UNSUBSCRIBE => self.unsubscribe(&control::unsubscribe(version, body)?)?,
            kind::PINGREQ if body.is_empty() => reply::pingresp(&mut self.out),
            kind::PINGREQ => return Err(Fault::malformed("PINGREQ has no content").into()),
            kind::DISCONNECT => {
                let disconnect = control::disconnect(version, body)?;
                if disconnect.session_expiry.is_some_and(|seconds| seconds > 0) && !self.client.persistent {
                    return Err(Fault::protocol("a session expiry of 0 cannot be changed by DISCONNECT").into());
                }
                return Err(End::Client(disconnect));
            }
            kind::CONNECT => return Err(Fault::protocol("CONNECT must come once").into()),
            kind::AUTH if version == Version::V5 => {
                return Err(Fault::protocol("no authentication exchange was agreed on").into());
            }
            _ => return Err(Fault::protocol("a client must not send this packet").into()),
        }
        Ok(())
    }

    fn answer(&mut self, which: u8, ack: control::Ack) {
        let (version, limit) = (self.client.version, self.client.maximum_packet);
        let mut say = |kind, code| reply::ack(version, kind, ack.packet_id, code, None, limit, &mut self.out);
        match which {
            kind::PUBACK => self.session.outgoing.lock().acknowledged(ack.packet_id),
            kind::PUBCOMP => self.session.outgoing.lock().completed(ack.packet_id),
            kind::PUBREC => match self.session.outgoing.lock().received(ack.packet_id, ack.code) {
                Some(true) => say(kind::PUBREL, code::SUCCESS),
                Some(false) => {}
                None if ack.code >= 0x80 => {}
                None => say(kind::PUBREL, code::PACKET_ID_UNKNOWN),
            },
            _ => {
                let known = self.core.incoming.release(ack.packet_id);
                say(kind::PUBCOMP, if known { code::SUCCESS } else { code::PACKET_ID_UNKNOWN });
            }
        }
    }

    fn subscribe(&mut self, subscribe: &control::Subscribe) -> Result<(), End> {
        self.answer_fits(subscribe.filters.len())?;
        self.counts.others += subscribe.filters.len() as u64;
        let hub = self.shared.hub.clone();
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        let mut denied = None;
        for (text, options) in &subscribe.filters {
            let filter = match self.filter(text)? {
                Ok(filter) => filter,
                Err(code) => {
                    codes.push(code);
                    continue;
                }
            };
            if !self.identity.may_subscribe(text) {
                codes.push(code::NOT_AUTHORIZED);
                denied = Some(text);
                continue;
            }
            if hub.limits.no_subscribe.iter().any(|closed| topic::covers(closed, filter.path)) {
                // Not "not authorized": it is closed to everybody, whoever asks.
                codes.push(code::UNSPECIFIED);
                continue;
            }
            match hub.subscribe(&self.session, &mut self.core, text, &filter, *options, subscribe.id) {
                Err(code) => {
                    up(&hub.metrics.subscriptions_refused);
                    codes.push(code);
                }
                Ok(new) => {
                    codes.push(options.qos);
                    if let Some(device) = route::listener(filter.path) {
                        self.announce_listener(device);
                    }
                    let wanted = match options.retained {
                        Retained::Always => true,
                        Retained::IfNew => new,
                        Retained::Never => false,
                    };
                    self.owed.retain(|owed| *owed.filter != **text);
                    if wanted && filter.group.is_none() {
                        let filter = text.as_str().into();
                        self.owed.push_back(Owed { filter, options: *options, id: subscribe.id, after: None });
                    }
                }
            }
        }
        reply::suback(self.client.version, subscribe.packet_id, &codes, &mut self.out);
        match denied {
            Some(filter) => self.denied(filter, self.identity.closed("this topic filter is not open to you")),
            None => Ok(()),
        }
    }

    /// Tells a device that somebody listens to what it is told, so that what is wanted of it is said again.
    fn announce_listener(&self, device: DeviceId) {
        let ingress = self.shared.ingress.clone();
        let (received, session) = (self.received, self.number);
        tokio::spawn(async move {
            // Once more if it falls asleep in between.
            for _ in 0..2 {
                let door = ingress.open(&device).await;
                let inbound = Inbound {
                    channel: Channel::Listening,
                    payload: Bytes::new(),
                    format: None,
                    received,
                    session,
                    reply: None,
                    credit: Credit::free(),
                };
                if ingress.push(&door, inbound).is_ok() {
                    return;
                }
            }
        });
    }

    fn unsubscribe(&mut self, unsubscribe: &control::Unsubscribe) -> Result<(), End> {
        self.answer_fits(unsubscribe.filters.len())?;
        self.counts.others += unsubscribe.filters.len() as u64;
        let hub = self.shared.hub.clone();
        let mut codes = Vec::with_capacity(unsubscribe.filters.len());
        for text in &unsubscribe.filters {
            let filter = match self.filter(text)? {
                Ok(filter) => filter,
                Err(code) => {
                    codes.push(code);
                    continue;
                }
            };
            let found = hub.unsubscribe(&self.session, &mut self.core, text, &filter);
            self.owed.retain(|owed| *owed.filter != **text);
            codes.push(if found { code::SUCCESS } else { code::NO_SUBSCRIPTION });
        }
        reply::unsuback(self.client.version, unsubscribe.packet_id, &codes, &mut self.out);
        Ok(())
    }

    /// Takes a filter apart. One that the standard forbids ends the connection; one that is only not served here
    /// has the code of its own in the answer.
    fn filter<'t>(&self, text: &'t str) -> Result<Result<Filter<'t>, u8>, Fault> {
        Ok(match topic::filter(text) {
            Ok(filter) => Ok(filter),
            Err(why @ NoFilter::Malformed) => return Err(Fault::malformed(why.text())),
            Err(why @ NoFilter::Share) if self.client.version == Version::V5 => {
                return Err(Fault::protocol(why.text()));
            }
            Err(NoFilter::Share | NoFilter::Deep) => Err(code::TOPIC_FILTER),
        })
    }

    /// Whether SUBACK or UNSUBACK with so many codes is within the client's maximum packet size.
    fn answer_fits(&self, codes: usize) -> Result<(), Fault> {
        // Fixed header of at most 5 bytes, packet identifier, no properties.
        if 5 + 2 + 1 + codes > self.client.maximum_packet {
            return Err(Fault::new(
                code::TOO_LARGE,
                "the answer would be larger than the client's maximum packet size",
            ));
        }
        Ok(())
    }

    /// Writes what the session has for the client, as far as it fits.
    pub(crate) fn deliver(&mut self) {
        self.pay_owed();
        let hub = self.shared.hub.clone();
        let session = self.session.clone();
        let mut expired = 0;
        hub.with_outgoing(&session, |outgoing| {
            while self.unwritten() < OUT_HIGH {
                match outgoing.next(self.now, &mut expired) {
                    None => return,
                    Some(Next::Release(packet_id)) => {
                        let limit = self.client.maximum_packet;
                        reply::ack(self.client.version, kind::PUBREL, packet_id, 0, None, limit, &mut self.out);
                    }
                    Some(Next::Publish { delivery, packet_id, dup }) => {
                        if !self.write(&delivery, packet_id, dup) {
                            outgoing.forget(packet_id);
                            hub.metrics.dropped(Dropped::TooLarge, 1);
                        }
                    }
                }
            }
            self.held |= outgoing.ready();
        });
        if expired > 0 {
            hub.metrics.dropped(Dropped::Expired, expired);
        }
    }

    /// Writes one message. False: it is larger than the client takes.
    fn write(&mut self, delivery: &Delivery, packet_id: u16, dup: bool) -> bool {
        let message = &delivery.message;
        let known = self.aliases_out.get(&message.topic).copied();
        let new = known.is_none() && self.aliases_out.len() < usize::from(self.client.topic_aliases);
        let alias = match known {
            Some(alias) => alias,
            None if new => self.aliases_out.len() as u16 + 1,
            None => 0,
        };
        let packet = Outgoing {
            topic: if known.is_some() { "" } else { &message.topic },
            qos: delivery.qos,
            retain: delivery.retain,
            dup,
            packet_id,
            alias,
            expiry: message.seconds_left(self.now),
            properties: &message.properties,
            subscriptions: &delivery.ids,
            payload: &message.payload,
        };
        if packet.size(self.client.version) > self.client.maximum_packet {
            return false;
        }
        packet.put(self.client.version, &mut self.out);
        if new {
            self.aliases_out.insert(message.topic.clone(), alias);
        }
        self.counts.delivered += 1;
        true
    }

    /// Queues retained messages for new subscriptions: a page at a time, and only when the queue is nearly empty,
    /// so that a wide filter over many topics neither fills the queue nor holds the store for long.
    fn pay_owed(&mut self) {
        if self.owed.is_empty() || self.unwritten() >= OUT_HIGH {
            return;
        }
        let hub = self.shared.hub.clone();
        let Some(mut owed) = self.owed.pop_front() else { return };
        if !self.session.outgoing.lock().hungry() {
            self.owed.push_front(owed);
            return;
        }
        let page = hub.retained.lock().page(&owed.filter, owed.after.as_ref(), PAGE, self.now);
        for message in page.messages {
            let qos = message.qos.min(owed.options.qos);
            let ids = owed.id.into_iter().collect();
            hub.offer(&self.session, Delivery { message, qos, retain: true, ids });
        }
        owed.after = page.after;
        if owed.after.is_some() {
            self.owed.push_front(owed);
        }
        if !self.owed.is_empty() {
            // Comes back for the rest when this page is on its way.
            self.session.sink.signal.raise();
        }
    }
}
