//! The numbering rules once more, as plainly as they can be said: sets of numbers, searched from one end to the
//! other. No bitmaps, no windows that slide in place, no fast paths.
//!
//! Property tests drive this model and `device::machine::Device` with the same messages and compare them. It
//! covers epochs, windows, losses, closing and drawn numbering; not covered are the limits on how many epochs a
//! device may have, and everything about payload formats.

use std::collections::{BTreeMap, BTreeSet};

/// How far above what is completely known a number may be.
pub const WINDOW: u64 = 4096;

/// What became of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// A row.
    Stored,
    /// Declared lost.
    Lost,
}

/// The name of an epoch: by the device, or the how-manieth the engine drew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Named by the device.
    Given(u64),
    /// Drawn by the engine.
    Drawn(u64),
}

/// What the sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Stored, once it is durable.
    Commit,
    /// Stored before.
    Duplicate,
    /// Stored, once what is in flight is durable.
    Staged,
    /// Refused and not kept.
    Refused,
    /// Refused and kept as a dead letter.
    Kept,
}

/// What a message does, once it is durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Numbers and their fates, in the order they were decided.
    pub fates: Vec<(Name, u64, Fate)>,
    /// Epochs that are closed.
    pub closed: Vec<Name>,
    /// Whether the device speaks frames under these epochs.
    framed: bool,
    /// Times of the records of drawn epochs.
    stamps: Vec<(Name, u64, i64)>,
}

/// One drawn epoch: the time of each of its records.
#[derive(Debug, Clone, Default)]
struct Drawn {
    name: u64,
    durable: BTreeMap<u64, i64>,
    staged: BTreeMap<u64, i64>,
}

impl Drawn {
    fn recall(&self, seq: u64) -> Option<(i64, bool)> {
        let top = self.durable.keys().max().copied().unwrap_or(0);
        match self.durable.get(&seq) {
            Some(ts) if seq + WINDOW > top => Some((*ts, true)),
            _ => self.staged.get(&seq).map(|ts| (*ts, false)),
        }
    }

    fn highest(&self) -> Option<u64> {
        self.durable.keys().chain(self.staged.keys()).max().copied()
    }
}

/// The device as sets.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// What is durable.
    pub durable: BTreeMap<Name, BTreeMap<u64, Fate>>,
    /// What is on its way, message by message.
    pub staged: Vec<Step>,
    framed: BTreeSet<Name>,
    closed: BTreeSet<Name>,
    closing: BTreeSet<Name>,
    /// Below these numbers drawn epochs have none.
    first: BTreeMap<Name, u64>,
    drawn: Vec<Drawn>,
    draws: u64,
    latest: Option<i64>,
    far: Option<(Name, u64)>,
}

impl Model {
    fn is_durable(&self, name: Name, seq: u64) -> bool {
        self.durable.get(&name).is_some_and(|numbers| numbers.contains_key(&seq))
    }

    /// Every number of an epoch that is durable or on its way, in this message or an earlier one.
    fn known(&self, name: Name, now: &Step) -> BTreeSet<u64> {
        let staged = self.staged.iter().chain([now]).flat_map(|step| &step.fates);
        let staged = staged.filter(|(of, _, _)| *of == name).map(|(_, seq, _)| *seq);
        self.durable.get(&name).into_iter().flat_map(|numbers| numbers.keys().copied()).chain(staged).collect()
    }

    /// The end of the numbers without a hole, and the highest number.
    fn extent(&self, name: Name, known: &BTreeSet<u64>) -> (u64, u64) {
        let first = self.first.get(&name).copied().unwrap_or(1).max(1);
        let frontier = (first..).find(|seq| !known.contains(seq)).unwrap_or(first) - 1;
        (frontier, known.last().copied().unwrap_or(0).max(frontier))
    }

    /// A frame: records `seq`, `seq + 1`, ... and declared losses.
    pub fn frame(
        &mut self,
        epoch: u64,
        seq: u64,
        records: u64,
        losses: &[(u64, u64)],
        last_frame: bool,
    ) -> (Answer, Step) {
        let name = Name::Given(epoch);
        let mut step = Step { framed: true, ..Step::default() };
        let mut known = self.known(name, &step);
        let mut losses = losses.to_vec();
        losses.sort_by_key(|(from, _)| *from);
        for number in losses.into_iter().flat_map(|(from, to)| from..=to) {
            if !known.contains(&number) {
                let (frontier, _) = self.extent(name, &known);
                if number > frontier + 1 && number > frontier + WINDOW {
                    return (Answer::Refused, Step::default());
                }
                known.insert(number);
                step.fates.push((name, number, Fate::Lost));
            }
        }
        let (frontier, _) = self.extent(name, &known);
        if records > 0 && seq + records - 1 > frontier + WINDOW {
            return (Answer::Refused, Step::default());
        }
        let mut in_flight = false;
        for number in seq..seq + records {
            if known.insert(number) {
                step.fates.push((name, number, Fate::Stored));
            } else {
                in_flight |= !self.is_durable(name, number);
            }
        }
        let (frontier, highest) = self.extent(name, &known);
        let ends = last_frame && frontier == highest && (records == 0 || highest == seq + records - 1);
        if ends && !step.fates.is_empty() && !self.closing.contains(&name) {
            self.closing.insert(name);
            step.closed.push(name);
        }
        (self.stage(&step, in_flight), step)
    }

    fn stage(&mut self, step: &Step, in_flight: bool) -> Answer {
        if step.fates.is_empty() && step.closed.is_empty() {
            return if in_flight { Answer::Staged } else { Answer::Duplicate };
        }
        self.staged.push(step.clone());
        Answer::Commit
    }

    /// A hello that names the epochs the device still holds.
    pub fn hello(&mut self, held: &[u64]) -> (Answer, Step) {
        let mut step = Step { framed: true, ..Step::default() };
        for name in self.framed.clone() {
            let is_held = held.iter().any(|epoch| Name::Given(*epoch) == name);
            if is_held || self.closed.contains(&name) || !self.closing.insert(name) {
                continue;
            }
            let known = self.known(name, &step);
            let (frontier, highest) = self.extent(name, &known);
            step.fates.extend(
                (frontier..=highest).filter(|seq| *seq > 0 && !known.contains(seq)).map(|seq| (name, seq, Fate::Lost)),
            );
            step.closed.push(name);
        }
        (self.stage(&step, false), step)
    }

    /// Plain records with an epoch and a number: one payload.
    pub fn named(&mut self, records: &[(u64, u64)]) -> (Answer, Step) {
        let mut step = Step::default();
        let mut in_flight = false;
        for (epoch, seq) in records {
            let name = Name::Given(*epoch);
            if self.known(name, &step).contains(seq) {
                in_flight |= !self.is_durable(name, *seq);
            } else if !self.reach(name, *seq, &mut step) {
                return (Answer::Kept, Step::default());
            }
        }
        (self.stage(&step, in_flight), step)
    }

    /// Takes a new number of a plain client; false if it is too far ahead.
    fn reach(&mut self, name: Name, seq: u64, step: &mut Step) -> bool {
        let known = self.known(name, step);
        let (frontier, highest) = self.extent(name, &known);
        if seq > frontier + WINDOW {
            let lost_to = if seq <= highest + WINDOW {
                seq - WINDOW
            } else if self.far.is_some_and(|(of, at)| of == name && at < seq && seq <= at + WINDOW) {
                seq - 1
            } else {
                self.far = Some((name, seq));
                return false;
            };
            let lost = (frontier + 1..=lost_to).filter(|number| !known.contains(number));
            step.fates.extend(lost.map(|number| (name, number, Fate::Lost)));
        }
        step.fates.push((name, seq, Fate::Stored));
        true
    }

    /// One plain record with a number and a time, but no epoch.
    pub fn drawn(&mut self, seq: u64, ts: i64) -> (Answer, Step) {
        let mut step = Step::default();
        let Some(highest) = self.drawn.last().and_then(Drawn::highest) else {
            return self.begin(seq, ts);
        };
        let current = self.drawn.last().cloned().unwrap_or_default();
        let known = current.recall(seq);
        let same = |ring: &Drawn| ring.recall(seq).filter(|(of, _)| *of == ts);
        if let Some((_, durable)) = self.drawn.iter().rev().find_map(same) {
            return (self.stage(&step, !durable), step);
        }
        let name = Name::Drawn(current.name);
        if known.is_some() {
            return self.begin(seq, ts);
        }
        if seq > highest {
            if !self.reach(name, seq, &mut step) {
                return (Answer::Kept, Step::default());
            }
        } else if highest - seq >= WINDOW {
            let staged = self.drawn.iter().flat_map(|ring| ring.staged.values().copied()).max();
            if self.latest.max(staged).is_none_or(|latest| ts > latest) {
                return self.begin(seq, ts);
            }
            return (Answer::Kept, Step::default());
        } else if self.known(name, &step).contains(&seq) {
            // Declared lost when the client moved on.
            let durable = self.is_durable(name, seq);
            return (self.stage(&step, !durable), step);
        } else {
            step.fates.push((name, seq, Fate::Stored));
        }
        self.stamp(name, seq, ts, step)
    }

    fn begin(&mut self, seq: u64, ts: i64) -> (Answer, Step) {
        self.draws += 1;
        let name = Name::Drawn(self.draws);
        self.drawn.push(Drawn { name: self.draws, ..Drawn::default() });
        self.first.insert(name, seq);
        self.stamp(name, seq, ts, Step { fates: vec![(name, seq, Fate::Stored)], ..Step::default() })
    }

    fn stamp(&mut self, name: Name, seq: u64, ts: i64, mut step: Step) -> (Answer, Step) {
        if let Some(ring) = self.drawn.last_mut() {
            ring.staged.insert(seq, ts);
        }
        step.stamps.push((name, seq, ts));
        (self.stage(&step, false), step)
    }

    /// The oldest message in flight is durable now. False if one of its numbers was durable before: that must
    /// never be.
    pub fn commit(&mut self) -> bool {
        let step = self.staged.remove(0);
        let mut fresh = true;
        for (name, seq, fate) in step.fates {
            fresh &= self.durable.entry(name).or_default().insert(seq, fate).is_none();
            if step.framed {
                self.framed.insert(name);
            }
            if fate == Fate::Stored {
                self.closed.remove(&name);
            }
        }
        for name in step.closed {
            self.closing.remove(&name);
            self.closed.insert(name);
        }
        for (name, seq, ts) in step.stamps {
            for ring in self.drawn.iter_mut().filter(|ring| Name::Drawn(ring.name) == name) {
                ring.staged.remove(&seq);
                ring.durable.insert(seq, ts);
            }
            self.latest = self.latest.max(Some(ts));
            while self.drawn.iter().filter(|ring| !ring.durable.is_empty()).count() > 2
                && self.drawn[0].staged.is_empty()
            {
                self.drawn.remove(0);
            }
        }
        fresh
    }

    /// The process dies: what was in flight is gone.
    pub fn crash(&mut self) {
        self.staged.clear();
        self.closing.clear();
        self.far = None;
        for ring in &mut self.drawn {
            ring.staged.clear();
        }
        self.drawn.retain(|ring| !ring.durable.is_empty());
    }

    /// Every number up to this one is durable.
    pub fn cum(&self, name: Name) -> u64 {
        let known = self.durable.get(&name).map(|numbers| numbers.keys().copied().collect()).unwrap_or_default();
        self.extent(name, &known).0
    }

    /// Numbers between durable ones that are not durable.
    pub fn holes(&self, name: Name) -> Vec<u64> {
        let Some(numbers) = self.durable.get(&name) else {
            return Vec::new();
        };
        let highest = numbers.keys().max().copied().unwrap_or(0);
        (self.cum(name) + 1..highest).filter(|seq| !numbers.contains_key(seq)).collect()
    }

    /// Whether an epoch is closed.
    pub fn is_closed(&self, name: Name) -> bool {
        self.closed.contains(&name)
    }
}
