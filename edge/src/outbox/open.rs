//! Opening an outbox: finding what is whole after whatever happened to the last process, and beginning an epoch.
//!
//! A torn end of the last segment was never reported durable: it is cut off silently. A hole between records
//! that are whole is damage: its numbers are declared lost.

use device::entry::LossReason;
use device::seq::Epoch;

use super::meta::{self, Meta};
use super::segment;
use super::{EpochView, Held, Lost, MIN_BYTES, Media, Outbox, OutboxConfig, Segment, storage};
use crate::error::EdgeError;
use crate::ranges::RangeSet;

/// Random values for an opening, drawn by the caller.
#[derive(Debug, Clone, Copy)]
pub struct Fresh {
    /// Name of the new epoch; held to 63 bits.
    pub epoch: u64,
    /// Id of the store, used only if it has none yet.
    pub install: [u8; 16],
}

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Epochs of earlier processes that are not drained.
    pub epochs: Vec<EpochView>,
    /// Records that wait for an ack.
    pub records: u64,
    /// Numbers declared lost because the segments that held them are damaged.
    pub damaged: Vec<Lost>,
    /// Segments of which not even the epoch could be read; they are removed.
    pub unreadable: Vec<String>,
    /// The store had no identity (it is new, or its state object is damaged).
    pub new_install: bool,
}

const SUFFIX: &str = ".seg";

impl Outbox {
    /// Opens the store on `media`, recovers what is there and begins a new epoch.
    pub fn open(media: Box<dyn Media>, config: OutboxConfig, fresh: Fresh) -> Result<(Self, Recovery), EdgeError> {
        if config.max_bytes < MIN_BYTES {
            let text = format!("an outbox of {} bytes is too small: give it at least {MIN_BYTES}", config.max_bytes);
            return Err(EdgeError::Config(text));
        }
        let mut outbox = Self {
            media,
            config,
            meta: Meta { install: fresh.install, boots: 0, lost: Vec::new() },
            meta_dirty: true,
            epochs: Vec::new(),
            next_segment: 0,
            assigned: 0,
            pending: Vec::new(),
            pending_places: Vec::new(),
            doomed: Vec::new(),
            news: Vec::new(),
            dropped: 0,
            held_bytes: 0,
        };
        let mut recovery = outbox.recover()?;
        outbox.meta.boots += 1;
        outbox.begin(Epoch(fresh.epoch & device::seq::MAX_SEQ))?;
        recovery.damaged = outbox.take_news();
        recovery.epochs = outbox.epochs().into_iter().filter(|view| !view.live).collect();
        recovery.records = outbox.epochs.iter().flat_map(|held| &held.segments).map(|s| s.places.len() as u64).sum();
        Ok((outbox, recovery))
    }

    /// Makes `epoch` the live one. Its name is durable before the first record gets a number from it.
    pub(super) fn begin(&mut self, epoch: Epoch) -> Result<(), EdgeError> {
        if let Some(segment) = self.epochs.last_mut().and_then(|held| held.segments.last_mut()) {
            segment.sealed = true;
        }
        let name = format!("{:016x}{SUFFIX}", self.next_segment);
        self.next_segment += 1;
        self.media.create(&name, &segment::header(epoch)).map_err(storage("make a segment"))?;
        let segment = Segment { name, places: Vec::new(), end: segment::HEADER as u64, sealed: false };
        self.epochs.push(Held { epoch, segments: vec![segment], acked: RangeSet::new(), last: 0 });
        self.assigned = 0;
        self.recount();
        self.commit().map(drop)
    }

    fn recover(&mut self) -> Result<Recovery, EdgeError> {
        let mut recovery = Recovery { new_install: true, ..Recovery::default() };
        let mut names = self.media.list().map_err(storage("list the segments"))?;
        names.sort_unstable();
        if names.iter().any(|name| name == meta::NAME) {
            let bytes = self.media.read(meta::NAME, 0, usize::MAX).map_err(storage("read its state"))?;
            let version = Meta::version(&bytes).unwrap_or(0);
            if version > meta::VERSION {
                return Err(EdgeError::Newer { what: meta::NAME.to_owned(), found: version, known: meta::VERSION });
            }
            if let Some(found) = Meta::decode(&bytes) {
                self.meta = found;
                recovery.new_install = false;
            }
        }
        for name in names {
            let Some(number) = name.strip_suffix(SUFFIX).and_then(|hex| u64::from_str_radix(hex, 16).ok()) else {
                continue;
            };
            self.next_segment = self.next_segment.max(number + 1);
            self.recover_segment(name, &mut recovery)?;
        }
        // An epoch may have nothing left but losses that are not acknowledged yet.
        for lost in &self.meta.lost {
            if !self.epochs.iter().any(|held| held.epoch == lost.epoch) {
                self.epochs.push(Held {
                    epoch: lost.epoch,
                    segments: Vec::new(),
                    acked: RangeSet::new(),
                    last: lost.to,
                });
            }
        }
        // What is declared lost stays lost, even if the segment came back because its removal was not durable.
        for lost in &self.meta.lost {
            for held in self.epochs.iter_mut().filter(|held| held.epoch == lost.epoch) {
                for segment in &mut held.segments {
                    segment.places.retain(|place| place.seq < lost.from || place.seq > lost.to);
                }
            }
        }
        for held in &mut self.epochs {
            let lost = self.meta.lost.iter().filter(|lost| lost.epoch == held.epoch).map(|lost| lost.to).max();
            held.last = held.last.max(lost.unwrap_or(0));
        }
        self.declare_holes();
        Ok(recovery)
    }

    fn recover_segment(&mut self, name: String, recovery: &mut Recovery) -> Result<(), EdgeError> {
        let bytes = self.media.read(&name, 0, usize::MAX).map_err(storage("read a segment"))?;
        // With a damaged header the records still say whether they belong to the epoch of the segment before.
        let epoch = match segment::read_header(&bytes) {
            Some((found, _)) if found > segment::VERSION => {
                return Err(EdgeError::Newer { what: name, found, known: segment::VERSION });
            }
            Some((_, epoch)) => Some(epoch),
            None => self.epochs.last().map(|held| held.epoch),
        };
        let (mut places, end) = epoch.map(|epoch| segment::scan(epoch, &bytes)).unwrap_or_default();
        let held = self.epochs.iter_mut().find(|held| Some(held.epoch) == epoch);
        // Records that were written once more after a failed sync are here already.
        let known = held.as_ref().map_or(0, |held| held.last);
        places.retain(|place| place.seq > known);
        let Some((epoch, last)) = epoch.zip(places.last().map(|place| place.seq)) else {
            // A header alone is what a process leaves behind that wrote nothing more.
            if bytes.len() > segment::HEADER && known == 0 {
                recovery.unreadable.push(name.clone());
            }
            return self.media.remove(&name).map_err(storage("remove an empty segment"));
        };
        let segment = Segment { name, places, end: end as u64, sealed: true };
        match held {
            Some(held) => {
                held.segments.push(segment);
                held.last = last;
            }
            None => self.epochs.push(Held { epoch, segments: vec![segment], acked: RangeSet::new(), last }),
        }
        Ok(())
    }

    /// Numbers between records that are there, but neither there nor declared lost, were damaged. What lies
    /// before the first record was acknowledged and removed.
    fn declare_holes(&mut self) {
        let mut holes = Vec::new();
        for held in &mut self.epochs {
            let mut accounted = RangeSet::new();
            for place in held.segments.iter().flat_map(|segment| &segment.places) {
                accounted.insert(place.seq, place.seq);
            }
            for lost in self.meta.lost.iter().filter(|lost| lost.epoch == held.epoch) {
                accounted.insert(lost.from, lost.to);
            }
            let first = accounted.iter().next().map_or(1, |(from, _)| from);
            held.acked.insert(1, first.saturating_sub(1));
            for (from, to) in accounted.gaps(first, held.last) {
                holes.push(Lost { epoch: held.epoch, from, to, reason: LossReason::StorageCorrupt });
            }
        }
        for hole in holes {
            self.declare(hole);
        }
    }
}
