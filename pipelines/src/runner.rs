//! The consumer of a shard's log: feeds durable rows to tables and pipelines, checkpoints at barriers, cuts files.
//!
//! It has a thread of its own ([`Runner::run`]; a simulation calls [`Runner::take`] instead), takes records in log
//! order, and treats a record from replay as it treats one that has just been committed. Its order at a barrier is what exactly-once rests on:
//!
//! 1. pipelines see everything up to the barrier and give the rows of windows that close there;
//! 2. one atomic write makes durable, together: the state of the pipelines, those rows (the outbox), the devices,
//!    and the position they all stand for;
//! 3. at a cut, files are written from rows that are durable, under names made of the two barriers;
//! 4. one atomic write says that the files stand and empties the outbox;
//! 5. the log is truncated.
//!
//! A crash between any two steps repeats the later ones with the same rows under the same names.

mod built;
mod error;
mod mail;
mod patience;
mod redecode;
mod stand;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use device::alert::Transition;
use device::entry::{Body, LogBody, LogRecord};
use device::id::{DeviceId, ShardId};
use device::schema::Catalog;
use device::seq::{Barrier, Position};
use device::time::Timestamp;
use futures::future::BoxFuture;
use storage::durable::Durable;
use storage::log::{LogError, ShardLog};
use storage::parquet::{TableRows, WriteError};
use storage::rows::RowBuilder;
use storage::state::{Checkpoint, CutDone, Outbox, PipelinePart, StateStore};
use storage::store::Store;
use tokio::runtime::Handle;

use self::built::{Built, Running, Saved, build};
pub use self::error::{LogEnd, RunnerError};
pub use self::mail::Peers;
use self::mail::{Mail, is_mail};
use self::patience::Failure;
use self::redecode::Letters;
pub use self::stand::Stand;
pub use self::status::Status;

use crate::alerts::Listener;
use crate::heard::AllHeard;
use crate::merge::Merge;
use crate::{alerts, output};

/// Rows gathered before they become a batch, unless nothing else comes.
const BATCH_ROWS: usize = 8192;

/// How much of the log is read at a time in replay.
const READ_BYTES: usize = 8 << 20;

/// How long a batch below [`BATCH_ROWS`] waits for more, so that queries see new rows soon.
const LINGER: Duration = Duration::from_millis(200);

/// How long to sleep when there is nothing to make visible; a record ends it.
const IDLE: Duration = Duration::from_secs(60);

/// Gives the states of devices that changed, and hears when they are safe. The actors are behind it; this crate
/// does not know them.
pub trait DeviceStates: Send {
    /// Snapshots of devices changed since the last call, each with everything up to `position`.
    fn collect(&mut self, position: Position) -> BoxFuture<'_, Result<Vec<(DeviceId, Bytes)>, String>>;
    /// What the last `collect` gave is durable, together with the log up to `position`.
    fn persisted(&mut self, position: Position);
}

/// Gives the version of the pipeline project with a fingerprint, if it is kept.
pub type Projects = Arc<dyn Fn(u64) -> Option<Arc<sql::Project>> + Send + Sync>;

/// The pieces of a pipeline's state: what it holds of its own shard, and what it has merged of all.
const OWN: i64 = 0;
const MERGED: i64 = 1;

/// The counter of a shard's state that holds the fingerprint of the project that counts at its checkpoint.
pub const PROJECT: &str = "project";

/// What a runner works with.
pub struct Parts {
    /// Which shard.
    pub shard: ShardId,
    /// Its log.
    pub log: Arc<dyn ShardLog>,
    /// Its state store.
    pub state: Arc<StateStore>,
    /// Where tables stand.
    pub store: Store,
    /// The pipeline project that counts where the shard stands; see [`PROJECT`].
    pub project: Arc<sql::Project>,
    /// Other versions of it, which the log may go over to.
    pub projects: Projects,
    /// Its streams.
    pub catalog: Arc<Catalog>,
    /// The device side.
    pub devices: Box<dyn DeviceStates>,
    /// How many shards there are.
    pub shards: u16,
    /// Their logs.
    pub peers: Arc<dyn Peers>,
    /// Who hears of alerts.
    pub listener: Arc<dyn Listener>,
    /// What others see of the runner.
    pub status: Arc<Status>,
}

/// Where a shard stood when it was opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recovered {
    /// The log up to here is in the state store.
    pub checkpoint: Position,
    /// The barrier of that checkpoint.
    pub checkpoint_barrier: Barrier,
    /// The log's time there.
    pub checkpoint_time: Timestamp,
    /// The log up to here is in files.
    pub cut: Position,
    /// The barrier of those files.
    pub cut_barrier: Barrier,
}

/// The consumer of one shard.
pub struct Runner {
    parts: Parts,
    /// Fingerprint of the project that counts.
    version: u64,
    built: Built,
    heard: AllHeard,
    rows: RowBuilder,
    recovered: Recovered,
    /// Raw rows since the last cut, by table.
    raw: BTreeMap<String, Vec<RecordBatch>>,
    dropped: Vec<String>,
    mail: Mail,
    position: Position,
    /// Frames whose schema was unknown.
    letters: Letters,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("shard", &self.parts.shard).finish_non_exhaustive()
    }
}

impl Runner {
    /// Restores the pipelines of the project from the shard's state; those whose meaning has changed start anew.
    pub async fn open(parts: Parts) -> Result<Self, RunnerError> {
        let stored = parts.state.load().await?;
        let (checkpoint, checkpoint_barrier, checkpoint_time) = stored.checkpoint.unwrap_or_default();
        let (cut_barrier, cut) = stored.cut.map_or_else(Default::default, |done| (done.barrier, done.position));
        let recovered = Recovered { checkpoint, checkpoint_barrier, checkpoint_time, cut, cut_barrier };
        let (letters, pieces): (Vec<_>, Vec<_>) = stored.pipelines.into_iter().partition(is_mail);
        let mut mail = Mail::load(letters.into_iter(), &stored.counters)?;
        let mut states: HashMap<String, Saved> = HashMap::new();
        for piece in pieces {
            let saved = states.entry(piece.pipeline).or_default();
            match piece.part {
                MERGED => saved.merged = piece.state,
                _ => saved.own = piece.state,
            }
        }
        let alerts = states.remove(alerts::PART).and_then(|saved| saved.own);
        let alerts = parts.status.alerts.restore(alerts);
        alerts.map_err(|error| RunnerError::Rows(format!("the alerts of a checkpoint are {error}")))?;
        let heard = built::heard(&parts.project, &mut states)?;
        let mut built = build(&parts, &parts.project, &mut states, &heard)?;
        mail.unpark(false, |partial| built.take(partial))?;
        built.publish(&parts.status)?;
        let letters = Letters::stored(&stored.counters, &parts.catalog, checkpoint_time);
        let again = stored.checkpoint.is_some() && letters.waiting();
        parts.status.redecoding.store(again, Ordering::Release);
        let rows = RowBuilder::new(parts.catalog.clone());
        parts.status.live.start(cut_barrier);
        for row in parts.state.outbox(Barrier(u64::MAX)).await? {
            for batch in output::from_ipc(&row.ipc).map_err(|e| RunnerError::Rows(e.to_string()))? {
                parts.status.live.add(&row.table, batch);
            }
        }
        parts.status.cut.send_replace(cut_barrier);
        let position = if cut < checkpoint { cut } else { checkpoint };
        Ok(Self {
            version: parts.project.fingerprint(),
            parts,
            built,
            heard,
            rows,
            recovered,
            raw: BTreeMap::new(),
            dropped: states.into_keys().collect(),
            mail,
            position,
            letters,
        })
    }

    /// Where the shard stood.
    pub fn recovered(&self) -> Recovered {
        self.recovered
    }

    /// Replays the log from the last cut to its end. Returns the position, time and barrier of the last records.
    pub async fn replay(&mut self) -> Result<LogEnd, RunnerError> {
        let shard = self.parts.shard;
        let mut end = LogEnd { position: self.position, barrier: self.recovered.cut_barrier, ..LogEnd::default() };
        let rows_before = self.parts.status.rows.load(Ordering::Relaxed);
        loop {
            let records = self.parts.log.read(shard, end.position.next(), READ_BYTES)?;
            if records.is_empty() {
                break;
            }
            for (position, bytes) in records {
                let record = LogRecord::decode(bytes).map_err(|error| RunnerError::Record {
                    position,
                    shard,
                    error: error.to_string(),
                })?;
                end.position = position;
                end.time = end.time.max(record.time);
                match &record.body {
                    LogBody::Barrier { barrier, cut, .. } => {
                        end.barrier = end.barrier.max(*barrier);
                        end.uncut &= !*cut;
                    }
                    LogBody::Batch(_) | LogBody::Partial(_) => end.uncut = true,
                }
                self.take(position, &record).await?;
            }
        }
        self.gather()?;
        end.barrier = end.barrier.max(self.recovered.checkpoint_barrier);
        self.parts.status.replayed.store(self.parts.status.records.load(Ordering::Relaxed), Ordering::Release);
        // The records that say so may be truncated: without this the log's time could go back over a restart.
        end.time = end.time.max(self.recovered.checkpoint_time);
        end.rows = self.parts.status.rows.load(Ordering::Relaxed) - rows_before;
        Ok(end)
    }

    /// Takes records until their sender is gone: the loop of the consumer's thread, which waits for `runtime` where
    /// storage or devices have to be waited for.
    pub fn run(&mut self, records: &Receiver<Durable>, runtime: &Handle) -> Result<(), RunnerError> {
        // Since when rows wait to be seen. It decides when they become visible, never what they are.
        let mut waiting: Option<Instant> = None;
        loop {
            let patience = waiting.map_or(IDLE, |since| LINGER.saturating_sub(since.elapsed()));
            match records.recv_timeout(patience) {
                Ok(durable) => runtime.block_on(self.take(durable.position, &durable.record))?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.gather(),
            }
            if self.rows.rows() == 0 {
                waiting = None;
            } else if waiting.get_or_insert_with(Instant::now).elapsed() >= LINGER {
                self.gather()?;
                waiting = None;
            }
        }
    }

    /// Takes one record, at the position after the last one taken.
    pub async fn take(&mut self, position: Position, record: &LogRecord) -> Result<(), RunnerError> {
        match &record.body {
            LogBody::Batch(entries) => {
                // Checkpoints and cuts stand at barriers, where everything is gathered: what waits from earlier
                // records lies on the same side of them as this one.
                self.position = position;
                let mut heard: Vec<(&DeviceId, &[Transition])> = Vec::new();
                for entry in entries {
                    if let Body::Transitions(all) = &entry.body {
                        heard.push((&entry.device, all));
                        if position > self.recovered.checkpoint {
                            self.parts.status.alerts.take(entry.device.as_str(), all);
                        }
                    }
                    self.rows.push(entry).map_err(|e| RunnerError::Rows(e.to_string()))?;
                    if self.rows.rows() >= BATCH_ROWS {
                        self.hand_on()?;
                    }
                }
                if !heard.is_empty() {
                    self.parts.listener.hear(self.parts.shard, position, &heard);
                }
                if self.rows.rows() == 0 {
                    self.seen();
                }
            }
            LogBody::Partial(partial) => {
                self.position = position;
                if position > self.recovered.checkpoint && !self.built.take(partial)? {
                    self.mail.park(partial.clone());
                }
                if self.rows.rows() == 0 {
                    self.seen();
                }
            }
            LogBody::Barrier { barrier, cut, catalog } => {
                self.gather()?;
                self.position = position;
                if *catalog != self.version && *barrier > self.recovered.checkpoint_barrier {
                    self.switch(*catalog, record.time)?;
                }
                self.barrier(position, record.time, *barrier, *cut).await?;
                self.seen();
            }
        }
        Ok(())
    }

    /// Turns what has been pushed into batches and hands them on.
    pub fn gather(&mut self) -> Result<(), RunnerError> {
        if self.rows.rows() > 0 {
            self.hand_on()?;
        }
        self.seen();
        Ok(())
    }

    fn hand_on(&mut self) -> Result<(), RunnerError> {
        let batches = self.rows.finish().map_err(|e| RunnerError::Rows(e.to_string()))?;
        for (table, batch) in batches {
            self.parts.status.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            if !storage::schema::is_system(&table) {
                self.parts.status.records.fetch_add(batch.num_rows() as u64, Ordering::AcqRel);
            }
            if self.position > self.recovered.checkpoint {
                self.feed(&table, &batch)?;
            }
            if self.position > self.recovered.cut {
                self.parts.status.live.add(&table, batch.clone());
                self.raw.entry(table.to_string()).or_default().push(batch);
            }
        }
        Ok(())
    }

    /// Hands rows of a table to the pipelines that read it.
    fn feed(&mut self, table: &str, batch: &RecordBatch) -> Result<(), RunnerError> {
        if !storage::schema::is_system(table) {
            self.heard.observe(table, batch).map_err(|e| RunnerError::Rows(e.to_string()))?;
        }
        for at in self.built.by_source.get(table).into_iter().flatten() {
            if let Some(Running { pipeline, .. }) = self.built.running.get_mut(*at) {
                pipeline
                    .ingest_from(table, batch)
                    .map_err(|source| RunnerError::Pipeline { name: pipeline.name().to_owned(), source })?;
            }
        }
        Ok(())
    }

    /// Everything up to the current position can be seen by queries.
    fn seen(&self) {
        self.parts.status.position.store(self.position.0, Ordering::Release);
    }

    async fn barrier(
        &mut self,
        position: Position,
        now: Timestamp,
        barrier: Barrier,
        cut: bool,
    ) -> Result<(), RunnerError> {
        if barrier > self.recovered.checkpoint_barrier {
            let again = if cut { self.redecode().await? } else { Vec::new() };
            self.checkpoint(position, now, barrier, again).await?;
        }
        if cut && barrier > self.recovered.cut_barrier {
            self.cut(position, barrier).await?;
        }
        Ok(())
    }

    /// Goes over to another version of the project. Stands between two barriers without records between them, the
    /// first of which was a cut: nothing of the old version is left to be written.
    fn switch(&mut self, version: u64, now: Timestamp) -> Result<(), RunnerError> {
        let Some(project) = (self.parts.projects)(version) else {
            // Written by a weir that computed fingerprints otherwise: there was a restart between.
            tracing::debug!(shard = %self.parts.shard, version, "the log names a project that is not kept");
            return Ok(());
        };
        let mut states = HashMap::new();
        for Running { pipeline, merge, .. } in &mut self.built.running {
            let name = pipeline.name().to_owned();
            let failed = |source| RunnerError::Pipeline { name: name.clone(), source };
            let own = Some(pipeline.checkpoint().map_err(failed)?);
            let merged = merge.as_mut().map(Merge::checkpoint).transpose().map_err(failed)?;
            states.insert(name, Saved { own, merged });
        }
        let catalog = project.catalog();
        if catalog != *self.parts.catalog {
            // Everything that was pushed has been gathered.
            self.parts.catalog = Arc::new(catalog);
            self.rows = RowBuilder::new(self.parts.catalog.clone());
            self.letters.declare(&self.parts.catalog, now);
            self.parts.status.redecoding.store(self.letters.waiting(), Ordering::Release);
        }
        self.built = build(&self.parts, &project, &mut states, &self.heard)?;
        self.mail.unpark(true, |partial| self.built.take(partial))?;
        self.dropped.extend(states.into_keys());
        self.parts.project = project;
        self.version = version;
        Ok(())
    }

    /// Fingerprint of the project that counts behind the last record taken.
    pub fn version(&self) -> u64 {
        self.version
    }

    async fn checkpoint(
        &mut self,
        position: Position,
        now: Timestamp,
        barrier: Barrier,
        mut outbox: Vec<(String, RecordBatch)>,
    ) -> Result<(), RunnerError> {
        let mut states = Vec::with_capacity(self.built.running.len());
        let (mut groups, mut state_bytes) = (0, 0);
        let mut late = Vec::new();
        for at in 0..self.built.running.len() {
            let Some(Running { pipeline, merge, feeds }) = self.built.running.get_mut(at) else { break };
            let name = pipeline.name().to_owned();
            let failed = |source| RunnerError::Pipeline { name: name.clone(), source };
            let mut closed = pipeline.barrier(now).map_err(failed)?;
            if let Some(state) = pipeline.contribution() {
                self.mail.post(self.parts.shard, name.clone(), state);
            }
            let own = Some(pipeline.checkpoint().map_err(failed)?);
            states.push(PipelinePart { pipeline: name.clone(), part: OWN, state: own });
            let stats = pipeline.stats();
            groups += stats.groups as u64;
            state_bytes += stats.state_bytes as u64;
            let mut merged = None;
            if let Some(merge) = merge {
                let all = merge.barrier(now).map_err(failed)?;
                closed.rows.extend(all.rows);
                closed.late.extend(all.late);
                merged = Some(merge.checkpoint().map_err(failed)?);
                groups += merge.groups() as u64;
            }
            states.push(PipelinePart { pipeline: name.clone(), part: MERGED, state: merged });
            late.extend(closed.late.into_iter().map(|row| (name.clone(), row)));
            let feeds = feeds.clone();
            for batch in closed.rows.into_iter().filter(|batch| batch.num_rows() > 0) {
                for at in &feeds {
                    let Some(Running { pipeline, .. }) = self.built.running.get_mut(*at) else { continue };
                    pipeline
                        .ingest_result(&batch, now)
                        .map_err(|source| RunnerError::Pipeline { name: pipeline.name().to_owned(), source })?;
                }
                outbox.push((name.clone(), batch));
            }
        }
        let (letters, number) = self.mail.save();
        states.extend(letters);
        for (pipeline, state) in self.heard.barrier(now.0).map_err(|e| RunnerError::Rows(e.to_string()))? {
            states.push(PipelinePart { pipeline, part: OWN, state: Some(state) });
        }
        if let Some(state) = self.parts.status.alerts.checkpoint() {
            states.push(PipelinePart { pipeline: alerts::PART.to_owned(), part: OWN, state: Some(state) });
        }
        self.parts.status.open_groups.store(groups, Ordering::Relaxed);
        self.parts.status.state_bytes.store(state_bytes, Ordering::Relaxed);
        self.built.publish(&self.parts.status)?;
        if !late.is_empty() {
            let count: u64 = late.iter().map(|(_, row)| row.records).sum();
            self.parts.status.late.fetch_add(count, Ordering::Relaxed);
            let batch = output::late_batch(&late, now).map_err(|e| RunnerError::Rows(e.to_string()))?;
            outbox.push((storage::schema::LATE.to_owned(), batch));
        }
        let devices = self.parts.devices.collect(position).await.map_err(RunnerError::Snapshots)?;
        let outbox_rows = outbox
            .iter()
            .map(|(table, batch)| {
                let ipc = output::to_ipc(batch).map_err(|e| RunnerError::Rows(e.to_string()))?;
                Ok(Outbox { barrier, table: table.clone(), ipc })
            })
            .collect::<Result<Vec<_>, RunnerError>>()?;
        let noted = self.letters.counters();
        let checkpoint = Checkpoint {
            #[cfg(not(feature = "planted"))]
            position,
            #[cfg(feature = "planted")]
            position: if device::planted::is("barrier-position") { position.next() } else { position },
            barrier,
            time: now,
            devices,
            pipelines: states,
            dropped_pipelines: self.dropped.clone(),
            outbox: outbox_rows,
            #[cfg(not(feature = "planted"))]
            counters: noted.into_iter().chain([(PROJECT.to_owned(), self.version), number]).collect(),
            #[cfg(feature = "planted")]
            counters: match device::planted::is("version-not-noted") {
                true => vec![number],
                false => noted.into_iter().chain([(PROJECT.to_owned(), self.version), number]).collect(),
            },
        };
        self.until_it_works("checkpoint", async |parts| {
            parts.wait(parts.state.checkpoint(checkpoint.clone())).await?.map_err(Failure::of_state)
        })
        .await?;
        self.parts.devices.persisted(position);
        self.mail.send(self.parts.shards, self.parts.peers.as_ref());
        #[cfg(feature = "planted")]
        if device::planted::is("truncate-at-checkpoint") {
            let _ = self.parts.log.truncate(self.parts.shard, position);
        }
        self.dropped.clear();
        self.recovered.checkpoint = position;
        self.recovered.checkpoint_barrier = barrier;
        for (table, batch) in outbox {
            self.parts.status.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            self.parts.status.live.add(&table, batch);
        }
        self.parts.status.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn cut(&mut self, position: Position, barrier: Barrier) -> Result<(), RunnerError> {
        let from = self.recovered.cut_barrier;
        // What lies before a cut is not read again.
        self.until_it_works("keep what was heard of alerts", async |parts| {
            let failed = |error: LogError| Failure { permanent: !error.is_retriable(), text: error.to_string() };
            parts.listener.keep().map_err(failed)
        })
        .await?;
        let mut tables = std::mem::take(&mut self.raw);
        // Only what is durable in the outbox goes into files, also when this process made it a moment ago.
        let closed = self
            .until_it_works("read the outbox", async |parts| {
                parts.wait(parts.state.outbox(barrier)).await?.map_err(Failure::of_state)
            })
            .await?;
        for row in closed {
            let batches = output::from_ipc(&row.ipc).map_err(|e| RunnerError::Rows(e.to_string()))?;
            tables.entry(row.table).or_default().extend(batches);
        }
        let rows: Vec<TableRows> = tables
            .into_iter()
            .map(|(table, batches)| output::spec_of(&self.built.specs, &table, &batches).rows(&table, batches))
            .collect();
        #[cfg(feature = "planted")]
        if device::planted::is("cut-before-files") {
            self.until_it_works("record the cut", async |parts| {
                parts.wait(parts.state.cut_done(CutDone { barrier, position })).await?.map_err(Failure::of_state)
            })
            .await?;
        }
        let written = self
            .until_it_works("write files", async |parts| {
                let write = storage::parquet::write_cut(&parts.store, parts.shard, from, barrier, rows.clone());
                parts.wait(write).await?.map_err(|error| Failure {
                    permanent: matches!(error, WriteError::Rows { .. }),
                    text: error.to_string(),
                })
            })
            .await?;
        drop(rows);
        self.parts.status.files.fetch_add(written.len() as u64, Ordering::Relaxed);
        let bytes: usize = written.iter().map(|file| file.bytes).sum();
        self.parts.status.file_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.until_it_works("record the cut", async |parts| {
            parts.wait(parts.state.cut_done(CutDone { barrier, position })).await?.map_err(Failure::of_state)
        })
        .await?;
        self.recovered.cut = position;
        self.recovered.cut_barrier = barrier;
        self.parts.status.live.cut(barrier);
        self.parts.status.cut.send_replace(barrier);
        self.answer(from, barrier);
        let upto = position.min(self.recovered.checkpoint);
        if let Err(error) = self.parts.log.truncate(self.parts.shard, upto) {
            // Only space is lost; the next cut tries again.
            tracing::warn!(shard = %self.parts.shard, %error, "cannot truncate the log");
        }
        Ok(())
    }
}
