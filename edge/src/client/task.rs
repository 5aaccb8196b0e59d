//! The client's task: carries events to the agent and carries out what it says.

mod act;
mod keeping;
mod papers;

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use device::seq::Epoch;
use device::topic::Leaf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::keeper::Keeper;
use super::{Clock, Command, EdgeConfig, Fault, Receipt, Shared};
use crate::agent::{Agent, Event};
use crate::clock::{Clocks, Stamp};
use crate::error::EdgeError;
use crate::mqtt::{Hail, Incoming, Link, MqttError};
use crate::outbox::{Outbox, Pushed};
use crate::reading::{Reading, SchemaRef};
use crate::twin::Sent;
use crate::wire;
pub(super) use papers::Papers;

/// Records that may wait for a store that fails before no more are taken.
const MAX_PENDING: usize = 4096;
/// Pause after a failed commit.
const COMMIT_RETRY: Duration = Duration::from_secs(1);
/// First pause before connecting again; doubles up to the configured one.
const RECONNECT_AFTER: Duration = Duration::from_millis(200);
/// Records whose wait for an ack is measured at the same time; more are not counted.
const MAX_TIMED: usize = 4096;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

type Connecting = Pin<Box<dyn Future<Output = Result<Link, MqttError>> + Send>>;

/// Readings that are not all pushed yet, because the store is full.
struct Batch {
    readings: VecDeque<Reading>,
    receipt: Receipt,
    arrived: Instant,
    reply: oneshot::Sender<Result<Receipt, EdgeError>>,
}

pub(super) struct Topics {
    pub(super) telemetry: String,
    pub(super) hello: String,
    pub(super) status: String,
    pub(super) ack: String,
    pub(super) hello_ack: String,
    pub(super) errors: String,
    pub(super) config: String,
    pub(super) reported: String,
    pub(super) commands: String,
    pub(super) result: String,
}

pub(super) struct Task {
    config: EdgeConfig,
    clock: Clock,
    topics: Topics,
    started: Instant,
    inbox: mpsc::Receiver<Command>,
    /// Away only while a commit runs on a blocking thread.
    outbox: Option<Outbox>,
    keeper: Keeper,
    /// Its certificate, if it has one of its own.
    papers: Option<Papers>,
    /// Reports on their way, by packet id.
    reports: HashMap<u16, Sent>,
    agent: Agent,
    shared: Arc<Shared>,
    link: Option<Link>,
    connecting: Option<Connecting>,
    reconnect_at: Option<Instant>,
    reconnect_wait: Duration,
    session: u64,
    clocks: Clocks,
    stalled: Option<Batch>,
    /// Pushed, but not durable yet.
    waiting: Vec<Batch>,
    commit_at: Option<Instant>,
    commit_failed: bool,
    flushing: Vec<oneshot::Sender<()>>,
    /// Durable and not acknowledged: epoch, last number, how many, since when.
    timed: VecDeque<(Epoch, u64, u64, Instant)>,
    /// The schema used last: a frame that only declares losses has to name one.
    schema: SchemaRef,
    twice: u32,
    disorder: u32,
    held_back: Vec<Vec<u8>>,
}

enum Woke {
    Command(Option<Command>),
    Incoming(Result<Vec<Incoming>, MqttError>),
    Connected(Result<Box<Link>, MqttError>),
    Timer,
}

impl Task {
    pub(super) fn new(
        config: EdgeConfig,
        clock: Clock,
        (outbox, keeper, papers): (Outbox, Keeper, Option<Papers>),
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<Command>,
    ) -> Self {
        let topic = |leaf: Leaf| leaf.topic(&config.device);
        let topics = Topics {
            telemetry: topic(Leaf::Telemetry),
            hello: topic(Leaf::Hello),
            status: topic(Leaf::Status),
            ack: topic(Leaf::Ack),
            hello_ack: topic(Leaf::HelloAck),
            errors: topic(Leaf::Errors),
            config: topic(Leaf::Config),
            reported: topic(Leaf::ConfigReported),
            commands: topic(Leaf::Commands),
            result: topic(Leaf::CommandsResult),
        };
        let mut agent_config = config.agent.clone();
        agent_config.frame_records = config.frame.records.max(1) as u64;
        let agent = Agent::new(agent_config, rand::random(), &outbox.epochs(), outbox.lost());
        let now = Instant::now();
        Self {
            clock,
            topics,
            started: now,
            inbox,
            outbox: Some(outbox),
            keeper,
            papers,
            reports: HashMap::new(),
            agent,
            shared,
            link: None,
            connecting: None,
            reconnect_at: Some(now),
            reconnect_wait: RECONNECT_AFTER,
            session: 0,
            clocks: Clocks::default(),
            stalled: None,
            waiting: Vec::new(),
            commit_at: None,
            commit_failed: false,
            flushing: Vec::new(),
            timed: VecDeque::new(),
            schema: SchemaRef::new(1, 1, 0),
            twice: 0,
            disorder: 0,
            held_back: Vec::new(),
            config,
        }
    }

    pub(super) async fn run(mut self) {
        let goodbye = loop {
            self.reconnect();
            match self.wait().await {
                Woke::Command(None) => break None,
                Woke::Command(Some(Command::Shutdown { reply })) => break Some(reply),
                Woke::Command(Some(command)) => {
                    self.command(command).await;
                    // What is there already joins the same commit and the same frames.
                    let mut last = None;
                    while self.accepts()
                        && let Ok(more) = self.inbox.try_recv()
                    {
                        match more {
                            Command::Shutdown { reply } => last = Some(reply),
                            more => self.command(more).await,
                        }
                    }
                    if last.is_some() {
                        break last;
                    }
                }
                Woke::Incoming(Ok(messages)) => {
                    for message in messages {
                        self.incoming(message).await;
                    }
                }
                Woke::Incoming(Err(error)) => self.disconnected(&error).await,
                Woke::Connected(Ok(link)) => self.connected(*link).await,
                Woke::Connected(Err(error)) => {
                    self.connecting = None;
                    tracing::debug!(device = %self.config.device, %error, "cannot connect");
                    self.retry_later();
                    self.turned_away(&error).await;
                }
                Woke::Timer => {}
            }
            if self.stalled.is_some() {
                self.unstall().await;
            }
            let now = Instant::now();
            if self.commit_at.is_some_and(|at| at <= now) {
                self.commit().await;
            }
            if self.agent.deadline().is_some_and(|at| at <= self.elapsed()) {
                self.step(Event::Tick).await;
            }
            self.look_at_papers().await;
            self.publish_stats();
            if self.is_idle() {
                for reply in self.flushing.drain(..) {
                    let _ = reply.send(());
                }
            }
        };
        self.commit().await;
        if let Some(reply) = goodbye {
            if let Some(mut link) = self.link.take() {
                if self.papers.as_ref().is_none_or(Papers::is_whole) {
                    let _ = link.publish(&act::status(&self.topics.status, &wire::offline(self.session)));
                }
                let _ = tokio::time::timeout(GOODBYE, link.disconnect()).await;
            }
            self.publish_stats();
            let _ = reply.send(());
        }
    }

    async fn wait(&mut self) -> Woke {
        let accepts = self.accepts();
        let tick = self.agent.deadline().map(|at| self.started + at);
        let papers = self.papers.as_ref().map(|papers| papers.wake(self.started));
        let wake = tick.into_iter().chain(self.commit_at).chain(self.reconnect_at).chain(papers).min();
        let Self { inbox, link, connecting, .. } = self;
        tokio::select! {
            command = inbox.recv(), if accepts => Woke::Command(command),
            incoming = next(link), if link.is_some() => Woke::Incoming(incoming),
            connected = finish(connecting), if connecting.is_some() => Woke::Connected(connected.map(Box::new)),
            () = sleep_until(wake), if wake.is_some() => Woke::Timer,
        }
    }

    fn accepts(&self) -> bool {
        self.stalled.is_none() && self.outbox.as_ref().is_some_and(|outbox| outbox.pending() < MAX_PENDING)
    }

    fn is_idle(&self) -> bool {
        self.agent.unacknowledged() == 0
            && self.stalled.is_none()
            && self.waiting.is_empty()
            && self.outbox.as_ref().is_some_and(|outbox| outbox.pending() == 0)
    }

    /// Time since the start, by a clock that nobody sets.
    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Both clocks.
    fn stamp(&self) -> Stamp {
        let mono = u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Stamp { wall: (self.clock)(), mono }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Record { readings, reply } => {
                let epoch = self.outbox.as_ref().map_or(Epoch(0), Outbox::live);
                let receipt = Receipt { epoch, first: 0, last: 0, dropped: 0 };
                let batch = Batch { readings: readings.into(), receipt, arrived: Instant::now(), reply };
                self.push(batch).await;
            }
            Command::Flush { reply } => self.flushing.push(reply),
            Command::Change { shadow, patch } => {
                let now = self.stamp();
                match self.keeper.change(|twin| twin.change(&shadow, &patch, now)).await {
                    Ok(()) => self.report(&shadow).await,
                    Err(error) => tracing::warn!(device = %self.config.device, %error, "a change is not stored"),
                }
            }
            Command::Ended { id, state, out } => self.ended(&id, state, out).await,
            Command::Rotate => self.papers(crate::identity::Event::Rotate).await,
            Command::Fault(Fault::Cut) => {
                self.reconnect_wait = RECONNECT_AFTER;
                self.disconnected(&MqttError::Closed(": cut on purpose".to_owned())).await;
            }
            Command::Fault(Fault::Repeat) => self.step(Event::Repeat).await,
            Command::Fault(Fault::Twice(frames)) => self.twice = frames,
            Command::Fault(Fault::Disorder(frames)) => self.disorder = frames,
            Command::Fault(Fault::Raw(payload)) => {
                if let Some(link) = &mut self.link {
                    let _ = link.publish(&act::telemetry(&self.topics.telemetry, &payload));
                }
            }
            // The loop takes it out before.
            Command::Shutdown { .. } => {}
        }
    }

    /// Numbers readings; commits when there are enough of them, or later.
    async fn push(&mut self, mut batch: Batch) {
        let mut tried = false;
        // The reading's time is of the wall clock as it was a moment ago.
        let now = self.stamp();
        while let Some(reading) = batch.readings.front() {
            let Some(outbox) = &mut self.outbox else { return };
            match outbox.push(reading) {
                Ok(pushed) => {
                    let (Pushed::Numbered(seq) | Pushed::Dropped(seq)) = pushed;
                    batch.receipt.dropped += u64::from(matches!(pushed, Pushed::Dropped(_)));
                    if batch.receipt.first == 0 {
                        batch.receipt.first = seq;
                    }
                    batch.receipt.last = seq;
                    self.clocks.records(outbox.live(), seq, now);
                    self.schema = reading.schema;
                    batch.readings.pop_front();
                }
                // What fills the store may only wait for a commit.
                Err(EdgeError::Full) if !tried => {
                    tried = true;
                    self.commit().await;
                }
                Err(EdgeError::Full) => {
                    self.stalled = Some(batch);
                    return;
                }
                Err(error) => {
                    let _ = batch.reply.send(Err(error));
                    return;
                }
            }
        }
        self.waiting.push(batch);
        let due = Instant::now() + self.config.commit_after;
        self.commit_at = Some(self.commit_at.map_or(due, |at| at.min(due)));
        let pending = self.outbox.as_ref().map_or(0, Outbox::pending);
        if pending >= self.config.commit_records.max(1) && !self.commit_failed {
            self.commit().await;
        }
    }

    /// Makes durable what is pushed; tells the writers and the agent.
    async fn commit(&mut self) {
        self.commit_at = None;
        let Some(dirty) = self.outbox.as_ref().map(Outbox::is_dirty) else { return };
        if !dirty && self.waiting.is_empty() {
            return;
        }
        let committed = self.blocking(Outbox::commit).await;
        match committed {
            Ok(last) => {
                self.commit_failed = false;
                let Some(outbox) = &mut self.outbox else { return };
                let (epoch, news) = (outbox.live(), outbox.take_news());
                for batch in self.waiting.drain(..) {
                    let receipt = Receipt { epoch, ..batch.receipt };
                    let count = if receipt.first == 0 { 0 } else { receipt.last - receipt.first + 1 };
                    self.shared.recorded.fetch_add(count - receipt.dropped, Ordering::Relaxed);
                    if self.timed.len() < MAX_TIMED && count > 0 {
                        self.timed.push_back((epoch, receipt.last, count, batch.arrived));
                    }
                    let _ = batch.reply.send(Ok(receipt));
                }
                let mut events: Vec<Event> = news.into_iter().map(Event::Lost).collect();
                events.push(Event::Recorded { last });
                self.steps(events).await;
            }
            Err(error) => {
                if !self.commit_failed {
                    tracing::warn!(device = %self.config.device, %error, "records are not durable, trying on");
                }
                self.commit_failed = true;
                self.commit_at = Some(Instant::now() + COMMIT_RETRY);
            }
        }
    }

    /// Runs something that may wait for the disk, on a thread for such things where it does.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Outbox) -> Result<T, EdgeError> + Send + 'static,
    ) -> Result<T, EdgeError> {
        let mut outbox = self.outbox.take().ok_or(EdgeError::Stopped)?;
        let (outbox, result) = if outbox.blocks() {
            let done = tokio::task::spawn_blocking(move || {
                let result = work(&mut outbox);
                (outbox, result)
            });
            done.await.map_err(|_| EdgeError::Stopped)?
        } else {
            let result = work(&mut outbox);
            (outbox, result)
        };
        self.outbox = Some(outbox);
        result
    }

    fn reconnect(&mut self) {
        if self.link.is_some() || self.connecting.is_some() {
            self.reconnect_at = None;
            return;
        }
        if self.reconnect_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.reconnect_at = None;
        self.session = rand::random();
        let hail = Hail {
            client_id: self.config.device.as_str().to_owned(),
            will: Some((self.topics.status.clone(), wire::offline(self.session))),
            subscribe: [
                &self.topics.ack,
                &self.topics.hello_ack,
                &self.topics.errors,
                &self.topics.config,
                &self.topics.commands,
            ]
            .map(Clone::clone)
            .into(),
        };
        let (config, hail) = match self.show(hail) {
            Ok(shown) => shown,
            Err(error) => {
                tracing::warn!(device = %self.config.device, error, "cannot connect");
                return self.retry_later();
            }
        };
        self.connecting = Some(Box::pin(async move { Link::connect(&config, &hail).await }));
    }

    fn retry_later(&mut self) {
        // Half to one and a half of the pause: a fleet must not come back at one moment.
        let pause = self.reconnect_wait.mul_f64(0.5 + rand::random::<f64>());
        self.reconnect_at = Some(Instant::now() + pause);
        self.reconnect_wait = (self.reconnect_wait * 2).min(self.config.reconnect_at_most);
    }

    async fn connected(&mut self, link: Link) {
        self.connecting = None;
        self.link = Some(link);
        self.shared.connects.fetch_add(1, Ordering::Relaxed);
        if self.shown().await {
            self.step(Event::Connected).await;
        }
    }

    /// What belonged to the connection that has ended.
    fn forget_link(&mut self) {
        self.held_back.clear();
        self.reports.clear();
    }

    async fn disconnected(&mut self, error: &MqttError) {
        tracing::debug!(device = %self.config.device, %error, "disconnected");
        if self.link.take().is_none() {
            return;
        }
        self.forget_link();
        self.retry_later();
        self.step(Event::Disconnected).await;
        self.turned_away(error).await;
    }

    fn publish_stats(&self) {
        let set = |counter: &std::sync::atomic::AtomicU64, value| counter.store(value, Ordering::Relaxed);
        let counts = self.agent.counts();
        set(&self.shared.sent, counts.sent);
        set(&self.shared.resent, counts.resent);
        set(&self.shared.acked, counts.acked);
        set(&self.shared.nacked, counts.nacked);
        set(&self.shared.forks, counts.forks);
        set(&self.shared.unacknowledged, self.agent.unacknowledged());
        set(&self.shared.in_flight, self.agent.in_flight());
        set(&self.shared.lost, self.outbox.as_ref().map_or(0, Outbox::dropped));
        set(&self.shared.renewed, self.papers.as_ref().map_or(0, Papers::renewed));
        self.shared.connected.store(self.agent.is_up(), Ordering::Relaxed);
    }
}

async fn next(link: &mut Option<Link>) -> Result<Vec<Incoming>, MqttError> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

async fn finish(connecting: &mut Option<Connecting>) -> Result<Link, MqttError> {
    match connecting {
        Some(connecting) => connecting.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
