//! The device's half: keeps each record until an ack covers it.
//!
//! A map of the crate:
//! - [`Reading`]: one record as the application gives it.
//! - [`outbox`]: the durable store; numbers records when they are written, forgets them when an ack covers them.
//! - [`agent`]: the pure core that decides when to say hello, what to send and what to send again.
//! - [`frame`]: stored records as telemetry frames; [`wire`]: hellos and what the engine answers.
//! - [`mqtt`]: one connection, TCP or TLS, MQTT 5.0 or 3.1.1.
//! - [`identity`]: its key and certificate: the first one, and each next one.
//! - [`twin`]: what the device holds of its shadows and of commands.
//! - [`EdgeClient`]: all together in one task: `record`, `flush`, `shadow`, `change`, `commands`, `stats`, `shutdown`.
//!
//! Absent: the frame format, topics, hello and ack encodings (crate `device`), any reading of the wall clock
//! (it comes in as a closure), and what a wish or a command means: the application does it.

pub mod agent;
mod client;
pub mod clock;
mod error;
pub mod frame;
pub mod identity;
mod latency;
pub mod mqtt;
pub mod outbox;
mod ranges;
mod reading;
pub mod twin;
pub mod wire;

pub use client::{Clock, EdgeClient, EdgeConfig, Fault, Receipt, Stats, Store};
pub use error::EdgeError;
pub use frame::FrameConfig;
pub use latency::Latency;
pub use ranges::RangeSet;
pub use reading::{Reading, SchemaRef};
