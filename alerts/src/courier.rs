//! When the messages of one channel are tried, and when again: a pure machine that lives as long as the process.
//!
//! Messages of one incident go one after the other, those of several at the same time. A message that fails waits by
//! itself; and as long as nothing gets through, one is tried at a time, so that a receiver that is down gets a knock at the
//! door, not a crowd.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use device::time::{SECOND, Timestamp};

/// So many failures in a row are the receiver's, not those of a message.
const DOWN: u32 = 3;

/// How a channel is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How many messages are on their way at the same time, while they get through.
    pub together: usize,
    /// The first pause after a failure, in nanoseconds; each further one is twice as long.
    pub first_ns: i64,
    /// The longest pause.
    pub longest_ns: i64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { together: 4, first_ns: SECOND, longest_ns: 300 * SECOND }
    }
}

/// What a courier wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This message is tried now.
    Try(u64),
    /// Nothing before then.
    At(Timestamp),
    /// Nothing until something happens.
    Nothing,
}

#[derive(Debug, Clone)]
struct Waiting {
    incident: String,
    failures: u32,
    not_before: Timestamp,
}

/// The courier of one channel.
#[derive(Debug, Clone)]
pub struct Courier {
    patience: Patience,
    messages: BTreeMap<u64, Waiting>,
    /// Messages of an incident, in their order; only the first may be tried.
    lines: BTreeMap<String, VecDeque<u64>>,
    /// The first of each line that is not under way, by its time.
    ready: BTreeSet<(Timestamp, u64)>,
    under_way: BTreeSet<u64>,
    /// Failures since something last got through.
    failures: u32,
    not_before: Timestamp,
}

impl Courier {
    /// A courier without messages.
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            messages: BTreeMap::new(),
            lines: BTreeMap::new(),
            ready: BTreeSet::new(),
            under_way: BTreeSet::new(),
            failures: 0,
            not_before: Timestamp(0),
        }
    }

    /// Takes a message; those it has are left as they are.
    pub fn take(&mut self, number: u64, incident: &str) {
        if self.messages.contains_key(&number) {
            return;
        }
        let waiting = Waiting { incident: incident.to_owned(), failures: 0, not_before: Timestamp(0) };
        self.messages.insert(number, waiting);
        let line = self.lines.entry(incident.to_owned()).or_default();
        line.push_back(number);
        if line.len() == 1 {
            self.ready.insert((Timestamp(0), number));
        }
    }

    /// What to do now.
    pub fn next(&self, now: Timestamp) -> Next {
        let together = if self.failures > 0 { 1 } else { self.patience.together.max(1) };
        if self.under_way.len() >= together {
            return Next::Nothing;
        }
        let Some((at, number)) = self.ready.first() else { return Next::Nothing };
        match (*at).max(self.not_before) {
            at if at <= now => Next::Try(*number),
            at => Next::At(at),
        }
    }

    /// A message is under way.
    pub fn begin(&mut self, number: u64) {
        if let Some(waiting) = self.messages.get(&number)
            && self.ready.remove(&(waiting.not_before, number))
        {
            self.under_way.insert(number);
        }
    }

    /// It got through.
    pub fn accepted(&mut self, number: u64) {
        if self.failures >= DOWN {
            // What failed did so because the receiver was down.
            let first = |(_, number): &(Timestamp, u64)| (Timestamp(0), *number);
            self.ready = self.ready.iter().map(first).collect();
            for (_, number) in &self.ready {
                if let Some(waiting) = self.messages.get_mut(number) {
                    waiting.not_before = Timestamp(0);
                }
            }
        }
        (self.failures, self.not_before) = (0, Timestamp(0));
        self.drop(number);
    }

    /// It did not. `random` spreads the attempts of many; `wish`: the receiver asks for so many nanoseconds of peace.
    pub fn failed(&mut self, number: u64, now: Timestamp, random: u64, wish: Option<i64>) {
        self.under_way.remove(&number);
        self.failures = self.failures.saturating_add(1);
        let wish = wish.unwrap_or(0).clamp(0, self.patience.longest_ns);
        self.not_before = now.plus(self.pause(self.failures, random).max(wish));
        let Some(failures) = self.messages.get(&number).map(|waiting| waiting.failures.saturating_add(1)) else {
            return;
        };
        let not_before = now.plus(self.pause(failures, random.rotate_left(32)).max(wish));
        if let Some(waiting) = self.messages.get_mut(&number) {
            (waiting.failures, waiting.not_before) = (failures, not_before);
        }
        self.ready.insert((not_before, number));
    }

    /// From half of the full pause to all of it.
    fn pause(&self, failures: u32, random: u64) -> i64 {
        let doubled = self
            .patience
            .first_ns
            .max(1)
            .saturating_mul(1i64.checked_shl(failures.saturating_sub(1).min(40)).unwrap_or(i64::MAX));
        let full = doubled.clamp(1, self.patience.longest_ns.max(1));
        let half = (full / 2).max(1);
        half + (random % half.unsigned_abs()) as i64
    }

    /// Forgets a message, whatever became of it.
    pub fn drop(&mut self, number: u64) {
        self.under_way.remove(&number);
        let Some(waiting) = self.messages.remove(&number) else { return };
        self.ready.remove(&(waiting.not_before, number));
        let Some(line) = self.lines.get_mut(&waiting.incident) else { return };
        let was_first = line.front() == Some(&number);
        line.retain(|other| *other != number);
        match line.front() {
            None => {
                self.lines.remove(&waiting.incident);
            }
            Some(first) if was_first => {
                if let Some(next) = self.messages.get(first) {
                    self.ready.insert((next.not_before, *first));
                }
            }
            Some(_) => {}
        }
    }

    /// The messages it has.
    pub fn messages(&self) -> impl Iterator<Item = u64> {
        self.messages.keys().copied()
    }

    /// Attempts in a row that failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}
