//! Who may do what: certificates, and what is known of those who hold them.
//!
//! - `subject`: who a certificate is for. `leaf`: what of it matters.
//! - `enrol`: who may have a first certificate. `origin`: who vouches for devices that nobody here has seen. `renew`: who may have
//!   the next, and whose last one ends soon. `roll`: how one root takes the place of another.
//! - `authority`: makes certificates. `registry`: remembers which, for whom, and what became of them.
//! - `users`: people and programs with their roles, and their tokens.
//! - `audit`: who did what, and who was refused.
//! - `journal`: a file that facts are only ever added to, each chained to the one before. All durable state of this crate
//!   but keys and certificates is such facts.
//!
//! Several processes may use the same files (the engine, and commands beside it): each reads what the others have added.
//!
//! Absent: sockets, clocks, and any knowledge of devices beyond their names.

pub mod audit;
pub mod authority;
pub mod enrol;
pub mod journal;
pub mod leaf;
pub mod origin;
pub mod registry;
pub mod renew;
pub mod roll;
pub mod subject;
pub mod users;
