//! The device: the pure parts of the edge agent, its store in memory, its twin, and a clock that is wrong.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use device::hello::Hello;
use device::schema::Value;
use device::seq::Epoch;
use device::time::{SECOND, Timestamp};
use edge::agent::{Action, Agent, AgentConfig, Event};
use edge::clock::{Clocks, Stamp};
use edge::frame::{self, Times};
use edge::outbox::{Fresh, Media, Outbox, OutboxConfig, RamMedia};
use edge::twin::{Sent, Twin};
use edge::{FrameConfig, Reading, SchemaRef, wire};
use serde_json::Map;

use super::life::{Clock, Edit, START, patch, value_at};

const SCHEMA: SchemaRef = SchemaRef { id: 1, version: 1 << 16 };

/// Memory that outlives the process.
#[derive(Debug, Clone, Default)]
struct Flash(Arc<Mutex<RamMedia>>);

impl Media for Flash {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.lock().unwrap().list()
    }
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().create(name, bytes)
    }
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().write(name, offset, bytes)
    }
    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().sync(name)
    }
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().replace(name, bytes)
    }
    fn read(&mut self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.0.lock().unwrap().read(name, offset, len)
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name)
    }
    fn blocks(&self) -> bool {
        false
    }
}

/// What the device sends.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    Hello(Vec<u8>),
    Status(Vec<u8>),
    Telemetry(Vec<u8>),
    Report(u16, Vec<u8>),
}

/// What it gets.
#[derive(Debug, Clone)]
pub(crate) enum Down {
    Publish(String, Vec<u8>),
    /// A report is durable.
    Taken(u16),
}

pub(crate) struct Edge {
    clock: Clock,
    /// By how much it was set.
    set: i64,
    boot: i64,
    flash: Flash,
    outbox: Outbox,
    agent: Agent,
    clocks: Clocks,
    pub(crate) twin: Twin,
    reports: Vec<(u16, Sent)>,
    session: u64,
    pub(crate) is_linked: bool,
    random: u64,
    pub(crate) out: Vec<Up>,
    /// What it applied: shadow, version, delta.
    pub(crate) applied: Vec<(String, u64, Map<String, serde_json::Value>)>,
}

fn open(flash: &Flash, random: u64) -> (Outbox, Agent) {
    let fresh = Fresh { epoch: random, install: [7; 16] };
    let (outbox, _) = Outbox::open(Box::new(flash.clone()), OutboxConfig::directory(), fresh).unwrap();
    let agent = Agent::new(AgentConfig::default(), random, &outbox.epochs(), outbox.lost());
    (outbox, agent)
}

impl Edge {
    pub(crate) fn new(clock: Clock, seed: u64) -> Self {
        let flash = Flash::default();
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let (outbox, agent) = open(&flash, random);
        Self {
            clock,
            set: 0,
            boot: START - 1000 * SECOND,
            flash,
            outbox,
            agent,
            clocks: Clocks::default(),
            twin: Twin::default(),
            reports: Vec::new(),
            session: 0,
            is_linked: false,
            random,
            out: Vec::new(),
            applied: Vec::new(),
        }
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random >> 1
    }

    fn stamp(&self, now: i64) -> Stamp {
        let fast = |passed: i64| passed + (i128::from(passed) * i128::from(self.clock.rate) / 1_000_000_000) as i64;
        let wall = START + self.clock.offset + fast(now - START) + self.set;
        Stamp { wall: Timestamp(wall), mono: fast(now - self.boot) as u64 }
    }

    pub(crate) fn set_clock(&mut self, by: i64) {
        self.set += by;
    }

    /// It is switched off and on again.
    pub(crate) fn reboot(&mut self, now: i64) {
        assert!(!self.is_linked);
        let random = self.draw();
        (self.outbox, self.agent) = open(&self.flash, random);
        self.clocks = Clocks::default();
        self.twin = Twin::decode(&self.twin.encode()).unwrap();
        self.reports.clear();
        self.boot = now;
    }

    pub(crate) fn connect(&mut self, now: i64) {
        self.is_linked = true;
        self.session = self.draw();
        self.step(now, Event::Connected);
    }

    pub(crate) fn cut(&mut self, now: i64) {
        self.is_linked = false;
        self.reports.clear();
        self.out.clear();
        self.step(now, Event::Disconnected);
    }

    pub(crate) fn record(&mut self, now: i64, temperature: f64, vibration: f64) {
        let stamp = self.stamp(now);
        let values = [(1, Value::F64(temperature)), (2, Value::F64(vibration))];
        self.outbox.push(&Reading::new(stamp.wall, SCHEMA, &values)).unwrap();
        let last = self.outbox.commit().unwrap();
        self.clocks.records(self.outbox.live(), last, stamp);
        self.step(now, Event::Recorded { last });
    }

    pub(crate) fn change(&mut self, now: i64, shadow: &str, path: &str, edit: &Edit) {
        let held = self.twin.shadows().get(shadow).map(|held| held.values.clone()).unwrap_or_default();
        let patch = patch(path, edit.value(value_at(&held, path)));
        self.twin.change(shadow, &patch, self.stamp(now));
        if self.is_linked {
            self.report(now, shadow);
        }
    }

    fn report(&mut self, now: i64, shadow: &str) {
        let Some((payload, sent)) = self.twin.report(shadow, self.session, self.stamp(now)) else { return };
        let id = self.draw() as u16;
        self.reports.push((id, sent));
        self.out.push(Up::Report(id, payload));
    }

    /// What it has of a shadow.
    pub(crate) fn values(&self, shadow: &str) -> Map<String, serde_json::Value> {
        self.twin.shadows().get(shadow).map(|held| held.values.clone()).unwrap_or_default()
    }

    /// Notes what a wish has done.
    fn wanted(&mut self, shadow: &str, dv: u64, delta: Map<String, serde_json::Value>, taken: bool) {
        if taken {
            self.applied.push((shadow.to_owned(), dv, delta));
        }
    }

    pub(crate) fn receive(&mut self, now: i64, message: Down) {
        let stamp = self.stamp(now);
        match message {
            Down::Taken(id) => {
                let Some(at) = self.reports.iter().position(|(of, _)| *of == id) else { return };
                let (_, sent) = self.reports.remove(at);
                if self.twin.heard(&sent).again {
                    self.report(now, sent.shadow());
                }
            }
            Down::Publish(topic, payload) => match &*topic {
                "ack" => {
                    let (ack, times) = wire::ack(&payload).unwrap();
                    if let Some(times) = times {
                        self.clocks.answered(times, stamp);
                    }
                    self.step(now, Event::Ack(ack));
                }
                "hello/ack" => {
                    let Some(said) = wire::hello_ack(&payload, self.session) else { return };
                    let (ack, (dv, delta)) = (said.ack, said.wish);
                    if let Some(times) = said.times {
                        self.clocks.answered(times, stamp);
                    }
                    self.step(now, Event::HelloAck(ack));
                    let taken = self.twin.greeted(dv, delta.as_deref()).unwrap();
                    if let (Some(dv), Some(delta)) = (dv, delta) {
                        self.wanted("main", dv, device::shadow::read_object(&delta).unwrap(), taken);
                    }
                    let mut names: Vec<String> = self.twin.shadows().keys().cloned().collect();
                    if names.is_empty() && dv.is_some() {
                        names.push("main".to_owned());
                    }
                    names.iter().for_each(|name| self.report(now, name));
                }
                "config" => {
                    let taken = self.twin.wanted(&payload).unwrap();
                    let said = device::shadow::read_object(&payload).unwrap();
                    let name = said["shadow"].as_str().unwrap().to_owned();
                    let delta = said["delta"].as_object().cloned().unwrap();
                    self.wanted(&name, said["dv"].as_u64().unwrap(), delta, taken.is_some());
                    if let Some(name) = taken {
                        self.report(now, &name);
                    }
                }
                // For plain clients.
                topic if topic.starts_with("shadow/") => {}
                other => panic!("{other}: {}", String::from_utf8_lossy(&payload)),
            },
        }
    }

    /// When it wants a tick.
    pub(crate) fn due(&self) -> Option<i64> {
        let at = self.agent.deadline()?;
        Some(self.boot + at.as_nanos() as i64 + 1)
    }

    pub(crate) fn tick(&mut self, now: i64) {
        self.step(now, Event::Tick);
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.agent.is_up() && self.agent.unacknowledged() == 0 && self.reports.is_empty()
    }

    fn step(&mut self, now: i64, event: Event) {
        // The agent's time is that of no clock that anybody sets.
        let since = Duration::from_nanos((now - self.boot) as u64);
        for action in self.agent.step(event, since) {
            let stamp = self.stamp(now);
            if matches!(action, Action::Hello(_) | Action::Send { .. } | Action::Declare(_)) {
                self.clocks.sends(stamp);
            }
            match action {
                Action::Hello(epochs) => {
                    let hello = Hello {
                        install: self.outbox.install().to_vec(),
                        fw: "twin".to_owned(),
                        epochs: wire::held(&epochs),
                        boot_no: self.outbox.boots(),
                        mono: Some(stamp.mono),
                        st: Some(stamp.wall),
                        session: self.session,
                        applied_dv: self.twin.shadows().get("main").map(|held| held.applied_dv),
                        ..Hello::default()
                    };
                    self.out.push(Up::Hello(hello.encode()));
                    self.out.push(Up::Status(wire::online(&hello)));
                }
                Action::Send { epoch, first, last, .. } => {
                    let count = (last - first + 1) as usize;
                    let records = self.outbox.read(epoch, first, last, count).unwrap();
                    let apart = |seq| self.clocks.apart(epoch, seq);
                    let times = Times { stamp, measured: self.clocks.measured(stamp), apart: &apart };
                    let (frames, bad) = frame::pack(epoch, &records, &FrameConfig::default(), &times);
                    assert!(bad.is_empty());
                    self.out.extend(frames.into_iter().map(Up::Telemetry));
                }
                Action::Forget(ack) => self.outbox.forget(Epoch(ack.epoch), ack.cum, &ack.ranges).unwrap(),
                other => panic!("{other:?}"),
            }
        }
    }
}
