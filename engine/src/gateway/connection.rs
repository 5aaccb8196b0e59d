//! One connection: the loop between its socket, its session and the devices.
//!
//! A connection is one task. Each turn takes in what others have put into the session (outcomes, messages),
//! handles every complete packet that was read, and writes all answers at once; then the task sleeps until the
//! socket, the session's signal, something it waits for (credit, a device's door, room in the bus) or the clock
//! wakes it. While it waits for one of those it does not read: that is the back-pressure, and TCP passes it on.
//!
//! The packets are handled in `packets.rs` and `ingest.rs`; how a connection begins and ends is in `opening.rs`.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context as TaskContext, Poll};

use actors::admission::Credit;
use actors::message::{Inbound, Ingress, Outcome};
use bytes::BytesMut;
use device::time::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Duration, Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::control::{Disconnect, Options};
use super::fault::{Fault, code};
use super::frame::{self, Version};
use super::hub::Hub;
use super::identity::{Identity, Reminder};
use super::limits::{OUT_HIGH, READ_MAX, READ_MIN};
use super::metrics::{Counts, up};
use super::route::Routes;
use super::session::{Core, Session};
use crate::guard::Guard;

/// Reads the clock.
pub(crate) type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;
/// Draws a random number.
pub(crate) type Random = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What all connections of a gateway share.
pub(crate) struct Shared<I> {
    pub(crate) hub: Arc<Hub>,
    pub(crate) ingress: Arc<I>,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) phase: AtomicU8,
    /// Who decides about certificates; none: nobody is asked for one.
    pub(crate) guard: Option<Arc<Guard>>,
    /// Cancelled when the gateway stops: whoever has not said CONNECT by then need not.
    pub(crate) leaving: CancellationToken,
}

/// The gateway serves.
pub(crate) const RUNNING: u8 = 0;
/// Nothing more is read; what was read is finished.
pub(crate) const DRAINING: u8 = 1;
/// Connections end at once.
pub(crate) const CLOSED: u8 = 2;

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    /// The client said so.
    Client(Disconnect),
    /// The socket is closed or broken.
    Lost,
    /// The client broke the protocol, or cannot be served.
    Fault(Fault),
    /// Somebody else wants it to end, for this reason code.
    Told(u8),
    /// The client does not take what we write.
    Stalled,
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What a connection waits for before it handles the next packet.
pub(crate) enum Wait<D> {
    Nothing,
    /// Credit for so many bytes.
    Credit(Boxed<Credit>, usize),
    /// The door of the device on this route, and the message that found it shut.
    Door(Boxed<D>, usize, Option<Inbound>),
    /// Room in the bus.
    Room(Boxed<Credit>),
}

pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Retained messages that a new subscription is still to be given.
#[derive(Debug)]
pub(crate) struct Owed {
    pub(crate) filter: Box<str>,
    pub(crate) options: Options,
    pub(crate) id: Option<u32>,
    pub(crate) after: Option<Arc<str>>,
}

/// What the client said of itself in CONNECT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    pub(crate) version: Version,
    pub(crate) maximum_packet: usize,
    pub(crate) topic_aliases: u16,
    pub(crate) problem_information: bool,
    /// One and a half times the keep alive; `None`: it may be silent for ever.
    pub(crate) silence: Option<Duration>,
    /// Whether the session may be made to outlive the connection by DISCONNECT.
    pub(crate) persistent: bool,
}

/// The address that a connection comes from; none: it has no socket.
pub(crate) type Peer = Option<SocketAddr>;

/// Who is at the other end.
#[derive(Debug, Clone)]
pub(crate) struct Speaker {
    pub(crate) identity: Identity,
    /// The guard's revision at a time before it was asked.
    pub(crate) revision: u64,
    pub(crate) peer: Peer,
}

/// An open connection.
pub(crate) struct Connection<I: Ingress, S> {
    pub(crate) shared: Arc<Shared<I>>,
    pub(crate) io: S,
    pub(crate) identity: Identity,
    /// What the guard knew when it said so.
    revision: u64,
    pub(crate) peer: Peer,
    pub(crate) client: Client,
    pub(crate) session: Arc<Session>,
    pub(crate) core: OwnedMutexGuard<Core>,
    pub(crate) claim: u64,
    /// Numbers that the engine draws for messages of this connection belong to this.
    pub(crate) number: u64,
    pub(crate) buf: BytesMut,
    pub(crate) out: Vec<u8>,
    pub(crate) written: usize,
    pub(crate) wait: Wait<I::Door>,
    /// Credit for the bytes in `buf` that are handled next.
    pub(crate) credit: Option<Credit>,
    pub(crate) credited: usize,
    pub(crate) room: Option<Credit>,
    pub(crate) routes: Routes<I::Door>,
    /// Topics by alias, as the client set them.
    pub(crate) aliases_in: Vec<Option<Arc<str>>>,
    /// Aliases that the client was told.
    pub(crate) aliases_out: HashMap<Arc<str>, u16>,
    pub(crate) owed: VecDeque<Owed>,
    pub(crate) counts: Counts,
    /// Something stopped because too much is unwritten: go on when it is written.
    pub(crate) held: bool,
    pub(crate) now: Instant,
    pub(crate) received: Timestamp,
    pub(crate) spare: Vec<(u64, Outcome)>,
    unflushed: bool,
    draining: bool,
    next_read: usize,
    last_read: Instant,
    last_write: Instant,
    promised_since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Time that messages, and packets, up to now take at the rates that are allowed.
    due: [Instant; 2],
    /// Nothing is read before this, because more came than is allowed.
    paced: Option<Instant>,
    /// What a device was told last to do about its certificate, and when.
    pub(crate) reminded: Option<(Reminder, Instant)>,
}

/// How long a message may wait for an outcome that nobody has promised any more (looked at as often as that).
const LOST_OUTCOME: Duration = Duration::from_secs(3);
/// After this long without traffic large buffers are given back.
const QUIET: Duration = Duration::from_secs(5);

impl<I: Ingress, S: AsyncRead + AsyncWrite + Unpin> Connection<I, S> {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        shared: Arc<Shared<I>>,
        io: S,
        speaker: Speaker,
        client: Client,
        session: Arc<Session>,
        core: OwnedMutexGuard<Core>,
        claim: u64,
        (buf, out): (BytesMut, Vec<u8>),
    ) -> Self {
        let now = Instant::now();
        // 63 bits: the number stands in files as a signed integer.
        let number = (shared.random)() >> 1;
        Self {
            received: (shared.clock)(),
            shared,
            io,
            identity: speaker.identity,
            revision: speaker.revision,
            peer: speaker.peer,
            client,
            session,
            core,
            claim,
            number,
            buf,
            out,
            written: 0,
            wait: Wait::Nothing,
            credit: None,
            credited: 0,
            room: None,
            routes: Routes::default(),
            aliases_in: Vec::new(),
            aliases_out: HashMap::new(),
            owed: VecDeque::new(),
            counts: Counts::default(),
            held: false,
            now,
            spare: Vec::new(),
            unflushed: false,
            draining: false,
            next_read: READ_MIN,
            last_read: now,
            last_write: now,
            promised_since: None,
            sleep: None,
            due: [now; 2],
            paced: None,
            reminded: None,
        }
    }

    /// Serves the connection until it ends.
    pub(crate) async fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.turn() {
                return end;
            }
            if let Err(end) = poll_fn(|cx| self.poll(cx)).await {
                return end;
            }
        }
    }

    fn turn(&mut self) -> Result<(), End> {
        self.now = Instant::now();
        self.check()?;
        self.held = false;
        self.settle();
        let handled = self.handle_packets();
        self.acknowledge();
        self.deliver();
        self.pace();
        self.counts.hand_in(&self.shared.hub.metrics);
        handled?;
        self.arm();
        if self.draining && self.finished() { Err(End::Told(code::SHUTTING_DOWN)) } else { Ok(()) }
    }

    /// Whether somebody wants this connection to end.
    fn check(&mut self) -> Result<(), End> {
        if !self.session.holds(self.claim) {
            up(&self.shared.hub.metrics.taken_over);
            return Err(End::Told(code::TAKEN_OVER));
        }
        if let Some(code) = self.session.kicked() {
            return Err(End::Told(code));
        }
        self.ask_again()?;
        match self.shared.phase.load(Ordering::Acquire) {
            RUNNING => Ok(()),
            DRAINING => {
                self.draining = true;
                Ok(())
            }
            _ => Err(End::Told(code::SHUTTING_DOWN)),
        }
    }

    /// Asks the guard again if what it knows has changed since it was last asked.
    fn ask_again(&mut self) -> Result<(), End> {
        let Some(guard) = &self.shared.guard else { return Ok(()) };
        let revision = guard.revision();
        if revision == self.revision {
            return Ok(());
        }
        match guard.again(&self.identity) {
            Err(why) => {
                up(&self.shared.hub.metrics.cut);
                guard.refused(&self.identity, self.peer, "connection", why.code());
                return Err(Fault::new(code::NOT_AUTHORIZED, why.text()).into());
            }
            Ok(identity) if identity == self.identity => self.revision = revision,
            // Where its topics lead may have changed; a message that waits on one of them comes first.
            Ok(identity) if matches!(self.wait, Wait::Nothing) => {
                self.identity = identity;
                self.routes = Routes::default();
                self.revision = revision;
            }
            Ok(_) => {}
        }
        self.remind();
        Ok(())
    }

    /// Notes what somebody tried who may not. Whoever has a name and should know better is sent away; but not a gateway that
    /// speaks for a device that is not its child (any more), because its other children have done nothing.
    pub(crate) fn denied(&self, what: &str, text: &'static str) -> Result<(), End> {
        if !self.identity.is_strict() {
            return Ok(());
        }
        if let Some(guard) = &self.shared.guard {
            guard.refused(&self.identity, self.peer, what, text);
        }
        if self.identity.speaks_for() > 1 && what.starts_with("devices/") {
            return Ok(());
        }
        Err(Fault::new(code::NOT_AUTHORIZED, text).into())
    }

    fn finished(&self) -> bool {
        matches!(self.wait, Wait::Nothing) && self.core.incoming.waiting() == 0 && self.unwritten() == 0
    }

    pub(crate) fn unwritten(&self) -> usize {
        self.out.len() - self.written
    }

    /// Whether this is a 3.1.1 client with as much in flight as we take. A MQTT 5 client is told the number, and
    /// refused when it does not keep to it.
    pub(crate) fn window_shut(&self) -> bool {
        self.client.version == Version::V3
            && self.core.incoming.waiting() >= usize::from(self.shared.hub.limits.receive_maximum)
    }

    /// Holds a client to its rates: who has sent more than a second's worth too early is not read until that is made up for.
    fn pace(&mut self) {
        const BURST: Duration = Duration::from_secs(1);
        if self.counts.packets() == 0 || !self.identity.is_strict() {
            return;
        }
        let limits = &self.shared.hub.limits;
        let metrics = &self.shared.hub.metrics;
        // Whoever may only ask asks a few times and goes.
        let most = if self.identity.asks().is_some() { [20, 100] } else { [u64::from(u32::MAX); 2] };
        let rates = [
            (limits.messages_per_second, self.counts.messages(), &metrics.paced),
            (limits.packets_per_second, self.counts.packets(), &metrics.paced_packets),
        ];
        for (((rate, count, paced), most), due) in rates.into_iter().zip(most).zip(&mut self.due) {
            let rate = (u64::from(rate) * self.identity.speaks_for()).min(most);
            if count == 0 || rate == 0 {
                continue;
            }
            *due = (*due).max(self.now) + Duration::from_nanos(count.saturating_mul(1_000_000_000) / rate);
            if *due > self.now + BURST {
                up(paced);
                self.paced = self.paced.max(Some(*due - BURST));
            }
        }
    }

    fn reads(&self) -> bool {
        self.paced.is_none()
            && matches!(self.wait, Wait::Nothing)
            && !self.draining
            && self.unwritten() < OUT_HIGH
            && !self.window_shut()
    }

    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), End>> {
        let mut go_on = self.session.sink.signal.look(cx.waker());
        go_on |= self.poll_write(cx)?;
        go_on |= self.poll_wait(cx);
        if self.reads() {
            go_on |= self.poll_read(cx)?;
        }
        while let Some(sleep) = &mut self.sleep
            && sleep.as_mut().poll(cx).is_ready()
        {
            self.sleep = None;
            self.now = Instant::now();
            self.look_at_clock()?;
            if self.paced.is_some_and(|until| self.now >= until) {
                self.paced = None;
                go_on = true;
            }
            self.arm();
        }
        if go_on { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Writes what it can. True: there is room again for what was held back.
    fn poll_write(&mut self, cx: &mut TaskContext<'_>) -> Result<bool, End> {
        if self.unwritten() == 0 && !self.unflushed {
            return Ok(false);
        }
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.io).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Err(End::Lost),
                Poll::Ready(Ok(count)) => {
                    self.written += count;
                    self.unflushed = true;
                    self.counts.bytes_out += count as u64;
                    self.last_write = self.now;
                }
                Poll::Pending => return Ok(false),
            }
        }
        self.written = 0;
        self.out.clear();
        if self.out.capacity() > OUT_HIGH {
            self.out = Vec::new();
        }
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(Ok(())) => self.unflushed = false,
            Poll::Ready(Err(_)) => return Err(End::Lost),
            Poll::Pending => {}
        }
        Ok(self.held || self.draining)
    }

    /// Reads once. True: there is something to handle.
    fn poll_read(&mut self, cx: &mut TaskContext<'_>) -> Result<bool, End> {
        if self.buf.capacity() - self.buf.len() < self.next_read.min(READ_MIN) {
            self.buf.reserve(self.next_read);
        }
        let space = self.buf.capacity() - self.buf.len();
        let result = pin!(self.io.read_buf(&mut self.buf)).poll(cx);
        match result {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => Err(End::Lost),
            Poll::Ready(Ok(count)) => {
                self.last_read = Instant::now();
                self.received = (self.shared.clock)();
                self.counts.bytes_in += count as u64;
                if count >= space {
                    self.next_read = (self.next_read * 4).min(READ_MAX);
                } else if count < self.next_read / 4 {
                    self.next_read = (self.next_read / 2).max(READ_MIN);
                }
                Ok(true)
            }
        }
    }

    /// Looks at what is waited for. True: it has come.
    fn poll_wait(&mut self, cx: &mut TaskContext<'_>) -> bool {
        match &mut self.wait {
            Wait::Nothing => return false,
            Wait::Credit(credit, bytes) => match credit.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(credit) => (self.credit, self.credited) = (Some(credit), *bytes),
            },
            Wait::Room(room) => match room.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(room) => self.room = Some(room),
            },
            Wait::Door(door, at, message) => match door.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(door) => {
                    let (at, message) = (*at, message.take());
                    self.wait = Wait::Nothing;
                    self.opened(at, door, message);
                    self.last_read = Instant::now();
                    return true;
                }
            },
        }
        self.wait = Wait::Nothing;
        // It was we who did not read: the client's silence counts from now.
        self.last_read = Instant::now();
        true
    }

    /// What the clock demands now.
    fn look_at_clock(&mut self) -> Result<(), End> {
        let metrics = &self.shared.hub.metrics;
        if let Some(silence) = self.client.silence {
            if !self.reads() {
                self.last_read = self.now;
            } else if self.now.duration_since(self.last_read) >= silence {
                up(&metrics.keep_alive_timeouts);
                return Err(Fault::new(code::KEEP_ALIVE, "no packet within the keep alive time").into());
            }
        }
        let stall = self.shared.hub.limits.write_stall;
        if self.unwritten() > 0 && self.now.duration_since(self.last_write) >= stall {
            return Err(End::Stalled);
        }
        if self.core.incoming.undecided() && !self.session.promised() {
            let since = *self.promised_since.get_or_insert(self.now);
            if self.now.duration_since(since) >= LOST_OUTCOME {
                up(&metrics.lost_outcomes);
                return Err(Fault::new(code::IMPLEMENTATION, "the outcome of a message was lost; send it again").into());
            }
        } else {
            self.promised_since = None;
        }
        if self.now.duration_since(self.last_read) >= QUIET && self.buf.is_empty() {
            self.next_read = READ_MIN;
            self.buf = BytesMut::new();
            self.spare = Vec::new();
            if self.out.is_empty() {
                self.out = Vec::new();
            }
        }
        Ok(())
    }

    /// Sets the alarm for whatever the clock may demand next. An alarm that is too early does no harm, so it is
    /// only moved forward when something needs it, not with every packet.
    fn arm(&mut self) {
        let mut next: Option<Instant> = None;
        let mut at = |time: Instant| next = Some(next.map_or(time, |known| known.min(time)));
        if let Some(silence) = self.client.silence {
            at(self.last_read + silence);
        }
        if self.unwritten() > 0 {
            at(self.last_write + self.shared.hub.limits.write_stall);
        }
        if let Some(paced) = self.paced {
            at(paced);
        }
        if self.core.incoming.waiting() > 0 {
            at(self.now + LOST_OUTCOME);
        }
        if self.buf.capacity() > 2 * READ_MIN || self.out.capacity() > 2 * READ_MIN {
            at(self.now + QUIET);
        }
        let Some(next) = next else { return };
        match &mut self.sleep {
            Some(sleep) if sleep.deadline() <= next => {}
            Some(sleep) => sleep.as_mut().reset(next),
            None => self.sleep = Some(Box::pin(tokio::time::sleep_until(next))),
        }
    }

    /// Handles every complete packet that was read, as far as nothing has to be waited for.
    fn handle_packets(&mut self) -> Result<(), End> {
        let limit = self.shared.hub.limits.packet;
        while matches!(self.wait, Wait::Nothing) {
            if self.unwritten() >= OUT_HIGH {
                self.held = true;
                return Ok(());
            }
            if self.window_shut() {
                return Ok(());
            }
            let Some(frame) = frame::next(&self.buf, limit)? else { break };
            if frame.kind == frame::kind::PUBLISH {
                self.publish(frame)?;
            } else {
                self.counts.others += 1;
                let packet = self.buf.split_to(frame.len);
                self.packet(frame, packet.get(frame.head..).unwrap_or_default())?;
            }
        }
        if matches!(self.wait, Wait::Nothing) {
            // The rest is part of a packet: it gets credit when it is complete.
            (self.credit, self.credited) = (None, 0);
        }
        Ok(())
    }
}
