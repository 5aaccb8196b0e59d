//! The inbox of a device. It outlives the actor that empties it.
//!
//! Senders put messages here and wake the actor only when it is not already on its way, so a burst costs one
//! actor message. When an actor fails, what it had not taken yet stays here for the one that replaces it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use device::id::DeviceId;
use device::time::Timestamp;
use parking_lot::Mutex;
use ractor::ActorRef;

use crate::device_actor::DeviceMessage;
use crate::message::Inbound;

/// One awake device.
#[derive(Debug)]
pub struct DeviceHandle {
    id: DeviceId,
    inbox: Mutex<Inbox>,
    /// Changed since the last checkpoint.
    pub(crate) dirty: AtomicBool,
    /// On the list of those who want a tick.
    pub(crate) attention: AtomicBool,
}

#[derive(Debug)]
struct Inbox {
    queue: VecDeque<Inbound>,
    /// The actor has been told to work and has not yet found the queue empty, or does not run yet.
    scheduled: bool,
    /// The device sleeps: this handle takes nothing more.
    closed: bool,
    actor: Option<ActorRef<DeviceMessage>>,
    last_seen: Timestamp,
}

impl DeviceHandle {
    /// An inbox whose actor does not run yet.
    pub(crate) fn new(id: DeviceId, now: Timestamp) -> Self {
        Self {
            id,
            inbox: Mutex::new(Inbox {
                queue: VecDeque::new(),
                scheduled: true,
                closed: false,
                actor: None,
                last_seen: now,
            }),
            dirty: AtomicBool::new(false),
            attention: AtomicBool::new(false),
        }
    }

    /// Whose it is.
    pub fn id(&self) -> &DeviceId {
        &self.id
    }

    /// Puts a message in; `Err` gives it back because the device has gone to sleep.
    pub(crate) fn push(&self, message: Inbound) -> Result<(), Inbound> {
        let mut inbox = self.inbox.lock();
        if inbox.closed {
            return Err(message);
        }
        inbox.last_seen = message.received;
        inbox.queue.push_back(message);
        if !inbox.scheduled {
            inbox.scheduled = true;
            self.work(&inbox);
        }
        Ok(())
    }

    fn work(&self, inbox: &Inbox) {
        if let Some(actor) = &inbox.actor {
            // It fails only when the actor has just died; its successor looks into the inbox first thing.
            let _ = actor.send_message(DeviceMessage::Work);
        }
    }

    /// Takes up to `most` messages; [`DeviceHandle::rest`] has to follow when they are done.
    pub(crate) fn take(&self, most: usize, into: &mut Vec<Inbound>) {
        let mut inbox = self.inbox.lock();
        let n = inbox.queue.len().min(most);
        into.extend(inbox.queue.drain(..n));
    }

    /// What was taken is done. False: more has come; else the actor counts as idle until it is woken.
    pub(crate) fn rest(&self) -> bool {
        let mut inbox = self.inbox.lock();
        if !inbox.queue.is_empty() {
            return false;
        }
        inbox.scheduled = false;
        if inbox.queue.capacity() > 64 {
            inbox.queue.shrink_to(4);
        }
        true
    }

    /// An actor serves this inbox from now on; it is told to look into it.
    pub(crate) fn serve(&self, actor: ActorRef<DeviceMessage>) {
        let mut inbox = self.inbox.lock();
        inbox.actor = Some(actor);
        inbox.scheduled = true;
        self.work(&inbox);
    }

    /// The actor has died.
    pub(crate) fn orphan(&self) {
        let mut inbox = self.inbox.lock();
        inbox.actor = None;
        inbox.scheduled = true;
    }

    /// Sends the actor a message; false if there is none.
    pub(crate) fn tell(&self, message: DeviceMessage) -> bool {
        let actor = self.inbox.lock().actor.clone();
        actor.is_some_and(|actor| actor.send_message(message).is_ok())
    }

    /// Closes the inbox if nothing is in it; afterwards `push` gives messages back.
    pub(crate) fn close_if_idle(&self) -> bool {
        let mut inbox = self.inbox.lock();
        if !inbox.queue.is_empty() || inbox.scheduled {
            return false;
        }
        inbox.closed = true;
        inbox.actor = None;
        true
    }

    /// When a message last came.
    pub(crate) fn last_seen(&self) -> Timestamp {
        self.inbox.lock().last_seen
    }

    /// Marks as changed; true if it was not before.
    pub(crate) fn mark_dirty(&self) -> bool {
        !self.dirty.load(Ordering::Relaxed) && !self.dirty.swap(true, Ordering::AcqRel)
    }
}
