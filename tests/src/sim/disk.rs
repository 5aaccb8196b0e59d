//! What outlives the engine: log, state and files, behind calls that fail, take long, or end the engine.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use device::id::ShardId;
use device::seq::Position;
use futures::stream::BoxStream;
use object_store_14 as objects;
use objects::path::Path;
use parking_lot::Mutex;
use storage::log::{Bounds, LogError, MemoryLog, ShardLog};
use storage::state::{Batch, Kv, MemoryDisk, MemoryKv, StateError};
use tokio::sync::Notify;

use super::ledger::Ledger;
use super::params::{Fault, Params};
use super::random::Random;
use super::trace::{BASIS, Trace, hash};
use crate::note;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fortune {
    Fine,
    /// It fails, and nothing was done.
    Before,
    /// It fails, and everything was done.
    After,
    /// The engine dies, and nothing was done.
    DieBefore,
    /// The engine dies, and everything was done.
    DieAfter,
}

struct Inner {
    params: Params,
    random: Random,
    /// Trouble is over.
    calm: bool,
    dead: bool,
    /// Calls until the engine dies.
    die_in: Option<u64>,
    /// The log refuses everything.
    full: bool,
    objects: BTreeMap<String, Bytes>,
}

/// All storage of a world. Clones share it.
#[derive(Clone)]
pub(super) struct Disks {
    inner: Arc<Mutex<Inner>>,
    log: Arc<MemoryLog>,
    states: Arc<Mutex<BTreeMap<ShardId, MemoryDisk>>>,
    /// What is durable.
    pub(super) ledger: Arc<Mutex<Ledger>>,
    trace: Trace,
    /// Told when the engine has died at a call.
    pub(super) death: Arc<Notify>,
}

impl Disks {
    /// Empty storage.
    pub(super) fn new(params: &Params, trace: &Trace) -> Self {
        let random = Random::named(params.seed, "disk");
        let inner = Inner {
            params: params.clone(),
            random,
            calm: false,
            dead: false,
            die_in: None,
            full: false,
            objects: BTreeMap::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            log: Arc::new(MemoryLog::new()),
            states: Arc::default(),
            ledger: Arc::new(Mutex::new(Ledger::new(trace.clone()))),
            trace: trace.clone(),
            death: Arc::new(Notify::new()),
        }
    }

    /// The engine starts (again).
    pub(super) fn revive(&self) {
        let mut inner = self.inner.lock();
        inner.dead = false;
        let dies = inner.params.has(Fault::KillAtIo) && !inner.calm && inner.random.chance(700);
        inner.die_in = dies.then(|| inner.random.between(1, 90));
    }

    /// Whether the engine has died at a call.
    pub(super) fn dead(&self) -> bool {
        self.inner.lock().dead
    }

    /// No more trouble from now on.
    pub(super) fn calm(&self) {
        let mut inner = self.inner.lock();
        inner.calm = true;
        inner.full = false;
        inner.die_in = None;
    }

    /// Whether the log's disk is full.
    pub(super) fn set_full(&self, full: bool) {
        self.inner.lock().full = full;
    }

    /// The files, by path.
    pub(super) fn objects(&self) -> BTreeMap<String, Bytes> {
        self.inner.lock().objects.clone()
    }

    /// How many files there are, how many records in the log that are not truncated, and how many keys in the state.
    pub(super) fn sizes(&self) -> (usize, u64, usize) {
        let states = self.states.lock();
        let records = states.keys().filter_map(|shard| self.log.bounds(*shard).ok());
        let records = records.map(|of| (of.last.0 + 1).saturating_sub(of.first.0)).sum();
        (self.inner.lock().objects.len(), records, states.values().map(MemoryDisk::len).sum())
    }

    /// The shard log.
    pub(super) fn log(&self) -> Arc<dyn ShardLog> {
        Arc::new(SimLog { disks: self.clone() })
    }

    /// Opens the state of a shard.
    pub(super) fn state(&self, shard: ShardId) -> Box<dyn Kv> {
        let kv = self.states.lock().entry(shard).or_default().open();
        Box::new(SimKv { disks: self.clone(), kv, shard })
    }

    /// The store of files.
    pub(super) fn files(&self) -> Arc<dyn objects::ObjectStore> {
        Arc::new(SimObjects { disks: self.clone() })
    }

    fn fortune(&self, fault: Fault, per_mille: u64) -> Fortune {
        let mut inner = self.inner.lock();
        if inner.dead {
            return Fortune::DieBefore;
        }
        if inner.calm {
            return Fortune::Fine;
        }
        if let Some(left) = &mut inner.die_in {
            *left -= 1;
            if *left == 0 {
                inner.dead = true;
                self.death.notify_one();
                return if inner.random.chance(500) { Fortune::DieBefore } else { Fortune::DieAfter };
            }
        }
        if inner.params.has(fault) && inner.random.chance(per_mille) {
            return if inner.random.chance(500) { Fortune::Before } else { Fortune::After };
        }
        Fortune::Fine
    }

    /// Waits as long as the call takes.
    async fn takes(&self) {
        let wait = {
            let mut inner = self.inner.lock();
            if inner.params.has(Fault::Slow) && !inner.calm && inner.random.chance(100) {
                // Longer than what the consumer calls a stall, now and then.
                if inner.random.chance(100) { inner.random.between(5_000, 8_000) } else { inner.random.below(800) }
            } else {
                inner.random.below(4)
            }
        };
        if wait > 0 {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    /// How long the next append takes, in milliseconds.
    pub(super) fn append_takes(&self) -> u64 {
        let mut inner = self.inner.lock();
        let slow = inner.params.has(Fault::Slow) && !inner.calm && inner.random.chance(50);
        if slow { inner.random.between(50, 900) } else { inner.random.below(5) }
    }
}

struct SimLog {
    disks: Disks,
}

impl ShardLog for SimLog {
    fn append(&self, shard: ShardId, position: Position, record: &Bytes) -> Result<(), LogError> {
        let full = self.disks.inner.lock().full;
        let fortune = if full { Fortune::Before } else { self.disks.fortune(Fault::Log, 40) };
        let digest = hash(record, BASIS);
        note!(self.disks.trace, "log {shard} append {position} {} bytes {digest:016x} {fortune:?}", record.len());
        let failed = || LogError::Unavailable("a fault of the simulated disk".to_owned());
        if matches!(fortune, Fortune::Before | Fortune::DieBefore) {
            return Err(failed());
        }
        self.disks.log.append(shard, position, record)?;
        self.disks.ledger.lock().durable(shard, position, record);
        if fortune == Fortune::Fine { Ok(()) } else { Err(failed()) }
    }

    fn read(&self, shard: ShardId, from: Position, max_bytes: usize) -> Result<Vec<(Position, Bytes)>, LogError> {
        self.disks.log.read(shard, from, max_bytes.min(2048))
    }

    fn bounds(&self, shard: ShardId) -> Result<Bounds, LogError> {
        self.disks.log.bounds(shard)
    }

    fn truncate(&self, shard: ShardId, upto: Position) -> Result<(), LogError> {
        let fortune = self.disks.fortune(Fault::Log, 100);
        note!(self.disks.trace, "log {shard} truncate {upto} {fortune:?}");
        let failed = || LogError::Unavailable("a fault of the simulated disk".to_owned());
        if matches!(fortune, Fortune::Before | Fortune::DieBefore) {
            return Err(failed());
        }
        self.disks.log.truncate(shard, upto)?;
        if fortune == Fortune::Fine { Ok(()) } else { Err(failed()) }
    }

    fn healthy(&self) -> bool {
        true
    }
}

struct SimKv {
    disks: Disks,
    kv: MemoryKv,
    shard: ShardId,
}

impl SimKv {
    fn failed() -> StateError {
        StateError::Unavailable("a fault of the simulated store".to_owned())
    }

    async fn reads(&self, what: &str) -> Result<(), StateError> {
        let fortune = self.disks.fortune(Fault::State, 15);
        self.disks.takes().await;
        match fortune {
            Fortune::Fine => Ok(()),
            Fortune::DieBefore | Fortune::DieAfter => std::future::pending().await,
            Fortune::Before | Fortune::After => {
                note!(self.disks.trace, "state {} {what} fails", self.shard);
                Err(Self::failed())
            }
        }
    }
}

#[async_trait]
impl Kv for SimKv {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.reads("get").await?;
        self.kv.get(key).await
    }

    async fn scan(
        &self,
        from: Bound<Bytes>,
        to: Bound<Bytes>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StateError> {
        self.reads("scan").await?;
        self.kv.scan(from, to, limit).await
    }

    async fn write(&self, batch: Batch) -> Result<(), StateError> {
        let fortune = self.disks.fortune(Fault::State, 80);
        let changes = batch.clone().changes();
        // Values of pipelines hold hash sets, whose order is not ours to decide.
        let digest = changes.iter().fold(BASIS, |digest, (key, _)| hash(key, digest));
        note!(self.disks.trace, "state {} write {} keys {digest:016x} {fortune:?}", self.shard, changes.len());
        self.disks.takes().await;
        match fortune {
            Fortune::Before => return Err(Self::failed()),
            Fortune::DieBefore => return std::future::pending().await,
            Fortune::Fine | Fortune::After | Fortune::DieAfter => self.kv.write(batch).await?,
        }
        match fortune {
            Fortune::DieAfter => std::future::pending().await,
            Fortune::After => Err(Self::failed()),
            _ => Ok(()),
        }
    }

    async fn close(&self) -> Result<(), StateError> {
        self.kv.close().await
    }
}

struct SimObjects {
    disks: Disks,
}

impl std::fmt::Debug for SimObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimObjects")
    }
}

impl std::fmt::Display for SimObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a simulated store")
    }
}

fn unsupported<T>() -> objects::Result<T> {
    Err(objects::Error::NotImplemented { operation: "only put".to_owned(), implementer: "simulation".to_owned() })
}

impl SimObjects {
    /// A file stands under its name for good: another content under it is a broken promise.
    fn put(&self, path: &str, bytes: Bytes) {
        let mut inner = self.disks.inner.lock();
        if let Some(before) = inner.objects.insert(path.to_owned(), bytes.clone())
            && before != bytes
            && path.ends_with(storage::layout::PARQUET)
        {
            let lengths = (before.len(), bytes.len());
            drop(inner);
            self.disks.trace.wrong(format!("{path} was {} bytes long and is {} bytes of others", lengths.0, lengths.1));
        }
    }
}

#[async_trait]
impl objects::ObjectStore for SimObjects {
    async fn put_opts(
        &self,
        location: &Path,
        payload: objects::PutPayload,
        _: objects::PutOptions,
    ) -> objects::Result<objects::PutResult> {
        let fortune = self.disks.fortune(Fault::Files, 80);
        let bytes = Bytes::from(payload);
        note!(self.disks.trace, "put {location} {} bytes {:016x} {fortune:?}", bytes.len(), hash(&bytes, BASIS));
        // What a local directory has while a file is being written: a part of it, under a name that does not count.
        let temporary = format!("{location}#1");
        let part = bytes.slice(..bytes.len() / 2);
        self.disks.inner.lock().objects.insert(temporary.clone(), part);
        self.disks.takes().await;
        let failed =
            || objects::Error::Generic { store: "simulation", source: "a fault of the simulated store".into() };
        match fortune {
            Fortune::Before => return Err(failed()),
            Fortune::DieBefore => return std::future::pending().await,
            Fortune::Fine | Fortune::After | Fortune::DieAfter => {
                self.disks.inner.lock().objects.remove(&temporary);
                self.put(location.as_ref(), bytes);
            }
        }
        match fortune {
            Fortune::DieAfter => std::future::pending().await,
            Fortune::After => Err(failed()),
            _ => Ok(objects::PutResult { e_tag: None, version: None, extensions: Default::default() }),
        }
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: objects::PutMultipartOptions,
    ) -> objects::Result<Box<dyn objects::MultipartUpload>> {
        unsupported()
    }

    async fn get_opts(&self, _: &Path, _: objects::GetOptions) -> objects::Result<objects::GetResult> {
        unsupported()
    }

    fn delete_stream(&self, _: BoxStream<'static, objects::Result<Path>>) -> BoxStream<'static, objects::Result<Path>> {
        Box::pin(futures::stream::once(async { unsupported() }))
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, objects::Result<objects::ObjectMeta>> {
        Box::pin(futures::stream::once(async { unsupported() }))
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> objects::Result<objects::ListResult> {
        unsupported()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: objects::CopyOptions) -> objects::Result<()> {
        unsupported()
    }
}
