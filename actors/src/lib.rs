//! Gives each device a mailbox, a supervisor and a durable home.
//!
//! A map of the crate:
//! - [`message`]: what crosses the border to the gateway, in both directions.
//! - [`admission`]: memory credits.
//! - [`committer`]: one thread per shard that gathers entries into group commits and decides where barriers stand.
//! - [`handle`]: the inbox of a device; it outlives the actor that empties it.
//! - [`shard`]: the devices of one shard: who is awake, who has changed, where their state is found.
//! - [`device_actor`], [`supervisor`]: the ractor actors.
//! - [`node`]: all shards of this process; implements [`message::Ingress`].
//!
//! Deliberately absent: any decision about sequence numbers or payloads (that is `device`), and anything about
//! queries: pipelines are fed from what is durable and never see an actor.

pub mod admission;
pub mod committer;
pub mod device_actor;
pub mod handle;
pub mod message;
pub mod metrics;
pub mod node;
pub mod shard;
pub mod supervisor;
