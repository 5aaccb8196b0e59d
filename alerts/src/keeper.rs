//! A desk that outlives the process: what happens is written into a log of its own before anything is sent.
//!
//! The log is a shard's log like the others, under a number that no shard has. A record holds what happened since the
//! last one, as JSON behind a byte for the version; now and then the whole desk, and then what is before it goes. What was
//! heard of the logs of shards need not be written at once: they still have it until [`Keeper::write`] has returned.

use std::sync::Arc;

use bytes::Bytes;
use device::id::ShardId;
use device::seq::Position;
use device::time::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use storage::log::{LogError, ShardLog};
use thiserror::Error;

use crate::desk::{Desk, Effect, Happening};
use crate::message::Message;
use crate::silence::{MAX_SILENCES, Silence, SilenceError, SilenceId};

/// The number of the desk's log: no shard has it.
pub const DESK: ShardId = ShardId(u16::MAX);

/// Version of the records.
const VERSION: u8 = 1;

/// How much is read at a time.
const READ: usize = 4 << 20;

/// The whole desk is written when there is so much behind the last time, and at least as much as it takes itself.
const ENOUGH: usize = 1 << 20;

/// Why a desk cannot be opened or written.
#[derive(Debug, Error)]
pub enum KeepError {
    /// The log.
    #[error("what is known of alerts and their messages cannot be written or read: {0}")]
    Log(#[from] LogError),
    /// A record says something unknown.
    #[error("record {position} of what is known of alerts is {what}")]
    Record {
        /// Which one.
        position: Position,
        /// What is wrong.
        what: String,
    },
}

/// A desk as it stands in the log.
#[cfg(test)]
pub(crate) fn whole(desk: &Desk) -> Bytes {
    Record::Desk(Box::new(desk.clone())).encode()
}

/// One record of the log.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Happened(Vec<(i64, Happening)>),
    Desk(Box<Desk>),
}

impl Record {
    fn encode(&self) -> Bytes {
        let mut bytes = vec![VERSION];
        // Texts and finite numbers always are JSON.
        bytes.extend(serde_json::to_vec(self).unwrap_or_default());
        bytes.into()
    }

    fn decode(position: Position, bytes: &[u8]) -> Result<Self, KeepError> {
        let wrong = |what: String| KeepError::Record { position, what };
        match bytes.split_first() {
            Some((&VERSION, json)) => serde_json::from_slice(json).map_err(|e| wrong(format!("damaged: {e}"))),
            Some((version, _)) if *version > VERSION => {
                Err(wrong(format!("of version {version}; this weir knows {VERSION}: run a newer one")))
            }
            _ => Err(wrong("damaged: no version".to_owned())),
        }
    }
}

/// The log's end.
struct Tail {
    position: Position,
    /// A record that may or may not stand in the log: an attempt to write it failed.
    doubtful: Option<Bytes>,
    /// Bytes behind the last whole desk.
    behind: usize,
    /// Bytes that it took.
    whole: usize,
}

struct Inner {
    desk: Desk,
    unwritten: Vec<(i64, Happening)>,
    effects: Vec<Effect>,
    /// `None`: it has to be found anew, which takes a look at all incidents.
    due: Option<Option<Timestamp>>,
    /// Number of the last message that was made.
    made: u64,
    /// Messages up to this number are written, and may be sent.
    written: u64,
}

impl Inner {
    fn happen(&mut self, now: Timestamp, happening: Happening) {
        self.effects.extend(self.desk.step(now, &happening));
        if !matches!(happening, Happening::Accepted { .. }) {
            self.due = None;
        }
        self.made = self.desk.made();
        self.unwritten.push((now.0, happening));
    }
}

/// Wakes somebody.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A desk, and the log that keeps it.
pub struct Keeper {
    log: Arc<dyn ShardLog>,
    inner: Mutex<Inner>,
    /// Held while the log is written: taken before `inner`.
    tail: Mutex<Tail>,
    wake: Mutex<Option<Wake>>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl Keeper {
    /// Reads what the log holds. Blocks.
    pub fn open(log: Arc<dyn ShardLog>) -> Result<Self, KeepError> {
        let bounds = log.bounds(DESK)?;
        let (mut desk, mut behind, mut whole) = (Desk::default(), 0, 0);
        let mut next = bounds.first;
        loop {
            let records = log.read(DESK, next, READ)?;
            let Some((last, _)) = records.last() else { break };
            next = last.next();
            for (position, bytes) in records {
                match Record::decode(position, &bytes)? {
                    Record::Desk(read) => (desk, behind, whole) = (*read, 0, bytes.len()),
                    Record::Happened(all) => {
                        behind += bytes.len();
                        for (at, happening) in all {
                            desk.step(Timestamp(at), &happening);
                        }
                    }
                }
            }
        }
        let position = bounds.last;
        let made = desk.made();
        let inner = Inner { desk, unwritten: Vec::new(), effects: Vec::new(), due: None, written: made, made };
        let tail = Tail { position, doubtful: None, behind, whole };
        Ok(Self { log, inner: Mutex::new(inner), tail: Mutex::new(tail), wake: Mutex::default() })
    }

    /// Who is woken when there is something to do.
    pub fn on_change(&self, wake: Wake) {
        *self.wake.lock() = Some(wake);
    }

    /// Something happens. It counts from now on, and outlives the process when [`Keeper::write`] has returned.
    pub fn happen(&self, now: Timestamp, happening: Happening) {
        self.inner.lock().happen(now, happening);
        self.wake();
    }

    /// A silence is wanted. See [`Keeper::happen`].
    pub fn silence(&self, now: Timestamp, silence: Silence) -> Result<SilenceId, SilenceError> {
        let id = {
            let mut inner = self.inner.lock();
            silence.check(now)?;
            if inner.desk.silences().len() >= MAX_SILENCES {
                return Err(SilenceError::TooMany);
            }
            let id = inner.desk.next_silence();
            inner.happen(now, Happening::Silence(silence));
            id
        };
        self.wake();
        Ok(id)
    }

    /// A silence is to end now; `false`: there is none. See [`Keeper::happen`].
    pub fn unsilence(&self, now: Timestamp, id: SilenceId) -> bool {
        {
            let mut inner = self.inner.lock();
            if inner.desk.silences().get(&id).is_none_or(|silence| silence.end <= now) {
                return false;
            }
            inner.happen(now, Happening::Unsilence(id));
        }
        self.wake();
        true
    }

    fn wake(&self) {
        if let Some(wake) = &*self.wake.lock() {
            wake();
        }
    }

    /// Time passes, if that does something.
    pub fn tick(&self, now: Timestamp) {
        if self.due().is_some_and(|due| due <= now) {
            self.happen(now, Happening::Tick);
        }
    }

    /// When [`Keeper::tick`] will do something.
    pub fn due(&self) -> Option<Timestamp> {
        let mut inner = self.inner.lock();
        match inner.due {
            Some(due) => due,
            None => {
                let due = inner.desk.due();
                inner.due = Some(due);
                due
            }
        }
    }

    /// Writes what has happened. Blocks. After an error the same may be tried again.
    pub fn write(&self) -> Result<(), LogError> {
        let mut tail = self.tail.lock();
        if let Some(doubtful) = tail.doubtful.take() {
            self.put(&mut tail, doubtful)?;
        }
        let (happened, made) = {
            let mut inner = self.inner.lock();
            (std::mem::take(&mut inner.unwritten), inner.made)
        };
        if !happened.is_empty() {
            let record = Record::Happened(happened).encode();
            tail.behind += record.len();
            self.put(&mut tail, record)?;
        }
        let mut inner = self.inner.lock();
        inner.written = inner.written.max(made);
        if tail.behind <= ENOUGH.max(tail.whole) || !inner.unwritten.is_empty() {
            return Ok(());
        }
        let whole = Record::Desk(Box::new(inner.desk.clone())).encode();
        drop(inner);
        let size = whole.len();
        self.put(&mut tail, whole)?;
        (tail.behind, tail.whole) = (0, size);
        if let Err(error) = self.log.truncate(DESK, Position(tail.position.0 - 1)) {
            // Only space is lost; the next time tries again.
            tracing::warn!(%error, "cannot truncate the log of the desk");
        }
        Ok(())
    }

    /// Appends. A record whose write failed is written first by the next attempt, as it is: it may stand there already.
    fn put(&self, tail: &mut Tail, record: Bytes) -> Result<(), LogError> {
        match self.log.append(DESK, tail.position.next(), &record) {
            Ok(()) => {
                tail.position = tail.position.next();
                Ok(())
            }
            Err(error) => {
                tail.doubtful = Some(record);
                Err(error)
            }
        }
    }

    /// What the desk says.
    pub fn with<T>(&self, look: impl FnOnce(&Desk) -> T) -> T {
        look(&self.inner.lock().desk)
    }

    /// The messages of a channel that may be sent, behind a number.
    pub fn outbox(&self, channel: &str, behind: u64) -> Vec<Message> {
        let inner = self.inner.lock();
        let written = inner.written;
        inner.desk.outbox(channel, behind).take_while(|message| message.number <= written).cloned().collect()
    }

    /// What somebody should hear of, once.
    pub fn effects(&self) -> Vec<Effect> {
        std::mem::take(&mut self.inner.lock().effects)
    }

    /// Whether everything that has happened is written.
    pub fn is_written(&self) -> bool {
        self.tail.lock().doubtful.is_none() && self.inner.lock().unwritten.is_empty()
    }

    /// A message that is on its way.
    pub fn message(&self, channel: &str, number: u64) -> Option<Message> {
        self.with(|desk| desk.message(channel, number).cloned())
    }
}
