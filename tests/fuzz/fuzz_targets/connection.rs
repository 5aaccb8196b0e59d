//! `tests::fuzz::connection` under libFuzzer.
#![no_main]

mod support;

support::target!(connection);
