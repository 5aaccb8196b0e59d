//! `tests::fuzz::log` under libFuzzer.
#![no_main]

mod support;

support::target!(log);
