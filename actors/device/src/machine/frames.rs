//! Frames and hellos: the device that speaks our own protocol.

use super::epochs::Known;
use super::types::{Channel, Counts, Decision, Effect, Event, Message, Verdict};
use super::{Device, letter};
use crate::ack::{CREDIT, LEVEL_LOCAL};
use crate::alert::stream_bit;
use crate::dedup::{Place, WINDOW};
use crate::entry::{Body, DeadLetter, Entries, Entry, Loss, LossReason, Reason, Records, Run, Runs, Stamps};
use crate::hello::{Hello, HelloAck};
use crate::payload::{self, FrameHeader, LAST_FRAME, PayloadFormat, Refusal};
use crate::schema::Catalog;
use crate::seq::Epoch;
use crate::topic::Leaf;

impl Device {
    /// Decides about a frame. All of it is taken, or none: a frame that reaches beyond the window is sent again.
    pub(super) fn frame(&mut self, message: Message<'_>, catalog: &Catalog) -> Verdict {
        let (header, records) = match payload::validate_frame(message.payload, catalog) {
            Ok((header, records)) => (header, records),
            Err(refusal) => return self.bad_frame(message, refusal),
        };
        self.acks.frame(header.send_time, message.received);
        let mut span = None;
        let quarantine = match records {
            Ok(times) => {
                span = Some(times);
                None
            }
            Err(refusal) if matches!(refusal.reason, Reason::UnknownSchema | Reason::SchemaMismatch) => Some(refusal),
            Err(refusal) => return self.bad_frame(message, refusal),
        };
        let epoch = Epoch(header.epoch);
        let mut effects = Vec::new();
        match self.epochs.find(epoch) {
            Known::Open(_) => {}
            Known::Closed(at) => {
                if let Some(verdict) = self.covered(at, &header) {
                    return verdict;
                }
                self.epochs.open(epoch, 0);
                effects.push(Effect::Event(Event::LateEpoch { epoch }));
            }
            Known::Never if self.epochs.storm(message.received) => {
                let text =
                    format!("the device opened too many epochs today, {} is refused: look why it restarts", epoch.0);
                let mut verdict = self.nack(&header, Refusal::new(Reason::EpochStorm, text));
                verdict.effects.push(Effect::Event(Event::EpochStorm { epoch }));
                return verdict;
            }
            Known::Never => self.epochs.open(epoch, 0),
        }
        let mut verdict = self.number(message, &header, quarantine, effects);
        if let Some(span) = span {
            self.note_frame(&mut verdict.entries, &header, span, message.received);
        }
        verdict.streams = catalog.numbered(header.schema_id, header.schema_version.major).map_or(0, stream_bit);
        if verdict.entries.is_empty() {
            self.epochs.forget_unused(epoch);
        }
        verdict
    }

    /// A frame of a closed epoch that brings nothing new.
    fn covered(&mut self, at: usize, header: &FrameHeader) -> Option<Verdict> {
        let closed = self.epochs.closed.get_mut(at)?;
        let records = u64::from(header.records);
        let cum = closed.state.cum();
        if header.losses.iter().any(|loss| loss.to > cum) || (records > 0 && header.seq + records - 1 > cum) {
            return None;
        }
        closed.state.count_duplicates(records);
        self.acks.news(closed.epoch, records);
        let counts = Counts { received: records, duplicate: records, ..Counts::default() };
        Some(Verdict {
            entries: Entries::new(),
            decision: Decision::Duplicate,
            effects: Vec::new(),
            counts,
            streams: 0,
        })
    }

    /// Stages what is new of a frame whose epoch is open.
    fn number(
        &mut self,
        message: Message<'_>,
        header: &FrameHeader,
        quarantine: Option<Refusal>,
        mut effects: Vec<Effect>,
    ) -> Verdict {
        let epoch = Epoch(header.epoch);
        let records = u64::from(header.records);
        let mut counts = Counts { received: records, ..Counts::default() };
        let mut entries = Entries::new();
        let mut runs = Runs::new();
        let mut staged_before = 0;
        let Some(open) = self.epochs.get_mut(epoch) else {
            return self
                .nack(header, Refusal::new(Reason::Failed, "the epoch could not be opened: send the frame again"));
        };
        let state = &mut open.state;

        let mut losses = header.losses.clone();
        losses.sort_unstable_by_key(|loss| loss.from);
        let mut beyond = None;
        for loss in &losses {
            for (from, to) in state.missing(loss.from, loss.to) {
                let frontier = state.frontier();
                if from > frontier + 1 && to > frontier + WINDOW {
                    beyond = Some(to);
                    break;
                }
                state.stage(from, to);
                let body = Body::Loss(Loss { epoch, from, to, reason: loss.reason });
                entries.push(Entry { device: self.id.clone(), received: message.received, body });
            }
        }
        if records > 0 && beyond.is_none() {
            let last = header.seq + records - 1;
            if state.continues_at(header.seq) {
                state.stage(header.seq, last);
                runs.push(Run { index: 0, len: header.records, epoch, seq: header.seq });
            } else if last > state.cum() {
                if last > state.frontier() + WINDOW {
                    beyond = Some(last);
                } else {
                    for (index, seq) in (header.seq..=last).enumerate() {
                        match (state.place(seq), runs.last_mut()) {
                            (Place::New, Some(run)) if run.seq + u64::from(run.len) == seq => run.len += 1,
                            (Place::New, _) => runs.push(Run { index: index as u32, len: 1, epoch, seq }),
                            (Place::Staged, _) => staged_before += 1,
                            (Place::Durable, _) => {}
                        }
                    }
                    for run in &runs {
                        state.stage(run.seq, run.seq + u64::from(run.len) - 1);
                    }
                }
            }
        }
        if let Some(beyond) = beyond {
            for entry in &entries {
                if let Body::Loss(loss) = &entry.body {
                    state.unstage(loss.from, loss.to);
                }
            }
            let text = format!(
                "number {beyond} is more than {WINDOW} above {}, up to which all are known: send what is missing first",
                state.frontier()
            );
            return self.nack(header, Refusal::new(Reason::Window, text));
        }

        let new: u64 = runs.iter().map(|run| u64::from(run.len)).sum();
        counts.duplicate = records - new;
        state.count_duplicates(counts.duplicate);
        let ended = header.flags & LAST_FRAME != 0
            && !open.closing
            && state.frontier() == state.highest()
            && (records == 0 || state.highest() == header.seq + records - 1);
        if new + entries.len() as u64 > 0 {
            open.closing |= ended;
        }
        // What is still on its way is acknowledged with its first copy.
        if counts.duplicate > staged_before {
            self.acks.news(epoch, counts.duplicate - staged_before);
        }
        let mut decision = if staged_before > 0 { Decision::Staged } else { Decision::Duplicate };
        let mut push = |body| entries.push(Entry { device: self.id.clone(), received: message.received, body });
        match quarantine {
            Some(refusal) if new > 0 => {
                counts.dead = new;
                effects.push(letter::report(&self.id, Leaf::Telemetry, &refusal, Some(header.seq)));
                // One for each run: a letter names exactly the numbers that it alone accounts for.
                for run in &runs {
                    push(Body::DeadLetter(DeadLetter {
                        sender: String::new(),
                        topic: Leaf::Telemetry.topic(&self.id),
                        reason: refusal.reason,
                        text: refusal.text.clone(),
                        payload: message.payload.clone(),
                        accounted: Some((epoch, run.seq, run.len)),
                    }));
                }
                decision = Decision::Kept(refusal);
            }
            _ if new > 0 => {
                counts.stored = new;
                let payload = message.payload.clone();
                push(Body::Records(Records {
                    format: PayloadFormat::Frame,
                    payload,
                    runs,
                    stamps: Stamps::new(),
                    assured: true,
                    clock: None,
                }));
                decision = Decision::Commit;
            }
            _ => {}
        }
        if !entries.is_empty() {
            if ended {
                let body = Body::Closed { epoch };
                entries.push(Entry { device: self.id.clone(), received: message.received, body });
            }
            if !matches!(decision, Decision::Kept(_)) {
                decision = Decision::Commit;
            }
        }
        Verdict { entries, decision, effects, counts, streams: 0 }
    }

    /// Nothing of this frame is kept: it has to come again.
    fn nack(&mut self, header: &FrameHeader, refusal: Refusal) -> Verdict {
        self.acks.nack(Epoch(header.epoch), header.seq, refusal.reason);
        let records = u64::from(header.records);
        let counts = Counts { received: records, nacked: records, ..Counts::default() };
        Verdict {
            entries: Entries::new(),
            decision: Decision::Refused(refusal),
            effects: Vec::new(),
            counts,
            streams: 0,
        }
    }

    /// A frame that breaks the format: kept as a dead letter.
    fn bad_frame(&mut self, message: Message<'_>, refusal: Refusal) -> Verdict {
        let numbers = payload::peek_numbers(message.payload);
        if let Some((epoch, seq)) = numbers {
            self.acks.nack(Epoch(epoch), seq, refusal.reason);
        }
        letter::kept(&self.id, message, Leaf::Telemetry, refusal, numbers.map(|(_, seq)| seq), 1)
    }

    /// The first message of a session: closes epochs that the device no longer holds, and answers what is stored.
    pub(super) fn greet(&mut self, message: Message<'_>) -> Verdict {
        let hello = match Hello::decode(message.payload) {
            Ok(hello) => hello,
            Err(error) => {
                let refusal = Refusal::new(Reason::BadPayload, error.to_string());
                return letter::kept(&self.id, message, Leaf::Hello, refusal, None, 1);
            }
        };
        let mut effects = Vec::new();
        let mut entries = Entries::new();
        for open in &mut self.epochs.open {
            let held = hello.epochs.iter().any(|held| held.epoch == open.epoch);
            if held || !open.framed || open.closed || open.closing {
                continue;
            }
            open.closing = true;
            let mut lost = 0;
            for (from, to) in open.state.missing(1, open.state.highest()) {
                open.state.stage(from, to);
                lost += to - from + 1;
                let body = Body::Loss(Loss { epoch: open.epoch, from, to, reason: LossReason::StorageReset });
                entries.push(Entry { device: self.id.clone(), received: message.received, body });
            }
            let body = Body::Closed { epoch: open.epoch };
            entries.push(Entry { device: self.id.clone(), received: message.received, body });
            effects.push(Effect::Event(Event::EpochClosed { epoch: open.epoch, lost }));
        }
        if self.installs.seen(&hello.install) {
            effects.push(Effect::Event(Event::CloneSuspected));
        }
        let (dv, delta, news) = self.greeted(&hello, message.received);
        let answer = HelloAck {
            acks: hello.epochs.iter().map(|held| super::acks::epoch_ack(&self.epochs, held.epoch)).collect(),
            ack_level: LEVEL_LOCAL,
            credit: CREDIT,
            st: hello.st,
            server_rx: message.received,
            server_tx: message.received,
            session: hello.session,
            dv,
            delta,
            renew: message.channel == Channel::HelloDue,
        };
        effects.push(Effect::Publish { topic: "hello/ack".into(), payload: answer.encode(), qos: 1 });
        effects.extend(news);
        let decision = if entries.is_empty() { Decision::Duplicate } else { Decision::Commit };
        Verdict { entries, decision, effects, counts: Counts::default(), streams: 0 }
    }
}

/// The install ids that spoke under this name, as far as it takes to notice two that take turns.
#[derive(Debug, Default)]
pub(super) struct Installs {
    current: Vec<u8>,
    before: Vec<u8>,
}

impl Installs {
    /// Notes the install id of a hello; true if it came back after another one.
    fn seen(&mut self, install: &[u8]) -> bool {
        // Ids have 16 bytes; whatever is longer is not worth keeping.
        if install.is_empty() || install.len() > 64 || install == self.current {
            return false;
        }
        let back = install == self.before;
        self.before = std::mem::replace(&mut self.current, install.to_vec());
        back
    }
}
