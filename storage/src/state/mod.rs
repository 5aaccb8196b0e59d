//! The state of a shard at its checkpoints: device snapshots, pipeline states, outbox. A cache of a prefix of the log.
//!
//! One database per shard: SlateDB, which nothing outside this folder knows, or [`MemoryKv`] in simulations. Each
//! change is one atomic batch that also holds the log position it stands for, and has returned only when it is
//! durable, so state and log cannot disagree. Opening fences whoever had the shard before: its next write fails with
//! [`StateError::Fenced`]. Deliberately absent: anything between checkpoints (that is the log's), and caches of rows
//! (a sleeping device is read once when it wakes).

mod indexes;
mod keys;
mod kv;
mod memory;
mod settings;
mod slate;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use device::id::{DeviceId, ShardId};
use device::seq::{Barrier, Position};
use device::time::Timestamp;
use thiserror::Error;
use tokio::sync::Mutex;

use self::keys::Parts;
pub use self::kv::{Batch, Kv};
pub use self::memory::{MemoryDisk, MemoryKv};
use self::slate::SlateKv;
use crate::store::Store;

/// Version of what is stored; raised when older engines could not read it.
const FORMAT: u32 = 1;

/// Why state could not be read or written.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another engine opened the shard. Stop, and acknowledge nothing more.
    #[error("another engine has taken over this shard: stop this one")]
    Fenced,
    /// Written by a newer engine.
    #[error(
        "the state of shard {shard} has format {found}, this weir knows up to {FORMAT}: use the newer weir that wrote it"
    )]
    Newer {
        /// Which shard.
        shard: ShardId,
        /// Its format.
        found: u32,
    },
    /// The state was closed.
    #[error("the state of this shard is closed")]
    Closed,
    /// The store failed; the same call may be repeated.
    #[error("the state cannot be written or read at the moment: {0}")]
    Unavailable(String),
    /// What is stored is damaged.
    #[error("the state is damaged: {0}; restore the shard's state folder from a copy")]
    Damaged(String),
}

/// One piece of a pipeline's state. A pipeline that is stored whole uses one part; one that stores its panes apart
/// writes only those that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelinePart {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Which piece, for instance the start of a pane.
    pub part: i64,
    /// Its new state; `None` removes it.
    pub state: Option<Bytes>,
}

/// Rows of a closed window that are final but not in a file yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbox {
    /// The barrier that closed them.
    pub barrier: Barrier,
    /// The table they go to.
    pub table: String,
    /// The rows, as Arrow IPC.
    pub ipc: Bytes,
}

/// Everything that becomes durable together at a barrier.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    /// The log up to and including this position is in here.
    pub position: Position,
    /// The barrier that stands there.
    pub barrier: Barrier,
    /// The log's time there.
    pub time: Timestamp,
    /// Snapshots of devices that changed.
    pub devices: Vec<(DeviceId, Bytes)>,
    /// Pieces of pipeline state that changed.
    pub pipelines: Vec<PipelinePart>,
    /// Pipelines that are no more: all their pieces go. Applied before `pipelines`, so a pipeline named in both is
    /// replaced as a whole.
    pub dropped_pipelines: Vec<String>,
    /// Rows that were closed since the last checkpoint.
    pub outbox: Vec<Outbox>,
    /// Counters of this shard, by name; each replaces the older value.
    pub counters: Vec<(String, u64)>,
}

/// The files of a cut are on the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutDone {
    /// The barrier up to which rows are in files.
    pub barrier: Barrier,
    /// Its position in the log.
    pub position: Position,
}

/// What a shard goes on from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Position, barrier and time of the last checkpoint.
    pub checkpoint: Option<(Position, Barrier, Timestamp)>,
    /// The last cut whose files are complete.
    pub cut: Option<CutDone>,
    /// All pieces of all pipelines, by pipeline and part.
    pub pipelines: Vec<PipelinePart>,
    /// Counters by name.
    pub counters: Vec<(String, u64)>,
}

/// The open state of one shard.
pub struct StateStore {
    db: Box<dyn Kv>,
    /// How many continuation chunks each stored value has that has any; `None` until the first use.
    parts: Mutex<Option<Parts>>,
}

impl StateStore {
    /// Opens the state of a shard, creating it if it is missing, and fences its former owner.
    pub async fn open(store: &Store, shard: ShardId) -> Result<Self, StateError> {
        Self::over(Box::new(SlateKv::open(store, shard).await?), shard).await
    }

    /// The state of a shard in a database that is open already.
    pub async fn over(db: Box<dyn Kv>, shard: ShardId) -> Result<Self, StateError> {
        let opened = Self { db, parts: Mutex::new(None) };
        match opened.db.get(keys::FORMAT).await? {
            Some(bytes) => {
                let found = keys::read_u32(&bytes)?;
                if found > FORMAT {
                    // Nothing was written yet, so closing it changes nothing.
                    opened.close().await?;
                    return Err(StateError::Newer { shard, found });
                }
            }
            None => {
                let mut batch = Batch::new();
                batch.put(keys::FORMAT, FORMAT.to_le_bytes().to_vec());
                opened.db.write(batch).await?;
            }
        }
        Ok(opened)
    }

    /// The snapshot of a device, if it has one.
    pub async fn device(&self, id: &DeviceId) -> Result<Option<Bytes>, StateError> {
        self.db.get(&keys::device(id.as_str())).await
    }

    /// Up to `limit` snapshots in the order of ids, those after `after`.
    pub async fn devices(&self, after: Option<&str>, limit: usize) -> Result<Vec<(DeviceId, Bytes)>, StateError> {
        let (from, to) = keys::devices_after(after);
        let rows = self.db.scan(from, to, limit).await?;
        rows.into_iter().map(|(key, value)| Ok((keys::read_device(&key)?, value))).collect()
    }

    /// What is to be known before the log is replayed; devices are read when they are needed.
    pub async fn load(&self) -> Result<Recovered, StateError> {
        let checkpoint = match self.db.get(keys::CHECKPOINT).await? {
            Some(bytes) => {
                let [position, barrier, time] = keys::read_u64s(&bytes)?;
                Some((Position(position), Barrier(barrier), Timestamp(time as i64)))
            }
            None => None,
        };
        let cut = match self.db.get(keys::CUT).await? {
            Some(bytes) => {
                let [barrier, position] = keys::read_u64s(&bytes)?;
                Some(CutDone { barrier: Barrier(barrier), position: Position(position) })
            }
            None => None,
        };
        let mut pipelines = Vec::new();
        let mut rows = Pages::of(keys::kind(keys::PIPELINE));
        while let Some((key, value)) = rows.next(self.db.as_ref()).await? {
            let (pipeline, part) = keys::read_pipeline(&key)?;
            pipelines.push(PipelinePart { pipeline, part, state: Some(self.join(&key, value).await?) });
        }
        let mut counters = Vec::new();
        let mut rows = Pages::of(keys::kind(keys::COUNTER));
        while let Some((key, value)) = rows.next(self.db.as_ref()).await? {
            let [value] = keys::read_u64s(&value)?;
            counters.push((keys::read_counter(&key)?, value));
        }
        Ok(Recovered { checkpoint, cut, pipelines, counters })
    }

    /// Stores a checkpoint; it is durable, whole, when this returns.
    pub async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(), StateError> {
        let mut guard = self.parts.lock().await;
        // A copy, so that a failed write leaves what is known of the store as it was.
        let mut parts = match guard.as_ref() {
            Some(parts) => parts.clone(),
            None => self.stored_parts().await?,
        };
        let mut batch = Batch::new();
        let stamp = [checkpoint.position.0, checkpoint.barrier.0, checkpoint.time.0 as u64];
        batch.put(keys::CHECKPOINT, keys::u64s(&stamp));
        for (device, snapshot) in checkpoint.devices {
            batch.put(keys::device(device.as_str()), snapshot);
        }
        for pipeline in &checkpoint.dropped_pipelines {
            parts.remove_pipeline(&mut batch, pipeline);
        }
        for piece in checkpoint.pipelines {
            let key = keys::pipeline(&piece.pipeline, piece.part);
            match piece.state {
                Some(state) => parts.put(&mut batch, key, state),
                None => parts.remove(&mut batch, &key),
            }
        }
        // A checkpoint that is taken once more at its barrier replaces what the first try closed there.
        parts.remove_outbox(&mut batch, checkpoint.barrier, checkpoint.barrier);
        let mut numbers: BTreeMap<Barrier, u32> = BTreeMap::new();
        for rows in checkpoint.outbox {
            let number = numbers.entry(rows.barrier).or_default();
            let key = keys::outbox(rows.barrier, *number);
            *number += 1;
            parts.put(&mut batch, key, keys::outbox_value(&rows.table, &rows.ipc));
        }
        for (name, value) in checkpoint.counters {
            batch.put(keys::counter(&name), keys::u64s(&[value]));
        }
        self.db.write(batch).await?;
        *guard = Some(parts);
        Ok(())
    }

    /// A counter, if it was ever set.
    pub async fn counter(&self, name: &str) -> Result<Option<u64>, StateError> {
        let Some(bytes) = self.db.get(&keys::counter(name)).await? else { return Ok(None) };
        let [value] = keys::read_u64s(&bytes)?;
        Ok(Some(value))
    }

    /// Sets a counter between checkpoints; it is durable when this returns.
    pub async fn set_counter(&self, name: &str, value: u64) -> Result<(), StateError> {
        let mut batch = Batch::new();
        batch.put(keys::counter(name), keys::u64s(&[value]));
        self.db.write(batch).await
    }

    /// Notes that the files of a cut are complete and forgets the rows that went into them.
    pub async fn cut_done(&self, cut: CutDone) -> Result<(), StateError> {
        let mut guard = self.parts.lock().await;
        let mut parts = match guard.as_ref() {
            Some(parts) => parts.clone(),
            None => self.stored_parts().await?,
        };
        let mut batch = Batch::new();
        batch.put(keys::CUT, keys::u64s(&[cut.barrier.0, cut.position.0]));
        parts.remove_outbox(&mut batch, Barrier(0), cut.barrier);
        self.db.write(batch).await?;
        *guard = Some(parts);
        Ok(())
    }

    /// The rows closed at barriers up to and including `upto`, in the order they were stored.
    pub async fn outbox(&self, upto: Barrier) -> Result<Vec<Outbox>, StateError> {
        let mut found = Vec::new();
        let mut rows = Pages::of(keys::outbox_upto(upto));
        while let Some((key, value)) = rows.next(self.db.as_ref()).await? {
            let barrier = keys::read_outbox(&key)?;
            let (table, ipc) = keys::read_outbox_value(self.join(&key, value).await?)?;
            found.push(Outbox { barrier, table, ipc });
        }
        Ok(found)
    }

    /// Closes the database. Without it nothing durable is lost, but the next open takes longer.
    pub async fn close(&self) -> Result<(), StateError> {
        self.db.close().await
    }

    /// Which values are stored, and in how many chunks.
    async fn stored_parts(&self) -> Result<Parts, StateError> {
        let mut parts = Parts::default();
        for prefix in [keys::PIPELINE, keys::OUTBOX] {
            let mut rows = Pages::of(keys::kind(prefix));
            while let Some((key, value)) = rows.next(self.db.as_ref()).await? {
                let (more, _) = keys::read_head(&value)?;
                parts.note(key, more);
            }
        }
        Ok(parts)
    }

    /// Puts a value together again whose first chunk is `head`.
    async fn join(&self, key: &Bytes, head: Bytes) -> Result<Bytes, StateError> {
        let (more, first) = keys::read_head(&head)?;
        if more == 0 {
            return Ok(first);
        }
        let mut whole = Vec::with_capacity((more as usize + 1) * keys::CHUNK);
        whole.extend_from_slice(&first);
        for number in 0..more {
            match self.db.get(&keys::chunk(key, number)).await? {
                Some(chunk) => whole.extend_from_slice(&chunk),
                None => return Err(StateError::Damaged(format!("chunk {number} of {more} is missing"))),
            }
        }
        Ok(Bytes::from(whole))
    }
}

/// A range read in pages: a value may be as large as a chunk.
struct Pages {
    from: Bound<Bytes>,
    to: Bound<Bytes>,
    page: std::vec::IntoIter<(Bytes, Bytes)>,
    done: bool,
}

/// Values read at a time.
const PAGE: usize = 64;

impl Pages {
    fn of((from, to): (Bound<Bytes>, Bound<Bytes>)) -> Self {
        Self { from, to, page: Vec::new().into_iter(), done: false }
    }

    async fn next(&mut self, db: &dyn Kv) -> Result<Option<(Bytes, Bytes)>, StateError> {
        if self.page.len() == 0 && !self.done {
            let page = db.scan(self.from.clone(), self.to.clone(), PAGE).await?;
            self.done = page.len() < PAGE;
            if let Some((last, _)) = page.last() {
                self.from = Bound::Excluded(last.clone());
            }
            self.page = page.into_iter();
        }
        Ok(self.page.next())
    }
}
