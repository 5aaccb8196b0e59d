//! Pipelines against plain DataFusion over the same rows.
//!
//! `harness.rs` has the log that a test feeds, the reference that says which rows are late, and the comparison.

mod differential;
mod digest;
mod edges;
mod forms;
pub(crate) mod harness;
mod joins;
mod needed;
mod random;
mod repair_edges;
mod repairs;
mod shared;
