//! Promise: a device's failure costs that device a restart from what is durable, and nobody else anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use device::entry::Reason;
use device::id::{DeviceId, ShardId};
use device::machine::Device;
use device::schema::{Catalog, Field, FieldType, SchemaVersion, Stream};
use device::seq::{Barrier, Epoch, Position};
use device::time::{SECOND, Timestamp};
use parking_lot::Mutex;
use storage::log::MemoryLog;
use storage::state::StateStore;
use storage::store::Store;
use tempfile::TempDir;

use crate::admission::Admission;
use crate::committer::{BarrierPolicy, Committer, Start, Work};
use crate::device_actor::DeviceMessage;
use crate::message::{Channel, Downlink, Inbound, Ingress, Outcome, OutcomeSink, Reply};
use crate::metrics::Metrics;
use crate::node::{Door, Node};
use crate::shard::{Parts, Shard};

#[derive(Debug)]
struct Deaf;

impl Downlink for Deaf {
    fn publish(&self, _: &DeviceId, _: &str, _: Bytes, _: u8) {}
}

/// Gathers outcomes by ticket.
#[derive(Debug, Default)]
struct Outcomes(Mutex<Vec<(u64, Outcome)>>);

impl OutcomeSink for Outcomes {
    fn decided(&self, ticket: u64, outcome: Outcome) {
        self.0.lock().push((ticket, outcome));
    }
}

/// One shard on a log in memory.
struct World {
    node: Node,
    log: Arc<MemoryLog>,
    metrics: Arc<Metrics>,
    outcomes: Arc<Outcomes>,
    /// The source of random numbers panics.
    poisoned: Arc<AtomicBool>,
    tickets: AtomicI64,
    committing: Option<std::thread::JoinHandle<()>>,
    _folder: TempDir,
}

const NOW: i64 = 1_795_392_000 * SECOND;

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::local(folder.path()).unwrap();
        let id = ShardId(0);
        let log = Arc::new(MemoryLog::new());
        let metrics = Arc::new(Metrics::default());
        let poisoned = Arc::new(AtomicBool::new(false));
        let random = {
            let poisoned = poisoned.clone();
            Arc::new(move || {
                assert!(!poisoned.load(Ordering::Relaxed), "poisoned on purpose");
                7
            })
        };
        let time = AtomicI64::new(NOW);
        let clock: crate::committer::Clock = Arc::new(move || Timestamp(time.fetch_add(1000, Ordering::Relaxed)));
        let fields = vec![Field {
            name: "temperature".into(),
            id: 1,
            kind: FieldType::F64,
            unit: None,
            scale: 0,
            comment: None,
        }];
        let version = SchemaVersion { major: 1, minor: 0 };
        let stream = Stream { name: "telemetry".into(), schema_id: Some(1), version, fields };
        let start = Start { position: Position(0), barrier: Barrier(0), time: Timestamp(NOW), uncut: false };
        let shard = Arc::new(Shard::new(Parts {
            id,
            committer: Committer::new(id, start),
            log: log.clone(),
            state: Arc::new(StateStore::open(&store, id).await.unwrap()),
            catalog: Arc::new(Catalog::new(vec![stream])),
            clock: clock.clone(),
            random,
            downlink: Arc::new(Deaf),
            metrics: metrics.clone(),
            passivate_after_ns: 600 * SECOND,
            checkpoint: Position(0),
            book: crate::rules::RuleBook::empty(),
            shadow_rules: Arc::default(),
        }));
        let work = Work {
            log: log.clone(),
            consumer: Box::new(|_| true),
            clock,
            policy: BarrierPolicy {
                settle: Duration::ZERO,
                checkpoint_every: Duration::from_secs(3600),
                cut_every: Duration::from_secs(3600),
                cut_bytes: u64::MAX,
            },
            catalog: 1,
            metrics: metrics.clone(),
            failed: Box::new(|error| panic!("{error}")),
        };
        let committing = {
            let shard = shard.clone();
            std::thread::spawn(move || shard.committer.run(start, &work))
        };
        let node = Node::start(vec![shard], Admission::new(1 << 20), metrics.clone()).await.unwrap();
        Self {
            node,
            log,
            metrics,
            outcomes: Arc::default(),
            poisoned,
            tickets: AtomicI64::new(0),
            committing: Some(committing),
            _folder: folder,
        }
    }

    fn shard(&self) -> &Arc<Shard> {
        &self.node.shards()[0]
    }

    async fn open(&self, device: &str) -> Door {
        self.node.open(&DeviceId::new(device).unwrap()).await
    }

    async fn inbound(&self, payload: &str) -> (u64, Inbound) {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed) as u64;
        let inbound = Inbound {
            channel: Channel::Telemetry,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            format: None,
            received: Timestamp(NOW),
            session: 1,
            reply: Some(Reply { sink: self.outcomes.clone(), ticket }),
            credit: self.node.admission().admit(payload.len()).await,
        };
        (ticket, inbound)
    }

    async fn push(&self, door: &Door, payload: &str) -> u64 {
        let (ticket, inbound) = self.inbound(payload).await;
        self.node.push(door, inbound).expect("the device is awake");
        ticket
    }

    async fn outcome(&self, ticket: u64) -> Outcome {
        for _ in 0..2000 {
            if let Some((_, outcome)) = self.outcomes.0.lock().iter().find(|(of, _)| *of == ticket) {
                return outcome.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no outcome of message {ticket}");
    }

    async fn stored(&self, door: &Door, payload: &str) {
        let ticket = self.push(door, payload).await;
        assert_eq!(self.outcome(ticket).await, Outcome::Stored, "{payload}");
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        for _ in 0..2000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never happened: {what}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.log.set_failing(false);
        self.shard().committer.stop();
        if let Some(thread) = self.committing.take() {
            let _ = thread.join();
        }
    }
}

fn record(seq: u64) -> String {
    format!(r#"{{"epoch":5,"seq":{seq},"ts":{NOW},"temperature":{seq}.5}}"#)
}

fn cum(device: &Device) -> u64 {
    device.ledger().iter().find(|ledger| ledger.epoch == Epoch(5)).map_or(0, |ledger| ledger.cum)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_device_is_replaced_and_nobody_else_notices() {
    let world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    world.stored(&a, &record(1)).await;
    world.stored(&b, &record(1)).await;

    // A record without a number needs a random epoch.
    world.poisoned.store(true, Ordering::Relaxed);
    let poison = world.push(&a, r#"{"temperature":1}"#).await;
    // These come while the device has no state: they wait for its successor.
    let (repeat, next) = (world.push(&a, &record(1)).await, world.push(&a, &record(2)).await);
    match world.outcome(poison).await {
        Outcome::Refused { reason: Reason::Failed, kept: true, .. } => {}
        other => panic!("{other:?}"),
    }
    world.stored(&b, &record(2)).await;
    assert_eq!(world.outcome(repeat).await, Outcome::Stored);
    assert_eq!(world.outcome(next).await, Outcome::Stored);

    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(count(&world.metrics.restarted), 1);
    // The successor knew what its predecessor had stored.
    assert_eq!(count(&world.metrics.duplicate), 1);
    assert_eq!((count(&world.metrics.stored), count(&world.metrics.dead_lettered)), (4, 1));
    assert_eq!(count(&world.metrics.received), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_asleep_gives_messages_back_and_wakes_with_what_it_knew() {
    let world = World::new().await;
    let door = world.open("a").await;
    world.stored(&door, &record(1)).await;
    let id = DeviceId::new("a").unwrap();
    let handle = world.shard().if_awake(&id).unwrap();
    assert!(handle.tell(DeviceMessage::Passivate));
    world.until("the device sleeps", || !world.shard().is_awake(&id)).await;

    let (_, inbound) = world.inbound(&record(1)).await;
    let inbound = world.node.push(&door, inbound).expect_err("nobody is there");
    let door = world.open("a").await;
    let ticket = inbound.reply.as_ref().unwrap().ticket;
    world.node.push(&door, inbound).unwrap();
    assert_eq!(world.outcome(ticket).await, Outcome::Stored);
    assert_eq!(world.metrics.duplicate.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_holds_what_is_durable_and_no_more() {
    let world = World::new().await;
    let door = world.open("a").await;
    world.stored(&door, &record(1)).await;
    world.log.set_failing(true);
    let ticket = world.push(&door, &record(2)).await;

    let snapshots = world.shard().snapshots(world.shard().committer.durable()).await.unwrap();
    let id = DeviceId::new("a").unwrap();
    let restore = |bytes: &Bytes| cum(&Device::restore(id.clone(), bytes).unwrap());
    assert_eq!(snapshots.devices.iter().map(|(_, bytes)| restore(bytes)).collect::<Vec<_>>(), [1]);
    assert_eq!(world.outcomes.0.lock().iter().filter(|(of, _)| *of == ticket).count(), 0);

    world.log.set_failing(false);
    assert_eq!(world.outcome(ticket).await, Outcome::Stored);
    // The device was asked while something of it was under way: it stands on the list again.
    let snapshots = world.shard().snapshots(world.shard().committer.durable()).await.unwrap();
    assert_eq!(snapshots.devices.iter().map(|(_, bytes)| restore(bytes)).collect::<Vec<_>>(), [2]);
    // And not a third time.
    assert!(world.shard().snapshots(world.shard().committer.durable()).await.unwrap().devices.is_empty());
}
