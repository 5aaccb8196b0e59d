//! Promises of the whole, one test file each, and what they share: the reference models, the simulation, the bodies of
//! the fuzz targets.

pub mod alerts;
pub mod fuzz;
pub mod model;
#[cfg(feature = "engine")]
pub mod sim;
