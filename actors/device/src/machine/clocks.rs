//! The clocks of the device: what admission decides about the times of records, and what durable entries tell.
//!
//! A note is decided by all that was admitted before, durable or not, and becomes durable with its entry; so what is
//! durable goes the same way, entry by entry, and a replay too.

use super::Device;
use super::types::{Effect, Event};
use crate::clock::{Change, ChangeKind, Clocks, Frame, Note, Standing};
use crate::entry::{Body, Entry};
use crate::payload::{FrameHeader, Head};
use crate::shadow::Report;
use crate::time::Timestamp;

/// What is known of the clocks.
#[derive(Debug, Default)]
pub(super) struct Time {
    /// By what is durable; `None`: nothing that is worth keeping.
    pub(super) durable: Option<Box<Clocks>>,
    /// By what is on its way, too.
    ahead: Option<Box<Clocks>>,
    /// Entries on their way that tell something new.
    under_way: usize,
}

impl Time {
    fn known(&self) -> Option<&Clocks> {
        self.ahead.as_deref().or(self.durable.as_deref())
    }

    /// Puts what was decided into the entries that hold records; what is new stands in the first of them.
    fn put(&mut self, entries: &mut [Entry], (note, next): (Note, Option<Clocks>)) {
        let mut note = Some(note);
        let mut next = next;
        for entry in entries {
            let Body::Records(records) = &mut entry.body else { continue };
            let Some(of) = note.take() else { return };
            let further = Note { pieces: of.pieces.clone(), ..Note::default() };
            records.clock = Some(Box::new(of));
            if let Some(next) = next.take() {
                self.ahead = Some(Box::new(next));
                self.under_way += 1;
            }
            note = Some(further);
        }
    }
}

impl Device {
    /// Decides the times of a frame's records.
    #[inline]
    pub(super) fn note_frame(
        &mut self,
        entries: &mut [Entry],
        header: &FrameHeader,
        span: (Timestamp, Timestamp),
        received: Timestamp,
    ) {
        if !entries.iter().any(|entry| matches!(entry.body, Body::Records(_))) {
            return;
        }
        let frame = Frame {
            wall: header.send_time,
            mono: header.mono_send,
            base: header.base_time,
            mono_base: header.mono_base,
            flags: header.flags,
            sample: header.clock,
            span,
        };
        if let Some(decided) = Clocks::frame(self.time.known(), &frame, received) {
            self.time.put(entries, decided);
        }
    }

    /// Decides the times of plain records.
    #[inline]
    pub(super) fn note_plain<'a>(
        &mut self,
        entries: &mut [Entry],
        heads: impl Iterator<Item = &'a Head>,
        received: Timestamp,
    ) {
        let Some(newest) = heads.filter_map(|head| head.ts).max() else { return };
        if let Some(decided) = Clocks::plain(self.time.known(), newest, received) {
            self.time.put(entries, decided);
        }
    }

    /// How its clock stands, by what is durable; `None`: nothing was ever measured that is worth keeping.
    pub fn clock(&self) -> Option<Standing> {
        self.time.durable.as_ref()?.standing()
    }

    /// Makes times of the device's clock, in a report about its shadow, into times of the engine's. What cannot be a time
    /// is left out.
    pub(super) fn correct(&self, report: &mut Report, received: Timestamp) {
        let known = self.time.known();
        report.times.retain_mut(|(_, at)| {
            let Some((ts, err)) = Clocks::time(known, *at, received) else { return false };
            *at = ts;
            report.times_err = report.times_err.max(err);
            true
        });
    }

    /// What a durable entry tells about the clocks.
    #[inline]
    pub(super) fn apply_note(&mut self, entry: &Entry) -> Vec<Effect> {
        let Body::Records(records) = &entry.body else { return Vec::new() };
        let Some(note) = records.clock.as_deref() else { return Vec::new() };
        if let Some(seen) = &note.seen {
            self.time.durable.get_or_insert_default().observe(seen, entry.received);
            self.time.under_way = self.time.under_way.saturating_sub(1);
            if self.time.under_way == 0 {
                self.time.ahead = None;
            }
        }
        // Each device is synced once and ends a clock at each start: that is for the table alone.
        let told = |change: &&Change| !matches!(change.kind, ChangeKind::Synced | ChangeKind::Ended);
        note.changes.iter().filter(told).map(|change| Effect::Event(Event::Clock(*change))).collect()
    }
}
