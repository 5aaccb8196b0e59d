//! The agent against a model of the engine over a network that loses, doubles and reorders: whatever happens,
//! every number ends accounted for exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use device::entry::LossReason;
use device::seq::Epoch;
use device::time::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::outbox::{Fresh, MIN_BYTES, Media, Outbox, OutboxConfig, RamMedia, WhenFull};
use crate::ranges::RangeSet;
use crate::reading::{Reading, SchemaRef};

const SECOND: Duration = Duration::from_secs(1);

fn view(epoch: u64, last: u64, live: bool) -> EpochView {
    EpochView { epoch: Epoch(epoch), first: 1, last, live }
}

fn agent(epochs: &[EpochView]) -> Agent {
    Agent::new(AgentConfig::default(), 7, epochs, &[])
}

fn up(agent: &mut Agent, now: Duration) -> Vec<Action> {
    agent.step(Event::Connected, now);
    agent.step(Event::HelloAck(Ack { credit: Some(1024), ..Ack::default() }), now)
}

fn sends(actions: &[Action]) -> Vec<(u64, u64, u64)> {
    let send = |action: &Action| match action {
        Action::Send { epoch, first, last, .. } => Some((epoch.0, *first, *last)),
        _ => None,
    };
    actions.iter().filter_map(send).collect()
}

fn acked(epoch: u64, cum: u64) -> Ack {
    Ack { epochs: vec![EpochAck { epoch, cum, ranges: vec![] }], credit: Some(1024), ..Ack::default() }
}

#[test]
fn nothing_is_sent_before_the_hello_is_answered() {
    let mut agent = agent(&[view(1, 10, true)]);
    assert_eq!(agent.step(Event::Tick, SECOND), vec![]);
    let hello = vec![Action::Hello(vec![view(1, 10, true)])];
    assert_eq!(agent.step(Event::Connected, SECOND), hello);
    assert_eq!(agent.step(Event::Recorded { last: 11 }, SECOND), vec![]);
    // An unanswered hello is repeated.
    let due = agent.deadline().unwrap();
    assert!((SECOND * 5..=SECOND * 7).contains(&due));
    assert_eq!(agent.step(Event::Tick, due), vec![Action::Hello(vec![view(1, 11, true)])]);
    // The answer says what is stored: only the rest is sent.
    let answer =
        Ack { epochs: vec![EpochAck { epoch: 1, cum: 4, ranges: vec![(6, 7)] }], credit: Some(1024), ..Ack::default() };
    assert_eq!(sends(&agent.step(Event::HelloAck(answer), due)), vec![(1, 5, 5), (1, 8, 11)]);
}

#[test]
fn what_is_not_acknowledged_is_sent_again_with_doubling_waits() {
    let mut agent = agent(&[view(1, 3, true)]);
    assert_eq!(sends(&up(&mut agent, SECOND)), vec![(1, 1, 3)]);
    let (mut now, mut waits) = (SECOND, Vec::new());
    for _ in 0..6 {
        let due = agent.deadline().unwrap();
        waits.push((due - now).as_secs_f64());
        now = due;
        assert_eq!(sends(&agent.step(Event::Tick, now)), vec![(1, 1, 3)]);
    }
    for (wait, nominal) in waits.iter().zip([5.0, 10.0, 20.0, 40.0, 60.0, 60.0]) {
        assert!((nominal * 0.8..=nominal * 1.2).contains(wait), "{waits:?}");
    }
    assert!(waits.iter().zip([5.0, 10.0, 20.0]).any(|(wait, nominal)| (wait - nominal).abs() > 0.01), "no jitter");
    // A part is acknowledged: only the rest is repeated.
    agent.step(Event::Ack(acked(1, 2)), now);
    let due = agent.deadline().unwrap();
    assert_eq!(sends(&agent.step(Event::Tick, due)), vec![(1, 3, 3)]);
    agent.step(Event::Ack(acked(1, 3)), due);
    assert_eq!((agent.deadline(), agent.unacknowledged()), (None, 0));
}

#[test]
fn in_flight_stays_within_credit_and_limit() {
    let mut agent = agent(&[view(1, 100_000, true)]);
    up(&mut agent, SECOND);
    assert_eq!(agent.in_flight(), 1024);
    agent.step(Event::Ack(Ack { credit: Some(100), ..acked(1, 1024) }), SECOND);
    assert!(agent.in_flight() <= 100 && agent.in_flight() >= 64, "{}", agent.in_flight());
    agent.step(Event::Ack(Ack { credit: Some(1 << 40), ..acked(1, 1100) }), SECOND);
    assert!(agent.in_flight() <= 1024);
}

#[test]
fn without_credit_one_record_asks_for_more() {
    let mut agent = agent(&[view(1, 500, true)]);
    agent.step(Event::Connected, SECOND);
    let none = Ack { credit: Some(0), ..Ack::default() };
    assert_eq!(sends(&agent.step(Event::HelloAck(none), SECOND)), vec![]);
    let due = agent.deadline().expect("a probe");
    assert_eq!(sends(&agent.step(Event::Tick, due)), vec![(1, 1, 1)]);
    // With ranges in flight, only one of them is repeated.
    let mut agent = agent_with_flights();
    agent.step(Event::Ack(Ack { credit: Some(0), ..Ack::default() }), SECOND);
    assert_eq!(sends(&agent.step(Event::Repeat, SECOND)).len(), 1);
}

fn agent_with_flights() -> Agent {
    let mut agent = agent(&[view(1, 500, true)]);
    up(&mut agent, SECOND);
    agent
}

#[test]
fn fresh_data_goes_first_and_old_epochs_drain_beside_it() {
    let old: Vec<EpochView> = (1..=10).map(|epoch| view(epoch, 10_000, false)).collect();
    let epochs: Vec<EpochView> = old.into_iter().chain([view(99, 100_000, true)]).collect();
    let mut agent = agent(&epochs);
    let mut sent: BTreeMap<u64, u64> = BTreeMap::new();
    let mut cums: BTreeMap<u64, u64> = BTreeMap::new();
    let mut actions = up(&mut agent, SECOND);
    assert_eq!(sends(&actions)[0].0, 99);
    for _ in 0..20 {
        for (epoch, first, last) in sends(&actions) {
            *sent.entry(epoch).or_default() += last - first + 1;
            cums.insert(epoch, last);
        }
        let epochs = cums.iter().map(|(epoch, cum)| EpochAck { epoch: *epoch, cum: *cum, ranges: vec![] }).collect();
        actions = agent.step(Event::Ack(Ack { epochs, credit: Some(1024), ..Ack::default() }), SECOND);
    }
    let total: u64 = sent.values().sum();
    let share = sent[&99] as f64 / total as f64;
    assert!((0.65..0.75).contains(&share), "live share {share}");
    assert_eq!(sent.len(), 9, "eight old ones at a time: {sent:?}");
    assert!(sent.keys().all(|epoch| *epoch <= 8 || *epoch == 99), "the oldest first: {sent:?}");
}

#[test]
fn an_engine_that_knows_more_than_we_wrote_means_a_fork() {
    let mut agent = agent(&[view(1, 60, true)]);
    agent.step(Event::Connected, SECOND);
    let actions = agent.step(Event::HelloAck(acked(1, 80)), SECOND);
    assert_eq!(actions, vec![Action::Fork(Epoch(1))]);
    assert_eq!(agent.step(Event::HelloAck(acked(1, 80)), SECOND), vec![], "once");
    let actions = agent.step(Event::Forked { old: Epoch(1), fresh: Epoch(2), last: 60 }, SECOND);
    assert_eq!(sends(&actions), vec![(2, 1, 60)]);
    assert_eq!(agent.counts().forks, 1);
}

#[test]
fn losses_are_declared_in_order_and_until_acknowledged() {
    let lost = Lost { epoch: Epoch(1), from: 3, to: 5, reason: LossReason::RingFull };
    let mut agent = Agent::new(AgentConfig::default(), 7, &[view(1, 8, true)], &[lost]);
    let actions = up(&mut agent, SECOND);
    assert_eq!(sends(&actions), vec![(1, 1, 2), (1, 6, 8)]);
    assert_eq!(agent.step(Event::Tick, SECOND), vec![Action::Declare(vec![lost])]);
    let due = agent.deadline().unwrap();
    agent.step(Event::Ack(acked(1, 2)), due);
    let mut declared = false;
    for _ in 0..3 {
        let due = agent.deadline().unwrap();
        declared |= agent.step(Event::Tick, due).contains(&Action::Declare(vec![lost]));
    }
    assert!(declared);
    agent.step(Event::Ack(acked(1, 8)), due);
    assert_eq!((agent.unacknowledged(), agent.deadline()), (0, None));
}

#[test]
fn a_request_is_answered_with_data_or_a_loss() {
    let mut agent = agent(&[view(1, 10, true)]);
    up(&mut agent, SECOND);
    let ask = |resend, cum| Ack { resend, ..acked(1, cum) };
    assert_eq!(sends(&agent.step(Event::Ack(ask(vec![(1, 4, 6)], 3)), SECOND)), vec![(1, 4, 10)]);
    agent.step(Event::Ack(acked(1, 10)), SECOND);
    // The engine lost what it had acknowledged, and asks for an epoch that is long drained.
    let actions = agent.step(Event::Ack(ask(vec![(1, 4, 6), (77, 1, 2)], 3)), SECOND);
    let lost = |epoch, from, to| Lost { epoch: Epoch(epoch), from, to, reason: LossReason::StorageReset };
    assert!(actions.contains(&Action::Declare(vec![lost(1, 4, 6)])), "{actions:?}");
    assert!(actions.contains(&Action::Declare(vec![lost(77, 1, 2)])), "{actions:?}");
    // A frame that covers what it asks for is merely old.
    assert_eq!(agent.step(Event::Ack(ask(vec![(1, 4, 6)], 10)), SECOND), vec![]);
}

/// The engine, as far as this protocol goes.
#[derive(Default)]
struct Engine {
    epochs: BTreeMap<u64, RangeSet>,
    stored: BTreeMap<(u64, u64), u64>,
    lost: BTreeSet<(u64, u64)>,
}

impl Engine {
    fn cum(&self, epoch: u64) -> u64 {
        self.epochs.get(&epoch).and_then(|set| set.first_gap(1, u64::MAX)).map_or(0, |(from, _)| from - 1)
    }

    fn take(&mut self, epoch: u64, seq: u64, content: u64) {
        let cum = self.cum(epoch);
        let set = self.epochs.entry(epoch).or_default();
        // Duplicate, or beyond the window.
        if set.contains(seq) || seq > cum + 4096 {
            return;
        }
        set.insert(seq, seq);
        assert_eq!(self.stored.insert((epoch, seq), content), None);
    }

    fn lose(&mut self, epoch: u64, from: u64, to: u64) {
        let set = self.epochs.entry(epoch).or_default();
        for (from, to) in set.gaps(from, to) {
            set.insert(from, to);
            self.lost.extend((from..=to).map(|seq| (epoch, seq)));
        }
    }

    fn ack(&self) -> Ack {
        let epochs = self.epochs.iter().map(|(epoch, set)| {
            let cum = self.cum(*epoch);
            EpochAck { epoch: *epoch, cum, ranges: set.iter().filter(|(from, _)| *from > cum).collect() }
        });
        Ack { epochs: epochs.collect(), credit: Some(256), ..Ack::default() }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Record(u8),
    Commit,
    Deliver(u8),
    Lose(u8),
    Double(u8),
    AckNow,
    AckLost,
    Wait(u8),
    Cut,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u8..40).prop_map(Step::Record),
        4 => Just(Step::Commit),
        8 => any::<u8>().prop_map(Step::Deliver),
        2 => any::<u8>().prop_map(Step::Lose),
        2 => any::<u8>().prop_map(Step::Double),
        4 => Just(Step::AckNow),
        1 => Just(Step::AckLost),
        2 => (0u8..20).prop_map(Step::Wait),
        1 => Just(Step::Cut),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..120)
}

/// What is on its way to the engine.
#[derive(Debug, Clone)]
enum Packet {
    Records(u64, Vec<(u64, u64)>),
    Losses(Vec<Lost>),
}

/// A device and the network before it.
struct World {
    disk: SharedRam,
    outbox: Outbox,
    agent: Agent,
    engine: Engine,
    network: Vec<Packet>,
    now: Duration,
    next_epoch: u64,
    written: u64,
    /// Content of every record that became durable.
    durable: BTreeSet<u64>,
    uncommitted: Vec<u64>,
}

#[derive(Clone, Default)]
struct SharedRam(std::sync::Arc<std::sync::Mutex<RamMedia>>);

impl Media for SharedRam {
    fn list(&self) -> std::io::Result<Vec<String>> {
        self.0.lock().unwrap().list()
    }
    fn create(&mut self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        self.0.lock().unwrap().create(name, bytes)
    }
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.lock().unwrap().write(name, offset, bytes)
    }
    fn sync(&mut self, _name: &str) -> std::io::Result<()> {
        Ok(())
    }
    fn replace(&mut self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        self.0.lock().unwrap().replace(name, bytes)
    }
    fn read(&mut self, name: &str, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        self.0.lock().unwrap().read(name, offset, len)
    }
    fn remove(&mut self, name: &str) -> std::io::Result<()> {
        self.0.lock().unwrap().remove(name)
    }
    fn blocks(&self) -> bool {
        false
    }
}

fn open(disk: &SharedRam, epoch: u64) -> (Outbox, Agent) {
    let config = OutboxConfig {
        max_bytes: MIN_BYTES,
        when_full: WhenFull::DropOldest,
        segment_bytes: 1 << 10,
        recycle_bytes: 512,
    };
    let (outbox, _) = Outbox::open(Box::new(disk.clone()), config, Fresh { epoch, install: [1; 16] }).unwrap();
    let agent = Agent::new(AgentConfig::default(), epoch, &outbox.epochs(), outbox.lost());
    (outbox, agent)
}

impl World {
    fn new() -> Self {
        let disk = SharedRam::default();
        let (outbox, agent) = open(&disk, 1);
        let mut world = Self {
            disk,
            outbox,
            agent,
            engine: Engine::default(),
            network: Vec::new(),
            now: SECOND,
            next_epoch: 2,
            written: 0,
            durable: BTreeSet::new(),
            uncommitted: Vec::new(),
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.event(Event::Connected);
        let answer = self.engine.ack();
        self.event(Event::HelloAck(answer));
    }

    fn event(&mut self, event: Event) {
        let actions = self.agent.step(event, self.now);
        for action in actions {
            match action {
                Action::Send { epoch, first, last, .. } => {
                    let count = (last - first + 1) as usize;
                    assert!(count <= 64);
                    let records = self.outbox.read(epoch, first, last, count).unwrap();
                    assert_eq!(records.len(), count, "what is sent must be held");
                    let records = records.into_iter().map(|stored| (stored.seq, stored.reading.ts.0 as u64)).collect();
                    self.network.push(Packet::Records(epoch.0, records));
                }
                Action::Declare(lost) => self.network.push(Packet::Losses(lost)),
                Action::Forget(ack) => self.outbox.forget(Epoch(ack.epoch), ack.cum, &ack.ranges).unwrap(),
                Action::Hello(_) => {}
                Action::Fork(epoch) => panic!("no fork here: {epoch:?}"),
            }
        }
        assert!(self.agent.in_flight() <= 1024);
    }

    fn commit(&mut self) {
        let last = self.outbox.commit().unwrap();
        self.durable.extend(self.uncommitted.drain(..));
        for lost in self.outbox.take_news() {
            self.event(Event::Lost(lost));
        }
        self.event(Event::Recorded { last });
    }

    fn deliver(&mut self, packet: Packet) {
        match packet {
            Packet::Records(epoch, records) => {
                records.into_iter().for_each(|(seq, content)| self.engine.take(epoch, seq, content));
            }
            Packet::Losses(lost) => lost.into_iter().for_each(|l| self.engine.lose(l.epoch.0, l.from, l.to)),
        }
    }

    fn pick(&mut self, at: u8) -> Option<Packet> {
        let index = usize::from(at).checked_rem(self.network.len())?;
        Some(self.network.remove(index))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Record(count) => {
                for _ in 0..count {
                    self.written += 1;
                    let reading = Reading::new(Timestamp(self.written as i64), SchemaRef::new(1, 1, 0), &[]);
                    self.outbox.push(&reading).unwrap();
                    self.uncommitted.push(self.written);
                }
            }
            Step::Commit => self.commit(),
            Step::Deliver(at) => {
                if let Some(packet) = self.pick(at) {
                    self.deliver(packet);
                }
            }
            Step::Lose(at) => drop(self.pick(at)),
            Step::Double(at) => {
                if let Some(packet) = self.pick(at) {
                    self.network.push(packet.clone());
                    self.deliver(packet);
                }
            }
            Step::AckNow => {
                let ack = self.engine.ack();
                self.event(Event::Ack(ack));
            }
            Step::AckLost => {}
            Step::Wait(seconds) => {
                self.now += SECOND * u32::from(seconds);
                self.event(Event::Tick);
            }
            Step::Cut => {
                self.event(Event::Disconnected);
                // Packets of the old connection may still arrive.
                self.connect();
            }
            Step::Restart => {
                self.uncommitted.clear();
                let (outbox, agent) = open(&self.disk, self.next_epoch);
                self.next_epoch += 1;
                (self.outbox, self.agent) = (outbox, agent);
                self.connect();
            }
        }
    }

    /// A network that works again, for long enough.
    fn settle(&mut self) {
        self.commit();
        for _ in 0..200 {
            for packet in std::mem::take(&mut self.network) {
                self.deliver(packet);
            }
            let ack = self.engine.ack();
            self.event(Event::Ack(ack));
            self.now += SECOND * 5;
            self.event(Event::Tick);
            if self.agent.unacknowledged() == 0 {
                return;
            }
        }
        panic!("{} numbers are never acknowledged", self.agent.unacknowledged());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn everything_recorded_is_stored_exactly_once(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        for content in world.engine.stored.values() {
            *counts.entry(*content).or_default() += 1;
        }
        prop_assert!(counts.values().all(|count| *count == 1), "a record has two numbers");
        let stored: BTreeSet<u64> = counts.into_keys().collect();
        let missing: Vec<_> = world.durable.difference(&stored).collect();
        prop_assert!(missing.is_empty() && world.engine.lost.is_empty(), "missing {:?}, lost {:?}", missing, world.engine.lost);
        prop_assert_eq!(world.outbox.epochs().len(), 1, "drained epochs are forgotten");
    }
}

#[test]
fn a_store_that_overflows_while_offline_accounts_for_every_number() {
    let mut world = World::new();
    world.event(Event::Disconnected);
    for _ in 0..400 {
        world.step(Step::Record(39));
        world.commit();
    }
    world.connect();
    world.settle();
    let (stored, lost) = (world.engine.stored.len() as u64, world.engine.lost.len() as u64);
    assert!(lost > 0 && stored > 0);
    assert_eq!(stored + lost, world.written);
    assert_eq!(world.engine.cum(1), world.written);
}
