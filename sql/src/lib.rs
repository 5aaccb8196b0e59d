//! Says what a pipeline file means and never runs it.
//!
//! A map of the code, in the order a file goes through it:
//!
//! * `source` finds and reads `.sql` files.
//! * `statement` cuts a file into statements and reads their heads (`CREATE STREAM`, `CREATE PIPELINE`) with
//!   sqlparser's own tokens, so that every position is one in the file; `option` and `interval` read what stands
//!   in `WITH (...)`.
//! * `stream` and `table` turn a declaration into columns; `pipeline` turns a query into a plan, through `shape` (what a
//!   query over an endless stream may not do), `join` (what it looks up in reference tables) and `stream_join` (what it finds in a second stream), `name` (columns and functions that exist), `window` (which part of
//!   `GROUP BY` is the window; `marker` has functions for those that DataFusion lacks), `plan` (DataFusion) and `output` (what the table will hold).
//! * `alert` turns `CREATE ALERT` into the rule that each device of a stream evaluates.
//! * `rollup` makes several pipelines of one; `order` puts each behind those that it reads.
//! * `majors` gives each major version of a stream a table; `evolution` says what a declaration may become.
//! * `bounds` says how long a query may be.
//! * `check` brings the statements of all files together into a [`Project`], or all their [`Diagnostic`]s.
//! * `session` is the DataFusion configuration that checking and running share.
//!
//! There is no clock and no telemetry here; only [`load`] and [`read_tables`] touch the disk, and only [`read_tables`] an
//! object store.

mod alert;
mod bounds;
mod check;
mod complaint;
mod cursor;
mod diagnostic;
mod evolution;
mod expression;
mod fingerprint;
mod function;
mod interval;
mod join;
mod majors;
mod marker;
mod name;
mod option;
mod order;
mod output;
mod pipeline;
mod plan;
mod project;
mod reference;
mod render;
mod rollup;
mod session;
mod shape;
mod source;
mod statement;
mod stream;
mod stream_join;
mod table;
#[cfg(test)]
mod tests;
mod window;

pub use bounds::too_long;
pub use check::check;
pub use diagnostic::{Diagnostic, Note, Position, Severity, Span, code};
pub use evolution::{Known, KnownField, evolve, known_with, tables_of};
pub use interval::shown as duration;
pub use project::{
    AlertPlan, DEFAULT_LATENESS_NS, FieldFacts, Granularity, Join, Kind, PipelinePlan, Place, Project, Reads,
    StreamDecl, StreamJoin, TableDecl, Window,
};
pub use reference::read_tables;
pub use render::{render_all, render_json};
pub use session::{session, session_state, session_state_for};
pub use source::{LoadError, SourceFile, load};
pub use stream::PARTITION_COLUMNS;
