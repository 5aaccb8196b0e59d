//! Bodies of the fuzz targets: each takes any bytes and panics where a promise about them is broken.
//!
//! They live here and not in `tests/fuzz`, so that the targets there are one line each and an ordinary test
//! (`tests/tests/fuzz.rs`) runs the same code over the kept inputs and mutations of them. Promises: no panic, no
//! end of time, memory in proportion to the input (`meter`), what was written reads back, what validates also
//! reads, and twice the same bytes give twice the same result.
//!
//! Packets, connections, SQL and certificates need the feature `engine`, everything else the crate `device` only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod catalog;
#[cfg(feature = "engine")]
mod connection;
mod device;
mod frame;
mod log;
mod meter;
pub mod mutate;
#[cfg(feature = "engine")]
mod packets;
mod plain;
#[cfg(feature = "engine")]
mod sql;
mod transcript;
mod wire;

pub use self::device::{machine, snapshot};
#[cfg(feature = "engine")]
pub use connection::connection;
pub use frame::frame;
pub use log::log;
pub use meter::measure_with;
#[cfg(feature = "engine")]
pub use packets::packets;
pub use plain::plain;
#[cfg(feature = "engine")]
pub use sql::{pem, project, query, query_of_any_length};
pub use wire::wire;

/// A target: its name, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, by the name of their folder in `tests/fuzz/corpus`.
pub const TARGETS: &[Target] = &[
    ("frame", frame),
    ("plain", plain),
    ("wire", wire),
    ("log", log),
    ("snapshot", snapshot),
    ("machine", machine),
    #[cfg(feature = "engine")]
    ("packets", packets),
    #[cfg(feature = "engine")]
    ("connection", connection),
    #[cfg(feature = "engine")]
    ("project", project),
    #[cfg(feature = "engine")]
    ("query", query),
    #[cfg(feature = "engine")]
    ("pem", pem),
];
