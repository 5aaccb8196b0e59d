//! What is durable, as the shard logs say it, kept beside them and never truncated: the truth that everything the
//! engine says or writes is compared with.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use device::entry::{Body, Entry, LogBody, LogRecord};
use device::id::{DeviceId, ShardId};
use device::seq::Position;

use super::trace::{BASIS, Trace, hash};

/// What became of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// A row.
    Stored,
    /// Declared lost.
    Lost,
    /// In a dead letter.
    Dead,
}

/// All records of all logs, and what they say of numbers.
#[derive(Debug)]
pub(super) struct Ledger {
    trace: Trace,
    logs: BTreeMap<ShardId, Vec<LogRecord>>,
    numbers: BTreeMap<(DeviceId, u64), BTreeMap<u64, Fate>>,
    /// Hashes of the payloads that stand in the logs.
    payloads: BTreeSet<(DeviceId, u64)>,
    /// Losses that the engine decided on by itself, not by what a device declared.
    pub(super) given_up: u64,
    /// Records stored, by entries of the logs.
    pub(super) stored: u64,
}

impl Ledger {
    /// Nothing is durable.
    pub(super) fn new(trace: Trace) -> Self {
        Self {
            trace,
            logs: BTreeMap::new(),
            numbers: BTreeMap::new(),
            payloads: BTreeSet::new(),
            given_up: 0,
            stored: 0,
        }
    }

    /// A record has become durable, now or by an earlier try.
    pub(super) fn durable(&mut self, shard: ShardId, position: Position, bytes: &Bytes) {
        let log = self.logs.entry(shard).or_default();
        if position.0 <= log.len() as u64 {
            return;
        }
        if position.0 != log.len() as u64 + 1 {
            return self.trace.wrong(format!("the log of shard {shard} leaves a gap before {position}"));
        }
        let record = match LogRecord::decode(bytes.clone()) {
            Ok(record) => record,
            Err(error) => return self.trace.wrong(format!("record {position} does not decode: {error}")),
        };
        if self.log(shard).last().is_some_and(|last| last.time > record.time) {
            self.trace.wrong(format!("the time of the log of shard {shard} goes back at {position}"));
        }
        if let LogBody::Batch(entries) = &record.body {
            for entry in entries.clone() {
                self.entry(&entry);
            }
        }
        self.logs.entry(shard).or_default().push(record);
    }

    fn entry(&mut self, entry: &Entry) {
        match &entry.body {
            Body::Records(records) => {
                self.payloads.insert((entry.device.clone(), hash(&records.payload, BASIS)));
                for run in &records.runs {
                    self.stored += u64::from(run.len);
                    if records.assured {
                        self.account(entry, run.epoch.0, run.seq, run.seq + u64::from(run.len) - 1, Fate::Stored);
                    }
                }
            }
            Body::Loss(loss) => {
                self.given_up += loss.to - loss.from + 1;
                self.account(entry, loss.epoch.0, loss.from, loss.to, Fate::Lost);
            }
            Body::DeadLetter(letter) => {
                if let Some((epoch, seq, records)) = letter.accounted {
                    self.account(entry, epoch.0, seq, seq + u64::from(records) - 1, Fate::Dead);
                }
            }
            Body::Closed { .. }
            | Body::Tick { .. }
            | Body::Acknowledge { .. }
            | Body::Transitions(_)
            | Body::Shadow(_)
            | Body::Command(_)
            | Body::Status(_) => {}
        }
    }

    fn account(&mut self, entry: &Entry, epoch: u64, from: u64, to: u64, fate: Fate) {
        let numbers = self.numbers.entry((entry.device.clone(), epoch)).or_default();
        for seq in from..=to {
            if let Some(before) = numbers.insert(seq, fate) {
                let device = &entry.device;
                self.trace.wrong(format!("I2: {device} {epoch}/{seq} is in the log twice: {before:?}, then {fate:?}"));
            }
        }
    }

    /// Whether a payload of the device stands in a log as it is.
    pub(super) fn holds(&self, device: &DeviceId, payload: &[u8]) -> bool {
        self.payloads.contains(&(device.clone(), hash(payload, BASIS)))
    }

    /// What is durable of a number.
    pub(super) fn fate(&self, device: &DeviceId, epoch: u64, seq: u64) -> Option<Fate> {
        self.numbers.get(&(device.clone(), epoch))?.get(&seq).copied()
    }

    /// Epochs and their numbers of a device.
    pub(super) fn of<'a>(&'a self, device: &'a DeviceId) -> impl Iterator<Item = (u64, &'a BTreeMap<u64, Fate>)> {
        self.numbers.iter().filter(move |((of, _), _)| of == device).map(|((_, epoch), numbers)| (*epoch, numbers))
    }

    /// The records of a shard's log, from position 1 on.
    pub(super) fn log(&self, shard: ShardId) -> &[LogRecord] {
        self.logs.get(&shard).map_or(&[], Vec::as_slice)
    }
}
