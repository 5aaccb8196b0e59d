//! Which sequence numbers of one epoch are accounted for: durably, or on their way there.
//!
//! A number is *durable* when an entry about it was applied (a row, a dead letter, a declared loss), *staged* when
//! such an entry was admitted and is still being committed, otherwise *new*. Entries are applied in the order in
//! which they were admitted. An epoch in order costs 32 bytes; what disorder needs (a bitmap of the window above
//! `cum`, staged ranges, tallies) is allocated while it lasts.

mod ranges;

pub use ranges::RangeSet;

/// How far above `cum` numbers are taken. Devices keep at most 1024 in flight; four times that leaves room for
/// retransmissions that cross newer frames.
pub const WINDOW: u64 = 4096;

/// How a number stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Accounted for, durably.
    Durable,
    /// On its way into the log.
    Staged,
    /// Never seen.
    New,
}

/// As what a number is accounted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// A row.
    Stored,
    /// Kept in a dead letter.
    Dead,
    /// Declared lost.
    Lost,
    /// Filtered on the device.
    Filtered,
}

/// The numbers of one epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EpochState {
    /// Everything from the base to here is durable.
    cum: u64,
    /// Everything above `cum` to here is staged (or durable in the bitmap); never below `cum`.
    staged_to: u64,
    disorder: Option<Box<Disorder>>,
    duplicate: u32,
    /// Number 0, which only plain clients use: it cannot be told from "nothing yet" by `cum`.
    zero: Zero,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Zero {
    #[default]
    New,
    Staged,
    Durable,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Disorder {
    /// Durable numbers in (cum, cum + WINDOW], at bit `number % WINDOW`.
    bits: Option<Box<Bits>>,
    /// Highest number in `bits`.
    highest: u64,
    /// Staged numbers above `staged_to`.
    staged: RangeSet,
    tally: Tally,
}

/// Numbers of an epoch that are not simply stored from 1 on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Numbers up to this one do not belong to the epoch.
    pub(crate) base: u64,
    /// Rows with numbers up to the base, which came after it was fixed.
    pub(crate) early: u64,
    pub(crate) dead: u64,
    pub(crate) lost: u64,
    pub(crate) filtered: u64,
}

const WORDS: usize = (WINDOW / 64) as usize;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Bits([u64; WORDS]);

impl Bits {
    fn get(&self, number: u64) -> bool {
        self.0.get(Self::word(number)).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn put(&mut self, number: u64, value: bool) {
        if let Some(word) = self.0.get_mut(Self::word(number)) {
            let bit = 1 << (number % 64);
            *word = if value { *word | bit } else { *word & !bit };
        }
    }

    fn word(number: u64) -> usize {
        (number / 64) as usize % WORDS
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

impl Disorder {
    fn durable(&self, number: u64) -> bool {
        number <= self.highest && self.bits.as_ref().is_some_and(|bits| bits.get(number))
    }

    fn is_plain(&self) -> bool {
        self.bits.is_none() && self.staged.is_empty() && self.tally == Tally::default()
    }
}

impl EpochState {
    /// An epoch whose numbers begin after `base`.
    pub fn above(base: u64) -> Self {
        let mut state = Self { cum: base, staged_to: base, ..Self::default() };
        if base > 0 {
            state.disorder().tally.base = base;
        }
        state
    }

    /// What a snapshot says: durable numbers only.
    pub(crate) fn from_parts(cum: u64, zero: bool, duplicate: u32, tally: Tally, above: &[(u64, u64)]) -> Self {
        let mut state = Self { cum, staged_to: cum, duplicate, ..Self::default() };
        if zero {
            state.zero = Zero::Durable;
        }
        for (from, to) in above {
            state.settle(*from, *to);
        }
        if tally != Tally::default() {
            state.disorder().tally = tally;
        }
        state
    }

    /// Every number up to this one is accounted for, durably.
    pub fn cum(&self) -> u64 {
        self.cum
    }

    /// Every number up to this one is durable or staged.
    pub fn frontier(&self) -> u64 {
        let mut at = self.staged_to;
        if let Some(disorder) = &self.disorder {
            loop {
                match disorder.staged.end_of(at + 1) {
                    Some(end) => at = end,
                    None if disorder.durable(at + 1) => at += 1,
                    None => break,
                }
            }
        }
        at
    }

    /// The highest number that is durable or staged.
    pub fn highest(&self) -> u64 {
        let above = self.disorder.as_ref().map_or(0, |d| d.highest.max(d.staged.last().unwrap_or(0)));
        self.staged_to.max(above)
    }

    /// How a number stands.
    #[inline]
    pub fn place(&self, number: u64) -> Place {
        if number == 0 {
            return match self.zero {
                Zero::New => Place::New,
                Zero::Staged => Place::Staged,
                Zero::Durable => Place::Durable,
            };
        }
        #[cfg(feature = "planted")]
        if number == self.cum && crate::planted::is("dedup-off-by-one") {
            return Place::New;
        }
        if number <= self.cum {
            return Place::Durable;
        }
        match &self.disorder {
            Some(disorder) if disorder.durable(number) => Place::Durable,
            _ if number <= self.staged_to => Place::Staged,
            Some(disorder) if disorder.staged.contains(number) => Place::Staged,
            _ => Place::New,
        }
    }

    /// Whether `from` is the next number and nothing is out of order: then all that follow are new.
    #[inline]
    pub fn continues_at(&self, from: u64) -> bool {
        self.disorder.is_none() && from == self.staged_to + 1
    }

    /// New numbers are on their way into the log.
    #[inline]
    pub fn stage(&mut self, from: u64, to: u64) {
        if from == 0 {
            self.zero = Zero::Staged;
            if to > 0 {
                self.stage(1, to);
            }
            return;
        }
        if from != self.staged_to + 1 {
            return self.disorder().staged.insert(from, to);
        }
        self.staged_to = to;
        self.absorb();
    }

    /// Staged numbers will not be committed after all.
    pub fn unstage(&mut self, from: u64, to: u64) {
        if from == 0 {
            self.zero = Zero::New;
            if to > 0 {
                self.unstage(1, to);
            }
            return;
        }
        if to > self.staged_to {
            self.disorder().staged.remove(from, to);
        } else {
            let rest = (to + 1, self.staged_to);
            self.staged_to = from - 1;
            if rest.0 <= rest.1 {
                // What became durable meanwhile is in the bitmap and on its way no more.
                for (from, to) in self.above_cum().gaps(rest.0, rest.1) {
                    self.disorder().staged.insert(from, to);
                }
            }
        }
        self.tidy();
    }

    /// Numbers are durable now; returns how many of them were not before.
    #[inline]
    pub fn apply(&mut self, from: u64, to: u64, account: Account) -> u64 {
        let plain = self.disorder.is_none() && account == Account::Stored;
        if plain && from == self.cum + 1 && to >= from {
            self.cum = to;
            self.staged_to = self.staged_to.max(to);
            return to - from + 1;
        }
        self.apply_anyhow(from, to, account)
    }

    fn apply_anyhow(&mut self, from: u64, to: u64, account: Account) -> u64 {
        let mut new = 0;
        if from == 0 {
            new += u64::from(self.zero != Zero::Durable);
            self.zero = Zero::Durable;
        }
        new += self.settle(from.max(1), to);
        if new > 0 && account != Account::Stored {
            let tally = &mut self.disorder().tally;
            match account {
                Account::Stored => {}
                Account::Dead => tally.dead += new,
                Account::Lost => tally.lost += new,
                Account::Filtered => tally.filtered += new,
            }
        }
        self.tidy();
        new
    }

    /// A row with a number at or below the base: of an epoch that the engine drew, whose first record was overtaken.
    pub(crate) fn apply_early(&mut self) {
        self.disorder().tally.early += 1;
    }

    /// Makes numbers durable without saying as what.
    fn settle(&mut self, from: u64, to: u64) -> u64 {
        if from.max(self.cum + 1) > to {
            return 0;
        }
        let mut new = 0;
        // Admission keeps numbers inside the window. Should a log say otherwise, what falls out of it below counts
        // as lost rather than being forgotten.
        if from > self.cum + 1 && to - self.cum > WINDOW {
            let skipped = self.settle(self.cum + 1, to - WINDOW);
            self.disorder().tally.lost += skipped;
        }
        let cum = self.cum;
        let from = from.max(cum + 1);
        if from > to {
            return 0;
        }
        let disorder = self.disorder();
        disorder.staged.remove(from, to);
        if from <= cum + 1 {
            let mut known = 0;
            if let Some(bits) = &mut disorder.bits {
                for number in from..=to.min(disorder.highest) {
                    known += u64::from(bits.get(number));
                    bits.put(number, false);
                }
            }
            new += to + 1 - from - known;
            let mut cum = to.max(cum);
            if let Some(bits) = &mut disorder.bits {
                while cum < disorder.highest && bits.get(cum + 1) {
                    cum += 1;
                    bits.put(cum, false);
                }
                if disorder.highest <= cum {
                    disorder.bits = None;
                }
            }
            self.cum = cum;
        } else {
            let bits = disorder.bits.get_or_insert_with(|| Box::new(Bits([0; WORDS])));
            for number in from..=to {
                new += u64::from(!bits.get(number));
                bits.put(number, true);
            }
            disorder.highest = disorder.highest.max(to);
        }
        self.staged_to = self.staged_to.max(self.cum);
        self.absorb();
        new
    }

    /// A repetition was recognised.
    pub fn count_duplicates(&mut self, count: u64) {
        self.duplicate = self.duplicate.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Repetitions recognised so far.
    pub fn duplicates(&self) -> u64 {
        u64::from(self.duplicate)
    }

    /// Whether nothing is on its way into the log.
    pub fn is_quiet(&self) -> bool {
        self.staged_to == self.cum
            && self.zero != Zero::Staged
            && self.disorder.as_ref().is_none_or(|disorder| disorder.staged.is_empty())
    }

    /// Whether number 0 is durable.
    pub(crate) fn has_zero(&self) -> bool {
        self.zero == Zero::Durable
    }

    /// Whether a durable number has a hole below it.
    #[inline]
    pub fn has_holes(&self) -> bool {
        self.disorder.as_ref().is_some_and(|disorder| disorder.bits.is_some())
    }

    /// Durable numbers above `cum`.
    pub fn above_cum(&self) -> RangeSet {
        let mut set = RangeSet::default();
        if let Some(disorder) = self.disorder.as_ref().filter(|disorder| disorder.bits.is_some()) {
            for number in self.cum + 1..=disorder.highest {
                if disorder.durable(number) {
                    set.insert(number, number);
                }
            }
        }
        set
    }

    /// Holes among the durable numbers.
    pub fn holes(&self) -> Vec<(u64, u64)> {
        match &self.disorder {
            Some(disorder) if disorder.bits.is_some() => self.above_cum().gaps(self.cum + 1, disorder.highest),
            _ => Vec::new(),
        }
    }

    /// Numbers from `from` to `to` (not 0) that are neither durable nor staged.
    pub fn missing(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut known = self.above_cum();
        if let Some(disorder) = &self.disorder {
            for (from, to) in disorder.staged.iter() {
                known.insert(from, to);
            }
        }
        known.gaps(from.max(self.staged_to + 1), to)
    }

    pub(crate) fn tally(&self) -> Tally {
        self.disorder.as_ref().map(|disorder| disorder.tally).unwrap_or_default()
    }

    /// How many numbers became rows.
    pub fn stored(&self) -> u64 {
        let tally = self.tally();
        let above = self.disorder.as_ref().and_then(|d| d.bits.as_ref()).map_or(0, |bits| bits.count());
        let all = self.cum - tally.base.min(self.cum) + above + u64::from(self.has_zero()) + tally.early;
        all.saturating_sub(tally.dead + tally.lost + tally.filtered)
    }

    fn disorder(&mut self) -> &mut Disorder {
        self.disorder.get_or_insert_default()
    }

    /// Joins staged ranges to the run above `cum` that has reached them.
    #[inline]
    fn absorb(&mut self) {
        let Some(disorder) = &mut self.disorder else {
            return;
        };
        if disorder.staged.is_empty() {
            return;
        }
        disorder.staged.remove(0, self.staged_to);
        while let Some(end) = disorder.staged.end_of(self.staged_to + 1) {
            disorder.staged.remove(self.staged_to + 1, end);
            self.staged_to = end;
        }
    }

    /// Gives back what disorder needed once it is over.
    fn tidy(&mut self) {
        if self.disorder.as_ref().is_some_and(|disorder| disorder.is_plain()) {
            self.disorder = None;
        }
    }
}

#[cfg(test)]
mod tests;
