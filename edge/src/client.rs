//! The edge client: outbox, agent and connection in one task, behind a handle.
//!
//! One task per client and no thread, so a thousand clients fit into one process. Absent: any decision about
//! what to send when (that is [`crate::agent`]) and about durability (that is [`crate::outbox`]).

mod keeper;
mod task;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use device::id::DeviceId;
use device::seq::Epoch;
use device::time::Timestamp;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::agent::AgentConfig;
use crate::error::EdgeError;
use crate::frame::FrameConfig;
use crate::identity::IdentityConfig;
use crate::latency::Latency;
use crate::mqtt::MqttConfig;
use crate::outbox::{FileMedia, Fresh, MAX_FIELDS, Media, Outbox, OutboxConfig, RamMedia};
use crate::reading::Reading;
use crate::twin::{self, Twin};

/// The wall clock of the device.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Where records are kept until they are acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// In memory: a restart loses what is not acknowledged.
    Memory,
    /// In this directory, synced to disk before a record counts as recorded.
    Directory(PathBuf),
}

/// Everything an edge client needs to know.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Its name; also the MQTT client id.
    pub device: DeviceId,
    /// Where the engine is.
    pub mqtt: MqttConfig,
    /// Where records are kept.
    pub store: Store,
    /// Size and policy of the store.
    pub outbox: OutboxConfig,
    /// Bounds of the sending side; `frame_records` follows from `frame`.
    pub agent: AgentConfig,
    /// How frames are made.
    pub frame: FrameConfig,
    /// A commit waits this long for more records.
    pub commit_after: Duration,
    /// A commit waits no longer once there are this many.
    pub commit_records: usize,
    /// The longest pause between attempts to connect.
    pub reconnect_at_most: Duration,
    /// Version of the firmware, for the engine's registry.
    pub firmware: String,
    /// Where times to acknowledgement are counted; may be shared.
    pub latency: Arc<Latency>,
    /// Takes commands. `None`: the device says that it does none.
    pub commands: Option<mpsc::Sender<twin::Task>>,
    /// A certificate of its own, which it renews by itself; then `mqtt.tls` does not count.
    pub identity: Option<IdentityConfig>,
}

impl EdgeConfig {
    /// A client with the defaults for its kind of store.
    pub fn new(device: DeviceId, mqtt: MqttConfig, store: Store) -> Self {
        let outbox = match &store {
            Store::Memory => OutboxConfig::memory(),
            Store::Directory(_) => OutboxConfig::directory(),
        };
        Self {
            device,
            mqtt,
            store,
            outbox,
            agent: AgentConfig::default(),
            frame: FrameConfig::default(),
            commit_after: Duration::from_millis(50),
            commit_records: 64,
            reconnect_at_most: Duration::from_secs(30),
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
            latency: Arc::new(Latency::default()),
            commands: None,
            identity: None,
        }
    }
}

/// What became of recorded readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The epoch they are numbered in.
    pub epoch: Epoch,
    /// Number of the first.
    pub first: u64,
    /// Number of the last.
    pub last: u64,
    /// How many of them were dropped (and declared lost) because the store is full and drops new records.
    pub dropped: u64,
}

/// Counters of a client since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records that are durable in the outbox, those dropped later included.
    pub recorded: u64,
    /// Frames sent, repetitions included.
    pub sent_frames: u64,
    /// Records sent, repetitions included.
    pub sent: u64,
    /// Records sent again.
    pub resent: u64,
    /// Numbers that acks covered.
    pub acked: u64,
    /// Numbers declared lost.
    pub lost: u64,
    /// Refusals named in acks.
    pub nacked: u64,
    /// Messages on the device's `errors` topic, and refused QoS 1 messages.
    pub refused: u64,
    /// Numbers that wait for an ack.
    pub unacknowledged: u64,
    /// Records sent and not acknowledged.
    pub in_flight: u64,
    /// Times a connection was established.
    pub connects: u64,
    /// Times the engine knew more of an epoch than the store.
    pub forks: u64,
    /// Certificates taken into use.
    pub renewed: u64,
    /// Whether the engine answered the hello of the present connection.
    pub connected: bool,
}

/// Trouble to make on purpose: for tests of an engine and for simulated fleets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Drop the connection without a goodbye, and connect again.
    Cut,
    /// Send everything in flight again at once.
    Repeat,
    /// Send each of the next frames twice.
    Twice(u32),
    /// Hold back the next frames, then send them in reverse order.
    Disorder(u32),
    /// Publish these bytes as telemetry.
    Raw(Vec<u8>),
}

enum Command {
    Record { readings: Vec<Reading>, reply: oneshot::Sender<Result<Receipt, EdgeError>> },
    Flush { reply: oneshot::Sender<()> },
    Change { shadow: String, patch: Map<String, Value> },
    Ended { id: String, state: &'static str, out: Value },
    Rotate,
    Fault(Fault),
    Shutdown { reply: oneshot::Sender<()> },
}

#[derive(Debug, Default)]
struct Shared {
    recorded: AtomicU64,
    sent_frames: AtomicU64,
    sent: AtomicU64,
    resent: AtomicU64,
    acked: AtomicU64,
    lost: AtomicU64,
    nacked: AtomicU64,
    refused: AtomicU64,
    unacknowledged: AtomicU64,
    in_flight: AtomicU64,
    connects: AtomicU64,
    forks: AtomicU64,
    renewed: AtomicU64,
    connected: AtomicBool,
}

impl Shared {
    fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            recorded: get(&self.recorded),
            sent_frames: get(&self.sent_frames),
            sent: get(&self.sent),
            resent: get(&self.resent),
            acked: get(&self.acked),
            lost: get(&self.lost),
            nacked: get(&self.nacked),
            refused: get(&self.refused),
            unacknowledged: get(&self.unacknowledged),
            in_flight: get(&self.in_flight),
            connects: get(&self.connects),
            forks: get(&self.forks),
            renewed: get(&self.renewed),
            connected: self.connected.load(Ordering::Relaxed),
        }
    }
}

/// Commands that wait for the task. Each may hold many records; who sends more waits.
const QUEUE: usize = 16;

/// A running client. Dropping the handle ends it as a crash would: what is not acknowledged stays in the outbox.
#[derive(Debug)]
pub struct EdgeClient {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    twin: watch::Receiver<Twin>,
    task: JoinHandle<()>,
}

impl EdgeClient {
    /// Opens the store and starts. Returns before there is a connection: a device records whether or not it can
    /// send. Needs a tokio runtime.
    pub async fn start(config: EdgeConfig, clock: Clock) -> Result<Self, EdgeError> {
        let fresh = Fresh { epoch: rand::random(), install: rand::random() };
        let (store, sizes) = (config.store.clone(), config.outbox.clone());
        let open = move || {
            let media: Box<dyn Media> = match store {
                Store::Memory => Box::new(RamMedia::new()),
                Store::Directory(path) => Box::new(FileMedia::open(&path)?),
            };
            Outbox::open(media, sizes, fresh)
        };
        let (outbox, recovery) = match &config.store {
            Store::Memory => open()?,
            Store::Directory(_) => tokio::task::spawn_blocking(open).await.map_err(|_| EdgeError::Stopped)??,
        };
        if !recovery.damaged.is_empty() || !recovery.unreadable.is_empty() {
            tracing::warn!(device = %config.device, damaged = ?recovery.damaged, unreadable = ?recovery.unreadable,
                "the outbox is damaged: what it held there is declared lost");
        }
        let shared = Arc::new(Shared::default());
        let keeper = keeper::Keeper::open(match &config.store {
            Store::Memory => None,
            Store::Directory(path) => Some(path.clone()),
        })
        .await?;
        let papers = task::Papers::open(&config).await?;
        let twin = keeper.watch();
        let (commands, inbox) = mpsc::channel(QUEUE);
        let task = task::Task::new(config, clock, (outbox, keeper, papers), shared.clone(), inbox);
        Ok(Self { commands, shared, twin, task: tokio::spawn(task.run()) })
    }

    /// Records one reading; returns when it is durable in the outbox.
    pub async fn record(&self, reading: Reading) -> Result<Receipt, EdgeError> {
        self.record_all(vec![reading]).await
    }

    /// Records several readings in this order; returns when all are durable in the outbox.
    pub async fn record_all(&self, readings: Vec<Reading>) -> Result<Receipt, EdgeError> {
        if let Some(large) = readings.iter().find(|reading| reading.fields.len() > MAX_FIELDS) {
            return Err(EdgeError::TooLarge { size: large.fields.len(), limit: MAX_FIELDS });
        }
        self.ask(|reply| Command::Record { readings, reply }).await?
    }

    /// Waits until everything recorded so far is acknowledged, at most `deadline`.
    pub async fn flush(&self, deadline: Duration) -> Result<(), EdgeError> {
        match tokio::time::timeout(deadline, self.ask(|reply| Command::Flush { reply })).await {
            Ok(done) => done,
            Err(_) => Err(EdgeError::Unacknowledged { unacknowledged: self.stats().unacknowledged }),
        }
    }

    /// Makes trouble.
    pub async fn disturb(&self, fault: Fault) -> Result<(), EdgeError> {
        self.commands.send(Command::Fault(fault)).await.map_err(|_| EdgeError::Stopped)
    }

    /// Asks for another certificate, although the present one is not due; without an identity of its own nothing happens.
    pub async fn rotate(&self) -> Result<(), EdgeError> {
        self.commands.send(Command::Rotate).await.map_err(|_| EdgeError::Stopped)
    }

    /// What the device holds of its shadows, and news of it: the application does what it says.
    pub fn twin(&self) -> watch::Receiver<Twin> {
        self.twin.clone()
    }

    /// Values of a shadow were changed on the device itself: a JSON merge patch (RFC 7396). It is told to the engine,
    /// now or when there is a connection.
    pub async fn change(&self, shadow: &str, patch: Map<String, Value>) -> Result<(), EdgeError> {
        self.commands.send(Command::Change { shadow: shadow.to_owned(), patch }).await.map_err(|_| EdgeError::Stopped)
    }

    /// A command stands elsewhere now: `running`, `ok`, `failed` or `rejected`, and what there is to say of it.
    pub async fn ended(&self, id: &str, state: &'static str, out: Value) -> Result<(), EdgeError> {
        self.commands.send(Command::Ended { id: id.to_owned(), state, out }).await.map_err(|_| EdgeError::Stopped)
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Makes everything durable, says goodbye and ends. What is not acknowledged stays in the outbox.
    pub async fn shutdown(self) -> Result<Stats, EdgeError> {
        self.ask(|reply| Command::Shutdown { reply }).await?;
        let stats = self.stats();
        // The store is closed, and may be opened again, once the task is gone.
        self.task.await.map_err(|_| EdgeError::Stopped)?;
        Ok(stats)
    }

    /// Ends without a goodbye, as a crash would, and waits until the store is closed and may be opened again.
    pub async fn abandon(self) -> Result<Stats, EdgeError> {
        drop(self.commands);
        self.task.await.map_err(|_| EdgeError::Stopped)?;
        Ok(self.shared.stats())
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, EdgeError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| EdgeError::Stopped)?;
        answer.await.map_err(|_| EdgeError::Stopped)
    }
}
