//! The log on the local disk: one raft-engine for all shards. Nothing outside this folder knows it.
//!
//! Every append is one fsynced write; appends of several shards that meet share an fsync. What raft-engine leaves
//! open is closed here: an instance that failed is dropped, its files cut back to what the disk surely has, and
//! opened anew, in place; only records whose write came back without a fault count; and all reading happens on
//! threads of their own, because raft-engine keeps the last block it read per thread under a key that does not
//! name the instance, so that after a reopen it could hand out bytes of another life.

mod entry;
mod files;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use device::id::ShardId;
use device::seq::Position;
use parking_lot::{Mutex, RwLock};
use raft_engine::{Command, Config, Engine, LogBatch, ReadableSize, RecoveryMode};

use self::entry::{Carrier, Carriers};
use self::files::WatchedFiles;
use super::{Bounds, LogError, ShardLog};

/// Key, per shard, of the last truncated position.
const TRUNCATED: &[u8] = b"truncated";

/// Sizes of the log's files.
#[derive(Debug, Clone)]
pub struct RaftLogOptions {
    /// A file is closed and the next one begun at this size.
    pub file_bytes: u64,
    /// Files are given back when together they are larger than this. It bounds what an idle engine keeps on the
    /// disk; what is not yet truncated is kept in any case.
    pub keep_bytes: u64,
}

impl Default for RaftLogOptions {
    /// 64 MiB: a cut comes at 128 MiB of log, so a truncation frees whole files. 256 MiB: four files, of which some
    /// are always free to be written over, which costs no allocation and so makes the fsync cheap.
    fn default() -> Self {
        Self { file_bytes: 64 << 20, keep_bytes: 256 << 20 }
    }
}

/// A [`ShardLog`] in a folder.
pub struct RaftLog {
    directory: PathBuf,
    options: RaftLogOptions,
    /// `None` between a failure and a successful reopen.
    instance: RwLock<Option<Instance>>,
    /// What could not be repaired yet of an instance that failed.
    unrepaired: Mutex<Option<WatchedFiles>>,
    healthy: AtomicBool,
}

impl RaftLog {
    /// Opens the log in `directory`, creating it if it is missing. A torn tail, which a crash in the middle of a
    /// write leaves, is cut off: nothing in it was acknowledged.
    pub fn open(directory: &Path, options: RaftLogOptions) -> Result<Self, LogError> {
        std::fs::create_dir_all(directory).map_err(unavailable)?;
        if let Some(parent) = directory.parent() {
            sync(parent).map_err(unavailable)?;
        }
        let instance = Instance::open(directory, &options)?;
        Ok(Self {
            directory: directory.to_owned(),
            options,
            instance: RwLock::new(Some(instance)),
            unrepaired: Mutex::new(None),
            healthy: AtomicBool::new(true),
        })
    }

    /// Runs `act` on an instance that is fit to be used, reopening it first if need be.
    fn with<T>(&self, act: impl FnOnce(&Instance) -> Result<T, LogError>) -> Result<T, LogError> {
        let fit = self.instance.read().as_ref().is_some_and(|instance| !instance.files.failed());
        if !fit {
            self.reopen()?;
        }
        let guard = self.instance.read();
        match guard.as_ref() {
            Some(instance) => act(instance),
            None => Err(LogError::Unavailable("it is being reopened".to_owned())),
        }
    }

    /// Replaces an instance that failed. Does nothing if another thread was faster.
    fn reopen(&self) -> Result<(), LogError> {
        let mut guard = self.instance.write();
        match guard.take() {
            Some(instance) if !instance.files.failed() => {
                *guard = Some(instance);
                return Ok(());
            }
            Some(instance) => {
                tracing::warn!(directory = %self.directory.display(), "the log failed and is opened again");
                *self.unrepaired.lock() = Some(instance.abandon());
            }
            None => {}
        }
        let mut unrepaired = self.unrepaired.lock();
        if let Some(files) = unrepaired.as_ref() {
            files.repair().map_err(unavailable)?;
            *unrepaired = None;
        }
        *guard = Some(Instance::open(&self.directory, &self.options)?);
        tracing::info!(directory = %self.directory.display(), "the log is open again");
        Ok(())
    }
}

impl ShardLog for RaftLog {
    fn append(&self, shard: ShardId, position: Position, record: &Bytes) -> Result<(), LogError> {
        let outcome = self.with(|instance| instance.append(shard, position, record));
        let stuck = matches!(&outcome, Err(error) if error.is_retriable());
        self.healthy.store(!stuck, Ordering::SeqCst);
        outcome
    }

    fn read(&self, shard: ShardId, from: Position, max_bytes: usize) -> Result<Vec<(Position, Bytes)>, LogError> {
        self.with(|instance| instance.read(shard, from, max_bytes))
    }

    fn bounds(&self, shard: ShardId) -> Result<Bounds, LogError> {
        self.with(|instance| Ok(instance.shard(shard).ends.lock().bounds()))
    }

    fn truncate(&self, shard: ShardId, upto: Position) -> Result<(), LogError> {
        self.with(|instance| instance.truncate(shard, upto))
    }

    fn healthy(&self) -> bool {
        self.healthy.load(Ordering::SeqCst)
    }
}

impl Drop for RaftLog {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.write().take() {
            if instance.files.failed() {
                instance.abandon();
            } else {
                instance.drop_engine();
            }
        }
    }
}

/// The known ends of a shard's log. They move only when a write came back without a fault.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    truncated: Position,
    last: Position,
}

impl Ends {
    fn bounds(self) -> Bounds {
        Bounds { first: self.truncated.next(), last: self.last }
    }
}

#[derive(Default)]
struct Shard {
    /// Held while a record is written, so that positions cannot race.
    writing: Mutex<()>,
    ends: Mutex<Ends>,
}

/// One life of the engine, from an open to the first fault.
struct Instance {
    engine: Engine<WatchedFiles>,
    files: WatchedFiles,
    shards: RwLock<HashMap<ShardId, Arc<Shard>>>,
}

impl Instance {
    fn open(directory: &Path, options: &RaftLogOptions) -> Result<Self, LogError> {
        let config = Config {
            dir: directory.to_string_lossy().into_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: 2,
            // Payloads are small and dense; compression would cost more than the bytes it saves.
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(options.file_bytes),
            purge_threshold: ReadableSize(options.keep_bytes.max(options.file_bytes)),
            enable_log_recycle: true,
            ..Config::default()
        };
        let files = WatchedFiles::default();
        let engine =
            match catch_unwind(AssertUnwindSafe(|| Engine::open_with_file_system(config, Arc::new(files.clone())))) {
                Ok(Ok(engine)) => engine,
                Ok(Err(raft_engine::Error::Corruption(text))) => return Err(LogError::Damaged(text)),
                Ok(Err(error)) => return Err(unavailable(error)),
                Err(_) => return Err(LogError::Unavailable("opening it failed".to_owned())),
            };
        let instance = Self { engine, files, shards: RwLock::default() };
        // A record that a killed process wrote but did not fsync is in the page cache only, and from here on it
        // counts as durable.
        if let Err(error) = sync_all(directory) {
            instance.abandon();
            return Err(unavailable(error));
        }
        for region in instance.engine.raft_groups() {
            let Some(shard) = shard_of(region) else { continue };
            let ends = instance.recovered_ends(shard)?;
            *instance.shard(shard).ends.lock() = ends;
        }
        Ok(instance)
    }

    /// Where the log of a shard ends. A power cut can leave the index of the last record on the disk without its
    /// bytes, as that is one write but several pages; such a record was not acknowledged and does not count.
    fn recovered_ends(&self, shard: ShardId) -> Result<Ends, LogError> {
        let kept = self.engine.get(region(shard), TRUNCATED);
        let kept = kept.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?))).unwrap_or(0);
        let (Some(first), Some(last)) = (self.engine.first_index(region(shard)), self.engine.last_index(region(shard)))
        else {
            return Ok(Ends { truncated: Position(kept), last: Position(kept) });
        };
        let truncated = Position(kept.max(first.saturating_sub(1)));
        let mut last = Position(last.max(truncated.0));
        while last > truncated && self.fetch(shard, last, last, None).is_err() {
            tracing::warn!(%shard, position = %last, "the last record of the log is torn and is left out");
            last = Position(last.0 - 1);
        }
        Ok(Ends { truncated, last })
    }

    fn shard(&self, shard: ShardId) -> Arc<Shard> {
        if let Some(found) = self.shards.read().get(&shard) {
            return found.clone();
        }
        self.shards.write().entry(shard).or_default().clone()
    }

    fn append(&self, id: ShardId, position: Position, record: &Bytes) -> Result<(), LogError> {
        let shard = self.shard(id);
        let _writing = shard.writing.lock();
        let Bounds { first, last } = shard.ends.lock().bounds();
        if position < first {
            return Err(LogError::Truncated { shard: id, position, first });
        }
        if position > last.next() {
            return Err(LogError::Gap { shard: id, position, last });
        }
        if position <= last {
            return match self.fetch(id, position, position, None)?.first() {
                Some(there) if there.record == *record => Ok(()),
                _ => Err(LogError::Conflict { shard: id, position }),
            };
        }
        let mut batch = LogBatch::with_capacity(1);
        let carrier = Carrier::new(position.0, id.0, record.clone());
        batch.add_entries::<Carriers>(region(id), &[carrier]).map_err(|error| LogError::Damaged(error.to_string()))?;
        self.write(&mut batch)?;
        shard.ends.lock().last = position;
        Ok(())
    }

    /// Writes and fsyncs. If this fails without the instance being marked as failed, nothing was written.
    fn write(&self, batch: &mut LogBatch) -> Result<(), LogError> {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.engine.write(batch, true)));
        match outcome {
            Ok(Ok(_)) if !self.files.failed() => Ok(()),
            Ok(Ok(_)) => Err(LogError::Unavailable("an fsync failed".to_owned())),
            Ok(Err(error)) => {
                // A full disk is the one failure after which raft-engine is known to be whole.
                if !matches!(&error, raft_engine::Error::Io(io) if is_full(io)) {
                    self.files.fail();
                }
                Err(unavailable(error))
            }
            Err(_) => {
                self.files.fail();
                Err(LogError::Unavailable("a write could not be made durable".to_owned()))
            }
        }
    }

    fn read(&self, id: ShardId, from: Position, max_bytes: usize) -> Result<Vec<(Position, Bytes)>, LogError> {
        let Bounds { first, last } = self.shard(id).ends.lock().bounds();
        if from < first {
            return Err(LogError::Truncated { shard: id, position: from, first });
        }
        if from > last {
            return Ok(Vec::new());
        }
        let found = self.fetch(id, from, last, Some(max_bytes))?;
        Ok(found.into_iter().map(|carrier| (Position(carrier.position), carrier.record)).collect())
    }

    /// Reads `from..=to`, at most about `max_bytes` of it but at least one record.
    fn fetch(
        &self,
        shard: ShardId,
        from: Position,
        to: Position,
        max_bytes: Option<usize>,
    ) -> Result<Vec<Carrier>, LogError> {
        let read = || {
            let mut found = Vec::new();
            self.engine
                .fetch_entries_to::<Carriers>(region(shard), from.0, to.0 + 1, max_bytes, &mut found)
                .map(|_| found)
        };
        let damaged = |why: String| LogError::Damaged(format!("shard {shard} from position {from}: {why}"));
        // A thread of its own: see the head of this file. It also keeps a panic out of the caller.
        let found = std::thread::scope(|scope| scope.spawn(read).join());
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(raft_engine::Error::Io(error))) => return Err(unavailable(error)),
            Ok(Err(error)) => return Err(damaged(error.to_string())),
            Err(_) => return Err(damaged("a record is not what its index says".to_owned())),
        };
        if found.is_empty() || found.iter().any(|carrier| carrier.shard != shard.0) {
            return Err(damaged("a record is missing or belongs to another shard".to_owned()));
        }
        Ok(found)
    }

    fn truncate(&self, id: ShardId, upto: Position) -> Result<(), LogError> {
        let shard = self.shard(id);
        {
            let _writing = shard.writing.lock();
            let ends = *shard.ends.lock();
            let upto = upto.min(ends.last);
            if upto <= ends.truncated {
                return Ok(());
            }
            let mut batch = LogBatch::with_capacity(2);
            batch.add_command(region(id), Command::Compact { index: upto.0 + 1 });
            batch
                .put(region(id), TRUNCATED.to_vec(), upto.0.to_le_bytes().to_vec())
                .map_err(|error| LogError::Damaged(error.to_string()))?;
            self.write(&mut batch)?;
            shard.ends.lock().truncated = upto;
        }
        // Moves what little other shards keep in the oldest files and gives those files back. It reads, hence the
        // thread; and it can wait for the next truncation, hence no error.
        let purged = std::thread::scope(|scope| scope.spawn(|| self.engine.purge_expired_files()).join());
        match purged {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "files of the log could not be given back"),
            Err(_) => {
                tracing::warn!("files of the log could not be given back");
                self.files.fail();
            }
        }
        Ok(())
    }

    /// Ends a life that failed; the files are left to be repaired.
    fn abandon(self) -> WatchedFiles {
        self.files.close();
        let files = self.files.clone();
        self.drop_engine();
        files
    }

    fn drop_engine(self) {
        // Its destructor fsyncs and panics if that fails.
        if catch_unwind(AssertUnwindSafe(|| drop(self.engine))).is_err() {
            tracing::warn!("the log could not be closed cleanly");
        }
    }
}

/// raft-engine's name of a shard's log. 0 is left out: it is easily taken for "none".
fn region(shard: ShardId) -> u64 {
    u64::from(shard.0) + 1
}

fn shard_of(region: u64) -> Option<ShardId> {
    Some(ShardId(u16::try_from(region.checked_sub(1)?).ok()?))
}

fn unavailable(error: impl std::fmt::Display) -> LogError {
    LogError::Unavailable(error.to_string())
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn sync(path: &Path) -> std::io::Result<()> {
    // The parent of a relative path of one part is the empty path.
    File::open(if path.as_os_str().is_empty() { Path::new(".") } else { path })?.sync_all()
}

fn sync_all(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_file() {
            sync(&path)?;
        }
    }
    sync(directory)
}
