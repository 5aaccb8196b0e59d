//! Promise: an alert's transitions follow from the log alone. Duplicates, disorder, crashes (back to any earlier
//! snapshot, then replay) and sleep neither lose nor repeat one, and `PENDING`, `FIRING` and `RECOVERING` go on exactly.
//!
//! A device and the reference model get the same records; what the log holds of transitions has to be what the model says
//! about the records, ticks and acknowledgements that the log holds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use device::alert::{self, Ack, Backfill, Comparison, Expr, IncidentId, NoData, Rules, Step, Transition, Wants};
use device::entry::{Body, Entry, LogBody, LogRecord};
use device::id::DeviceId;
use device::machine::{Channel, Device, Message, Watch};
use device::schema::{Catalog, Field, FieldType, SchemaVersion, Stream};
use device::seq::Position;
use device::time::{SECOND, Timestamp};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tests::alerts::{Level, Model, Row, Rule, Rung, Silence};

const START: i64 = 1_750_000_000 * SECOND;

#[derive(Debug, Clone)]
enum Action {
    /// A record that is so much older than the engine's clock, in milliseconds.
    Record {
        ago: i64,
        value: f64,
        replayed: bool,
    },
    /// The record before so many comes again.
    Again(usize),
    /// The clock goes on, in milliseconds.
    Pass(i64),
    /// What is on its way becomes durable.
    Commit,
    /// The device is asked whether it wants a tick.
    Tick,
    Acknowledge {
        minutes: Option<i64>,
    },
    Snapshot,
    /// Back to a snapshot, and what the log holds behind it.
    Crash,
    /// Asleep and awake again.
    Sleep,
}

fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        12 => (60i32..110).prop_map(f64::from),
        6 => Just(85.0),
        4 => Just(70.0),
        3 => Just(97.0),
        1 => Just(f64::NAN),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let record = |ago: std::ops::Range<i64>| {
        (ago, value(), prop::bool::weighted(0.03)).prop_map(|(ago, value, replayed)| Action::Record {
            ago,
            value,
            replayed,
        })
    };
    prop_oneof![
        20 => record(-500..1500),
        4 => record(0..6000),
        6 => record(0..900_000),
        4 => (1usize..6).prop_map(Action::Again),
        20 => (200i64..3000).prop_map(Action::Pass),
        3 => (10_000i64..90_000).prop_map(Action::Pass),
        1 => (300_000i64..2_000_000).prop_map(Action::Pass),
        25 => Just(Action::Commit),
        12 => Just(Action::Tick),
        2 => prop::option::of(1i64..20).prop_map(|minutes| Action::Acknowledge { minutes }),
        2 => Just(Action::Snapshot),
        2 => Just(Action::Crash),
        1 => Just(Action::Sleep),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let seconds = |most: i64| prop_oneof![2 => Just(0), 3 => (1..most).prop_map(|s| s * SECOND)];
    let level = |above: f64| {
        (seconds(8), prop::option::of(1i32..10)).prop_map(move |(lasts, band)| Level {
            above,
            below: band.map(|band| above - f64::from(band)),
            lasts,
        })
    };
    let levels = prop_oneof![
        level(80.0).prop_map(|low| vec![low]),
        (level(80.0), level(95.0)).prop_map(|(low, high)| vec![low, high]),
        (level(80.0), level(90.0), level(100.0)).prop_map(|(a, b, c)| vec![a, b, c]),
    ];
    let silence = prop_oneof![Just(Silence::Keep), Just(Silence::Raise), Just(Silence::Resolve)];
    let rung = |to: &'static str| {
        (0i64..200, prop::option::of(5i64..60), 1u32..4).prop_map(move |(after, every, most)| Rung {
            to: to.to_owned(),
            after: after / 2 * SECOND,
            every: every.map(|every| every * SECOND),
            most: if every.is_some() { most } else { 1 },
        })
    };
    let ladder = prop_oneof![
        Just(Vec::new()),
        rung("oncall").prop_map(|rung| vec![rung]),
        (rung("oncall"), rung("lead")).prop_map(|(a, b)| vec![a, b]),
    ];
    let rest = (prop::option::of((5i64..200).prop_map(|s| s * SECOND)), silence, any::<bool>(), ladder);
    let gap = prop::option::of((1i64..20).prop_map(|s| s * SECOND));
    (levels, seconds(10), 1usize..4, gap, rest).prop_map(
        |(levels, keep, samples, gap, (silent_after, silence, notify, ladder))| Rule {
            levels,
            keep,
            samples,
            gap,
            silent_after,
            silence,
            notify,
            ladder,
        },
    )
}

/// The same rule as devices have it.
fn rules(rule: &Rule) -> Rules {
    let compare = |comparison, number| Expr::Compare(comparison, Box::new((Expr::Field(0), Expr::Float(number))));
    let levels = rule.levels.iter().enumerate().map(|(at, level)| alert::Level {
        severity: at.to_string().into(),
        raise: compare(Comparison::Greater, level.above),
        clear: level.below.map(|below| compare(Comparison::Less, below)),
        for_ns: level.lasts,
        subject: Some(Expr::Field(0)),
    });
    let steps = rule.ladder.iter().map(|rung| Step {
        to: rung.to.as_str().into(),
        after_ns: rung.after,
        repeat_ns: rung.every,
        most: rung.most,
    });
    let rule = alert::Rule {
        name: "hot".into(),
        version: 7,
        stream: 0,
        levels: levels.collect(),
        keep_firing_for_ns: rule.keep,
        min_samples: rule.samples as u32,
        max_gap_ns: rule.gap,
        no_data_after_ns: rule.silent_after,
        no_data: match rule.silence {
            Silence::Keep => NoData::Keep,
            Silence::Raise => NoData::Raise,
            Silence::Resolve => NoData::Resolve,
        },
        backfill: if rule.notify { Backfill::Notify } else { Backfill::Record },
        ladder: steps.collect(),
        labels: vec![("team".into(), "plant".into())],
    };
    Rules::new(1, vec![rule], streams())
}

/// The one stream that there is.
fn streams() -> Arc<Catalog> {
    let field = Field { name: "t".into(), id: 1, kind: FieldType::F64, unit: None, scale: 0, comment: None };
    let version = SchemaVersion { major: 1, minor: 0 };
    let stream = Stream { name: "telemetry".into(), schema_id: Some(1), version, fields: vec![field] };
    Arc::new(Catalog::new(vec![stream]))
}

struct World {
    rules: Rules,
    catalog: Arc<Catalog>,
    device: Device,
    model: Model,
    now: i64,
    floor: i64,
    seq: u64,
    sent: Vec<Bytes>,
    /// Pushed to the committer and not durable.
    in_flight: Vec<Vec<Entry>>,
    log: Vec<Bytes>,
    snapshots: Vec<Vec<u8>>,
    /// Number of the last transition on its way.
    logged: u64,
    /// Transitions of the log.
    transitions: Vec<Transition>,
}

impl World {
    fn new(rule: &Rule) -> Self {
        let device = Device::new(DeviceId::new("pump-7").unwrap());
        Self {
            rules: rules(rule),
            catalog: streams(),
            snapshots: vec![device.snapshot()],
            device,
            model: Model::new(rule.clone()),
            now: START,
            floor: START,
            seq: 0,
            sent: Vec::new(),
            in_flight: Vec::new(),
            log: Vec::new(),
            logged: 0,
            transitions: Vec::new(),
        }
    }

    fn step(&mut self, action: &Action) {
        match action {
            Action::Record { ago, value, replayed } => {
                self.seq += 1;
                let ts = self.now - ago * 1_000_000;
                let frame = device::payload::FrameHeader {
                    version: 1,
                    epoch: 3,
                    seq: self.seq,
                    schema_id: 1,
                    schema_version: SchemaVersion { major: 1, minor: 0 },
                    base_time: Timestamp(ts),
                    send_time: Timestamp(ts),
                    mono_send: None,
                    mono_base: None,
                    layout: device::payload::Layout::Rows,
                    flags: u32::from(*replayed),
                    clock: None,
                    losses: Vec::new(),
                    trace: None,
                    records: 1,
                };
                let record = device::payload::FrameRecord {
                    ts: Timestamp(ts),
                    values: vec![(1, device::schema::OwnedValue::F64(*value))],
                    flags: 0,
                };
                let bytes = device::payload::encode_frame(&frame, &[record]).unwrap();
                self.sent.push(bytes.clone().into());
                self.send(bytes.into());
            }
            Action::Again(before) => {
                let at = self.sent.len().checked_sub(*before);
                if let Some(payload) = at.and_then(|at| self.sent.get(at)).cloned() {
                    self.send(payload);
                }
            }
            Action::Pass(millis) => self.now += millis * 1_000_000,
            Action::Commit => self.commit(),
            Action::Tick => self.tick(),
            Action::Acknowledge { minutes } => {
                let open = self.model.open().map(|since| IncidentId::of("hot", 7, "pump-7", Timestamp(since)));
                let Some(incident) = open.filter(|incident| self.device.has_incident(*incident)) else { return };
                let until = |minutes: i64| Timestamp(self.now + minutes * 60 * SECOND);
                let ack = minutes.map(|minutes| Ack { by: "ann".into(), until: until(minutes) });
                self.push(vec![self.entry(Body::Acknowledge { incident, ack })]);
            }
            Action::Snapshot => self.snapshots.push(self.device.snapshot()),
            Action::Crash => {
                // What was not durable is gone; what is awake begins from a snapshot and the log behind it.
                self.in_flight.clear();
                let at = (self.now / 1_000_000) as usize % self.snapshots.len();
                self.restore(at);
                self.floor = self.now;
                self.log_transitions();
            }
            Action::Sleep => {
                self.commit();
                self.commit();
                self.snapshots.push(self.device.snapshot());
                self.restore(self.snapshots.len() - 1);
            }
        }
    }

    fn entry(&self, body: Body) -> Entry {
        Entry { device: self.device.id().clone(), received: Timestamp(self.now), body }
    }

    fn send(&mut self, payload: Bytes) {
        let received = Timestamp(self.now);
        let message = Message { channel: Channel::Telemetry, payload: &payload, format: None, received, session: 1 };
        let verdict = self.device.admit(message, &self.catalog, &mut || 9);
        assert_eq!(verdict.counts.dead + verdict.counts.nacked, 0, "{verdict:?}");
        assert_eq!(verdict.streams, 1);
        self.push(verdict.entries.to_vec());
    }

    fn push(&mut self, entries: Vec<Entry>) {
        if !entries.is_empty() {
            self.in_flight.push(entries);
        }
    }

    /// One group commit, and what the device does because of it.
    fn commit(&mut self) {
        let entries: Vec<Entry> = self.in_flight.drain(..).flatten().collect();
        if entries.is_empty() {
            return;
        }
        let record = LogRecord { time: Timestamp(self.now), body: LogBody::Batch(entries.clone()) };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let bytes = Bytes::from(bytes);
        assert_eq!(LogRecord::decode(bytes.clone()).unwrap(), record);
        self.log.push(bytes);
        let position = Position(self.log.len() as u64);
        for entry in &entries {
            self.apply(position, entry, 1);
            self.note(entry);
        }
        self.device.advance(position);
        self.log_transitions();
    }

    fn apply(&mut self, position: Position, entry: &Entry, streams: u64) {
        let watch = Watch { rules: &self.rules, streams };
        self.device.apply_under(position, entry, Some(watch));
    }

    fn log_transitions(&mut self) {
        while let Some((entry, last)) = self.device.unlogged(Timestamp(self.now), self.logged) {
            self.logged = last;
            self.push(vec![entry]);
        }
    }

    fn tick(&mut self) {
        if !self.in_flight.is_empty() {
            return;
        }
        match self.device.wants(&self.rules, Timestamp(self.now), Timestamp(self.floor)) {
            Wants::Now => self.push(vec![self.entry(Body::Tick { floor: Timestamp(self.floor) })]),
            Wants::At(at) => assert!(at.0 > self.now),
            Wants::Nothing => {}
        }
    }

    fn restore(&mut self, at: usize) {
        let id = self.device.id().clone();
        self.device = Device::restore(id, &self.snapshots[at]).unwrap();
        assert_eq!(self.device.snapshot(), self.snapshots[at]);
        self.logged = 0;
        for index in 0..self.log.len() {
            let position = Position(index as u64 + 1);
            let LogBody::Batch(entries) = LogRecord::decode(self.log[index].clone()).unwrap().body else { panic!() };
            for entry in &entries {
                self.apply(position, entry, u64::MAX);
            }
            self.device.advance(position);
        }
    }

    /// The model hears of what the log holds.
    fn note(&mut self, entry: &Entry) {
        match &entry.body {
            Body::Records(records) => {
                let (mut ts, mut value) = (0, f64::NAN);
                struct Sink<'a>(&'a mut i64, &'a mut f64, bool);
                impl device::payload::RecordSink for Sink<'_> {
                    fn start(&mut self, head: &device::payload::Head) -> bool {
                        (*self.0, self.2) = (head.ts.unwrap().0, head.flags & 1 != 0);
                        true
                    }
                    fn value(&mut self, _: u16, value: device::schema::Value<'_>) {
                        if let device::schema::Value::F64(value) = value {
                            *self.1 = value;
                        }
                    }
                    fn extra(&mut self, _: &str) {}
                    fn end(&mut self) {}
                }
                let mut sink = Sink(&mut ts, &mut value, false);
                device::payload::read(records.format, &records.payload, &self.catalog, &mut sink).unwrap();
                let replayed = sink.2;
                self.model.record(entry.received.0, ts, value, replayed);
            }
            Body::Tick { floor } => self.model.tick(entry.received.0, floor.0),
            Body::Acknowledge { incident, ack } => {
                let open = self.model.open().map(|since| IncidentId::of("hot", 7, "pump-7", Timestamp(since)));
                if open != Some(*incident) {
                    return;
                }
                let ack = ack.as_ref().map(|ack| (ack.by.to_string(), ack.until.0));
                self.model.acknowledge(entry.received.0, ack);
            }
            Body::Transitions(transitions) => self.transitions.extend(transitions.clone()),
            _ => {}
        }
    }
}

fn row(transition: &Transition) -> Row {
    Row {
        event: transition.event.as_str(),
        from: transition.from.as_str(),
        to: transition.to.as_str(),
        level: transition.severity.parse().unwrap(),
        since: transition.since.0,
        ts: transition.ts.0,
        old: transition.backfilled,
        history: transition.history,
        stale: transition.stale,
        ack: transition.ack.as_ref().map(|ack| (ack.by.to_string(), ack.until.0)),
        told: transition.told.iter().map(|to: &Arc<str>| to.to_string()).collect(),
    }
}

fn run(rule: &Rule, actions: &[Action]) -> World {
    let mut world = World::new(rule);
    for action in actions {
        world.step(action);
    }
    // Everything that is on its way reaches the log, as the next start would see to.
    while !world.in_flight.is_empty() {
        world.commit();
    }
    let found: Vec<Row> = world.transitions.iter().map(row).collect();
    assert_eq!(found, world.model.rows());
    let numbers: Vec<u64> = world.transitions.iter().map(|transition| transition.number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "each once, in order");
    for transition in &world.transitions {
        let id = IncidentId::of("hot", 7, "pump-7", transition.since);
        assert_eq!((transition.incident, &*transition.labels), (id, "team=plant"));
    }
    world
}

#[test]
fn transitions_follow_from_the_log() {
    let seen = std::cell::RefCell::new(BTreeMap::<(&str, bool), usize>::new());
    let cases = std::env::var("WEIR_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3000);
    let config = ProptestConfig { cases, max_shrink_iters: 20_000, ..ProptestConfig::default() };
    let histories = (rule(), prop::collection::vec(action(), 1..160));
    let outcome = TestRunner::new(config).run(&histories, |(rule, actions)| {
        for transition in run(&rule, &actions).transitions {
            *seen.borrow_mut().entry((transition.event.as_str(), transition.history)).or_default() += 1;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    // All but the change of rules, and the past, too: what the histories do not reach is not tested.
    let seen = seen.into_inner();
    for event in [
        "pending",
        "lapsed",
        "fired",
        "escalated",
        "eased",
        "recovering",
        "relapsed",
        "resolved",
        "no_data",
        "returned",
        "surfaced",
        "acknowledged",
        "unacknowledged",
        "told",
    ] {
        assert!(seen.get(&(event, false)).is_some_and(|count| *count > 10), "{event}: {seen:?}");
    }
    for event in ["pending", "lapsed", "fired", "resolved", "superseded"] {
        assert!(seen.get(&(event, true)).is_some_and(|count| *count > 3), "{event} of the past: {seen:?}");
    }
}

fn plain_rule() -> Rule {
    Rule {
        levels: vec![Level { above: 80.0, below: Some(75.0), lasts: 3 * SECOND }],
        keep: 2 * SECOND,
        samples: 1,
        gap: None,
        silent_after: None,
        silence: Silence::Keep,
        notify: false,
        ladder: Vec::new(),
    }
}

fn told(world: &World) -> Vec<(i64, &'static str, &'static str)> {
    world.transitions.iter().map(|t| ((t.ts.0 - START) / SECOND, t.event.as_str(), t.to.as_str())).collect()
}

/// A value each second, and what the log holds of it.
fn seconds(values: &[f64]) -> World {
    let mut actions = Vec::new();
    for value in values {
        actions.push(Action::Record { ago: 0, value: *value, replayed: false });
        actions.extend([Action::Commit, Action::Crash, Action::Commit, Action::Pass(1000)]);
    }
    actions.extend([Action::Pass(5000), Action::Tick, Action::Commit, Action::Commit]);
    run(&plain_rule(), &actions)
}

#[test]
fn a_crash_after_every_sample_changes_nothing() {
    let world = seconds(&[70.0, 85.0, 86.0, 87.0, 88.0, 78.0, 74.0, 76.0, 73.0, 72.0, 71.0, 85.0, 79.0]);
    assert_eq!(
        told(&world),
        [
            (1, "pending", "pending"),
            (4, "fired", "firing"),
            (6, "recovering", "recovering"),
            (8, "resolved", "ok"),
            (11, "pending", "pending"),
            (12, "lapsed", "ok"),
        ]
    );
    assert_eq!(world.transitions[1].since.0, START + SECOND, "the incident began when readings began to raise");
    assert_eq!(world.transitions[1].value, Some(88.0));
}

#[test]
fn buffered_hours_tell_of_the_present_alone() {
    let mut actions = Vec::new();
    for minutes in (0..180).rev() {
        let value = if minutes % 60 < 30 { 90.0 } else { 70.0 };
        actions.push(Action::Record { ago: minutes * 60_000 + 301_000, value, replayed: false });
    }
    actions.extend([Action::Commit, Action::Commit]);
    for _ in 0..10 {
        actions.push(Action::Record { ago: 0, value: 91.0, replayed: false });
        actions.extend([Action::Commit, Action::Commit, Action::Pass(1000)]);
    }
    let ladder = vec![Rung { to: "oncall".to_owned(), after: 0, every: None, most: 1 }];
    let world = run(&Rule { ladder, gap: Some(600 * SECOND), ..plain_rule() }, &actions);
    let now: Vec<_> = world.transitions.iter().filter(|t| !t.backfilled).collect();
    assert!(world.transitions.iter().filter(|t| t.backfilled && t.event.as_str() == "fired").count() >= 3);
    let events: Vec<&str> = now.iter().map(|t| t.event.as_str()).collect();
    assert_eq!(events, ["surfaced", "told"], "one page for hours: {:?}", told(&world));
}

#[test]
fn a_rule_that_changes_ends_its_incident_and_one_that_does_not_goes_on() {
    let mut world = seconds(&[90.0; 8]);
    assert_eq!(told(&world), [(0, "pending", "pending"), (3, "fired", "firing")]);
    let same = alert::Rule { ladder: Vec::new(), ..world.rules.all()[0].clone() };
    let mut other = same.clone();
    (other.name, other.version) = ("cold".into(), 8);
    world.rules = Rules::new(2, vec![other.clone(), same], streams());
    world.tick();
    assert_eq!(world.in_flight.len(), 1, "other rules: it has to look at itself");
    world.commit();
    assert!(world.in_flight.is_empty(), "its incident goes on");
    world.rules = Rules::new(3, vec![other], streams());
    world.tick();
    world.commit();
    world.commit();
    assert_eq!(told(&world).last().map(|(_, event, state)| (*event, *state)), Some(("dropped", "ok")));
    assert_eq!(world.transitions.len(), 3);
}
