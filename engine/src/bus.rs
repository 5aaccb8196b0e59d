//! The bus for live messages to wildcard subscribers: rumqttd's router, and the only file that knows it.
//!
//! What it does here: one link publishes parcels into the router under one fixed ASCII topic, one link with one
//! subscription takes them out again, in order. What it does not do here: listen, authenticate, match topics,
//! keep retained messages, sessions or acknowledgements. Its faults in those (a topic that kills the router's
//! thread, links that lose, filters that are never freed) are out of reach, because no client's packet, topic
//! or filter comes near it.
//!
//! Guard rails. Bytes inside are bounded by credit and stay below the size of the router's ring, so it never
//! overwrites what was not read. Every parcel has a number; what does not come back in order is counted as lost.
//! If nothing comes back in time (a heartbeat is sent when there is nothing else), or a link reports an error, the
//! router is given up and a new one is started; its thread, if it still lives, waits for ever and is left alone.
//! No link is ever told to disconnect: a disconnect of a busy link is what kills the router, and a link that is
//! given up belongs to a router that is given up. The router is started with the first wildcard subscription.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actors::admission::{Admission, Credit};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::FutureExt;
use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::protocol::{Packet, Publish};
use rumqttd::{Notification, Router, RouterConfig};
use thiserror::Error;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// The one topic: ASCII, no wildcard, nothing that a client chose.
const LANE: &str = "lane";
/// Parcels given to the router in one event.
const BATCH: usize = 256;
/// Parcels inside the router: its ring counts payload bytes only, so their number is bounded too.
const IN_FLIGHT: usize = 16 * 1024;
/// Events that may wait in the router's channel, which holds 1000: a full one would block us.
const EVENTS: usize = 500;
/// Bytes of a parcel's number.
const NUMBER: usize = 8;

/// Bounds of the bus.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BusConfig {
    /// Bytes of parcels that may be inside.
    pub(crate) bytes: usize,
    /// How long a parcel may take before the router counts as dead.
    pub(crate) deadline: Duration,
}

/// Takes parcels in. Whoever holds it may send; the far side is the function given to [`Bus::new`].
#[derive(Debug)]
pub(crate) struct Bus {
    parcels: mpsc::Sender<Parcel>,
    room: Admission,
    want: Arc<Notify>,
}

#[derive(Debug)]
struct Parcel {
    bytes: BytesMut,
    room: Credit,
}

/// Why the router was given up.
#[derive(Debug, Error)]
enum BusError {
    #[error("the router cannot be started: {0}")]
    Start(String),
    #[error("a link of the router reports: {0}")]
    Link(Box<rumqttd::local::LinkError>),
    #[error("the router has not given back a message in time")]
    Silent,
    #[error("the task that starts the router ended")]
    Task(#[from] tokio::task::JoinError),
}

impl From<rumqttd::local::LinkError> for BusError {
    fn from(error: rumqttd::local::LinkError) -> Self {
        Self::Link(Box::new(error))
    }
}

/// The far side: gets the content of every parcel, in order.
pub(crate) type Deliver = Arc<dyn Fn(Bytes) + Send + Sync>;

impl Bus {
    /// A bus, and the task that drives it. The task ends when the bus is dropped.
    pub(crate) fn new(
        config: BusConfig,
        restarts: impl Fn() + Send + Sync + 'static,
        lost: impl Fn(u64) + Send + Sync + 'static,
        deliver: Deliver,
    ) -> (Self, impl Future<Output = ()> + Send) {
        // A parcel holds at least one grain of credit, so the queue's own bound is never what limits.
        let (parcels, queue) = mpsc::channel(IN_FLIGHT);
        let want = Arc::new(Notify::new());
        let bus = Self { parcels, room: Admission::new(config.bytes), want: want.clone() };
        let driver = Driver {
            config,
            queue,
            deliver,
            inside: VecDeque::new(),
            next: 0,
            events: 0,
            sick: false,
            restarts: Box::new(restarts),
            lost: Box::new(lost),
        };
        (bus, driver.run(want))
    }

    /// Somebody will want messages: the router is started if it is not running.
    pub(crate) fn want(&self) {
        self.want.notify_one();
    }

    /// Room for a message, if there is some now.
    pub(crate) fn room_now(&self, bytes: usize) -> Option<Credit> {
        self.room.admit(bytes).now_or_never()
    }

    /// Waits for room.
    pub(crate) async fn room(&self, bytes: usize) -> Credit {
        self.room.admit(bytes).await
    }

    /// Leaves space for the parcel's number: to be called on an empty buffer, before its content is written.
    pub(crate) fn address(&self, parcel: &mut BytesMut) {
        parcel.put_bytes(0, NUMBER);
    }

    /// Sends a parcel that was begun with [`Bus::address`]. False: it could not be taken.
    pub(crate) fn send(&self, bytes: BytesMut, room: Credit) -> bool {
        self.parcels.try_send(Parcel { bytes, room }).is_ok()
    }
}

#[cfg(test)]
impl Bus {
    /// Ends the router's thread the way a client's topic would, were it ever to see one.
    pub(crate) fn kill_router(&self) {
        let parcel = BytesMut::from(&b"kill"[..]);
        assert!(self.send(parcel, Credit::free()));
    }
}

/// A parcel inside the router.
struct Inside {
    number: u64,
    /// Kept so that a new router can be given it; shared with the router, not a copy.
    bytes: Bytes,
    /// Whether the router was sent an event for it.
    event: bool,
    /// Held until the parcel is back. A heartbeat holds none.
    room: Option<Credit>,
}

struct Links {
    tx: LinkTx,
    rx: LinkRx,
}

struct Driver {
    config: BusConfig,
    queue: mpsc::Receiver<Parcel>,
    deliver: Deliver,
    inside: VecDeque<Inside>,
    next: u64,
    /// How many of those inside were sent with an event.
    events: usize,
    /// The router was given up and the new one has not given anything back yet.
    sick: bool,
    restarts: Box<dyn Fn() + Send + Sync>,
    lost: Box<dyn Fn(u64) + Send + Sync>,
}

/// Numbers routers of this process, for the names of their threads.
static ROUTERS: AtomicU64 = AtomicU64::new(0);

impl Driver {
    async fn run(mut self, want: Arc<Notify>) {
        let mut first = None;
        tokio::select! {
            () = want.notified() => {}
            parcel = self.queue.recv() => match parcel {
                Some(parcel) => first = Some(parcel),
                None => return,
            },
        }
        let mut waiting: Vec<Parcel> = first.into_iter().collect();
        loop {
            let error = match self.start().await {
                Ok(links) => match self.drive(links, &mut waiting).await {
                    Ok(()) => return,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            tracing::error!(%error, inside = self.inside.len(), "the live bus is started anew");
            (self.restarts)();
            if self.sick {
                // The second router in a row that gave nothing back: perhaps one of these kills it.
                self.events = 0;
                let dropped = self.inside.drain(..).filter(|inside| inside.room.is_some()).count();
                (self.lost)(dropped as u64);
            }
            self.sick = true;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// A router with both links. `LinkBuilder::build` blocks until the router answers, so it has a thread.
    async fn start(&self) -> Result<Links, BusError> {
        let number = ROUTERS.fetch_add(1, Ordering::Relaxed) as usize;
        // Twice what may be inside, and never less than one segment of 1 MiB each way.
        let segments = (self.config.bytes >> 19).max(2) + 2;
        let config = RouterConfig {
            max_connections: 8,
            max_outgoing_packet_count: 200,
            max_segment_size: 1 << 20,
            max_segment_count: segments,
            ..RouterConfig::default()
        };
        let build = tokio::task::spawn_blocking(move || {
            let sender = Router::new(number, config).spawn();
            let (mut out, rx, _) = LinkBuilder::new("far", sender.clone()).build()?;
            out.subscribe(LANE)?;
            let (tx, _, _) = LinkBuilder::new("near", sender).build()?;
            Ok::<_, BusError>(Links { tx, rx })
        });
        match tokio::time::timeout(self.config.deadline, build).await {
            Ok(links) => links?,
            Err(_) => Err(BusError::Start("it does not answer".into())),
        }
    }

    async fn drive(&mut self, mut links: Links, waiting: &mut Vec<Parcel>) -> Result<(), BusError> {
        self.events = 0;
        for inside in &mut self.inside {
            inside.event = false;
            push(&links.tx, inside.bytes.clone());
        }
        if !self.inside.is_empty() {
            self.beat(&mut links.tx)?;
        }
        self.send(&mut links.tx, waiting)?;
        let mut progress = Instant::now();
        let mut tick = tokio::time::interval(self.config.deadline / 4);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let open = self.inside.len() < IN_FLIGHT && self.events < EVENTS;
            tokio::select! {
                biased;
                notification = links.rx.next() => match notification? {
                    Some(Notification::Forward(forward)) => {
                        progress = Instant::now();
                        self.came_back(forward.publish.payload);
                    }
                    // The router stops after 200 messages until it is told to go on.
                    Some(Notification::Unschedule) => links.rx.wake().await?,
                    _ => {}
                },
                count = self.queue.recv_many(waiting, BATCH), if open => {
                    if count == 0 {
                        return Ok(());
                    }
                    if self.inside.is_empty() {
                        progress = Instant::now();
                    }
                    self.send(&mut links.tx, waiting)?;
                }
                _ = tick.tick() => {
                    if self.inside.is_empty() {
                        progress = Instant::now();
                        self.beat(&mut links.tx)?;
                    } else if progress.elapsed() > self.config.deadline {
                        return Err(BusError::Silent);
                    }
                }
            }
        }
    }

    /// Gives parcels to the router: all into its buffer, then one event for all of them.
    fn send(&mut self, tx: &mut LinkTx, parcels: &mut Vec<Parcel>) -> Result<(), BusError> {
        let count = parcels.len();
        for (i, Parcel { mut bytes, room }) in parcels.drain(..).enumerate() {
            #[cfg(test)]
            if &bytes[..] == b"kill" {
                // This topic makes the router slice a string in the middle of a character.
                tx.try_publish(Bytes::from_static("é".as_bytes()), Bytes::new())?;
                continue;
            }
            let number = self.number();
            if let Some(head) = bytes.get_mut(..NUMBER) {
                head.copy_from_slice(&number.to_be_bytes());
            }
            let (bytes, last) = (bytes.freeze(), i + 1 == count);
            self.inside.push_back(Inside { number, bytes: bytes.clone(), event: last, room: Some(room) });
            if last {
                self.events += 1;
                tx.try_publish(LANE, bytes)?;
            } else {
                push(tx, bytes);
            }
        }
        Ok(())
    }

    /// A parcel without content, to see whether the router lives.
    fn beat(&mut self, tx: &mut LinkTx) -> Result<(), BusError> {
        let number = self.number();
        let bytes = Bytes::copy_from_slice(&number.to_be_bytes());
        self.inside.push_back(Inside { number, bytes: bytes.clone(), event: true, room: None });
        self.events += 1;
        tx.try_publish(LANE, bytes)?;
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn came_back(&mut self, mut bytes: Bytes) {
        let Ok(number) = bytes.try_get_u64() else { return };
        // Numbers below the first one inside came back before (from a router that was given up).
        while self.inside.front().is_some_and(|inside| inside.number <= number) {
            let Some(inside) = self.inside.pop_front() else { break };
            self.events -= usize::from(inside.event);
            if inside.number == number {
                self.sick = false;
                if !bytes.is_empty() {
                    (self.deliver)(bytes);
                }
                return;
            }
            if inside.room.is_some() {
                (self.lost)(1);
            }
        }
    }
}

/// Puts a parcel into the router's buffer without telling it.
fn push(tx: &LinkTx, bytes: Bytes) {
    tx.buffer().push_back(Packet::Publish(Publish::new(Bytes::from_static(LANE.as_bytes()), bytes, false), None));
}
