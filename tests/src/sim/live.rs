//! One life of the engine: the real shards, actors, committers and consumers, stepped by tasks in virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actors::admission::Admission;
use actors::committer::{BarrierPolicy, Progress, Start, Step, Work};
use actors::message::{Channel, Inbound, Ingress, Reply, Stray};
use actors::metrics::Metrics;
use actors::node::Node;
use actors::shard::Shard;
use bytes::Bytes;
use device::entry::Reason;
use device::id::{DeviceId, ShardId};
use device::seq::{Barrier, Position};
use engine::opener::{Opened, Opener};
use engine::peers;
use parking_lot::Mutex;
use pipelines::runner::{Runner, Status};
use sql::Project;
use storage::durable::Durable;
use storage::state::StateStore;
use storage::store::Store;
use tokio::sync::{Notify, mpsc};

use super::device::Uplink;
use super::disk::Disks;
use super::hub::{Hub, SimClock, Sink};
use super::params::{Fault, Params};
use super::project::{VERSIONS, project, version};
use super::random::Random;
use super::trace::Trace;
use crate::note;

/// Records that the consumer may be behind the committer.
const QUEUE: usize = 4;

/// Bytes that may be in flight: few, so that credit runs out.
pub(super) const CREDIT: usize = 1 << 10;

/// What the parts of a world share with the engine.
#[derive(Clone)]
pub(super) struct Ground {
    /// What the world is made of.
    pub(super) params: Params,
    /// What happens.
    pub(super) trace: Trace,
    /// Storage.
    pub(super) disks: Disks,
    /// The way out.
    pub(super) hub: Hub,
    /// The engine's clock.
    pub(super) clock: Arc<SimClock>,
    /// The version of the project that the logs were written under: what the registry of a data directory keeps.
    pub(super) version: Arc<Mutex<u64>>,
    /// At each start of a shard: where its log ended, and the version of the project that it goes on under.
    pub(super) begun: Arc<Mutex<Vec<Begun>>>,
    /// Why the engine had to end, if it did.
    pub(super) fatal: Arc<Mutex<Option<String>>>,
}

/// A shard begins: its log ends at the position, and what comes belongs to the version.
pub(super) type Begun = (ShardId, Position, u64);

/// A running engine.
pub(super) struct Live {
    ground: Ground,
    node: Arc<Node>,
    statuses: Vec<Arc<Status>>,
    /// Counters of this life.
    pub(super) metrics: Arc<Metrics>,
    connections: BTreeMap<DeviceId, mpsc::Sender<(u64, Uplink)>>,
    poke: Arc<Notify>,
}

impl Live {
    /// Opens and recovers everything, then runs it. `life` counts lives.
    pub(super) async fn start(ground: &Ground, life: u64) -> Result<Self, String> {
        let store = Store::over("sim", ground.disks.files(), Arc::new(object_store::memory::InMemory::new()));
        let random = Arc::new(Mutex::new(Random::named(ground.params.seed, &format!("engine {life}"))));
        let clock = ground.clock.clone();
        let sleepy = ground.params.has(Fault::Sleep);
        let peers = Arc::new(peers::Local::default());
        let opener = Opener {
            store: store.map_err(|e| e.to_string())?,
            log: ground.disks.log(),
            clock: Arc::new(move || clock.wall()),
            random: Arc::new(move || random.lock().next()),
            downlink: Arc::new(ground.hub.clone()),
            passivate_after: Duration::from_secs(if sleepy { 2 } else { 3600 }),
            projects: Arc::new(|fingerprint| version(fingerprint).map(project)),
            shards: ground.params.shards,
            peers: peers.clone(),
            shadow_rules: Arc::default(),
            listener: Arc::new(pipelines::alerts::Nobody),
        };
        let mut states = Vec::new();
        for id in (0..ground.params.shards).map(ShardId) {
            let state = StateStore::over(ground.disks.state(id), id).await.map_err(|e| e.to_string())?;
            states.push((id, Arc::new(state)));
        }
        let (before, project) = edited(ground, life);
        let catalog = Arc::new(project.catalog());
        let metrics = Arc::new(Metrics::default());
        let poke = Arc::new(Notify::new());
        let (mut shards, mut statuses) = (Vec::new(), Vec::new());
        for (id, state) in states {
            let opened = opener.shard_under(id, &state, (&before, &project), &catalog, &metrics).await;
            let opened = opened.map_err(|e| e.to_string())?;
            note!(ground.trace, "shard {id} is open: {:?}", opened.end);
            let version = version(project.fingerprint()).unwrap_or_default();
            ground.begun.lock().push((id, opened.end.position, version));
            shards.push(opened.shard.clone());
            statuses.push(opened.status.clone());
            run(ground, id, opened, opener.clone(), project.fingerprint(), &metrics, &poke);
        }
        peers.open(&shards);
        let node = Node::start(shards, Admission::new(CREDIT), metrics.clone()).await.map_err(|e| e.to_string())?;
        let node = Arc::new(node);
        *ground.version.lock() = version(project.fingerprint()).unwrap_or_default();
        if ground.params.has(Fault::Edit) {
            let statuses = statuses.clone();
            tokio::task::spawn_local(deploy(ground.clone(), life, node.clone(), statuses, poke.clone()));
        }
        Ok(Self { ground: ground.clone(), node, statuses, metrics, connections: BTreeMap::new(), poke })
    }

    /// Carries a message of a session into the engine.
    pub(super) fn carry(&mut self, device: &DeviceId, session: u64, uplink: Uplink) {
        let connection = self.connections.entry(device.clone()).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(4096);
            tokio::task::spawn_local(connection(
                self.ground.clone(),
                self.node.clone(),
                device.clone(),
                receiver,
                self.poke.clone(),
            ));
            sender
        });
        let _ = connection.try_send((session, uplink));
        self.poke.notify_waiters();
    }

    /// A message that names no device.
    pub(super) fn stray(&self) {
        let credit = actors::admission::Credit::free();
        self.node.stray(Stray {
            sender: "no such name".to_owned(),
            topic: "devices/no such name/telemetry".to_owned(),
            payload: Bytes::from_static(b"{}"),
            reason: Reason::BadPayload,
            text: "the topic names no device".to_owned(),
            received: self.ground.clock.wall(),
            reply: None,
            credit,
        });
        self.poke.notify_waiters();
    }

    /// Asks for a barrier in every shard; does not wait for it.
    pub(super) fn barrier(&self, cut: bool) {
        drop(self.node.barrier(cut));
        self.poke.notify_waiters();
    }

    /// Everything that is committed is cut into files; returns when they stand. What shards give each other is in windows
    /// at the next barrier.
    pub(super) async fn flush(&self) -> bool {
        self.flush_once().await && self.flush_once().await
    }

    async fn flush_once(&self) -> bool {
        let barriers = self.node.barrier(true);
        self.poke.notify_waiters();
        let wait = async {
            for (barrier, status) in barriers.into_iter().zip(&self.statuses) {
                let Ok(barrier) = barrier.await else { return false };
                if status.cut.subscribe().wait_for(|done: &Barrier| *done >= barrier).await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(Duration::from_secs(120), wait).await.unwrap_or(false)
    }

    /// How many devices are awake.
    pub(super) fn awake(&self) -> usize {
        self.node.shards().iter().map(|shard| shard.awake_count()).sum()
    }

    /// The device side.
    pub(super) fn node(&self) -> &Node {
        &self.node
    }
}

/// The project of the last life and that of this one. If they differ, everything that came under the old one is
/// finished first, as the engine does it at start.
fn edited(ground: &Ground, life: u64) -> (Arc<Project>, Arc<Project>) {
    let old = *ground.version.lock();
    let mut random = Random::named(ground.params.seed, &format!("project {life}"));
    let wanted = if ground.params.has(Fault::Edit) { random.below(VERSIONS) } else { old };
    if wanted != old {
        note!(ground.trace, "the project changes from version {old} to {wanted}");
    }
    (project(old), project(wanted))
}

/// Goes over to another version of the project now and then, as the engine does when its folder changes.
async fn deploy(ground: Ground, life: u64, node: Arc<Node>, statuses: Vec<Arc<Status>>, poke: Arc<Notify>) {
    let mut random = Random::named(ground.params.seed, &format!("deploy {life}"));
    loop {
        tokio::time::sleep(Duration::from_millis(random.between(200, 30_000))).await;
        let wanted = random.below(VERSIONS);
        note!(ground.trace, "the project goes over to version {wanted}");
        let fingerprint = project(wanted).fingerprint();
        let asked: Vec<_> = node.shards().iter().map(|shard| shard.committer.switch(fingerprint, None)).collect();
        poke.notify_waiters();
        for (receiver, status) in asked.into_iter().zip(&statuses) {
            let Ok(barrier) = receiver.await else { return };
            let mut cut = status.cut.subscribe();
            if cut.wait_for(|done| *done >= barrier).await.is_err() {
                return;
            }
        }
        *ground.version.lock() = wanted;
    }
}

/// What a connection of the gateway does: takes credit, then hands over in order.
async fn connection(
    ground: Ground,
    node: Arc<Node>,
    device: DeviceId,
    mut messages: mpsc::Receiver<(u64, Uplink)>,
    poke: Arc<Notify>,
) {
    let mut door = None;
    while let Some((session, Uplink { hello, payload, ticket })) = messages.recv().await {
        let payload = Bytes::from(payload);
        let credit = node.admission().admit(payload.len()).await;
        ground.hub.handed(&device, session, ticket, &payload);
        let sink = Sink {
            hub: ground.hub.clone(),
            device: device.clone(),
            session,
            payload: (!hello).then(|| payload.clone()),
        };
        let mut inbound = Inbound {
            channel: if hello { Channel::Hello } else { Channel::Telemetry },
            payload,
            format: None,
            received: ground.clock.wall(),
            session,
            reply: Some(Reply { sink: Arc::new(sink), ticket }),
            credit,
        };
        loop {
            let open = match door.take() {
                Some(open) => open,
                None => node.open(&device).await,
            };
            match node.push(&open, inbound) {
                Ok(()) => {
                    door = Some(open);
                    break;
                }
                Err(back) => inbound = back,
            }
        }
        poke.notify_waiters();
    }
}

fn run(
    ground: &Ground,
    id: ShardId,
    opened: Opened,
    opener: Opener,
    catalog: u64,
    metrics: &Arc<Metrics>,
    poke: &Arc<Notify>,
) {
    let start = opened.start();
    let Opened { shard, runner, .. } = opened;
    let queue: Arc<Mutex<VecDeque<Durable>>> = Arc::default();
    let (filled, taken) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let mut random = Random::named(ground.params.seed, "barriers");
    let work = Work {
        log: opener.log.clone(),
        consumer: {
            let (queue, filled) = (queue.clone(), filled.clone());
            Box::new(move |durable| {
                queue.lock().push_back(durable);
                filled.notify_one();
                true
            })
        },
        clock: opener.clock.clone(),
        policy: BarrierPolicy {
            checkpoint_every: Duration::from_millis(random.between(300, 8_000)),
            cut_every: Duration::from_millis(random.between(2_000, 30_000)),
            cut_bytes: random.between(1_000, 40_000),
            settle: Duration::from_secs(90),
        },
        catalog,
        metrics: metrics.clone(),
        failed: failure(ground, id),
    };
    tokio::task::spawn_local(commit(ground.clone(), shard, start, work, queue.clone(), taken.clone(), poke.clone()));
    tokio::task::spawn_local(consume(ground.clone(), id, runner, queue, filled, taken));
}

fn failure(ground: &Ground, id: ShardId) -> Box<dyn Fn(String) + Send + Sync> {
    let ground = ground.clone();
    Box::new(move |error| {
        // A second writer or a damaged log: neither is ever simulated.
        ground.trace.wrong(format!("the log of shard {id} cannot be written any more: {error}"));
        *ground.fatal.lock() = Some(error);
        ground.disks.death.notify_one();
    })
}

async fn commit(
    ground: Ground,
    shard: Arc<Shard>,
    start: Start,
    work: Work,
    queue: Arc<Mutex<VecDeque<Durable>>>,
    taken: Arc<Notify>,
    poke: Arc<Notify>,
) {
    let mut progress = Progress::new(start);
    loop {
        while queue.lock().len() >= QUEUE {
            taken.notified().await;
        }
        let woken = poke.notified();
        match shard.committer.step(&mut progress, &work) {
            Step::Worked => tokio::time::sleep(Duration::from_millis(ground.disks.append_takes())).await,
            Step::Idle(patience) => {
                let _ = tokio::time::timeout(patience.min(Duration::from_millis(200)), woken).await;
                tokio::time::sleep(Duration::from_millis(ground.disks.append_takes())).await;
            }
            Step::Away(pause) => tokio::time::sleep(pause).await,
            Step::Ended => return,
        }
    }
}

async fn consume(
    ground: Ground,
    id: ShardId,
    mut runner: Runner,
    queue: Arc<Mutex<VecDeque<Durable>>>,
    filled: Arc<Notify>,
    taken: Arc<Notify>,
) {
    let mut random = Random::named(ground.params.seed, "consumer");
    loop {
        let next = queue.lock().pop_front();
        let Some(durable) = next else {
            filled.notified().await;
            continue;
        };
        taken.notify_one();
        let mut done = runner.take(durable.position, &durable.record).await;
        if done.is_ok() && random.chance(300) {
            done = runner.gather();
        }
        if let Err(error) = done {
            note!(ground.trace, "the consumer of shard {id} ends: {error}");
            *ground.fatal.lock() = Some(error.to_string());
            ground.disks.death.notify_one();
            return;
        }
    }
}
