//! What is measured, and with what.
//!
//! `load` is the generator of MQTT load with known content; `run.py` beside this crate runs the jobs end to end,
//! `verify.py` compares what was stored with the truth. `devices` measures what a device costs, `window_operator` the windows. A benchmark prints its result; it never asserts a time.

pub mod load;
