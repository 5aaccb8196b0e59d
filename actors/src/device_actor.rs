//! The actor of one device: brings its state from where it is kept, owns it while the device is awake, and answers
//! for it to its supervisor. Messages from devices do not pass through its mailbox; see [`crate::handle`].

use std::sync::Arc;

use bytes::Bytes;
use device::id::DeviceId;
use device::machine::EpochLedger;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use crate::carrier::{Carrier, Failure};
use crate::handle::DeviceHandle;
use crate::metrics::add;
use crate::shard::Shard;

/// Where the snapshots of a checkpoint are gathered. Dropping it unanswered counts as "no answer".
#[derive(Debug)]
pub struct SnapshotRequest {
    pub(crate) reply: tokio::sync::mpsc::Sender<(DeviceId, Option<Bytes>)>,
}

/// What a device actor is told.
#[derive(Debug)]
pub enum DeviceMessage {
    /// Give your durable state, for a checkpoint.
    Snapshot(SnapshotRequest),
    /// Nobody has talked to you for long: go to sleep if nothing is in flight.
    Passivate,
    /// Give your ledger.
    Ledger(oneshot::Sender<Vec<EpochLedger>>),
    /// A step of your device failed, for this reason: its state is gone.
    Failed(String),
}

/// What the actor starts from.
pub(crate) struct Start {
    pub(crate) shard: Arc<Shard>,
    pub(crate) handle: Arc<DeviceHandle>,
    /// The actor replaces one that failed: state must be rebuilt from the log.
    pub(crate) after_failure: bool,
}

/// The ractor behaviour; the device's own state is in its seat.
pub(crate) struct DeviceActor;

impl Actor for DeviceActor {
    type Msg = DeviceMessage;
    type State = Start;
    type Arguments = Start;

    async fn pre_start(&self, _myself: ActorRef<DeviceMessage>, start: Start) -> Result<Start, ActorProcessingErr> {
        // The supervisor waits for this; loading waits for the store and comes in `post_start`.
        Ok(start)
    }

    async fn post_start(&self, myself: ActorRef<DeviceMessage>, start: &mut Start) -> Result<(), ActorProcessingErr> {
        let Start { shard, handle, after_failure } = start;
        let device = shard.load(handle.id(), *after_failure).await?;
        if *after_failure {
            shard.touch(handle);
        }
        add(&shard.metrics.woken, 1);
        handle.serve(myself, Carrier::new(shard.clone(), device)).map_err(|Failure { text, .. }| text.into())
    }

    async fn handle(
        &self,
        myself: ActorRef<DeviceMessage>,
        message: DeviceMessage,
        start: &mut Start,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DeviceMessage::Snapshot(request) => {
                if let Some(snapshot) = start.handle.with(|carrier, handle| carrier.snapshot(handle)) {
                    let _ = request.reply.try_send((start.handle.id().clone(), Some(snapshot)));
                }
            }
            DeviceMessage::Passivate => {
                if start.shard.park(&start.handle) {
                    myself.stop(None);
                }
            }
            DeviceMessage::Ledger(reply) => {
                if let Some(ledger) = start.handle.with(|carrier, handle| carrier.ledger(handle)) {
                    let _ = reply.send(ledger);
                }
            }
            DeviceMessage::Failed(text) => return Err(text.into()),
        }
        Ok(())
    }
}
