//! `tests::fuzz::frame` under libFuzzer.
#![no_main]

mod support;

support::target!(frame);
