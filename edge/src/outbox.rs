//! The durable store of records: each is numbered when it is written and kept until an ack covers it.
//!
//! Records go to append-only segments, one epoch each, by group commit: [`Outbox::push`] numbers and buffers,
//! [`Outbox::commit`] makes durable. When to commit is the caller's decision. Every opening begins a new epoch;
//! older ones keep their numbers. What is dropped, because the store is full or damaged, is declared lost under
//! its numbers. Absent: any clock, randomness (epochs and install ids come in as values) and acks themselves.

mod media;
mod meta;
mod open;
mod segment;
#[cfg(test)]
mod suite;

use device::entry::LossReason;
use device::seq::Epoch;

pub use media::{FileMedia, Media, RamMedia};
pub use meta::Lost;
pub use open::{Fresh, Recovery};
pub use segment::{MAX_FIELDS, Stored};

use crate::error::EdgeError;
use crate::ranges::RangeSet;
use crate::reading::Reading;
use meta::Meta;
use segment::Place;

/// What happens to a record when the store is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest segment is dropped and its unacknowledged numbers are declared lost.
    #[default]
    DropOldest,
    /// The writer waits until acks make room.
    Block,
    /// The new record is dropped; its number is declared lost.
    DropNew,
}

/// Sizes and policy of an outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxConfig {
    /// Bytes it may take. At least [`MIN_BYTES`].
    pub max_bytes: u64,
    /// What to do beyond them.
    pub when_full: WhenFull,
    /// Size at which a segment is finished; held to an eighth of `max_bytes`, since a segment is what is dropped.
    pub segment_bytes: u64,
    /// A segment of this size whose records are all acknowledged is given up at once instead of filled further.
    pub recycle_bytes: u64,
}

/// Smallest useful outbox: eight segments that hold a largest record each.
pub const MIN_BYTES: u64 = 8 * (64 << 10);

/// What a segment counts for at least: a block of the file system. It also bounds their number.
const MIN_SEGMENT_COST: u64 = 512;

impl OutboxConfig {
    /// For a directory: 64 MiB in segments of 1 MiB.
    pub fn directory() -> Self {
        Self { max_bytes: 64 << 20, when_full: WhenFull::default(), segment_bytes: 1 << 20, recycle_bytes: 256 << 10 }
    }

    /// For memory: 8 MiB in small segments, so that thousands of clients in one process stay small.
    pub fn memory() -> Self {
        Self { max_bytes: 8 << 20, when_full: WhenFull::default(), segment_bytes: 32 << 10, recycle_bytes: 2 << 10 }
    }
}

/// One epoch in the store, as a hello describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochView {
    /// Its name.
    pub epoch: Epoch,
    /// The lowest number that still waits for an ack; `last + 1` if none does.
    pub first: u64,
    /// The highest durable (or lost) number; 0 if none was written.
    pub last: u64,
    /// Whether new records get their numbers from it.
    pub live: bool,
}

/// What became of a record that was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It has this number and is durable after the next successful commit.
    Numbered(u64),
    /// The store is full and drops new records; the number is declared lost.
    Dropped(u64),
}

#[derive(Debug)]
struct Segment {
    name: String,
    places: Vec<Place>,
    /// Where the next record goes; bytes behind it are the rest of a failed write.
    end: u64,
    /// No more records are added: it was written by an earlier process, is large enough, or a write to it failed.
    sealed: bool,
}

impl Segment {
    fn cost(&self) -> u64 {
        self.end.max(MIN_SEGMENT_COST)
    }
}

/// Everything held of one epoch.
#[derive(Debug)]
struct Held {
    epoch: Epoch,
    /// In the order they were written.
    segments: Vec<Segment>,
    /// Numbers that an ack covered.
    acked: RangeSet,
    last: u64,
}

/// The store of records. See the module.
pub struct Outbox {
    media: Box<dyn Media>,
    config: OutboxConfig,
    meta: Meta,
    /// Whether `meta` differs from what is durable.
    meta_dirty: bool,
    /// Oldest first; the live epoch is the last.
    epochs: Vec<Held>,
    next_segment: u64,
    /// Highest number given out in the live epoch, durable or not.
    assigned: u64,
    pending: Vec<u8>,
    pending_places: Vec<Place>,
    /// Names of segments that may be removed once `meta` is durable.
    doomed: Vec<String>,
    /// Losses that nobody was told of yet.
    news: Vec<Lost>,
    dropped: u64,
    /// What all segments cost together.
    held_bytes: u64,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("epochs", &self.epochs()).field("pending", &self.pending_places.len()).finish()
    }
}

impl Outbox {
    /// The id of this store, drawn when it was made.
    pub fn install(&self) -> [u8; 16] {
        self.meta.install
    }

    /// How often the store was opened, this time included.
    pub fn boots(&self) -> u64 {
        self.meta.boots
    }

    /// Whether commits wait for a device and do not belong on an async task's thread.
    pub fn blocks(&self) -> bool {
        self.media.blocks()
    }

    /// The epoch that new records are numbered in.
    pub fn live(&self) -> Epoch {
        self.epochs.last().map_or(Epoch(0), |held| held.epoch)
    }

    /// All epochs that are not drained, oldest first, the live one last.
    pub fn epochs(&self) -> Vec<EpochView> {
        let live = self.live();
        self.epochs
            .iter()
            .map(|held| EpochView {
                epoch: held.epoch,
                first: held.acked.first_gap(1, held.last).map_or(held.last + 1, |(from, _)| from),
                last: held.last,
                live: held.epoch == live,
            })
            .collect()
    }

    /// All numbers that are declared lost and not yet acknowledged as such.
    pub fn lost(&self) -> &[Lost] {
        &self.meta.lost
    }

    /// Losses since the last call. They are durable once a commit succeeded.
    pub fn take_news(&mut self) -> Vec<Lost> {
        std::mem::take(&mut self.news)
    }

    /// Numbers declared lost by this process.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Bytes held, those not yet durable included.
    pub fn bytes(&self) -> u64 {
        self.held_bytes + self.pending.len() as u64
    }

    fn recount(&mut self) {
        self.held_bytes = self.epochs.iter().flat_map(|held| &held.segments).map(Segment::cost).sum();
    }

    /// How many records wait for a commit.
    pub fn pending(&self) -> usize {
        self.pending_places.len()
    }

    /// Whether a commit has anything to do.
    pub fn is_dirty(&self) -> bool {
        self.meta_dirty || !self.pending_places.is_empty() || !self.doomed.is_empty()
    }

    /// Numbers a record and takes it; durable after the next successful [`Outbox::commit`].
    pub fn push(&mut self, reading: &Reading) -> Result<Pushed, EdgeError> {
        if reading.fields.len() > MAX_FIELDS {
            return Err(EdgeError::TooLarge { size: reading.fields.len(), limit: MAX_FIELDS });
        }
        let size = segment::size(reading) as u64;
        while self.bytes() + size > self.config.max_bytes {
            match self.config.when_full {
                WhenFull::Block => return Err(EdgeError::Full),
                WhenFull::DropOldest => {
                    // What is not durable yet cannot be dropped: then the writer has to commit first.
                    if !self.drop_oldest() {
                        return Err(EdgeError::Full);
                    }
                }
                WhenFull::DropNew => {
                    self.assigned += 1;
                    let lost = Lost {
                        epoch: self.live(),
                        from: self.assigned,
                        to: self.assigned,
                        reason: LossReason::RingFull,
                    };
                    self.declare(lost);
                    return Ok(Pushed::Dropped(self.assigned));
                }
            }
        }
        Ok(Pushed::Numbered(self.number(reading)))
    }

    fn number(&mut self, reading: &Reading) -> u64 {
        self.assigned += 1;
        let seq = self.assigned;
        let offset = self.pending.len() as u32;
        segment::put(self.live(), seq, reading, &mut self.pending);
        self.pending_places.push(Place { seq, offset, len: self.pending.len() as u32 - offset });
        seq
    }

    /// Makes everything pushed so far, and every loss, durable. Returns the highest durable number of the live
    /// epoch. After an error nothing is forgotten: call it again.
    pub fn commit(&mut self) -> Result<u64, EdgeError> {
        if self.meta_dirty {
            // Losses first: a segment may go, and numbers may be skipped, only once that is written down.
            let bytes = self.meta.encode();
            self.media.replace(meta::NAME, &bytes).map_err(storage("write its state"))?;
            self.meta_dirty = false;
        }
        while let Some(name) = self.doomed.last() {
            self.media.remove(name).map_err(storage("remove a segment"))?;
            self.doomed.pop();
        }
        if !self.pending_places.is_empty() {
            let written = self.write_pending();
            self.recount();
            written?;
        }
        let assigned = self.assigned;
        let Some(live) = self.epochs.last_mut() else { return Ok(0) };
        live.last = assigned;
        Ok(assigned)
    }

    fn write_pending(&mut self) -> Result<(), EdgeError> {
        let Some(live) = self.epochs.last_mut() else { return Ok(()) };
        let limit = self.config.segment_bytes.min(self.config.max_bytes / 8);
        if let Some(segment) = live.segments.last_mut().filter(|segment| segment.end >= limit) {
            segment.sealed = true;
        }
        if live.segments.last().is_none_or(|segment| segment.sealed) {
            let name = format!("{:016x}.seg", self.next_segment);
            self.next_segment += 1;
            self.media.create(&name, &segment::header(live.epoch)).map_err(storage("make a segment"))?;
            live.segments.push(Segment { name, places: Vec::new(), end: segment::HEADER as u64, sealed: false });
        }
        let Some(segment) = live.segments.last_mut() else { return Ok(()) };
        let written = self
            .media
            .write(&segment.name, segment.end, &self.pending)
            .and_then(|()| self.media.sync(&segment.name))
            .map_err(storage("write records"));
        if let Err(error) = written {
            // After a failed sync nobody knows what the disk holds. The same records go to a new segment; the
            // copy that may be in this one is recognised by its numbers.
            segment.sealed = true;
            return Err(error);
        }
        let base = segment.end as u32;
        segment.places.extend(self.pending_places.drain(..).map(|p| Place { offset: p.offset + base, ..p }));
        segment.end += self.pending.len() as u64;
        self.pending.clear();
        // A burst must not leave its buffer behind in each of a thousand clients.
        self.pending.shrink_to(16 << 10);
        Ok(())
    }

    /// Up to `count` durable records of an epoch with numbers in `first..=last`, ascending. Numbers that are not
    /// held are passed over; a record that turns out to be damaged is declared lost.
    pub fn read(&mut self, epoch: Epoch, first: u64, last: u64, count: usize) -> Result<Vec<Stored>, EdgeError> {
        let mut found = Vec::new();
        let mut damaged = Vec::new();
        let Some(held) = self.epochs.iter().find(|held| held.epoch == epoch) else { return Ok(found) };
        for segment in &held.segments {
            let begin = segment.places.partition_point(|place| place.seq < first);
            let end = segment.places.partition_point(|place| place.seq <= last);
            let places = segment.places.get(begin..end).unwrap_or_default();
            let places = places.get(..places.len().min(count - found.len())).unwrap_or_default();
            let (Some(from), Some(to)) = (places.first(), places.last()) else { continue };
            let len = (to.offset + to.len - from.offset) as usize;
            let bytes = self.media.read(&segment.name, u64::from(from.offset), len).map_err(storage("read records"))?;
            for place in places {
                let at = (place.offset - from.offset) as usize;
                match bytes.get(at..).and_then(|bytes| segment::take(epoch, bytes)) {
                    Some((stored, _)) if stored.seq == place.seq => found.push(stored),
                    _ => damaged.push(place.seq),
                }
            }
        }
        for seq in damaged {
            self.declare(Lost { epoch, from: seq, to: seq, reason: LossReason::StorageCorrupt });
        }
        Ok(found)
    }

    /// An ack covers these numbers: everything up to `cum`, and the ranges (both ends inclusive).
    pub fn forget(&mut self, epoch: Epoch, cum: u64, ranges: &[(u64, u64)]) -> Result<(), EdgeError> {
        let live = self.live();
        let Some(at) = self.epochs.iter().position(|held| held.epoch == epoch) else { return Ok(()) };
        let Some(held) = self.epochs.get_mut(at) else { return Ok(()) };
        // What lies beyond our own last number is not ours (see `fork`), and a later record must not be taken
        // for acknowledged.
        let last = held.last;
        held.acked.insert(1, cum.min(last));
        for (from, to) in ranges {
            held.acked.insert(*from, (*to).min(last));
        }
        let before = self.meta.lost.len();
        self.meta.lost.retain(|lost| lost.epoch != epoch || !held.acked.covers(lost.from, lost.to));
        self.meta_dirty |= self.meta.lost.len() != before;
        let recycle = self.config.recycle_bytes;
        let mut done = Vec::new();
        // Only from the front: then a hole in the middle is always damage, never something that was acknowledged.
        while let Some(segment) = held.segments.first() {
            let open = epoch == live && !segment.sealed && segment.end < recycle;
            let covered = segment.places.iter().all(|place| held.acked.contains(place.seq));
            if open || !covered {
                break;
            }
            done.push(held.segments.remove(0).name);
        }
        if epoch != live && held.segments.is_empty() && !self.meta.lost.iter().any(|lost| lost.epoch == epoch) {
            self.epochs.remove(at);
        }
        self.recount();
        for name in done {
            self.media.remove(&name).map_err(storage("remove a segment"))?;
        }
        Ok(())
    }

    /// The engine knows higher numbers of the epoch `old` than were ever written here: this store is a copy of an
    /// older state. Everything unacknowledged is written again under `fresh`, which becomes the live epoch.
    /// After an error: call it again with the same `old`; what was moved stays moved.
    pub fn fork(&mut self, old: Epoch, fresh: Epoch) -> Result<(), EdgeError> {
        self.commit()?;
        if self.live() == old {
            self.begin(fresh)?;
        }
        let Some(last) = self.epochs.iter().find(|held| held.epoch == old).map(|held| held.last) else {
            return Ok(());
        };
        let mut next = 1;
        while next <= last {
            let records = self.read(old, next, last, 256)?;
            let Some(end) = records.last().map(|stored| stored.seq) else { break };
            for stored in records {
                let acked = self.epochs.iter().any(|held| held.epoch == old && held.acked.contains(stored.seq));
                if !acked {
                    self.number(&stored.reading);
                }
            }
            self.commit()?;
            self.forget(old, end, &[])?;
            next = end + 1;
        }
        // Losses under the old numbers cannot be told from those of the other timeline; only the records matter.
        self.meta.lost.retain(|lost| lost.epoch != old);
        self.meta_dirty = true;
        self.forget(old, last, &[])?;
        self.commit().map(drop)
    }

    /// Declares numbers lost for a reason of the caller (for example: the engine asks for what is long gone).
    pub fn declare(&mut self, lost: Lost) {
        self.dropped += lost.to - lost.from + 1;
        self.news.push(lost);
        self.meta_dirty = true;
        let extended = self.meta.lost.iter_mut().rev().find(|old| {
            old.epoch == lost.epoch && old.reason == lost.reason && old.to.checked_add(1) == Some(lost.from)
        });
        match extended {
            Some(old) => old.to = lost.to,
            None => self.meta.lost.push(lost),
        }
    }

    /// Drops the oldest segment; its unacknowledged records are declared lost. False: there is none to drop.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.epochs.iter_mut().filter(|held| !held.segments.is_empty()).min_by(|a, b| {
            let name = |held: &&mut Held| held.segments.first().map(|segment| segment.name.clone());
            name(a).cmp(&name(b))
        });
        let Some(held) = oldest else { return false };
        let segment = held.segments.remove(0);
        let mut gone = RangeSet::new();
        for place in &segment.places {
            if !held.acked.contains(place.seq) {
                gone.insert(place.seq, place.seq);
            }
        }
        let epoch = held.epoch;
        self.doomed.push(segment.name);
        self.recount();
        for (from, to) in gone.iter() {
            self.declare(Lost { epoch, from, to, reason: LossReason::RingFull });
        }
        true
    }
}

fn storage(doing: &'static str) -> impl FnOnce(std::io::Error) -> EdgeError {
    move |source| EdgeError::Storage { doing, source }
}
