//! The devices of one shard: who is awake, who has changed since the last checkpoint, and where the state of a
//! device is found when it wakes.
//!
//! The state of a device is, in this order: with its actor if it is awake; among the *parked* snapshots (put to
//! sleep, or rebuilt from the log at start, and not yet in a checkpoint); in the shard's state store; else new.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use device::alert::Wants;
use device::entry::{Entry, LogBody, LogRecord};
use device::id::{DeviceId, ShardId};
use device::machine::{Device, Watch};
use device::schema::Catalog;
use device::seq::{Barrier, Position};
use device::shadow::ShadowRules;
use device::time::Timestamp;
use parking_lot::{Mutex, RwLock};
use ractor::ActorRef;
use storage::log::{LogError, ShardLog};
use storage::state::StateStore;
use thiserror::Error;

use crate::committer::{Clock, Committer};
use crate::declared::Declared;
use crate::device_actor::{DeviceMessage, SnapshotRequest};
use crate::handle::DeviceHandle;
use crate::message::Downlink;
use crate::metrics::Metrics;
use crate::rules::RuleBook;
use crate::supervisor::SupervisorMessage;

/// How much of the log is read at a time when state is rebuilt from it.
const READ_BYTES: usize = 4 << 20;

/// Devices whose states are read at a time.
const PAGE: usize = 1000;

/// Devices that have their tick before other tasks have their turn: about 0.1 ms.
const TICKS: usize = 256;

/// Source of random numbers.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Why the state of a device could not be had.
#[derive(Debug, Error)]
pub enum ShardError {
    /// The state store did not answer.
    #[error("cannot read device state: {0}")]
    State(#[from] storage::state::StateError),
    /// The log could not be read.
    #[error("cannot read the shard log: {0}")]
    Log(#[from] storage::log::LogError),
    /// A record or snapshot is damaged or newer than this program.
    #[error("cannot decode {what}: {error}")]
    Decode {
        /// Which thing.
        what: String,
        /// What is wrong with it.
        error: String,
    },
}

#[derive(Clone)]
struct Parked {
    snapshot: Bytes,
    generation: u64,
}

/// One shard of this node.
pub struct Shard {
    /// Which one.
    pub id: ShardId,
    /// Its group commit.
    pub committer: Committer,
    pub(crate) log: Arc<dyn ShardLog>,
    pub(crate) state: Arc<StateStore>,
    pub(crate) declared: Declared,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) downlink: Arc<dyn Downlink>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) passivate_after_ns: i64,
    /// Which alert rules count where.
    pub book: Arc<RuleBook>,
    /// Who wins where both sides of a shadow have changed.
    pub(crate) shadow_rules: Arc<ShadowRules>,
    /// When the shard was opened: nothing could be heard before.
    pub floor: Timestamp,
    supervisor: OnceLock<ActorRef<SupervisorMessage>>,
    devices: RwLock<HashMap<DeviceId, Arc<DeviceHandle>>>,
    parked: Mutex<HashMap<DeviceId, Parked>>,
    generation: AtomicU64,
    dirty: Mutex<Vec<Arc<DeviceHandle>>>,
    attention: Mutex<Vec<Arc<DeviceHandle>>>,
    /// The state store stands for the log up to here.
    checkpoint: AtomicU64,
}

/// What a shard is made of.
pub struct Parts {
    /// Which one.
    pub id: ShardId,
    /// Its group commit.
    pub committer: Committer,
    /// Its log.
    pub log: Arc<dyn ShardLog>,
    /// Its state store.
    pub state: Arc<StateStore>,
    /// Declared streams.
    pub catalog: Arc<Catalog>,
    /// Time.
    pub clock: Clock,
    /// Random numbers.
    pub random: Random,
    /// The way to subscribers.
    pub downlink: Arc<dyn Downlink>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// How long a device is silent before it sleeps, in nanoseconds.
    pub passivate_after_ns: i64,
    /// Position that the state store stands for.
    pub checkpoint: Position,
    /// Alert rules: those that count at the checkpoint, and others that the log may go over to.
    pub book: RuleBook,
    /// Who wins where both sides of a shadow have changed.
    pub shadow_rules: Arc<ShadowRules>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Shard {
    /// A shard with nobody awake.
    pub fn new(parts: Parts) -> Self {
        let book = Arc::new(parts.book);
        parts.committer.tell(book.clone());
        Self {
            book,
            shadow_rules: parts.shadow_rules,
            floor: (parts.clock)(),
            id: parts.id,
            committer: parts.committer,
            log: parts.log,
            state: parts.state,
            declared: Arc::new(RwLock::new(parts.catalog)),
            clock: parts.clock,
            random: parts.random,
            downlink: parts.downlink,
            metrics: parts.metrics,
            passivate_after_ns: parts.passivate_after_ns,
            supervisor: OnceLock::new(),
            devices: RwLock::default(),
            parked: Mutex::default(),
            generation: AtomicU64::new(1),
            dirty: Mutex::default(),
            attention: Mutex::default(),
            checkpoint: AtomicU64::new(parts.checkpoint.0),
        }
    }

    /// Goes over to another version of the pipeline project, devices and log at one position; see [`Committer::switch`].
    pub fn switch(&self, project: u64, catalog: Arc<Catalog>) -> tokio::sync::oneshot::Receiver<Barrier> {
        self.committer.switch(project, Some((self.declared.clone(), catalog)))
    }

    pub(crate) fn supervised_by(&self, supervisor: ActorRef<SupervisorMessage>) {
        let _ = self.supervisor.set(supervisor);
    }

    pub(crate) fn supervisor(&self) -> Option<&ActorRef<SupervisorMessage>> {
        self.supervisor.get()
    }

    /// The inbox of a device; wakes it if it sleeps.
    pub(crate) fn open(&self, id: &DeviceId) -> Arc<DeviceHandle> {
        if let Some(handle) = self.devices.read().get(id) {
            return handle.clone();
        }
        let mut devices = self.devices.write();
        if let Some(handle) = devices.get(id) {
            return handle.clone();
        }
        let handle = Arc::new(DeviceHandle::new(id.clone(), (self.clock)()));
        devices.insert(id.clone(), handle.clone());
        drop(devices);
        if let Some(supervisor) = self.supervisor.get() {
            let _ = supervisor.send_message(SupervisorMessage::Wake(handle.clone()));
        }
        handle
    }

    /// Who is awake.
    pub fn awake(&self) -> Vec<Arc<DeviceHandle>> {
        self.devices.read().values().cloned().collect()
    }

    /// Whether the device's actor runs.
    pub fn is_awake(&self, id: &DeviceId) -> bool {
        self.devices.read().contains_key(id)
    }

    /// How many are awake.
    pub fn awake_count(&self) -> usize {
        self.devices.read().len()
    }

    /// The handle of a device if it is awake.
    pub(crate) fn if_awake(&self, id: &DeviceId) -> Option<Arc<DeviceHandle>> {
        self.devices.read().get(id).cloned()
    }

    /// Puts a device to sleep: closes its seat and parks its state. False: something of it is under way.
    pub(crate) fn park(&self, handle: &Arc<DeviceHandle>) -> bool {
        let mut devices = self.devices.write();
        let Some(snapshot) = handle.leave() else { return false };
        #[cfg(feature = "planted")]
        if device::planted::is("parked-forgotten") {
            devices.remove(handle.id());
            return true;
        }
        self.park_snapshot(handle.id(), snapshot);
        devices.remove(handle.id());
        true
    }

    fn park_snapshot(&self, id: &DeviceId, snapshot: Bytes) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        self.parked.lock().insert(id.clone(), Parked { snapshot, generation });
    }

    /// The device has changed: the next checkpoint has to hold it.
    pub(crate) fn touch(&self, handle: &Arc<DeviceHandle>) {
        if handle.mark_dirty() {
            self.dirty.lock().push(handle.clone());
        }
    }

    /// The device wants a tick soon.
    pub(crate) fn attend(&self, handle: &Arc<DeviceHandle>) {
        if !handle.attention.swap(true, Ordering::AcqRel) {
            self.attention.lock().push(handle.clone());
        }
    }

    /// Ticks those who asked for it.
    pub async fn tick(&self) {
        let now = (self.clock)();
        for id in self.book.due(now) {
            // A device that sleeps looks by itself when it is awake.
            let handle = self.open(&id);
            handle.reminded();
            self.attend(&handle);
        }
        let waiting = std::mem::take(&mut *self.attention.lock());
        for some in waiting.chunks(TICKS) {
            for handle in some {
                handle.attention.store(false, Ordering::Release);
                handle.with(|carrier, handle| carrier.tick(handle, now));
            }
            tokio::task::yield_now().await;
        }
    }

    /// Looks for sleeping devices that wait for time to pass (alerts, values and commands that end), or have
    /// transitions that never reached the log.
    /// For the start: later on each device says so itself.
    pub(crate) async fn remind_all(&self) -> Result<(), ShardError> {
        let (rules, now) = (self.book.now(), (self.clock)());
        let look = |id: DeviceId, snapshot: &[u8]| {
            // What cannot be read is complained about when the device wakes.
            let Ok(device) = Device::restore(id.clone(), snapshot) else { return };
            let of_alerts = match (device.unlogged(now, 0), device.wants(&rules, now, self.floor)) {
                (Some(_), _) | (None, Wants::Now) => Some(now),
                (None, Wants::At(at)) => Some(at),
                (None, Wants::Nothing) => None,
            };
            if let Some(at) = of_alerts.into_iter().chain(device.due()).min() {
                self.book.remind(at, id);
            }
        };
        let parked: Vec<(DeviceId, Bytes)> =
            self.parked.lock().iter().map(|(id, parked)| (id.clone(), parked.snapshot.clone())).collect();
        let known: HashSet<DeviceId> = parked.iter().map(|(id, _)| id.clone()).collect();
        for (id, snapshot) in parked {
            look(id, &snapshot);
        }
        let mut after: Option<DeviceId> = None;
        loop {
            let page = self.state.devices(after.as_ref().map(DeviceId::as_str), PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (id, snapshot) in page.into_iter().filter(|(id, _)| !known.contains(id)) {
                look(id, &snapshot);
            }
        }
    }

    /// The last durable state of a device.
    pub(crate) async fn load(&self, id: &DeviceId, after_failure: bool) -> Result<Device, ShardError> {
        if !after_failure {
            return self.stored(id).await;
        }
        // An entry of the failed actor may still be in the committer: restored without it, the device would admit a
        // repeat of it once more.
        let position = self.committer.gathering();
        #[cfg(feature = "planted")]
        let position = if device::planted::is("restart-without-waiting") { Position(0) } else { position };
        while !self.committer.settled(position) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        self.rebuilt(id, self.committer.durable()).await
    }

    /// A device as its last durable state and the log behind it up to `upto` make it.
    async fn rebuilt(&self, id: &DeviceId, upto: Position) -> Result<Device, ShardError> {
        loop {
            // Before the state is read: a checkpoint that ends meanwhile makes the state newer, which does no harm,
            // but not the log's part behind it longer.
            let checkpoint = Position(self.checkpoint.load(Ordering::Acquire));
            let mut device = self.stored(id).await?;
            match self.replay(&mut device, checkpoint, upto) {
                // A cut may have truncated what the checkpoint meanwhile holds: once more from that one.
                Err(ShardError::Log(LogError::Truncated { .. }))
                    if Position(self.checkpoint.load(Ordering::Acquire)) > checkpoint => {}
                done => return done.map(|()| device),
            }
        }
    }

    /// The state of a device as parked or stored, without what the log holds behind it.
    pub(crate) async fn stored(&self, id: &DeviceId) -> Result<Device, ShardError> {
        let parked = self.parked.lock().get(id).map(|parked| parked.snapshot.clone());
        let snapshot = match parked {
            Some(snapshot) => Some(snapshot),
            None => self.state.device(id).await?,
        };
        let Some(snapshot) = snapshot else { return Ok(Device::new(id.clone())) };
        Device::restore(id.clone(), &snapshot)
            .map_err(|error| ShardError::Decode { what: format!("the state of device {id}"), error: error.to_string() })
    }

    /// Applies what the log holds of one device behind `after`.
    fn replay(&self, device: &mut Device, after: Position, upto: Position) -> Result<(), ShardError> {
        let id = device.id().clone();
        self.scan(after, upto, |position, body| {
            if let LogBody::Batch(entries) = body {
                for entry in entries.iter().filter(|entry| entry.device == id) {
                    self.apply(device, position, entry);
                }
                device.advance(position);
            }
            Ok(())
        })
    }

    /// Applies an entry of the log under the rules that counted there.
    fn apply(&self, device: &mut Device, position: Position, entry: &Entry) {
        let rules = (self.book.any() || device.is_alerting()).then(|| self.book.at(position));
        let watch = rules.as_ref().map(|rules| Watch { rules, streams: u64::MAX });
        device.apply_under(position, entry, watch);
    }

    fn scan(
        &self,
        after: Position,
        upto: Position,
        mut each: impl FnMut(Position, &LogBody) -> Result<(), ShardError>,
    ) -> Result<(), ShardError> {
        let mut next = after.next();
        while next <= upto {
            let records = self.log.read(self.id, next, READ_BYTES)?;
            if records.is_empty() {
                return Ok(());
            }
            for (position, bytes) in records {
                if position > upto {
                    return Ok(());
                }
                let record = LogRecord::decode(bytes).map_err(|error| ShardError::Decode {
                    what: format!("record {position} of the log of shard {}", self.id),
                    error: error.to_string(),
                })?;
                each(position, &record.body)?;
                next = position.next();
            }
        }
        Ok(())
    }

    /// Rebuilds the devices that changed behind the last checkpoint and parks them. For the start, before anybody
    /// is awake. Returns how many there were.
    pub async fn recover(&self) -> Result<usize, ShardError> {
        let mut entries_of: BTreeMap<DeviceId, Vec<(Position, Entry)>> = BTreeMap::new();
        let upto = self.committer.durable();
        #[cfg(feature = "planted")]
        let upto = if device::planted::is("recovery-without-tail") { Position(upto.0.saturating_sub(1)) } else { upto };
        self.scan(Position(self.checkpoint.load(Ordering::Acquire)), upto, |position, body| {
            match body {
                LogBody::Batch(entries) => {
                    for entry in entries.iter().filter(|entry| entry.device != DeviceId::nobody()) {
                        entries_of.entry(entry.device.clone()).or_default().push((position, entry.clone()));
                    }
                }
                // It names what the records before it belong to; where it differs from the barrier before it there
                // are none, and what follows belongs to it.
                LogBody::Barrier { catalog, .. } => self.book.note(position, *catalog),
                LogBody::Partial(_) => {}
            }
            Ok(())
        })?;
        let count = entries_of.len();
        for (id, entries) in entries_of {
            let mut device = self.stored(&id).await?;
            let mut last = Position(0);
            for (position, entry) in &entries {
                if *position != last && last.0 > 0 {
                    device.advance(last);
                }
                self.apply(&mut device, *position, entry);
                last = *position;
            }
            device.advance(last);
            self.park_snapshot(&id, Bytes::from(device.snapshot()));
        }
        Ok(count)
    }

    /// Snapshots of all devices that changed since the last checkpoint, each with everything up to `barrier`.
    ///
    /// The barrier must be durable. Must be called outside of actors (it waits for them).
    pub async fn snapshots(&self, barrier: Position) -> Result<Snapshots, ShardError> {
        let dirty = std::mem::take(&mut *self.dirty.lock());
        let (reply, mut answers) = tokio::sync::mpsc::channel(dirty.len().max(1));
        let mut waiting: BTreeSet<DeviceId> = BTreeSet::new();
        for handle in dirty {
            handle.mark_clean();
            // Who cannot be told is asleep or has failed; both are looked after below.
            handle.tell(DeviceMessage::Snapshot(SnapshotRequest { reply: reply.clone() }));
            waiting.insert(handle.id().clone());
        }
        drop(reply);
        let mut devices = Vec::with_capacity(waiting.len());
        // Ends when every actor has answered or died: a dead actor's request is dropped with its mailbox.
        while let Some((id, snapshot)) = answers.recv().await {
            if let (Some(snapshot), true) = (snapshot, waiting.remove(&id)) {
                devices.push((id, snapshot));
            }
        }
        // Those that sleep by now are parked; those that failed are rebuilt from the log.
        let parked: Vec<(DeviceId, Parked)> =
            self.parked.lock().iter().map(|(id, parked)| (id.clone(), parked.clone())).collect();
        for id in waiting {
            let device = self.rebuilt(&id, barrier).await?;
            // What it admitted behind the barrier is not in there, and nobody else remembers that it has changed.
            if let Some(handle) = self.if_awake(&id) {
                self.touch(&handle);
            }
            devices.push((id, Bytes::from(device.snapshot())));
        }
        let answered: HashSet<DeviceId> = devices.iter().map(|(id, _)| id.clone()).collect();
        let mut generations = Vec::with_capacity(parked.len());
        for (id, parked) in parked {
            generations.push((id.clone(), parked.generation));
            if !answered.contains(&id) {
                devices.push((id, parked.snapshot));
            }
        }
        devices.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Snapshots { devices, generations })
    }

    /// The snapshots stand in the state store, which now stands for the log up to `position`.
    pub fn persisted(&self, position: Position, snapshots: &Snapshots) {
        self.checkpoint.fetch_max(position.0, Ordering::AcqRel);
        let mut parked = self.parked.lock();
        for (id, generation) in &snapshots.generations {
            if parked.get(id).is_some_and(|parked| parked.generation == *generation) {
                parked.remove(id);
            }
        }
        if parked.is_empty() && parked.capacity() > 1024 {
            parked.shrink_to_fit();
        }
    }

    /// Looks at every device of the shard as it is durable, ordered within each of: awake, asleep and not yet in a
    /// checkpoint, in the state store. One whose state cannot be read is passed over; it is complained about when it
    /// wakes.
    pub async fn each(&self, mut look: impl FnMut(&Device)) -> Result<(), ShardError> {
        let mut seen: HashSet<DeviceId> = HashSet::new();
        for handle in self.awake() {
            let looked = handle.with(|carrier, handle| carrier.look(handle, &mut look));
            if looked.is_some() {
                seen.insert(handle.id().clone());
            }
        }
        let parked: Vec<(DeviceId, Bytes)> =
            self.parked.lock().iter().map(|(id, parked)| (id.clone(), parked.snapshot.clone())).collect();
        let mut stored = |id: DeviceId, snapshot: &[u8]| {
            if let Ok(device) = Device::restore(id, snapshot) {
                look(&device.with_rules(self.shadow_rules.clone()));
            }
        };
        for (id, snapshot) in parked {
            if seen.insert(id.clone()) {
                stored(id, &snapshot);
            }
        }
        let mut after: Option<DeviceId> = None;
        loop {
            let page = self.state.devices(after.as_ref().map(DeviceId::as_str), PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (id, snapshot) in page.into_iter().filter(|(id, _)| !seen.contains(id)) {
                stored(id, &snapshot);
            }
        }
    }

    /// Names of all devices that are awake or parked; the state store may know more.
    pub fn known(&self) -> Vec<DeviceId> {
        let mut ids: Vec<DeviceId> = self.devices.read().keys().cloned().collect();
        ids.extend(self.parked.lock().keys().cloned());
        ids
    }

    /// Devices whose state is parked, in memory until the next checkpoint.
    pub fn parked_count(&self) -> usize {
        self.parked.lock().len()
    }
}

/// What a checkpoint holds of devices.
#[derive(Debug, Default)]
pub struct Snapshots {
    /// State of each, ordered by id.
    pub devices: Vec<(DeviceId, Bytes)>,
    generations: Vec<(DeviceId, u64)>,
}
