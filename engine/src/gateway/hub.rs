//! Sessions and subscriptions of one gateway: who is connected, what they want, what is kept for them.
//!
//! Made before the devices' node exists, so that the node can be given its [`Downlink`](actors::message::Downlink).
//! How messages get from publishers to sessions is in `fanout.rs`; here is everything else that is shared.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Duration, Instant};

use super::control::{Connect, Options, Will};
use super::fault::{Fault, code};
use super::limits::Limits;
use super::metrics::GatewayMetrics;
use super::outgoing::{Bounds, Dropped};
use super::retained::Retained;
use super::session::{Core, Session};
use super::topic::Filter;
use super::trie::{Entry, Subscriber, Trie};
use crate::bus::Bus;

/// How long a connection waits for its predecessor to leave. That one only has to notice.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Counters that tell routes when to ask again; a power of two, so that few topics share one.
const STAMPS: usize = 1024;

/// The shared state of one gateway.
pub struct Hub {
    pub(crate) limits: Limits,
    pub(crate) metrics: Arc<GatewayMetrics>,
    /// What times inside the bus are counted from.
    pub(crate) origin: Instant,
    pub(crate) bus: OnceLock<Bus>,
    pub(crate) trie: RwLock<Trie<Arc<Session>>>,
    pub(crate) retained: Mutex<Retained>,
    /// Bytes queued for all sessions.
    pub(crate) queued: AtomicUsize,
    sessions: Mutex<HashMap<Arc<str>, Arc<Session>>>,
    numbers: AtomicU64,
    /// Count changes of exact subscriptions, by hash of the topic.
    stamps: Vec<AtomicU32>,
    /// Counts changes of wildcard subscriptions.
    wild_stamp: AtomicU32,
    timers: Mutex<BTreeMap<(Instant, u64), Arc<Session>>>,
    timer_numbers: AtomicU64,
}

/// A will whose time has come.
#[derive(Debug)]
pub(crate) struct LastWords {
    pub(crate) will: Will,
    pub(crate) publisher: u64,
}

/// A session in the hands of a new connection.
pub(crate) struct Attached {
    pub(crate) session: Arc<Session>,
    pub(crate) core: OwnedMutexGuard<Core>,
    /// Whether it existed before.
    pub(crate) present: bool,
    pub(crate) claim: u64,
    /// Wills of an older session that this connection ended.
    pub(crate) last_words: Vec<LastWords>,
}

/// The version of what is known about a topic's subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(u32, u32);

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("sessions", &self.sessions.lock().len()).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub without sessions.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            retained: Mutex::new(Retained::new(limits.retained_messages, limits.retained_bytes)),
            metrics: Arc::default(),
            origin: Instant::now(),
            bus: OnceLock::new(),
            trie: RwLock::default(),
            queued: AtomicUsize::new(0),
            sessions: Mutex::default(),
            // 0 is the engine itself.
            numbers: AtomicU64::new(1),
            stamps: std::iter::repeat_with(AtomicU32::default).take(STAMPS).collect(),
            wild_stamp: AtomicU32::new(0),
            timers: Mutex::default(),
            timer_numbers: AtomicU64::new(0),
            limits,
        })
    }

    /// The gateway's counters.
    pub fn metrics(&self) -> Arc<GatewayMetrics> {
        self.metrics.clone()
    }

    /// Gives the client's session to a new connection; an older connection of the client is made to leave.
    pub(crate) async fn attach(&self, client: Arc<str>, connect: &Connect) -> Result<Attached, Fault> {
        let mut last_words = Vec::new();
        loop {
            let session = self.find(&client)?;
            let claim = session.claim();
            let Ok(mut core) = tokio::time::timeout(HAND_OVER, session.core.clone().lock_owned()).await else {
                return Err(Fault::new(code::BUSY, "the client's other connection does not end; try again"));
            };
            if core.ended {
                continue;
            }
            if !session.holds(claim) {
                return Err(Fault::new(code::TAKEN_OVER, "another connection took over the session"));
            }
            if connect.clean && core.used {
                last_words.extend(self.end(&session, &mut core));
                continue;
            }
            self.forget_timers(&mut core);
            // Back in time: a will whose delay was running is not sent.
            core.will = connect.will.clone();
            core.expiry = self.expiry(connect.session_expiry);
            let present = std::mem::replace(&mut core.used, true);
            let persistent = !core.expiry.is_zero();
            session.outgoing.lock().attach(connect.receive_maximum, persistent);
            session.set_online(true);
            return Ok(Attached { session, core, present, claim, last_words });
        }
    }

    /// Whether a client of this name is connected.
    pub(crate) fn is_online(&self, client: &str) -> bool {
        self.sessions.lock().get(client).is_some_and(|session| session.online())
    }

    fn find(&self, client: &Arc<str>) -> Result<Arc<Session>, Fault> {
        let mut sessions = self.sessions.lock();
        if let Some(session) = sessions.get(client) {
            return Ok(session.clone());
        }
        if sessions.len() >= self.limits.sessions {
            return Err(Fault::new(code::QUOTA, "the server holds as many sessions as it may"));
        }
        let bounds = Bounds { messages: self.limits.queue_messages, bytes: self.limits.queue_bytes };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Session::new(number, client.clone(), bounds));
        sessions.insert(client.clone(), session.clone());
        self.metrics.sessions.store(sessions.len() as u64, Ordering::Relaxed);
        Ok(session)
    }

    /// The time that a session may outlive its connection, of the seconds that were asked for.
    pub(crate) fn expiry(&self, seconds: u32) -> Duration {
        Duration::from_secs(u64::from(seconds)).min(self.limits.session_expiry)
    }

    /// A connection leaves its session. `will`: whether its will is to be sent.
    pub(crate) fn detach(&self, session: &Arc<Session>, mut core: OwnedMutexGuard<Core>, will: bool) -> Vec<LastWords> {
        session.set_online(false);
        core.incoming.detach();
        let dropped = self.with_outgoing(session, |outgoing| outgoing.detach());
        self.metrics.dropped(Dropped::Away, dropped);
        if !will {
            core.will = None;
        }
        if core.expiry.is_zero() {
            return self.end(session, &mut core);
        }
        let now = Instant::now();
        let delay = core.will.as_ref().map(|will| Duration::from_secs(u64::from(will.delay)));
        let mut last_words = Vec::new();
        match delay {
            Some(delay) if delay.is_zero() => last_words.extend(self.last_words(session, &mut core)),
            Some(delay) if delay < core.expiry => self.note(session, &mut core, now + delay),
            // The end of the session sends it.
            _ => {}
        }
        let end = now + core.expiry;
        self.note(session, &mut core, end);
        last_words
    }

    fn last_words(&self, session: &Session, core: &mut Core) -> Option<LastWords> {
        core.will.take().map(|will| LastWords { will, publisher: session.number })
    }

    /// Ends a session: subscriptions, queue and all.
    fn end(&self, session: &Arc<Session>, core: &mut Core) -> Vec<LastWords> {
        core.ended = true;
        self.forget_timers(core);
        let filters = std::mem::take(&mut core.filters);
        if !filters.is_empty() {
            let mut trie = self.trie.write();
            for filter in filters.iter().filter_map(|text| super::topic::filter(text).ok()) {
                trie.remove(&filter, session.number);
                self.changed(&filter);
            }
        }
        let dropped = self.with_outgoing(session, |outgoing| outgoing.close());
        self.metrics.dropped(Dropped::Away, dropped);
        let mut sessions = self.sessions.lock();
        if sessions.get(&session.client).is_some_and(|known| Arc::ptr_eq(known, session)) {
            sessions.remove(&session.client);
        }
        self.metrics.sessions.store(sessions.len() as u64, Ordering::Relaxed);
        drop(sessions);
        self.last_words(session, core).into_iter().collect()
    }

    /// Adds or replaces a subscription. `Ok(true)`: it is new.
    pub(crate) fn subscribe(
        &self,
        session: &Arc<Session>,
        core: &mut Core,
        text: &str,
        filter: &Filter<'_>,
        options: Options,
        id: Option<u32>,
    ) -> Result<bool, u8> {
        if !core.filters.contains(text) {
            if core.filters.len() >= self.limits.subscriptions {
                return Err(code::QUOTA);
            }
            core.filters.insert(text.into());
        }
        let new = self.trie.write().insert(filter, Entry { who: session.clone(), options, id });
        self.changed(filter);
        if filter.wild
            && let Some(bus) = self.bus.get()
        {
            bus.want();
        }
        Ok(new)
    }

    /// Ends a subscription; false when there was none.
    pub(crate) fn unsubscribe(&self, session: &Session, core: &mut Core, text: &str, filter: &Filter<'_>) -> bool {
        if !core.filters.remove(text) {
            return false;
        }
        self.trie.write().remove(filter, session.number);
        self.changed(filter);
        true
    }

    /// After the change, never before it: a route that asks in between asks again.
    fn changed(&self, filter: &Filter<'_>) {
        let stamp = if filter.wild { Some(&self.wild_stamp) } else { self.stamps.get(stripe(filter.path)) };
        if let Some(stamp) = stamp {
            stamp.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The present version of what is known about a topic's subscribers. Equal stamps: nothing has changed.
    pub(crate) fn stamp(&self, stripe: usize) -> Stamp {
        let exact = self.stamps.get(stripe).map_or(0, |stamp| stamp.load(Ordering::Acquire));
        Stamp(exact, self.wild_stamp.load(Ordering::Acquire))
    }

    /// Changes a session's queue and keeps the sum of all queues.
    pub(crate) fn with_outgoing<T>(
        &self,
        session: &Session,
        change: impl FnOnce(&mut super::outgoing::Outgoing) -> T,
    ) -> T {
        let mut outgoing = session.outgoing.lock();
        let before = outgoing.bytes();
        let result = change(&mut outgoing);
        let after = outgoing.bytes();
        // Within the lock, so that the sum never falls below what is really there.
        if after > before {
            self.queued.fetch_add(after - before, Ordering::Relaxed);
        } else if after < before {
            self.queued.fetch_sub(before - after, Ordering::Relaxed);
        }
        result
    }

    fn note(&self, session: &Arc<Session>, core: &mut Core, at: Instant) {
        let key = (at, self.timer_numbers.fetch_add(1, Ordering::Relaxed));
        core.timers.push(key);
        self.timers.lock().insert(key, session.clone());
    }

    fn forget_timers(&self, core: &mut Core) {
        if core.timers.is_empty() {
            return;
        }
        let mut timers = self.timers.lock();
        for key in core.timers.drain(..) {
            timers.remove(&key);
        }
    }

    /// What is due: delayed wills to send, sessions to end. Called by the janitor.
    pub(crate) fn due(&self, now: Instant) -> Vec<LastWords> {
        let mut last_words = Vec::new();
        loop {
            let (key, session) = {
                let mut timers = self.timers.lock();
                match timers.first_key_value() {
                    Some((key, _)) if key.0 <= now => {}
                    _ => break,
                }
                let Some(first) = timers.pop_first() else { break };
                first
            };
            // Locked: a connection has it, and has or will have forgotten this timer.
            let Ok(mut core) = session.core.clone().try_lock_owned() else { continue };
            let Some(at) = core.timers.iter().position(|known| *known == key) else { continue };
            core.timers.swap_remove(at);
            if core.timers.is_empty() {
                last_words.extend(self.end(&session, &mut core));
            } else {
                last_words.extend(self.last_words(&session, &mut core));
            }
        }
        self.metrics.retained.store(self.retained.lock().len() as u64, Ordering::Relaxed);
        self.metrics.queued_bytes.store(self.queued.load(Ordering::Relaxed) as u64, Ordering::Relaxed);
        last_words
    }

    /// Wakes every connection, so that it looks at the gateway's phase.
    pub(crate) fn wake_all(&self) {
        let sessions: Vec<Arc<Session>> = self.sessions.lock().values().cloned().collect();
        sessions.iter().for_each(|session| session.sink.signal.raise());
    }
}

/// Which of the stamps stands for a topic.
pub(crate) fn stripe(topic: &str) -> usize {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in topic.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    ((hash >> 32) as usize ^ hash as usize) % STAMPS
}
