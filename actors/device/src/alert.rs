//! Alerts: what a rule says, as values.
//!
//! - `condition`: expressions over the fields of one record, with SQL's three truth values.
//! - `rule`: thresholds, times and whom to tell.
//!
//! Absent: SQL text, and anything that needs a clock.

mod condition;
mod rule;

pub use condition::{Arithmetic, Comparison, Expr, Function, Scalar};
pub use rule::{Backfill, Level, NoData, Rule, Step};
