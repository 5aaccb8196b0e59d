//! What goes into the device's state machine and what comes out of it.

use std::borrow::Cow;

use bytes::Bytes;

use crate::alert::Transition;
use crate::clock::{Change, ChangeKind};
use crate::entry::Entries;
use crate::payload::{PayloadFormat, Refusal};
use crate::seq::Epoch;
use crate::time::Timestamp;

/// Which of its inbound topics a message came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// `devices/{id}/telemetry`
    Telemetry,
    /// `devices/{id}/hello`
    Hello,
    /// The same, over a connection whose certificate is due to be renewed.
    HelloDue,
}

/// One message of the device.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Which topic.
    pub channel: Channel,
    /// The payload, as received.
    pub payload: &'a Bytes,
    /// The format that the sender declared, if it did.
    pub format: Option<PayloadFormat>,
    /// When the engine read it.
    pub received: Timestamp,
    /// The connection it came by: numbers that the engine draws for records without any belong to it.
    pub session: u64,
}

/// What [`super::Device::admit`] decided about a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What has to become durable, in this order and in one log record; empty unless the decision is
    /// [`Decision::Commit`] or [`Decision::Kept`].
    pub entries: Entries,
    /// What the sender is told, and when.
    pub decision: Decision,
    /// What to do right now, before anything is durable.
    pub effects: Vec<Effect>,
    /// How many records went which way.
    pub counts: Counts,
    /// Streams that its records belong to; see [`crate::alert::stream_bit`].
    pub streams: u64,
}

/// What the sender of a message is told, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Reply "stored" once the entries are durable.
    Commit,
    /// The payload becomes a dead letter: reply "refused, but kept" once the entries are durable.
    Kept(Refusal),
    /// Everything in it is durable already (or, for a hello, nothing needs to be): reply "stored" now.
    Duplicate,
    /// It repeats records that are still being committed: reply "stored" once everything staged before it is durable.
    Staged,
    /// Reply "refused" now; nothing of it is kept.
    Refused(Refusal),
}

/// How many records of a message went which way. `received` is always the sum of the others; a payload whose
/// records cannot be counted counts as one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records in the message.
    pub received: u64,
    /// Records that became entries.
    pub stored: u64,
    /// Records that were accounted for before.
    pub duplicate: u64,
    /// Records refused without being kept.
    pub nacked: u64,
    /// Records kept in dead letters.
    pub dead: u64,
}

/// What the device wants done; none of it is needed for correctness after a crash.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Publish to the device's own topic `devices/{id}/{topic}`.
    Publish {
        /// What stands behind `devices/{id}/`, such as `ack`.
        topic: Cow<'static, str>,
        /// What to send.
        payload: Vec<u8>,
        /// MQTT quality of service.
        qos: u8,
    },
    /// Something that an operator may want to know.
    Event(Event),
    /// An alert has changed, and the log says so.
    Alert(Box<Transition>),
}

/// Something that an operator may want to know about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A plain client began to count anew; its records go on under an epoch that the engine drew.
    NumberingRestarted {
        /// The epoch that counts from now on.
        epoch: Epoch,
        /// The number it began with.
        seq: u64,
    },
    /// A record of an epoch that was closed: it is open again.
    LateEpoch {
        /// Which.
        epoch: Epoch,
    },
    /// More new epochs than a device may open in a day.
    EpochStorm {
        /// The epoch that was refused.
        epoch: Epoch,
    },
    /// The device no longer holds an epoch; numbers that never came are declared lost.
    EpochClosed {
        /// Which.
        epoch: Epoch,
        /// How many numbers were declared lost.
        lost: u64,
    },
    /// The device was asked for missing numbers as often as it may be and did not answer.
    GapUnanswered {
        /// Of which epoch.
        epoch: Epoch,
        /// First missing number.
        from: u64,
        /// Last number of that hole.
        to: u64,
    },
    /// Two stores (install ids) take turns under one device name.
    CloneSuspected,
    /// A report of a session that has ended, or one that was heard before: it counts for nothing.
    ReportTooLate,
    /// The will of an earlier session came when the next one stood: it counts for nothing.
    WillTooLate,
    /// Something happened to the device's clock; the table `_clock` has it, too.
    Clock(Change),
}

impl Event {
    /// The name of the event in logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NumberingRestarted { .. } => "numbering_restarted",
            Self::LateEpoch { .. } => "late_epoch",
            Self::EpochStorm { .. } => "epoch_storm",
            Self::EpochClosed { .. } => "epoch_closed",
            Self::GapUnanswered { .. } => "gap_unanswered",
            Self::CloneSuspected => "clone_suspected",
            Self::ReportTooLate => "report_too_late",
            Self::WillTooLate => "will_too_late",
            Self::Clock(change) => match change.kind {
                ChangeKind::Synced => "clock_synced",
                ChangeKind::Ended => "clock_ended",
                ChangeKind::Drifting => "clock_drift",
                ChangeKind::Settled => "clock_drift_cleared",
                ChangeKind::Rejected => "clock_rate_rejected",
            },
        }
    }
}

/// The durable account of one epoch. `stored + dead + lost + filtered` is the number of accounted-for numbers;
/// every number from `first` to `cum` is one of them, and so is every one above `cum` that is not in `missing`,
/// up to the highest seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochLedger {
    /// Which epoch.
    pub epoch: Epoch,
    /// The first number that belongs to it: 1, or 0 where a plain client began there, or the first number seen
    /// of an epoch that the engine drew.
    pub first: u64,
    /// Every number up to this one is accounted for.
    pub cum: u64,
    /// Rows.
    pub stored: u64,
    /// Repetitions that were recognised (counted in memory: a crash may forget some).
    pub duplicate: u64,
    /// Kept whole in dead letters under their numbers.
    pub dead: u64,
    /// Declared lost.
    pub lost: u64,
    /// Declared as filtered on the device.
    pub filtered: u64,
    /// Holes below the highest number seen, both ends inclusive.
    pub missing: Vec<(u64, u64)>,
    /// Whether the device no longer holds it.
    pub closed: bool,
}
