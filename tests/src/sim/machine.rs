//! A device of either kind, as the world sees it.

use device::id::DeviceId;

use super::device::Common;
use super::edge_device::EdgeDevice;
use super::hub::Answer;
use super::plain_device::PlainDevice;

/// A device of either kind.
pub(super) enum Machine {
    /// With an edge agent.
    Edge(Box<EdgeDevice>),
    /// With a plain client.
    Plain(PlainDevice),
}

impl Machine {
    /// What every device has.
    pub(super) fn common(&mut self) -> &mut Common {
        match self {
            Machine::Edge(device) => &mut device.common,
            Machine::Plain(device) => &mut device.common,
        }
    }

    /// Its name.
    pub(super) fn id(&self) -> &DeviceId {
        match self {
            Machine::Edge(device) => &device.common.id,
            Machine::Plain(device) => &device.common.id,
        }
    }

    pub(super) fn is_on(&self) -> bool {
        match self {
            Machine::Edge(device) => device.is_on(),
            Machine::Plain(device) => device.is_on(),
        }
    }

    pub(super) fn deadline(&self) -> Option<i64> {
        match self {
            Machine::Edge(device) => device.deadline(),
            Machine::Plain(device) => device.deadline(),
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        match self {
            Machine::Edge(device) => device.is_settled(),
            Machine::Plain(device) => device.is_settled(),
        }
    }

    pub(super) fn boot(&mut self, now: i64) -> bool {
        match self {
            Machine::Edge(device) => device.boot(now),
            Machine::Plain(device) => {
                device.boot();
                true
            }
        }
    }

    pub(super) fn crash(&mut self) {
        match self {
            Machine::Edge(device) => device.crash(),
            Machine::Plain(device) => device.crash(),
        }
    }

    pub(super) fn connected(&mut self, now: i64, session: u64) {
        match self {
            Machine::Edge(device) => device.connected(now, session),
            Machine::Plain(device) => device.connected(now),
        }
    }

    pub(super) fn disconnected(&mut self, now: i64) {
        match self {
            Machine::Edge(device) => device.disconnected(now),
            Machine::Plain(device) => device.disconnected(),
        }
    }

    pub(super) fn record(&mut self, now: i64) {
        match self {
            Machine::Edge(device) => device.record(now),
            Machine::Plain(device) => device.record(now),
        }
    }

    pub(super) fn tick(&mut self, now: i64) {
        match self {
            Machine::Edge(device) => device.tick(now),
            Machine::Plain(device) => device.tick(now),
        }
    }

    pub(super) fn answer(&mut self, now: i64, answer: &Answer) {
        match (self, answer) {
            (Machine::Edge(device), Answer::Message(topic, payload)) => device.message(now, topic, payload),
            // Acks say it better.
            (Machine::Edge(_), Answer::Outcome(..)) | (Machine::Plain(_), Answer::Message(..)) => {}
            (Machine::Plain(device), Answer::Outcome(_, ticket, outcome)) => device.outcome(now, *ticket, outcome),
        }
    }

    /// How often a device's storage fails, of a thousand.
    pub(super) fn set_failing(&self, per_mille: u64) {
        if let Machine::Edge(device) = self {
            device.media.set_failing(per_mille);
        }
    }
}
