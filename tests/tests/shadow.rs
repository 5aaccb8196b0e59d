//! Promise: whatever comes in whatever order, through crashes at any step, a device's shadow is what a simple reading
//! of the rules says, and its answers are those of that reading.
//!
//! The reading (`Model`) knows no patches, no undo and no trees: a document is a map of paths to numbers, every version
//! of what is desired is kept whole. `WEIR_CASES` says how many histories there are, `WEIR_SEED` repeats one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use device::entry::{Body, Entry};
use device::id::DeviceId;
use device::machine::{Channel, Device, Effect, Message};
use device::seq::Position;
use device::shadow::{Answer, Ask, Policy, Rule, ShadowRules, What, Winner};
use device::time::{SECOND, Timestamp};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

const START: i64 = 1_795_428_000 * SECOND;

/// Every value there is, and who wins there.
const PATHS: [(&str, Policy); 7] = [
    ("a", Policy::Server),
    ("b", Policy::Device),
    ("c.d", Policy::Later),
    ("c.e", Policy::Manual),
    ("c.f.g", Policy::Max),
    ("h", Policy::Min),
    ("i.j", Policy::Server),
];

/// Objects are there once something was set or deleted in them: each stands under its own path, with this value.
const OBJECT: i64 = i64::MIN;

type Doc = BTreeMap<&'static str, i64>;

/// The objects around a value.
fn around(path: &str) -> &'static [&'static str] {
    match path {
        "c.d" | "c.e" => &["c"],
        "c.f.g" => &["c", "c.f"],
        "i.j" => &["i"],
        _ => &[],
    }
}

fn touch(doc: &mut Doc, path: &str) {
    doc.extend(around(path).iter().map(|object| (*object, OBJECT)));
}

/// Without the objects.
fn values_of(doc: &Doc) -> Doc {
    doc.iter().filter(|(_, value)| **value != OBJECT).map(|(path, value)| (*path, *value)).collect()
}

fn policy(path: &str) -> Policy {
    PATHS.into_iter().find(|(of, _)| *of == path).map(|(_, policy)| policy).unwrap()
}

/// The document as JSON.
fn nested(doc: impl IntoIterator<Item = (&'static str, Option<i64>)>) -> Map<String, Value> {
    let mut root = Map::new();
    for (path, value) in doc {
        let mut at = &mut root;
        let (branches, leaf) = path.rsplit_once('.').map_or((None, path), |(branches, leaf)| (Some(branches), leaf));
        for name in branches.into_iter().flat_map(|branches| branches.split('.')) {
            at = at.entry(name).or_insert_with(|| json!({})).as_object_mut().unwrap();
        }
        at.insert(leaf.to_owned(), value.map_or(Value::Null, Value::from));
    }
    root
}

/// The values of a JSON document; objects without values are nothing.
fn flat(object: &Map<String, Value>) -> Doc {
    let value = |path: &str| {
        let names: Vec<&str> = path.split('.').collect();
        let (leaf, branches) = names.split_last()?;
        let mut at = object;
        for name in branches {
            at = at.get(*name)?.as_object()?;
        }
        at.get(*leaf)?.as_i64()
    };
    PATHS.into_iter().filter_map(|(path, _)| Some((path, value(path)?))).collect()
}

#[derive(Debug, Clone)]
struct Report {
    session: Option<(u64, u64)>,
    based_on: Option<u64>,
    full: bool,
    values: BTreeMap<&'static str, Option<i64>>,
    times: BTreeMap<&'static str, i64>,
    local: Option<BTreeSet<&'static str>>,
}

impl Report {
    fn payload(&self) -> Bytes {
        let values = nested(self.values.iter().map(|(path, value)| (*path, *value)));
        let mut report = json!({ "based_on_dv": self.based_on, "t": self.times, "local": self.local });
        let fields = report.as_object_mut().unwrap();
        fields.insert(if self.full { "full" } else { "patch" }.to_owned(), Value::Object(values));
        if let Some((session, rseq)) = self.session {
            fields.insert("session".to_owned(), session.into());
            fields.insert("rseq".to_owned(), rseq.into());
        }
        report.to_string().into()
    }
}

/// The simple reading.
#[derive(Debug, Clone, Default)]
struct Model {
    /// By version; 0 is empty.
    desired: Vec<Doc>,
    set_at: BTreeMap<&'static str, i64>,
    expires: BTreeMap<&'static str, i64>,
    reported: Doc,
    rv: u64,
    applied: u64,
    turn: Option<(u64, u64)>,
    open: BTreeSet<&'static str>,
    answers: BTreeMap<u64, u64>,
    conflicts: Vec<(&'static str, Winner)>,
    expired: Vec<&'static str>,
}

impl Model {
    fn dv(&self) -> u64 {
        self.desired.len() as u64
    }

    fn version(&self, dv: u64) -> Option<Doc> {
        match dv {
            0 => Some(Doc::new()),
            _ => self.desired.get(dv as usize - 1).cloned(),
        }
    }

    fn wanted(&self, now: i64) -> Doc {
        let mut wanted = self.version(self.dv()).unwrap();
        wanted.retain(|path, _| self.expires.get(path).is_none_or(|at| *at > now));
        wanted
    }

    fn delta(&self, now: i64) -> Doc {
        let mut delta = self.wanted(now);
        delta.retain(|path, value| {
            *value != OBJECT && self.reported.get(path) != Some(value) && !self.open.contains(path)
        });
        delta
    }

    fn set(&mut self, changes: &BTreeMap<&'static str, Option<i64>>, now: i64, expires: Option<i64>) {
        let mut next = self.version(self.dv()).unwrap();
        for (path, value) in changes {
            self.open.remove(path);
            touch(&mut next, path);
            match value {
                Some(value) => {
                    if next.insert(path, *value) != Some(*value) {
                        self.set_at.insert(path, now);
                    }
                    self.expires.remove(path);
                    if let Some(expires) = expires {
                        self.expires.insert(path, expires);
                    }
                }
                None => {
                    next.remove(path);
                    self.expires.remove(path);
                    self.set_at.remove(path);
                }
            }
        }
        self.desired.push(next);
    }

    fn ask(
        &mut self,
        changes: &BTreeMap<&'static str, Option<i64>>,
        (request, if_dv, ttl): (Option<u64>, Option<u64>, Option<i64>),
        now: i64,
    ) -> Answer {
        if let Some(dv) = request.and_then(|request| self.answers.get(&request)) {
            return Answer::Unchanged(*dv);
        }
        if if_dv.is_some_and(|dv| dv != self.dv()) {
            return Answer::Mismatch(self.dv());
        }
        let wanted = self.wanted(now);
        let news = changes.iter().any(|(path, value)| {
            wanted.get(path) != value.as_ref()
                || around(path).iter().any(|object| !wanted.contains_key(object))
                || self.open.contains(path)
                || self.expires.contains_key(path)
        });
        if !news && ttl.is_none() {
            return Answer::Unchanged(self.dv());
        }
        self.set(changes, now, ttl.map(|ttl| now + ttl));
        if let Some(request) = request {
            self.answers.insert(request, self.dv());
        }
        Answer::Changed(self.dv())
    }

    fn report(&mut self, report: &Report, session: Option<u64>, now: i64) {
        if let Some((of, rseq)) = report.session {
            if session.is_some_and(|session| session != of) {
                return;
            }
            if self.turn.is_some_and(|(last_of, last)| last_of == of && rseq <= last) {
                return;
            }
        }
        let before = self.reported.clone();
        if report.full {
            self.reported.clear();
        }
        for (path, value) in &report.values {
            touch(&mut self.reported, path);
            match value {
                Some(value) => drop(self.reported.insert(path, *value)),
                None => drop(self.reported.remove(path)),
            }
        }
        self.rv += u64::from(self.reported != before);
        self.turn = report.session.or(self.turn);
        let wanted = self.wanted(now);
        let base = match report.based_on {
            Some(dv) => self.version(dv),
            None => Some(wanted.clone()),
        };
        if let Some(dv) = report.based_on {
            self.applied = dv.min(self.dv());
        }
        let mut adopt = BTreeMap::new();
        if report.based_on.is_some() || report.local.is_some() {
            for (path, _) in PATHS {
                let from = base.as_ref().and_then(|base| base.get(path));
                let (theirs, Some(ours)) = (wanted.get(path), self.reported.get(path)) else { continue };
                if from.is_none() && theirs.is_none() {
                    continue;
                }
                let edited_there = base.is_none() || from != theirs;
                let edited_here = match &report.local {
                    Some(local) => local.contains(path),
                    None => from != Some(ours),
                };
                if policy(path) != Policy::Manual || theirs == Some(ours) || edited_here {
                    self.open.remove(path);
                }
                if theirs == Some(ours) || !edited_here {
                    continue;
                }
                let later = match (report.times.get(path), self.set_at.get(path)) {
                    (Some(here), Some(there)) => here - there > SECOND / 2,
                    (Some(_), None) => true,
                    (None, _) => false,
                };
                let device = match policy(path) {
                    Policy::Device => true,
                    Policy::Later => later,
                    Policy::Max => theirs.is_none_or(|theirs| ours > theirs),
                    Policy::Min => theirs.is_none_or(|theirs| ours < theirs),
                    _ => false,
                };
                let winner = match policy(path) {
                    Policy::Manual => Winner::Nobody,
                    _ if device => Winner::Device,
                    _ => Winner::Server,
                };
                if winner == Winner::Nobody {
                    self.open.insert(path);
                }
                if device {
                    adopt.insert(path, Some(*ours));
                }
                if edited_there && before.get(path) != Some(ours) {
                    self.conflicts.push((path, winner));
                }
            }
        }
        let reported = &self.reported;
        self.open.retain(|path| wanted.get(path).zip(reported.get(path)).is_some_and(|(theirs, ours)| theirs != ours));
        if !adopt.is_empty() {
            self.set(&adopt, now, None);
        }
    }

    fn pass(&mut self, now: i64) {
        let over: Vec<&'static str> =
            self.expires.iter().filter(|(_, at)| **at <= now).map(|(path, _)| *path).collect();
        if over.is_empty() {
            return;
        }
        let mut next = self.version(self.dv()).unwrap();
        for path in over {
            next.remove(path);
            self.expires.remove(path);
            self.set_at.remove(path);
            self.expired.push(path);
        }
        self.desired.push(next);
    }
}

struct World {
    random: SmallRng,
    rules: std::sync::Arc<ShadowRules>,
    now: i64,
    device: Device,
    session: Option<u64>,
    /// What is durable.
    log: Vec<(Position, Entry)>,
    checkpoint: (Position, Vec<u8>),
    /// Verdicts under way, each with the model behind it.
    staged: VecDeque<(Position, Vec<Entry>, Model)>,
    next: u64,
    /// As decided.
    model: Model,
    /// As durable.
    durable: Model,
    conflicts: Vec<(String, Winner)>,
    expired: Vec<String>,
    last: Option<Report>,
}

impl World {
    fn new(seed: u64) -> Self {
        let rule = |(path, policy): (&str, Policy)| Rule {
            shadow: None,
            path: path.split('.').map(str::to_owned).collect(),
            policy,
            deadband: 0.0,
        };
        let rules = std::sync::Arc::new(ShadowRules(PATHS.into_iter().map(rule).collect()));
        let device = Device::new(DeviceId::new("pump").unwrap()).with_rules(rules.clone());
        Self {
            random: SmallRng::seed_from_u64(seed),
            rules,
            now: START,
            checkpoint: (Position(0), device.snapshot()),
            device,
            session: None,
            log: Vec::new(),
            staged: VecDeque::new(),
            next: 1,
            model: Model::default(),
            durable: Model::default(),
            conflicts: Vec::new(),
            expired: Vec::new(),
            last: None,
        }
    }

    fn chance(&mut self, of: u32) -> bool {
        self.random.random_range(0..of) == 0
    }

    fn values(&mut self, nulls: bool) -> BTreeMap<&'static str, Option<i64>> {
        let mut values = BTreeMap::new();
        for (path, _) in PATHS {
            if self.chance(3) {
                let value = self.random.random_range(0..4i64);
                values.insert(path, if nulls && value == 0 { None } else { Some(value) });
            }
        }
        values
    }

    fn stage(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.staged.push_back((Position(self.next), entries, self.model.clone()));
        self.next += 1;
    }

    fn ask(&mut self) {
        let values = self.values(true);
        let request = self.chance(3).then(|| self.random.random_range(0..4u64));
        let if_dv =
            self.chance(3).then(|| self.model.dv().saturating_sub(u64::from(self.random.random_range(0..5u32) == 0)));
        let ttl = self.chance(4).then(|| self.random.random_range(1..20) * SECOND);
        let ask = Ask {
            shadow: "main".into(),
            patch: Some(nested(values.iter().map(|(path, value)| (*path, *value)))),
            by: "ann".into(),
            request: request.map(|request| request.to_string().as_str().into()),
            if_dv,
            ttl,
        };
        let (answer, entries) = self.device.ask(ask, Timestamp(self.now));
        let expected = self.model.ask(&values, (request, if_dv, ttl), self.now);
        assert_eq!(answer, expected);
        self.stage(entries);
    }

    fn report(&mut self) {
        let report = match &self.last {
            Some(last) if self.random.random_range(0..5) == 0 => last.clone(),
            _ => {
                let full = self.chance(3);
                let values = self.values(!full);
                let dv = self.model.dv();
                let based_on = (!self.chance(3)).then(|| dv.saturating_sub(self.random.random_range(0..3)));
                let times = values.keys().map(|path| (*path, self.now + self.random.random_range(-3..3) * SECOND));
                let times = times.collect::<BTreeMap<_, _>>();
                let local = self.chance(3).then(|| self.values(false).into_keys().collect());
                let rseq = self.random.random_range(1..6);
                let session = (!self.chance(3)).then(|| (self.random.random_range(1..3), rseq));
                let times = if self.chance(2) { times } else { BTreeMap::new() };
                Report { session, based_on, full, values, times, local }
            }
        };
        let payload = report.payload();
        let received = Timestamp(self.now);
        let message = Message { channel: Channel::Telemetry, payload: &payload, format: None, received, session: 1 };
        let verdict = self.device.report(message, None);
        self.model.report(&report, self.session, self.now);
        self.stage(verdict.entries);
        self.last = Some(report);
    }

    fn commit(&mut self) {
        let Some((position, entries, model)) = self.staged.pop_front() else { return };
        for entry in entries {
            match &entry.body {
                Body::Shadow(change) => match &change.what {
                    What::Conflict(conflict) => {
                        self.conflicts.push((device::shadow::shown(&conflict.path), conflict.winner));
                    }
                    What::Expired { paths, .. } => {
                        self.expired.extend(paths.iter().map(|path| device::shadow::shown(path)));
                    }
                    _ => {}
                },
                other => panic!("{other:?}"),
            }
            self.device.apply(position, &entry);
            self.log.push((position, entry));
        }
        self.device.advance(position);
        self.durable = model;
        self.check();
    }

    fn crash(&mut self) {
        let (from, snapshot) = &self.checkpoint;
        let id = self.device.id().clone();
        let mut device = Device::restore(id, snapshot).unwrap().with_rules(self.rules.clone());
        let mut last = Position(0);
        for (position, entry) in self.log.iter().filter(|(position, _)| position > from) {
            if *position != last && last.0 > 0 {
                device.advance(last);
            }
            device.apply(*position, entry);
            last = *position;
        }
        device.advance(last);
        self.device = device;
        self.staged.clear();
        self.model = self.durable.clone();
        // It is told again by the next hello.
        self.session = None;
        self.check();
    }

    fn hello(&mut self) {
        let session = self.random.random_range(1..3);
        let hello = device::hello::Hello { session, applied_dv: Some(self.model.applied), ..Default::default() };
        let payload = Bytes::from(hello.encode());
        let received = Timestamp(self.now);
        let message = Message { channel: Channel::Hello, payload: &payload, format: None, received, session: 1 };
        let verdict = self.device.admit(message, &Default::default(), &mut || 5);
        self.session = Some(session);
        // What is wanted is said in whole.
        let told = verdict.effects.iter().find_map(|effect| match effect {
            Effect::Publish { topic, payload, .. } if topic == "shadow/delta" => Some(payload.clone()),
            _ => None,
        });
        let wanted = self.durable.delta(self.now);
        match told {
            Some(told) => {
                let told: Value = serde_json::from_slice(&told).unwrap();
                assert_eq!(flat(told["delta"].as_object().unwrap()), wanted);
                assert_eq!(told["dv"], self.durable.dv());
            }
            None => assert!(wanted.is_empty()),
        }
    }

    fn check(&self) {
        let now = Timestamp(self.now);
        let model = &self.durable;
        let Some(view) = self.device.shadow("main", now) else {
            assert_eq!((model.dv(), model.rv), (0, 0));
            return;
        };
        assert_eq!((view.dv, view.rv, view.applied_dv), (model.dv(), model.rv, model.applied));
        assert_eq!(flat(&view.desired), values_of(&model.wanted(self.now)));
        assert_eq!(flat(&view.reported), values_of(&model.reported));
        assert_eq!(flat(&view.delta), model.delta(self.now));
        let open: BTreeSet<String> = view.open.iter().map(|path| device::shadow::shown(path)).collect();
        assert_eq!(open, model.open.iter().map(ToString::to_string).collect());
        let conflicts: Vec<_> = model.conflicts.iter().map(|(path, winner)| (path.to_string(), *winner)).collect();
        assert_eq!(self.conflicts, conflicts);
        let mut expired = self.expired.clone();
        expired.sort();
        let mut all: Vec<String> = model.expired.iter().map(ToString::to_string).collect();
        all.sort();
        assert_eq!(expired, all);
    }

    fn step(&mut self) {
        match self.random.random_range(0..12) {
            0..3 => self.ask(),
            3..6 => self.report(),
            6..8 => self.commit(),
            8 => {
                self.now += self.random.random_range(0..10) * SECOND;
                let entries = self.device.overdue(Timestamp(self.now));
                self.model.pass(self.now);
                self.stage(entries);
            }
            9 => self.hello(),
            10 => self.crash(),
            _ => self.checkpoint = (self.device.as_of(), self.device.snapshot()),
        }
    }
}

#[test]
fn histories_come_to_what_the_rules_say() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let (from, cases) = match number("WEIR_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("WEIR_CASES").unwrap_or(20_000)),
    };
    for seed in from..from + cases {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..30 {
                world.step();
            }
            while !world.staged.is_empty() {
                world.commit();
            }
        });
        assert!(run.is_ok(), "seed {seed}: WEIR_SEED={seed} repeats it");
    }
}
