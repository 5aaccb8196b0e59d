//! The supervisor of a shard's device actors: starts them, and starts them again when they fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

use crate::device_actor::{DeviceActor, DeviceMessage, Start};
use crate::handle::DeviceHandle;
use crate::metrics::add;
use crate::shard::Shard;

/// Longest pause before a failing device is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a shard supervisor is told.
#[derive(Debug)]
pub enum SupervisorMessage {
    /// Start the actor of a device.
    Wake(Arc<DeviceHandle>),
    /// Start the actor of a device again after it failed.
    Restart(Arc<DeviceHandle>),
    /// Tell devices that have been silent to go to sleep.
    Sweep,
}

struct Child {
    handle: Arc<DeviceHandle>,
    actor: ActorRef<DeviceMessage>,
}

/// The ractor behaviour.
pub(crate) struct ShardSupervisor;

pub(crate) struct State {
    shard: Arc<Shard>,
    children: HashMap<ActorId, Child>,
    /// Failures of a device in a row, for the pause before the next start.
    failures: HashMap<device::id::DeviceId, u32>,
}

impl Actor for ShardSupervisor {
    type Msg = SupervisorMessage;
    type State = State;
    type Arguments = Arc<Shard>;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMessage>,
        shard: Arc<Shard>,
    ) -> Result<State, ActorProcessingErr> {
        shard.supervised_by(myself);
        Ok(State { shard, children: HashMap::new(), failures: HashMap::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Wake(handle) => state.start(&myself, handle, false).await,
            SupervisorMessage::Restart(handle) => state.start(&myself, handle, true).await,
            SupervisorMessage::Sweep => {
                let now = (state.shard.clock)();
                for child in state.children.values() {
                    if now.since(child.handle.last_seen()) >= state.shard.passivate_after_ns {
                        let _ = child.actor.send_message(DeviceMessage::Passivate);
                    }
                }
                state.failures.clear();
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, _, _) => {
                state.children.remove(&cell.get_id());
                add(&state.shard.metrics.passivated, 1);
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                let Some(child) = state.children.remove(&cell.get_id()) else { return Ok(()) };
                add(&state.shard.metrics.restarted, 1);
                child.handle.orphan();
                let failures = state.failures.entry(child.handle.id().clone()).or_insert(0);
                *failures += 1;
                let pause = Duration::from_millis(10).saturating_mul(1 << (*failures).min(12)).min(LONGEST_PAUSE);
                tracing::warn!(device = %child.handle.id(), %error, ?pause, "device actor failed; it starts again from its last durable state");
                myself.send_after(pause, move || SupervisorMessage::Restart(child.handle.clone()));
            }
            _ => {}
        }
        Ok(())
    }
}

impl State {
    async fn start(&mut self, myself: &ActorRef<SupervisorMessage>, handle: Arc<DeviceHandle>, after_failure: bool) {
        let start = Start { shard: self.shard.clone(), handle: handle.clone(), after_failure };
        match Actor::spawn_linked(None, DeviceActor, start, myself.get_cell()).await {
            Ok((actor, _)) => {
                self.children.insert(actor.get_id(), Child { handle, actor });
            }
            Err(error) => {
                tracing::error!(device = %handle.id(), %error, "cannot start the device's actor; trying again");
                let again = handle.clone();
                myself.send_after(Duration::from_secs(1), move || SupervisorMessage::Restart(again.clone()));
            }
        }
    }
}
