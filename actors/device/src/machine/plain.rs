//! Plain records: numbered by the client, by (seq, ts) alone, or not at all.
//!
//! A payload is decided as a whole: a refusal of one record takes back what was staged for the others and keeps
//! the payload as a dead letter.

use smallvec::SmallVec;

use super::drawn::{Ring, key};
use super::epochs::Known;
use super::types::{Counts, Decision, Effect, Event, Message, Verdict};
use super::{Device, letter};
use crate::alert::stream_bit;
use crate::dedup::{Place, WINDOW};
use crate::entry::{Body, Entries, Entry, Loss, LossReason, Reason, Records, Run, Runs, Stamps};
use crate::payload::{self, Head, PayloadFormat, Refusal};
use crate::schema::Catalog;
use crate::seq::{Epoch, MAX_SEQ};
use crate::time::Timestamp;
use crate::topic::Leaf;

/// Sessions whose counters are kept: a device has one connection, a gateway's children a few. A session forgotten
/// here goes on under another epoch.
const MAX_SESSIONS: usize = 8;

/// The numbers the engine gives to records of one connection that have none.
#[derive(Debug)]
pub(super) struct SessionNumbers {
    session: u64,
    epoch: Epoch,
    next: u64,
}

/// What a payload would do, as far as it was looked at.
#[derive(Default)]
struct Draft {
    entries: Entries,
    effects: Vec<Effect>,
    named: Runs,
    drawn: Runs,
    stamps: Stamps,
    /// Indexes of records that the engine numbers.
    free: SmallVec<[u32; 4]>,
    /// To be taken back on a refusal.
    staged: SmallVec<[(Epoch, u64, u64); 2]>,
    counts: Counts,
    staged_before: bool,
}

impl Draft {
    #[inline]
    fn repeat(&mut self, durable: bool) {
        self.counts.duplicate += 1;
        self.staged_before |= !durable;
    }
}

#[inline]
fn add(runs: &mut Runs, index: u32, epoch: Epoch, seq: u64) {
    match runs.last_mut() {
        Some(run) if run.epoch == epoch && run.index + run.len == index && run.seq + u64::from(run.len) == seq => {
            run.len += 1;
        }
        _ => runs.push(Run { index, len: 1, epoch, seq }),
    }
}

impl Device {
    /// Decides about a plain payload.
    pub(super) fn plain(
        &mut self,
        message: Message<'_>,
        format: PayloadFormat,
        catalog: &Catalog,
        random: &mut dyn FnMut() -> u64,
    ) -> Verdict {
        // Most payloads hold one record: its head needs no list.
        let mut first: Option<Head> = None;
        let mut rest: Vec<Head> = Vec::new();
        let mut streams = 0;
        let read = payload::validate(format, message.payload, catalog, &mut |head| {
            streams |= stream_bit(head.stream);
            match first {
                None => first = Some(*head),
                Some(_) => rest.push(*head),
            }
        });
        let records = u64::from(first.is_some()) + rest.len() as u64;
        if let Err(refusal) = read {
            return letter::kept(&self.id, message, Leaf::Telemetry, refusal, None, records.max(1));
        }
        let mut draft = Draft { counts: Counts { received: records, ..Counts::default() }, ..Draft::default() };
        for head in first.iter().chain(&rest) {
            let decided = match (head.epoch, head.seq, head.ts) {
                (Some(epoch), Some(seq), _) => self.named(&mut draft, message, format, head.index, Epoch(epoch), seq),
                (None, Some(seq), Some(ts)) => self.drawn(&mut draft, message, format, (head.index, seq, ts), random),
                _ => {
                    draft.free.push(head.index);
                    Ok(())
                }
            };
            if let Err(refusal) = decided {
                let effects = self.take_back(draft);
                let mut verdict = letter::kept(&self.id, message, Leaf::Telemetry, refusal, head.seq, records);
                verdict.effects.extend(effects);
                return verdict;
            }
        }
        self.number_free(&mut draft, message, format, random);
        self.write(&mut draft, message, format);
        self.note_plain(&mut draft.entries, first.iter().chain(&rest), message.received);
        draft.counts.stored = records - draft.counts.duplicate;
        let decision = match (draft.entries.is_empty(), draft.staged_before) {
            (false, _) => Decision::Commit,
            (true, true) => Decision::Staged,
            (true, false) => Decision::Duplicate,
        };
        Verdict { entries: draft.entries, decision, effects: draft.effects, counts: draft.counts, streams }
    }

    /// A record with an epoch and a number of its own.
    #[inline]
    fn named(
        &mut self,
        draft: &mut Draft,
        message: Message<'_>,
        format: PayloadFormat,
        index: u32,
        epoch: Epoch,
        seq: u64,
    ) -> Result<(), Refusal> {
        match self.epochs.find(epoch) {
            Known::Open(_) => {}
            Known::Closed(at) => {
                if let Some(closed) = self.epochs.closed.get_mut(at)
                    && closed.state.place(seq) == Place::Durable
                {
                    closed.state.count_duplicates(1);
                    draft.repeat(true);
                    return Ok(());
                }
                self.epochs.open(epoch, 0);
                draft.staged.push((epoch, 1, 0));
                draft.effects.push(Effect::Event(Event::LateEpoch { epoch }));
            }
            Known::Never => {
                self.admit_epoch(draft, epoch, message.received)?;
                self.epochs.open(epoch, 0);
                draft.staged.push((epoch, 1, 0));
            }
        }
        let Some(open) = self.epochs.get_mut(epoch) else {
            return Err(Refusal::new(Reason::Failed, "the epoch could not be opened"));
        };
        match open.state.place(seq) {
            Place::New => {}
            place => {
                open.state.count_duplicates(1);
                draft.repeat(place == Place::Durable);
                return Ok(());
            }
        }
        self.reach(draft, message, format, epoch, seq)?;
        add(&mut draft.named, index, epoch, seq);
        Ok(())
    }

    /// Stages a new number, sliding the window where the client has moved on: it does not send again, so a hole
    /// must not hold up what follows.
    #[inline]
    fn reach(
        &mut self,
        draft: &mut Draft,
        message: Message<'_>,
        format: PayloadFormat,
        epoch: Epoch,
        seq: u64,
    ) -> Result<(), Refusal> {
        let Some(open) = self.epochs.get_mut(epoch) else {
            return Err(Refusal::new(Reason::Failed, "the epoch could not be opened"));
        };
        if seq > 0 && !open.state.continues_at(seq) {
            let frontier = open.state.frontier();
            if seq > frontier.saturating_add(WINDOW) {
                let highest = open.state.highest();
                let holes = if seq <= highest.saturating_add(WINDOW) {
                    open.state.missing(frontier + 1, seq - WINDOW)
                } else if self.far.is_some_and(|(of, at)| of == epoch && at < seq && seq - at <= WINDOW) {
                    open.state.missing(frontier + 1, seq - 1)
                } else {
                    self.far = Some((epoch, seq));
                    let text = format!(
                        "number {seq} is more than {WINDOW} above {highest}, the highest seen: the payload is kept; \
                         if the next one follows it, the numbers between are taken as lost. Name a new `epoch` when \
                         numbering begins anew"
                    );
                    return Err(Refusal::new(Reason::Window, text));
                };
                // What was decided so far goes ahead of the losses: entries are applied in this order.
                self.write(draft, message, format);
                self.lose(draft, message.received, epoch, &holes);
            }
        }
        if let Some(open) = self.epochs.get_mut(epoch) {
            open.state.stage(seq, seq);
            draft.staged.push((epoch, seq, seq));
        }
        Ok(())
    }

    /// Declares numbers lost that the client has moved past.
    fn lose(&mut self, draft: &mut Draft, received: Timestamp, epoch: Epoch, holes: &[(u64, u64)]) {
        let Some(open) = self.epochs.get_mut(epoch) else {
            return;
        };
        for (from, to) in holes.iter().copied() {
            open.state.stage(from, to);
            draft.staged.push((epoch, from, to));
            let body = Body::Loss(Loss { epoch, from, to, reason: LossReason::Skipped });
            draft.entries.push(Entry { device: self.id.clone(), received, body });
        }
    }

    /// A record with a number and a time, but no epoch.
    fn drawn(
        &mut self,
        draft: &mut Draft,
        message: Message<'_>,
        format: PayloadFormat,
        (index, seq, ts): (u32, u64, Timestamp),
        random: &mut dyn FnMut() -> u64,
    ) -> Result<(), Refusal> {
        let time = key(ts);
        let current = self.numbering.rings.last().and_then(|ring| Some((ring, ring.highest()?)));
        let Some((ring, highest)) = current else {
            return self.begin(draft, message, (index, seq, ts), random);
        };
        let epoch = ring.epoch;
        let known = ring.recall(seq);
        let repeated = match known {
            Some((known, durable)) if known == time => Some(durable),
            _ => self.numbering.repeats_earlier(seq, time),
        };
        if let Some(durable) = repeated {
            if let Some(open) = self.epochs.get_mut(epoch) {
                open.state.count_duplicates(1);
            }
            draft.repeat(durable);
            return Ok(());
        }
        if known.is_some() {
            return self.begin(draft, message, (index, seq, ts), random);
        }
        if seq > highest {
            self.reach(draft, message, format, epoch, seq)?;
        } else if highest - seq >= WINDOW {
            if self.numbering.latest().is_none_or(|latest| time > latest) {
                return self.begin(draft, message, (index, seq, ts), random);
            }
            let text = format!(
                "number {seq} is more than {WINDOW} below {highest} and its time not after all seen, so it may be a \
                 repetition or a new count: the payload is kept. Name an `epoch` to be understood"
            );
            return Err(Refusal::new(Reason::Window, text));
        } else if let Some(open) = self.epochs.get_mut(epoch) {
            // A straggler: into its hole, or below the number the epoch began with.
            let early = seq > 0 && seq <= open.state.tally().base;
            match open.state.place(seq) {
                Place::New => {
                    open.state.stage(seq, seq);
                    draft.staged.push((epoch, seq, seq));
                }
                _ if early => {}
                place => {
                    open.state.count_duplicates(1);
                    draft.repeat(place == Place::Durable);
                    return Ok(());
                }
            }
        }
        self.stamp(draft, epoch, (index, seq, ts));
        Ok(())
    }

    /// A numbering begins: the first, or one that restarted.
    fn begin(
        &mut self,
        draft: &mut Draft,
        message: Message<'_>,
        (index, seq, ts): (u32, u64, Timestamp),
        random: &mut dyn FnMut() -> u64,
    ) -> Result<(), Refusal> {
        let epoch = self.draw(random);
        self.admit_epoch(draft, epoch, message.received)?;
        if !self.numbering.rings.is_empty() {
            draft.effects.push(Effect::Event(Event::NumberingRestarted { epoch, seq }));
        }
        self.epochs.open(epoch, seq.saturating_sub(1));
        self.numbering.rings.push(Ring::new(epoch));
        if let Some(open) = self.epochs.get_mut(epoch) {
            open.state.stage(seq, seq);
            draft.staged.push((epoch, seq, seq));
        }
        self.stamp(draft, epoch, (index, seq, ts));
        Ok(())
    }

    #[inline]
    fn stamp(&mut self, draft: &mut Draft, epoch: Epoch, (index, seq, ts): (u32, u64, Timestamp)) {
        if let Some(ring) = self.numbering.rings.last_mut() {
            ring.staged.insert(seq, key(ts));
        }
        add(&mut draft.drawn, index, epoch, seq);
        draft.stamps.push(ts);
    }

    /// Whether a new epoch may be opened now.
    fn admit_epoch(&self, draft: &mut Draft, epoch: Epoch, now: Timestamp) -> Result<(), Refusal> {
        if !self.epochs.storm(now) {
            return Ok(());
        }
        draft.effects.push(Effect::Event(Event::EpochStorm { epoch }));
        let text = "the client opened too many epochs today: the payload is kept. Keep one `epoch` until numbering \
                    begins anew";
        Err(Refusal::new(Reason::EpochStorm, text))
    }

    /// An epoch that this device does not have yet.
    fn draw(&self, random: &mut dyn FnMut() -> u64) -> Epoch {
        // The counter makes this end with any source of numbers, even one that repeats itself.
        let mut tries = 0u64;
        loop {
            let epoch = Epoch(random().wrapping_add(tries) & MAX_SEQ);
            if epoch.0 != 0 && matches!(self.epochs.find(epoch), Known::Never) {
                return epoch;
            }
            tries += 1;
        }
    }

    /// Numbers the records that came without.
    fn number_free(
        &mut self,
        draft: &mut Draft,
        message: Message<'_>,
        format: PayloadFormat,
        random: &mut dyn FnMut() -> u64,
    ) {
        if draft.free.is_empty() {
            return;
        }
        let at = self.sessions.iter().position(|numbers| numbers.session == message.session);
        let mut numbers = match at {
            Some(at) => self.sessions.remove(at),
            None => SessionNumbers { session: message.session, epoch: self.draw(random), next: 1 },
        };
        let mut runs = Runs::new();
        for index in &draft.free {
            add(&mut runs, *index, numbers.epoch, numbers.next);
            numbers.next += 1;
        }
        if self.sessions.len() == MAX_SESSIONS {
            self.sessions.remove(0);
        }
        self.sessions.push(numbers);
        let records = Records {
            format,
            payload: message.payload.clone(),
            runs,
            stamps: Stamps::new(),
            assured: false,
            clock: None,
        };
        let body = Body::Records(records);
        draft.entries.push(Entry { device: self.id.clone(), received: message.received, body });
    }

    /// Makes entries of what was decided since the last call.
    fn write(&self, draft: &mut Draft, message: Message<'_>, format: PayloadFormat) {
        let stamps = std::mem::take(&mut draft.stamps);
        for (runs, stamps) in
            [(std::mem::take(&mut draft.named), Stamps::new()), (std::mem::take(&mut draft.drawn), stamps)]
        {
            if !runs.is_empty() {
                let payload = message.payload.clone();
                let body = Body::Records(Records { format, payload, runs, stamps, assured: true, clock: None });
                draft.entries.push(Entry { device: self.id.clone(), received: message.received, body });
            }
        }
    }

    /// Takes back all that a refused payload had staged; what remains are the events.
    fn take_back(&mut self, draft: Draft) -> Vec<Effect> {
        for (epoch, from, to) in draft.staged.iter().rev() {
            if let Some(open) = self.epochs.get_mut(*epoch)
                && from <= to
            {
                open.state.unstage(*from, *to);
            }
        }
        let written = draft.entries.iter().filter_map(|entry| match &entry.body {
            Body::Records(records) if !records.stamps.is_empty() => Some(&records.runs),
            _ => None,
        });
        for run in written.flatten().chain(&draft.drawn) {
            for ring in self.numbering.rings.iter_mut().filter(|ring| ring.epoch == run.epoch) {
                ring.staged.remove(run.seq..run.seq + u64::from(run.len));
            }
        }
        self.numbering.rings.retain(|ring| !ring.times.is_empty() || !ring.staged.is_empty());
        for (epoch, _, _) in &draft.staged {
            self.epochs.forget_unused(*epoch);
        }
        let storms = |effect: &Effect| matches!(effect, Effect::Event(Event::EpochStorm { .. }));
        draft.effects.into_iter().filter(storms).collect()
    }
}
