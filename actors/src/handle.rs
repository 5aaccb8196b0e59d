//! The seat of a device: where its state is while it is awake, and where messages wait until it is.
//!
//! The actor loads the state, takes the seat, and is the only one that puts anything into it. A message takes its
//! turn on the thread that brings it: under the seat's lock, so one after the other, as through a mailbox. A wake
//! of a task for each message would cost more than the turn itself (a device has seldom more than one under way,
//! and its task is cold among ten thousand others). When the turn fails, the state is thrown away on the spot, the
//! actor is told and ends, and what comes meanwhile waits for its successor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::Bytes;
use device::id::DeviceId;
use device::time::Timestamp;
use parking_lot::Mutex;
use ractor::ActorRef;

use crate::carrier::{Carrier, Failure};
use crate::device_actor::DeviceMessage;
use crate::message::Inbound;

/// One awake device.
#[derive(Debug)]
pub struct DeviceHandle {
    id: DeviceId,
    seat: Mutex<Seat>,
    actor: Mutex<Option<ActorRef<DeviceMessage>>>,
    last_seen: AtomicI64,
    /// Changed since the last checkpoint.
    dirty: AtomicBool,
    /// On the list of those who want a tick.
    pub(crate) attention: AtomicBool,
    /// When it will be reminded that time has passed; `i64::MAX`: not.
    reminder: AtomicI64,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a device that is awake is the rule, and a box would be one more cold line a message"
)]
enum Seat {
    /// The actor is on its way: messages wait.
    Empty(VecDeque<Inbound>),
    /// The device is awake.
    Taken(Carrier),
    /// The device sleeps: this handle takes nothing more.
    Closed,
}

impl DeviceHandle {
    /// A seat whose actor does not run yet.
    pub(crate) fn new(id: DeviceId, now: Timestamp) -> Self {
        Self {
            id,
            seat: Mutex::new(Seat::Empty(VecDeque::new())),
            actor: Mutex::new(None),
            last_seen: AtomicI64::new(now.0),
            dirty: AtomicBool::new(false),
            attention: AtomicBool::new(false),
            reminder: AtomicI64::new(i64::MAX),
        }
    }

    /// Whose it is.
    pub fn id(&self) -> &DeviceId {
        &self.id
    }

    /// A message takes its turn, or waits for the actor; `Err` gives it back because the device has gone to sleep.
    pub(crate) fn push(self: &Arc<Self>, message: Inbound) -> Result<(), Inbound> {
        let mut seat = self.seat.lock();
        match &mut *seat {
            Seat::Closed => return Err(message),
            Seat::Empty(waiting) => waiting.push_back(message),
            Seat::Taken(carrier) => {
                self.last_seen.store(message.received.0, Ordering::Relaxed);
                if let Err(failure) = carrier.take(self, message) {
                    self.vacate(&mut seat, failure);
                }
            }
        }
        Ok(())
    }

    /// Does with the device what `turn` says, if it is awake.
    pub(crate) fn with<T>(
        self: &Arc<Self>,
        turn: impl FnOnce(&mut Carrier, &Arc<Self>) -> Result<T, Failure>,
    ) -> Option<T> {
        let mut seat = self.seat.lock();
        let Seat::Taken(carrier) = &mut *seat else { return None };
        match turn(carrier, self) {
            Ok(done) => Some(done),
            Err(failure) => {
                self.vacate(&mut seat, failure);
                None
            }
        }
    }

    fn vacate(&self, seat: &mut Seat, failure: Failure) {
        let mut waiting = VecDeque::new();
        waiting.extend(failure.untouched.map(|message| *message));
        *seat = Seat::Empty(waiting);
        // It fails only when the actor has just ended; then its supervisor replaces it anyway.
        self.tell(DeviceMessage::Failed(failure.text));
    }

    /// The actor takes the seat; what waited has its turn. An error: it failed, and has to go.
    pub(crate) fn serve(self: &Arc<Self>, actor: ActorRef<DeviceMessage>, mut carrier: Carrier) -> Result<(), Failure> {
        *self.actor.lock() = Some(actor);
        let mut seat = self.seat.lock();
        if let Seat::Empty(waiting) = &mut *seat {
            while let Some(message) = waiting.pop_front() {
                self.last_seen.store(message.received.0, Ordering::Relaxed);
                if let Err(mut failure) = carrier.take(self, message) {
                    waiting.extend(failure.untouched.take().map(|message| *message));
                    return Err(failure);
                }
            }
        }
        let heeding = carrier.heeds_time();
        *seat = Seat::Taken(carrier);
        drop(seat);
        if heeding {
            // What it slept through, and transitions that a crash kept out of the log.
            self.with(|carrier, handle| {
                carrier.look_again(handle);
                Ok(())
            });
        }
        Ok(())
    }

    /// The actor has ended without being asked to: whatever it left is not to be trusted.
    pub(crate) fn orphan(&self) {
        *self.actor.lock() = None;
        let mut seat = self.seat.lock();
        if let Seat::Taken(_) = *seat {
            *seat = Seat::Empty(VecDeque::new());
        }
    }

    /// Sends the actor a message; false if there is none.
    pub(crate) fn tell(&self, message: DeviceMessage) -> bool {
        let actor = self.actor.lock().clone();
        actor.is_some_and(|actor| actor.send_message(message).is_ok())
    }

    /// Leaves the seat for good if nothing of the device is under way, and returns its state; afterwards `push`
    /// gives messages back.
    pub(crate) fn leave(self: &Arc<Self>) -> Option<Bytes> {
        let mut seat = self.seat.lock();
        let Seat::Taken(carrier) = &mut *seat else { return None };
        match carrier.rest(self) {
            Ok(snapshot) => {
                if snapshot.is_some() {
                    *self.actor.lock() = None;
                    *seat = Seat::Closed;
                }
                snapshot
            }
            Err(failure) => {
                self.vacate(&mut seat, failure);
                None
            }
        }
    }

    /// When a message last came.
    pub(crate) fn last_seen(&self) -> Timestamp {
        Timestamp(self.last_seen.load(Ordering::Relaxed))
    }

    /// Whether it has to be reminded at that time; a reminder before it is enough.
    pub(crate) fn wants_reminder(&self, at: Timestamp) -> bool {
        at.0 < self.reminder.load(Ordering::Relaxed) && at.0 < self.reminder.swap(at.0, Ordering::AcqRel)
    }

    /// The reminder has come.
    pub(crate) fn reminded(&self) {
        self.reminder.store(i64::MAX, Ordering::Release);
    }

    /// Marks as changed; true if it was not before.
    pub(crate) fn mark_dirty(&self) -> bool {
        !self.dirty.load(Ordering::Relaxed) && !self.dirty.swap(true, Ordering::AcqRel)
    }

    /// A checkpoint asks for its state now: the next change marks it again.
    pub(crate) fn mark_clean(&self) {
        self.dirty.store(false, Ordering::Release);
    }
}
