//! The device as a pure state machine: `admit` decides, `apply` makes durable what was decided, `tick` does what
//! time asks for.
//!
//! `admit` touches only what is in flight; everything durable changes in `apply` alone, so recovery is `restore`
//! and `apply` over the log with the effects dropped. The exceptions are counts of recognised repetitions, which
//! cause no write and may be forgotten by a crash. Nothing here waits, reads a clock or draws a random number.

mod acks;
mod alerting;
mod clocks;
mod drawn;
mod epochs;
mod frames;
mod keeping;
mod letter;
mod plain;
mod snapshot;
mod types;

pub use alerting::Watch;
pub use types::{Channel, Counts, Decision, Effect, EpochLedger, Event, Message, Verdict};

use std::sync::Arc;

use crate::alert::Alerts;
use crate::dedup::{Account, EpochState};
use crate::entry::{Body, Entry, Loss, LossReason, Records};
use crate::id::DeviceId;
use crate::payload::{self, PayloadFormat};
use crate::schema::Catalog;
use crate::seq::{Epoch, Position};
use crate::shadow::ShadowRules;
use crate::time::Timestamp;
use crate::topic::Leaf;
use acks::Acks;
use drawn::Numbering;
use epochs::Epochs;
use frames::Installs;
use keeping::Keeping;
use plain::SessionNumbers;

/// Why a snapshot cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Written by a newer engine.
    #[error("device snapshot version {found} is newer than this engine's {known}: run the newer engine")]
    Newer {
        /// Its version.
        found: u8,
        /// The newest version this engine knows.
        known: u8,
    },
    /// The bytes are not a snapshot.
    #[error("device snapshot is damaged at byte {at}: expected {what}")]
    Damaged {
        /// Where.
        at: usize,
        /// What was expected there.
        what: &'static str,
    },
}

/// One device.
#[derive(Debug)]
pub struct Device {
    id: DeviceId,
    as_of: Position,
    /// The latest time this device has heard of.
    now: Timestamp,
    epochs: Epochs,
    numbering: Numbering,
    sessions: Vec<SessionNumbers>,
    /// Durable records that the engine numbered itself.
    unnumbered: u64,
    /// The last number refused for being too far ahead: if the client goes on from there, it has really moved.
    far: Option<(Epoch, u64)>,
    acks: Acks,
    installs: Installs,
    /// Entries admitted and not yet applied.
    in_flight: usize,
    /// Where its alerts stand; `None`: there never were any.
    alerts: Option<Box<Alerts>>,
    /// Its shadows and commands; `None`: there never were any.
    keeping: Option<Box<Keeping>>,
    /// Who wins where both sides of a shadow have changed.
    shadow_rules: Arc<ShadowRules>,
    /// The session it has greeted with last: reports of others are too late.
    session: Option<u64>,
    /// What is known of its clocks.
    time: clocks::Time,
}

impl Device {
    /// A device that was never seen.
    pub fn new(id: DeviceId) -> Self {
        Self {
            id,
            as_of: Position(0),
            now: Timestamp(i64::MIN),
            epochs: Epochs::default(),
            numbering: Numbering::default(),
            sessions: Vec::new(),
            unnumbered: 0,
            far: None,
            acks: Acks::default(),
            installs: Installs::default(),
            in_flight: 0,
            alerts: None,
            keeping: None,
            shadow_rules: Arc::default(),
            session: None,
            time: clocks::Time::default(),
        }
    }

    /// Whose state this is.
    pub fn id(&self) -> &DeviceId {
        &self.id
    }

    /// Whether anything durable is known of it.
    pub fn is_known(&self) -> bool {
        self.unnumbered > 0
            || self.alerts.is_some()
            || self.keeping.is_some()
            || !self.epochs.closed.is_empty()
            || self.epochs.open.iter().any(|open| open.durable)
    }

    /// The log position up to which entries are in this state.
    pub fn as_of(&self) -> Position {
        self.as_of
    }

    /// Decides about a message. Touches only what is in flight; `random` gives 64 random bits a call.
    ///
    /// The entries of the verdict belong into one log record, in their order, behind those of earlier verdicts.
    pub fn admit(&mut self, message: Message<'_>, catalog: &Catalog, random: &mut dyn FnMut() -> u64) -> Verdict {
        self.now = self.now.max(message.received);
        let mut verdict = match message.channel {
            Channel::Hello | Channel::HelloDue if message.payload.is_empty() => {
                let refusal = payload::Refusal::new(crate::entry::Reason::Empty, "the hello is empty");
                letter::refused(&self.id, Leaf::Hello, refusal)
            }
            Channel::Hello | Channel::HelloDue => self.greet(message),
            Channel::Telemetry => match payload::detect(message.payload, message.format) {
                Ok(PayloadFormat::Frame) => self.frame(message, catalog),
                Ok(format) => self.plain(message, format, catalog, random),
                Err(refusal) if message.payload.is_empty() => letter::refused(&self.id, Leaf::Telemetry, refusal),
                Err(refusal) => letter::kept(&self.id, message, Leaf::Telemetry, refusal, None, 1),
            },
        };
        if !verdict.entries.is_empty() {
            self.make_room(message.received, &mut verdict);
            self.in_flight += verdict.entries.len();
        }
        self.acks.flush(self.now, &self.epochs, &mut verdict.effects);
        verdict
    }

    /// Closes the epoch that was not used for longest, if there are too many.
    fn make_room(&mut self, received: Timestamp, verdict: &mut Verdict) {
        if self.epochs.open.len() <= epochs::MAX_OPEN {
            return;
        }
        let mut kept = self.numbering.epochs();
        kept.extend(verdict.entries.iter().flat_map(|entry| match &entry.body {
            Body::Records(records) => records.runs.iter().map(|run| run.epoch).collect(),
            Body::Loss(loss) => vec![loss.epoch],
            _ => Vec::new(),
        }));
        let Some(epoch) = self.epochs.superfluous(&kept) else {
            return;
        };
        let Some(open) = self.epochs.get_mut(epoch) else {
            return;
        };
        open.closing = true;
        for (from, to) in open.state.holes() {
            open.state.stage(from, to);
            let body = Body::Loss(Loss { epoch, from, to, reason: LossReason::Skipped });
            verdict.entries.push(Entry { device: self.id.clone(), received, body });
        }
        verdict.entries.push(Entry { device: self.id.clone(), received, body: Body::Closed { epoch } });
    }

    /// An entry of this device is durable. Nothing happens if its position is not after [`Self::as_of`].
    /// Alerts stay as they are; see [`Self::apply_under`].
    pub fn apply(&mut self, position: Position, entry: &Entry) -> Vec<Effect> {
        self.apply_under(position, entry, None)
    }

    /// As [`Self::apply`], with the alert rules that count at `position`.
    pub fn apply_under(&mut self, position: Position, entry: &Entry, watch: Option<Watch<'_>>) -> Vec<Effect> {
        if position <= self.as_of {
            return Vec::new();
        }
        if let Some(watch) = watch {
            self.alert(entry, watch);
        }
        if !matches!(entry.body, Body::Tick { .. } | Body::Acknowledge { .. } | Body::Transitions(_)) {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        self.now = self.now.max(entry.received);
        let mut effects = self.apply_note(entry);
        match &entry.body {
            Body::Records(records) if !records.assured => {
                self.unnumbered += records.runs.iter().map(|run| u64::from(run.len)).sum::<u64>();
            }
            Body::Records(records) => self.apply_records(entry, records),
            Body::Loss(loss) => {
                let account = if loss.reason == LossReason::Filtered { Account::Filtered } else { Account::Lost };
                let framed = loss.reason != LossReason::Skipped;
                self.account(entry, loss.epoch, (loss.from, loss.to), account, framed);
            }
            Body::DeadLetter(letter) => {
                if let Some((epoch, seq, records)) = letter.accounted {
                    let to = seq.saturating_add(u64::from(records)).saturating_sub(1);
                    self.account(entry, epoch, (seq, to), Account::Dead, true);
                }
            }
            Body::Closed { epoch } => {
                if let Some(open) = self.epochs.get_mut(*epoch) {
                    open.closed = true;
                    open.closing = false;
                    if open.framed {
                        self.acks.news(*epoch, 0);
                    }
                    self.epochs.compact(*epoch);
                }
            }
            Body::Tick { .. } | Body::Acknowledge { .. } => {}
            Body::Shadow(change) => effects.extend(self.apply_change(change, entry.received)),
            Body::Command(step) => effects.extend(self.apply_step(step, entry.received)),
            Body::Status(status) => self.apply_status(status),
            Body::Transitions(transitions) => {
                if let Some(alerts) = &mut self.alerts {
                    alerts.logged(transitions);
                }
                effects.extend(transitions.iter().cloned().map(|transition| Effect::Alert(Box::new(transition))));
            }
        }
        self.acks.flush(self.now, &self.epochs, &mut effects);
        effects
    }

    #[inline]
    fn apply_records(&mut self, entry: &Entry, records: &Records) {
        let framed = records.format == PayloadFormat::Frame;
        if records.stamps.is_empty() {
            for run in &records.runs {
                let to = run.seq + u64::from(run.len) - 1;
                self.account(entry, run.epoch, (run.seq, to), Account::Stored, framed);
            }
            return;
        }
        let mut stamps = records.stamps.iter();
        for run in &records.runs {
            for (seq, ts) in (run.seq..run.seq + u64::from(run.len)).zip(&mut stamps) {
                let base = seq.saturating_sub(1);
                if let Some(open) = self.epochs.applying(run.epoch, base, entry.received) {
                    if seq > 0 && seq <= open.state.tally().base {
                        open.state.apply_early();
                    } else {
                        open.state.apply(seq, seq, Account::Stored);
                    }
                    open.closed = false;
                }
                self.numbering.record(run.epoch, seq, *ts);
            }
        }
    }

    /// Numbers of an epoch are accounted for, durably.
    #[inline]
    fn account(&mut self, entry: &Entry, epoch: Epoch, (from, to): (u64, u64), account: Account, framed: bool) {
        let Some(open) = self.epochs.applying(epoch, 0, entry.received) else {
            return;
        };
        open.state.apply(from, to, account);
        open.framed |= framed;
        // What comes after an epoch was closed opens it again; a loss alone only fills it up.
        open.closed &= matches!(account, Account::Lost | Account::Filtered);
        let (framed, closed) = (open.framed, open.closed);
        if framed {
            self.acks.news(epoch, to.saturating_sub(from).saturating_add(1));
        }
        if closed {
            self.epochs.compact(epoch);
        }
    }

    /// The last entry of this position was applied (or the position holds none of this device).
    pub fn advance(&mut self, position: Position) {
        self.as_of = self.as_of.max(position);
    }

    /// It is that time: what comes out of [`Self::apply`] from now on says so.
    pub fn heard(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// Does what is due: acks that were held back, requests for what is missing.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Effect> {
        self.now = self.now.max(now);
        let mut effects = Vec::new();
        self.acks.watch(self.now, &mut self.epochs, &mut effects);
        self.acks.flush(self.now, &self.epochs, &mut effects);
        effects
    }

    /// Whether it wants ticks: an ack is owed, or there are gaps to ask for.
    pub fn owes(&self) -> bool {
        self.acks.owed() || Acks::watching(&self.epochs)
    }

    /// Whether nothing is staged and nothing owed, so that a snapshot holds all there is.
    pub fn is_quiet(&self) -> bool {
        let unlogged = self.alerts.as_ref().is_some_and(|alerts| !alerts.unlogged(0).is_empty());
        self.in_flight == 0 && !self.owes() && !unlogged
    }

    /// How many durable records the engine numbered itself, since their sender gave no numbers.
    pub fn unnumbered(&self) -> u64 {
        self.unnumbered
    }

    /// The durable account of every epoch that is known, open ones first.
    pub fn ledger(&self) -> Vec<EpochLedger> {
        let open = self.epochs.open.iter().filter(|open| open.durable);
        let open = open.map(|open| account_of(open.epoch, &open.state, open.closed));
        let closed = self.epochs.closed.iter().map(|closed| account_of(closed.epoch, &closed.state, true));
        open.chain(closed).collect()
    }
}

fn account_of(epoch: Epoch, state: &EpochState, closed: bool) -> EpochLedger {
    let tally = state.tally();
    EpochLedger {
        epoch,
        first: if state.has_zero() { 0 } else { tally.base + 1 },
        cum: state.cum(),
        stored: state.stored(),
        duplicate: state.duplicates(),
        dead: tally.dead,
        lost: tally.lost,
        filtered: tally.filtered,
        missing: state.holes(),
        closed,
    }
}
