//! The trail: who did what, and who was refused.
//!
//! Acts stand in a journal, `access/audit.journal` below the data directory. [`Audit`] takes them from anywhere and never
//! waits: a thread of its own writes what has gathered as one write with one sync. Who must not go on before an act is
//! durable waits for [`Audit::noted`].
//!
//! What strangers can cause is bounded: of refusals that are the same but for their subject ([`collapse`]) the first is
//! written at once, and those that follow as one act with their number. What does not fit into the queue is counted and
//! told by an act of its own, so the trail never claims to be whole when it is not.

mod collapse;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use device::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use tokio::sync::oneshot;

pub use collapse::count;

use crate::journal::{Hash, Journal, JournalError};

/// Acts that wait for the writer at most: a few hundred kilobytes, and seconds of a slow disk.
const QUEUE: usize = 4096;

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done.
    Ok,
    /// Whoever asked may not, or did not say who it is.
    Refused,
    /// It was allowed, and did not work.
    Failed,
}

impl Outcome {
    /// As it stands in the journal and in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// What somebody did, or was not allowed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// Who: a user, a device, or a word for those who are nobody in particular (`anonymous`, `command line`).
    pub who: String,
    /// In which role: `viewer` to `admin`, `device`, `gateway`, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// What was done or asked for, for example `shadow.set` or `mqtt.connect`.
    pub action: String,
    /// To whom or what.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, if it was refused or failed: a short code or a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
    /// Address of the other side, or `command line`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
}

/// What acts of commands that work on the files carry as `from`.
pub const COMMAND_LINE: &str = "command line";

impl Act {
    /// An act that was done; further fields are filled in by the caller.
    pub fn done(who: impl Into<String>, action: impl Into<String>, subject: impl Into<String>) -> Self {
        Self {
            who: who.into(),
            role: String::new(),
            action: action.into(),
            subject: subject.into(),
            outcome: Outcome::Ok,
            reason: String::new(),
            detail: Value::Null,
            from: String::new(),
        }
    }

    /// An act that was refused.
    pub fn refused(
        who: impl Into<String>,
        action: impl Into<String>,
        subject: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self { outcome: Outcome::Refused, reason: reason.into(), ..Self::done(who, action, subject) }
    }

    /// The same act in a role.
    #[must_use]
    pub fn role(self, role: impl Into<String>) -> Self {
        Self { role: role.into(), ..self }
    }

    /// The same act from an address.
    #[must_use]
    pub fn from(self, from: impl Into<String>) -> Self {
        Self { from: from.into(), ..self }
    }

    /// The same act with more to say.
    #[must_use]
    pub fn detail(self, detail: Value) -> Self {
        Self { detail, ..self }
    }
}

/// Why an act is not durable.
#[derive(Debug, Clone, Error)]
pub enum AuditError {
    /// The journal does not take it now. It is kept and written as soon as that is possible.
    #[error("the audit trail cannot be written: {0}")]
    Journal(String),
    /// Too much waits for the writer.
    #[error("the audit trail has no room for more acts now; try again later")]
    Full,
}

/// An act on its way to the journal.
struct Job {
    now: Timestamp,
    act: Act,
    told: Option<oneshot::Sender<Result<(), AuditError>>>,
}

/// What callers and the writer share.
#[derive(Debug, Default)]
struct Shared {
    /// Acts that found no room since this was told last.
    dropped: AtomicU64,
    /// All of them.
    dropped_ever: AtomicU64,
    /// Acts that are in the journal, of this process.
    written: AtomicU64,
    /// Writes that failed.
    failures: AtomicU64,
    /// Whether the last one did.
    failing: AtomicBool,
}

/// The trail of a data directory, to be added to.
#[derive(Debug)]
pub struct Audit {
    sender: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    path: PathBuf,
}

/// Where the trail of a data directory stands.
pub fn journal(data: &Path) -> PathBuf {
    data.join("access").join("audit.journal")
}

impl Audit {
    /// Opens the trail of a data directory; what stands in it is verified first.
    pub fn open(data: &Path) -> Result<Self, JournalError> {
        let path = journal(data);
        let mut file = Journal::open(&path)?;
        skim(&mut file)?;
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = sync_channel(QUEUE);
        let writer = writer::Writer::new(file, receiver, shared.clone());
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| JournalError::Io { path: path.clone(), source })?;
        Ok(Self { sender: Some(sender), thread: Some(thread), shared, path })
    }

    /// Puts an act on its way and does not wait. Refusals that repeat are counted; what finds no room is counted, too.
    pub fn note(&self, now: Timestamp, act: Act) {
        let _ = self.put(Job { now, act, told: None });
    }

    /// Puts an act on its way and waits until it is durable.
    pub async fn noted(&self, now: Timestamp, act: Act) -> Result<(), AuditError> {
        let (told, durable) = oneshot::channel();
        self.put(Job { now, act, told: Some(told) })?;
        durable.await.unwrap_or_else(|_| Err(AuditError::Journal("its writer has ended".to_owned())))
    }

    fn put(&self, job: Job) -> Result<(), AuditError> {
        let Some(sender) = &self.sender else { return Err(AuditError::Full) };
        sender.try_send(job).map_err(|error| {
            if let TrySendError::Full(_) = error {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                self.shared.dropped_ever.fetch_add(1, Ordering::Relaxed);
            }
            AuditError::Full
        })
    }

    /// Whether the last write failed: nothing should be changed that cannot be told.
    pub fn failing(&self) -> bool {
        self.shared.failing.load(Ordering::Relaxed)
    }

    /// Where it stands.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Acts of this process that are in the journal, acts that found no room, writes that failed.
    pub fn counters(&self) -> (u64, u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.shared.written), of(&self.shared.dropped_ever), of(&self.shared.failures))
    }
}

impl Drop for Audit {
    /// Writes what still waits.
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Adds one act straight to the trail of a data directory, durable when it returns: for commands that work on its files.
pub fn add(data: &Path, now: Timestamp, act: Act) -> Result<(), JournalError> {
    let mut file = Journal::open(&journal(data))?;
    skim(&mut file)?;
    file.add(now, |_| Ok::<_, JournalError>(vec![act])).map(drop)
}

/// Reads on without keeping anything.
fn skim(file: &mut Journal<Act>) -> Result<(), JournalError> {
    while !file.read_some()?.is_empty() {}
    Ok(())
}

/// What a trail is found to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Acts in it.
    pub acts: u64,
    /// Time of the first, ns since the Unix epoch.
    pub first: Option<i64>,
    /// Time of the last.
    pub last: Option<i64>,
    /// The hash of the whole chain. Kept elsewhere, it shows later that nothing up to here was changed.
    pub head: String,
}

/// Reads a whole trail and checks each line against its chain.
pub fn verify(path: &Path) -> Result<Verdict, JournalError> {
    let mut file = Journal::<Act>::read_only(path)?;
    let mut verdict = Verdict { acts: 0, first: None, last: None, head: Hash::default().to_string() };
    loop {
        let lines = file.read_some()?;
        let Some(last) = lines.last() else { return Ok(verdict) };
        verdict.first = verdict.first.or(lines.first().map(|line| line.at.0));
        verdict.last = Some(last.at.0);
        verdict.acts = last.n;
        verdict.head = last.hash.to_string();
    }
}

#[cfg(test)]
mod tests;
