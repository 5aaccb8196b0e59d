//! What a device says and how it behaves, as values and pure functions.
//!
//! A map of the crate:
//! - [`id`], [`seq`], [`time`]: newtypes for every number that could be taken for another.
//! - [`schema`]: streams, fields and values, the catalog that payloads are read against.
//! - [`payload`]: frames (CBOR, integer keys) and plain records (JSON, CBOR), read into a [`payload::RecordSink`].
//! - [`topic`]: the topics below `devices/`.
//! - [`clock`]: which time a row gets.
//! - [`entry`]: what the shard log holds of a device, and its encoding.
//! - [`ack`], [`hello`]: what engine and device tell each other about what is stored.
//! - [`dedup`]: which sequence numbers of an epoch are accounted for.
//! - [`alert`]: rules that look at each record of a device.
//! - [`shadow`]: what a device is wanted to be, and what it says it is.
//! - [`command`]: what it is told to do, once.
//! - [`status`]: whether it is there.
//! - [`renewal`]: when its certificate is due.
//! - [`machine`]: the device itself, `admit` / `apply` / `tick`.
//!
//! Deliberately absent: tokio, Arrow, ractor, any clock and any source of randomness. Time and random
//! numbers come in as values, so every behaviour can be tested without a socket.

pub mod ack;
pub mod alert;
pub mod clock;
pub mod command;
pub mod dedup;
pub mod entry;
pub mod hello;
pub mod id;
pub mod machine;
pub mod payload;
#[cfg(feature = "planted")]
pub mod planted;
pub mod renewal;
pub mod schema;
pub mod seq;
pub mod shadow;
pub mod status;
pub mod time;
pub mod topic;
mod varint;
