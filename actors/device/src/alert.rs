//! Alerts: rules that look at each record of a device, and where each stands.
//!
//! - `condition`, `rule`: what a rule says, as values; `rules` all of a project, and what they say about a payload.
//! - `machine`: the states of one rule for one device, stepped by samples in the order of their time and by time itself.
//! - `lane`: brings samples into that order, and those of the past to a machine of their own.
//! - `alerts`: all rules of one device, and the transitions that are on their way into the log; `store` keeps them.
//! - `transition`: one row of the table `_alerts`.
//!
//! Everything changes only when an entry is durable. Absent: SQL text, any clock, and whoever is told.

mod alerts;
mod condition;
mod lane;
mod machine;
mod rule;
mod rules;
mod store;
mod transition;

pub use alerts::{Alerts, MAX_LOGGED, Scene, Wants};
pub use condition::{Arithmetic, Comparison, Expr, Function, Scalar};
pub use lane::{OLD, SLACK};
pub use machine::{REFIRE, SETTLED, Sample, UNKNOWN_GAP};
pub use rule::{Backfill, Level, NoData, Rule, Step};
pub use rules::{Row, Rules, stream_bit};
pub use transition::{Ack, Event, IncidentId, State, Transition};
