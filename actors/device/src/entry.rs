//! What the shard log holds of devices: entries, gathered into one record per group commit.
//!
//! An entry is the outcome of [`crate::machine::Device::admit`]: the payload as it came plus what was decided
//! about it (which of its records are new, under which numbers, at what time it was received). Everything
//! behind the log is a function of these records alone.

mod codec;

use bytes::Bytes;
use smallvec::SmallVec;

pub use codec::DecodeError;

use crate::alert::{Ack, IncidentId, Transition};
use crate::clock::Note;
use crate::command::Step;
use crate::id::{DeviceId, ShardId};
use crate::payload::PayloadFormat;
use crate::seq::{Barrier, Epoch};
use crate::shadow::Change;
use crate::status::Status;
use crate::time::Timestamp;

/// One decision about one message of one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Whose it is. A dead letter may come from a name that is no device id; it is kept as text in the body.
    pub device: DeviceId,
    /// When the engine received the message: `ts_ingest` of its rows.
    pub received: Timestamp,
    /// What happened.
    pub body: Body,
}

/// What an [`Entry`] says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Records that become rows.
    Records(Records),
    /// Sequence numbers that the device declared lost, or that the engine gave up waiting for.
    Loss(Loss),
    /// A payload that could not become rows.
    DeadLetter(DeadLetter),
    /// An epoch that the device no longer holds: no more resends will come.
    Closed {
        /// Which epoch.
        epoch: Epoch,
    },
    /// Time has passed for the alerts of the device: the time of the entry.
    Tick {
        /// The engine could hear nothing before this time.
        floor: Timestamp,
    },
    /// Somebody takes care of an incident.
    Acknowledge {
        /// Which.
        incident: IncidentId,
        /// Who, and until when; `None`: nobody any more.
        ack: Option<Ack>,
    },
    /// What the alerts of the device did because of earlier entries; never empty.
    Transitions(Vec<Transition>),
    /// A shadow of the device has changed.
    Shadow(Box<Change>),
    /// A command to the device was asked for, or stands elsewhere now.
    Command(Step),
    /// The device has come, or has gone.
    Status(Status),
}

/// A payload and which of its records were admitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Records {
    /// How to read the payload.
    pub format: PayloadFormat,
    /// The payload as it was received.
    pub payload: Bytes,
    /// The admitted records, by index in the payload, ascending; never empty.
    pub runs: Runs,
    /// The device's own times of the admitted records, in the order of `runs`, where an epoch was drawn by the
    /// engine for a client that sends `seq` and `ts` alone: they tell a repetition from a restarted numbering.
    /// Empty for everything else.
    pub stamps: Stamps,
    /// False when the device gave no numbers, so that a repeat cannot be told from a new reading.
    pub assured: bool,
    /// How the times of the records follow from the device's own; `None`: as [`crate::clock::stamp`] says.
    pub clock: Option<Box<Note>>,
}

/// Most payloads are one run: it needs no memory of its own.
pub type Runs = SmallVec<[Run; 1]>;
/// Most plain payloads are one record.
pub type Stamps = SmallVec<[Timestamp; 1]>;
/// Most messages become one entry.
pub type Entries = SmallVec<[Entry; 1]>;

/// Consecutive records of a payload under consecutive numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index of the first record in the payload.
    pub index: u32,
    /// How many records.
    pub len: u32,
    /// Their epoch.
    pub epoch: Epoch,
    /// Sequence number of the first.
    pub seq: u64,
}

/// A declared loss, `from` and `to` inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Epoch of the numbers.
    pub epoch: Epoch,
    /// First lost number.
    pub from: u64,
    /// Last lost number.
    pub to: u64,
    /// Why.
    pub reason: LossReason,
}

/// Why sequence numbers will never arrive. The numbers are those of the frame's loss declarations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LossReason {
    /// The device's store was full.
    RingFull = 1,
    /// The device's store was damaged.
    StorageCorrupt = 2,
    /// Too old to be worth sending.
    Ttl = 3,
    /// Filtered on the device after it was numbered.
    Filtered = 4,
    /// The device's store was reset: it no longer holds the epoch.
    StorageReset = 5,
    /// A plain client moved on past the dedup window; the engine will not see these numbers again.
    Skipped = 6,
}

impl LossReason {
    /// The reason of that number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::RingFull,
            2 => Self::StorageCorrupt,
            3 => Self::Ttl,
            4 => Self::Filtered,
            5 => Self::StorageReset,
            6 => Self::Skipped,
            _ => return None,
        })
    }

    /// Its name in tables and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::StorageCorrupt => "storage_corrupt",
            Self::Ttl => "ttl",
            Self::Filtered => "filtered",
            Self::StorageReset => "storage_reset",
            Self::Skipped => "skipped",
        }
    }
}

/// A payload that is kept whole because it could not become rows.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The name the sender used, if it is no valid device id; else empty.
    pub sender: String,
    /// Where it was published.
    pub topic: String,
    /// Machine-readable reason.
    pub reason: Reason,
    /// What is wrong and what to do, for people.
    pub text: String,
    /// The payload as it was received.
    pub payload: Bytes,
    /// The numbers it accounts for, if it named any (a frame with an unknown schema): they are acknowledged.
    pub accounted: Option<(Epoch, u64, u32)>,
}

/// Why a message, or part of one, was refused. `as_str` is what stands in acks, errors, tables and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Not a frame, JSON or CBOR.
    BadPayload = 1,
    /// A frame that breaks the frame format.
    BadFrame = 2,
    /// Larger than a frame or payload may be.
    TooLarge = 3,
    /// No bytes at all.
    Empty = 4,
    /// The schema name or number is not declared.
    UnknownSchema = 5,
    /// A value does not fit its declared type.
    SchemaMismatch = 6,
    /// Sequence number too far ahead of what is accounted for.
    Window = 7,
    /// The topic is not one that takes messages.
    BadTopic = 8,
    /// The device id in the topic is not valid.
    BadDevice = 9,
    /// The device's state machine failed on this payload.
    Failed = 10,
    /// A reserved key (`ts`, `seq`, `epoch`, `schema`) has a value it cannot have.
    BadField = 11,
    /// More new epochs than a device may open in a day.
    EpochStorm = 12,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::BadPayload,
        Self::BadFrame,
        Self::TooLarge,
        Self::Empty,
        Self::UnknownSchema,
        Self::SchemaMismatch,
        Self::Window,
        Self::BadTopic,
        Self::BadDevice,
        Self::Failed,
        Self::BadField,
        Self::EpochStorm,
    ];

    /// The reason of that number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The reason of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Its name in acks, errors, tables and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadPayload => "bad_payload",
            Self::BadFrame => "bad_frame",
            Self::TooLarge => "too_large",
            Self::Empty => "empty",
            Self::UnknownSchema => "unknown_schema",
            Self::SchemaMismatch => "schema_mismatch",
            Self::Window => "window",
            Self::BadTopic => "bad_topic",
            Self::BadDevice => "bad_device",
            Self::Failed => "failed",
            Self::BadField => "bad_field",
            Self::EpochStorm => "epoch_storm",
        }
    }
}

/// States of groups that a shard gives to the shard that merges them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Whose rows these are of.
    pub shard: ShardId,
    /// Rises with each that this shard gives: one that comes twice is known by it.
    pub number: u64,
    /// The states; whoever runs pipelines knows how to read them.
    pub state: Bytes,
}

/// One record of the shard log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogRecord {
    /// The log's own time: never before that of the record ahead of it.
    pub time: Timestamp,
    /// What it holds.
    pub body: LogBody,
}

/// What a [`LogRecord`] holds.
#[derive(Debug, Clone, PartialEq)]
pub enum LogBody {
    /// One group commit.
    Batch(Vec<Entry>),
    /// What a shard contributes to a pipeline whose groups have rows of several shards.
    Partial(Partial),
    /// A border that checkpoints and files are named by.
    Barrier {
        /// Its number.
        barrier: Barrier,
        /// Whether files are cut here.
        cut: bool,
        /// The version of the pipeline project that the records since the last barrier belong to. A barrier that
        /// names another one than the barrier before it has no records between, unless the engine has started again.
        catalog: u64,
    },
}
