//! What crosses the border between the gateway and the device actors.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use device::entry::Reason;
use device::id::DeviceId;
use device::payload::PayloadFormat;
use device::time::Timestamp;

use crate::admission::Credit;

/// Which of a device's inbound topics a message came on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// `devices/{id}/telemetry`
    Telemetry,
    /// `devices/{id}/hello`
    Hello,
    /// The same, over a connection whose certificate is due to be renewed.
    HelloDue,
    /// `devices/{id}/config/reported`
    Reported,
    /// `devices/{id}/shadow/reported`, `devices/{id}/shadow/{name}/reported`: the name of the shadow.
    PlainReported(Arc<str>),
    /// `devices/{id}/commands/result`
    CommandResult,
    /// `devices/{id}/status`
    Status,
    /// No message: somebody has subscribed to what the device is told.
    Listening,
}

impl Channel {
    /// The end of its topic.
    pub fn topic(&self) -> Cow<'static, str> {
        match self {
            Self::Telemetry => "telemetry".into(),
            Self::Hello | Self::HelloDue => "hello".into(),
            Self::Reported => "config/reported".into(),
            Self::PlainReported(name) if &**name == device::shadow::DEFAULT => "shadow/reported".into(),
            Self::PlainReported(name) => format!("shadow/{name}/reported").into(),
            Self::CommandResult => "commands/result".into(),
            Self::Status => "status".into(),
            Self::Listening => "".into(),
        }
    }
}

/// A message on its way to a device actor.
#[derive(Debug)]
pub struct Inbound {
    /// Which topic.
    pub channel: Channel,
    /// The payload, as received.
    pub payload: Bytes,
    /// The format that the sender declared (MQTT 5 content type), if it did.
    pub format: Option<PayloadFormat>,
    /// When the gateway read it.
    pub received: Timestamp,
    /// The connection's session: numbers that the engine draws itself belong to it. Random, 63 bits.
    pub session: u64,
    /// Who wants to know the outcome; `None` for QoS 0.
    pub reply: Option<Reply>,
    /// Memory credit, given back when the message is durable, refused or found to be a duplicate.
    pub credit: Credit,
}

/// Receives outcomes of messages. Implemented by the gateway's connections; called from committer threads and
/// actors, so it must not block.
pub trait OutcomeSink: Send + Sync + std::fmt::Debug {
    /// The message with this ticket is decided, and what was decided is durable.
    fn decided(&self, ticket: u64, outcome: Outcome);
}

/// A promise to tell the sender of a message what became of it.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Whom to tell.
    pub sink: Arc<dyn OutcomeSink>,
    /// The sender's own number of the message.
    pub ticket: u64,
}

impl Reply {
    /// Tells it.
    pub fn send(self, outcome: Outcome) {
        self.sink.decided(self.ticket, outcome);
    }
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every record of it is durable (now, or by an earlier copy).
    Stored,
    /// It was refused; `kept` says whether it stands in `_dead_letters`.
    Refused {
        /// Reason for machines.
        reason: Reason,
        /// Reason for people.
        text: String,
        /// Whether the payload was kept, so that the sender need not repeat it.
        kept: bool,
    },
}

/// The way from an actor to whoever is subscribed to one of its device's own topics.
pub trait Downlink: Send + Sync + std::fmt::Debug {
    /// Publishes on `devices/{device}/{topic}`; returns at once. Nobody subscribed: nothing happens.
    fn publish(&self, device: &DeviceId, topic: &str, payload: Bytes, qos: u8);
}

/// A message that cannot go to any device: its topic names none, or none that is valid.
#[derive(Debug)]
pub struct Stray {
    /// What stood in the place of the device id; may be empty.
    pub sender: String,
    /// The topic, lossily as text.
    pub topic: String,
    /// The payload, as received.
    pub payload: Bytes,
    /// Why it is refused.
    pub reason: Reason,
    /// Why, for people.
    pub text: String,
    /// When the gateway read it.
    pub received: Timestamp,
    /// Who wants to know when it is kept; it is told `Refused { kept: true, .. }`.
    pub reply: Option<Reply>,
    /// Memory credit.
    pub credit: Credit,
}

/// The gateway's view of the devices. Implemented by `node::Node` and by fakes in tests.
pub trait Ingress: Send + Sync + 'static {
    /// A way to one device that can be kept and used many times.
    type Door: Clone + Send + Sync + 'static;

    /// Finds or wakes the device's actor.
    fn open(&self, device: &DeviceId) -> impl Future<Output = Self::Door> + Send;

    /// Hands over a message. `Err` gives it back: the device has gone to sleep, open a new door.
    fn push(&self, door: &Self::Door, inbound: Inbound) -> Result<(), Inbound>;

    /// Keeps a message that belongs to no device in `_dead_letters`.
    fn stray(&self, stray: Stray);

    /// Where credit comes from.
    fn admission(&self) -> &crate::admission::Admission;
}
