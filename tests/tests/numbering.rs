//! Promise: what is acknowledged is there after any crash, exactly once, and nothing below `cum` is missing.
//!
//! A device and the reference model get the same messages under duplication, disorder, loss and crashes (back to
//! any earlier snapshot, then replay of what was committed) and have to agree after every step.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use device::ack::Ack;
use device::entry::{Body, Entry, LogBody, LogRecord, LossReason};
use device::hello::{HeldEpoch, Hello};
use device::id::DeviceId;
use device::machine::{Channel, Decision, Device, Effect, Message, Verdict};
use device::payload::{FrameHeader, FrameRecord, LAST_FRAME, Layout, LossRange, encode_frame};
use device::schema::{Catalog, SchemaVersion};
use device::seq::{Epoch, Position};
use device::time::{SECOND, Timestamp};
use proptest::prelude::*;
use tests::model::{Answer, Fate, Model, Name, Step};

/// The time of all receipts but for the steps in between.
const START: i64 = 1_750_000_000 * SECOND;

#[derive(Debug, Clone)]
enum Action {
    /// Records from a number on, and losses, both relative to where the epoch stands.
    Frame {
        epoch: u64,
        seq: i64,
        records: u64,
        losses: Vec<(i64, u64)>,
        last: bool,
    },
    /// One payload of plain records: epoch and number relative to where the epoch stands.
    Named(Vec<(u64, i64)>),
    /// A record without epoch: number relative to the highest, and a time.
    Drawn {
        seq: i64,
        ts: i64,
    },
    /// Counting begins anew.
    Restart {
        seq: u64,
        ts: i64,
    },
    Hello {
        held: Vec<u64>,
    },
    Commit,
    Snapshot,
    Crash,
    Tick,
}

fn offset() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(1), 6 => -6i64..12, 1 => 4080i64..4110, 1 => -4100i64..-4085, 1 => 4000i64..9000]
}

fn action() -> impl Strategy<Value = Action> {
    let losses = prop::collection::vec((offset(), prop_oneof![4 => 0u64..6, 1 => 4000u64..5000]), 0..2);
    prop_oneof![
        8 => (1u64..4, offset(), 0u64..8, losses, prop::bool::weighted(0.1)).prop_map(
            |(epoch, seq, records, losses, last)| Action::Frame { epoch, seq, records, losses, last }
        ),
        6 => prop::collection::vec((4u64..6, offset()), 1..4).prop_map(Action::Named),
        8 => (offset(), -3i64..6).prop_map(|(seq, ts)| Action::Drawn { seq, ts }),
        1 => (0u64..4, -3i64..6).prop_map(|(seq, ts)| Action::Restart { seq, ts }),
        1 => prop::collection::vec(1u64..4, 0..3).prop_map(|held| Action::Hello { held }),
        14 => Just(Action::Commit),
        2 => Just(Action::Snapshot),
        2 => Just(Action::Crash),
        2 => Just(Action::Tick),
    ]
}

/// Device, model, and the log between them.
struct World {
    device: Device,
    model: Model,
    catalog: Catalog,
    /// Entries of each verdict on its way; a hello may have none.
    in_flight: Vec<Vec<Entry>>,
    log: Vec<Vec<u8>>,
    snapshot: Vec<u8>,
    drawn: BTreeMap<u64, u64>,
    random: u64,
    clock: i64,
    drawn_ts: i64,
    session: u64,
}

impl World {
    fn new() -> Self {
        let device = Device::new(DeviceId::new("d").unwrap());
        Self {
            snapshot: device.snapshot(),
            device,
            model: Model::default(),
            catalog: Catalog::new(Vec::new()),
            in_flight: Vec::new(),
            log: Vec::new(),
            drawn: BTreeMap::new(),
            random: 1 << 40,
            clock: START,
            drawn_ts: START,
            session: 1,
        }
    }

    fn admit(&mut self, channel: Channel, payload: Vec<u8>) -> Verdict {
        self.clock += SECOND / 20;
        let payload = Bytes::from(payload);
        let received = Timestamp(self.clock);
        let message = Message { channel, payload: &payload, format: None, received, session: self.session };
        let mut random = || {
            self.random += 1;
            self.random
        };
        let verdict = self.device.admit(message, &self.catalog, &mut random);
        let counts = verdict.counts;
        assert_eq!(counts.received, counts.stored + counts.duplicate + counts.nacked + counts.dead, "{counts:?}");
        self.check_acks(&verdict.effects);
        verdict
    }

    /// No ack says more than what is durable.
    fn check_acks(&self, effects: &[Effect]) {
        for effect in effects {
            let Effect::Publish { topic, payload, .. } = effect else { continue };
            if topic != "ack" {
                continue;
            }
            for ack in Ack::decode(payload).unwrap().epochs {
                let name = Name::Given(ack.epoch.0);
                let said = ack.ranges.iter().flat_map(|(start, len)| *start..start + len);
                assert!(ack.cum <= self.model.cum(name), "ack {ack:?} before durability");
                for seq in said {
                    assert!(self.model.durable[&name].contains_key(&seq), "ack {ack:?} before durability");
                }
            }
        }
    }

    fn frontier(&self, name: Name) -> i64 {
        let staged = self.model.staged.iter().flat_map(|step| &step.fates).filter(|(of, _, _)| *of == name);
        let durable = self.model.durable.get(&name).into_iter().flat_map(|numbers| numbers.keys());
        staged.map(|(_, seq, _)| *seq).chain(durable.copied()).max().unwrap_or(0) as i64
    }

    fn run(&mut self, action: &Action) {
        match action {
            Action::Frame { epoch, seq, records, losses, last } => {
                let top = self.frontier(Name::Given(*epoch));
                let seq = (top + seq).max(1) as u64;
                let losses: Vec<(u64, u64)> = losses
                    .iter()
                    .map(|(from, len)| ((top + from).max(1) as u64, (top + from).max(1) as u64 + len))
                    .collect();
                let overlaps = losses.iter().any(|(from, to)| *from < seq + records && *to >= seq);
                if (*records > 0 && overlaps) || (*records == 0 && losses.is_empty()) {
                    return;
                }
                let verdict = self.admit(Channel::Telemetry, frame(*epoch, seq, *records, &losses, *last));
                let expected = self.model.frame(*epoch, seq, *records, &losses, *last);
                self.compare(verdict, expected);
            }
            Action::Named(records) => {
                let records: Vec<(u64, u64)> = records
                    .iter()
                    .map(|(epoch, seq)| (*epoch, (self.frontier(Name::Given(*epoch)) + seq).max(0) as u64))
                    .collect();
                let texts: Vec<_> =
                    records.iter().map(|(epoch, seq)| format!("{{\"epoch\":{epoch},\"seq\":{seq},\"x\":1}}")).collect();
                let verdict = self.admit(Channel::Telemetry, format!("[{}]", texts.join(",")).into_bytes());
                let expected = self.model.named(&records);
                self.compare(verdict, expected);
            }
            Action::Drawn { seq, ts } => {
                let top = self.drawn.keys().last().map_or(0, |name| self.frontier(Name::Drawn(*name)));
                self.drawn((top + seq).max(0) as u64, *ts);
            }
            Action::Restart { seq, ts } => self.drawn(*seq, *ts),
            Action::Hello { held } => {
                let epochs = held.iter().map(|epoch| HeldEpoch {
                    epoch: Epoch(*epoch),
                    first_held: 1,
                    last_seq: 1,
                    live: false,
                });
                let hello = Hello { epochs: epochs.collect(), session: self.session, ..Hello::default() };
                let verdict = self.admit(Channel::Hello, hello.encode());
                let expected = self.model.hello(held);
                self.compare(verdict, expected);
            }
            Action::Commit => {
                if !self.in_flight.is_empty() {
                    let entries = self.in_flight.remove(0);
                    let mut record = Vec::new();
                    LogRecord { time: Timestamp(self.clock), body: LogBody::Batch(entries) }.encode(&mut record);
                    self.log.push(record);
                    assert!(self.model.commit(), "a number became durable twice");
                    let effects = replay(&mut self.device, self.log.len() as u64, &self.log[self.log.len() - 1]);
                    self.check_acks(&effects);
                }
            }
            Action::Snapshot => self.snapshot = self.device.snapshot(),
            Action::Crash => {
                self.in_flight.clear();
                self.model.crash();
                self.session += 1;
                self.device = Device::restore(DeviceId::new("d").unwrap(), &self.snapshot).unwrap();
                // Replay from the very beginning: what the snapshot holds already must not count again.
                for (at, record) in self.log.iter().enumerate() {
                    replay(&mut self.device, at as u64 + 1, record);
                }
                let durable = |name: &u64| self.model.durable.contains_key(&Name::Drawn(*name));
                self.drawn.retain(|name, _| durable(name));
            }
            Action::Tick => {
                self.clock += 31 * SECOND;
                let effects = self.device.tick(Timestamp(self.clock));
                self.check_acks(&effects);
            }
        }
        self.check_ledger();
    }

    fn drawn(&mut self, seq: u64, ts: i64) {
        // Times advance, and now and then come again.
        self.drawn_ts += 1;
        let ts = self.drawn_ts + ts.min(0);
        let verdict = self.admit(Channel::Telemetry, format!("{{\"seq\":{seq},\"ts\":{ts},\"x\":1}}").into_bytes());
        let expected = self.model.drawn(seq, ts);
        self.compare(verdict, expected);
    }

    /// The verdict is what the model expects, and what it would do goes into flight.
    fn compare(&mut self, verdict: Verdict, (answer, step): (Answer, Step)) {
        let decided = match verdict.decision {
            Decision::Commit => Answer::Commit,
            Decision::Duplicate => Answer::Duplicate,
            Decision::Staged => Answer::Staged,
            Decision::Refused(_) => Answer::Refused,
            Decision::Kept(_) => Answer::Kept,
        };
        assert_eq!(decided, answer, "{step:?}");
        let mut fates = BTreeSet::new();
        let mut closed = Vec::new();
        for entry in &verdict.entries {
            match &entry.body {
                Body::Records(records) => {
                    assert!(records.assured);
                    for run in &records.runs {
                        for seq in run.seq..run.seq + u64::from(run.len) {
                            let name = self.name(run.epoch, &step);
                            assert!(fates.insert((name, seq, Fate::Stored)), "one number twice in a verdict");
                        }
                    }
                }
                Body::Loss(loss) => {
                    for seq in loss.from..=loss.to {
                        assert!(fates.insert((self.name(loss.epoch, &step), seq, Fate::Lost)));
                    }
                }
                Body::Closed { epoch } => closed.push(Name::Given(epoch.0)),
                Body::DeadLetter(letter) => assert_eq!(letter.accounted, None),
                Body::Tick { .. }
                | Body::Acknowledge { .. }
                | Body::Transitions(_)
                | Body::Shadow(_)
                | Body::Command(_)
                | Body::Status(_) => panic!("there are no alerts, shadows or commands"),
            }
        }
        assert_eq!(fates, step.fates.iter().copied().collect());
        closed.sort();
        assert_eq!(closed, step.closed);
        match answer {
            Answer::Commit => self.in_flight.push(verdict.entries.into_vec()),
            Answer::Kept => {
                // The dead letter passes through the log like anything else, but numbers nothing.
                self.in_flight.push(verdict.entries.into_vec());
                self.model.staged.push(Step::default());
            }
            _ => assert!(verdict.entries.is_empty()),
        }
    }

    /// The model's name of an epoch. One drawn by the device gets its name at its first record.
    fn name(&mut self, epoch: Epoch, step: &Step) -> Name {
        if epoch.0 < 100 {
            return Name::Given(epoch.0);
        }
        if let Some((name, _)) = self.drawn.iter().find(|(_, drawn)| **drawn == epoch.0) {
            return Name::Drawn(*name);
        }
        match step.fates.first() {
            Some((Name::Drawn(name), _, _)) => {
                assert_eq!(self.drawn.insert(*name, epoch.0), None, "a new epoch where the model goes on");
                Name::Drawn(*name)
            }
            other => panic!("a drawn epoch where the model has {other:?}"),
        }
    }

    fn check_ledger(&self) {
        let ledger = self.device.ledger();
        let names: BTreeSet<Name> = self.model.durable.keys().copied().collect();
        assert_eq!(ledger.len(), names.len(), "{ledger:?}");
        for name in names {
            let epoch = match name {
                Name::Given(epoch) => epoch,
                Name::Drawn(drawn) => self.drawn[&drawn],
            };
            let account = ledger.iter().find(|account| account.epoch.0 == epoch).unwrap();
            let count = |fate: Fate| self.model.durable[&name].values().filter(|of| **of == fate).count() as u64;
            assert_eq!((account.stored, account.lost), (count(Fate::Stored), count(Fate::Lost)), "{account:?}");
            assert_eq!((account.dead, account.filtered), (0, 0));
            assert_eq!(account.cum, self.model.cum(name), "{account:?}");
            let missing: Vec<u64> = account.missing.iter().flat_map(|(from, to)| *from..=*to).collect();
            assert_eq!(missing, self.model.holes(name), "{account:?}");
            assert_eq!(account.closed, self.model.is_closed(name), "{account:?}");
        }
        if self.device.is_quiet() {
            assert!(self.in_flight.is_empty());
        }
    }
}

/// Applies one log record as recovery and the hot path do.
fn replay(device: &mut Device, position: u64, record: &[u8]) -> Vec<Effect> {
    let record = LogRecord::decode(Bytes::copy_from_slice(record)).unwrap();
    let LogBody::Batch(entries) = record.body else { unreachable!() };
    let effects = entries.iter().flat_map(|entry| device.apply(Position(position), entry)).collect();
    device.advance(Position(position));
    effects
}

fn frame(epoch: u64, seq: u64, records: u64, losses: &[(u64, u64)], last: bool) -> Vec<u8> {
    let losses = losses.iter().map(|(from, to)| LossRange { from: *from, to: *to, reason: LossReason::RingFull });
    let header = FrameHeader {
        epoch,
        seq,
        schema_id: 1,
        schema_version: SchemaVersion { major: 1, minor: 0 },
        base_time: Timestamp(START),
        send_time: Timestamp(START),
        layout: if seq.is_multiple_of(2) { Layout::Rows } else { Layout::Columns },
        flags: if last { LAST_FRAME } else { 0 },
        losses: losses.collect(),
        ..FrameHeader::default()
    };
    let record = FrameRecord { ts: Timestamp(START), values: Vec::new(), flags: 0 };
    encode_frame(&header, &vec![record; records as usize]).unwrap()
}

fn run(actions: &[Action]) {
    let mut world = World::new();
    for action in actions {
        world.run(action);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_device_numbers_as_the_model_does(actions in prop::collection::vec(action(), 1..80)) {
        run(&actions);
    }

    #[test]
    fn resends_until_all_is_acknowledged_store_all_once(
        order in Just((0..60u64).chain(0..60).chain(0..60).collect::<Vec<_>>()).prop_shuffle(),
        crashes in prop::collection::btree_set(0usize..180, 0..4),
    ) {
        // Three copies of 60 frames of 5 records in any order; the last copies come after the last crash.
        let mut world = World::new();
        for (step, frame) in order.iter().chain((0..60).collect::<Vec<_>>().iter()).enumerate() {
            let seq = frame * 5 + 1;
            let verdict = world.admit(Channel::Telemetry, self::frame(1, seq, 5, &[], false));
            let expected = world.model.frame(1, seq, 5, &[], false);
            world.compare(verdict, expected);
            match step {
                step if crashes.contains(&step) => world.run(&Action::Crash),
                step if step % 3 > 0 => world.run(&Action::Commit),
                step if step % 7 == 0 => world.run(&Action::Snapshot),
                _ => {}
            }
        }
        while !world.in_flight.is_empty() {
            world.run(&Action::Commit);
        }
        let ledger = world.device.ledger();
        prop_assert_eq!((ledger[0].cum, ledger[0].stored, ledger[0].missing.len()), (300, 300, 0));
    }
}
