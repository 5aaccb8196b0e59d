//! Messages to a client: the queue, what is in flight, and what a full queue drops.
//!
//! A pure state machine. It belongs to the session and goes on while the client is away.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::message::Delivery;

/// Why a message for a session was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// Its queue, or all queues together, held too much.
    Full,
    /// Its time was over.
    Expired,
    /// Larger than the client accepts.
    TooLarge,
    /// QoS 0 for a client that is away.
    Away,
}

/// What became of a message that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offered {
    Queued,
    /// This one, or older ones in its place.
    Dropped(usize),
    /// A connected client without a persistent session cannot keep up: it must go.
    Overflow,
}

/// What is to be written next.
#[derive(Debug, Clone)]
pub(crate) enum Next {
    Publish {
        delivery: Delivery,
        packet_id: u16,
        dup: bool,
    },
    /// PUBREL.
    Release(u16),
}

/// Bounds of one queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
struct Flight {
    /// Order of first sending: repeats keep it.
    order: u64,
    /// Its PUBLISH was written on this connection and counts against the client's receive maximum.
    counted: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// PUBLISH is out; PUBACK or PUBREC is awaited.
    Sent(Delivery),
    /// PUBREL is out; PUBCOMP is awaited.
    Released,
}

/// The session's messages towards its client.
#[derive(Debug)]
pub(crate) struct Outgoing {
    bounds: Bounds,
    queue: VecDeque<Delivery>,
    bytes: usize,
    flights: HashMap<u16, Flight>,
    /// To be written again on a new connection, in order.
    again: VecDeque<u16>,
    last_id: u16,
    order: u64,
    /// The client's receive maximum on this connection, and what counts against it.
    window: u16,
    counted: usize,
    connected: bool,
    persistent: bool,
    /// The session is over: what still comes is dropped.
    closed: bool,
}

impl Outgoing {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            queue: VecDeque::new(),
            bytes: 0,
            flights: HashMap::new(),
            again: VecDeque::new(),
            last_id: 0,
            order: 0,
            window: u16::MAX,
            counted: 0,
            connected: false,
            persistent: false,
            closed: false,
        }
    }

    /// A connection begins: what was in flight is written again.
    pub(crate) fn attach(&mut self, window: u16, persistent: bool) {
        (self.window, self.persistent, self.connected) = (window.max(1), persistent, true);
        self.counted = 0;
        self.flights.values_mut().for_each(|flight| flight.counted = false);
        let mut again: Vec<(u64, u16)> = self.flights.iter().map(|(id, f)| (f.order, *id)).collect();
        again.sort_unstable();
        self.again = again.into_iter().map(|(_, id)| id).collect();
    }

    /// The connection is gone. Queued QoS 0 messages go with it.
    pub(crate) fn detach(&mut self) -> usize {
        self.connected = false;
        self.again.clear();
        let before = self.queue.len();
        self.queue.retain(|delivery| delivery.qos > 0);
        self.bytes = self.queue.iter().map(|d| d.message.size()).sum();
        self.queue.shrink_to_fit();
        before - self.queue.len()
    }

    /// Bytes that wait in the queue.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes in a message. `room`: whether all queues together may still grow.
    pub(crate) fn offer(&mut self, delivery: Delivery, room: bool) -> Offered {
        if self.closed || !self.connected && delivery.qos == 0 {
            return Offered::Dropped(1);
        }
        let size = delivery.message.size();
        let mut dropped = 0;
        while self.queue.len() >= self.bounds.messages || self.bytes + size > self.bounds.bytes || !room {
            if delivery.qos == 0 {
                return Offered::Dropped(1);
            }
            if self.connected && !self.persistent {
                return Offered::Overflow;
            }
            // The oldest with QoS 0 first, then the oldest: a client that comes back wants the news.
            let victim = self.queue.iter().position(|d| d.qos == 0).unwrap_or(0);
            match self.queue.remove(victim) {
                Some(old) => self.bytes -= old.message.size(),
                None => return Offered::Dropped(dropped + 1),
            }
            dropped += 1;
            if !room {
                break;
            }
        }
        self.bytes += size;
        self.queue.push_back(delivery);
        if dropped > 0 { Offered::Dropped(dropped) } else { Offered::Queued }
    }

    /// Whether [`Outgoing::next`] would give something (expired messages apart).
    pub(crate) fn ready(&self) -> bool {
        if self.again.is_empty() {
            self.queue.front().is_some_and(|front| front.qos == 0 || self.open())
        } else {
            self.open()
        }
    }

    /// Whether the queue is nearly empty.
    pub(crate) fn hungry(&self) -> bool {
        self.again.is_empty() && self.queue.len() < 16
    }

    /// Whether another PUBLISH with QoS 1 or 2 may be written, and a packet identifier is free for it.
    fn open(&self) -> bool {
        self.counted < usize::from(self.window) && self.flights.len() < usize::from(u16::MAX)
    }

    /// The next packet to write. Expired messages are dropped into `expired`.
    pub(crate) fn next(&mut self, now: Instant, expired: &mut usize) -> Option<Next> {
        while let Some(packet_id) = self.again.front().copied() {
            let shut = self.counted >= usize::from(self.window);
            match self.flights.get_mut(&packet_id) {
                Some(flight @ Flight { state: State::Sent(_), .. }) => {
                    if shut {
                        return None;
                    }
                    self.again.pop_front();
                    flight.counted = true;
                    self.counted += 1;
                    if let State::Sent(delivery) = &flight.state {
                        return Some(Next::Publish { delivery: delivery.clone(), packet_id, dup: true });
                    }
                }
                Some(Flight { state: State::Released, .. }) => {
                    self.again.pop_front();
                    return Some(Next::Release(packet_id));
                }
                None => drop(self.again.pop_front()),
            }
        }
        loop {
            let front = self.queue.front()?;
            if front.qos > 0 && !self.open() && !front.message.expired(now) {
                return None;
            }
            let delivery = self.queue.pop_front()?;
            self.bytes -= delivery.message.size();
            if delivery.message.expired(now) {
                *expired += 1;
                continue;
            }
            let mut packet_id = 0;
            if delivery.qos > 0 {
                packet_id = self.free_id();
                self.order += 1;
                let flight = Flight { order: self.order, counted: true, state: State::Sent(delivery.clone()) };
                self.counted += 1;
                self.flights.insert(packet_id, flight);
            }
            return Some(Next::Publish { delivery, packet_id, dup: false });
        }
    }

    fn free_id(&mut self) -> u16 {
        // `open` has seen to it that one is free.
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.flights.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Ends a flight. Also for a message that could not be written at all (larger than the client accepts).
    pub(crate) fn forget(&mut self, packet_id: u16) {
        if let Some(flight) = self.flights.remove(&packet_id) {
            self.counted -= usize::from(flight.counted);
        }
    }

    /// PUBACK.
    pub(crate) fn acknowledged(&mut self, packet_id: u16) {
        if let Some(Flight { state: State::Sent(delivery), .. }) = self.flights.get(&packet_id)
            && delivery.qos == 1
        {
            self.forget(packet_id);
        }
    }

    /// PUBREC. `Some(true)`: answer with PUBREL. `Some(false)`: the client refused, it is over. `None`: unknown.
    pub(crate) fn received(&mut self, packet_id: u16, code: u8) -> Option<bool> {
        let flight = self.flights.get_mut(&packet_id)?;
        if matches!(&flight.state, State::Sent(delivery) if delivery.qos != 2) {
            return None;
        }
        if code >= 0x80 {
            self.forget(packet_id);
            return Some(false);
        }
        flight.state = State::Released;
        Some(true)
    }

    /// PUBCOMP.
    pub(crate) fn completed(&mut self, packet_id: u16) {
        if matches!(self.flights.get(&packet_id), Some(Flight { state: State::Released, .. })) {
            self.forget(packet_id);
        }
    }

    /// The session is over. Says how many messages are lost with it.
    pub(crate) fn close(&mut self) -> usize {
        let lost = self.queue.len() + self.flights.len();
        self.closed = true;
        self.queue = VecDeque::new();
        self.flights = HashMap::new();
        self.counted = 0;
        self.again.clear();
        self.bytes = 0;
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::message::Message;
    use bytes::Bytes;
    use std::sync::Arc;
    use std::time::Duration;

    fn delivery(topic: &str, qos: u8) -> Delivery {
        let message = Message {
            topic: Arc::from(topic),
            payload: Bytes::new(),
            qos,
            retain: false,
            properties: Bytes::new(),
            expires: None,
            publisher: 0,
        };
        Delivery { message: Arc::new(message), qos, retain: false, ids: Vec::new() }
    }

    fn outgoing(messages: usize, persistent: bool, window: u16) -> Outgoing {
        let mut outgoing = Outgoing::new(Bounds { messages, bytes: 1 << 20 });
        outgoing.attach(window, persistent);
        outgoing
    }

    fn next(outgoing: &mut Outgoing) -> Option<(String, u16, bool)> {
        match outgoing.next(Instant::now(), &mut 0)? {
            Next::Publish { delivery, packet_id, dup } => Some((delivery.message.topic.to_string(), packet_id, dup)),
            Next::Release(id) => Some(("PUBREL".into(), id, false)),
        }
    }

    #[test]
    fn the_clients_window_is_respected() {
        let mut o = outgoing(10, false, 2);
        for topic in ["a", "b", "c"] {
            assert_eq!(o.offer(delivery(topic, 1), true), Offered::Queued);
        }
        assert_eq!(next(&mut o), Some(("a".into(), 1, false)));
        assert_eq!(next(&mut o), Some(("b".into(), 2, false)));
        assert!(!o.ready() && next(&mut o).is_none());
        o.acknowledged(1);
        assert!(o.ready());
        assert_eq!(next(&mut o), Some(("c".into(), 3, false)));
    }

    #[test]
    fn what_is_in_flight_is_sent_again_in_order() {
        let mut o = outgoing(10, true, 10);
        for (topic, qos) in [("a", 2), ("b", 1), ("c", 2), ("zero", 0)] {
            o.offer(delivery(topic, qos), true);
        }
        for _ in 0..3 {
            next(&mut o);
        }
        assert_eq!(o.received(1, 0), Some(true));
        assert_eq!(o.received(2, 0), None, "PUBREC for a QoS 1 message");
        assert_eq!(o.received(9, 0), None);
        assert_eq!(o.detach(), 1, "QoS 0 is not kept");
        o.attach(10, true);
        assert_eq!(next(&mut o), Some(("PUBREL".into(), 1, false)));
        assert_eq!(next(&mut o), Some(("b".into(), 2, true)));
        assert_eq!(next(&mut o), Some(("c".into(), 3, true)));
        o.completed(1);
        o.acknowledged(3);
        assert_eq!(o.flights.len(), 2, "PUBACK does not end a QoS 2 message");
        assert_eq!(o.received(3, 0x97), Some(false));
        o.acknowledged(2);
        assert!(o.flights.is_empty());
    }

    #[test]
    fn repeats_respect_a_window_that_became_smaller() {
        let mut o = outgoing(10, true, 10);
        for topic in ["a", "b", "c"] {
            o.offer(delivery(topic, 1), true);
            next(&mut o);
        }
        o.detach();
        o.attach(2, true);
        assert_eq!(next(&mut o), Some(("a".into(), 1, true)));
        assert_eq!(next(&mut o), Some(("b".into(), 2, true)));
        assert!(!o.ready() && next(&mut o).is_none());
        o.acknowledged(1);
        assert_eq!(next(&mut o), Some(("c".into(), 3, true)));
        o.acknowledged(2);
        o.acknowledged(3);
        assert_eq!(o.counted, 0);
    }

    #[test]
    fn a_full_queue_drops_the_least_valuable() {
        let mut o = outgoing(2, true, 10);
        o.offer(delivery("old", 1), true);
        o.offer(delivery("zero", 0), true);
        assert_eq!(o.offer(delivery("zero2", 0), true), Offered::Dropped(1));
        assert_eq!(o.offer(delivery("new", 1), true), Offered::Dropped(1));
        assert_eq!(o.offer(delivery("newer", 1), true), Offered::Dropped(1));
        assert_eq!(next(&mut o).unwrap().0, "new");
        assert_eq!(next(&mut o).unwrap().0, "newer");
        assert_eq!(o.bytes(), 0);

        let mut o = outgoing(1, false, 10);
        o.offer(delivery("a", 1), true);
        assert_eq!(o.offer(delivery("b", 0), true), Offered::Dropped(1));
        assert_eq!(o.offer(delivery("b", 1), true), Offered::Overflow);
        o.detach();
        assert_eq!(o.offer(delivery("away", 0), true), Offered::Dropped(1));
        assert_eq!(o.close(), 1);
        assert_eq!(o.offer(delivery("late", 1), true), Offered::Dropped(1));
        assert_eq!(o.bytes(), 0);
    }

    #[test]
    fn expired_messages_are_dropped_even_when_the_window_is_shut() {
        let now = Instant::now();
        let mut o = outgoing(9, true, 1);
        o.offer(delivery("a", 1), true);
        let mut late = delivery("late", 1);
        Arc::get_mut(&mut late.message).unwrap().expires = Some(now + Duration::from_secs(1));
        o.offer(late, true);
        o.offer(delivery("zero", 0), true);
        let mut expired = 0;
        assert!(matches!(o.next(now, &mut expired), Some(Next::Publish { packet_id: 1, .. })));
        assert!(o.next(now, &mut expired).is_none());
        let then = now + Duration::from_secs(2);
        assert!(matches!(o.next(then, &mut expired), Some(Next::Publish { packet_id: 0, .. })));
        assert_eq!(expired, 1);
    }

    #[test]
    fn packet_identifiers_wrap_around_those_in_use() {
        let mut o = outgoing(9, true, 10);
        o.last_id = u16::MAX - 1;
        for topic in ["a", "b"] {
            o.offer(delivery(topic, 1), true);
        }
        assert_eq!(next(&mut o).unwrap().1, u16::MAX);
        assert_eq!(next(&mut o).unwrap().1, 1);
        o.last_id = u16::MAX - 1;
        o.offer(delivery("c", 1), true);
        assert_eq!(next(&mut o).unwrap().1, 2);
    }
}
