//! An engine of one shard in memory, with a clock that moves only when it is told to.
//!
//! Everything a record passes on its way is what production runs: admission, the device's state machine, the
//! committer, the shard log's records, tables and pipelines. Log and state are their adapters in memory, files stand in
//! a temporary folder; no thread runs, each step is taken here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actors::admission::Admission;
use actors::committer::{BarrierPolicy, Progress, Step, Work};
use actors::message::{Channel, Inbound, Ingress, Outcome, OutcomeSink, Reply};
use actors::metrics::Metrics;
use actors::node::Node;
use actors::shard::Shard;
use bytes::Bytes;
use datafusion::prelude::SessionContext;
use device::id::{DeviceId, ShardId};
use device::payload::PayloadFormat;
use device::schema::Catalog;
use device::time::{SECOND, Timestamp};
use futures::executor::block_on;
use parking_lot::Mutex;
use pipelines::runner::{Runner, Status};
use sql::{PipelinePlan, Project};
use storage::durable::Durable;
use storage::log::MemoryLog;
use storage::state::{MemoryDisk, StateStore};
use storage::store::Store;
use storage::table::TableStore;

use super::Failure;
use crate::core::Silent;
use crate::opener::{Opened, Opener};
use crate::peers;
use crate::query;

/// Nothing is due by itself: barriers stand where the test asks for them, and no device goes to sleep.
const NEVER: Duration = Duration::from_secs(1 << 33);

/// When a test begins whose first record has no time of its own: 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600 * SECOND;

/// Bytes of messages that may be on their way.
const CREDIT: usize = 64 << 20;

/// Messages after which they are committed, so that credit returns.
const COMMIT_AFTER: usize = 256;

/// Real time that a message may take to its outcome.
const PATIENCE: Duration = Duration::from_secs(30);

/// Memory for queries.
const QUERY_MEMORY: u64 = 1 << 30;

/// What became of messages, by ticket.
#[derive(Debug, Default)]
struct Outcomes(Mutex<BTreeMap<u64, Outcome>>);

impl OutcomeSink for Outcomes {
    fn decided(&self, ticket: u64, outcome: Outcome) {
        self.0.lock().insert(ticket, outcome);
    }
}

/// The engine of one test.
pub(super) struct Lab {
    pub(super) project: Arc<Project>,
    catalog: Arc<Catalog>,
    node: Node,
    shard: Arc<Shard>,
    runner: Runner,
    progress: Progress,
    work: Work,
    committed: Arc<Mutex<VecDeque<Durable>>>,
    statuses: [Arc<Status>; 1],
    tables: TableStore,
    clock: Arc<AtomicI64>,
    outcomes: Arc<Outcomes>,
    tickets: u64,
    /// Messages that have no outcome yet.
    undecided: Vec<u64>,
    _files: tempfile::TempDir,
    memory: Arc<datafusion::execution::runtime_env::RuntimeEnv>,
}

impl Lab {
    /// An engine that has seen nothing, at the time 0.
    pub(super) async fn new(project: Arc<Project>) -> Result<Self, Failure> {
        let catalog = Arc::new(project.catalog());
        let metrics = Arc::new(Metrics::default());
        let files = tempfile::tempdir().map_err(|e| Failure::new(format!("no folder for temporary files: {e}")))?;
        let store = Store::scratch(files.path()).map_err(Failure::new)?;
        let (clock, draws) = (Arc::new(AtomicI64::new(0)), AtomicU64::new(0));
        let peers = Arc::new(peers::Local::default());
        let opener = Opener {
            store: store.clone(),
            log: Arc::new(MemoryLog::new()),
            clock: {
                let clock = clock.clone();
                Arc::new(move || Timestamp(clock.load(Ordering::Relaxed)))
            },
            // Numbers that the engine draws are the same in every run.
            random: Arc::new(move || 1 + draws.fetch_add(1, Ordering::Relaxed)),
            downlink: Arc::new(Silent),
            passivate_after: NEVER,
            projects: Arc::new(|_| None),
            shards: 1,
            peers: peers.clone(),
            shadow_rules: Arc::default(),
            listener: Arc::new(pipelines::alerts::Nobody),
        };
        let id = ShardId(0);
        let state = StateStore::over(Box::new(MemoryDisk::default().open()), id).await.map_err(Failure::new)?;
        let opened = opener.shard(id, &Arc::new(state), &project, &catalog, &metrics).await.map_err(Failure::new)?;
        let progress = Progress::new(opened.start());
        let Opened { shard, runner, status, .. } = opened;
        peers.open(std::slice::from_ref(&shard));
        let committed: Arc<Mutex<VecDeque<Durable>>> = Arc::default();
        let work = Work {
            log: opener.log.clone(),
            consumer: {
                let committed = committed.clone();
                Box::new(move |durable| {
                    committed.lock().push_back(durable);
                    true
                })
            },
            clock: opener.clock.clone(),
            policy: BarrierPolicy {
                checkpoint_every: NEVER,
                cut_every: NEVER,
                cut_bytes: u64::MAX,
                settle: Duration::ZERO,
            },
            catalog: project.fingerprint(),
            metrics: metrics.clone(),
            failed: Box::new(|_| {}),
        };
        let node = Node::start(vec![shard.clone()], Admission::new(CREDIT), metrics).await.map_err(Failure::new)?;
        Ok(Self {
            project,
            catalog,
            node,
            shard,
            runner,
            progress,
            work,
            committed,
            statuses: [status],
            tables: TableStore::open(store),
            clock,
            outcomes: Arc::default(),
            tickets: 0,
            undecided: Vec::new(),
            _files: files,
            memory: query::runtime(QUERY_MEMORY).map_err(Failure::new)?,
        })
    }

    /// What the engine takes for the time, in nanoseconds.
    pub(super) fn now(&self) -> i64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// A device publishes a message that holds records up to the time `newest`; the clock is never behind it. The number
    /// it gives is the one to ask [`Lab::refused`] with.
    pub(super) async fn publish(
        &mut self,
        device: &DeviceId,
        payload: Vec<u8>,
        format: PayloadFormat,
        newest: Option<i64>,
    ) -> Result<u64, Failure> {
        let before = self.now();
        match newest {
            Some(newest) => drop(self.clock.fetch_max(newest, Ordering::Relaxed)),
            None => drop(self.clock.compare_exchange(0, START, Ordering::Relaxed, Ordering::Relaxed)),
        }
        if self.now() > before {
            self.pass_time().await?;
        }
        self.tickets += 1;
        let ticket = self.tickets;
        let credit = self.node.admission().admit(payload.len().min(CREDIT)).await;
        let mut inbound = Inbound {
            channel: Channel::Telemetry,
            payload: Bytes::from(payload),
            format: Some(format),
            received: Timestamp(self.now()),
            session: 1,
            reply: Some(Reply { sink: self.outcomes.clone(), ticket }),
            credit,
        };
        loop {
            let door = self.node.open(device).await;
            match self.node.push(&door, inbound) {
                Ok(()) => break,
                Err(back) => inbound = back,
            }
        }
        self.undecided.push(ticket);
        if self.undecided.len() >= COMMIT_AFTER {
            self.settle().await?;
        }
        Ok(ticket)
    }

    /// Why a message was refused, if it was; it has to be committed.
    pub(super) fn refused(&self, ticket: u64) -> Option<String> {
        match self.outcomes.0.lock().remove(&ticket) {
            Some(Outcome::Stored) => None,
            Some(Outcome::Refused { text, .. }) => Some(text),
            None => Some("it is not decided yet".to_owned()),
        }
    }

    /// Commits everything that was published, and hands it to tables and pipelines.
    pub(super) async fn settle(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            match self.shard.committer.step(&mut self.progress, &self.work) {
                Step::Worked => {}
                Step::Idle(_) if self.is_settled() => break,
                // A device that wakes up reads its state first.
                Step::Idle(_) if began.elapsed() < PATIENCE => tokio::task::yield_now().await,
                Step::Idle(_) => return Err(Failure::new(format!("no outcome of a message within {PATIENCE:?}"))),
                Step::Away(_) | Step::Ended => return Err(Failure::new("the log in memory refuses appends")),
            }
            loop {
                let next = self.committed.lock().pop_front();
                let Some(durable) = next else { break };
                // Nothing of it waits for a timer.
                block_on(self.runner.take(durable.position, &durable.record)).map_err(Failure::new)?;
            }
        }
        self.runner.gather().map_err(Failure::new)
    }

    fn is_settled(&mut self) -> bool {
        let outcomes = self.outcomes.0.lock();
        self.undecided.retain(|ticket| !outcomes.contains_key(ticket));
        self.undecided.is_empty()
    }

    /// The clock has moved: alerts that wait for time have their turn, until nothing more comes of it.
    async fn pass_time(&mut self) -> Result<(), Failure> {
        while !self.project.alerts.is_empty() {
            self.settle().await?;
            let before = self.shard.committer.durable();
            self.shard.tick().await;
            self.settle().await?;
            if self.shard.committer.durable() == before {
                break;
            }
        }
        Ok(())
    }

    /// Closes all windows: time passes until every device has been silent for long enough.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        self.settle().await?;
        let longest = self.project.pipelines.iter().map(|plan| {
            let window = plan.window.as_ref().map_or(0, |window| window.size_ns);
            let apart = plan.stream_join.as_ref().map_or(0, sql::StreamJoin::span_ns);
            window.saturating_add(plan.lateness_ns).saturating_add(apart)
        });
        let longest = longest.max().unwrap_or(0);
        // What one pipeline reads of another comes when the windows of that have closed, and what shards give each other
        // with the barrier after the next.
        let windowed = self.project.depth(|plan| plan.window.is_some() || plan.stream_join.is_some());
        for _ in 0..(windowed + self.project.depth(PipelinePlan::is_shared)).max(1) {
            let later = self.now().saturating_add(pipelines::HOLD).saturating_add(longest).saturating_add(SECOND);
            self.clock.store(later, Ordering::Relaxed);
            self.pass_time().await?;
            let mut barriers = self.node.barrier(false);
            self.settle().await?;
            let came = barriers.pop().is_some_and(|mut barrier| barrier.try_recv().is_ok());
            if !came {
                return Err(Failure::new("the barrier did not come"));
            }
        }
        Ok(())
    }

    /// A session over all tables as they are now.
    pub(super) async fn session(&mut self) -> Result<SessionContext, Failure> {
        self.settle().await?;
        let memory = self.memory.clone();
        query::over_live(&self.tables, &self.project, &self.catalog, &self.statuses, memory).await.map_err(Failure::new)
    }

    /// Ends its actors.
    pub(super) async fn end(&mut self) {
        self.node.stop().await;
    }
}
