//! Where the engine's answers come out: checks each against what is durable, and keeps it for the network.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use actors::message::{Downlink, Outcome, OutcomeSink};
use bytes::Bytes;
use device::ack;
use device::hello::HelloAck;
use device::id::DeviceId;
use device::payload::{PayloadFormat, read_frame_header};
use device::time::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::device::{BEGIN, MILLI};
use super::disk::Disks;
use super::random::Random;
use super::trace::{BASIS, Trace, hash};
use crate::note;

/// Something on its way from the engine to a device.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// A message on one of the device's own topics.
    Message(String, Bytes),
    /// What became of the message with this ticket, of this session.
    Outcome(u64, u64, Outcome),
}

struct Inner {
    random: Random,
    answers: Vec<(DeviceId, Answer)>,
    /// Messages handed over and not decided: their lengths, and since when.
    open: BTreeMap<(DeviceId, u64, u64), (usize, Instant)>,
    /// Virtual milliseconds from a message's credit to its outcome, since somebody last asked.
    waits: Vec<u64>,
    /// What this life of the engine has seen: epoch and number, or 0 and the hash of a plain payload. A repetition
    /// gives its credit back at once, and is answered with its first copy.
    seen: BTreeSet<(DeviceId, u64, u64)>,
    /// By device and epoch: every number up to here was durable when it was looked at, and what is durable stays so.
    looked: BTreeMap<(DeviceId, u64), u64>,
    /// How often an actor fails when it answers, of a thousand.
    failing: u64,
    limit: usize,
}

/// The engine's way out. One per world.
#[derive(Clone)]
pub(super) struct Hub {
    inner: Arc<Mutex<Inner>>,
    disks: Disks,
    trace: Trace,
    /// Told when there is an answer.
    pub(super) activity: Arc<Notify>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hub")
    }
}

impl Hub {
    /// A way out of an engine that lets in at most `limit` bytes.
    pub(super) fn new(seed: u64, disks: &Disks, trace: &Trace, limit: usize) -> Self {
        let random = Random::named(seed, "actors");
        let inner = Inner {
            random,
            answers: Vec::new(),
            open: BTreeMap::new(),
            waits: Vec::new(),
            seen: BTreeSet::new(),
            looked: BTreeMap::new(),
            failing: 0,
            limit,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            disks: disks.clone(),
            trace: trace.clone(),
            activity: Arc::new(Notify::new()),
        }
    }

    /// The engine is gone, and what it had not said is never said.
    pub(super) fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.answers.clear();
        inner.open.clear();
        inner.seen.clear();
    }

    /// How often an actor fails when it answers, of a thousand.
    pub(super) fn set_failing(&self, per_mille: u64) {
        self.inner.lock().failing = per_mille;
    }

    /// What the engine has said since the last call.
    pub(super) fn answers(&self) -> Vec<(DeviceId, Answer)> {
        std::mem::take(&mut self.inner.lock().answers)
    }

    /// How long the messages decided since the last call had waited, in virtual milliseconds.
    pub(super) fn waits(&self) -> Vec<u64> {
        std::mem::take(&mut self.inner.lock().waits)
    }

    /// A message was handed to the engine, with credit.
    pub(super) fn handed(&self, device: &DeviceId, session: u64, ticket: u64, payload: &[u8]) {
        let mut inner = self.inner.lock();
        let mut fresh = false;
        match read_frame_header(payload) {
            Ok(header) => {
                for at in 0..u64::from(header.records) {
                    fresh |= inner.seen.insert((device.clone(), header.epoch, header.seq + at));
                }
            }
            Err(_) => fresh = inner.seen.insert((device.clone(), 0, hash(payload, BASIS))),
        }
        if !fresh {
            return;
        }
        inner.open.insert((device.clone(), session, ticket), (payload.len(), Instant::now()));
        let bytes: usize = inner.open.values().map(|(bytes, _)| bytes).sum();
        if bytes > inner.limit {
            let limit = inner.limit;
            drop(inner);
            self.trace.wrong(format!("{bytes} bytes are in flight, with credit for {limit}"));
        }
    }

    fn answer(&self, device: &DeviceId, answer: Answer) {
        self.inner.lock().answers.push((device.clone(), answer));
        self.activity.notify_one();
    }

    /// I1: whatever an ack names is durable at this moment.
    fn check_acks(&self, device: &DeviceId, acks: &[ack::EpochAck]) {
        let ledger = self.disks.ledger.lock();
        let mut inner = self.inner.lock();
        for ack in acks {
            let upto = inner.looked.entry((device.clone(), ack.epoch.0)).or_default();
            let ranges = ack.ranges.iter().map(|(start, len)| (*start, start + len - 1));
            let fresh = (*upto + 1, ack.cum);
            *upto = ack.cum.max(*upto);
            for seq in std::iter::once(fresh).chain(ranges).flat_map(|(from, to)| from..=to) {
                if ledger.fate(device, ack.epoch.0, seq).is_none() {
                    let epoch = ack.epoch.0;
                    self.trace.wrong(format!("I1: {device} {epoch}/{seq} is acknowledged and not durable"));
                    return;
                }
            }
        }
    }

    fn fails(&self, device: &DeviceId) -> bool {
        let mut inner = self.inner.lock();
        let failing = inner.failing;
        let fails = inner.random.chance(failing);
        if fails {
            // What its actor had taken is gone without an answer.
            inner.open.retain(|(of, _, _), _| of != device);
            inner.seen.retain(|(of, _, _)| of != device);
        }
        fails
    }
}

impl Downlink for Hub {
    fn publish(&self, device: &DeviceId, topic: &str, payload: Bytes, _: u8) {
        note!(self.trace, "{device} <- {topic} {:016x}", hash(&payload, BASIS));
        match topic {
            "ack" => {
                if let Ok(ack) = ack::Ack::decode(&payload) {
                    self.check_acks(device, &ack.epochs);
                }
            }
            "hello/ack" => {
                if let Ok(answer) = HelloAck::decode(&payload) {
                    self.check_acks(device, &answer.acks);
                }
            }
            _ => {}
        }
        if self.fails(device) {
            note!(self.trace, "{device} the actor fails");
            // As a panic in the actor would, without the report on standard error.
            std::panic::resume_unwind(Box::new("a fault of the simulated actor"));
        }
        self.answer(device, Answer::Message(topic.to_owned(), payload));
    }
}

/// Where the outcome of one message goes.
#[derive(Debug)]
pub(super) struct Sink {
    /// The way out.
    pub(super) hub: Hub,
    /// Whose message.
    pub(super) device: DeviceId,
    /// Of which session.
    pub(super) session: u64,
    /// The message; `None` for a hello.
    pub(super) payload: Option<Bytes>,
}

impl OutcomeSink for Sink {
    fn decided(&self, ticket: u64, outcome: Outcome) {
        let Self { hub, device, session, payload } = self;
        note!(hub.trace, "{device} <- outcome {ticket} {outcome:?}");
        {
            let mut inner = hub.inner.lock();
            if let Some((_, since)) = inner.open.remove(&(device.clone(), *session, ticket)) {
                inner.waits.push(since.elapsed().as_millis() as u64);
            }
        }
        if let (Outcome::Stored, Some(payload)) = (&outcome, payload) {
            let ledger = hub.disks.ledger.lock();
            let durable = match read_frame_header(payload) {
                Ok(header) if device::payload::detect(payload, None) == Ok(PayloadFormat::Frame) => {
                    (0..u64::from(header.records))
                        .all(|at| ledger.fate(device, header.epoch, header.seq + at).is_some())
                }
                _ => ledger.holds(device, payload),
            };
            if !durable {
                hub.trace.wrong(format!("I1: message {ticket} of {device} is acknowledged and not durable"));
            }
        }
        hub.answer(device, Answer::Outcome(*session, ticket, outcome));
    }
}

/// The engine's clock: that of the world, and wrong if it has to be.
#[derive(Debug, Default)]
pub(super) struct SimClock {
    /// Milliseconds of the world when the engine started.
    base: AtomicI64,
    started: Mutex<Option<Instant>>,
    /// Nanoseconds that it is off.
    pub(super) skew: AtomicI64,
}

impl SimClock {
    /// The engine starts at `now`; to be called inside of its runtime.
    pub(super) fn start(&self, now: i64) {
        self.base.store(now, Ordering::Relaxed);
        *self.started.lock() = Some(Instant::now());
    }

    /// Milliseconds since the world began.
    pub(super) fn now(&self) -> i64 {
        let since = self.started.lock().map_or(0, |started| started.elapsed().as_millis() as i64);
        self.base.load(Ordering::Relaxed) + since
    }

    /// What the engine takes for the time.
    pub(super) fn wall(&self) -> Timestamp {
        Timestamp(BEGIN + self.now() * MILLI + self.skew.load(Ordering::Relaxed))
    }
}
