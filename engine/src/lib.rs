//! The process: wiring and lifetimes, no decision about devices or SQL.
//!
//! A map of the crate:
//! - [`cli`]: the sub-commands of `weir`.
//! - [`config`], [`limits`], [`clock`]: settings, bounds, and the only reader of the wall clock.
//! - [`core`]: the data plane (log, state, devices, pipelines, tables) without listeners. [`opener`]: how one shard of
//!   it is recovered. [`peers`]: what shards send each other.
//! - [`engine`]: the data plane with listeners in front of it.
//! - [`gateway`]: MQTT. [`bus`]: live messages, the only file that knows rumqttd.
//! - [`ledger`]: counters that add up.
//! - [`trail`]: the table of who did what.
//! - [`login`]: whom a token stands for; `rates`: how often somebody may do something.
//! - [`http`]: the API, and who may ask for what of it. [`query`], [`audit`]: what it and the command line answer with.
//! - [`housekeeping`]: retention and compaction. [`holds`]: who needs which times of which tables.
//! - [`repair`]: partitions of pipelines computed once more, and rows as they come.
//! - [`notify`]: messages about incidents on their way to receivers. [`fleets`], `gateways`: what they have to know of the fleet.
//! - [`project`]: the pipeline project in the data directory. [`schemas`]: what its streams may become; `majors`: views over
//!   their major versions, `views` over each. `provision`: first certificates of devices, `welcome`: the first time that they
//!   come in with one, `renewal`: the next ones, `recovery`: when those have expired, [`expiring`]: whose do soon, `request`: how
//!   they are asked for. [`ca`], [`guard`], `trust`: certificates of
//!   the device listener, whom they let in, and what becomes of that while it is open.
//! - `sweep`: half files of a crash. [`testing`]: an engine in memory for the tests that stand beside pipelines.
//! - [`simulate`]: a fleet of real edge agents. [`torture`]: everything that may happen to engine and agents.

pub mod audit;
pub mod bus;
pub mod ca;
pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod engine;
pub mod expiring;
pub mod fleet;
pub mod fleets;
pub mod gateway;
mod gateways;
pub mod groups;
pub mod guard;
pub mod holds;
pub mod housekeeping;
pub mod http;
pub mod ledger;
pub mod limits;
pub mod login;
mod majors;
pub mod notify;
pub mod opener;
pub mod overview;
pub mod peers;
pub mod project;
mod provision;
pub mod query;
mod rates;
mod recovery;
mod renewal;
pub mod repair;
mod request;
pub mod schemas;
pub mod simulate;
mod sweep;
pub mod testing;
pub mod torture;
pub mod trail;
mod trust;
mod views;
pub mod watch;
mod welcome;
