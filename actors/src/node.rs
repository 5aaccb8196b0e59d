//! All shards of this process.

use std::sync::Arc;
use std::time::Duration;

use device::alert::{Ack, IncidentId};
use device::entry::{Body, DeadLetter, Entries, Entry};
use device::id::{DeviceId, ShardId};
use device::machine::{Device, EpochLedger};
use device::seq::Barrier;
use device::time::Timestamp;
use parking_lot::Mutex;
use ractor::{Actor, ActorRef};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::admission::Admission;
use crate::device_actor::DeviceMessage;
use crate::handle::DeviceHandle;
use crate::message::{Inbound, Ingress, Outcome, OutcomeSink, Reply, Stray};
use crate::metrics::{Metrics, add};
use crate::shard::{Shard, ShardError};
use crate::supervisor::{ShardSupervisor, SupervisorMessage};

/// How often devices that owe an ack are looked at. Half of the longest time an ack may wait.
const TICK: Duration = Duration::from_millis(100);

/// How often sleepers are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// How often a device that is on its way is asked again, and after how long each time: 10 s in all.
const PATIENCE: usize = 1000;
const RETRY: Duration = Duration::from_millis(10);

/// Tells one waiter that an entry is durable.
#[derive(Debug)]
struct Durable(Mutex<Option<oneshot::Sender<()>>>);

impl Durable {
    fn new() -> (Arc<Self>, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (Arc::new(Self(Mutex::new(Some(sender)))), receiver)
    }
}

impl OutcomeSink for Durable {
    fn decided(&self, _: u64, _: Outcome) {
        if let Some(sender) = self.0.lock().take() {
            let _ = sender.send(());
        }
    }
}

/// The device side of a process: shards, supervisors, timers.
pub struct Node {
    shards: Vec<Arc<Shard>>,
    supervisors: Vec<ActorRef<SupervisorMessage>>,
    admission: Admission,
    metrics: Arc<Metrics>,
    timer: JoinHandle<()>,
    reminder: JoinHandle<()>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

/// A way to one device.
#[derive(Debug, Clone)]
pub struct Door {
    handle: Arc<DeviceHandle>,
}

impl Node {
    /// Starts the supervisors of `shards` (recovered, their committers running). Shard `i` must have id `i`.
    pub async fn start(
        shards: Vec<Arc<Shard>>,
        admission: Admission,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ractor::SpawnErr> {
        let mut supervisors = Vec::with_capacity(shards.len());
        for shard in &shards {
            let (supervisor, _) = Actor::spawn(None, ShardSupervisor, shard.clone()).await?;
            supervisors.push(supervisor);
        }
        let ticking = shards.clone();
        let reminded = shards.clone();
        let reminder = tokio::spawn(async move {
            for shard in &reminded {
                if let Err(error) = shard.remind_all().await {
                    tracing::warn!(shard = %shard.id, %error, "cannot look for alerts that wait for time to pass");
                }
            }
        });
        let timer = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut since_sweep = Duration::ZERO;
            loop {
                ticks.tick().await;
                for shard in &ticking {
                    shard.tick().await;
                }
                since_sweep += TICK;
                if since_sweep >= SWEEP {
                    since_sweep = Duration::ZERO;
                    for shard in &ticking {
                        if let Some(supervisor) = shard.supervisor() {
                            let _ = supervisor.send_message(SupervisorMessage::Sweep);
                        }
                    }
                }
            }
        });
        Ok(Self { shards, supervisors, admission, metrics, timer, reminder })
    }

    /// The shards, by id.
    pub fn shards(&self) -> &[Arc<Shard>] {
        &self.shards
    }

    fn shard_of(&self, key: &[u8]) -> &Arc<Shard> {
        let id = ShardId::of(key, self.shards.len() as u16);
        // `of` yields ids below the count, and a node has at least one shard.
        &self.shards[usize::from(id.0)]
    }

    /// The shard that owns a device.
    pub fn shard(&self, device: &DeviceId) -> &Arc<Shard> {
        self.shard_of(device.as_str().as_bytes())
    }

    /// Whether every shard's log takes appends.
    pub fn healthy(&self) -> bool {
        self.shards.iter().all(|shard| shard.committer.healthy())
    }

    /// Asks every shard for a barrier; the numbers, by shard, come when they are durable.
    pub fn barrier(&self, cut: bool) -> Vec<oneshot::Receiver<Barrier>> {
        self.shards.iter().map(|shard| shard.committer.barrier(cut)).collect()
    }

    /// Ledger of a device: what became of each of its numbers.
    pub async fn ledger(&self, device: &DeviceId) -> Result<Vec<EpochLedger>, ShardError> {
        let shard = self.shard(device);
        if let Some(handle) = shard.if_awake(device) {
            let (reply, answer) = oneshot::channel();
            if handle.tell(DeviceMessage::Ledger(reply))
                && let Ok(ledger) = answer.await
            {
                return Ok(ledger);
            }
        }
        Ok(shard.load(device, true).await?.ledger())
    }

    /// Asks a device for something; `decide` says what has to become durable for it, and may be called again if the
    /// device fails meanwhile. Returns the answer when it is durable; `None`: the device did not answer.
    pub async fn request<T>(
        &self,
        device: &DeviceId,
        decide: impl Fn(&mut Device, Timestamp) -> (T, Entries),
    ) -> Option<T> {
        for _ in 0..PATIENCE {
            // Asked anew each time: a device that falls asleep meanwhile has another handle then.
            let handle = self.shard(device).open(device);
            let (sink, durable) = Durable::new();
            let reply = Reply { sink, ticket: 0 };
            match handle.with(|carrier, handle| carrier.request(handle, &decide, reply)) {
                Some(answer) => {
                    durable.await.ok()?;
                    // What it tells the device because of this goes out now rather than with the next tick.
                    handle.with(|carrier, handle| carrier.look(handle, |_| ()));
                    return Some(answer);
                }
                None => tokio::time::sleep(RETRY).await,
            }
        }
        None
    }

    /// Looks at a device as it is durable, without waking it.
    pub async fn look<T>(&self, device: &DeviceId, look: impl FnOnce(&Device) -> T) -> Result<T, ShardError> {
        let shard = self.shard(device);
        let mut look = Some(look);
        for _ in 0..PATIENCE {
            let Some(handle) = shard.if_awake(device) else {
                // Nothing of a device that sleeps is under way.
                let stored = shard.stored(device).await?.with_rules(shard.shadow_rules.clone());
                if let Some(look) = look.take() {
                    return Ok(look(&stored));
                }
                break;
            };
            let looked =
                handle.with(|carrier, handle| carrier.look(handle, |device| look.take().map(|look| look(device))));
            match looked {
                Some(Some(looked)) => return Ok(looked),
                // It has failed, or is on its way.
                _ if look.is_some() => tokio::time::sleep(RETRY).await,
                _ => break,
            }
        }
        Err(ShardError::Decode {
            what: format!("the state of device {device}"),
            error: "it does not answer".to_owned(),
        })
    }

    /// The time as the device's shard has it.
    pub fn now(&self, device: &DeviceId) -> Timestamp {
        self.time(self.shard(device))
    }

    /// The time as a shard has it.
    pub fn time(&self, shard: &Shard) -> Timestamp {
        (shard.clock)()
    }

    /// Somebody takes care of an incident for so long, or (`None`) no longer does. Returns what is durable now; `None`: the
    /// incident is not open, or its device did not answer.
    pub async fn acknowledge(
        &self,
        device: &DeviceId,
        incident: IncidentId,
        ack: Option<(String, Duration)>,
    ) -> Option<Option<Ack>> {
        let ack = ack.map(|(by, lasts)| {
            let lasts = i64::try_from(lasts.as_nanos()).unwrap_or(i64::MAX);
            Ack { by: by.into(), until: (self.shard(device).clock)().plus(lasts) }
        });
        let (sink, durable) = Durable::new();
        for _ in 0..PATIENCE {
            // Asked anew each time: a device that falls asleep meanwhile has another handle then.
            let handle = self.shard(device).open(device);
            let reply = Reply { sink: sink.clone(), ticket: 0 };
            let request = (incident, ack.clone());
            match handle.with(|carrier, handle| carrier.acknowledge(handle, request, reply)) {
                Some(true) => return durable.await.is_ok().then_some(ack),
                Some(false) => return None,
                None => tokio::time::sleep(RETRY).await,
            }
        }
        None
    }

    /// Has a device look at its alerts soon, awake or not.
    pub fn look_at_alerts(&self, device: &DeviceId) {
        self.shard(device).book.remind(Timestamp(i64::MIN), device.clone());
    }

    /// Stops the actors. What is durable stays; call it after the committers have stopped.
    pub async fn stop(&self) {
        self.timer.abort();
        self.reminder.abort();
        for supervisor in &self.supervisors {
            supervisor.get_cell().stop_children(None);
            supervisor.stop(None);
        }
        for supervisor in &self.supervisors {
            let _ = supervisor.get_cell().wait(Some(Duration::from_secs(5))).await;
        }
    }
}

impl Ingress for Node {
    type Door = Door;

    async fn open(&self, device: &DeviceId) -> Door {
        Door { handle: self.shard(device).open(device) }
    }

    fn push(&self, door: &Door, inbound: Inbound) -> Result<(), Inbound> {
        door.handle.push(inbound)?;
        add(&self.metrics.handed, 1);
        Ok(())
    }

    fn stray(&self, stray: Stray) {
        let Stray { sender, topic, payload, reason, text, received, reply, credit } = stray;
        let shard = self.shard_of(sender.as_bytes());
        let letter = DeadLetter { sender, topic, reason, text: text.clone(), payload, accounted: None };
        let entry = Entry { device: DeviceId::nobody(), received, body: Body::DeadLetter(letter) };
        add(&self.metrics.messages, 1);
        add(&self.metrics.received, 1);
        add(&self.metrics.dead_lettered, 1);
        add(&self.metrics.strays, 1);
        let outcome = Outcome::Refused { reason, text, kept: true };
        shard.committer.push([entry], reply.map(|reply| (reply, outcome)), credit);
    }

    fn admission(&self) -> &Admission {
        &self.admission
    }
}
