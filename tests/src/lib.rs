//! Promises of the whole, one test file each, and what they share: the reference model and the simulation.

pub mod model;
pub mod sim;
