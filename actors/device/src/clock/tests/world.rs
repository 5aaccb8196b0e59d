//! A device and its clocks as they really are: an oscillator that is off by some parts per million, a wall clock that is
//! set or starts in 1970, a network that takes its time. The truth is what estimates are held against.

use crate::clock::{Clocks, Frame, Note, Stamp, stamp_noted};
use crate::time::{SECOND, Timestamp};
use crate::varint::Cursor;

pub(super) const MS: i64 = SECOND / 1000;
/// When worlds begin: 2026-03-01.
pub(super) const BEGIN: i64 = 1_772_323_200 * SECOND;

/// Random numbers that follow from a seed (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// From `low` to `high`, each power of two as likely as another.
    pub(super) fn spread(&mut self, low: i64, high: i64) -> i64 {
        let doublings = (high / low).max(1).ilog2();
        let most = low << self.between(0, i64::from(doublings));
        self.between(low, most.max(low)).min(high)
    }
}

/// One record as it was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) truth: i64,
    pub(super) wall: i64,
    /// Wall less monotonic time, and which boot.
    apart: i64,
    boot: u32,
}

/// What became of one record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) record: Record,
    pub(super) stamp: Stamp,
    pub(super) received: i64,
    /// When the oldest record of its frame was made.
    pub(super) oldest: i64,
    /// Round trip of what the frame told, if it told anything.
    pub(super) roundtrip: Option<i64>,
    /// The record is of the boot that sent it.
    pub(super) same_boot: bool,
}

impl Row {
    /// Whether the true time lies within the stated error; nothing is stated of what is unknown.
    pub(super) fn holds(&self) -> bool {
        let off = (self.stamp.ts.0 - self.record.truth).abs();
        self.stamp.clock_err_ns.is_none_or(|err| off <= err)
    }
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    offset: i64,
    roundtrip: i64,
    apart: i64,
    mono: i64,
}

/// A device, its network and the engine.
pub(super) struct World {
    pub(super) now: i64,
    /// How the device is made.
    pub(super) ppm: i64,
    pub(super) dead_rtc: bool,
    pub(super) has_mono: bool,
    pub(super) measures: bool,
    /// Longest way of a message, in ns.
    pub(super) longest: i64,
    pub(super) random: Random,
    boot: u32,
    booted: i64,
    /// Wall clock when the monotonic one was zero.
    apart: i64,
    waiting: Vec<Record>,
    measured: Option<Measured>,
    /// What the engine knows, and what a replica knows that gets notes only.
    pub(super) known: Option<Clocks>,
    replica: Option<Clocks>,
    /// Notes on their way to the replica.
    under_way: Vec<(Note, Timestamp)>,
    pub(super) rows: Vec<Row>,
    pub(super) notes: Vec<(Note, i64)>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: BEGIN,
            ppm: 0,
            dead_rtc: false,
            has_mono: true,
            measures: true,
            longest: 200 * MS,
            random: Random(seed),
            boot: 0,
            booted: BEGIN,
            apart: BEGIN,
            waiting: Vec::new(),
            measured: None,
            known: None,
            replica: None,
            under_way: Vec::new(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn mono(&self) -> i64 {
        let passed = self.now - self.booted;
        passed + (i128::from(passed) * i128::from(self.ppm) / 1_000_000) as i64
    }

    pub(super) fn wall(&self) -> i64 {
        self.apart + self.mono()
    }

    /// The wall clock is set.
    pub(super) fn set(&mut self, wall: i64) {
        self.apart = wall - self.mono();
    }

    /// The device starts again.
    pub(super) fn reboot(&mut self) {
        self.now += 15 * SECOND;
        let wall = if self.dead_rtc { 5 * SECOND } else { self.wall() };
        self.boot += 1;
        self.booted = self.now;
        self.apart = wall;
        self.measured = None;
    }

    pub(super) fn record(&mut self) {
        let record = Record { truth: self.now, wall: self.wall(), apart: self.apart, boot: self.boot };
        self.waiting.push(record);
    }

    /// Sends what waits; each frame is answered.
    pub(super) fn send(&mut self) {
        while let Some(first) = self.waiting.first().copied() {
            let like = |record: &&Record| (record.boot, record.apart) == (first.boot, first.apart);
            let count = self.waiting.iter().take_while(like).count().min(20);
            let records: Vec<Record> = self.waiting.drain(..count).collect();
            self.frame(&records);
        }
    }

    fn frame(&mut self, records: &[Record]) {
        let Some(first) = records.first() else { return };
        let same_boot = first.boot == self.boot;
        let wall = self.wall();
        let low = records.iter().map(|record| record.wall).min().unwrap_or_default();
        let high = records.iter().map(|record| record.wall).max().unwrap_or_default();
        self.measured = self.measured.filter(|measured| self.mono() - measured.mono <= 900 * SECOND);
        let told = self
            .measured
            .map(|measured| Measured { offset: measured.offset - (self.apart - measured.apart), ..measured });
        let frame = Frame {
            wall: Timestamp(wall),
            mono: self.has_mono.then_some(self.mono() as u64),
            base: Timestamp(first.wall),
            mono_base: (self.has_mono && same_boot).then_some((first.wall - first.apart) as u64),
            flags: if same_boot { 0 } else { 1 } | if wall < BEGIN / 2 { 2 } else { 0 },
            sample: told.map(|told| (told.offset, told.roundtrip as u64)),
            span: (Timestamp(low), Timestamp(high)),
        };
        let longest = if self.random.chance(5) { (self.longest * 20).min(8 * SECOND) } else { self.longest };
        let (out, hold, back) =
            (self.random.between(MS, longest), self.random.between(0, 300 * MS), self.random.between(MS, longest));
        let (sent_mono, received) = (self.mono(), Timestamp(self.now + out));
        let decided = Clocks::frame(self.known.as_ref(), &frame, received);
        let note = decided.as_ref().map(|(note, _)| note);
        for record in records {
            let stamp = stamp_noted(Some(Timestamp(record.wall)), received, frame.sample, note);
            let roundtrip = told.map(|told| told.roundtrip);
            self.rows.push(Row {
                record: *record,
                stamp,
                received: received.0,
                oldest: first.truth,
                roundtrip,
                same_boot,
            });
        }
        if let Some((note, next)) = decided {
            self.known = next.or(self.known.take());
            self.under_way.push((note.clone(), received));
            self.notes.push((note, received.0));
        }
        self.now += out + hold + back;
        if self.measures {
            let passed = self.mono() - sent_mono;
            let (t2, t3) = (received.0, received.0 + hold);
            let offset = ((t2 - wall) + (t3 - (wall + passed))) / 2;
            self.measured = Some(Measured { offset, roundtrip: passed - hold, apart: self.apart, mono: self.mono() });
        }
    }

    /// Some of what is on its way becomes durable at the replica, which restarts now and then.
    pub(super) fn settle(&mut self, count: usize) {
        let count = count.min(self.under_way.len());
        for (note, received) in self.under_way.drain(..count) {
            let mut bytes = Vec::new();
            note.put(received, &mut bytes);
            let read = Note::get(&mut Cursor::new(&bytes), received).expect("a note comes back");
            assert_eq!(read, note);
            if let Some(seen) = &read.seen {
                let changes = self.replica.get_or_insert_default().observe(seen, received);
                assert_eq!(changes, note.changes, "the same follows at the replica");
            }
        }
        if let Some(replica) = self.replica.as_ref().filter(|_| self.random.chance(20)) {
            let mut bytes = Vec::new();
            replica.put(&mut bytes);
            let mut cursor = Cursor::new(&bytes);
            let back = Clocks::get(&mut cursor).expect("clocks come back");
            assert_eq!((&back, cursor.left()), (replica, 0));
            self.replica = Some(back);
        }
    }

    /// All is durable: the replica knows what the engine knows.
    pub(super) fn rest(&mut self) {
        self.settle(usize::MAX);
        assert_eq!(self.replica, self.known, "durable notes lead to the same clocks");
    }

    /// Share of rows whose true time lies within the stated error, in per mille, and how many have no known time.
    pub(super) fn verdict(&self) -> (usize, usize) {
        let holds = self.rows.iter().filter(|row| row.holds()).count();
        let unknown = self.rows.iter().filter(|row| row.stamp.quality == crate::clock::UNKNOWN).count();
        (holds * 1000 / self.rows.len().max(1), unknown)
    }
}
