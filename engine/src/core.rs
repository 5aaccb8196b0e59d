//! The data plane of one process: log, state, devices, pipelines and tables of all shards, without any listener.
//!
//! `weir run` puts listeners in front of it; `weir audit --data` opens it without.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use actors::admission::Admission;
use actors::committer::{BarrierPolicy, Work};
use actors::message::Downlink;
use actors::metrics::Metrics;
use actors::node::Node;
use alerts::Keeper;
use bytes::Bytes;
use device::id::{DeviceId, ShardId};
use device::schema::Catalog;
use device::seq::Barrier;
use parking_lot::{Mutex, RwLock};
use pipelines::runner::{LogEnd, RunnerError, Stand, Status};
use serde::{Deserialize, Serialize};
use sql::{PipelinePlan, Project};
use storage::layout;
use storage::lock::DataLock;
use storage::log::{RaftLog, RaftLogOptions, ShardLog};
use storage::state::StateStore;
use storage::store::Store;
use storage::table::TableStore;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::config::Config;
use crate::fleets::Fleets;
use crate::groups::Groups;
use crate::holds::Holds;
use crate::notify::{self, Ear};
use crate::opener::{Opened, Opener};
use crate::peers;
use crate::project::{Loaded, ProjectError, Registry};
use crate::schemas;
use crate::sweep::sweep;

/// Why the data plane does not start, or had to stop.
#[derive(Debug, Error)]
pub enum CoreError {
    /// The data directory is in use, or cannot be.
    #[error("{0}")]
    Lock(#[from] storage::lock::LockError),
    /// The data directory as a store.
    #[error("{0}")]
    Store(#[from] storage::store::StoreError),
    /// The log.
    #[error("log: {0}")]
    Log(#[from] storage::log::LogError),
    /// The state store.
    #[error("state: {0}")]
    State(#[from] storage::state::StateError),
    /// Devices.
    #[error("devices: {0}")]
    Shard(#[from] actors::shard::ShardError),
    /// A shard's consumer.
    #[error("shard {shard}: {source}")]
    Runner {
        /// Which shard.
        shard: ShardId,
        /// Why.
        source: RunnerError,
    },
    /// The pipeline project.
    #[error("{0}")]
    Project(#[from] ProjectError),
    /// What is known of alerts and their messages.
    #[error("{0}")]
    Alerts(#[from] alerts::KeepError),
    /// A file of the data directory.
    #[error("{path}: {message}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// Something that cannot be told more precisely.
    #[error("{0}")]
    Other(String),
}

/// The data plane.
pub struct Core {
    /// The device side.
    pub node: Arc<Node>,
    /// What the consumers say of themselves, by shard.
    pub statuses: Vec<Arc<Status>>,
    /// Files of all tables.
    pub tables: Arc<TableStore>,
    /// Who needs which times of them.
    pub holds: Arc<Holds>,
    /// Who is told of incidents.
    pub desk: Arc<Keeper>,
    /// The project that counts, and its streams.
    project: RwLock<(Arc<Project>, Arc<Catalog>)>,
    /// Groups of devices.
    pub groups: Arc<Groups>,
    /// The same by device.
    pub fleets: Arc<Fleets>,
    /// Who was enrolled, and how; not there if this process gives no certificates.
    pub enrolled: OnceLock<Arc<access::registry::Registry>>,
    registry: Arc<Registry>,
    /// The data directory.
    root: PathBuf,
    /// Held while the shards go over to another version.
    going_over: tokio::sync::Mutex<()>,
    /// Counters of the device side.
    pub metrics: Arc<Metrics>,
    /// How recovery went, for the log.
    pub recovered: Vec<LogEnd>,
    states: Vec<Arc<StateStore>>,
    threads: Vec<JoinHandle<()>>,
    redecoding: Mutex<tokio::task::JoinHandle<()>>,
    fatal: tokio::sync::Mutex<mpsc::Receiver<CoreError>>,
    _lock: DataLock,
}

/// `registry/node.json`
#[derive(Serialize, Deserialize)]
struct NodeFile {
    format: u32,
    shards: u16,
}

/// Barriers go on for so long after the last record: until every device that has fallen silent counts as such.
const SETTLE: Duration = Duration::from_nanos(pipelines::IDLE as u64 * 3 / 2);

/// Version of the data directory as a whole.
const FORMAT: u32 = 1;

impl Core {
    /// Opens the data directory, recovers every shard, and starts committers, consumers and supervisors.
    pub async fn open(
        config: &Config,
        loaded: Loaded,
        clock: Clock,
        downlink: Arc<dyn Downlink>,
    ) -> Result<Self, CoreError> {
        let root = config.store.data.clone();
        let file_error = |path: &Path, e: std::io::Error| CoreError::File { path: path.into(), message: e.to_string() };
        std::fs::create_dir_all(&root).map_err(|e| file_error(&root, e))?;
        let lock = DataLock::acquire(&root)?;
        let swept = sweep(&root.join("tables"))
            .map_err(|e| CoreError::Other(format!("half files below {} cannot be removed: {e}", root.display())))?;
        if swept > 0 {
            tracing::info!(files = swept, "removed half files that a crash has left");
        }
        let store = Store::local(&root)?;
        crate::repair::sweep(&store).await?;
        let shards = shard_count(&root.join(layout::registry("node", "node.json")), config.node.shards)?;
        let log: Arc<dyn ShardLog> = Arc::new(RaftLog::open(&layout::log_dir(&root), RaftLogOptions::default())?);
        let mut states = Vec::new();
        for shard in 0..shards {
            states.push(Arc::new(StateStore::open(&store, ShardId(shard)).await?));
        }
        let registry = Arc::new(Registry::new(project_file(&root)));
        let peers = Arc::new(peers::Local::default());
        let desk = Arc::new(Keeper::open(log.clone())?);
        let groups = Arc::new(Groups::open(&root).map_err(|error| CoreError::Other(error.to_string()))?);
        let fleets = Arc::new(Fleets::default());
        fleets.take(&groups, &BTreeMap::new());
        let opener = Opener {
            projects: {
                let registry = registry.clone();
                Arc::new(move |version| registry.get(version))
            },
            store: store.clone(),
            log: log.clone(),
            clock: clock.clone(),
            random: Arc::new(rand::random::<u64>),
            downlink,
            passivate_after: config.node.passivate_after,
            shards,
            peers: peers.clone(),
            shadow_rules: Arc::new(config.shadow.rules().map_err(|error| CoreError::Other(error.to_string()))?),
            listener: Arc::new(Ear { keeper: desk.clone(), fleets: fleets.clone(), clock: clock.clone() }),
        };

        schemas::allowed(&schemas::known(&root)?, &loaded.project, &loaded.files)?;
        let project = registry.keep(&loaded)?;
        schemas::note(&root, &loaded)?;
        let before = match registry.current()? {
            Some(old) if old.project.fingerprint() != project.fingerprint() => {
                tracing::info!("the pipeline project has changed; finishing what was written under the old one");
                Arc::new(old.project)
            }
            _ => project.clone(),
        };
        let catalog = Arc::new(project.catalog());
        let metrics = Arc::new(Metrics::default());
        let fingerprint = project.fingerprint();
        let (fatal_sender, fatal) = mpsc::channel(usize::from(shards).max(1));
        let (mut opened, mut statuses, mut threads, mut recovered) = (vec![], vec![], vec![], vec![]);
        for (at, state) in states.iter().enumerate() {
            let id = ShardId(at as u16);
            let (opener, state) = (opener.clone(), state.clone());
            let (versions, catalog, counters) = ((before.clone(), project.clone()), catalog.clone(), metrics.clone());
            let shard = blocking(async move || {
                opener.shard_under(id, &state, (&versions.0, &versions.1), &catalog, &counters).await
            });
            let shard = shard.await??;
            opened.push(shard.shard.clone());
            statuses.push(shard.status.clone());
            recovered.push(shard.end);
            let work = work(id, config, &log, &clock, fingerprint, &metrics, &fatal_sender);
            threads.extend(spawn(id, shard, work, &fatal_sender));
        }
        registry.settle(&loaded)?;
        peers.open(&opened);
        let admission = Admission::new(config.limits.in_flight as usize);
        let node = Node::start(opened, admission, metrics.clone())
            .await
            .map_err(|e| CoreError::Other(format!("cannot start the shard supervisors: {e}")))?;
        let redecoding = tokio::spawn(redecode(node.shards().to_vec(), statuses.clone()));
        let core = Self {
            node: Arc::new(node),
            statuses,
            tables: Arc::new(TableStore::open(store)),
            holds: Arc::default(),
            desk,
            project: RwLock::new((project, catalog)),
            groups,
            fleets,
            enrolled: OnceLock::new(),
            registry,
            root,
            going_over: tokio::sync::Mutex::new(()),
            metrics,
            recovered,
            states,
            threads,
            redecoding: Mutex::new(redecoding),
            fatal: tokio::sync::Mutex::new(fatal),
            _lock: lock,
        };
        core.review_alerts();
        Ok(core)
    }

    /// Whether devices can be served: every log takes appends, every store takes writes.
    pub fn healthy(&self) -> bool {
        self.node.healthy() && self.statuses.iter().all(|status| status.healthy.load(Ordering::Relaxed))
    }

    /// Waits for a failure that ends the process.
    pub async fn failed(&self) -> CoreError {
        match self.fatal.lock().await.recv().await {
            Some(error) => error,
            // All senders are gone only when the threads have ended on request.
            None => std::future::pending().await,
        }
    }

    /// A barrier in every shard; returns when all files up to it are visible. What shards give each other at a barrier is
    /// in windows only at the next one: there are as many as it takes.
    pub async fn flush(&self) -> Result<Vec<Barrier>, CoreError> {
        let mut barriers = self.flush_once().await?;
        for _ in 0..self.project().depth(PipelinePlan::is_shared) {
            barriers = self.flush_once().await?;
        }
        Ok(barriers)
    }

    async fn flush_once(&self) -> Result<Vec<Barrier>, CoreError> {
        let stopped = || CoreError::Other("the engine is stopping; nothing was flushed".to_owned());
        let mut barriers = Vec::new();
        for (receiver, status) in self.node.barrier(true).into_iter().zip(&self.statuses) {
            let barrier = receiver.await.map_err(|_| stopped())?;
            let mut cut = status.cut.subscribe();
            cut.wait_for(|done| *done >= barrier).await.map_err(|_| stopped())?;
            barriers.push(barrier);
        }
        Ok(barriers)
    }

    /// Makes a cut in every shard, and says where a pipeline stands there.
    pub async fn stands(&self, pipeline: &str) -> Result<Vec<Stand>, CoreError> {
        // All under one version of the project.
        let _one = self.going_over.lock().await;
        let stopped = |_| CoreError::Other("the engine is stopping".to_owned());
        let mut stands = Vec::new();
        for (shard, status) in self.node.shards().iter().zip(&self.statuses) {
            loop {
                let stand = status.stand(pipeline);
                drop(shard.committer.barrier(true));
                let stand = stand.await.map_err(stopped)?;
                // Files of the first cut begin at 0, as those do that replace: the next cut has another name.
                if stand.before > Barrier(0) {
                    stands.push(stand);
                    break;
                }
            }
        }
        Ok(stands)
    }

    /// The project that counts.
    pub fn project(&self) -> Arc<Project> {
        self.project.read().0.clone()
    }

    /// Its streams.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.project.read().1.clone()
    }

    /// What is known of streams; see [`schemas`].
    pub fn schemas(&self) -> Result<Vec<sql::Known>, ProjectError> {
        schemas::known(&self.root)
    }

    /// Goes over to another version of the project while everything runs: each shard at one position of its log, up
    /// to which the old version counts and behind which the new. Returns when all have; `false`: it counts already.
    pub async fn go_over(&self, loaded: &Loaded) -> Result<bool, CoreError> {
        let _one = self.going_over.lock().await;
        let version = loaded.project.fingerprint();
        if self.project().fingerprint() == version {
            return Ok(false);
        }
        schemas::allowed(&self.schemas()?, &loaded.project, &loaded.files)?;
        let project = self.registry.keep(loaded)?;
        let catalog = Arc::new(project.catalog());
        schemas::note(&self.root, loaded)?;
        let stopped = || CoreError::Other("the engine is stopping".to_owned());
        let asked: Vec<_> = self.node.shards().iter().map(|shard| shard.switch(version, catalog.clone())).collect();
        for (receiver, status) in asked.into_iter().zip(&self.statuses) {
            let barrier = receiver.await.map_err(|_| stopped())?;
            let mut cut = status.cut.subscribe();
            cut.wait_for(|done| *done >= barrier).await.map_err(|_| stopped())?;
        }
        self.registry.settle(loaded)?;
        *self.project.write() = (project, catalog);
        let redecoding = tokio::spawn(redecode(self.node.shards().to_vec(), self.statuses.clone()));
        std::mem::replace(&mut *self.redecoding.lock(), redecoding).abort();
        self.review_alerts();
        notify::adopt(&self.desk, &self.project());
        Ok(true)
    }

    /// Incidents of rules that are gone or have changed end: their devices look at themselves, also those that sleep.
    fn review_alerts(&self) {
        let project = self.project();
        let counts = |rule: &str, version| project.alert(rule).is_some_and(|plan| plan.rule.version == version);
        for status in &self.statuses {
            for ((device, _), _) in status.alerts.list(None, usize::MAX, |(_, rule), last| !counts(rule, last.version))
            {
                if let Ok(device) = DeviceId::new(&device) {
                    self.node.look_at_alerts(&device);
                }
            }
        }
    }

    /// Waits until queries see everything that is durable now.
    pub async fn caught_up(&self, patience: Duration) -> Result<(), CoreError> {
        let waiting = async {
            for (shard, status) in self.node.shards().iter().zip(&self.statuses) {
                let durable = shard.committer.durable().0;
                while status.position.load(Ordering::Acquire) < durable {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        tokio::time::timeout(patience, waiting).await.map_err(|_| {
            CoreError::Other(format!("the tables have not caught up with the log within {patience:?}; try again later"))
        })
    }

    /// States of devices straight from the store, by name, behind `after`.
    pub async fn stored_devices(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeviceId>, CoreError> {
        let mut ids = Vec::new();
        for state in &self.states {
            ids.extend(state.devices(after, limit).await?.into_iter().map(|(id, _)| id));
        }
        ids.sort();
        ids.truncate(limit);
        Ok(ids)
    }

    /// Ends everything. With `flush`, what is committed is cut into files first.
    pub async fn shutdown(mut self, flush: bool) -> Result<(), CoreError> {
        let mut outcome = Ok(());
        // A cut that it asks for now would never be answered; the next start goes on with it.
        let redecoding = self.redecoding.get_mut();
        redecoding.abort();
        let _ = redecoding.await;
        if flush && self.healthy() {
            // A store that fails just now must not keep the process from ending: what is in the log is safe.
            outcome = match tokio::time::timeout(Duration::from_secs(60), self.flush()).await {
                Ok(done) => done.map(|_| ()),
                Err(_) => Err(CoreError::Other(
                    "the last files were not written within 60 s; the next start writes them".to_owned(),
                )),
            };
        }
        for (shard, status) in self.node.shards().iter().zip(&self.statuses) {
            status.stop.store(true, Ordering::Relaxed);
            shard.committer.stop();
        }
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        });
        let _ = joined.await;
        self.node.stop().await;
        for state in &self.states {
            if let Err(error) = state.close().await {
                tracing::warn!(%error, "closing the state store");
            }
        }
        outcome
    }
}

/// Asks for cuts as long as shards have frames to read again, each of which takes a part of them.
async fn redecode(shards: Vec<Arc<actors::shard::Shard>>, statuses: Vec<Arc<Status>>) {
    for (shard, status) in shards.iter().zip(&statuses) {
        let mut cut = status.cut.subscribe();
        while status.redecoding.load(Ordering::Acquire) {
            // Either fails only when the engine ends.
            let Ok(barrier) = shard.committer.barrier(true).await else { return };
            if cut.wait_for(|done| *done >= barrier).await.is_err() {
                return;
            }
        }
    }
}

/// Where the project that counts is kept.
pub fn project_file(data: &Path) -> PathBuf {
    data.join(layout::registry("pipelines", "project.json"))
}

/// The number of shards of the data directory; a new one gets `wanted`.
fn shard_count(path: &Path, wanted: u16) -> Result<u16, CoreError> {
    let failed = |message: String| CoreError::File { path: path.to_owned(), message };
    match std::fs::read(path) {
        Ok(bytes) => {
            let node: NodeFile = serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
            if node.format > FORMAT {
                let found = node.format;
                let message = format!(
                    "data format {found} is newer than this weir, which knows {FORMAT}: run the weir that wrote it, or a newer one"
                );
                return Err(failed(message));
            }
            if node.shards != wanted {
                tracing::info!(shards = node.shards, "the data directory keeps its number of shards");
            }
            Ok(node.shards)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let node = NodeFile { format: FORMAT, shards: wanted };
            let write = || -> std::io::Result<()> {
                if let Some(dir) = path.parent() {
                    std::fs::create_dir_all(dir)?;
                }
                // In one step: half a file would keep the engine from ever starting again.
                let fresh = path.with_extension("new");
                std::fs::write(&fresh, serde_json::to_vec_pretty(&node)?)?;
                std::fs::File::open(&fresh)?.sync_all()?;
                std::fs::rename(&fresh, path)
            };
            write().map_err(|e| failed(e.to_string()))?;
            Ok(wanted)
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Runs `act` on a thread of its own: replay computes for long, which a runtime thread must not do, and planning
/// pipelines needs a large stack.
pub(crate) async fn blocking<T: Send + 'static>(act: impl AsyncFnOnce() -> T + Send + 'static) -> Result<T, CoreError> {
    let runtime = Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("recover".to_owned())
        .stack_size(crate::query::STACK)
        .spawn(move || drop(sender.send(runtime.block_on(act()))))
        .map_err(|e| CoreError::Other(format!("cannot start a thread: {e}")))?;
    receiver.await.map_err(|_| CoreError::Other("recovery ended without an answer".to_owned()))
}

/// What the committer of a shard works with; its consumer comes with its thread.
fn work(
    shard: ShardId,
    config: &Config,
    log: &Arc<dyn ShardLog>,
    clock: &Clock,
    catalog: u64,
    metrics: &Arc<Metrics>,
    fatal: &mpsc::Sender<CoreError>,
) -> Work {
    let fatal = fatal.clone();
    Work {
        log: log.clone(),
        consumer: Box::new(|_| false),
        clock: clock.clone(),
        policy: BarrierPolicy {
            checkpoint_every: config.durability.checkpoint_every,
            cut_every: config.durability.cut_every,
            cut_bytes: config.durability.cut_bytes,
            settle: SETTLE,
        },
        catalog,
        metrics: metrics.clone(),
        failed: Box::new(move |error| {
            let _ = fatal.try_send(CoreError::Other(format!("shard {shard}: {error}")));
        }),
    }
}

/// Starts the two threads of a shard: its committer, and the consumer of its log.
fn spawn(id: ShardId, opened: Opened, work: Work, fatal: &mpsc::Sender<CoreError>) -> Vec<JoinHandle<()>> {
    let start = opened.start();
    let Opened { shard, mut runner, status, .. } = opened;
    let (sender, receiver) = std::sync::mpsc::sync_channel(crate::limits::CONSUMER_QUEUE);
    let work = Work { consumer: Box::new(move |durable| sender.send(durable).is_ok()), ..work };
    let runtime = Handle::current();
    let spawned = [
        std::thread::Builder::new().name(format!("commit-{id}")).spawn(move || {
            shard.committer.run(start, &work);
        }),
        {
            let fatal = fatal.clone();
            let tables = std::thread::Builder::new().name(format!("tables-{id}")).stack_size(crate::query::STACK);
            tables.spawn(move || {
                if let Err(source) = runner.run(&receiver, &runtime) {
                    status.healthy.store(false, Ordering::Relaxed);
                    let _ = fatal.try_send(CoreError::Runner { shard: id, source });
                }
            })
        },
    ];
    let mut threads = Vec::new();
    for thread in spawned {
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                let _ = fatal.try_send(CoreError::Other(format!("cannot start a thread: {error}")));
            }
        }
    }
    threads
}

/// The way to subscribers when there are none.
#[derive(Debug)]
pub struct Silent;

impl Downlink for Silent {
    fn publish(&self, _: &DeviceId, _: &str, _: Bytes, _: u8) {}
}
