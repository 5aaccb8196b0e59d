//! A simulated device that is an ordinary MQTT client: JSON or CBOR, QoS 0 or 1, numbered by itself.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use device::id::DeviceId;
use device::topic::Leaf;
use edge::mqtt::{Hail, Incoming, Link, MqttError, Outgoing, Protocol};
use rand::Rng;
use tokio::time::Instant;

use super::chaos::{Chaos, Trouble};
use super::report::Tally;
use super::sensor::{Sample, Sensor, random};
use super::{Fleet, SimulateError};

/// Messages that may wait for a PUBACK.
const WINDOW: usize = 100;
/// Bytes that may wait for the socket: beyond, the engine pushes back and the device waits.
const QUEUED: usize = 64 << 10;
/// First pause before connecting again, and the longest one.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a connection is watched at a time while there is nothing else to do.
const LISTEN: Duration = Duration::from_millis(50);

/// How the records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Cbor,
}

/// A message that is not acknowledged.
struct Message {
    payload: Vec<u8>,
    records: u64,
    made: Instant,
    attempts: u64,
    /// A bad payload is not part of the account.
    bad: bool,
}

struct Plain<'a> {
    fleet: &'a Fleet,
    hail: Hail,
    topic: String,
    errors: String,
    qos: u8,
    link: Option<Link>,
    retry: (Instant, Duration),
    /// Made, not yet sent on this connection.
    queue: VecDeque<Message>,
    /// Sent with QoS 1, by packet id.
    unacked: BTreeMap<u16, Message>,
    twice: u32,
    disorder: u32,
    tally: Tally,
}

pub(super) async fn run(
    fleet: &Fleet,
    index: usize,
    name: DeviceId,
    form: Form,
    qos: u8,
) -> Result<Tally, SimulateError> {
    let (seed, chaotic) = (fleet.config.seed, fleet.config.chaos);
    let mut sensor = Sensor::new(seed, index, (fleet.clock)(), chaotic);
    let mut chaos = Chaos::new(chaotic, seed, index);
    let errors = Leaf::Errors.topic(&name);
    let mut plain = Plain {
        fleet,
        hail: Hail { client_id: name.as_str().to_owned(), will: None, subscribe: vec![errors.clone()] },
        topic: Leaf::Telemetry.topic(&name),
        errors,
        qos,
        link: None,
        retry: (Instant::now(), RECONNECT.0),
        queue: VecDeque::new(),
        unacked: BTreeMap::new(),
        twice: 0,
        disorder: 0,
        tally: Tally::default(),
    };
    // Two runs must never give different records the same number, so this does not follow from the seed.
    let epoch = rand::random::<u64>() & device::seq::MAX_SEQ;
    let mut seq = 0;
    let interval = fleet.interval();
    let begun = Instant::now();
    let first = begun + interval.min(Duration::from_secs(60)).mul_f64(random(seed, index, 2).random::<f64>());
    let mut made = 0;
    let mut last = (fleet.clock)();
    while !fleet.over() {
        let due = match interval.is_zero() {
            true => fleet.config.frame as u64,
            false => fleet.due(Instant::now().checked_duration_since(first)).saturating_sub(made),
        };
        let count = due.min(fleet.config.frame as u64);
        if count > 0 && plain.has_room() {
            let now = (fleet.clock)();
            let step = now.since(last).max(0) / count as i64;
            let samples: Vec<(u64, Sample)> = (1..=count as i64)
                .map(|n| {
                    seq += 1;
                    (seq, sensor.sample(last.plus(step * n), step as f64 / 1e9))
                })
                .collect();
            last = now;
            made += count;
            plain.make(encode(form, epoch, &samples), count);
        }
        for trouble in chaos.as_mut().map(|chaos| chaos.due(begun.elapsed())).unwrap_or_default() {
            plain.trouble(trouble);
        }
        let behind = interval.is_zero() || due > count;
        let until = if behind { Instant::now() } else { fleet.look(first, made) };
        plain.turn(until.min(fleet.ends)).await;
    }
    let patience = Instant::now() + fleet.patience();
    while !plain.is_done() && Instant::now() < patience {
        plain.turn(patience).await;
    }
    plain.finish().await
}

impl Plain<'_> {
    fn has_room(&self) -> bool {
        self.queue.len() + self.unacked.len() < WINDOW
    }

    fn is_done(&self) -> bool {
        self.queue.is_empty() && self.unacked.is_empty() && self.link.as_ref().is_none_or(|link| link.queued() == 0)
    }

    fn make(&mut self, payload: Vec<u8>, records: u64) {
        self.tally.recorded += records;
        self.queue.push_back(Message { payload, records, made: Instant::now(), attempts: 0, bad: false });
    }

    fn trouble(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Cut | Trouble::Restart => self.lose_link(),
            Trouble::Twice(messages) => self.twice = messages,
            Trouble::Disorder(messages) => self.disorder = messages,
            // On one connection MQTT forbids it; as a new message it is what a careless client does.
            Trouble::Repeat => {
                if let Some(message) = self.unacked.values().next() {
                    let copy = Message {
                        payload: message.payload.clone(),
                        records: 0,
                        made: Instant::now(),
                        attempts: 1,
                        bad: true,
                    };
                    self.queue.push_back(copy);
                }
            }
            Trouble::Bad(payload) => {
                self.tally.bad += 1;
                self.queue.push_back(Message { payload, records: 0, made: Instant::now(), attempts: 0, bad: true });
            }
        }
    }

    /// Sends what may be sent, then listens until something happens, at most until `until`.
    async fn turn(&mut self, until: Instant) {
        if self.link.is_none() {
            self.connect(until).await;
            return;
        }
        if let Err(error) = self.send() {
            tracing::debug!(device = %self.hail.client_id, %error, "cannot send");
            self.lose_link();
            return;
        }
        let Some(link) = &mut self.link else { return };
        // In a flood with room left there is always more to send: look at the socket, but do not wait.
        let wait_for = until.min(Instant::now() + LISTEN);
        let full = link.queued() > QUEUED || self.queue.len() + self.unacked.len() >= WINDOW;
        let wait_for = if full { Instant::now() + LISTEN } else { wait_for };
        match tokio::time::timeout_at(wait_for, link.next()).await {
            Ok(Ok(incoming)) => incoming.into_iter().for_each(|incoming| self.incoming(incoming)),
            Ok(Err(error)) => {
                tracing::debug!(device = %self.hail.client_id, %error, "disconnected");
                self.lose_link();
            }
            Err(_) => {}
        }
    }

    fn send(&mut self) -> Result<(), MqttError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        if self.disorder > 0 && self.queue.len() >= self.disorder as usize {
            self.queue.make_contiguous().reverse();
            self.disorder = 0;
        }
        while link.queued() < QUEUED && (self.qos == 0 || link.vacancy() > 1) {
            let Some(mut message) = self.queue.pop_front() else { break };
            message.attempts += 1;
            let outgoing = Outgoing {
                topic: &self.topic,
                payload: &message.payload,
                qos: self.qos,
                retain: false,
                dup: false,
                content_type: None,
            };
            if self.twice > 0 && !message.bad {
                self.twice -= 1;
                self.tally.messages += 1;
                link.publish(&Outgoing { qos: 0, ..outgoing.clone() })?;
            }
            let id = link.publish(&outgoing)?;
            self.tally.messages += 1;
            self.tally.sent += message.records;
            if message.attempts > 1 {
                self.tally.resent += message.records;
            }
            if let Some(id) = id {
                self.unacked.insert(id, message);
            }
        }
        Ok(())
    }

    fn incoming(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Acknowledged { id, refused } => {
                let Some(message) = self.unacked.remove(&id) else { return };
                if refused.is_some() {
                    self.tally.refused += 1;
                    // A good record that is refused is not stored: it stays in the account as not acknowledged.
                    self.tally.unacknowledged += message.records;
                } else if !message.bad {
                    self.fleet.latency.add(message.made.elapsed(), message.records);
                }
            }
            // With MQTT 5 and QoS 1 the PUBACK says it already.
            Incoming::Message { topic, .. }
                if topic == self.errors && (self.qos == 0 || self.fleet.mqtt.protocol == Protocol::V311) =>
            {
                self.tally.refused += 1;
            }
            Incoming::Message { .. } => {}
        }
    }

    async fn connect(&mut self, until: Instant) {
        let (at, wait) = self.retry;
        if at > Instant::now() {
            tokio::time::sleep_until(at.min(until)).await;
            return;
        }
        match Link::connect(&self.fleet.mqtt, &self.hail).await {
            Ok(link) => {
                self.link = Some(link);
                self.tally.connects += 1;
                self.retry = (Instant::now(), RECONNECT.0);
            }
            Err(error) => {
                tracing::debug!(device = %self.hail.client_id, %error, "cannot connect");
                self.retry = (Instant::now() + wait, (wait * 2).min(RECONNECT.1));
            }
        }
    }

    /// What was not acknowledged is sent again on the next connection; its numbers tell the engine.
    fn lose_link(&mut self) {
        if self.link.take().is_some() {
            self.retry = (Instant::now() + RECONNECT.0, RECONNECT.0);
        }
        for (_, message) in std::mem::take(&mut self.unacked).into_iter().rev() {
            self.queue.push_front(message);
        }
    }

    async fn finish(mut self) -> Result<Tally, SimulateError> {
        let open = self.queue.iter().chain(self.unacked.values());
        self.tally.unacknowledged += open.map(|message| message.records).sum::<u64>();
        if let Some(link) = self.link.take() {
            // The account is closed; a goodbye that fails changes nothing.
            let _ = tokio::time::timeout(Duration::from_secs(2), link.disconnect()).await;
        }
        Ok(self.tally)
    }
}

/// One record as an object, several as an array of objects.
fn encode(form: Form, epoch: u64, samples: &[(u64, Sample)]) -> Vec<u8> {
    match form {
        Form::Json => {
            let mut objects = samples.iter().map(|(seq, sample)| json(epoch, *seq, sample));
            match (samples.len(), objects.next()) {
                (1, Some(one)) => one.to_string().into_bytes(),
                (_, first) => serde_json::Value::from_iter(first.into_iter().chain(objects)).to_string().into_bytes(),
            }
        }
        Form::Cbor => {
            let mut out = Vec::with_capacity(16 + 128 * samples.len());
            if samples.len() != 1 {
                head(0x80, samples.len() as u64, &mut out);
            }
            for (seq, sample) in samples {
                cbor(epoch, *seq, sample, &mut out);
            }
            out
        }
    }
}

fn json(epoch: u64, seq: u64, sample: &Sample) -> serde_json::Value {
    serde_json::json!({
        "epoch": epoch,
        "seq": seq,
        "ts": sample.ts.0,
        "temperature": sample.temperature,
        "humidity": sample.humidity,
        "vibration": sample.vibration,
        "status": sample.status,
    })
}

/// A CBOR head: the kind in the upper three bits, then a number.
fn head(kind: u8, number: u64, out: &mut Vec<u8>) {
    match number {
        0..=23 => out.push(kind | number as u8),
        24..=0xff => out.extend_from_slice(&[kind | 24, number as u8]),
        _ => {
            out.push(kind | 27);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    head(0x60, text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

fn cbor(epoch: u64, seq: u64, sample: &Sample, out: &mut Vec<u8>) {
    head(0xa0, 7, out);
    text("epoch", out);
    head(0, epoch, out);
    text("seq", out);
    head(0, seq, out);
    text("ts", out);
    if sample.ts.0 < 0 {
        head(0x20, !sample.ts.0 as u64, out);
    } else {
        head(0, sample.ts.0 as u64, out);
    }
    for (name, value) in
        [("temperature", sample.temperature), ("humidity", sample.humidity), ("vibration", sample.vibration)]
    {
        text(name, out);
        out.push(0xfb);
        out.extend_from_slice(&value.to_be_bytes());
    }
    text("status", out);
    text(sample.status, out);
}

#[cfg(test)]
mod tests {
    use device::time::Timestamp;

    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let sample = Sample { ts: Timestamp(-5), temperature: 20.5, humidity: 41.0, vibration: 0.25, status: "ok" };
        for samples in [vec![(1u64, sample)], vec![(300, sample), (301, Sample { ts: Timestamp(7), ..sample })]] {
            let json: serde_json::Value =
                serde_json::from_slice(&encode(Form::Json, 1 << 62, &samples)).expect("valid JSON");
            let cbor: serde_json::Value =
                ciborium::from_reader(encode(Form::Cbor, 1 << 62, &samples).as_slice()).expect("valid CBOR");
            assert_eq!(json, cbor);
            assert_eq!(json.is_array(), samples.len() > 1);
        }
    }
}
