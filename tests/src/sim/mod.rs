//! Simulation of the whole engine with many devices: one seed decides everything, and the same seed gives the same
//! trace, byte for byte.
//!
//! A map:
//! - [`Params`] (`params.rs`): what a world is made of; `plan.rs`: when what goes wrong; `random.rs`.
//! - `world.rs`: the event loop in virtual time: devices, network, and the engine's lives and deaths.
//! - `live.rs`: one life of the engine: the code that production runs, on a current-thread runtime with paused time.
//!   Committers are stepped and consumers awaited by tasks instead of threads.
//! - `disk.rs`: log, state and files with faults; `hub.rs`: the engine's way out; `media.rs`: a device's storage.
//! - `machine.rs`, `device.rs`, `edge_device.rs`, `plain_device.rs`: devices with the real agent and outbox, or with a plain client.
//! - `ledger.rs`, `reference.rs`, `tables.rs`, `oracle.rs`: what is true, and whether the engine and its files agree.
//! - `soak.rs`: what the engine keeps, day by day, in a world that lasts for weeks.
//! - `trace.rs`: what happened; `shrink.rs`: the smallest world that still fails.
//!
//! Absent: raft-engine, SlateDB and the local file system (each has its own tests under the ports that are simulated
//! here), and the gateway's sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alerts;
mod chains;
mod device;
mod disk;
mod edge_device;
mod hub;
mod ledger;
mod live;
mod machine;
mod media;
mod oracle;
mod params;
mod plain_device;
mod plan;
mod project;
mod random;
mod reference;
mod shrink;
mod soak;
mod tables;
mod trace;
mod world;

pub use params::{Fault, Params};
pub use shrink::shrink;
pub use soak::{Life, Look, Soak};
pub use trace::Trace;

/// How a world went.
#[derive(Debug, Clone)]
pub struct Report {
    /// The world.
    pub params: Params,
    /// Hash of everything that happened.
    pub hash: u64,
    /// Things that happened.
    pub lines: u64,
    /// Broken promises; empty if all is well.
    pub wrong: Vec<String>,
    /// What happened, if it was to be kept.
    pub trace: Vec<String>,
}

/// Runs one world.
pub fn run(params: &Params, keep_trace: bool) -> Report {
    observed(params, keep_trace, Soak::default())
}

/// Runs one world, and lets `soak` look at it.
pub fn observed(params: &Params, keep_trace: bool, soak: Soak) -> Report {
    let trace = Trace::new(keep_trace);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world::World::new(params, &trace, soak).run();
    }));
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        trace.wrong(format!("a panic: {}", text.unwrap_or_else(|| "without words".to_owned())));
    }
    let (hash, lines) = trace.digest();
    Report { params: params.clone(), hash, lines, wrong: trace.wrongs(), trace: trace.lines() }
}
