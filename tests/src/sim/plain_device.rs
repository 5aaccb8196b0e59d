//! A plain MQTT client that publishes JSON with QoS 1 and sends again what was not acknowledged. It keeps nothing
//! over a restart.

use std::collections::VecDeque;

use actors::message::Outcome;

use super::device::{Common, Uplink};

/// Most messages that wait for an acknowledgement.
const WINDOW: usize = 6;

/// How long an acknowledgement may take before the client gives the connection up, in milliseconds.
const PATIENCE: i64 = 6_000;

#[derive(Debug, Clone)]
struct Message {
    ticket: u64,
    payload: Vec<u8>,
    records: Vec<i64>,
    sent: Option<i64>,
}

/// One device with a plain client.
#[derive(Debug)]
pub(super) struct PlainDevice {
    /// What every device has.
    pub(super) common: Common,
    /// Whether it names its numbering, or leaves that to the engine.
    named: bool,
    epoch: u64,
    seq: u64,
    tickets: u64,
    queue: VecDeque<Message>,
    up: bool,
    on: bool,
}

impl PlainDevice {
    /// A device that is switched off.
    pub(super) fn new(mut common: Common) -> Self {
        let named = common.random.chance(600);
        if !named {
            // Without a name for its numbering the engine tells a repetition by number and time.
            common.offset = 0;
        }
        Self { common, named, epoch: 0, seq: 0, tickets: 0, queue: VecDeque::new(), up: false, on: false }
    }

    /// Switches it on.
    pub(super) fn boot(&mut self) {
        self.on = true;
        self.epoch = self.common.random.next() >> 1;
        self.seq = 0;
    }

    /// Switches it off: what was not acknowledged is forgotten.
    pub(super) fn crash(&mut self) {
        self.on = false;
        self.up = false;
        self.queue.clear();
        if self.named {
            self.common.jump();
        }
    }

    /// Whether it is switched on.
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// A connection stands.
    pub(super) fn connected(&mut self, now: i64) {
        self.up = self.on;
        for message in &mut self.queue {
            message.sent = None;
        }
        self.fill(now);
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self) {
        self.up = false;
    }

    /// Records one reading, or a few in one message.
    pub(super) fn record(&mut self, now: i64) {
        if !self.on {
            return;
        }
        let count = if self.common.random.chance(200) { self.common.random.between(2, 4) } else { 1 };
        let mut records = Vec::new();
        let mut objects = Vec::new();
        for at in 0..count {
            let (n, mut truth) = self.common.reading(now);
            if !self.named {
                // Every record has a time of its own, later than all before.
                truth.ts = super::device::BEGIN + now * super::device::MILLI + at as i64;
                self.common.truth.insert(n, truth.clone());
            }
            self.seq += 1;
            let mut object =
                format!("{{\"n\":{n},\"status\":\"{}\",\"ts\":{},\"seq\":{}", truth.status, truth.ts, self.seq);
            if self.named {
                object.push_str(&format!(",\"epoch\":{}", self.epoch));
            }
            if let Some(temperature) = truth.temperature {
                object.push_str(&format!(",\"temperature\":{temperature}"));
            }
            object.push('}');
            objects.push(object);
            records.push(n);
        }
        let payload = if count == 1 { objects.remove(0) } else { format!("[{}]", objects.join(",")) };
        self.tickets += 1;
        self.queue.push_back(Message { ticket: self.tickets, payload: payload.into_bytes(), records, sent: None });
        self.fill(now);
    }

    fn fill(&mut self, now: i64) {
        if !self.up {
            return;
        }
        for message in self.queue.iter_mut().take(WINDOW).filter(|message| message.sent.is_none()) {
            message.sent = Some(now);
            let Message { ticket, payload, .. } = message.clone();
            self.common.out.push(Uplink { hello: false, payload, ticket });
        }
    }

    /// What became of a message.
    pub(super) fn outcome(&mut self, now: i64, ticket: u64, outcome: &Outcome) {
        let Some(at) = self.queue.iter().position(|message| message.ticket == ticket) else { return };
        match outcome {
            Outcome::Stored | Outcome::Refused { kept: true, .. } => {
                let Some(message) = self.queue.remove(at) else { return };
                for n in message.records {
                    if let Some(truth) = self.common.truth.get_mut(&n) {
                        truth.acked = true;
                        truth.kept = *outcome == Outcome::Stored;
                    }
                }
                self.fill(now);
            }
            Outcome::Refused { kept: false, .. } => self.common.hangup = true,
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: i64) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.up = false;
            self.common.hangup = true;
        }
    }

    /// When it wants a tick.
    pub(super) fn deadline(&self) -> Option<i64> {
        if !self.up {
            return None;
        }
        self.queue.iter().filter_map(|message| message.sent).min().map(|sent| sent + PATIENCE)
    }

    /// Whether everything is acknowledged.
    pub(super) fn is_settled(&self) -> bool {
        self.on && self.queue.is_empty()
    }
}
