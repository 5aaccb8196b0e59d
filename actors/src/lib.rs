//! Gives each device a mailbox, a supervisor and a durable home.
//!
//! A map of the crate:
//! - [`message`]: what crosses the border to the gateway, in both directions.
//! - [`admission`]: memory credits.
//! - [`committer`]: one thread per shard that gathers entries into group commits and decides where barriers stand.
//! - [`declared`]: the streams that devices admit messages for, and their change at one position of the log.
//! - [`handle`]: the seat of a device, where each message has its turn; it outlives the actor that owns what sits there.
//! - `carrier`: one step of a device: what is durable, the message, the committer, the effects.
//! - [`rules`]: which alert rules count where in the log.
//! - [`shard`]: the devices of one shard: who is awake, who has changed, where their state is found.
//! - [`device_actor`], [`supervisor`]: the ractor actors.
//! - [`node`]: all shards of this process; implements [`message::Ingress`].
//!
//! Deliberately absent: any decision about sequence numbers or payloads (that is `device`), and anything about
//! queries: pipelines are fed from what is durable and never see an actor.

pub mod admission;
mod carrier;
pub mod committer;
pub mod declared;
pub mod device_actor;
pub mod handle;
pub mod message;
pub mod metrics;
pub mod node;
pub mod rules;
pub mod shard;
pub mod supervisor;

#[cfg(test)]
mod tests;
