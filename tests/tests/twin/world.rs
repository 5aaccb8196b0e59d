//! One world: a device with its edge agent, the network, and the engine's side as pure machines: device, log, desk. Virtual
//! time, one thread.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use alerts::{About, Change, Desk, Happening, Settings};
use bytes::Bytes;
use device::alert::{self, Backfill, Comparison, Expr, NoData, Rules, Step, Transition, Wants};
use device::clock::{Note, stamp_noted};
use device::entry::{Body, Entry};
use device::id::DeviceId;
use device::machine::{self, Channel, Device, Effect, Watch};
use device::payload::{Head, RecordSink};
use device::schema::{Catalog, Field, FieldType, SchemaVersion, Stream, Value};
use device::seq::Position;
use device::shadow::{Answer, Ask, Conflict, Policy, Rule, ShadowRules, View, What as Changed};
use device::time::{SECOND, Timestamp};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::edge_side::{Down, Edge, Up};
use super::life::{HOUR, Life, MINUTE, What, patch, value_at};

pub(crate) const CHANNEL: &str = "ops";

/// A rule that waits is half an interval away from any number of readings, so that no clock's error decides.
fn rules(every: i64) -> Rules {
    let level = |severity: &str, field: u16, above: f64, clear: Option<f64>, for_ns: i64| {
        let compare =
            |comparison, number| Expr::Compare(comparison, Box::new((Expr::Field(field), Expr::Float(number))));
        alert::Level {
            severity: severity.into(),
            raise: compare(Comparison::Greater, above),
            clear: clear.map(|clear| compare(Comparison::Less, clear)),
            for_ns,
            subject: Some(Expr::Field(field)),
        }
    };
    let ladder = |repeat: Option<i64>| {
        let most = if repeat.is_some() { 3 } else { 1 };
        let lead = Step { to: "lead".into(), after_ns: 10 * MINUTE, repeat_ns: None, most: 1 };
        vec![Step { to: "oncall".into(), after_ns: 0, repeat_ns: repeat, most }, lead]
    };
    let rule = |name: &str, levels, (keep, samples): (i64, u32), silent: Option<i64>, no_data, repeat| alert::Rule {
        name: name.into(),
        version: 7,
        stream: 0,
        levels,
        keep_firing_for_ns: keep,
        min_samples: samples,
        max_gap_ns: None,
        no_data_after_ns: silent,
        no_data,
        backfill: Backfill::Record,
        ladder: ladder(repeat),
        labels: Vec::new(),
    };
    let two = |field, (low, high): (f64, f64), lasts| {
        vec![
            level("warning", field, low, Some(low * 0.93), lasts),
            level("critical", field, high, Some(high * 0.96), 0),
        ]
    };
    let all = vec![
        // Those that both twins have alike.
        rule("hot", two(0, (80.0, 95.0), 0), (0, 1), None, NoData::Keep, None),
        rule("long", two(0, (80.0, 95.0), every * 7 / 2), (every * 5 / 2, 1), None, NoData::Keep, Some(15 * MINUTE)),
        rule("shaking", vec![level("warning", 1, 4.4, None, 0)], (every / 2, 3), None, NoData::Keep, None),
        // Silence is a thing of the engine's time: only one of them was silent.
        rule("silent", two(0, (80.0, 95.0), 0), (0, 1), Some(HOUR), NoData::Raise, None),
        rule("stale", two(1, (4.4, 6.0), every * 3 / 2), (0, 1), Some(HOUR), NoData::Keep, None),
    ];
    Rules::new(1, all, catalog())
}

fn catalog() -> Arc<Catalog> {
    let field =
        |name: &str, id| Field { name: name.into(), id, kind: FieldType::F64, unit: None, scale: 0, comment: None };
    let version = SchemaVersion { major: 1, minor: 0 };
    let fields = vec![field("temperature", 1), field("vibration", 2)];
    Arc::new(Catalog::new(vec![Stream { name: "telemetry".into(), schema_id: Some(1), version, fields }]))
}

fn policies() -> Arc<ShadowRules> {
    let rule = |shadow: Option<&str>, path: &str, policy| Rule {
        shadow: shadow.map(str::to_owned),
        path: path.split('.').map(str::to_owned).collect(),
        policy,
        deadband: 0.0,
    };
    Arc::new(ShadowRules(vec![
        rule(None, "knob", Policy::Device),
        rule(Some("main"), "limits.*", Policy::Later),
        rule(Some("net"), "mtu", Policy::Later),
        rule(None, "gain", Policy::Manual),
        rule(None, "peak", Policy::Max),
        rule(None, "floor", Policy::Min),
        rule(None, "tags", Policy::Union),
    ]))
}

/// A message to people.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) at: i64,
    pub(crate) about: About,
    pub(crate) incident: String,
}

pub(crate) struct World {
    random: SmallRng,
    pub(crate) now: i64,
    goes_away: bool,
    is_away: bool,
    pub(crate) edge: Edge,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    device: Device,
    rules: Rules,
    policies: Arc<ShadowRules>,
    catalog: Arc<Catalog>,
    position: u64,
    floor: i64,
    desk: Desk,
    read: u64,
    pub(crate) transitions: Vec<Transition>,
    pub(crate) said: Vec<Said>,
    pub(crate) conflicts: Vec<Conflict>,
    pub(crate) expired: usize,
    pub(crate) records: u64,
    /// How far off times may be, as the rows say.
    pub(crate) errors: BTreeMap<i64, i64>,
    /// Events of the life that are over.
    lived: usize,
    /// Cuts while it drains.
    cuts: usize,
}

impl World {
    pub(crate) fn new(life: &Life, seed: u64, goes_away: bool) -> Self {
        let now = super::life::START;
        let policies = policies();
        let mut desk = Desk::default();
        let everybody = || [CHANNEL.to_owned()].into();
        let settings = Settings {
            channels: everybody(),
            people: [("oncall".to_owned(), everybody()), ("lead".to_owned(), everybody())].into(),
            ..Settings::default()
        };
        desk.step(Timestamp(now), &Happening::Settings(settings));
        Self {
            random: SmallRng::seed_from_u64(seed ^ u64::from(goes_away)),
            now,
            goes_away,
            is_away: false,
            edge: Edge::new(life.clock, seed),
            up: VecDeque::new(),
            down: VecDeque::new(),
            device: Device::new(DeviceId::new("pump-7").unwrap()).with_rules(policies.clone()),
            rules: rules(life.every),
            policies,
            catalog: catalog(),
            position: 0,
            floor: now,
            desk,
            read: 0,
            transitions: Vec::new(),
            said: Vec::new(),
            conflicts: Vec::new(),
            expired: 0,
            records: 0,
            errors: BTreeMap::new(),
            lived: 0,
            cuts: 0,
        }
    }

    pub(crate) fn run(&mut self, life: &Life, until: i64) {
        if self.position == 0 {
            self.connect();
        }
        while let Some((at, what)) = life.events.get(self.lived).filter(|(at, _)| *at <= until) {
            self.lived += 1;
            self.advance(*at);
            match what {
                What::Sample(temperature, vibration) => self.edge.record(self.now, *temperature, *vibration),
                What::Edit(shadow, path, edit, ttl) => {
                    let wanted = self.view(shadow).map(|view| view.desired).unwrap_or_default();
                    let ask = Ask {
                        shadow: (*shadow).into(),
                        patch: Some(patch(path, edit.value(value_at(&wanted, path)))),
                        by: "ann".into(),
                        request: None,
                        if_dv: None,
                        ttl: *ttl,
                    };
                    let (answer, entries) = self.device.ask(ask, Timestamp(self.now));
                    assert!(matches!(answer, Answer::Changed(_)), "{answer:?}");
                    self.commit(entries.to_vec(), 0);
                }
                What::Local(shadow, path, edit) => self.edge.change(self.now, shadow, path, edit),
                What::Step(by) => self.edge.set_clock(*by),
                What::Reboot => {
                    self.cut();
                    self.edge.reboot(self.now);
                    if !self.is_away {
                        self.connect();
                    }
                }
                What::Cut if self.is_away => {}
                What::Cut => {
                    self.cut();
                    self.connect();
                }
                What::Away if self.goes_away => {
                    self.is_away = true;
                    self.cut();
                }
                What::Back if self.goes_away => {
                    self.is_away = false;
                    self.cuts = self.random.random_range(0..4);
                    self.connect();
                }
                What::Away | What::Back => {}
            }
            self.pump();
        }
        self.advance(until);
    }

    pub(crate) fn view(&self, shadow: &str) -> Option<View> {
        self.device.shadow(shadow, Timestamp(self.now))
    }

    /// What was desired when the device last applied something.
    pub(crate) fn desired_at(&self, shadow: &str, dv: u64) -> serde_json::Map<String, serde_json::Value> {
        self.device.shadows().and_then(|shadows| shadows.desired_at(shadow, dv)).unwrap()
    }

    /// Time passes; what it does is done.
    fn advance(&mut self, until: i64) {
        loop {
            let wants = match self.device.wants(&self.rules, Timestamp(self.now), Timestamp(self.floor)) {
                Wants::Now => Some(self.now),
                Wants::At(at) => Some(at.0),
                Wants::Nothing => None,
            };
            let over = self.device.due().map(|at| at.0);
            let desk = self.desk.due().map(|at| at.0);
            let edge = self.edge.due().filter(|_| self.edge.is_linked);
            let next = [wants, over, desk, edge].into_iter().flatten().min().filter(|at| *at <= until);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            if wants.is_some_and(|at| at <= self.now) {
                let body = Body::Tick { floor: Timestamp(self.floor) };
                self.commit(vec![Entry { device: self.device.id().clone(), received: Timestamp(self.now), body }], 0);
            }
            if over.is_some_and(|at| at <= self.now) {
                let entries = self.device.overdue(Timestamp(self.now)).to_vec();
                self.commit(entries, 0);
            }
            if desk.is_some_and(|at| at <= self.now) {
                self.tell(&Happening::Tick);
            }
            if edge.is_some_and(|at| at <= self.now) {
                self.edge.tick(self.now);
            }
            self.pump();
        }
        self.now = self.now.max(until);
    }

    fn connect(&mut self) {
        // It subscribes, then it greets.
        let message = Bytes::new();
        let listening = self.device.listening(message_of(&message, self.now));
        self.edge.connect(self.now);
        self.effects(listening.effects);
        self.pump();
    }

    fn cut(&mut self) {
        self.up.clear();
        self.down.clear();
        self.edge.cut(self.now);
    }

    /// Carries messages until nothing is under way: in their order, some milliseconds each.
    fn pump(&mut self) {
        let mut idle = 0;
        while idle < 4 {
            self.up.extend(self.edge.out.drain(..));
            if !self.edge.is_linked {
                self.up.clear();
                self.down.clear();
                return;
            }
            if self.up.is_empty() && self.down.is_empty() {
                // Acks that were held back.
                self.now += 100_000_000;
                idle += 1;
                let effects = self.device.tick(Timestamp(self.now));
                idle = if effects.is_empty() { idle } else { 0 };
                self.effects(effects);
                continue;
            }
            idle = 0;
            self.now += self.random.random_range(2..20) * 1_000_000;
            if self.random.random_range(0..2) == 0 {
                if let Some(message) = self.up.pop_front() {
                    self.receive(message);
                }
            } else if let Some(message) = self.down.pop_front() {
                self.edge.receive(self.now, message);
            }
            if self.cuts > 0 && self.random.random_range(0..60) == 0 {
                // In the middle of it all.
                self.cuts -= 1;
                self.cut();
                self.now += self.random.random_range(1..9) * SECOND;
                self.connect();
            }
        }
        if self.random.random_range(0..200) == 0 && self.device.is_quiet() {
            self.restart();
        }
    }

    /// The engine starts again, or the device slept.
    fn restart(&mut self) {
        let snapshot = self.device.snapshot();
        let device = Device::restore(self.device.id().clone(), &snapshot).unwrap();
        self.device = device.with_rules(self.policies.clone());
    }

    fn receive(&mut self, message: Up) {
        let (payload, of): (Bytes, u8) = match &message {
            Up::Hello(payload) => (payload.clone().into(), 0),
            Up::Telemetry(payload) => (payload.clone().into(), 1),
            Up::Status(payload) => (payload.clone().into(), 2),
            Up::Report(_, payload) => (payload.clone().into(), 3),
        };
        let mut inbound = message_of(&payload, self.now);
        let verdict = match of {
            0 => {
                inbound.channel = Channel::Hello;
                self.device.admit(inbound, &self.catalog, &mut || 9)
            }
            1 => self.device.admit(inbound, &self.catalog, &mut || 9),
            2 => self.device.presence(inbound),
            _ => self.device.report(inbound, None),
        };
        assert_eq!(verdict.counts.dead + verdict.counts.nacked, 0, "{verdict:?}");
        self.records += verdict.counts.stored;
        // The committer answers before the device has its next turn.
        if let Up::Report(id, _) = message {
            self.down.push_back(Down::Taken(id));
        }
        self.effects(verdict.effects);
        self.commit(verdict.entries.to_vec(), verdict.streams);
    }

    /// One log record, and those that follow from it.
    fn commit(&mut self, entries: Vec<Entry>, streams: u64) {
        let mut entries = entries;
        let mut streams = streams;
        while !entries.is_empty() {
            self.position += 1;
            let position = Position(self.position);
            let mut effects = Vec::new();
            for entry in &entries {
                match &entry.body {
                    Body::Shadow(change) => match &change.what {
                        Changed::Conflict(conflict) => self.conflicts.push((**conflict).clone()),
                        Changed::Expired { paths, .. } => self.expired += paths.len(),
                        _ => {}
                    },
                    Body::Records(records) => {
                        let mut times =
                            Times { received: entry.received, note: records.clock.as_deref(), all: &mut self.errors };
                        device::payload::read(records.format, &records.payload, &self.catalog, &mut times).unwrap();
                    }
                    Body::Transitions(all) => {
                        let changes = all.iter().filter_map(|one| Change::of("pump-7", one)).collect();
                        self.tell(&Happening::Heard { shard: 0, position: position.0, changes });
                        self.transitions.extend(all.iter().cloned());
                    }
                    _ => {}
                }
                let watch = Watch { rules: &self.rules, streams };
                effects.extend(self.device.apply_under(position, entry, Some(watch)));
            }
            self.device.advance(position);
            self.effects(effects);
            let unlogged = self.device.unlogged(Timestamp(self.now), 0);
            entries = unlogged.into_iter().map(|(entry, _)| entry).collect();
            streams = 0;
        }
    }

    fn effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if let Effect::Publish { topic, payload, .. } = effect
                && self.edge.is_linked
            {
                self.down.push_back(Down::Publish(topic.into_owned(), payload));
            }
        }
    }

    /// The desk hears of something; what it says is accepted at once.
    fn tell(&mut self, happening: &Happening) {
        let effects = self.desk.step(Timestamp(self.now), happening);
        assert!(effects.is_empty(), "{effects:?}");
        let made: Vec<_> = self.desk.outbox(CHANNEL, self.read).cloned().collect();
        for message in made {
            self.read = message.number;
            let (about, incident) = (message.about, message.incident.clone());
            self.said.push(Said { at: self.now, about, incident });
            let accepted = Happening::Accepted { channel: CHANNEL.to_owned(), number: message.number };
            self.desk.step(Timestamp(self.now), &accepted);
        }
    }
}

/// Notes what rows say of their times. The first of all, of a clock of which nothing is known, has the time of receipt.
struct Times<'a> {
    received: Timestamp,
    note: Option<&'a Note>,
    all: &'a mut BTreeMap<i64, i64>,
}

impl RecordSink for Times<'_> {
    fn start(&mut self, head: &Head) -> bool {
        let stamp = stamp_noted(head.ts, self.received, None, self.note);
        self.all.insert(stamp.ts.0, stamp.clock_err_ns.unwrap_or(SECOND));
        false
    }
    fn value(&mut self, _: u16, _: Value<'_>) {}
    fn extra(&mut self, _: &str) {}
    fn end(&mut self) {}
}

fn message_of(payload: &Bytes, now: i64) -> machine::Message<'_> {
    machine::Message { channel: Channel::Telemetry, payload, format: None, received: Timestamp(now), session: 1 }
}
