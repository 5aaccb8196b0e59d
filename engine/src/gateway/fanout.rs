//! From a publisher to the sessions that want the message.
//!
//! Sessions with an exact subscription are served directly. Sessions with a matching wildcard are served from
//! the far side of the bus: the message goes into rumqttd's router as an envelope and comes out in [`Hub::arrived`],
//! which applies MQTT's rules (lowest QoS, no local, retain flags, subscription identifiers, shared groups). A
//! session that has both gets one copy, from there. What the bus loses is a live message only: records of
//! devices do not come this way.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actors::admission::Credit;
use actors::message::Downlink;
use bytes::{Bytes, BytesMut};
use device::id::DeviceId;
use tokio::time::Instant;

use super::fault::code;
use super::hub::{Hub, Stamp};
use super::message::{Delivery, Envelope, Message};
use super::metrics::up;
use super::outgoing::{Dropped, Offered};
use super::retained::Full;
use super::session::Session;
use super::trie::{Entry, Subscriber};

/// Whether anybody wants a topic, and when that was asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interest {
    pub(crate) exact: bool,
    pub(crate) wild: bool,
    stamp: Stamp,
}

impl Interest {
    pub(crate) fn any(self) -> bool {
        self.exact || self.wild
    }
}

/// The copies of one message, one per session (and one per shared group).
struct Copies<'a> {
    message: &'a Message,
    list: Vec<Copy>,
    /// Where a session's copy stands; only built when there are many.
    index: HashMap<u64, usize>,
}

struct Copy {
    session: Arc<Session>,
    qos: u8,
    retain: bool,
    ids: Vec<u32>,
    shared: bool,
}

/// Sessions above which a copy is found by hash.
const FEW: usize = 16;

impl<'a> Copies<'a> {
    fn new(message: &'a Message) -> Self {
        Self { message, list: Vec::new(), index: HashMap::new() }
    }

    fn add(&mut self, entry: &Entry<Arc<Session>>, shared: bool) {
        if entry.options.no_local && entry.who.number == self.message.publisher {
            return;
        }
        let qos = entry.options.qos.min(self.message.qos);
        let retain = entry.options.as_published && self.message.retain;
        if !shared && let Some(at) = self.find(entry.who.number) {
            if let Some(copy) = self.list.get_mut(at) {
                copy.qos = copy.qos.max(qos);
                copy.retain |= retain;
                copy.ids.extend(entry.id);
            }
            return;
        }
        let ids = entry.id.into_iter().collect();
        if !shared && self.list.len() >= FEW {
            if self.index.is_empty() {
                let known = self.list.iter().enumerate().filter(|(_, copy)| !copy.shared);
                self.index = known.map(|(at, copy)| (copy.session.number, at)).collect();
            }
            self.index.insert(entry.who.number, self.list.len());
        }
        self.list.push(Copy { session: entry.who.clone(), qos, retain, ids, shared });
    }

    fn find(&self, number: u64) -> Option<usize> {
        if !self.index.is_empty() {
            return self.index.get(&number).copied();
        }
        self.list.iter().position(|copy| !copy.shared && copy.session.number == number)
    }
}

impl Hub {
    /// Whether anybody wants this topic.
    pub(crate) fn interest(&self, topic: &str, stripe: usize) -> Interest {
        // The stamp first: a change after it makes this answer old.
        let stamp = self.stamp(stripe);
        let (exact, wild) = self.trie.read().interest(topic);
        Interest { exact, wild, stamp }
    }

    /// Whether an answer still holds.
    pub(crate) fn current(&self, interest: &Interest, stripe: usize) -> bool {
        self.stamp(stripe) == interest.stamp
    }

    /// Keeps (or clears) a retained message.
    pub(crate) fn retain(&self, message: &Message) -> Result<(), Full> {
        let mut kept = message.clone();
        // A slice would keep the whole read buffer alive.
        kept.payload = Bytes::copy_from_slice(&message.payload);
        let result = self.retained.lock().set(Arc::new(kept));
        if result.is_err() {
            up(&self.metrics.dropped_retained);
        }
        result
    }

    /// Gives a message to everybody who wants it. `room` is credit of the bus, if the caller has waited for it.
    pub(crate) fn publish(&self, message: Message, interest: Interest, room: Option<Credit>) {
        let mut through = Vec::new();
        if interest.exact {
            let mut copies = Copies::new(&message);
            {
                let trie = self.trie.read();
                trie.exact(&message.topic, |entry, shared| copies.add(entry, shared));
                if interest.wild && !copies.list.is_empty() {
                    trie.wild(&message.topic, |entry, shared| {
                        if !shared && copies.find(entry.who.number).is_some() {
                            through.push(entry.who.number);
                        }
                    });
                }
            }
            through.sort_unstable();
            through.dedup();
            let mut list = copies.list;
            list.retain(|copy| copy.shared || through.binary_search(&copy.session.number).is_err());
            let shared_message = (!list.is_empty()).then(|| Arc::new(message.clone()));
            if let Some(message) = shared_message {
                self.hand_out(&message, list);
            }
        }
        if interest.wild {
            self.carry(message, through, room);
        }
    }

    /// Sends a message through the bus. `through` is sorted.
    fn carry(&self, message: Message, through: Vec<u64>, room: Option<Credit>) {
        let sent = self.bus.get().is_some_and(|bus| {
            let size = message.size();
            let Some(room) = room.or_else(|| bus.room_now(size)) else { return false };
            let mut parcel = BytesMut::new();
            bus.address(&mut parcel);
            Envelope { message, through }.encode(self.origin, &mut parcel);
            bus.send(parcel, room)
        });
        if !sent {
            up(&self.metrics.dropped_bus);
        }
    }

    /// An envelope has come out of the bus.
    pub(crate) fn arrived(&self, bytes: Bytes) {
        let Some(Envelope { message, through }) = Envelope::decode(bytes, self.origin) else {
            up(&self.metrics.dropped_bus);
            return;
        };
        up(&self.metrics.bus_messages);
        let mut copies = Copies::new(&message);
        {
            let trie = self.trie.read();
            trie.wild(&message.topic, |entry, shared| copies.add(entry, shared));
            if !through.is_empty() {
                trie.exact(&message.topic, |entry, shared| {
                    if !shared && through.binary_search(&entry.who.number).is_ok() {
                        copies.add(entry, false);
                    }
                });
            }
        }
        let list = copies.list;
        if !list.is_empty() {
            self.hand_out(&Arc::new(message), list);
        }
    }

    fn hand_out(&self, message: &Arc<Message>, copies: Vec<Copy>) {
        // What may wait for long must not keep a whole read buffer alive. One copy serves all of them.
        let mut kept: Option<Arc<Message>> = None;
        for Copy { session, qos, retain, ids, .. } in copies {
            let message = if session.online() {
                message.clone()
            } else {
                let copy = || Message { payload: Bytes::copy_from_slice(&message.payload), ..(**message).clone() };
                kept.get_or_insert_with(|| Arc::new(copy())).clone()
            };
            self.offer(&session, Delivery { message, qos, retain, ids });
        }
    }

    /// Puts a message into a session's queue.
    pub(crate) fn offer(&self, session: &Session, delivery: Delivery) {
        let room = self.queued.load(Ordering::Relaxed) < self.limits.queued_bytes;
        match self.with_outgoing(session, |outgoing| outgoing.offer(delivery, room)) {
            Offered::Queued => session.sink.signal.raise(),
            Offered::Dropped(count) => {
                self.metrics.dropped(Dropped::Full, count);
                session.sink.signal.raise();
            }
            Offered::Overflow => {
                self.metrics.dropped(Dropped::Full, 1);
                if session.kicked().is_none() {
                    up(&self.metrics.slow_consumers);
                    session.kick(code::QUOTA);
                }
            }
        }
    }

    /// Publishes a message of the engine itself, or a will: looks up interest and never waits for the bus.
    pub(crate) fn announce(&self, message: Message) {
        if message.expired(Instant::now()) {
            return;
        }
        let interest = self.interest(&message.topic, super::hub::stripe(&message.topic));
        if interest.any() {
            self.publish(message, interest, None);
        }
    }
}

impl Hub {
    /// Publishes something of the engine's own to whoever has subscribed to the topic now.
    pub(crate) fn tell(&self, topic: &Arc<str>, payload: Bytes) {
        let (topic, properties) = (topic.clone(), Bytes::new());
        self.announce(Message { topic, payload, qos: 1, retain: false, properties, expires: None, publisher: 0 });
    }
}

impl Downlink for Hub {
    fn publish(&self, device: &DeviceId, topic: &str, payload: Bytes, qos: u8) {
        let device = device.as_str();
        let mut name = String::with_capacity(9 + device.len() + topic.len());
        name.push_str("devices/");
        name.push_str(device);
        name.push('/');
        name.push_str(topic);
        let (exact, wild) = self.trie.read().interest(&name);
        if !exact && !wild {
            return;
        }
        let message = Message {
            topic: Arc::from(name),
            payload,
            qos: qos.min(2),
            retain: false,
            properties: Bytes::new(),
            expires: None,
            publisher: 0,
        };
        let interest = Interest { exact, wild, stamp: self.stamp(0) };
        Hub::publish(self, message, interest, None);
    }
}
