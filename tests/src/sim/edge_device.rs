//! An edge agent: the real outbox and the real agent, without the sockets between them.

use std::time::Duration;

use device::hello::Hello;
use device::schema::Value;
use device::seq::{Epoch, MAX_SEQ};
use device::time::Timestamp;
use edge::agent::{Action, Agent, AgentConfig, Event};
use edge::clock::{Clocks, Stamp};
use edge::frame::{self, Times};
use edge::outbox::{Fresh, Outbox, OutboxConfig, Pushed};
use edge::{FrameConfig, Reading, SchemaRef, wire};

use super::device::Common;
use super::media::SimMedia;

const SCHEMA: SchemaRef = SchemaRef { id: 1, version: 1 << 16 };

struct Process {
    outbox: Outbox,
    agent: Agent,
    /// When it started, in milliseconds of the world.
    since: i64,
    commit_at: Option<i64>,
    /// Pushed and not durable yet.
    pushed: Vec<i64>,
    session: u64,
    clocks: Clocks,
}

/// One device with an edge agent.
pub(super) struct EdgeDevice {
    /// What every device has.
    pub(super) common: Common,
    /// Its storage.
    pub(super) media: SimMedia,
    process: Option<Process>,
    frame: FrameConfig,
    tickets: u64,
}

impl EdgeDevice {
    /// A device that is switched off.
    pub(super) fn new(mut common: Common) -> Self {
        let media = SimMedia::new(super::random::Random::named(common.random.next(), "media"));
        let records = common.random.between(1, 16) as usize;
        let layout = if common.random.chance(300) { device::payload::Layout::Columns } else { Default::default() };
        let frame = FrameConfig { records, bytes: 4 << 10, layout };
        Self { common, media, process: None, frame, tickets: 0 }
    }

    /// Switches it on. False: its storage fails, try again.
    pub(super) fn boot(&mut self, now: i64) -> bool {
        let random = &mut self.common.random;
        let mut install = [0; 16];
        install[..8].copy_from_slice(&random.next().to_le_bytes());
        let fresh = Fresh { epoch: random.next(), install };
        let config = OutboxConfig { segment_bytes: 2048, recycle_bytes: 512, ..OutboxConfig::directory() };
        let Ok((outbox, _)) = Outbox::open(Box::new(self.media.clone()), config, fresh) else { return false };
        let config = AgentConfig { frame_records: self.frame.records as u64, ..AgentConfig::default() };
        let agent = Agent::new(config, random.next(), &outbox.epochs(), outbox.lost());
        self.process = Some(Process {
            outbox,
            agent,
            since: now,
            commit_at: None,
            pushed: Vec::new(),
            session: 0,
            clocks: Clocks::default(),
        });
        true
    }

    /// Switches it off, without a goodbye.
    pub(super) fn crash(&mut self) {
        self.process = None;
        self.media.crash();
        self.common.jump();
    }

    /// Whether it is switched on.
    pub(super) fn is_on(&self) -> bool {
        self.process.is_some()
    }

    /// A connection stands.
    pub(super) fn connected(&mut self, now: i64, session: u64) {
        if let Some(process) = &mut self.process {
            process.session = session;
            self.step(now, Event::Connected);
        }
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self, now: i64) {
        self.step(now, Event::Disconnected);
    }

    /// Records one reading.
    pub(super) fn record(&mut self, now: i64) {
        if self.process.is_none() {
            return;
        }
        let (n, truth) = self.common.reading(now);
        let mut values = vec![(2, Value::I64(n)), (3, Value::Text(&truth.status))];
        values.extend(truth.temperature.map(|t| (1, Value::F64(t))));
        let reading = Reading::new(Timestamp(truth.ts), SCHEMA, &values);
        let wall = self.common.stamp(now);
        let Some(process) = &mut self.process else { return };
        match process.outbox.push(&reading) {
            Ok(Pushed::Numbered(seq)) => {
                process.clocks.records(process.outbox.live(), seq, Stamp { wall, mono: mono(process.since, now) });
                process.pushed.push(n);
            }
            Ok(Pushed::Dropped(_)) | Err(_) => {}
        }
        let due = now + 50;
        process.commit_at = Some(process.commit_at.map_or(due, |at| at.min(due)));
    }

    /// A message from the engine.
    pub(super) fn message(&mut self, now: i64, topic: &str, payload: &[u8]) {
        let wall = self.common.stamp(now);
        let Some(process) = &mut self.process else { return };
        let said = match topic {
            "ack" => wire::ack(payload).map(|(ack, times)| (Event::Ack(ack), times)),
            "hello/ack" => {
                wire::hello_ack(payload, process.session).map(|said| (Event::HelloAck(said.ack), said.times))
            }
            _ => None,
        };
        let Some((event, times)) = said else { return };
        if let Some(times) = times {
            process.clocks.answered(times, Stamp { wall, mono: mono(process.since, now) });
        }
        self.step(now, event);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: i64) {
        let Some(process) = &mut self.process else { return };
        if process.commit_at.is_some_and(|at| at <= now) {
            process.commit_at = None;
            match process.outbox.commit() {
                Ok(last) => {
                    for n in process.pushed.drain(..) {
                        if let Some(truth) = self.common.truth.get_mut(&n) {
                            truth.kept = true;
                        }
                    }
                    let mut events: Vec<Event> = process.outbox.take_news().into_iter().map(Event::Lost).collect();
                    events.push(Event::Recorded { last });
                    for event in events {
                        self.step(now, event);
                    }
                }
                Err(_) => process.commit_at = Some(now + 1000),
            }
        }
        let Some(process) = &self.process else { return };
        if process.agent.deadline().is_some_and(|at| at.as_millis() as i64 <= now - process.since) {
            self.step(now, Event::Tick);
        }
    }

    /// When it wants a tick.
    pub(super) fn deadline(&self) -> Option<i64> {
        let process = self.process.as_ref()?;
        let agent = process.agent.deadline().map(|at| process.since + at.as_nanos().div_ceil(1_000_000) as i64);
        agent.into_iter().chain(process.commit_at).min()
    }

    /// Whether everything is acknowledged.
    pub(super) fn is_settled(&self) -> bool {
        self.process.as_ref().is_some_and(|process| {
            process.agent.unacknowledged() == 0 && process.outbox.pending() == 0 && process.agent.is_up()
        })
    }

    fn step(&mut self, now: i64, event: Event) {
        let mut events = vec![event];
        while !events.is_empty() {
            for event in std::mem::take(&mut events) {
                let Some(process) = &mut self.process else { return };
                let actions = process.agent.step(event, Duration::from_millis((now - process.since) as u64));
                for action in actions {
                    self.act(now, action, &mut events);
                }
            }
        }
        if let Some(process) = &mut self.process
            && process.outbox.is_dirty()
            && process.commit_at.is_none()
        {
            process.commit_at = Some(now + 50);
        }
    }

    fn act(&mut self, now: i64, action: Action, events: &mut Vec<Event>) {
        let Some(process) = &mut self.process else { return };
        let mono = mono(process.since, now);
        let stamp = Stamp { wall: self.common.stamp(now), mono };
        let Process { outbox, clocks, .. } = process;
        if matches!(action, Action::Hello(_) | Action::Send { .. } | Action::Declare(_)) {
            clocks.sends(stamp);
        }
        let measured = clocks.measured(stamp);
        let mut payloads = Vec::new();
        match action {
            Action::Hello(epochs) => {
                let hello = Hello {
                    install: process.outbox.install().to_vec(),
                    fw: "sim".to_owned(),
                    epochs: wire::held(&epochs),
                    boot_no: process.outbox.boots(),
                    mono: Some(mono),
                    st: Some(stamp.wall),
                    session: process.session,
                    ..Hello::default()
                };
                self.send(true, hello.encode());
            }
            Action::Send { epoch, first, last, .. } => {
                let count = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
                if let Ok(records) = outbox.read(epoch, first, last, count) {
                    let apart = |seq| clocks.apart(epoch, seq);
                    let times = Times { stamp, measured, apart: &apart };
                    payloads = frame::pack(epoch, &records, &self.frame, &times).0;
                }
            }
            Action::Declare(lost) => {
                if let Some(epoch) = lost.first().map(|lost| lost.epoch) {
                    let times = Times { measured, ..Times::of(stamp) };
                    payloads.extend(frame::declare(epoch, &lost, SCHEMA, &times));
                }
            }
            Action::Forget(ack) => {
                // What stays is sent again after a restart and recognised.
                let _ = process.outbox.forget(Epoch(ack.epoch), ack.cum, &ack.ranges);
            }
            Action::Fork(old) => {
                let fresh = Epoch(self.common.random.next() & MAX_SEQ);
                if process.outbox.fork(old, fresh).is_ok() {
                    let last = process.outbox.epochs().last().map_or(0, |view| view.last);
                    events.push(Event::Forked { old, fresh, last });
                }
            }
        }
        for payload in payloads {
            self.send(false, payload);
        }
    }

    fn send(&mut self, hello: bool, payload: Vec<u8>) {
        self.tickets += 1;
        self.common.out.push(super::device::Uplink { hello, payload, ticket: self.tickets });
    }
}

/// The monotonic clock of a process.
fn mono(since: i64, now: i64) -> u64 {
    (now - since) as u64 * 1_000_000
}
