//! One session: what outlives a connection, and how connections hand it to one another.
//!
//! A connection owns its session by holding the lock of its [`Core`] for as long as it lives. A second
//! connection of the same client states its claim, which makes the first one leave, and then waits for the lock.
//! So there is never a moment in which two connections change the same state.
//!
//! Sessions are kept in memory only: a restart of the engine forgets them, and clients see "session present: no".

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::task::Waker;

use actors::message::{Outcome, OutcomeSink};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use super::control::Will;
use super::incoming::Incoming;
use super::outgoing::{Bounds, Outgoing};
use super::trie::Subscriber;

/// Wakes a connection's task from anywhere, at most once until it has looked.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    waker: AtomicWaker,
    raised: AtomicBool,
}

impl Signal {
    pub(crate) fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Whether it was raised since the last look; from now on `waker` is woken.
    pub(crate) fn look(&self, waker: &Waker) -> bool {
        self.waker.register(waker);
        self.raised.swap(false, Ordering::AcqRel)
    }
}

/// Where outcomes of messages arrive. Every undecided message holds one reference to it, so the number of
/// references tells whether any outcome can still come.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    decisions: Mutex<Vec<(u64, Outcome)>>,
    pub(crate) signal: Signal,
}

impl OutcomeSink for Sink {
    fn decided(&self, ticket: u64, outcome: Outcome) {
        self.decisions.lock().push((ticket, outcome));
        self.signal.raise();
    }
}

impl Sink {
    /// Takes what has arrived, leaving `spare` (empty, with capacity) in its place.
    pub(crate) fn take(&self, spare: Vec<(u64, Outcome)>) -> Vec<(u64, Outcome)> {
        let mut decisions = self.decisions.lock();
        if decisions.is_empty() { spare } else { std::mem::replace(&mut *decisions, spare) }
    }
}

/// One session.
pub(crate) struct Session {
    pub(crate) number: u64,
    pub(crate) client: Arc<str>,
    pub(crate) sink: Arc<Sink>,
    pub(crate) outgoing: Mutex<Outgoing>,
    pub(crate) core: Arc<tokio::sync::Mutex<Core>>,
    online: AtomicBool,
    /// Number of the newest connection that wants this session.
    claim: AtomicU64,
    /// Reason code for which the present connection must go; 0: it may stay.
    kick: AtomicU8,
}

/// What only the connection that holds it may touch.
#[derive(Debug, Default)]
pub(crate) struct Core {
    /// The session is over; whoever waited for it must look for a new one.
    pub(crate) ended: bool,
    /// A connection has used it before.
    pub(crate) used: bool,
    pub(crate) incoming: Incoming,
    pub(crate) filters: HashSet<Box<str>>,
    /// The will of the present connection, or of the last one while its delay runs.
    pub(crate) will: Option<Will>,
    /// How long the session outlives its connection.
    pub(crate) expiry: Duration,
    /// What the janitor has noted for it.
    pub(crate) timers: Vec<(Instant, u64)>,
}

impl Session {
    pub(crate) fn new(number: u64, client: Arc<str>, bounds: Bounds) -> Self {
        Self {
            number,
            client,
            sink: Arc::default(),
            outgoing: Mutex::new(Outgoing::new(bounds)),
            core: Arc::default(),
            online: AtomicBool::new(false),
            claim: AtomicU64::new(0),
            kick: AtomicU8::new(0),
        }
    }

    /// States a claim to the session: whoever has it now will leave.
    pub(crate) fn claim(&self) -> u64 {
        let claim = self.claim.fetch_add(1, Ordering::AcqRel) + 1;
        self.sink.signal.raise();
        claim
    }

    /// Whether no newer connection has claimed it.
    pub(crate) fn holds(&self, claim: u64) -> bool {
        self.claim.load(Ordering::Acquire) == claim
    }

    /// Makes the present connection leave.
    pub(crate) fn kick(&self, code: u8) {
        self.kick.store(code, Ordering::Release);
        self.sink.signal.raise();
    }

    /// Whether the connection was told to leave, and why.
    pub(crate) fn kicked(&self) -> Option<u8> {
        match self.kick.load(Ordering::Acquire) {
            0 => None,
            code => Some(code),
        }
    }

    pub(crate) fn set_online(&self, online: bool) {
        if online {
            self.kick.store(0, Ordering::Release);
        }
        self.online.store(online, Ordering::Release);
    }

    /// Whether outcomes are here or can still arrive.
    pub(crate) fn promised(&self) -> bool {
        // In this order: an outcome is put down before its reference is given back.
        let references = Arc::strong_count(&self.sink);
        fence(Ordering::Acquire);
        references > 1 || !self.sink.decisions.lock().is_empty()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({}, {:?})", self.number, self.client)
    }
}

impl Subscriber for Arc<Session> {
    fn number(&self) -> u64 {
        self.number
    }

    fn online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::limits::Limits;

    #[test]
    fn an_outcome_that_waits_to_be_taken_is_not_lost() {
        let limits = Limits::default();
        let bounds = Bounds { messages: limits.queue_messages, bytes: limits.queue_bytes };
        let session = Session::new(1, Arc::from("a"), bounds);
        assert!(!session.promised());
        let reply = session.sink.clone();
        assert!(session.promised());
        reply.decided(0, Outcome::Stored);
        drop(reply);
        assert!(session.promised(), "decided, and nobody has looked yet");
        session.sink.take(Vec::new());
        assert!(!session.promised());
    }
}
