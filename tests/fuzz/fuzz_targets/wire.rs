//! `tests::fuzz::wire` under libFuzzer.
#![no_main]

mod support;

support::target!(wire);
