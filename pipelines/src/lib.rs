//! Runs checked pipelines over durable rows and gives each window's result exactly once.
//!
//! A map, from the rim inwards:
//!
//! * [`Pipeline`] (`pipeline.rs`): one running query of one shard: rows in, closed windows out, state saved and
//!   restored; `outcome.rs`: what it gives; `finish.rs`: from groups to rows;
//! * `lookup.rs`: what rows find in reference tables; `stream_join/`: what they find in another stream;
//! * `plan.rs`: cuts DataFusion's physical plan at its aggregate; `stage.rs` evaluates what lies below and above it;
//! * `operator.rs`: what a window operator is; `aligned.rs` for windows that follow the clock, `sessions.rs` for those
//!   that end with a gap; `aggregate.rs` is their hash table over DataFusion's accumulators and
//!   `digest.rs` its own accumulator for percentiles,
//!   `store.rs` the states of windows that are still open;
//! * `watermark.rs`, `window.rs`: pure decisions: how far a device is, what is due, closed or late;
//! * `shared.rs`: groups with rows of many devices, and so of many shards; `merge.rs` brings them together;
//! * `heard.rs`: how far the devices of a stream are, for pipelines that begin later;
//! * `checkpoint.rs`: the bytes of a state.
//!
//! * [`runner`]: the consumer of a shard's log: feeds tables and pipelines, checkpoints, cuts files;
//! * [`repair`]: partitions recomputed from the stream's files; `pipeline/recompute.rs` is what it does with the rows;
//! * [`output`]: how tables are written; [`live`]: rows that are in no file yet; [`tap`]: who watches them come.
//!
//! Absent on purpose: clocks (time is a value of the log) and device actors (this crate sees only what is durable).

pub mod alerts;
pub mod live;
pub mod output;
pub mod repair;
pub mod runner;
pub mod tap;

mod aggregate;
mod aligned;
mod checkpoint;
mod digest;
mod error;
mod finish;
mod heard;
mod lookup;
mod merge;
mod operator;
mod outcome;
mod pipeline;
mod plan;
mod sessions;
mod shared;
mod stage;
mod store;
mod stream_join;
#[cfg(test)]
mod tests;
mod watermark;
mod window;

pub use error::PipelineError;
pub use outcome::{Closed, LATE, LateRow, Stats};
pub use pipeline::{Passed, Pipeline};
pub use shared::{IDLE, owner};
pub use watermark::{HOLD, SLACK};
