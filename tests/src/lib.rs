//! Promises of the whole, one test file each, and what they share: the reference model.

pub mod model;
