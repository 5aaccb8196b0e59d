//! Promise: a receiver that tells repeats by their key gets each message exactly once, whatever crashes or fails in
//! between; and nothing is sent twice unless its answer was lost, or a crash came before the answer was written down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use storage::log::MemoryLog;

use super::*;
use crate::courier::{Courier, Next, Patience};
use crate::keeper::Keeper;

#[derive(Debug, Clone)]
enum Action {
    /// Something happens to an incident, and becomes durable in the log of its shard.
    Fire(u64),
    Tell(u64, bool),
    End(u64),
    /// Time passes, in seconds.
    Pass(i64),
    /// The loop around the desk: writes, and begins attempts.
    Round,
    /// An attempt ends.
    Answer(Answer),
    /// The shard makes a cut: what lies before is not heard again.
    Cut(usize),
    /// The disk fails, or works again.
    Disk(bool),
    Crash,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Accepted,
    /// It never arrived.
    Lost,
    /// It arrived, but the sender does not know.
    Unheard,
}

fn action() -> impl Strategy<Value = Action> {
    let answer = prop_oneof![6 => Just(Answer::Accepted), 2 => Just(Answer::Lost), 1 => Just(Answer::Unheard)];
    prop_oneof![
        8 => (1u64..30).prop_map(Action::Fire),
        12 => (1u64..30, any::<bool>()).prop_map(|(incident, lead)| Action::Tell(incident, lead)),
        6 => (1u64..30).prop_map(Action::End),
        5 => (1i64..5).prop_map(Action::Pass),
        12 => Just(Action::Round),
        10 => answer.prop_map(Action::Answer),
        2 => (0usize..2).prop_map(Action::Cut),
        1 => any::<bool>().prop_map(Action::Disk),
        2 => Just(Action::Crash),
    ]
}

/// One incident as plainly as it can be said.
#[derive(Default)]
struct Plain {
    open: bool,
    /// More than six would be flapping.
    turns: u32,
    paged: BTreeSet<&'static str>,
    ended: BTreeSet<&'static str>,
}

struct World {
    log: Arc<MemoryLog>,
    keeper: Keeper,
    couriers: BTreeMap<&'static str, (Courier, u64)>,
    under_way: Vec<(&'static str, u64)>,
    seconds: i64,
    /// By shard: the log, and up to where it was cut.
    shards: [(Vec<Vec<Change>>, usize); 2],
    number: u64,
    plain: BTreeMap<u64, Plain>,
    /// Keys that there should be.
    expected: BTreeSet<String>,
    /// How often the receiver got each, and how often it may.
    received: BTreeMap<String, usize>,
    allowed: BTreeMap<String, usize>,
    /// Accepted, and the acceptance not written yet.
    unwritten: BTreeSet<String>,
}

fn couriers() -> BTreeMap<&'static str, (Courier, u64)> {
    ["a", "b"].into_iter().map(|name| (name, (Courier::new(Patience::default()), 0))).collect()
}

impl World {
    fn new() -> Self {
        let log = Arc::new(MemoryLog::new());
        let keeper = Keeper::open(log.clone()).unwrap();
        keeper.happen(at(0), Happening::Settings(settings()));
        keeper.write().unwrap();
        Self {
            log,
            keeper,
            couriers: couriers(),
            under_way: Vec::new(),
            seconds: 0,
            shards: Default::default(),
            number: 0,
            plain: BTreeMap::new(),
            expected: BTreeSet::new(),
            received: BTreeMap::new(),
            allowed: BTreeMap::new(),
            unwritten: BTreeSet::new(),
        }
    }

    fn step(&mut self, action: &Action) {
        match action {
            Action::Fire(incident) => {
                self.number += 1;
                let plain = self.plain.entry(*incident).or_default();
                if plain.turns > 4 || std::mem::replace(&mut plain.open, true) {
                    return;
                }
                plain.turns += 2;
                for channel in std::mem::take(&mut plain.ended) {
                    self.expected.insert(format!("{incident:016x}-{}-{channel}", self.number));
                    plain.paged.insert(channel);
                }
                self.log_change(change(*incident, self.number, self.seconds, What::Fired));
            }
            Action::Tell(incident, lead) => {
                let plain = self.plain.entry(*incident).or_default();
                if !plain.open {
                    return;
                }
                self.number += 1;
                let (to, channels): (_, &[&'static str]) =
                    if *lead { ("lead", &["a", "b"]) } else { ("oncall", &["a"]) };
                for channel in channels {
                    self.expected.insert(format!("{incident:016x}-{}-{channel}", self.number));
                    plain.paged.insert(channel);
                }
                self.log_change(told(*incident, self.number, self.seconds, to));
            }
            Action::End(incident) => {
                self.number += 1;
                let plain = self.plain.entry(*incident).or_default();
                if !std::mem::replace(&mut plain.open, false) {
                    return;
                }
                plain.ended = std::mem::take(&mut plain.paged);
                for channel in &plain.ended {
                    self.expected.insert(format!("{incident:016x}-{}-{channel}", self.number));
                }
                self.log_change(change(*incident, self.number, self.seconds, What::Over));
            }
            Action::Pass(seconds) => self.seconds += seconds,
            Action::Round => self.round(),
            Action::Answer(answer) => self.answer(*answer),
            Action::Cut(shard) => {
                // As the consumer does it: first what was heard is kept.
                if self.keeper.write().is_ok() {
                    self.unwritten.clear();
                    let (log, cut) = &mut self.shards[*shard];
                    *cut = log.len();
                }
            }
            Action::Disk(failing) => self.log.set_failing(*failing),
            Action::Crash => {
                for key in std::mem::take(&mut self.unwritten) {
                    *self.allowed.entry(key).or_insert(1) += 1;
                }
                // Whether it arrives, nobody will know.
                for (channel, number) in std::mem::take(&mut self.under_way) {
                    let Some(message) = self.keeper.message(channel, number) else { continue };
                    self.receive(&message.key());
                    *self.allowed.entry(message.key()).or_insert(1) += 1;
                }
                self.keeper = Keeper::open(self.log.clone()).unwrap();
                self.couriers = couriers();
                for shard in 0..2 {
                    let (log, cut) = &self.shards[shard];
                    for at in *cut..log.len() {
                        self.hear(shard, at);
                    }
                }
            }
        }
    }

    fn receive(&mut self, key: &str) {
        *self.received.entry(key.to_owned()).or_default() += 1;
    }

    fn log_change(&mut self, change: Change) {
        let shard = usize::from(change.device.ends_with(['1', '3', '5']));
        self.shards[shard].0.push(vec![change]);
        self.hear(shard, self.shards[shard].0.len() - 1);
    }

    fn hear(&self, shard: usize, index: usize) {
        let changes = self.shards[shard].0[index].clone();
        let position = index as u64 + 1;
        self.keeper.happen(at(self.seconds), Happening::Heard { shard: shard as u16, position, changes });
    }

    fn round(&mut self) {
        self.keeper.tick(at(self.seconds));
        if self.keeper.write().is_ok() {
            assert!(self.keeper.is_written());
            self.unwritten.clear();
        }
        for (name, (courier, taken)) in &mut self.couriers {
            for message in self.keeper.outbox(name, *taken) {
                *taken = message.number;
                courier.take(message.number, &message.incident);
            }
            while let Next::Try(number) = courier.next(at(self.seconds)) {
                courier.begin(number);
                self.under_way.push((name, number));
            }
        }
    }

    fn answer(&mut self, answer: Answer) {
        if self.under_way.is_empty() {
            return;
        }
        let at_random = self.seconds as usize % self.under_way.len();
        let (channel, number) = self.under_way.swap_remove(at_random);
        let key = self.keeper.message(channel, number).unwrap().key();
        let now = at(self.seconds);
        let (courier, _) = self.couriers.get_mut(channel).unwrap();
        match answer {
            Answer::Lost => courier.failed(number, now, number, None),
            Answer::Unheard => {
                courier.failed(number, now, number, None);
                self.receive(&key);
                *self.allowed.entry(key).or_insert(1) += 1;
            }
            Answer::Accepted => {
                courier.accepted(number);
                self.receive(&key);
                self.unwritten.insert(key);
                self.keeper.happen(now, Happening::Accepted { channel: channel.to_owned(), number });
            }
        }
    }
}

#[test]
fn each_message_arrives_and_counts_once() {
    let sent = std::cell::Cell::new(0);
    let config = ProptestConfig { cases: 300, max_shrink_iters: 20_000, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(action(), 1..250), |actions| {
        let mut world = World::new();
        for action in &actions {
            world.step(action);
        }
        // Everything works again.
        world.step(&Action::Disk(false));
        for _ in 0..2000 {
            world.step(&Action::Round);
            world.step(&Action::Answer(Answer::Accepted));
            world.step(&Action::Pass(10));
            if world.keeper.is_written() && ["a", "b"].iter().all(|channel| world.keeper.outbox(channel, 0).is_empty())
            {
                break;
            }
        }
        let got: BTreeSet<String> = world.received.keys().cloned().collect();
        prop_assert_eq!(&got, &world.expected, "none is missing, none is made up");
        for (key, times) in &world.received {
            let allowed = world.allowed.get(key).copied().unwrap_or(1);
            prop_assert!(*times <= allowed, "{} was sent {} times", key, times);
        }
        let again = Keeper::open(world.log.clone()).unwrap();
        prop_assert!(["a", "b"].iter().all(|channel| again.outbox(channel, 0).is_empty()));
        sent.set(sent.get() + got.len());
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    assert!(sent.get() > 1000, "the histories reach something: {}", sent.get());
}

#[test]
fn the_log_of_the_desk_stays_small() {
    let log = Arc::new(MemoryLog::new());
    let keeper = Keeper::open(log.clone()).unwrap();
    keeper.happen(at(0), Happening::Settings(settings()));
    for n in 1..=20_000u64 {
        let changes = vec![change(n, 1, 0, What::Fired), told(n, 2, 0, "oncall"), change(n, 3, 0, What::Over)];
        keeper.happen(at(n as i64), Happening::Heard { shard: 0, position: n, changes });
        for number in [2 * n - 1, 2 * n] {
            keeper.happen(at(n as i64), Happening::Accepted { channel: "a".to_owned(), number });
        }
        if n % 50 == 0 {
            keeper.tick(at(n as i64));
            keeper.write().unwrap();
        }
    }
    let bounds = storage::log::ShardLog::bounds(&*log, crate::DESK).unwrap();
    let bytes: usize = storage::log::ShardLog::read(&*log, crate::DESK, bounds.first, usize::MAX)
        .unwrap()
        .iter()
        .map(|(_, b)| b.len())
        .sum();
    assert!(bytes < 6 << 20, "{bytes} bytes");
    let again = Keeper::open(log).unwrap();
    assert_eq!(again.with(Desk::clone), keeper.with(Desk::clone));
}

#[test]
fn what_a_newer_weir_wrote_is_refused() {
    use storage::log::ShardLog;
    let log = Arc::new(MemoryLog::new());
    log.append(crate::DESK, device::seq::Position(1), &bytes::Bytes::from_static(b"\x02{}")).unwrap();
    let error = Keeper::open(log).unwrap_err().to_string();
    assert!(error.contains("of version 2; this weir knows 1"), "{error}");
}
