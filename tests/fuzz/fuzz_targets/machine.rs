//! `tests::fuzz::machine` under libFuzzer.
#![no_main]

mod support;

support::target!(machine);
