//! QoS 1 and 2 messages from a client: which wait for their outcome, and which acknowledgement goes out next.
//!
//! A pure state machine. It belongs to the session, so that a QoS 2 message that was handed on before a
//! connection broke is not handed on again when the client repeats it on the next one.

use std::collections::{HashMap, VecDeque};

use super::fault::{Fault, code};

/// What to say about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// MQTT 5 reason code of PUBACK or PUBREC.
    pub(crate) code: u8,
    pub(crate) text: Option<String>,
}

impl Verdict {
    /// All is well.
    pub(crate) fn success() -> Self {
        Self { code: code::SUCCESS, text: None }
    }
}

/// What a PUBLISH is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// To be handed on; its outcome is reported under this ticket.
    New(u64),
    /// A QoS 2 message that was handed on before; nothing to do.
    Repeat,
}

/// An acknowledgement whose turn has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acknowledge {
    pub(crate) packet_id: u16,
    pub(crate) qos: u8,
    pub(crate) verdict: Verdict,
}

#[derive(Debug)]
struct Slot {
    packet_id: u16,
    qos: u8,
    verdict: Option<Verdict>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    /// Handed on; the slot with this ticket answers.
    Deciding(u64),
    /// Handed on by an earlier connection under this ticket; nobody has asked again yet.
    Orphan(u64),
    /// PUBREC is out, PUBREL has not come.
    Received,
}

/// The client's messages in flight towards us.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// Ticket of the first slot.
    base: u64,
    /// In the order of their PUBLISH: acknowledgements keep that order.
    slots: VecDeque<Slot>,
    second: HashMap<u16, Second>,
    /// How many of them are `Received`.
    received: usize,
    /// Tickets of earlier connections whose QoS 2 message is undecided.
    orphans: HashMap<u64, u16>,
}

impl Incoming {
    /// A PUBLISH with QoS 1 or 2 has come. `limit` is the receive maximum we gave, if we could give one.
    pub(crate) fn publish(&mut self, qos: u8, packet_id: u16, limit: Option<usize>) -> Result<Arrival, Fault> {
        if qos == 2 {
            match self.second.get(&packet_id).copied() {
                None => {}
                Some(Second::Deciding(_)) => return Ok(Arrival::Repeat),
                Some(Second::Received) => {
                    self.push(packet_id, 2, Some(Verdict::success()));
                    return Ok(Arrival::Repeat);
                }
                Some(Second::Orphan(old)) => {
                    // The outcome comes under the old ticket; the answer goes out from a new slot.
                    let slot = self.push(packet_id, 2, None);
                    self.set(packet_id, Second::Deciding(slot));
                    self.orphans.insert(old, packet_id);
                    return Ok(Arrival::Repeat);
                }
            }
        }
        if limit.is_some_and(|limit| self.outstanding() >= limit) {
            return Err(Fault::new(code::RECEIVE_MAXIMUM, "more messages in flight than the receive maximum"));
        }
        let ticket = self.push(packet_id, qos, None);
        if qos == 2 {
            self.set(packet_id, Second::Deciding(ticket));
        }
        Ok(Arrival::New(ticket))
    }

    fn push(&mut self, packet_id: u16, qos: u8, verdict: Option<Verdict>) -> u64 {
        self.slots.push_back(Slot { packet_id, qos, verdict });
        self.base + self.slots.len() as u64 - 1
    }

    /// The message with this ticket is decided.
    pub(crate) fn decide(&mut self, ticket: u64, verdict: Verdict) {
        if ticket < self.base {
            self.decide_orphan(ticket, verdict);
        } else if let Some(slot) = self.slots.get_mut((ticket - self.base) as usize) {
            slot.verdict.get_or_insert(verdict);
        }
    }

    fn decide_orphan(&mut self, ticket: u64, verdict: Verdict) {
        let Some(packet_id) = self.orphans.remove(&ticket) else { return };
        match self.second.get(&packet_id).copied() {
            Some(Second::Orphan(t)) if t == ticket && verdict.code < 0x80 => {
                self.set(packet_id, Second::Received);
            }
            // Refused: the client's repeat is a new message, and is refused again.
            Some(Second::Orphan(t)) if t == ticket => self.unset(packet_id),
            Some(Second::Deciding(slot)) => self.decide(slot, verdict),
            _ => {}
        }
    }

    /// The next acknowledgement in order, if it is decided.
    pub(crate) fn next(&mut self) -> Option<Acknowledge> {
        self.slots.front()?.verdict.as_ref()?;
        let slot = self.slots.pop_front()?;
        self.base += 1;
        let verdict = slot.verdict?;
        if slot.qos == 2 {
            if verdict.code < 0x80 {
                self.set(slot.packet_id, Second::Received);
            } else {
                self.unset(slot.packet_id);
            }
        }
        Some(Acknowledge { packet_id: slot.packet_id, qos: slot.qos, verdict })
    }

    /// PUBREL. False: no such packet identifier.
    pub(crate) fn release(&mut self, packet_id: u16) -> bool {
        match self.second.get(&packet_id) {
            Some(Second::Received) => {
                self.unset(packet_id);
                true
            }
            _ => false,
        }
    }

    fn set(&mut self, packet_id: u16, state: Second) {
        self.unset(packet_id);
        self.received += usize::from(state == Second::Received);
        self.second.insert(packet_id, state);
    }

    fn unset(&mut self, packet_id: u16) {
        let old = self.second.remove(&packet_id);
        self.received -= usize::from(old == Some(Second::Received));
    }

    /// Messages that count against the receive maximum.
    pub(crate) fn outstanding(&self) -> usize {
        self.slots.len() + self.received
    }

    /// Messages of this connection whose outcome or turn is awaited.
    pub(crate) fn waiting(&self) -> usize {
        self.slots.len()
    }

    /// Whether anything is left that a next connection needs.
    pub(crate) fn undecided(&self) -> bool {
        self.slots.iter().any(|slot| slot.verdict.is_none())
    }

    /// The connection is gone. QoS 1 messages are forgotten: the client repeats what it has no PUBACK for.
    pub(crate) fn detach(&mut self) {
        let end = self.base + self.slots.len() as u64;
        for (slot, ticket) in std::mem::take(&mut self.slots).into_iter().zip(self.base..) {
            if slot.qos != 2 {
                continue;
            }
            match (slot.verdict, self.second.get(&slot.packet_id).copied()) {
                (Some(verdict), _) if verdict.code < 0x80 => self.set(slot.packet_id, Second::Received),
                (Some(_), _) => self.unset(slot.packet_id),
                (None, Some(Second::Deciding(_))) => {
                    // A slot that answered for an earlier ticket keeps waiting for that one.
                    let known = self.orphans.iter().find(|(_, id)| **id == slot.packet_id).map(|(t, _)| *t);
                    let ticket = known.unwrap_or(ticket);
                    self.orphans.insert(ticket, slot.packet_id);
                    self.set(slot.packet_id, Second::Orphan(ticket));
                }
                _ => {}
            }
        }
        self.base = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(incoming: &mut Incoming, qos: u8, id: u16) -> u64 {
        match incoming.publish(qos, id, None).unwrap() {
            Arrival::New(ticket) => ticket,
            Arrival::Repeat => panic!("{id} is new"),
        }
    }

    fn refused() -> Verdict {
        Verdict { code: code::PAYLOAD_FORMAT, text: Some("no".into()) }
    }

    fn ids(incoming: &mut Incoming) -> Vec<u16> {
        std::iter::from_fn(|| incoming.next()).map(|ack| ack.packet_id).collect()
    }

    #[test]
    fn acks_keep_the_order_of_the_publishes() {
        let mut incoming = Incoming::default();
        let (a, b, c) = (new(&mut incoming, 1, 1), new(&mut incoming, 2, 2), new(&mut incoming, 1, 3));
        incoming.decide(c, Verdict::success());
        incoming.decide(b, refused());
        assert!(ids(&mut incoming).is_empty());
        incoming.decide(a, Verdict::success());
        assert_eq!(ids(&mut incoming), [1, 2, 3]);
        assert_eq!(incoming.outstanding(), 0, "a refused QoS 2 message is over with its PUBREC");
    }

    #[test]
    fn qos_2_is_handed_on_once_until_released() {
        let mut incoming = Incoming::default();
        let ticket = new(&mut incoming, 2, 7);
        assert_eq!(incoming.publish(2, 7, None), Ok(Arrival::Repeat));
        assert!(!incoming.release(7), "not yet received");
        incoming.decide(ticket, Verdict::success());
        assert_eq!(ids(&mut incoming), [7]);
        assert_eq!(incoming.publish(2, 7, None), Ok(Arrival::Repeat));
        assert_eq!(ids(&mut incoming), [7], "asked again, answered again");
        assert_eq!(incoming.outstanding(), 1);
        assert!(incoming.release(7));
        assert!(!incoming.release(7));
        new(&mut incoming, 2, 7);
    }

    #[test]
    fn the_receive_maximum_counts_until_the_last_answer() {
        let mut incoming = Incoming::default();
        let ticket = new(&mut incoming, 2, 1);
        assert!(incoming.publish(1, 2, Some(2)).is_ok());
        assert_eq!(incoming.publish(1, 3, Some(2)).unwrap_err().code, code::RECEIVE_MAXIMUM);
        incoming.decide(ticket, Verdict::success());
        assert_eq!(ids(&mut incoming), [1]);
        assert!(incoming.publish(1, 3, Some(2)).is_err(), "PUBREL is missing");
        assert!(incoming.release(1));
        assert!(incoming.publish(1, 3, Some(2)).is_ok());
    }

    #[test]
    fn a_qos_2_message_survives_a_broken_connection() {
        let mut incoming = Incoming::default();
        let (first, second, third) = (new(&mut incoming, 2, 1), new(&mut incoming, 2, 2), new(&mut incoming, 2, 3));
        let plain = new(&mut incoming, 1, 4);
        incoming.detach();
        incoming.decide(plain, Verdict::success());
        // Decided while nobody was connected.
        incoming.decide(first, Verdict::success());
        incoming.decide(third, refused());
        assert_eq!(incoming.publish(2, 1, None), Ok(Arrival::Repeat));
        assert_eq!(ids(&mut incoming), [1]);
        // Still undecided: the repeat waits, over another break as well.
        assert_eq!(incoming.publish(2, 2, None), Ok(Arrival::Repeat));
        incoming.detach();
        assert_eq!(incoming.publish(2, 2, None), Ok(Arrival::Repeat));
        assert!(ids(&mut incoming).is_empty());
        incoming.decide(second, Verdict::success());
        assert_eq!(ids(&mut incoming), [2]);
        // Refused: its repeat is a new message.
        assert!(matches!(incoming.publish(2, 3, None), Ok(Arrival::New(_))));
        assert!(matches!(incoming.publish(1, 4, None), Ok(Arrival::New(_))));
    }
}
