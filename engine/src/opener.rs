//! Opening one shard on whatever it stands on: log, state and store may be those of a disk or of a simulation.
//!
//! Devices are rebuilt from state and log first, then tables and pipelines by replay. Deliberately absent: threads
//! and listeners; nothing runs yet when a shard is open.

use std::sync::Arc;
use std::time::Duration;

use actors::committer::{Clock, Committer, Start};
use actors::message::Downlink;
use actors::metrics::Metrics;
use actors::rules::RuleBook;
use actors::shard::{Parts as ShardParts, Random, Shard, Snapshots};
use bytes::Bytes;
use device::entry::{LogBody, LogRecord};
use device::id::{DeviceId, ShardId};
use device::schema::Catalog;
use device::seq::{Barrier, Position};
use device::shadow::ShadowRules;
use futures::future::BoxFuture;
use pipelines::alerts::Listener;
use pipelines::runner::{DeviceStates, LogEnd, PROJECT, Parts as RunnerParts, Peers, Projects, Runner, Status};
use sql::Project;
use storage::log::ShardLog;
use storage::state::StateStore;
use storage::store::Store;

use crate::core::CoreError;

/// What all shards of a process stand on.
#[derive(Clone)]
pub struct Opener {
    /// Where tables stand.
    pub store: Store,
    /// The log of every shard.
    pub log: Arc<dyn ShardLog>,
    /// Time.
    pub clock: Clock,
    /// Random numbers.
    pub random: Random,
    /// The way to subscribers.
    pub downlink: Arc<dyn Downlink>,
    /// How long a device is silent before it sleeps.
    pub passivate_after: Duration,
    /// Versions of the pipeline project that logs and states may name.
    pub projects: Projects,
    /// How many shards there are.
    pub shards: u16,
    /// The way from one to another.
    pub peers: Arc<dyn Peers>,
    /// Who wins where both sides of a shadow have changed.
    pub shadow_rules: Arc<ShadowRules>,
    /// Who hears of alerts.
    pub listener: Arc<dyn Listener>,
}

/// A shard that is open and does not run yet.
pub struct Opened {
    /// Its devices; its committer stands at `end`.
    pub shard: Arc<Shard>,
    /// The consumer of its log, everything replayed.
    pub runner: Runner,
    /// Where the log ends.
    pub end: LogEnd,
    /// What the consumer says of itself.
    pub status: Arc<Status>,
}

impl Opened {
    /// Where the committer goes on.
    pub fn start(&self) -> Start {
        let LogEnd { position, barrier, time, uncut, .. } = self.end;
        Start { position, barrier, time, uncut }
    }
}

impl Opener {
    /// The alert rules of a project, and of those that the log may go over to.
    fn book(&self, project: &Arc<Project>) -> RuleBook {
        let projects = self.projects.clone();
        let of = move |version| projects(version).map(|project: Arc<Project>| Arc::new(project.rules()));
        RuleBook::new(Arc::new(project.rules()), Arc::new(of))
    }

    /// Recovers a shard: devices from state and log, then tables and pipelines by replay.
    pub async fn shard(
        &self,
        id: ShardId,
        state: &Arc<StateStore>,
        project: &Arc<Project>,
        catalog: &Arc<Catalog>,
        metrics: &Arc<Metrics>,
    ) -> Result<Opened, CoreError> {
        let last = self.log.bounds(id)?.last;
        let start = Start { position: last, barrier: Barrier(0), time: Default::default(), uncut: false };
        let checkpoint = state.load().await?.checkpoint.map_or_else(Position::default, |c| c.0);
        let shard = Arc::new(Shard::new(ShardParts {
            id,
            committer: Committer::new(id, start),
            log: self.log.clone(),
            state: state.clone(),
            catalog: catalog.clone(),
            clock: self.clock.clone(),
            random: self.random.clone(),
            downlink: self.downlink.clone(),
            metrics: metrics.clone(),
            passivate_after_ns: i64::try_from(self.passivate_after.as_nanos()).unwrap_or(i64::MAX),
            checkpoint,
            book: self.book(project),
            shadow_rules: self.shadow_rules.clone(),
        }));
        shard.recover().await?;
        let status = Arc::new(Status::default());
        let parts = RunnerParts {
            shard: id,
            log: self.log.clone(),
            state: state.clone(),
            store: self.store.clone(),
            project: project.clone(),
            projects: self.projects.clone(),
            catalog: catalog.clone(),
            devices: Box::new(ShardStates { shard: shard.clone(), last: None }),
            shards: self.shards,
            peers: self.peers.clone(),
            listener: self.listener.clone(),
            status: status.clone(),
        };
        let failed = |source| CoreError::Runner { shard: id, source };
        let mut runner = Runner::open(parts).await.map_err(failed)?;
        let mut end = runner.replay().await.map_err(failed)?;
        end.position = end.position.max(last);
        Ok(Opened { shard, runner, end, status })
    }

    /// Recovers a shard to go on under `wanted`. What its log holds of other versions of the project is finished
    /// first, each record under the version that counted when it came. `before`: the version that counted where the
    /// shard has noted none.
    pub async fn shard_under(
        &self,
        id: ShardId,
        state: &Arc<StateStore>,
        (before, wanted): (&Arc<Project>, &Arc<Project>),
        catalog: &Arc<Catalog>,
        metrics: &Arc<Metrics>,
    ) -> Result<Opened, CoreError> {
        let version = wanted.fingerprint();
        let own = self.noted(state, before).await?;
        if own.fingerprint() != version {
            self.finish(id, state, &own).await?;
        }
        if state.counter(PROJECT).await? != Some(version) {
            state.set_counter(PROJECT, version).await?;
        }
        let opened = self.shard(id, state, wanted, catalog, metrics).await?;
        if opened.runner.version() == version {
            return Ok(opened);
        }
        // It was about to go over to yet another one when it ended. The replay may have noted that, so what follows
        // is read from there.
        drop(opened);
        let own = self.noted(state, wanted).await?;
        self.finish(id, state, &own).await?;
        state.set_counter(PROJECT, version).await?;
        self.shard(id, state, wanted, catalog, metrics).await
    }

    /// The version of the project that counts where a shard's state stands.
    async fn noted(&self, state: &StateStore, otherwise: &Arc<Project>) -> Result<Arc<Project>, CoreError> {
        let noted = state.counter(PROJECT).await?;
        Ok(noted.and_then(|version| (self.projects)(version)).unwrap_or_else(|| otherwise.clone()))
    }

    /// Finishes everything that a shard's log holds: replay from `project` on, a barrier, files.
    async fn finish(&self, id: ShardId, state: &Arc<StateStore>, project: &Arc<Project>) -> Result<(), CoreError> {
        let catalog = Arc::new(project.catalog());
        let metrics = Arc::new(Metrics::default());
        let Opened { mut runner, end, .. } = self.shard(id, state, project, &catalog, &metrics).await?;
        if !end.uncut {
            return Ok(());
        }
        let body = LogBody::Barrier { barrier: end.barrier.next(), cut: true, catalog: runner.version() };
        let record = LogRecord { time: end.time.max((self.clock)()), body };
        let position = end.position.next();
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        self.log.append(id, position, &Bytes::from(bytes))?;
        runner.take(position, &record).await.map_err(|source| CoreError::Runner { shard: id, source })
    }
}

/// Gives a consumer the states of its shard's devices.
struct ShardStates {
    shard: Arc<Shard>,
    last: Option<Snapshots>,
}

impl DeviceStates for ShardStates {
    fn collect(&mut self, position: Position) -> BoxFuture<'_, Result<Vec<(DeviceId, Bytes)>, String>> {
        Box::pin(async move {
            let snapshots = self.shard.snapshots(position).await.map_err(|e| e.to_string())?;
            let devices = snapshots.devices.clone();
            self.last = Some(snapshots);
            Ok(devices)
        })
    }

    fn persisted(&mut self, position: Position) {
        if let Some(snapshots) = self.last.take() {
            self.shard.persisted(position, &snapshots);
        }
    }
}
