//! Who may do what: certificates, and what is known of those who hold them.
//!
//! - `journal`: a file that facts are only ever added to, each chained to the one before. All durable state of this crate
//!   is such facts.
//!
//! Several processes may use the same files (the engine, and commands beside it): each reads what the others have added.
//!
//! Absent: sockets, clocks, and any knowledge of devices beyond their names.

pub mod journal;
